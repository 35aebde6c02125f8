"""`panscope geometry`: how the decoder vectors of a run's coders lie to each other, to chance and to tokens."""

from rich.console import Console

from panscope import api
from panscope.cli.flags.geometry import Geometry
from panscope.cli.geometry_tables import geometry_tables
from panscope.cli.listening import listening, say
from panscope.geometry.neighbours import Counts
from panscope.runs.geometry import GeometryOptions


def run(flags: Geometry, console: Console) -> int:
    """Compare, and print a table for each kind of analysis."""
    options = GeometryOptions(
        analyses=flags.only,
        coders=flags.coder,
        latents=flags.latent,
        tokens=flags.tokens,
        against=flags.against,
        pairs=flags.pairs,
        counts=Counts(*flags.neighbours),
        seed=flags.seed,
        device=flags.device,
    )
    with listening(console) as heard:
        results = api.compare_decoders(flags.run_folder, options, **heard)
    for table in geometry_tables(results):
        console.print(table)
    place = flags.run_folder / "geometry"
    say(console, f"Geometry is in {place}: {len(results)} analyses; summary.json lists all")
    return 0
