"""`panscope train`: a suite file, a built-in suite or flags -> a run folder with trained, measured coders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class Train:
    """Train a suite of sparse autoencoders, evaluate it and print the table.

    For example
      panscope train                                   the built-in demo: small model, 24 coders
      panscope train suite.toml --tokens 5_000_000     a suite file, one thing changed
      panscope train gemma-scope-2b --sites resid_post --layers 12 --widths 16_384    some coders of a suite
      panscope train gemma-scope-2b --share 3/35       the third of 35 parts; then: panscope merge
      panscope train --model ./my-model --text a.jsonl --sites resid_post mlp_out --width 1024 --sparsity 32
      panscope train --resume runs/demo                continue a run that was stopped
    """

    suite: Annotated[str | None, tyro.conf.Positional, flag("[SUITE]")] = None
    """A suite file (.toml) or the name of a built-in suite; without it and without flags, "demo"."""
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
    wiring: Annotated[str | None, flag("NAME")] = None
    """sae, transcoder, multilayer (one SAE for all layers) or crosscoder; of a SUITE, only the coders that are that."""
    sites: Annotated[tuple[str, ...] | None, flag("SITE ...")] = None
    """resid_post attn_z attn_out mlp_out mlp_in mlp_in_no_gain; for transcoders "mlp_in_no_gain -> mlp_out"; of a
    SUITE, only the coders of these."""
    layers: Annotated[tuple[str, ...] | None, flag("LAYER ...")] = None
    """all, or layer numbers from 0; of a SUITE, only the coders all of whose layers are named."""
    widths: Annotated[tuple[int, ...] | None, flag("N ...")] = None
    """Of a SUITE, only the coders with so many latents."""
    share: Annotated[str | None, flag("K/N")] = None
    """Only the K-th of N parts of the suite, cut so that each costs about the same; `panscope merge` joins them."""
    recipe: Annotated[str | None, flag("NAME")] = None
    """The hyper-parameters of a paper: gemma_scope, gemma_scope_transcoder, gemma_scope_2, llama_scope,
    llama_scope_released_code, multilayer_sae, openai_topk, anthropic_relu, saebench; or ours: panscope,
    panscope_standardised."""
    architecture: Annotated[tuple[str, ...] | None, flag("NAME ...")] = None
    """topk, batchtopk, matryoshka, jumprelu, gated or relu."""
    width: Annotated[tuple[int, ...] | None, flag("N ...")] = None
    """Numbers of latents; of a SUITE, in place of its own for every coder."""
    expansion: Annotated[tuple[float, ...] | None, flag("N ...")] = None
    """Numbers of latents as multiples of the site's width, in place of --width."""
    sparsity: Annotated[tuple[float, ...] | None, flag("S ...")] = None
    """K for topk, batchtopk and matryoshka; the penalty's coefficient for jumprelu, gated and relu."""
    target_l0: Annotated[tuple[float, ...] | None, flag("L0 ...")] = None
    """For jumprelu: the L0 to reach, in place of --sparsity."""
    as_published: tyro.conf.FlagCreatePairsOff[bool] = False
    """Keep every value of the recipe as published, not fitted to the length of this run."""
    tokens: Annotated[int | None, flag("N")] = None
    """Tokens to train every coder on."""
    learning_rate: Annotated[float | None, flag("RATE", "--lr")] = None
    """The peak learning rate, in place of the recipe's."""
    lr_warmup_steps: Annotated[int | None, flag("N")] = None
    """Steps over which the learning rate rises, in place of the recipe's."""
    batch: Annotated[int | None, flag("N")] = None
    """Rows a step."""
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
    store: Annotated[str | None, flag("STORE")] = None
    """Learn from rows that `panscope collect` stored: a folder, s3://... or gs://..."""
    servers: Annotated[tuple[str, ...] | None, flag("ADDRESS ...")] = None
    """Learn from rows that `panscope serve` gives: grpc://host:port ..., one address a slice."""
    accept_changed_model: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --resume, --store or --servers: use the language model although it has changed since, and record how."""
    seed: Annotated[int | None, flag("N")] = None
    """Fixes text order, shuffle and first weights."""
    device: Annotated[str | None, flag("NAME")] = None
    """auto, cpu, cuda, cuda:1 ..."""
    dtype: Annotated[str | None, flag("NAME")] = None
    """float32, bfloat16 or float16: the language model's precision."""
    kernels: Annotated[str | None, flag("NAME")] = None
    """auto, sparse (touch active latents only) or reference; `panscope doctor` says what this machine has."""
    profile: tyro.conf.FlagCreatePairsOff[bool] = False
    """Say once where the time of a step goes, after 15 steps."""
    track: Annotated[tuple[Literal["wandb", "tensorboard"], ...], flag("wandb|tensorboard ...")] = ()
    """Experiment trackers to send the numbers to, too."""
    log: Annotated[Path | None, flag("FILE")] = None
    """A file to append what happens to, with dates."""
    out: Annotated[Path | None, flag("DIR")] = None
    """The run folder to make; by default runs/NAME, numbered where that exists."""
    resume: Annotated[Path | None, flag("RUN")] = None
    """A run folder to continue; only --device, --profile, --track and --log may be given with it."""
