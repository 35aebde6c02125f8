"""Reading prompts for rollouts: JSON lines with a field `prompt`, or plain text with one prompt per line.

Prompts are few and short compared with training text, so all of them are kept in memory.
"""

import json
from pathlib import Path

from panscope.data.files import it_has, replace_lone_surrogates
from panscope.types import UserError

PROMPT = "prompt"
"""The field of a prompt, unless another is named."""


def read_prompts(path: Path, column: str = PROMPT) -> list[str]:
    """All prompts that are not blank, in order; raises UserError, naming the file and the line, if it is invalid."""
    if not path.is_file() or path.suffix not in (".jsonl", ".txt"):
        raise UserError(
            f"prompts {str(path)!r} is not a file of prompts: give a .jsonl file with a field {column!r}, or a "
            ".txt file with one prompt per line"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompts {str(path)!r} cannot be read as UTF-8 ({error}): give a readable UTF-8 file"
        ) from None
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".jsonl":
        numbered = [(number, _field(path, number, line, column)) for number, line in numbered]
    prompts = [prompt for _, prompt in numbered if prompt.strip()]
    if not prompts:
        raise UserError(f"prompts {str(path)!r} has no prompt: write one on each line")
    return prompts


def _field(path: Path, number: int, line: str, column: str) -> str:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"prompts {str(path)!r} line {number} is not JSON; write one object per line") from None
    text = fields.get(column) if isinstance(fields, dict) else None
    if not isinstance(text, str):
        raise UserError(
            f"prompts {str(path)!r} line {number} has no text in the field {column!r}{it_has(fields)}; write the "
            "prompt there, or set column to its field"
        )
    return replace_lone_surrogates(text)
