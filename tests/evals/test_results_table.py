"""The table that people read and the Parquet file that tools read."""

import io
import math
from pathlib import Path

import pyarrow.parquet
import pytest
from rich.console import Console

from panscope.evals.table import results_table, write_results

RESULTS = {
    "L01R": {
        "tokens": 90,
        "l0": 31.96,
        "fvu": 0.12346,
        "delta_loss": 0.25,
        "loss_recovered": 0.987,
        "dead_fraction": 0,
    },
    "L00R": {
        "tokens": 90,
        "l0": 4.0,
        "fvu": 0.5,
        "delta_loss": -0.01,
        "loss_recovered": math.nan,
        "dead_fraction": 0.125,
    },
}


def test_the_table_is_sorted_and_readable():
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(results_table(RESULTS))
    lines = [line.replace("│", " ").split() for line in capture.get().splitlines()]
    rows = [line for line in lines if line and line[0] in RESULTS]
    assert rows == [
        ["L00R", "4.0", "0.5000", "-0.0100", "-", "12.5%"],
        ["L01R", "32.0", "0.1235", "+0.2500", "98.7%", "0.0%"],
    ]


def test_a_null_read_back_from_json_shows_as_a_dash():
    table = results_table({"c": RESULTS["L01R"] | {"fvu": None}})
    assert list(table.columns[2].cells) == ["-"]


def test_one_row_a_coder_with_facts_and_every_field(tmp_path: Path):
    facts = {"L00R": {"layer": 0, "architecture": "topk", "sparsity": 32}, "L01R": {"layer": 1, "sparsity": 0.001}}
    path = tmp_path / "run" / "results.parquet"
    write_results(path, RESULTS, facts)
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["coder"] for row in rows] == ["L00R", "L01R"]
    assert rows[1] == {"coder": "L01R", "layer": 1, "architecture": None, "sparsity": 0.001} | RESULTS["L01R"]
    assert math.isnan(rows[0]["loss_recovered"])
    assert [file.name for file in path.parent.iterdir()] == ["results.parquet"]


def test_a_run_without_coders_gives_an_empty_file(tmp_path: Path):
    write_results(tmp_path / "results.parquet", {}, {})
    assert pyarrow.parquet.read_table(tmp_path / "results.parquet").num_rows == 0


def test_a_fact_must_not_hide_a_result(tmp_path: Path):
    with pytest.raises(AssertionError, match="tokens"):
        write_results(tmp_path / "results.parquet", RESULTS, {"L00R": {"tokens": 1}})
