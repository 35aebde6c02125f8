"""`panscope eval`: evaluate every coder of a run, on its held-out text or other text, with its model or another."""

from typing import Any

from rich.console import Console

from panscope import api
from panscope.cli.flags.evaluate import Eval
from panscope.cli.listening import listening, say
from panscope.data.documents import HUB_ONLY, DataConfig
from panscope.evals.spec import EvalShard
from panscope.lms.load import LanguageModelConfig
from panscope.planning.plan import SuiteConfig
from panscope.runs.eval_request import EvalRequest
from panscope.runs.evaluation import check_has_text, check_precision
from panscope.runs.finished_coder import suffix_of
from panscope.runs.run import Run
from panscope.types import UserError


def run(flags: Eval, console: Console) -> int:
    """Evaluate, print the table, write SAEBench's files where they are asked for."""
    if flags.precision is not None and not flags.precision > 0:
        raise UserError(f"precision is {flags.precision:g}: give a number above 0, or leave it out")
    folder = Run.open(flags.run_folder)
    if not (flags.text or flags.chats):
        check_has_text(folder)
    with listening(console, track=flags.track, log=flags.log) as heard:
        results = api.evaluate(folder.path, _request(flags, folder.suite), **heard)
    if results is None:
        return 0
    console.print(results)
    suffix = suffix_of(results.label)
    say(console, f"Results are in {folder.path}: results{suffix}.parquet and coders/*/eval{suffix}.json")
    if flags.saebench is not None:
        api.write_saebench(folder.path, flags.saebench, results.label)
        say(console, f"SAEBench's files are in {flags.saebench}")
    check_precision({name: coder.fields for name, coder in results.items()}, _precision(flags, folder))
    return 0


def _precision(flags: Eval, folder: Run) -> float | None:
    return flags.precision or folder.suite.eval.precision


def _request(flags: Eval, suite: SuiteConfig) -> EvalRequest:
    return EvalRequest(
        label=flags.label or "",
        data=_data(flags, suite.data),
        tokens=flags.tokens,
        model=_model(flags, suite),
        coder_dtype=flags.coder_dtype,
        as_trained=flags.as_trained,
        splice=flags.splice or "content",
        saebench=flags.saebench is not None,
        accept_changed_model=flags.accept_changed_model,
        metrics=flags.metrics,
        share=EvalShard.parse(flags.part or "1/1"),
    )


def _model(flags: Eval, suite: SuiteConfig) -> LanguageModelConfig | None:
    """The model that is asked for; None for the run's as it is."""
    asked = {"device": flags.device, "dtype": flags.dtype, "path": flags.model}
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if flags.model is not None:
        changes |= {"revision": None}
    return suite.model.replace(**changes) if changes else None


def _data(flags: Eval, data: DataConfig) -> DataConfig | None:
    """The text that is asked for; None for the held-out share as it is."""
    if flags.text is not None and flags.chats is not None:
        raise UserError("text and chats are both given: measure on one of them, then on the other")
    asked = {"context": flags.context, "packing": flags.packing, "chat": _chat(flags, data)}
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if flags.text or flags.chats:
        changes |= {"text": flags.text or flags.chats, "held_out": 0.0} | HUB_ONLY
    if flags.chats:
        changes |= {"column": "prompt" if flags.chat_next_user is None else "conversation"}
    changes |= _columns(flags)
    return data.replace(**changes) if changes else None


def _columns(flags: Eval) -> dict[str, Any]:
    """Where in the files or dataset the text is."""
    flag_of = {"column": "column", "subset": "subset", "split": "split", "revision": "text_revision"}
    asked = {name: getattr(flags, flag) for name, flag in flag_of.items() if getattr(flags, flag) is not None}
    if asked and not (flags.text or flags.chats):
        name = flag_of[next(iter(asked))].replace("_", "-")
        raise UserError(f"--{name} says where in a text to read: give the text, too, by --text or --chats")
    return asked


def _chat(flags: Eval, data: DataConfig) -> dict[str, Any] | None:
    """The table [data.chat] with what the flags change; None where they change nothing."""
    asked = {
        "user": flags.chat_user,
        "model": flags.chat_model,
        "next_user": flags.chat_next_user,
        "content": flags.content,
    }
    over = {name: value for name, value in asked.items() if value is not None}
    if flags.chats:
        next_user = flags.chat_next_user
        over |= {"response": "response" if next_user is None else None, "next_user": next_user}
    known = {} if data.chat is None else data.chat.model_dump()
    if over and not {"user", "model"} <= (known | over).keys():
        raise UserError("chats need both prefixes: give --chat-user and --chat-model")
    return known | over if over else None
