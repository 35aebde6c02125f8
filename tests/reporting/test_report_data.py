"""What figures are drawn of: the very numbers of the files, at the right coder, site and label; damage is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from panscope.reporting import figures, style
from panscope.reporting.figure import Figure, Missing, Plot
from panscope.reporting.rows import coder_rows, identity, site_rows, tag
from panscope.reporting.runs import Results, RunFacts, read_runs
from panscope.storage.sealed import read_sealed, write_sealed
from panscope.types import UserError


def plot(key: str) -> Plot:
    return next(plot for plot in figures.FIGURES if plot.key == key)


def drawn(key: str, results: Results) -> Figure:
    figure = plot(key).draw(results)
    assert isinstance(figure, Figure)
    return figure


def evaluation(run: Path, coder: str, suffix: str = "") -> dict[str, Any]:
    """eval.json as plain JSON, read without the code under test."""
    return json.loads((run / "coders" / coder / f"eval{suffix}.json").read_text())


def table(run: Path, coder: str, name: str) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(run / "coders" / coder / f"{name}.parquet").to_pylist()


def test_a_row_for_every_coder_and_site(run: Path, results: Results):
    rows = site_rows(results, ("fvu", "delta_loss"))
    seen = {(row["coder"], row["site"]) for row in rows}
    expected = set()
    for folder in (run / "coders").iterdir():
        wiring = json.loads((folder / "config.json").read_text())["wiring"]
        expected |= {(folder.name, site) for site in wiring["predicts"]}
    assert seen == expected
    assert len(rows) == len(expected) == 16 + 16 + 1 + 2 * 2


def test_numbers_and_intervals_are_those_of_the_files(run: Path, results: Results):
    for row in site_rows(results, ("fvu", "delta_loss")):
        content = evaluation(run, row["coder"])
        numbers = content["sites"][row["site"]] if row["wiring"] == "multilayer" else content
        for name in ("fvu", "delta_loss"):
            found = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
            assert found == [numbers[name], *numbers["intervals"][name]]


def test_a_row_says_which_coder_it_is(results: Results):
    rows = {(row["coder"], row["site"]): row for row in site_rows(results, ("fvu",))}
    one = rows["L01M-2x-topk-k16", "L01.mlp_out"]
    assert (one["place"], one["layer"], one["architecture"], one["width"]) == ("MLP output", 1, "topk", 128)
    assert one["variant"] == "topk, 128 wide, K = 16"
    assert rows["L00R-1x-jumprelu-l8", "L00.resid_post"]["variant"] == "jumprelu, 64 wide, λ = 8"
    assert rows["L01TC-8x-topk-k16", "L01.mlp_out"]["place"] == "MLP transcoder"
    assert rows["all-R-8x-topk-k8", "L01.resid_post"]["family"] == "topk multilayer"


@pytest.mark.parametrize(
    ("name", "architecture", "expected"),
    [
        ("L01R-4x-topk-k16-constant", "topk", "constant"),
        ("L01R-4x-topk-k16", "topk", ""),
        ("all-R-8x-jumprelu-l1e-3-of-two", "jumprelu", "of-two"),
        ("L01R-4x-jumprelu-l1e-3", "jumprelu", ""),
        ("L01R-0.5x-jumprelu-t32.5-b", "jumprelu", "b"),
        ("L01R-4x-jumprelu-layer.3", "jumprelu", "layer.3"),
        ("somebody-elses", "topk", ""),
    ],
)
def test_coders_that_differ_in_their_tag_alone_are_told_apart(name: str, architecture: str, expected: str):
    site = "L01.resid_post"
    about = {"run": "r", "name": name, "wiring": "sae", "reads": [site], "predicts": [site], "width": 8}
    about |= {"architecture": architecture, "published": architecture, "expansion": 4, "sparsity": 16}
    facts = RunFacts.read(about | {"sparsity_means": "K", "sparsity_from": None}, "test")
    assert tag(facts) == expected
    assert identity(facts, facts.sites[0], several=False)["family"] == f"{architecture} {expected}".strip()


@pytest.mark.parametrize("key", ["trade-off-delta-loss", "trade-off-fvu", "by-layer", "per-layer"])
def test_figures_of_all_coders_hold_all_coders(key: str, results: Results):
    figure = drawn(key, results)
    names = {row["coder"] for row in figure.rows}
    places = {row["place"] for row in figure.rows}
    assert names == {row["coder"] for row in site_rows(results, ("fvu",)) if row["place"] in places}


def test_positions_are_weighted_means_of_the_table(run: Path, results: Results):
    """Against a plain sum over the raw rows of every bin."""
    rows = drawn("position-reconstruction", results).rows
    losses = drawn("position-delta-loss", results).rows
    assert {row["place"] for row in rows} == {"residual stream", "MLP output", "MLP transcoder"}
    for row, loss in zip(rows, losses, strict=True):
        inside = [
            raw
            for raw in table(run, row["coder"], "positions")
            if raw["site"] == row["site"] and row["first"] <= raw["position"] + 1 <= row["last"] and raw["tokens"]
        ]
        tokens, predicted = [raw["tokens"] for raw in inside], [raw["predicted_tokens"] for raw in inside]
        assert row["tokens"] == sum(tokens)
        assert row["mse"] == pytest.approx(np.average([raw["mse"] for raw in inside], weights=tokens), rel=1e-12)
        assert loss["delta_loss"] == pytest.approx(
            np.average([raw["delta_loss"] for raw in inside], weights=predicted), rel=1e-12
        )


def test_the_long_context_figure_is_of_the_long_evaluation(results: Results):
    figure = drawn("long-context", results)
    assert {row["text"] for row in figure.rows} == {"long"}
    assert max(row["last"] for row in figure.rows) == 256
    assert '"datum": 128' in json.dumps(figure.spec(style.PAGE_WIDTH)), "a line at the training context"


def test_histograms_are_counts_over_width(run: Path, results: Results):
    for name in ("L00R-1x-topk-k8", "all-R-8x-topk-k16"):
        rows = [row for row in drawn("frequency", results).rows if row["coder"] == name]
        stored = evaluation(run, name)["frequency"]
        assert [row["latents"] for row in rows] == stored["latents"]
        area = sum(row["density"] * (row["log10_high"] - row["log10_low"]) for row in rows)
        assert area == pytest.approx(sum(stored["latents"]) / rows[0]["width"])
        for row, low, high in zip(rows, stored["log10_edges"], stored["log10_edges"][1:], strict=False):
            assert row["frequency"] == pytest.approx(10 ** ((low + high) / 2))


@pytest.mark.parametrize(
    ("key", "labels"),
    [("transfer", {"text", "long", "instruct"}), ("inference", {"as-trained"}), ("precision", {"bf16"})],
)
def test_transfer_compares_the_same_coders_under_two_labels(key: str, labels: set[str], run: Path, results: Results):
    rows = drawn(key, results).rows
    assert {row["label"] for row in rows} == labels | {"held_out"}
    for label in labels:
        here = {(row["coder"], row["site"]) for row in rows if row["label"] == label}
        assert here and here == {(row["coder"], row["site"]) for row in rows if row["label"] == "held_out"}
    for row in rows:
        if row["wiring"] == "sae":
            suffix = "" if row["label"] == "held_out" else f"-{row['label']}"
            assert row["fvu"] == evaluation(run, row["coder"], suffix)["fvu"]


def test_another_definition_or_two_changes_at_once_are_no_transfer(run: Path, tmp_path: Path):
    """Every token replaced, or another text in low precision: neither is compared with the held-out numbers."""
    copy = shutil.copytree(run, tmp_path / "run")
    for folder in (copy / "coders").iterdir():
        for label, changes in (("splice", {"splice": "all"}), ("both", {"coder_dtype": "bfloat16", "part": "all"})):
            content = read_sealed(folder / "eval.json")
            about = content["evaluated_on"] | {"label": label} | changes
            write_sealed(folder / f"eval-{label}.json", content | {"evaluated_on": about})
    results = read_runs([copy])
    for key in ("transfer", "inference", "precision"):
        assert not {"splice", "both"} & {row["label"] for row in drawn(key, results).rows}


def test_subsets_that_are_files_go_by_the_name_of_the_file(bare: Path, tmp_path: Path):
    run = shutil.copytree(bare, tmp_path / "run")
    (coder,) = (run / "coders").iterdir()
    content = read_sealed(coder / "eval.json")
    subsets = {"/far/away/books.jsonl": {"delta_loss": 0.25}, "news.jsonl": {"delta_loss": 0.5}}
    write_sealed(coder / "eval.json", content | {"subsets": subsets})
    rows = drawn("subsets", read_runs([run])).rows
    assert [(row["text"], row["subset"]) for row in rows] == [
        ("books.jsonl", "/far/away/books.jsonl"),
        ("news.jsonl", "news.jsonl"),
    ]


def test_inference_is_of_coders_that_were_turned_into_jumprelu_only(results: Results):
    assert {row["architecture"] for row in drawn("inference", results).rows} == {"topk"}


def test_subsets_are_those_of_the_files(run: Path, results: Results):
    rows = drawn("subsets", results).rows
    assert {row["text"] for row in rows} == {"books", "news", "code"}
    for row in rows:
        assert row["delta_loss"] == evaluation(run, row["coder"], "-text")["subsets"][row["text"]]["delta_loss"]


def test_the_heat_map_holds_shares_of_activation(run: Path, results: Results):
    rows = drawn("latent-layers", results).rows
    totals: dict[tuple[str, int], dict[int, float]] = {}
    for name in {row["coder"] for row in rows}:
        for raw in table(run, name, "layers"):
            totals.setdefault((name, raw["latent"]), {})[raw["layer"]] = raw["total"]
    for row in rows:
        layers = totals[row["coder"], row["latent"]]
        assert row["share"] == pytest.approx(layers[row["layer"]] / sum(layers.values()))
    means = [row["mean_layer"] for row in rows if row["coder"] == "all-R-8x-topk-k8"]
    assert means == sorted(means)
    assert len({row["latent"] for row in rows if row["coder"] == "all-R-8x-topk-k8"}) == 200


def test_annealed_coders_are_told_from_constant_ones(results: Results):
    rows = drawn("annealing", results).rows
    assert {row["text"] for row in rows if "k8" in row["coder"]} == {"constant"}
    assert {row["text"] for row in rows if "k16" in row["coder"]} == {"annealed"}
    assert not any("jumprelu" in row["coder"] for row in rows)


def test_ablations_are_losses_without_the_site(run: Path, results: Results):
    rows = drawn("ablations", results).rows
    for row in rows:
        if row["text"] in ("zero", "mean"):
            numbers = evaluation(run, f"L{row['layer']:02d}{'R' if 'resid' in row['site'] else 'M'}-1x-topk-k8")
            assert row["harm"] == pytest.approx(numbers[f"ce_{row['text']}_ablated"] - numbers["ce_clean"])
        elif row["place"] == "MLP output":
            every = site_rows(results, ("delta_loss",))
            here = [one for one in every if (one["site"], one["place"]) == (row["site"], row["place"])]
            losses = [one["delta_loss"] for one in here if row["text"] == f"best {one['family']} coder"]
            assert row["harm"] == min(losses)


def test_matching_curves_are_quantiles_of_the_table(run: Path, results: Results):
    rows = drawn("matching", results).rows
    path = min((run / "geometry" / "matching").iterdir())
    rows = [row for row in rows if path.name == f"{row['a']}--{row['b']}.parquet"]
    table = [row for row in pyarrow.parquet.read_table(path).to_pylist() if row["partner"] >= 0]
    for of, name in (("these coders", "cosine"), ("random directions", "random_cosine")):
        curve = [row for row in rows if row["of"] == of]
        assert len(curve) == 101
        cosines = np.array([row[name] for row in table])
        for row in curve[1:-1]:
            assert abs((cosines <= row["cosine"]).mean() - row["below"]) <= 1 / len(table)


def test_every_figure_names_what_is_missing_in_a_bare_run(bare: Path):
    results = read_runs([bare])
    found = {plot.key: plot.draw(results) for plot in figures.FIGURES}
    there = {key for key, figure in found.items() if isinstance(figure, Figure)}
    assert there == {"trade-off-delta-loss", "trade-off-fvu", "by-layer", "ablations", "dead-and-dense", "training"}
    for key, figure in found.items():
        if isinstance(figure, Missing):
            assert "`" in figure.remedy and figure.remedy.count("`") % 2 == 0, key
            assert not figure.reason.endswith("."), key
    splitting = found["splitting"]
    assert isinstance(splitting, Missing) and splitting.what == "no site has coders of two widths"


def test_a_coder_that_was_not_measured_is_known_and_not_drawn(bare: Path, tmp_path: Path):
    run = shutil.copytree(bare, tmp_path / "run")
    (coder,) = (run / "coders").iterdir()
    (coder / "eval.json").unlink()
    results = read_runs([run])
    assert [row["coder"] for row in coder_rows(results)] == [coder.name]
    assert isinstance(plot("by-layer").draw(results), Missing)


def test_two_runs_are_told_apart(bare: Path, tmp_path: Path):
    """Coders of the same name in runs of the same name."""
    folders = [shutil.copytree(bare, tmp_path / letter / "same") for letter in "ab"]
    results = read_runs(folders)
    rows = site_rows(results, ("fvu",))
    assert sorted(row["coder"] for row in rows) == ["a/same/L00R-1x-topk-k16", "b/same/L00R-1x-topk-k16"]
    assert {row["family"] for row in rows} == {"a/same: topk", "b/same: topk"}
    assert len(drawn("training", results).rows) == 2 * 40


def test_the_same_run_twice_is_refused(bare: Path):
    with pytest.raises(UserError, match="is given twice: name each run once"):
        read_runs([bare, bare / ".." / bare.name])


@pytest.mark.parametrize("name", ["eval.json", "eval-text.json", "config.json", "positions.parquet"])
def test_a_damaged_file_is_a_sentence_and_never_a_number(name: str, run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "run")
    for folder in (copy / "coders").iterdir():
        path = folder / name
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    with pytest.raises(UserError, match=r"damaged|checksum"):
        results = read_runs([copy])
        plot("position-reconstruction").draw(results)


def test_an_evaluation_of_another_coder_is_refused(bare: Path, tmp_path: Path):
    run = shutil.copytree(bare, tmp_path / "run")
    (coder,) = (run / "coders").iterdir()
    content = read_sealed(coder / "eval.json")
    write_sealed(coder / "eval.json", content | {"coder": "another"})
    with pytest.raises(UserError, match="is not of this coder; measure again by"):
        read_runs([run])
