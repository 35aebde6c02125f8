"""`panscope doctor`, `--kernels` and `--profile`, as typed."""

import json
import re
from pathlib import Path

import numba
import torch

from tests.support.tiny_lm import Command, Tiny


def test_doctor_says_what_is_here_and_what_will_run(panscope: Command):
    call = panscope("doctor")
    assert call.status == 0 and call.err == ""
    assert torch.__version__ in call.out and numba.__version__ in call.out
    assert re.search(r"cpu +sparse: Numba", call.out)
    assert re.search(r"float32 [\d.e+]+, bfloat16 [\d.e+]+ GFLOP/s", call.out)


def test_both_kernels_train_the_same_coders(panscope: Command, tiny: Tiny, tmp_path: Path):
    suite = tiny.suite(tmp_path / "suite.toml")
    lines = {}
    for kernels in ("reference", "sparse"):
        call = panscope("train", suite, "--kernels", kernels, "--out", kernels)
        assert call.status == 0, call.err
        assert f"kernels: {kernels}" in call.out
        lines[kernels] = [json.loads(line) for line in (tmp_path / kernels / "train.jsonl").read_text().splitlines()]
    assert {line["kernels"] for line in lines["reference"]} == {"reference"}
    assert {line["kernels"] for line in lines["sparse"]} <= {"sparse", "dense"}
    for ours, reference in zip(lines["sparse"], lines["reference"], strict=True):
        assert ours["coder"] == reference["coder"]
        assert abs(ours["loss"] - reference["loss"]) <= 1e-3 * reference["loss"]


def test_profile_says_once_where_the_time_goes(panscope: Command, tiny: Tiny, tmp_path: Path):
    call = panscope("train", tiny.suite(tmp_path / "suite.toml"), "--profile", "--out", "run")
    assert call.status == 0, call.err
    assert call.out.count("where the time goes:") == 1
    shares = [float(share) for share in re.findall(r" ms +([\d.]+)%", call.out)]
    assert 99 < sum(shares) < 101
    for part in ("activations", "encode", "decode", "backward", "update", "meters", "everything else"):
        assert part in call.out


def test_an_unknown_kind_of_kernels(panscope: Command, tiny: Tiny, tmp_path: Path):
    sentence = panscope("train", tiny.suite(tmp_path / "suite.toml"), "--kernels", "fast").sentence()
    assert "kernels" in sentence and "'fast'" in sentence


def test_a_width_that_no_memory_holds(panscope: Command, tiny: Tiny):
    sentence = panscope(
        "train", "--model", tiny.model, "--text", tiny.text, "--width", 2_000_000_000, "--sparsity", 4, "--tokens", 512
    ).sentence()
    assert "GiB" in sentence and "would fit" in sentence
