"""The built-in suites as data: one TOML file each, started by name."""

from pathlib import Path

FOLDER = Path(__file__).parent
