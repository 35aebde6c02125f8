"""The stage that stores activations: language model -> buckets of shuffled rows -> shards (Gemma Scope, 3.3)."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from panscope.activations.live import LiveActivations
from panscope.activations.shuffle import BucketShuffle
from panscope.activations.store.layout import cut_for
from panscope.activations.store.manifest import FILE, Manifest, Origin, StoredType
from panscope.activations.store.writer import StoreWriter, read_manifest, translating_os_errors
from panscope.data.identity import text_identity
from panscope.events import Reporter
from panscope.lms.hf_versions import untested_release
from panscope.lms.load import load, memory_bytes
from panscope.lms.model import LanguageModel
from panscope.planning.plan import Plan, SuiteConfig
from panscope.runs.row_sources import training_tokens
from panscope.runs.stages import planned_from
from panscope.storage.locks import locked
from panscope.types import Site, UserError

BLOCK_ROWS = 4096
"""Rows that share a checksum."""
_BUCKET_SHARE = 1 / 2
"""Of all memory, what one bucket may take at most."""


@dataclass(frozen=True)
class StoreOptions:
    """How rows are stored."""

    dtype: StoredType | None = None
    """None takes float32 where the language model is in float32, else bfloat16."""
    shard_gib: float = 1.0
    """Size of a shard of the widest site, in GiB."""


def collect(suite: SuiteConfig, folder: Path, options: StoreOptions, reporter: Reporter) -> Manifest:
    """Store the activations of all sites of `suite` in `folder`, continue what is there, or add sites to it.

    Raises UserError if the folder holds anything else, or is of other rows.
    """
    plan = planned_from(suite)
    if plan.suite.activations.shuffle != "buckets":
        raise UserError("activations.shuffle is 'pool', but rows are stored in buckets: set it to 'buckets'")
    with translating_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        lm = load(suite.model)
        for line in untested_release():
            reporter.warn(line)
        widths = {site: lm.width(site) for site in plan.sites()}
        writer = StoreWriter(folder, _manifest(plan, lm, folder, options), widths)
        _check_bucket(writer, suite, widths)
        if not writer.missing:
            reporter.say(f"{folder} has all {writer.manifest.rows:,} rows of these sites already")
            return writer.manifest
        return _write(plan, lm, writer, reporter)


def _check_bucket(writer: StoreWriter, suite: SuiteConfig, widths: dict[Site, int]) -> None:
    """Raise UserError if rows that are shuffled together do not fit; a store keeps its buckets when sites are added."""
    rows, size = writer.manifest.origin.bucket_rows, 4 if suite.model.dtype == "float32" else 2
    needed, available = rows * size * sum(widths[site] for site in writer.missing), memory_bytes(suite.model)
    if needed > _BUCKET_SHARE * available:
        raise UserError(
            f"buckets of {rows:,} rows of {len(writer.missing)} sites take {needed / 2**30:.1f} GiB, and the device "
            f"has {available / 2**30:.1f}: collect fewer sites at a time, or set a smaller activations.buffer_rows"
        )


def _write(plan: Plan, lm: LanguageModel, writer: StoreWriter, reporter: Reporter) -> Manifest:
    origin = writer.manifest.origin
    sites = ", ".join(map(str, writer.missing))
    reporter.say(f"storing {sites}; at most {origin.wanted_rows:,} rows as {writer.manifest.dtype}")
    if writer.rows:
        reporter.say(f"continuing after {writer.rows:,} rows")
    tokens = training_tokens(plan, lm, epochs=1)
    live = LiveActivations(lm, tokens, writer.missing, special=plan.suite.activations.special_tokens)
    rows = BucketShuffle(live, rows=origin.bucket_rows, batch=BLOCK_ROWS, seed=origin.seed, keep_rest=True)
    try:
        return writer.write(rows, lambda done: reporter.progress("storing", done, origin.wanted_rows, "rows"))
    finally:
        reporter.ended()


def _manifest(plan: Plan, lm: LanguageModel, folder: Path, options: StoreOptions) -> Manifest:
    """What a store of this plan says of itself; the size of buckets is that of the store if it was begun."""
    suite = plan.suite
    dtype = options.dtype or ("float32" if suite.model.dtype == "float32" else "bfloat16")
    widest = max(lm.width(site) for site in plan.sites()) * (4 if dtype == "float32" else 2)
    cut = cut_for(round(options.shard_gib * 2**30), BLOCK_ROWS, widest)
    bucket_rows = max(BLOCK_ROWS, plan.buffer_rows // BLOCK_ROWS * BLOCK_ROWS)
    begun = read_manifest(folder / FILE) if (folder / FILE).exists() else None
    origin = Origin(
        model=suite.model.path,
        revision=suite.model.revision,
        model_identity=lm.identity,
        model_dtype=suite.model.dtype,
        attention=lm.attention,
        text=text_identity(suite.data),
        data=suite.data.model_dump(mode="json"),
        special_tokens=suite.activations.special_tokens,
        seed=suite.seed,
        wanted_rows=max(suite.tokens, plan.steps * plan.batch),
        bucket_rows=bucket_rows if begun is None else begun.origin.bucket_rows,
    )
    return Manifest(
        origin=origin,
        dtype=dtype,
        shard_rows=cut.shard_rows if begun is None else begun.shard_rows,
        block_rows=BLOCK_ROWS,
        versions={name: version(name) for name in ("panscope", "torch", "transformers")},
    )
