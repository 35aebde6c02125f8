"""`panscope rollouts`: a language model's own responses to prompts, as text to measure coders on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class MakeRollouts:
    """Sample a language model's responses to prompts, one JSON line each: {"prompt": ..., "response": ...}.

    For example
      panscope rollouts ./my-chat-model --prompts questions.jsonl --out rollouts.jsonl \\
          --chat-user $'<start_of_turn>user\\n' --chat-model $'<end_of_turn>\\n<start_of_turn>model\\n'

    Tokens are drawn from all of the model's distribution (no top-k, no top-p). The same command gives the same file.
    """

    model: Annotated[str, tyro.conf.Positional, flag("MODEL")]
    """Folder or hub id of the language model; "panscope://demo" is the built-in one."""
    prompts: Annotated[Path, flag("FILE")]
    """A .jsonl file with a field "prompt", or a .txt file with one prompt on each line."""
    out: Annotated[Path, flag("FILE")]
    """The file to make."""
    column: Annotated[str, flag("NAME")] = "prompt"
    """The field of the .jsonl lines with the prompt."""
    count: Annotated[int, flag("N")] = 1024
    """How many responses. Of more prompts a random sample is taken, of fewer each one several times."""
    tokens: Annotated[int, flag("N")] = 256
    """Tokens of a response at most."""
    temperature: Annotated[float, flag("T")] = 1.0
    """1 samples from the model's own distribution."""
    seed: Annotated[int, flag("N")] = 0
    """Fixes which prompts are taken and every response."""
    chat_user: Annotated[str, flag("TEXT")] = ""
    """The prefix of the user's query in the model's chat format."""
    chat_model: Annotated[str, flag("TEXT")] = ""
    """The prefix of the model's response in it."""
    batch: Annotated[int, flag("N")] = 32
    """Responses sampled together."""
    revision: Annotated[str | None, flag("REV")] = None
    """Revision of a model from the hub."""
    device: Annotated[str, flag("NAME")] = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    dtype: Annotated[str, flag("NAME")] = "float32"
    """float32, bfloat16 or float16: the language model's precision."""
