"""Neuronpedia's bulk import format: the JSON lines that its importer reads, key for key, and the files they are in.

    <model>/<source>/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl       one line each
    <model>/<source>/features/batch-0.jsonl.gz, activations/batch-0.jsonl.gz, explanations/batch-0.jsonl.gz ...

Keys, their order and their defaults are those of `neuronpedia_utils/db_models` and of SAEDashboard's exporter. The
importer takes a file's columns from its first line, so all lines of a file have the same keys: only an explanation's
`embedding` may be omitted, either in all lines or in none. This module defines the layout only, not how the values are
computed.
"""

import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from panscope.config import Config
from panscope.storage.atomic import replacing, write_text
from panscope.types import UserError

Id = Annotated[str, StringConstraints(pattern=r"^c[a-z0-9]{24}$")]
"""A row's id in the form used by the database (cuid): `c` and 24 lower-case letters and digits; see `row_id`."""
Folder = Literal["features", "activations", "explanations"]
Visibility = Literal["PUBLIC", "UNLISTED", "PRIVATE"]
EMBEDDING = 256
"""Dimension of an explanation's embedding."""
ExplanationType = Literal[
    "oai_token-act-pair",
    "oai_attention-head",
    "np_max-act",
    "np_max-act-logits",
    "np_acts-logits-general",
    "python-code",
    "eleuther_acts_top20",
]
"""The methods of explanation that the database accepts."""
_NAME = re.compile(r"\w[\w.-]*")


class Line(Config):
    """One line of a file."""

    def row(self) -> dict[str, Any]:
        """The line's keys and plain values, in order."""
        return self.model_dump(mode="json")


class Release(Line):
    """release.jsonl: a collection of sources, such as all coders of a paper."""

    name: str
    description: str
    creatorName: str
    creatorId: str
    visibility: Visibility = "PUBLIC"
    isNewUi: bool = False
    featured: bool = False
    descriptionShort: str | None = None
    urls: tuple[str, ...] = ()
    creatorEmail: str | None = None
    creatorNameShort: str | None = None
    defaultSourceSetName: str | None = None
    defaultSourceId: str | None = None
    defaultUmapSourceIds: tuple[str, ...] = ()
    createdAt: datetime


class Model(Line):
    """model.jsonl: the language model."""

    id: str
    instruct: bool
    creatorId: str
    displayNameShort: str = ""
    displayName: str = ""
    tlensId: str | None = None
    dimension: int | None = None
    visibility: Visibility = "PUBLIC"
    defaultSourceSetName: str | None = None
    defaultSourceId: str | None = None
    inferenceEnabled: bool = False
    layers: int = Field(default=0, ge=0)
    neuronsPerLayer: int = Field(default=0, ge=0)
    createdAt: datetime
    owner: str = ""
    updatedAt: datetime
    website: str | None = None


class SourceSet(Line):
    """sourceset.jsonl: the coders of one kind at all layers of a model."""

    modelId: str
    name: str
    creatorId: str
    hasDashboards: bool = True
    visibility: Visibility = "PUBLIC"
    description: str = ""
    type: str = ""
    creatorName: str = ""
    urls: tuple[str, ...] = ()
    creatorEmail: str | None = None
    releaseName: str | None = None
    defaultOfModelId: str | None = None
    defaultRange: int = 1
    defaultShowBreaks: bool = True
    showDfa: bool = False
    showCorrelated: bool = False
    showHeadAttribution: bool = False
    showUmap: bool = False
    createdAt: datetime


class NeuronpediaSource(Line):
    """source.jsonl: one coder; its id is `source_id`."""

    id: str
    modelId: str
    setName: str
    creatorId: str
    hasDashboards: bool = True
    inferenceEnabled: bool = False
    inferenceHosts: tuple[str, ...] = ()
    saelensConfig: str | None = None
    saelensRelease: str | None = None
    saelensSaeId: str | None = None
    hfRepoId: str | None = None
    hfFolderId: str | None = None
    visibility: Visibility = "PUBLIC"
    defaultOfModelId: str | None = None
    hasUmap: bool = False
    hasUmapLogSparsity: bool = False
    hasUmapClusters: bool = False
    num_prompts: int | None = None
    num_tokens_in_prompt: int | None = None
    dataset: str | None = None
    notes: str | None = None
    createdAt: datetime


class Feature(Line):
    """One latent: `layer` is the source's id, `index` the latent's number as text."""

    modelId: str
    layer: str
    index: str
    creatorId: str | None = None
    createdAt: datetime
    maxActApprox: float | None = 0.0
    hasVector: bool = False
    vector: tuple[float, ...] = ()
    vectorLabel: str | None = None
    vectorDefaultSteerStrength: float | None = 10.0
    hookName: str | None = None
    topkCosSimIndices: tuple[int, ...] = ()
    topkCosSimValues: tuple[float, ...] = ()
    neuron_alignment_indices: tuple[int, ...] = ()
    neuron_alignment_values: tuple[float, ...] = ()
    neuron_alignment_l1: tuple[float, ...] = ()
    correlated_neurons_indices: tuple[int, ...] = ()
    correlated_neurons_pearson: tuple[float, ...] = ()
    correlated_neurons_l1: tuple[float, ...] = ()
    correlated_features_indices: tuple[int, ...] = ()
    correlated_features_pearson: tuple[float, ...] = ()
    correlated_features_l1: tuple[float, ...] = ()
    neg_str: tuple[str, ...] = ()
    neg_values: tuple[float, ...] = ()
    pos_str: tuple[str, ...] = ()
    pos_values: tuple[float, ...] = ()
    frac_nonzero: float = Field(default=0.0, ge=0, le=1)
    freq_hist_data_bar_heights: tuple[float, ...] = ()
    freq_hist_data_bar_values: tuple[float, ...] = ()
    logits_hist_data_bar_heights: tuple[float, ...] = ()
    logits_hist_data_bar_values: tuple[float, ...] = ()
    decoder_weights_dist: tuple[float, ...] = ()
    sourceSetName: str | None = None

    @model_validator(mode="after")
    def _pairs_fit(self) -> Self:
        if len(self.neg_str) != len(self.neg_values) or len(self.pos_str) != len(self.pos_values):
            raise ValueError("neg_str and neg_values, pos_str and pos_values must be of equal length")
        return self


class Activation(Line):
    """One text on which a latent is active, with its value at each token."""

    id: Id
    tokens: tuple[str, ...]
    index: str
    layer: str
    modelId: str
    maxValue: float
    maxValueTokenIndex: int = Field(ge=0)
    minValue: float
    values: tuple[float, ...]
    creatorId: str
    dataSource: str | None = None
    dataIndex: str | None = None
    dfaValues: tuple[float, ...] = ()
    dfaTargetIndex: int | None = None
    dfaMaxValue: float | None = None
    createdAt: datetime
    lossValues: tuple[float, ...] = ()
    logitContributions: str | None = None
    binMin: float | None = None
    binMax: float | None = None
    binContains: float | None = None
    qualifyingTokenIndex: int | None = None
    zIndices: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Rows and columns of an attention pattern's entries."""
    zValues: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _fits_its_tokens(self) -> Self:
        if not self.tokens or len(self.tokens) != len(self.values):
            raise ValueError(
                f"there are {len(self.tokens)} tokens and {len(self.values)} values: give one value per token"
            )
        if self.maxValueTokenIndex >= len(self.tokens):
            raise ValueError(
                f"maxValueTokenIndex is {self.maxValueTokenIndex}, but there are {len(self.tokens)} tokens"
            )
        return self


class Explanation(Line):
    """A description of a latent in natural language."""

    id: Id
    modelId: str
    layer: str
    index: str
    description: str
    authorId: str
    embedding: tuple[float, ...] | None = None
    triggeredById: str | None = None
    typeName: ExplanationType
    explanationModelName: str | None = None
    notes: str | None = None
    createdAt: datetime

    @model_validator(mode="after")
    def _embedding_fits(self) -> Self:
        if self.embedding is not None and len(self.embedding) != EMBEDDING:
            raise ValueError(f"embedding has {len(self.embedding)} numbers, expected {EMBEDDING}; or omit it")
        return self

    def row(self) -> dict[str, Any]:
        """The line's keys and values, without `embedding` if there is none: the importer does not accept null."""
        values = super().row()
        return values if self.embedding is not None else {key: values[key] for key in values if key != "embedding"}


LINES: dict[Folder, type[Line]] = {"features": Feature, "activations": Activation, "explanations": Explanation}
"""The type of the lines in each folder."""


def source_id(layer: int, source_set: str, suffix: str = "") -> str:
    """The id of a coder: its layer, its source set and, to tell apart two of the same, a suffix."""
    return f"{layer}-{source_set}" + (f"__{suffix}" if suffix else "")


def row_id(*names: object) -> str:
    """An id in the form used by the database, determined by `names`, so that importing twice adds no rows."""
    return "c" + hashlib.sha256(json.dumps([str(name) for name in names]).encode()).hexdigest()[:24]


def source_folder(folder: Path, source: NeuronpediaSource) -> Path:
    """The folder of a source's files; raises UserError if its names are not valid folder names."""
    for what, name in (("model", source.modelId), ("source", source.id)):
        if not _NAME.fullmatch(name):
            raise UserError(f"the {what} {name!r} cannot be a folder's name: use letters, digits, '.', '_' and '-'")
    return folder / source.modelId / source.id


def write_source(
    folder: Path, release: Release, model: Model, source_set: SourceSet, source: NeuronpediaSource
) -> list[Path]:
    """Write the four files that describe a source, one line each; returns their paths."""
    inside = source_folder(folder, source)
    lines: dict[str, Line] = {"release": release, "model": model, "sourceset": source_set, "source": source}
    for name, line in lines.items():
        write_text(inside / f"{name}.jsonl", _text(line.row()))
    return [inside / f"{name}.jsonl" for name in lines]


def write_batch(folder: Path, source: NeuronpediaSource, kind: Folder, number: int, lines: Iterable[Line]) -> Path:
    """Write one batch of `kind`, streaming its lines; returns the path of the file.

    The same lines give the same bytes. Raises UserError for a line of another kind, or with other keys than the first.
    """
    path = source_folder(folder, source) / kind / f"batch-{number}.jsonl.gz"
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        io.TextIOWrapper(packed, "utf-8", newline="\n") as file,
    ):
        for row in _checked_rows(kind, lines):
            file.write(_text(row))
    return path


def _checked_rows(kind: Folder, lines: Iterable[Line]) -> Iterator[dict[str, Any]]:
    """The rows of `lines`; raises UserError unless all are of `kind` and have the same keys."""
    keys: list[str] | None = None
    for line in lines:
        if not isinstance(line, LINES[kind]):
            raise UserError(f"a {type(line).__name__} cannot be in a batch of {kind}: write it to a separate batch")
        row = line.row()
        keys = keys or list(row)
        if list(row) != keys:
            raise UserError(f"lines of one batch of {kind} must have the same keys: give all an embedding, or none")
        yield row


def _text(values: dict[str, Any]) -> str:
    """A line of JSON; surrogate pairs become one character, and lone surrogates, which UTF-8 cannot encode, U+FFFD."""
    line = json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n"
    return line.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
