"""One point of a grid -> one coder with every number settled.

The fields come from, in rising order: the recipe fitted to the run's length, what the wiring implies, and what the
table itself says.
"""

from dataclasses import dataclass
from typing import Any, Literal

from panscope import coders
from panscope.coders.base import CoderConfig
from panscope.coders.topk import TopKConfig
from panscope.coders.wiring import Wiring
from panscope.lms.model import LanguageModel
from panscope.suite import names, recipe
from panscope.suite.grid import FROM_THE_MODEL
from panscope.train.schedule import TrainingConfig
from panscope.types import Site, UserError

_DEFAULT_RECIPES = {"jumprelu": "gemma_scope", "topk": "topk", "relu": "relu_l1"}


@dataclass(frozen=True)
class PlannedCoder:
    """One coder to train."""

    name: str
    wiring: Wiring
    coder: CoderConfig
    training: TrainingConfig
    convert_to: Literal["jumprelu"] | None


def plan_coder(point: dict[str, Any], lm: LanguageModel, steps: int, batch: int) -> tuple[PlannedCoder, dict[str, Any]]:
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
    config = planned.coder.model_dump(mode="json", exclude=set(FROM_THE_MODEL))
    return table | config | {"convert_to": planned.convert_to or "none"} | planned.training.model_dump(mode="json")
