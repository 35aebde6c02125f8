"""One point of a grid -> one coder with every number settled.

The fields come from, in rising order: the recipe fitted to the run's length, what the wiring implies, and what the
table itself says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from panscope import coders
from panscope.coders.base import CoderConfig
from panscope.coders.normaliser import PER_ROW
from panscope.coders.wiring import Wiring
from panscope.lms.facts import ModelFacts
from panscope.planning import names, recipe
from panscope.planning.recipe import Change
from panscope.planning.wirings import layers_of, site_text
from panscope.training.schedule import TrainingConfig
from panscope.types import UserError

FROM_THE_MODEL = ("d_in", "d_out")
"""Fields of a coder that no table may set."""
_TARGET_PRICE = 1.0
"""The coefficient of a target's penalty where the table gives none, as in SAEBench's suite."""


@dataclass(frozen=True)
class PlannedCoder:
    """One coder to train."""

    name: str
    """The name of its folder."""
    wiring: Wiring
    """The sites it reads and predicts."""
    coder: CoderConfig
    """Its architecture, with every field set."""
    training: TrainingConfig
    """How it is trained, in steps of this run."""
    convert_to: Literal["jumprelu"] | None
    """What it is converted to when it is finished; None to keep it."""
    steps: int
    """Of its own, at most the run's."""
    seed: int | None = None
    """Fixes its first weights; None for the suite's."""
    fitted: tuple[Change, ...] = field(default=(), compare=False)
    """Values of its recipe that were fitted to the length of the run; they say where numbers come from."""


def plan_coder(point: dict[str, Any], lm: ModelFacts, tokens: int, batch: int) -> tuple[PlannedCoder, dict[str, Any]]:
    """The coder at one point of a grid, and the table that says it in full."""
    wiring: Wiring = point.pop("wiring")
    point.pop("sites", None)
    where = f"coders ({' '.join(map(str, wiring.reads))})"
    tokens = _tokens(point.pop("tokens", tokens), batch, where)
    recipe_name, fields, changes = _fields(point, wiring, tokens // batch, batch)
    d_in, d_out = (wiring.columns(sites, lm.width) for sites in (wiring.reads, wiring.predicts))
    width = _width(fields, lm.width(wiring.reads[0]), where)
    convert_to, tag, seed = fields.pop("convert_to", "none"), fields.pop("tag", ""), _seed(fields, where)
    _put_sparsity(fields, where)
    _put_formulas(fields, d_in, width)

    config_type = coders.config_type(fields["architecture"])
    _check_belongs(fields, config_type, where)
    training = {key: value for key, value in fields.items() if key in TrainingConfig.model_fields}
    rest = {key: value for key, value in fields.items() if key not in training}
    coder = config_type.read(rest | {"d_in": d_in, "d_out": d_out, "width": width}, where)
    full = TrainingConfig.read(training, where)
    _check_wiring(wiring, coder, full, where)
    name = names.coder_name(wiring, coder, lm.n_layers, tag)
    convert = _conversion(convert_to, coder, where)
    planned = PlannedCoder(name, wiring, coder, full, convert, tokens // batch, seed, changes)
    return planned, _table(planned, recipe_name, tag, tokens)


def _tokens(tokens: Any, batch: int, where: str) -> int:
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < batch:
        raise UserError(f"{where}: tokens is {tokens!r}: expected a whole number, at least one batch of {batch} rows")
    return tokens


def _seed(fields: dict[str, Any], where: str) -> int | None:
    seed = fields.pop("seed", None)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        raise UserError(f"{where}: seed is {seed!r}: expected a whole number, at least 0")
    return seed


def _fields(
    point: dict[str, Any], wiring: Wiring, steps: int, batch: int
) -> tuple[str, dict[str, Any], tuple[Change, ...]]:
    """The recipe's name, its fields under what the wiring implies under what the table says, and what was fitted."""
    architecture = point.get("architecture")
    kind = coders.config_type(architecture) if architecture is not None else CoderConfig
    name = point.pop("recipe", None) or kind.default_recipe
    from_recipe = recipe.load(name)
    changes: tuple[Change, ...] = ()
    if _as_published(point):
        fields = from_recipe.published(steps, architecture)
    else:
        fields = from_recipe.fitted(steps, batch, architecture)
        changes = tuple(
            change for change in from_recipe.changes(steps, batch, architecture) if change.field not in point
        )
    if wiring.kind.predicts_other:
        fields |= {"encoder_init": "own", "pre_encoder_bias": False}
    if point.get("decoder_norm") == "unit":
        fields |= {"decoder_init_norm": 1.0}
    if point.get("auxk_coefficient") == 0:
        fields = {field: value for field, value in fields.items() if field not in ("auxk", "auxk_bias")}
    return name, fields | point, changes


def _as_published(point: dict[str, Any]) -> bool:
    wanted = point.pop("as_published", False)
    if not isinstance(wanted, bool):
        raise UserError(f"coders: as_published is {wanted!r}: expected true or false")
    return wanted


def _put_sparsity(fields: dict[str, Any], where: str) -> None:
    """Check that there is a sparsity; a target needs none from the user."""
    if fields.get("target_l0") is not None:
        fields.setdefault("sparsity", _TARGET_PRICE)
    if "sparsity" not in fields:
        raise UserError(
            f"{where}: 'sparsity' is missing; set K for topk, batchtopk and matryoshka, or the penalty's coefficient "
            "(for jumprelu also 'target_l0')"
        )
    fields["sparsity"] = _number(fields["sparsity"], "sparsity", where)


def _put_formulas(fields: dict[str, Any], d_in: int, width: int) -> None:
    """Replace the values that recipes give as formulas."""
    formulas: Mapping[tuple[str, Any], Any] = {
        ("decoder_init_norm", "sqrt(2 d_in / width)"): (2 * d_in / max(1, width)) ** 0.5,
        ("sparsity_from", "d_in"): float(max(min(d_in, width), fields["sparsity"])),
        ("sparsity_from", "d_in / 2"): float(max(min(d_in // 2, width), fields["sparsity"])),
        ("auxk", "d_in / 2"): max(1, d_in // 2),
        ("target_factor", "target_l0 / 2"): _times(fields.get("target_l0"), 0.5),
        ("target_factor", "2 target_l0"): _times(fields.get("target_l0"), 2.0),
    }
    for name, value in fields.items():
        if isinstance(value, str) and (name, value) in formulas:
            fields[name] = formulas[name, value]


def _times(value: Any, factor: float) -> float:
    """1, which changes nothing, where there is no target."""
    return value * factor if isinstance(value, int | float) else 1.0


def _check_belongs(fields: dict[str, Any], config_type: type[CoderConfig], where: str) -> None:
    """Raise UserError for a field of another architecture, naming those that have it."""
    for name in fields:
        if name in config_type.model_fields or name in TrainingConfig.model_fields:
            continue
        owners = [key for key, (config, _) in coders.ARCHITECTURES.items() if name in config.model_fields]
        raise UserError(
            f"{where}: {name} is {fields[name]!r}, but architecture {fields['architecture']!r} has no {name}; it goes "
            f"with {', '.join(owners)}: leave it out, or choose another architecture"
        )


def _check_wiring(wiring: Wiring, coder: CoderConfig, training: TrainingConfig, where: str) -> None:
    """Raise UserError for what cannot be in this wiring."""
    kind, own = wiring.kind, f"a {wiring.kind.singular}"
    if kind.predicts_other and coder.pre_encoder_bias:
        raise UserError(
            f"{where}: pre_encoder_bias is true, but the b_dec of {own} belongs to its output: set it false"
        )
    if kind.predicts_other and training.normaliser in PER_ROW:
        raise UserError(
            f"{where}: normaliser is {training.normaliser!r}, but the output of {own} cannot be brought back to the "
            "size of a row it has not seen: use unit_rms or sqrt_d"
        )
    if coder.skip and not kind.predicts_other:
        raise UserError(f"{where}: skip is true, but wiring {wiring.wiring!r} could then copy its input: leave it out")
    _check_spaces(training, where)
    if kind.joins_columns and training.loss_space == "raw" and training.normaliser in PER_ROW:
        raise UserError(
            f"{where}: loss_space is 'raw', but the sites of {own} have no common size: set it to 'normalised'"
        )


def _check_spaces(training: TrainingConfig, where: str) -> None:
    """Raise UserError for a raw space where one fixed factor makes it the same as the normalised one."""
    if training.normaliser not in PER_ROW and training.loss_space == "raw":
        raise UserError(
            f"{where}: loss_space is 'raw', which goes with a normaliser that differs by row, but normaliser is "
            f"{training.normaliser!r}: leave loss_space out"
        )
    if training.normaliser not in PER_ROW and training.b_dec_init == "geometric_median_raw":
        raise UserError(
            f"{where}: b_dec_init is 'geometric_median_raw', which goes with normaliser 'standardise', not "
            f"{training.normaliser!r}: use 'geometric_median'"
        )


def _conversion(wanted: Any, coder: CoderConfig, where: str) -> Literal["jumprelu"] | None:
    if wanted not in ("none", "jumprelu"):
        raise UserError(f"{where}: convert_to is {wanted!r}: expected 'jumprelu' or 'none'")
    if wanted == "none":
        return None
    if refusal := coder.why_not_jumprelu():
        raise UserError(f"{where}: convert_to is 'jumprelu', but {refusal}")
    return "jumprelu"


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: {name} is {value!r}: expected a number")
    return value


def _width(fields: dict[str, Any], d_site: int, where: str) -> int:
    """How many latents; `expansion` counts from the width of one site."""
    width, expansion = fields.pop("width", None), fields.pop("expansion", None)
    if (width is None) == (expansion is None):
        raise UserError(f"{where}: give either 'width' (a number of latents) or 'expansion' (a multiple of {d_site})")
    if width is None:
        return round(_number(expansion, "expansion", where) * d_site)
    if not isinstance(width, int) or isinstance(width, bool):
        raise UserError(f"{where}: width is {width!r}: expected a whole number of latents")
    return width


def _table(planned: PlannedCoder, recipe_name: str, tag: str, tokens: int) -> dict[str, Any]:
    """The `[[coders]]` table of one coder, every field written out."""
    wiring = planned.wiring
    table = {"wiring": wiring.wiring, "sites": [site_text(wiring)], "layers": layers_of(wiring)}
    table |= {"recipe": recipe_name, "tokens": tokens} | ({"tag": tag} if tag else {})
    table |= {} if planned.seed is None else {"seed": planned.seed}
    config = planned.coder.model_dump(mode="json", exclude=set(FROM_THE_MODEL))
    return table | config | {"convert_to": planned.convert_to or "none"} | planned.training.model_dump(mode="json")
