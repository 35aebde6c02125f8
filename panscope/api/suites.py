"""A suite or a request from whatever names it: an object, its tables as a dict, a file, the name of a built-in one."""

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panscope import builtin
from panscope.config import Config, checked, read_toml, unknown_key
from panscope.data.documents import DataConfig
from panscope.evals.spec import EvalShard
from panscope.lms.facts import facts_of
from panscope.lms.load import LanguageModelConfig
from panscope.planning import selection
from panscope.planning.plan import SuiteConfig
from panscope.runs.eval_request import EvalRequest
from panscope.types import UserError

Suite = SuiteConfig | dict[str, Any] | Path | str


def suite_of(suite: Suite, share: str | None = None) -> SuiteConfig:
    """A suite, or a share of it; raises UserError for a name that is none, and for tables that make no sense."""
    if share is not None:
        return suite_of(suite).replace(share=str(EvalShard.parse(share, "share")))
    if isinstance(suite, SuiteConfig):
        return suite
    if isinstance(suite, dict):
        return SuiteConfig.read(suite, "the suite")
    return SuiteConfig.read(read_toml(suite_file(str(suite))), str(suite))


def select(
    suite: Suite,
    *,
    wirings: Sequence[str] = (),
    sites: Sequence[str] = (),
    layers: Sequence[int] = (),
    widths: Sequence[int] = (),
) -> SuiteConfig:
    """A suite of those coders of `suite` that match all that is given; nothing about a coder is changed.

    `wirings` are sae, transcoder, multilayer or crosscoder; `sites` are written as in a suite file ("resid_post",
    "mlp_in_no_gain -> mlp_out", "resid_post + mlp_out"), and a coder over several layers matches `layers` if all of its
    own are among them; `widths` are numbers of latents. Reads the language model's configuration. Raises UserError,
    which names what there is, for what no coder has and where none matches all.
    """
    config = suite_of(suite)
    wanted = selection.Selection(tuple(wirings), tuple(sites), tuple(layers), tuple(widths))
    return selection.select(config, facts_of(config.model), wanted)


def suite_file(name: str) -> Path:
    """A path as it is, or the file of a built-in suite; raises UserError naming the built-in ones."""
    built_in = builtin.SUITES / f"{name}.toml"
    if Path(name).is_file() or name.endswith(".toml"):
        return Path(name)
    if not built_in.is_file():
        known = ", ".join(sorted(path.stem for path in builtin.SUITES.glob("*.toml")))
        hint = "; to resume a run folder, use panscope train --resume" if Path(name).is_dir() else ""
        raise UserError(
            f"suite {name!r} is neither a file nor a built-in suite: give a .toml file or one of {known}{hint}"
        )
    return built_in


def request_of(request: EvalRequest | dict[str, Any]) -> EvalRequest:
    """What an evaluation is asked; raises UserError for unknown fields and values that make no sense."""
    if isinstance(request, EvalRequest):
        return request
    known = [field.name for field in dataclasses.fields(EvalRequest)]
    for key in request:
        if key not in known:
            raise UserError(unknown_key(key, "the request", known))
    kinds: dict[str, type[Config]] = {"data": DataConfig, "model": LanguageModelConfig}
    tables: dict[str, Any] = {
        name: kind.read(request[name], f"the request: {name}")
        for name, kind in kinds.items()
        if isinstance(request.get(name), dict)
    }
    hints = typing.get_type_hints(EvalRequest)
    rest = {name: checked(hints[name], value, f"the request: {name}") for name, value in (request | tables).items()}
    return EvalRequest(**rest)
