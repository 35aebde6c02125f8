"""`panscope train`: a suite file, a built-in suite or flags -> a run folder with trained, measured coders."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from panscope.cli.display import TerminalReporter
from panscope.cli.flags import flag
from panscope.cli.suite_flags import suite_from
from panscope.evals.table import results_table
from panscope.plan.plan import SuiteConfig
from panscope.runs import stages
from panscope.runs.run import RunFolder
from panscope.storage.atomic import WriteError
from panscope.types import UserError


@dataclass(frozen=True)
class Train:
    """Train a suite of sparse autoencoders, evaluate it and print the table.

    For example
      panscope train                                   the built-in demo: small model, 24 coders
      panscope train suite.toml --tokens 5_000_000     a suite file, one thing changed
      panscope train --model ./my-model --text a.jsonl --sites resid_post mlp_out --width 1024 --sparsity 32
      panscope train --resume runs/demo                go on with a run that was stopped
    """

    suite: Annotated[str | None, tyro.conf.Positional, flag("[SUITE]")] = None
    """A suite file (.toml) or the name of a built-in suite; without it and without flags, "demo"."""
    model: Annotated[str | None, flag("PATH")] = None
    """Folder or hub id of the language model; "panscope://demo" is the built-in one."""
    revision: Annotated[str | None, flag("REV")] = None
    """Revision of a model from the hub."""
    text: Annotated[tuple[str, ...] | None, flag("FILE ...")] = None
    """Text files (.txt, .jsonl, .parquet) or one hub dataset."""
    wiring: Annotated[str | None, flag("NAME")] = None
    """sae, transcoder, multilayer (one SAE for all layers) or crosscoder."""
    sites: Annotated[tuple[str, ...] | None, flag("SITE ...")] = None
    """resid_post attn_z attn_out mlp_out mlp_in mlp_in_no_gain; for transcoders "mlp_in_no_gain -> mlp_out"."""
    layers: Annotated[tuple[str, ...] | None, flag("LAYER ...")] = None
    """all, or layer numbers from 0."""
    recipe: Annotated[str | None, flag("NAME")] = None
    """The hyper-parameters of a paper: gemma_scope, gemma_scope_transcoder, gemma_scope_2, llama_scope,
    llama_scope_released_code, multilayer_sae, openai_topk, anthropic_relu, saebench; or ours: panscope,
    panscope_standardised."""
    architecture: Annotated[tuple[str, ...] | None, flag("NAME ...")] = None
    """topk, batchtopk, matryoshka, jumprelu, gated or relu."""
    width: Annotated[tuple[int, ...] | None, flag("N ...")] = None
    """Numbers of latents."""
    expansion: Annotated[tuple[float, ...] | None, flag("N ...")] = None
    """Numbers of latents as multiples of the site's width, in place of --width."""
    sparsity: Annotated[tuple[float, ...] | None, flag("S ...")] = None
    """K for topk, batchtopk and matryoshka; the penalty's coefficient for jumprelu, gated and relu."""
    target_l0: Annotated[tuple[float, ...] | None, flag("L0 ...")] = None
    """For jumprelu: the L0 to reach, in place of --sparsity."""
    tokens: Annotated[int | None, flag("N")] = None
    """Tokens to train every coder on."""
    learning_rate: Annotated[float | None, tyro.conf.arg(aliases=["--lr"], metavar="RATE")] = None
    """The peak learning rate, in place of the recipe's."""
    lr_warmup_steps: Annotated[float | None, flag("N")] = None
    """Steps of warm-up; below 1, a share of all steps."""
    batch: Annotated[int | None, flag("N")] = None
    """Rows a step."""
    context: Annotated[int | None, flag("N")] = None
    """Tokens of a sequence at most."""
    packing: Annotated[str | None, flag("NAME")] = None
    """documents (BOS, truncate) or stream (joined by EOS, cut)."""
    chat_user: Annotated[str | None, flag("TEXT")] = None
    """For a fine-tuned model: the prefix of the user's query, written before every document and never learned from."""
    chat_model: Annotated[str | None, flag("TEXT")] = None
    """For a fine-tuned model: the prefix of the model's response, written after every document."""
    store: Annotated[str | None, flag("STORE")] = None
    """Learn from rows that `panscope collect` stored: a folder, s3://... or gs://..."""
    servers: Annotated[tuple[str, ...] | None, flag("ADDRESS ...")] = None
    """Learn from rows that `panscope serve` gives: grpc://host:port ..., one address a slice."""
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
    out: Annotated[Path | None, flag("DIR")] = None
    """The run folder to make; by default runs/NAME, numbered where that exists."""
    resume: Annotated[Path | None, flag("RUN")] = None
    """A run folder to go on with; only --device and --profile may be given beside it."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        reporter = TerminalReporter(console)
        if self.resume is not None:
            self._check_alone()
            folder = RunFolder.open(self.resume)
            with _saying_how_to_go_on(folder):
                results = stages.resume(folder, reporter, self.device, profile=self.profile)
        else:
            suite = self._suite()
            folder = RunFolder(self.out or _free_folder(suite.name))
            with _saying_how_to_go_on(folder):
                results = stages.start(suite, folder.path, reporter, profile=self.profile)
        if results is None:
            reporter.say(f"Stopped; everything is saved. Go on with: panscope train --resume {folder.path}")
            return 130
        console.print(results_table(results))
        reporter.say(f"Results are in {folder.path}")
        return 0

    def _check_alone(self) -> None:
        allowed = ("resume", "device", "profile")
        beside = [name for name, value in vars(self).items() if value is not None and name not in allowed]
        if beside:
            raise UserError(
                f"a run is resumed as it was begun, so --{beside[0]} cannot be combined with --resume: leave it "
                "out, or start a new run"
            )

    def _suite(self) -> SuiteConfig:
        """The suite file or built-in suite with the flags on top, or a suite made of flags alone."""
        flags = {name: value for name, value in vars(self).items() if value is not None}
        flags.pop("out", None)
        flags.pop("profile")
        return suite_from(flags.pop("suite", None), flags)


@contextmanager
def _saying_how_to_go_on(folder: RunFolder) -> Iterator[None]:
    """Where a run is interrupted, or the disk refuses a write, say with which command it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"panscope train --resume {folder.path}") from None
    except WriteError as error:
        if not folder.suite_file.is_file():
            raise
        raise UserError(f"{error}, then go on with: panscope train --resume {folder.path}") from error


def _free_folder(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3 ... that does not exist."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder
