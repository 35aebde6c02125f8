"""Loading coders from runs, other tools and the hub, and the results of a run."""
