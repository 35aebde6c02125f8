"""From a suite file to exactly what will be trained: every coder by name, every number written out.

A `[[coders]]` table is a grid: the product of its lists. For each point the fields come from, in rising order: the
recipe fitted to the run's length, what the wiring implies, and what the table itself says. Planning a planned suite
changes nothing, so the suite.toml in a run folder is all that a resumed run needs.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from panscope import coders
from panscope.activations.shuffle import ActivationsConfig
from panscope.coders.base import CoderConfig
from panscope.coders.topk import TopKConfig
from panscope.coders.wiring import Wiring
from panscope.config import Config, unknown_key
from panscope.data.documents import DataConfig
from panscope.evals.run import EvalConfig
from panscope.lms.load import LanguageModelConfig
from panscope.lms.model import LanguageModel
from panscope.suite import names, recipe
from panscope.train.loop import LoopConfig
from panscope.train.schedule import TrainingConfig
from panscope.types import Site, UserError

MAX_CONTEXT = 1024
BUFFER_BYTES = 1 << 30
_DEFAULT_RECIPES = {"jumprelu": "gemma_scope", "topk": "topk", "relu": "relu_l1"}
_DEFAULT_SITES = {"sae": ["resid_post"], "transcoder": ["mlp_in_no_gain -> mlp_out"]}
_WHICH = ("wiring", "sites", "layers", "recipe", "width", "expansion", "tag", "convert_to")
_FROM_THE_MODEL = ("d_in", "d_out")


class SuiteConfig(Config):
    """A suite file."""

    name: str = "suite"
    """Names the run folder: letters, digits, '.', '_' and '-'."""
    tokens: int = Field(default=2_000_000, gt=0)
    """Rows to train on: text tokens, special ones not counted."""
    seed: int = Field(default=0, ge=0)
    """Fixes the order of the text, the shuffle and every first weight."""
    model: LanguageModelConfig = LanguageModelConfig()
    data: DataConfig = DataConfig()
    activations: ActivationsConfig = ActivationsConfig()
    train: LoopConfig = LoopConfig()
    eval: EvalConfig = EvalConfig()
    coders: tuple[dict[str, Any], ...] = Field(min_length=1)
    """The grids."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return names.checked(name, "name")


@dataclass(frozen=True)
class PlannedCoder:
    """One coder to train."""

    name: str
    wiring: Wiring
    coder: CoderConfig
    training: TrainingConfig
    convert_to: Literal["jumprelu"] | None


@dataclass(frozen=True)
class Plan:
    """A suite with nothing left open."""

    suite: SuiteConfig
    steps: int
    batch: int
    log_every: int
    checkpoint_every: int
    buffer_rows: int
    coders: tuple[PlannedCoder, ...]

    def sites(self) -> list[Site]:
        """Every site that is read, in the model's order."""
        return sorted(set().union(*(coder.wiring.sites() for coder in self.coders)))


def plan(suite: SuiteConfig, lm: LanguageModel) -> Plan:
    """Work out what `suite` means on this language model; raises UserError naming the first thing that cannot be."""
    batch = suite.train.batch or _batch(suite.tokens)
    if batch > suite.tokens:
        raise UserError(f"tokens {suite.tokens} is below the batch of {batch} rows: raise tokens or lower train.batch")
    steps = suite.tokens // batch
    points = [_planned(point, lm, steps, batch) for table in suite.coders for point in _grid(table, lm)]
    planned = tuple(coder for coder, _ in points)
    _check_names(planned)
    row_bytes = 4 * sum(lm.width(site) for site in set().union(*(coder.wiring.sites() for coder in planned)))
    loop = suite.train
    log_every = loop.log_every or max(1, steps // 50)
    checkpoint_every = loop.checkpoint_every or min(5000, max(1, steps // 5))
    buffer_rows = suite.activations.buffer_rows or max(batch, min(1_000_000, suite.tokens, BUFFER_BYTES // row_bytes))
    if buffer_rows < batch:
        raise UserError(f"activations.buffer_rows {buffer_rows} is below the batch of {batch} rows: raise it")
    resolved = suite.replace(
        model=suite.model.model_dump() | {"path": _absolute(suite.model.path)},
        data=suite.data.model_dump()
        | {"context": _context(suite, lm), "text": tuple(_absolute(text) for text in suite.data.text)},
        activations=suite.activations.model_dump() | {"buffer_rows": buffer_rows},
        train={"batch": batch, "log_every": log_every, "checkpoint_every": checkpoint_every},
        coders=tuple(table for _, table in points),
    )
    return Plan(resolved, steps, batch, log_every, checkpoint_every, buffer_rows, planned)


def _batch(tokens: int) -> int:
    """At most 4,096 rows a step, fewer (a power of two, at least 256) where that leaves under 1,000 steps."""
    return min(tokens, 4096, max(256, 1 << (tokens // 1000).bit_length() - 1 if tokens >= 1000 else 256))


def _absolute(place: str) -> str:
    """A local path in full, so that a run folder can be used from anywhere; hub ids and built-in names as they are."""
    return str(Path(place).expanduser().resolve()) if Path(place).expanduser().exists() else place


def _context(suite: SuiteConfig, lm: LanguageModel) -> int:
    context = suite.data.context
    if context is None:
        return min(lm.context, MAX_CONTEXT)
    if context > lm.context:
        raise UserError(f"data.context {context} is longer than the model's {lm.context} positions: lower it")
    return context


def _grid(table: dict[str, Any], lm: LanguageModel) -> list[dict[str, Any]]:
    """Every point of one `[[coders]]` table: a dict of single values, `site` and `layer` among them."""
    _check_keys(table)
    layers = _layers(table.get("layers", "all"), lm)
    rest = {key: value for key, value in table.items() if key != "layers"}
    lists = {key: _choices(key, value) for key, value in rest.items()}
    points = []
    for wiring in lists.pop("wiring", ["sae"]):
        if wiring not in _DEFAULT_SITES:
            raise UserError(f"coders: wiring is {wiring!r}: use one of {', '.join(_DEFAULT_SITES)}")
        here = {"layer": layers, "wiring": [wiring], "sites": _DEFAULT_SITES[wiring]} | lists
        points += [dict(zip(here, values, strict=True)) for values in itertools.product(*here.values())]
    return points


def _choices(key: str, value: Any) -> list[Any]:
    """A list is a choice of values; for Adam's betas, a pair is one value and a list of pairs a choice."""
    choices = list(value) if isinstance(value, list | tuple) else [value]
    if not choices:
        raise UserError(f"coders: {key!r} is an empty list; give at least one value or leave it out")
    if key == "adam_betas" and not isinstance(choices[0], list | tuple):
        return [value]
    return choices


def _check_keys(table: dict[str, Any]) -> None:
    known = {*_WHICH, *TrainingConfig.model_fields}
    for config, _ in coders.ARCHITECTURES.values():
        known |= set(config.model_fields)
    known -= set(_FROM_THE_MODEL)
    for key in table:
        if key not in known:
            raise UserError(unknown_key(key, "coders", known))


def _layers(wanted: Any, lm: LanguageModel) -> list[int]:
    if wanted == "all":
        return list(range(lm.n_layers))
    layers = wanted if isinstance(wanted, list | tuple) else [wanted]
    if not layers:
        raise UserError('coders: layers is an empty list; give layer numbers, or "all"')
    for layer in layers:
        if not isinstance(layer, int) or not 0 <= layer < lm.n_layers:
            raise UserError(
                f"coders: layer {layer!r} does not exist: the model has {lm.n_layers} layers; "
                f'choose from 0 to {lm.n_layers - 1}, or "all"'
            )
    return list(layers)


def _planned(point: dict[str, Any], lm: LanguageModel, steps: int, batch: int) -> tuple[PlannedCoder, dict[str, Any]]:
    """The coder at one point of a grid, and the table that says it in full."""
    wiring = _wiring(point.pop("wiring", "sae"), point.pop("sites"), point.pop("layer"))
    d_in, d_out = lm.width(wiring.reads), lm.width(wiring.predicts)
    recipe_name, fields = _fields(point, wiring, steps, batch)
    where = f"coders ({wiring.reads})"
    width = _width(fields, d_in, where)
    convert_to, tag = fields.pop("convert_to", "none"), fields.pop("tag", "")
    if "sparsity" not in fields:
        raise UserError(f"{where}: 'sparsity' is missing; set K for topk, or the penalty's coefficient")
    sparsity = _number(fields["sparsity"], "sparsity", where)
    _put_numbers(fields, d_in, width, sparsity)

    config_type = coders.config_type(fields["architecture"])
    training = {key: value for key, value in fields.items() if key in TrainingConfig.model_fields}
    rest = {key: value for key, value in fields.items() if key not in training}
    coder = config_type.read(rest | {"d_in": d_in, "d_out": d_out, "width": width}, where)
    _check_wiring(wiring, coder, where)
    name = names.coder_name(wiring, coder, tag)
    full = TrainingConfig.read(training, where)
    planned = PlannedCoder(name, wiring, coder, full, _conversion(convert_to, coder, where))
    return planned, _table(planned, recipe_name, tag)


def _wiring(kind: Any, site: Any, layer: int) -> Wiring:
    reads, arrow, predicts = (part.strip() for part in str(site).partition("->"))
    if kind == "sae" and arrow:
        raise UserError(f"coders: sites {site!r} names two sites, which wiring 'sae' cannot: use wiring 'transcoder'")
    if kind == "transcoder" and not arrow:
        raise UserError(f"coders: sites {site!r} names one site: write a transcoder's as 'mlp_in_no_gain -> mlp_out'")
    fields = {"wiring": kind, "reads": Site(layer, reads), "predicts": Site(layer, predicts or reads)}
    return Wiring.read(fields, "coders")


def _fields(point: dict[str, Any], wiring: Wiring, steps: int, batch: int) -> tuple[str, dict[str, Any]]:
    """The recipe's name, and its fields under what the wiring implies under what the table says."""
    architecture = point.get("architecture")
    if architecture is not None:
        coders.config_type(architecture)
    name = point.pop("recipe", None) or _DEFAULT_RECIPES[architecture or "topk"]
    fields = recipe.load(name).fitted(steps, batch)
    if architecture not in (None, fields["architecture"]):
        raise UserError(
            f"coders: architecture {architecture!r} does not go with recipe {name!r}, which is for "
            f"{fields['architecture']!r}: leave one of them out"
        )
    if wiring.wiring == "transcoder":
        fields |= {"encoder_init": "own", "pre_encoder_bias": False}
    if point.get("decoder_norm") == "unit":
        fields |= {"decoder_init_norm": 1.0}
    return name, fields | point


def _conversion(wanted: Any, coder: CoderConfig, where: str) -> Literal["jumprelu"] | None:
    if wanted not in ("none", "jumprelu"):
        raise UserError(f"{where}: convert_to is {wanted!r}: expected 'jumprelu' or 'none'")
    if wanted == "none":
        return None
    if coder.architecture != "topk":
        raise UserError(
            f"{where}: convert_to is 'jumprelu', but architecture {coder.architecture!r} is not topk: leave it out"
        )
    if coder.sparsity >= coder.width:
        raise UserError(
            f"{where}: convert_to needs sparsity (K) {coder.sparsity:g} below the width {coder.width}: lower K"
        )
    if isinstance(coder, TopKConfig) and coder.selection == "value" and coder.decoder_norm == "free":
        raise UserError(f"{where}: convert_to needs decoder_norm 'unit' or selection 'decoder_norm': set one of them")
    return "jumprelu"


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {name} is {value!r}: expected a number")
    return value


def _width(fields: dict[str, Any], d_in: int, where: str) -> int:
    width, expansion = fields.pop("width", None), fields.pop("expansion", None)
    if (width is None) == (expansion is None):
        raise UserError(f"{where}: give either 'width' (a number of latents) or 'expansion' (a multiple of {d_in})")
    if width is None:
        return round(_number(expansion, "expansion", where) * d_in)
    if not isinstance(width, int) or isinstance(width, bool):
        raise UserError(f"{where}: width is {width!r}: expected a whole number of latents")
    return width


def _put_numbers(fields: dict[str, Any], d_in: int, width: int, sparsity: float) -> None:
    """Replace the two values that recipes give as formulas."""
    if fields.get("decoder_init_norm") == "sqrt(2 d_in / width)":
        fields["decoder_init_norm"] = (2 * d_in / max(1, width)) ** 0.5
    if fields.get("sparsity_from") == "d_in":
        fields["sparsity_from"] = float(max(min(d_in, width), sparsity))


def _check_wiring(wiring: Wiring, coder: CoderConfig, where: str) -> None:
    if wiring.wiring == "transcoder" and coder.pre_encoder_bias:
        raise UserError(
            f"{where}: pre_encoder_bias is true, but a transcoder's b_dec lives at its output: set it false"
        )


def _table(planned: PlannedCoder, recipe_name: str, tag: str) -> dict[str, Any]:
    """The `[[coders]]` table of one coder, every field written out."""
    wiring = planned.wiring
    one_site = wiring.wiring == "sae"
    site = wiring.reads.kind if one_site else f"{wiring.reads.kind} -> {wiring.predicts.kind}"
    table = {"wiring": wiring.wiring, "sites": [site], "layers": [wiring.reads.layer], "recipe": recipe_name}
    table |= {"tag": tag} if tag else {}
    config = planned.coder.model_dump(mode="json", exclude=set(_FROM_THE_MODEL))
    return table | config | {"convert_to": planned.convert_to or "none"} | planned.training.model_dump(mode="json")


def _check_names(planned: tuple[PlannedCoder, ...]) -> None:
    seen: set[str] = set()
    for coder in planned:
        if coder.name in seen:
            raise UserError(f"coders: two coders are both named {coder.name!r}: give their tables different 'tag's")
        seen.add(coder.name)
