"""`panscope eval`: measure every coder of a run, on its held-out text or other text, with its model or another."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from panscope.cli.display import TerminalReporter
from panscope.cli.flags import flag
from panscope.data.documents import DataConfig
from panscope.evals.passes import Splice
from panscope.evals.spec import EvalShard
from panscope.evals.table import results_table
from panscope.lms.load import LanguageModelConfig, load
from panscope.plan.plan import SuiteConfig
from panscope.runs import stages
from panscope.runs.evaluation import HELD_OUT, CoderDtype, EvalRequest, check_has_text, check_precision, evaluate_run
from panscope.runs.run import RunFolder
from panscope.runs.saebench import write_saebench
from panscope.storage.locks import locked
from panscope.types import UserError


@dataclass(frozen=True)
class Eval:
    """Measure every coder of a run and print the table; what was killed goes on where it was.

    For example
      panscope eval runs/demo                                  on the held-out share of the run's text
      panscope eval runs/demo --text a.jsonl b.jsonl           on exactly these documents, and on each file apart
      panscope eval runs/demo --text books.jsonl --packing stream --context 512 --tokens 50_000 --label long
      panscope eval runs/demo --model TUNED --chats rollouts.jsonl --chat-user "User: " --chat-model " Bot:"
      panscope eval runs/demo --as-trained                     as TopK, where the published coder is JumpReLU
      panscope eval runs/demo --coder-dtype bfloat16 --dtype bfloat16
      panscope eval runs/demo --saebench out/                  SAEBench's core definitions, and its JSON files
      panscope eval runs/demo --part 1/2                       half of the work; the other half: --part 2/2
    """

    run_folder: Annotated[Path, tyro.conf.Positional, flag("RUN")]
    """The folder of a run."""
    text: Annotated[tuple[str, ...] | None, flag("FILE ...")] = None
    """Text to measure on, in place of the run's held-out share; several files are also measured each apart."""
    chats: Annotated[tuple[str, ...] | None, flag("FILE ...")] = None
    """The same for .jsonl files with the fields prompt and response, such as `panscope rollouts` writes."""
    label: Annotated[str | None, flag("NAME")] = None
    """What the files are named after: eval-NAME.json; left out, it follows from what is asked."""
    tokens: Annotated[int | None, flag("N")] = None
    """Content tokens to measure on at least; all of the text if FILEs are given, else what the suite says."""
    context: Annotated[int | None, flag("N")] = None
    """Tokens of a sequence at most, such as more than in training."""
    packing: Annotated[Literal["documents", "stream"] | None, flag("documents|stream")] = None
    """Sequences are documents (BOS, truncate) or pieces of a stream (joined by EOS, cut)."""
    chat_user: Annotated[str | None, flag("TEXT")] = None
    """For a fine-tuned model: the prefix of the user's query."""
    chat_model: Annotated[str | None, flag("TEXT")] = None
    """For a fine-tuned model: the prefix of the model's response."""
    content: Annotated[Literal["all", "prompt", "response"] | None, flag("all|prompt|response")] = None
    """Which tokens of a chat are measured; all is all but the user prefix."""
    model: Annotated[str | None, flag("PATH_OR_HUB_ID")] = None
    """Another model of the same shape, such as one fine-tuned from the run's."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, flag("float32|bfloat16|float16")] = None
    """The precision of the model."""
    coder_dtype: Annotated[CoderDtype | None, flag("float32|bfloat16|float16")] = None
    """The precision of the coders."""
    as_trained: bool = False
    """Measure the coders as they were trained, before TopK became JumpReLU."""
    splice: Annotated[Splice | None, flag("content|all")] = None
    """Which tokens are replaced: content (the text alone) or all (special tokens too, as other tools do)."""
    saebench: Annotated[Path | None, flag("DIR")] = None
    """Measure by SAEBench's definitions and write its JSON files into DIR."""
    precision: Annotated[float | None, flag("X")] = None
    """Fail if fvu or delta_loss of a coder is not known to +-X, half of its 95 % interval."""
    part: Annotated[str | None, flag("K/N")] = None
    """Measure the K-th of N parts, in one of N processes at once; the last to end writes the results."""
    device: Annotated[str | None, flag("NAME")] = None
    """auto, cpu, cuda, cuda:1 ..."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        if self.precision is not None and not self.precision > 0:
            raise UserError(f"precision is {self.precision:g}: give a number above 0, or leave it out")
        folder = RunFolder.open(self.run_folder)
        suite = stages.read_suite(folder.suite_file)
        if not (self.text or self.chats):
            check_has_text(folder, suite)
        request = self._request(suite)
        reporter = TerminalReporter(console)
        holding = locked(folder.path) if request.share.of == 1 else contextlib.nullcontext()
        with holding:
            results = evaluate_run(folder, suite, load(self._model(suite)), reporter, request)
        if results is None:
            return 0
        console.print(results_table(results))
        suffix = request.suffix
        reporter.say(f"Results are in {folder.path}: results{suffix}.parquet and coders/*/eval{suffix}.json")
        if self.saebench is not None:
            write_saebench(folder, self.saebench, suffix)
            reporter.say(f"SAEBench's files are in {self.saebench}")
        check_precision(results, self.precision or suite.eval.precision)
        return 0

    def _request(self, suite: SuiteConfig) -> EvalRequest:
        return EvalRequest(
            label=self.label or self._own_label(),
            data=self._data(suite.data),
            tokens=self.tokens,
            model=None if self.model is None else self._model(suite),
            coder_dtype=self.coder_dtype,
            as_trained=self.as_trained,
            splice=self.splice or "content",
            saebench=self.saebench is not None,
            share=EvalShard.parse(self.part or "1/1"),
        )

    def _own_label(self) -> str:
        """What is asked, in a word; the held-out numbers are never written over by others."""
        asked = {
            "text": self.text or self.chats or self.packing,
            "chat": not self.chats and (self.chat_user is not None or self.chat_model is not None or self.content),
            f"context-{self.context}": self.context,
            "other-model": self.model,
            "as-trained": self.as_trained,
            str(self.dtype): self.dtype,
            f"coder-{self.coder_dtype}": self.coder_dtype,
            f"splice-{self.splice}": self.splice,
            "saebench": self.saebench,
        }
        return "-".join(name for name, value in asked.items() if value) or HELD_OUT

    def _model(self, suite: SuiteConfig) -> LanguageModelConfig:
        changes: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "path": self.model}
        if self.model is not None:
            changes |= {"revision": None}
        kept = {name: value for name, value in changes.items() if value is not None or name == "revision"}
        return suite.model.replace(**kept)

    def _data(self, data: DataConfig) -> DataConfig | None:
        """The text that is asked for; None for the held-out share as it is."""
        if self.text is not None and self.chats is not None:
            raise UserError("text and chats are both given: measure on one of them, then on the other")
        changes: dict[str, Any] = {"context": self.context, "packing": self.packing, "chat": self._chat(data)}
        changes = {name: value for name, value in changes.items() if value is not None}
        if self.text or self.chats:
            changes |= {"text": self.text or self.chats, "held_out": 0.0}
        if self.chats:
            changes |= {"column": "prompt"}
        return data.replace(**changes) if changes else None

    def _chat(self, data: DataConfig) -> dict[str, Any] | None:
        """The table [data.chat] with what the flags change; None where they change nothing."""
        asked = {"user": self.chat_user, "model": self.chat_model, "content": self.content}
        over = {name: value for name, value in asked.items() if value is not None}
        if self.chats:
            over |= {"response": "response"}
        known = {} if data.chat is None else data.chat.model_dump()
        if over and not {"user", "model"} <= (known | over).keys():
            raise UserError("chats need both prefixes: give --chat-user and --chat-model")
        return known | over if over else None
