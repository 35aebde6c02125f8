"""The papers' recipes as data: one TOML file each, read by `suite.recipe`."""

from pathlib import Path

FOLDER = Path(__file__).parent
