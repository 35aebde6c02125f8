"""Language models: loading them, and reading and replacing their activations at named sites."""
