"""From a suite file to exactly what will be trained: every coder by name, every number written out.

Planning a planned suite changes nothing, so the suite.toml in a run folder is all that a resumed run needs.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from panscope import coders
from panscope.activations.config import ActivationsConfig
from panscope.config import Config, expanded, unknown_key
from panscope.data.documents import DEMO_TEXT, DataConfig
from panscope.evals.spec import EvalConfig, EvalShard
from panscope.lms.facts import ModelFacts
from panscope.lms.load import LanguageModelConfig
from panscope.planning import names
from panscope.planning.coder import FROM_THE_MODEL, PlannedCoder, plan_coder
from panscope.planning.recipe import changes_in_words
from panscope.planning.wirings import wirings
from panscope.training.loop import LoopConfig
from panscope.training.schedule import TrainingConfig
from panscope.types import Site, UserError

MAX_CONTEXT = 1024
BUFFER_ROWS = 1_000_000
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number in each dtype of a language model."""
USABLE = 0.9
"""Usable share of a device's memory; the rest is for the CUDA context, the allocator and small tensors."""
GIB = 2**30
_LEAST_STEP_GIB = 0.25
_WHICH = (
    "wiring",
    "sites",
    "layers",
    "recipe",
    "width",
    "expansion",
    "tag",
    "seed",
    "convert_to",
    "tokens",
    "as_published",
)
_LISTS = ("adam_betas", "prefixes")
"""Fields whose one value is itself a list; a list of lists is a choice."""


class SuiteConfig(Config):
    """A suite file: which coders, on which model and text; what it leaves out is derived, and recorded with the run.

    A `[[coders]]` table names an architecture or a paper's recipe (docs/recipes.md, with the source of each number);
    docs/reference.md has every field. `SuiteConfig.read` raises UserError for a field that is unknown or cannot be.
    """

    name: str = "suite"
    """Names the run folder: letters, digits, '.', '_' and '-'."""
    tokens: int = Field(default=2_000_000, gt=0)
    """Rows to train on: text tokens, special ones not counted; a `[[coders]]` table may say another number."""
    seed: int = Field(default=0, ge=0)
    """Fixes the order of the text, the shuffle and every first weight."""
    share: str | None = None
    """Train a part of the coders only, such as 2/8 for the second of eight; `panscope merge` joins the runs."""
    model: LanguageModelConfig = LanguageModelConfig()
    """The language model."""
    data: DataConfig = DataConfig()
    """The text, and how it is cut into sequences."""
    activations: ActivationsConfig = ActivationsConfig()
    """Where rows come from, and how they are shuffled."""
    train: LoopConfig = LoopConfig()
    """What all coders share in training."""
    eval: EvalConfig = EvalConfig()
    """The evaluation at the end of training."""
    coders: tuple[dict[str, Any], ...]
    """The grids."""

    @property
    def shard(self) -> EvalShard:
        """Which part of the coders is trained."""
        return EvalShard.parse(self.share or "1/1", "share")

    @property
    def folder_name(self) -> str:
        """What its run folder is named after."""
        share = self.shard
        return self.name if share.of == 1 else f"{self.name}-share-{share.number + 1}-of-{share.of}"

    @property
    def is_imported(self) -> bool:
        """Whether it describes imported coders, which were not trained by it and whose text is not known."""
        return not self.coders

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        return names.checked(name, "name")

    @model_validator(mode="after")
    def _is_a_share(self) -> Self:
        EvalShard.parse(self.share or "1/1", "share")
        return self

    @model_validator(mode="after")
    def _has_a_model_for_its_text(self) -> Self:
        if set(self.data.text) != {DEMO_TEXT} and "path" not in self.model.model_fields_set:
            raise ValueError(
                f"text is {', '.join(self.data.text)} and the model that reads it is missing: set path under [model] "
                "(or --model, where the command has it); 'panscope://demo' is the built-in one"
            )
        return self


@dataclass(frozen=True)
class Plan:
    """A suite with nothing left open."""

    suite: SuiteConfig
    """The suite with every default written out."""
    steps: int
    """Training steps of the coder that has the most."""
    batch: int
    """Rows of a step."""
    log_every: int
    """Steps between two lines of train.jsonl."""
    checkpoint_every: int
    """Steps between two checkpoints."""
    buffer_rows: int
    """Rows of each site that are gathered and shuffled at a time."""
    step_bytes: int
    """What computing one coder's step may take: `train.step_gib`."""
    coders: tuple[PlannedCoder, ...]
    """Every coder, in the order of the suite's tables."""

    def sites(self) -> list[Site]:
        """Every site that is read, in the model's order."""
        return sorted(set().union(*(coder.wiring.sites() for coder in self.coders)))

    def summary(self) -> list[str]:
        """What is trained, on what, and for how long, in a few lines."""
        suite, count = self.suite, len(self.coders)
        architectures = ", ".join(sorted({coder.coder.architecture for coder in self.coders}))
        kinds = ", ".join(sorted({site.kind for site in self.sites()}))
        share, whole = suite.shard, len(suite.coders)
        what = suite.name if share.of == 1 else f"share {share} of {suite.name}'s {whole:,} coders"
        return [
            f"{what}: {count:,} coder{'s' * (count != 1)} ({architectures}) at {kinds}",
            f"model {suite.model.path}; text {', '.join(suite.data.text)}; context {suite.data.context}",
            f"{self.steps * self.batch:,} tokens = {self.steps:,} steps of {self.batch:,} rows",
            f"rows are gathered and shuffled {self.buffer_rows:,} at a time ({suite.activations.shuffle})",
        ]

    def fitted(self) -> list[str]:
        """A sentence for every recipe whose values were fitted to the length of the run."""
        return changes_in_words(change for coder in self.coders for change in coder.fitted)


def plan(suite: SuiteConfig, lm: ModelFacts, memory_bytes: int) -> Plan:
    """Work out what `suite` means on this language model, on a device with so much memory, before either is touched.

    All of its coders are planned, whatever its `share`: `cost.shares.plan_share` plans that part of them. Raises
    UserError naming the first thing that cannot be.
    """
    batch, points = _batch_of(suite), planned_coders(suite, lm)
    planned = tuple(coder for coder, _ in points)
    _check_names(planned)
    steps = max(coder.steps for coder in planned)
    loop = suite.train
    log_every = loop.log_every or max(1, steps // 50)
    checkpoint_every = loop.checkpoint_every or min(5000, max(1, steps // 5))
    buffer_rows = suite.activations.buffer_rows or _buffer_rows(
        planned, lm, memory_bytes, batch=batch, itemsize=ITEMSIZE[suite.model.dtype]
    )
    if buffer_rows < batch:
        raise UserError(f"activations.buffer_rows {buffer_rows} is below the batch of {batch} rows: raise it")
    step_gib = loop.step_gib or _step_gib(lm, memory_bytes, ITEMSIZE[suite.model.dtype])
    resolved = suite.replace(
        share=None if suite.shard.of == 1 else str(suite.shard),
        model=suite.model.model_dump() | {"path": _absolute(suite.model.path)},
        data=suite.data.model_dump()
        | {"context": _context(suite, lm), "text": tuple(_absolute(text) for text in suite.data.text)},
        activations=suite.activations.model_dump() | _places(suite.activations) | {"buffer_rows": buffer_rows},
        train=loop.model_dump()
        | {"batch": batch, "log_every": log_every, "checkpoint_every": checkpoint_every, "step_gib": step_gib},
        coders=tuple(table for _, table in points),
    )
    step_bytes = round(step_gib * GIB)
    return Plan(resolved, steps, batch, log_every, checkpoint_every, buffer_rows, step_bytes, planned)


def planned_coders(suite: SuiteConfig, lm: ModelFacts) -> list[tuple[PlannedCoder, dict[str, Any]]]:
    """Every coder of a suite, whatever its share, with the table that says it in full; raises as `plan`."""
    if not suite.coders:
        raise UserError("coders is missing: write at least one [[coders]] table with 'width' and 'sparsity'")
    batch = _batch_of(suite)
    return _named_apart([point for table in suite.coders for point in grid_points(table, lm)], suite, lm, batch)


def _batch_of(suite: SuiteConfig) -> int:
    """Rows a step."""
    batch = suite.train.batch or _batch(suite.tokens)
    if batch > suite.tokens:
        raise UserError(f"tokens {suite.tokens} is below the batch of {batch} rows: raise tokens or lower train.batch")
    return batch


def _batch(tokens: int) -> int:
    """At most 4,096 rows a step, fewer (a power of two, at least 256) where that leaves under 1,000 steps."""
    thousandth = max(1, tokens // 1000)
    power_of_two = 1 << (thousandth.bit_length() - 1)
    return min(tokens, 4096, max(256, power_of_two))


def _buffer_rows(
    planned: tuple[PlannedCoder, ...], lm: ModelFacts, memory_bytes: int, *, batch: int, itemsize: int
) -> int:
    """A million rows (Gemma Scope), fewer where they would take over a quarter of the memory, at least one batch."""
    sites = set().union(*(coder.wiring.sites() for coder in planned))
    fitting = memory_bytes // 4 // (itemsize * sum(lm.width(site) for site in sites))
    rows = max(coder.steps for coder in planned) * batch
    return max(batch, min(rows, BUFFER_ROWS, fitting))


def _step_gib(lm: ModelFacts, memory_bytes: int, itemsize: int) -> float:
    """A quarter of what the language model leaves, with three digits."""
    left = USABLE * memory_bytes - itemsize * lm.parameters
    return max(_LEAST_STEP_GIB, float(f"{left / 4 / GIB:.3g}"))


def _places(activations: ActivationsConfig) -> dict[str, str | None]:
    """Where a store, its cache and a certificate are, in full."""
    places = {"store": activations.store, "cache": activations.cache, "certificate": activations.certificate}
    return {name: place if place is None else _absolute(place) for name, place in places.items()}


def _absolute(place: str) -> str:
    """A local path in full, so that a run folder can be used from anywhere; hub ids and built-in names as they are."""
    local = expanded(place)
    return str(local.absolute()) if local.exists() else place


def _context(suite: SuiteConfig, lm: ModelFacts) -> int:
    context = suite.data.context
    if context is None:
        return min(lm.context, MAX_CONTEXT)
    if context > lm.context:
        raise UserError(f"data.context {context} is longer than the model's {lm.context} positions: lower it")
    return context


def _named_apart(
    points: list[dict[str, Any]], suite: SuiteConfig, lm: ModelFacts, batch: int
) -> list[tuple[PlannedCoder, dict[str, Any]]]:
    """The coder and table of each point of the grids; where names would be equal, `tag` says what differs."""
    planned = [plan_coder(dict(point), lm, suite.tokens, batch) for point in points]
    tags = names.telling_apart([coder.name for coder, _ in planned], points)
    return [
        plan_coder(point | {"tag": tag}, lm, suite.tokens, batch) if tag else one
        for point, one, tag in zip(points, planned, tags, strict=True)
    ]


def _check_names(planned: tuple[PlannedCoder, ...]) -> None:
    seen: set[str] = set()
    for coder in planned:
        if coder.name in seen:
            raise UserError(
                f"coders: two coders are both named {coder.name!r}, and their tables do not differ in anything else: "
                "leave one out, or give it another 'seed' or 'tag'"
            )
        seen.add(coder.name)


def grid_points(table: dict[str, Any], lm: ModelFacts) -> list[dict[str, Any]]:
    """Every point of one `[[coders]]` table: a dict of single values, its Wiring under `wiring`."""
    _check_keys(table)
    lists = {key: _choices(key, value) for key, value in table.items() if key != "layers"}
    kinds, sites = lists.pop("wiring", ["sae"]), lists.pop("sites", None)
    here = {"wiring": [w for kind in kinds for w in wirings(kind, sites, table.get("layers", "all"), lm)]} | lists
    return [dict(zip(here, values, strict=True)) for values in itertools.product(*here.values())]


def _choices(key: str, value: Any) -> list[Any]:
    choices = list(value) if isinstance(value, list | tuple) else [value]
    if not choices and key != "prefixes":
        raise UserError(f"coders: {key!r} is an empty list; give at least one value or leave it out")
    if key in _LISTS and not (choices and isinstance(choices[0], list | tuple)):
        return [value]
    return choices


def _check_keys(table: dict[str, Any]) -> None:
    known = {*_WHICH, *TrainingConfig.model_fields}
    others = [coders.config_type(name) for name in _choices("architecture", table.get("architecture") or "topk")]
    for config in (*(config for config, _ in coders.ARCHITECTURES.values()), *others):
        known |= set(config.model_fields)
    known -= set(FROM_THE_MODEL)
    for key in table:
        if key not in known:
            raise UserError(unknown_key(key, "coders", known))
