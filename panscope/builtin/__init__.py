"""Data that ship with Panscope: recipes and suites of the papers, facts about models and GPUs, a small model and text.

Only paths live here: each file is read by the package that uses it. `demo/README.md` is the model card of the built-in
model; `tools/train_demo_lm.py` made everything in that folder.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent

RECIPES = _FOLDER / "recipes"
"""The papers' recipes, one TOML file each, read by `plan.recipe`."""

SUITES = _FOLDER / "suites"
"""The built-in suites, one TOML file each, started by name."""

MODEL_FACTS = _FOLDER / "facts" / "models.toml"
"""Sizes of published language models: what a plan needs to know before any weight is there."""

GPU_FACTS = _FOLDER / "facts" / "gpus.toml"
"""Memory and peak rates of accelerators."""

TESTED_VERSIONS = _FOLDER / "tested_versions.json"
"""The release of each dependency that this version of Panscope was tested with; `make update` writes it."""

DEMO_FOLDER = _FOLDER / "demo"

DEMO_MODEL = DEMO_FOLDER / "model"
"""Hugging Face folder: Llama weights in bf16, configuration, tokenizer."""

DEMO_TEXT = DEMO_FOLDER / "stories.jsonl"
"""Stories sampled from `DEMO_MODEL`, one JSON object `{"text": ...}` a line."""

DEMO_TRAINING = DEMO_FOLDER / "training.json"
"""The recipe, the loss log and the measured numbers of `DEMO_MODEL`."""
