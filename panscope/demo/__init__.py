"""The small language model and the text that ship with Panscope, so that it can be tried without a download.

Only paths live here; `lms` loads the model and `data` reads the text as they would any other folder and file.
`README.md` beside this file is the model card; `tools/train_demo_lm.py` made everything in the folder.
"""

from pathlib import Path

DEMO_FOLDER: Path = Path(__file__).parent

MODEL: Path = DEMO_FOLDER / "model"
"""Hugging Face folder: Llama weights in bf16, configuration, tokenizer."""

TEXT: Path = DEMO_FOLDER / "stories.jsonl"
"""Stories sampled from `MODEL`, one JSON object `{"text": ...}` a line."""

TRAINING: Path = DEMO_FOLDER / "training.json"
"""The recipe, the loss log and the measured numbers of `MODEL`."""
