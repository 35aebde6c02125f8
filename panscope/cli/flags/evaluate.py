"""`panscope eval`: measure every coder of a run, on its held-out text or other text, with its model or another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class Eval:
    """Measure every coder of a run and print the table; one that was killed is continued.

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
    """Text files, or one hub dataset, in place of the run's held-out share; several files are also measured each apart.
    """
    column: Annotated[str | None, flag("NAME")] = None
    """The field of .jsonl lines, or the column of .parquet files and hub datasets, with the text of --text,
    or with the queries of --chats."""
    subset: Annotated[str | None, flag("NAME")] = None
    """The configuration of a hub dataset, if it has several."""
    split: Annotated[str | None, flag("NAME")] = None
    """The split of a hub dataset; by default train."""
    text_revision: Annotated[str | None, flag("REV")] = None
    """Commit, tag or branch of a hub dataset."""
    chats: Annotated[tuple[str, ...] | None, flag("FILE ...")] = None
    """The same for files with the fields prompt and response, such as `panscope rollouts` writes; with
    --chat-next-user, with the field conversation."""
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
    chat_next_user: Annotated[str | None, flag("TEXT")] = None
    """For conversations of several turns ({"role": ..., "content": ...} in --column): the prefix of every later query.
    """
    chat_model: Annotated[str | None, flag("TEXT")] = None
    """For a fine-tuned model: the prefix of the model's response."""
    content: Annotated[Literal["all", "prompt", "response"] | None, flag("all|prompt|response")] = None
    """Which tokens of a chat are measured; all is all but the user prefix."""
    model: Annotated[str | None, flag("PATH_OR_HUB_ID")] = None
    """Another model of the same shape, such as one fine-tuned from the run's."""
    accept_changed_model: tyro.conf.FlagCreatePairsOff[bool] = False
    """Measure although the run's model has changed since training, and record how it differs."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, flag("float32|bfloat16|float16")] = None
    """The precision of the model."""
    coder_dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, flag("float32|bfloat16|float16")] = None
    """The precision of the coders."""
    as_trained: bool = False
    """Measure the coders as they were trained, before TopK became JumpReLU."""
    splice: Annotated[Literal["content", "all"] | None, flag("content|all")] = None
    """Which tokens are replaced: content (the text alone) or all (special tokens too, as other tools do)."""
    saebench: Annotated[Path | None, flag("DIR")] = None
    """Measure by SAEBench's definitions and write its JSON files into DIR."""
    precision: Annotated[float | None, flag("X")] = None
    """Fail if fvu or delta_loss of a coder is not known to +-X, half of its 95 % interval."""
    metrics: Annotated[tuple[str, ...], flag("NAME ...")] = ()
    """Metrics of installed packages that extend Panscope, to be measured too."""
    part: Annotated[str | None, flag("K/N")] = None
    """Measure the K-th of N parts, in one of N processes at once; the last to end writes the results."""
    device: Annotated[str | None, flag("NAME")] = None
    """auto, cpu, cuda, cuda:1 ..."""
    track: Annotated[tuple[Literal["wandb", "tensorboard"], ...], flag("wandb|tensorboard ...")] = ()
    """Experiment trackers to send the numbers to, too."""
    log: Annotated[Path | None, flag("FILE")] = None
    """A file to append what happens to, with dates."""
