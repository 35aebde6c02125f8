"""Neuronpedia's lines: their keys compared with a hand-written copy of its exporter's keys, and invalid lines."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from panscope.formats import neuronpedia as np
from panscope.types import UserError

KEYS: dict[type[np.Line], str] = {
    np.Release: "name description creatorName creatorId visibility isNewUi featured descriptionShort urls creatorEmail "
    "creatorNameShort defaultSourceSetName defaultSourceId defaultUmapSourceIds createdAt",
    np.Model: "id instruct creatorId displayNameShort displayName tlensId dimension visibility defaultSourceSetName "
    "defaultSourceId inferenceEnabled layers neuronsPerLayer createdAt owner updatedAt website",
    np.SourceSet: "modelId name creatorId hasDashboards visibility description type creatorName urls creatorEmail "
    "releaseName defaultOfModelId defaultRange defaultShowBreaks showDfa showCorrelated showHeadAttribution showUmap "
    "createdAt",
    np.NeuronpediaSource: "id modelId setName creatorId hasDashboards inferenceEnabled inferenceHosts saelensConfig "
    "saelensRelease saelensSaeId hfRepoId hfFolderId visibility defaultOfModelId hasUmap "
    "hasUmapLogSparsity hasUmapClusters num_prompts num_tokens_in_prompt dataset notes createdAt",
    np.Feature: "modelId layer index creatorId createdAt maxActApprox hasVector vector vectorLabel "
    "vectorDefaultSteerStrength hookName topkCosSimIndices topkCosSimValues neuron_alignment_indices "
    "neuron_alignment_values neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson "
    "correlated_neurons_l1 correlated_features_indices correlated_features_pearson correlated_features_l1 neg_str "
    "neg_values pos_str pos_values frac_nonzero freq_hist_data_bar_heights freq_hist_data_bar_values "
    "logits_hist_data_bar_heights logits_hist_data_bar_values decoder_weights_dist sourceSetName",
    np.Activation: "id tokens index layer modelId maxValue maxValueTokenIndex minValue values creatorId dataSource "
    "dataIndex dfaValues dfaTargetIndex dfaMaxValue createdAt lossValues logitContributions binMin binMax binContains "
    "qualifyingTokenIndex zIndices zValues",
    np.Explanation: "id modelId layer index description authorId embedding triggeredById typeName explanationModelName "
    "notes createdAt",
}
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PLACE: dict[str, Any] = {"modelId": "gpt2-small", "layer": "3-ours", "index": "17", "createdAt": WHEN}
SOURCE = np.NeuronpediaSource(id="3-ours", modelId="gpt2-small", setName="ours", creatorId="me", createdAt=WHEN)


def release() -> np.Release:
    return np.Release(name="r", description="d", creatorName="me", creatorId="me", createdAt=WHEN)


def model() -> np.Model:
    return np.Model(id="gpt2-small", instruct=False, creatorId="me", layers=12, createdAt=WHEN, updatedAt=WHEN)


def source_set() -> np.SourceSet:
    return np.SourceSet(modelId="gpt2-small", name="ours", creatorId="me", releaseName="r", createdAt=WHEN)


def feature(**fields: Any) -> np.Feature:
    return np.Feature.read(PLACE | {"pos_str": ("é\u0000\n",), "pos_values": (1.5,)} | fields, "test")


def activation(**fields: Any) -> np.Activation:
    base = {"id": np.row_id(1), "tokens": (" a", "\n"), "values": (0.0, 2.5), "maxValue": 2.5, "minValue": 0.0}
    return np.Activation.read(PLACE | base | {"maxValueTokenIndex": 1, "creatorId": "me"} | fields, "test")


def explanation(**fields: Any) -> np.Explanation:
    base = {"id": np.row_id(2), "description": "line ends", "authorId": "me", "typeName": "np_max-act"}
    return np.Explanation.read(PLACE | base | fields, "test")


EACH: tuple[np.Line, ...] = (
    release(),
    model(),
    source_set(),
    SOURCE,
    feature(),
    activation(zIndices=((0, 1), (1, 1)), zValues=(0.5, 0.25)),
    explanation(embedding=(0.5,) * np.EMBEDDING),
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.mark.parametrize("line", EACH, ids=lambda line: type(line).__name__)
def test_the_keys_are_theirs_in_their_order_and_come_back(line: np.Line) -> None:
    values = json.loads(json.dumps(line.row()))
    assert list(values) == KEYS[type(line)].split()
    assert type(line).read(values, "test") == line


def test_a_source_is_written_and_read_again(tmp_path: Path) -> None:
    files = np.write_source(tmp_path, release(), model(), source_set(), SOURCE)
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        f"gpt2-small/3-ours/{name}.jsonl" for name in ("release", "model", "sourceset", "source")
    ]
    for file, line in zip(files, (release(), model(), source_set(), SOURCE), strict=True):
        assert [type(line).read(values, "test") for values in read_lines(file)] == [line]


def test_batches_are_written_and_read_again(tmp_path: Path) -> None:
    batches: dict[np.Folder, list[np.Line]] = {
        "features": [feature(), feature(index="18", vector=(0.1, -2e-9), hasVector=True)],
        "activations": [activation(), activation(id=np.row_id(3))],
        "explanations": [explanation(), explanation(id=np.row_id(4), notes="line\nends")],
    }
    for kind, lines in batches.items():
        path = np.write_batch(tmp_path, SOURCE, kind, 7, iter(lines))
        assert path == tmp_path / "gpt2-small" / "3-ours" / kind / "batch-7.jsonl.gz"
        found = read_lines(path)
        assert [np.LINES[kind].read(values, "test") for values in found] == lines
        assert found[0].keys() == found[1].keys()
        before = path.read_bytes()
        assert np.write_batch(tmp_path, SOURCE, kind, 7, lines).read_bytes() == before


def test_half_a_surrogate_pair_is_written_as_the_replacement_character(tmp_path: Path) -> None:
    """A token may end inside a character; the importer reads UTF-8, and its database has no partial characters."""
    line = activation(tokens=("a\ud83d", "\ude00b\ud83d\ude00"))
    path = np.write_batch(tmp_path, SOURCE, "activations", 0, [line])
    assert read_lines(path)[0]["tokens"] == ["a\ufffd", "\ufffdb\U0001f600"]
    files = np.write_source(tmp_path, release().replace(description="\udc00"), model(), source_set(), SOURCE)
    assert read_lines(files[0])[0]["description"] == "\ufffd"


def test_an_explanation_without_embedding_leaves_the_key_out() -> None:
    assert list(explanation().row()) == [key for key in KEYS[np.Explanation].split() if key != "embedding"]


def test_lines_of_a_batch_have_the_same_keys(tmp_path: Path) -> None:
    """The importer takes the columns from the first line and would drop the second's embedding."""
    mixed = [explanation(), explanation(embedding=(0.0,) * np.EMBEDDING)]
    with pytest.raises(UserError, match="same keys"):
        np.write_batch(tmp_path, SOURCE, "explanations", 0, mixed)
    with pytest.raises(UserError, match="Feature cannot be in a batch of activations"):
        np.write_batch(tmp_path, SOURCE, "activations", 0, [feature()])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("make", "fields", "words"),
    [
        (feature, {"maxActApprox": float("nan")}, "maxActApprox"),
        (feature, {"surprise": 1}, "surprise"),
        (feature, {"pos_str": ()}, "equal length"),
        (activation, {"values": (1.0,)}, "2 tokens and 1 values"),
        (activation, {"maxValueTokenIndex": 2}, "maxValueTokenIndex is 2"),
        (activation, {"id": "17"}, "id is '17'"),
        (explanation, {"embedding": (1.0,)}, "embedding has 1 numbers, expected 256"),
    ],
)
def test_what_the_importer_would_choke_on_is_refused(make: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(**fields)


@pytest.mark.parametrize("bad", ["../up", "a/b", "", ".hidden"])
def test_names_stay_inside_the_folder(tmp_path: Path, bad: str) -> None:
    for fields in ({"id": bad}, {"modelId": bad}):
        with pytest.raises(UserError, match="cannot be a folder's name"):
            np.write_batch(tmp_path / "inside", SOURCE.replace(**fields), "features", 0, [feature()])
    assert list(tmp_path.iterdir()) == []


def test_ids_are_the_same_again_and_differ() -> None:
    assert np.row_id("gpt2", 3, 1) == np.row_id("gpt2", 3, 1)
    assert len({np.row_id("gpt2", layer, latent) for layer in range(5) for latent in range(50)}) == 250
    assert np.row_id("a", "bc") != np.row_id("ab", "c")
    assert np.source_id(3, "ours") == "3-ours"
    assert np.source_id(3, "ours", "x2") == "3-ours__x2"
