"""`panscope rollouts`: a language model's own responses to prompts, as text to measure coders on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from panscope.cli.display import TerminalReporter
from panscope.cli.flags import flag
from panscope.config import expanded
from panscope.data.prompts import read_prompts
from panscope.lms.load import LanguageModelConfig, load
from panscope.runs.rollouts import RolloutConfig, Rollouts, check_new, make_rollouts


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

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        names = ("count", "tokens", "temperature", "seed", "batch")
        fields = {name: getattr(self, name) for name in names} | {"user": self.chat_user, "model": self.chat_model}
        config = RolloutConfig.read(fields, "rollouts")
        places = {"path": self.model, "revision": self.revision, "device": self.device, "dtype": self.dtype}
        model = LanguageModelConfig.read(places, "rollouts")
        prompts = read_prompts(expanded(self.prompts))
        out = expanded(self.out)
        check_new(out)
        with _bar(console) as bar:
            task = bar.add_task("sampling", total=config.count, rate="")

            def progress(done: int, tokens: int) -> None:
                spent = bar.tasks[0].elapsed or 1.0
                bar.update(task, completed=done, rate=f"{tokens / spent:,.0f} tokens/s")

            made = make_rollouts(load(model), prompts, config, out, progress)
        reporter = TerminalReporter(console)
        for line in _lines(made, out):
            reporter.say(line)
        return 0


def _bar(console: Console) -> Progress:
    """With rate and time left; where the output is not a terminal, nothing is drawn."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
    times = (TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, console=console, expand=True, disable=not console.is_terminal)


def _lines(made: Rollouts, out: Path) -> list[str]:
    """What is there now."""
    lines = [
        f"{out}: {made.count:,} rollouts of {made.prompts:,} prompts, {made.tokens:,} tokens; "
        f"{made.has_ended:.1%} ended by themselves",
        f"mean -log p {made.surprise:.3f} nats a token, mean entropy {made.entropy:.3f}",
    ]
    if made.too_long:
        lines.insert(0, f"{made.too_long:,} prompts leave no room for a response in the context and were passed over")
    return lines
