"""`panscope train`: a suite file, a built-in suite or flags -> a run folder with trained, measured coders."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from panscope.cli.display import TerminalReporter
from panscope.cli.flags import flag
from panscope.cli.suite_file import suite_file
from panscope.config import read_toml
from panscope.evals.table import results_table
from panscope.records import RunFolder
from panscope.suite import stages
from panscope.suite.plan import SuiteConfig
from panscope.types import UserError

_CODER_FLAGS = ("wiring", "sites", "layers", "recipe", "architecture", "width", "sparsity", "target_l0")


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
    architecture: Annotated[str | None, flag("NAME")] = None
    """topk, batchtopk, matryoshka, jumprelu, gated or relu."""
    width: Annotated[tuple[int, ...] | None, flag("N ...")] = None
    """Numbers of latents."""
    sparsity: Annotated[tuple[float, ...] | None, flag("S ...")] = None
    """K for topk, batchtopk and matryoshka; the penalty's coefficient for jumprelu, gated and relu."""
    target_l0: Annotated[tuple[float, ...] | None, flag("L0 ...")] = None
    """For jumprelu: the L0 to reach, in place of --sparsity."""
    tokens: Annotated[int | None, flag("N")] = None
    """Tokens to train every coder on."""
    context: Annotated[int | None, flag("N")] = None
    """Tokens of a sequence at most."""
    packing: Annotated[str | None, flag("NAME")] = None
    """documents (BOS, truncate) or stream (joined by EOS, cut)."""
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
            results = stages.resume(folder, reporter, self.device, profile=self.profile)
        else:
            suite = self._suite()
            folder = RunFolder(self.out or _free_folder(suite.name))
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
                f"--resume goes on with a run exactly as it was begun, so --{beside[0]} cannot stand beside it: "
                "leave it out, or start a new run"
            )

    def _suite(self) -> SuiteConfig:
        """The suite file or built-in suite with the flags on top, or a suite made of flags alone."""
        flags = {name: value for name, value in vars(self).items() if value is not None}
        flags.pop("out", None)
        flags.pop("profile")
        name = flags.pop("suite", None)
        if name is None and flags.keys() & {"model", "text", *_CODER_FLAGS}:
            return SuiteConfig.read(_merged(_bare_suite(flags), flags), "the flags")
        tables = read_toml(suite_file(name or "demo"))
        return SuiteConfig.read(_merged(tables, flags), name or "demo")


def _bare_suite(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What a suite made of flags starts from."""
    needed = ("width", "sparsity") if not flags.keys() & {"target_l0", "recipe"} else ("width",)
    for name in needed:
        if name not in flags:
            other = " (for jumprelu, --target-l0 does too)" if name == "sparsity" else ""
            raise UserError(f"--{name} is missing: give it{other}, or name a suite such as `panscope train demo`")
    if "text" not in flags and flags.get("model", "panscope://demo") != "panscope://demo":
        raise UserError(f"--text is missing: say what text the model {flags['model']!r} should read")
    return {"coders": [{}]}


def _merged(tables: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A suite's tables with flags put over them; coder flags go into every `[[coders]]` table."""
    merged = dict(tables)
    for name in ("tokens", "seed"):
        if name in flags:
            merged[name] = flags[name]
    models = {"model": "path", "revision": "revision", "device": "device", "dtype": "dtype"}
    merged["model"] = _table(tables, "model") | _renamed(flags, models)
    data = {name: name for name in ("text", "context", "packing")}
    merged["data"] = _table(tables, "data") | _renamed(flags, data)
    merged["train"] = _table(tables, "train") | _renamed(flags, {"kernels": "kernels"})
    over = {name: flags[name] for name in _CODER_FLAGS if name in flags}
    if "layers" in over:
        over["layers"] = _layers(over["layers"])
    over = {name: list(value) if isinstance(value, tuple) else value for name, value in over.items()}
    found = _coder_tables(tables)
    _check_alike(found, over)
    own = {"tokens"} if "tokens" in flags else set()
    merged["coders"] = [_overridden(table, over, own) for table in found]
    return merged


def _check_alike(tables: list[dict[str, Any]], over: Mapping[str, Any]) -> None:
    """Refuse flags whose meaning differs from table to table: K and a penalty's coefficient are both a sparsity."""
    kinds = {(str(table.get("recipe")), str(table.get("architecture"))) for table in tables}
    for name in ("sparsity", "target_l0", "architecture", "recipe"):
        if name in over and len(kinds) > 1:
            raise UserError(
                f"--{name} {over[name]!r} would go into every [[coders]] table, but these are of different recipes or "
                "architectures: change the suite file"
            )


def _overridden(table: dict[str, Any], over: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """A flag takes the place of what it excludes: a width of an expansion, an architecture of a recipe and its like.

    `own` are a table's own values that a flag for the whole suite takes the place of.
    """
    excluded = {"width": "expansion", "architecture": "recipe", "recipe": "architecture"}
    if "target_l0" in over and "target_l0" not in table:
        own = own | {"sparsity"}
    gone = own | {excluded[name] for name in over if name in excluded and excluded[name] not in over}
    return {key: value for key, value in table.items() if key not in gone} | over


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise UserError(f"{name} is {table!r}, expected a table: write it under a line [{name}]")
    return table


def _coder_tables(tables: dict[str, Any]) -> list[dict[str, Any]]:
    found = tables.get("coders", [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise UserError(f"coders is {found!r}, expected tables: write each under a line [[coders]]")
    return found


def _renamed(flags: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {field: flags[flag] for flag, field in names.items() if flag in flags}


def _layers(words: tuple[str, ...]) -> list[int] | str:
    if words == ("all",):
        return "all"
    for word in words:
        if not word.isdecimal():
            raise UserError(f"--layers {word!r} is not a number: give layer numbers from 0, or the one word all")
    return [int(word) for word in words]


def _free_folder(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3 ... that does not exist."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder
