"""Facts about language models and accelerators as data: what a plan needs to know before any weights are there."""

from pathlib import Path

FOLDER = Path(__file__).parent
