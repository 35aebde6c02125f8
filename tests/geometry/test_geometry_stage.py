"""The geometry stage on run folders with planted decoders: pairs, files, output and errors."""

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from panscope.geometry.neighbours import Counts
from panscope.lms.load import LanguageModelConfig, load
from panscope.runs.decoders import Decoders, known_coders
from panscope.runs.geometry import GeometryOptions, compare_decoders
from panscope.runs.run import Run
from panscope.storage.atomic import checksum
from panscope.storage.locks import locked
from panscope.storage.sealed import read_sealed
from panscope.types import Site, UserError
from tests.support.hearing import Heard
from tests.support.planted_dictionaries import orthogonal, planted_split, random_dictionary
from tests.support.planted_run import plant, planted_run

SPLIT = planted_split(0)
PAIRWISE = ("mmcs", "matching", "splitting")


def rows_of(seed: int, latents: int = 10, width: int = 64) -> torch.Tensor:
    return random_dictionary("", latents, width, seed).rows


def table(run: Run, name: str) -> dict[str, list[Any]]:
    return pyarrow.parquet.read_table(run.path / "geometry" / name).to_pydict()


def summary(run: Run) -> list[dict[str, Any]]:
    return read_sealed(run.path / "geometry" / "summary.json")["analyses"]


def the(run: Run, kind: str) -> dict[str, Any]:
    (entry,) = [entry for entry in summary(run) if entry["kind"] == kind]
    return entry


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A narrow coder, a wide one composed of it, and a wide one of another site."""
    made = planted_run(tmp_path / "run")
    plant(made, "narrow", SPLIT.narrow.rows)
    plant(made, "wide", SPLIT.wide.rows)
    plant(made, "elsewhere", rows_of(1, 20), sites=(Site(0, "mlp_out"),))
    return made


def test_what_was_planted_is_found_and_written(run: Run):
    heard = Heard()
    entries = compare_decoders(run, GeometryOptions(PAIRWISE), heard)
    assert [entry["kind"] for entry in entries] == ["mmcs", "matching", "splitting"]
    assert heard.said == []

    splitting = table(run, "splitting/narrow--wide.parquet")
    assert splitting["latent"] == list(range(18))
    assert splitting["is_new"] == [parent == -1 for parent in SPLIT.parents]
    known = [i for i, parent in enumerate(SPLIT.parents) if parent >= 0]
    assert [splitting["parent"][i] for i in known] == [SPLIT.parents[i] for i in known]
    assert splitting["cosine"] == pytest.approx(SPLIT.cosines, abs=1e-6)
    assert splitting["explained"] == pytest.approx([cosine**2 for cosine in SPLIT.cosines], abs=1e-6)
    assert table(run, "splitting/narrow--wide.children.parquet") == {
        "latent": list(range(10)),
        "children": [0, 1, 2, 3, 1, 2, 0, 1, 1, 3],
    }
    assert the(run, "splitting")["numbers"]["new"] == 4 / 18

    matching = table(run, "matching/narrow--wide.parquet")
    best = [max((c for c, p in zip(SPLIT.cosines, SPLIT.parents, strict=True) if p == g), default=0) for g in range(10)]
    assert matching["cosine"] == pytest.approx(best, abs=1e-6)
    partners = [SPLIT.parents[partner] for partner in matching["partner"]]
    assert [partners[g] for g in range(10) if best[g]] == [g for g in range(10) if best[g]]
    assert (len(matching["random_cosine"]), the(run, "matching")["numbers"]["latents"]) == (10, 10)

    mmcs = table(run, "mmcs.parquet")
    assert mmcs["coder"] == ["elsewhere", "narrow", "wide"]
    assert mmcs["mean"][1] == pytest.approx(0, abs=1e-6)
    for column in ("variance", "sem", "jl", "random_max"):
        assert mmcs[column] == [the(run, "mmcs")["numbers"][name][column] for name in mmcs["coder"]]


def test_the_summary_lists_every_file_with_its_checksum_and_weights(run: Run):
    compare_decoders(run, GeometryOptions((*PAIRWISE, "neighbourhood")), Heard())
    folder = run.path / "geometry"
    listed = {name: xxh3 for entry in summary(run) for name, xxh3 in entry["files"].items()}
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"summary.json"}
    assert set(listed) == written and len(written) == 6
    for name, xxh3 in listed.items():
        assert checksum(folder / name) == xxh3
    weights = {name: checksum(run.coder_folder(name) / "weights.safetensors") for name in run.coder_names()}
    assert the(run, "splitting")["coders"] == {name: weights[name] for name in ("narrow", "wide")}
    assert the(run, "mmcs")["coders"] == weights
    assert the(run, "matching")["place"] == "sae L01.resid_post -> L01.resid_post"


def test_the_same_again_writes_the_same_bytes(run: Run):
    compare_decoders(run, GeometryOptions((*PAIRWISE, "neighbourhood")), Heard())
    folder = run.path / "geometry"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    compare_decoders(run, GeometryOptions((*PAIRWISE, "neighbourhood")), Heard())
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_one_neighbourhood_a_site(run: Run):
    plant(run, "other", rows_of(5), architecture="relu", sparsity=0.1)
    heard = Heard()
    entries = compare_decoders(run, GeometryOptions(("neighbourhood",)), heard)
    assert [entry["coder"] for entry in entries] == ["elsewhere", "narrow"]
    near = entries[1]
    assert near["numbers"]["roles"] == {"seed": 1, "own": 6, "other": 6, "wider": 18}
    assert set(near["coders"]) == {"narrow", "other", "wide"}
    found = table(run, f"neighbourhood/narrow-{near['latent']}.parquet")
    assert list(found) == ["coder", "latent", "cosine", "x", "y", "role"]
    assert (found["coder"][0], found["latent"][0], found["role"][0]) == ("narrow", near["latent"], "seed")
    assert len(set(zip(found["x"], found["y"], strict=True))) == 31


def test_a_neighbourhood_that_is_too_small_is_left_out_or_refused(tmp_path: Path):
    run, heard = planted_run(tmp_path / "run"), Heard()
    plant(run, "tiny", rows_of(1, 4))
    plant(run, "zeros", torch.zeros(9, 64), sites=(Site(0, "mlp_out"),))
    assert compare_decoders(run, GeometryOptions(("neighbourhood",)), heard) == []
    assert [line.split(" has ")[0] for line in heard.said] == [
        "neighbourhood: sae L01.resid_post -> L01.resid_post",
        "neighbourhood: sae L00.mlp_out -> L00.mlp_out",
    ]
    with pytest.raises(UserError, match="a neighbourhood of 4 latents is too small"):
        compare_decoders(run, GeometryOptions(("neighbourhood",), ("tiny",), (2,)), Heard())
    assert not (run.path / "geometry").exists()


def test_latents_asked_for(run: Run):
    entries = compare_decoders(
        run, GeometryOptions(("neighbourhood",), ("wide",), (3, 17), counts=Counts(2, 3, 4)), Heard()
    )
    assert [(entry["latent"], entry["numbers"]["roles"]["other"]) for entry in entries] == [(3, 3), (17, 3)]
    assert len(summary(run)) == 2


def test_pairs_are_bounded_and_it_is_said(tmp_path: Path):
    run, heard = planted_run(tmp_path / "run"), Heard()
    for name, latents in (("a", 8), ("b", 8), ("c", 16), ("d", 32)):
        plant(run, name, rows_of(1, latents), sparsity=1 if name == "b" else 2)
    entries = compare_decoders(run, GeometryOptions(("matching", "splitting"), pairs=2), heard)
    assert [sorted(entry["coders"]) for entry in entries] == [["a", "b"], ["a", "c"], ["a", "c"], ["c", "d"]]
    assert heard.said[0].startswith("matching: 4 of 6 pairs of coders are left out, at most 2 a site are done")
    assert "--pairs 6" in heard.said[0] and "--coder" in heard.said[0]
    assert heard.said[1].startswith("splitting: 3 of 5 pairs") and "--pairs 5" in heard.said[1]
    again = Heard()
    assert len(compare_decoders(run, GeometryOptions(("matching", "splitting"), pairs=6), again)) == 11
    assert again.said == []


def test_coders_that_are_named(tmp_path: Path):
    """One is compared with all others of its site; several with each other."""
    run = planted_run(tmp_path / "run")
    for name in "abc":
        plant(run, name, rows_of(ord(name)))
    one = compare_decoders(run, GeometryOptions(("mmcs", "matching"), ("b",)), Heard())
    assert list(one[0]["numbers"]) == ["b"]
    assert [(entry["a"], entry["b"]) for entry in one[1:]] == [("a", "b"), ("b", "c")]
    two = compare_decoders(run, GeometryOptions(("mmcs", "matching"), ("c", "a")), Heard())
    assert list(two[0]["numbers"]) == ["a", "b", "c"]  # what was found before stays
    assert [(entry["a"], entry["b"]) for entry in two[1:]] == [("a", "c")]
    assert len(summary(run)) == 4


def test_what_there_is_nothing_of_is_said(tmp_path: Path):
    run, heard = planted_run(tmp_path / "run"), Heard()
    plant(run, "alone", rows_of(1))
    assert len(compare_decoders(run, GeometryOptions(PAIRWISE), heard)) == 1
    assert heard.said == [
        "matching: there are no two coders with the same wiring and sites, so there is none",
        "splitting: there are no coders of different widths with the same wiring and sites, so there is none",
    ]


def test_against_another_run(run: Run, tmp_path: Path):
    """Only coders at equal wiring and sites; those of one name first; the names of the other run carry its own."""
    other = planted_run(tmp_path / "second seed")
    plant(other, "narrow", SPLIT.narrow.rows.flip(0))
    plant(other, "far", rows_of(3), sites=(Site(3, "resid_post"),))
    plant(other, "thin", rows_of(3, width=16))
    entries = compare_decoders(run, GeometryOptions(("matching", "splitting"), against=other.path), Heard())
    found = [(entry["kind"], *entry["coders"]) for entry in entries]
    them = "narrow@second seed"
    assert found == [("matching", "narrow", them), ("matching", "wide", them), ("splitting", them, "wide")]
    assert {entry["against"] for entry in entries} == {str(other.path.resolve())}
    matching = table(run, "matching/narrow--narrow@second-seed.parquet")
    assert matching["partner"] == list(range(9, -1, -1))
    assert matching["cosine"] == pytest.approx([1] * 10, abs=1e-6)
    assert not (other.path / "geometry").exists()
    compare_decoders(run, GeometryOptions(("matching",)), Heard())
    assert len(summary(run)) == 4  # what was found against the other run stays


def test_runs_with_nothing_in_common(run: Run, tmp_path: Path):
    other = planted_run(tmp_path / "other")
    plant(other, "far", rows_of(3), sites=(Site(3, "resid_post"),))
    with pytest.raises(UserError, match="other' has no coder with the wiring, sites and decoder width of one of"):
        compare_decoders(run, GeometryOptions(("matching",), against=other.path), Heard())
    with pytest.raises(UserError, match="is the run itself: its coders are compared without --against"):
        compare_decoders(run, GeometryOptions(("matching",), against=run.path), Heard())


def test_coders_of_several_sites_are_plain_matrices(tmp_path: Path):
    run = planted_run(tmp_path / "run")
    both = (Site(0, "resid_post"), Site(2, "resid_post"))
    for name, latents in (("cross", 10), ("cross-wide", 24)):
        plant(run, name, rows_of(1, latents, 32), wiring="crosscoder", sites=both)
        plant(run, f"multi{name}", rows_of(2, latents, 16), wiring="multilayer", sites=both)
    entries = compare_decoders(run, GeometryOptions((*PAIRWISE, "neighbourhood")), Heard())
    assert [entry["kind"] for entry in entries] == ["mmcs", *["matching", "splitting", "neighbourhood"] * 2][:1] + [
        kind for kind in ("matching", "splitting", "neighbourhood") for _ in range(2)
    ]
    assert {found["width"] for found in the(run, "mmcs")["numbers"].values()} == {16, 32}


def test_planted_tokens(tmp_path: Path):
    """Decoder vectors that are rows of the embedding, of any norm; a crosscoder's sites are split."""
    lm = load(LanguageModelConfig(path="panscope://demo", device="cpu"))
    embedding = lm.model.get_submodule("model.embed_tokens").weight.detach()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    tokens = [40, 77, 301]
    run, heard = planted_run(tmp_path / "run"), Heard()
    planted = embedding[tokens] * torch.tensor([[0.1], [1], [30]])
    plant(run, "plain", planted)
    sites = (Site(0, "resid_post"), Site(2, "resid_post"))
    plant(run, "cross", torch.cat([planted, planted.flip(0)], dim=1), wiring="crosscoder", sites=sites)
    plant(run, "heads", planted, sites=(Site(0, "attn_z"),))
    entries = compare_decoders(run, GeometryOptions(("tokens",)), heard)
    assert [entry["coder"] for entry in entries] == ["cross", "plain"]
    assert heard.said == ["tokens: heads left out, since their sites are not in the residual stream, as tokens are"]
    found = table(run, "tokens/plain.parquet")
    nearest = [i for i, (rank, matrix) in enumerate(zip(found["rank"], found["matrix"], strict=True))
               if rank == 0 and matrix == "embedding"]  # fmt: skip
    assert [found["token"][i] for i in nearest] == tokens
    assert [found["cosine"][i] for i in nearest] == pytest.approx([1, 1, 1], abs=1e-6)
    assert [found["text"][i] for i in nearest] == [lm.tokenizer._tokenizer.decode([token]) for token in tokens]
    cross = table(run, "tokens/cross.parquet")
    second = [t for t, rank, site, matrix in zip(cross["token"], cross["rank"], cross["site"], cross["matrix"],
              strict=True) if (rank, site, matrix) == (0, "L02.resid_post", "embedding")]  # fmt: skip
    assert second == tokens[::-1]


def test_a_model_of_another_width(tmp_path: Path):
    run = planted_run(tmp_path / "run")
    plant(run, "odd", rows_of(1, 8, 7))
    with pytest.raises(UserError, match=r"coder 'odd' has decoder vectors of 7 numbers .* give the run its own model"):
        compare_decoders(run, GeometryOptions(("tokens",)), Heard())


def test_what_was_made_of_other_weights_is_taken_out(run: Run):
    compare_decoders(run, GeometryOptions(("matching", "neighbourhood")), Heard())
    plant(run, "wide", rows_of(9, 30))
    heard = Heard()
    compare_decoders(run, GeometryOptions(("mmcs",)), heard)
    assert heard.said == ["2 analyses were of weights that have changed since: taken out of the summary"]
    assert [(entry["kind"], entry.get("coder")) for entry in summary(run)] == [
        ("mmcs", None),
        ("neighbourhood", "elsewhere"),
    ]
    left = {path.name for path in (run.path / "geometry").rglob("*.parquet")}
    assert left == {"mmcs.parquet", *(name.split("/")[1] for name in summary(run)[1]["files"])}


def test_the_seed_is_that_of_the_baselines(run: Run):
    compare_decoders(run, GeometryOptions(("matching",)), Heard())
    first = table(run, "matching/narrow--wide.parquet")
    compare_decoders(run, GeometryOptions(("matching",), seed=1), Heard())
    second = table(run, "matching/narrow--wide.parquet")
    assert first["cosine"] == second["cosine"] and first["random_cosine"] != second["random_cosine"]
    assert the(run, "matching")["seed"] == 1


def test_progress_is_told(run: Run):
    heard = Heard()
    compare_decoders(run, GeometryOptions(PAIRWISE), heard)
    assert heard.done["matching of narrow to wide"] == (10, 10)
    assert heard.done["nearest within elsewhere"] == (20, 20)


def test_a_damaged_summary_or_coder_is_a_sentence(run: Run):
    compare_decoders(run, GeometryOptions(("mmcs",)), Heard())
    path = run.path / "geometry" / "summary.json"
    path.write_text(path.read_text().replace('"narrow"', '"broken"'))
    with pytest.raises(UserError, match=r"is damaged: .* delete it, then compute it again with `panscope geometry`"):
        compare_decoders(run, GeometryOptions(("mmcs",)), Heard())
    path.unlink()
    weights = run.coder_folder("wide") / "weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(UserError, match=r"weights\.safetensors' is damaged"):
        compare_decoders(run, GeometryOptions(("mmcs",)), Heard())


def test_a_run_in_use_is_left_alone(run: Run):
    with locked(run.path), pytest.raises(UserError, match="is in use by another process"):
        compare_decoders(run, GeometryOptions(("mmcs",)), Heard())


def test_only_a_few_decoders_are_kept(tmp_path: Path):
    run = planted_run(tmp_path / "run")
    for number in range(7):
        plant(run, f"c{number}", orthogonal(4, 8, number).float())
    decoders, known = Decoders(torch.device("cpu")), known_coders(run)
    for coder in known:
        assert torch.equal(decoders.get(coder).rows, orthogonal(4, 8, int(coder.name[1])).float())
    assert decoders.get(known[-1]) is decoders.get(known[-1])
    assert len(decoders._kept) == 4
