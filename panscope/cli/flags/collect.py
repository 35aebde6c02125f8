"""`panscope collect`: store the activations that a suite reads, once, for any number of trainings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class Collect:
    """Store the activations of all of a suite's sites, in one pass of the language model.

    For example
      panscope collect suite.toml --out stores/mine    what the suite would train on
      panscope collect --model ./my-model --text a.jsonl --sites resid_post --tokens 1_000_000 --out stores/mine
      panscope collect --verify stores/mine            compare every file with its checksums

    The same command continues a store that was interrupted; with other sites it adds them to the same rows. To train
    on a store, write source = "store" and store = "stores/mine" under [activations].
    """

    suite: Annotated[str | None, tyro.conf.Positional, flag("[SUITE]")] = None
    """A suite file (.toml) or the name of a built-in suite."""
    out: Annotated[str | None, flag("DIR")] = None
    """The folder of the store, on this machine."""
    model: Annotated[str | None, flag("PATH")] = None
    """Folder or hub id of the language model; "panscope://demo" is the built-in one."""
    revision: Annotated[str | None, flag("REV")] = None
    """Revision of a model from the hub."""
    text: Annotated[tuple[str, ...] | None, flag("FILE ...")] = None
    """Text files (.txt, .jsonl, .parquet) or one hub dataset."""
    column: Annotated[str | None, flag("NAME")] = None
    """The field of .jsonl lines, or the column of .parquet files and hub datasets, with the text."""
    subset: Annotated[str | None, flag("NAME")] = None
    """The configuration of a hub dataset, if it has several."""
    split: Annotated[str | None, flag("NAME")] = None
    """The split of a hub dataset; by default train."""
    text_revision: Annotated[str | None, flag("REV")] = None
    """Commit, tag or branch of a hub dataset."""
    sites: Annotated[tuple[str, ...] | None, flag("SITE ...")] = None
    """resid_post attn_z attn_out mlp_out mlp_in mlp_in_no_gain."""
    layers: Annotated[tuple[str, ...] | None, flag("LAYER ...")] = None
    """all, or layer numbers from 0."""
    tokens: Annotated[int | None, flag("N")] = None
    """Rows to store at most; fewer where the text ends before."""
    context: Annotated[int | None, flag("N")] = None
    """Tokens of a sequence at most."""
    packing: Annotated[str | None, flag("NAME")] = None
    """documents (BOS, truncate) or stream (joined by EOS, cut)."""
    chat_user: Annotated[str | None, flag("TEXT")] = None
    """For a fine-tuned model: the prefix of the user's query, written before every document and never learned from."""
    chat_next_user: Annotated[str | None, flag("TEXT")] = None
    """For conversations of several turns ({"role": ..., "content": ...} in --column): the prefix of every later query.
    """
    chat_model: Annotated[str | None, flag("TEXT")] = None
    """For a fine-tuned model: the prefix of the model's response, written after every document."""
    seed: Annotated[int | None, flag("N")] = None
    """Fixes text order and shuffle."""
    device: Annotated[str | None, flag("NAME")] = None
    """auto, cpu, cuda, cuda:1 ..."""
    dtype: Annotated[str | None, flag("NAME")] = None
    """float32, bfloat16 or float16: the language model's precision."""
    store_dtype: Annotated[Literal["float32", "bfloat16"] | None, flag("NAME")] = None
    """float32 or bfloat16: what is stored; by default float32 if the model is in float32, else bfloat16."""
    shard_gib: Annotated[float, flag("N")] = 1.0
    """Size of a file at most, in GiB."""
    verify: Annotated[str | None, flag("STORE")] = None
    """Check a store instead: a folder, s3://... or gs://..."""
    log: Annotated[Path | None, flag("FILE")] = None
    """A file to append what happens to, with dates."""
