"""The data of the suites in benchmarks/suites: llama2.c's files read as it reads them, and suites without them."""

import hashlib
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch

from benchmarks.suites import data
from benchmarks.suites.data import MODEL, REAL, SAMPLED, Options, main
from benchmarks.suites.llama2c import read_tokenizer, read_weights, write_model
from panscope import api
from panscope.cli.suite_flags import suite_from
from panscope.types import UserError

SUITES = sorted((Path(__file__).parents[3] / "benchmarks" / "suites").glob("*.toml"))
D, HIDDEN, LAYERS, HEADS, KV, CONTEXT = 12, 20, 2, 3, 1, 64
PIECES = ["a", "b", "c", " ", ".", " a", "bc", " ab", "abc", " abc", "aa", "aaa", "cb"]
VOCABULARY = 259 + len(PIECES)
WEIGHTS = ("tok", "att_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm")


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """Random weights in the order of llama2.c's files."""
    draw, keys = np.random.default_rng(0), D // HEADS * KV
    shapes = [
        (VOCABULARY, D), (LAYERS, D), (LAYERS, D, D), (LAYERS, keys, D), (LAYERS, keys, D), (LAYERS, D, D), (LAYERS, D),
        (LAYERS, HIDDEN, D), (LAYERS, D, HIDDEN), (LAYERS, HIDDEN, D), (D,),
    ]  # fmt: skip
    made = {name: draw.normal(size=shape).astype("<f4") * 0.5 for name, shape in zip(WEIGHTS, shapes, strict=True)}
    return made | {name: 1 + 0.1 * made[name] for name in ("att_norm", "ffn_norm", "norm")}


@pytest.fixture
def files(tensors: dict[str, np.ndarray], tmp_path: Path) -> tuple[Path, Path]:
    """The weights and the tokenizer as llama2.c writes them."""
    header = struct.pack("<7i", D, HIDDEN, LAYERS, HEADS, KV, VOCABULARY, CONTEXT)
    rotary = np.zeros(CONTEXT * D // HEADS, "<f4")
    weights = tmp_path / "m.bin"
    weights.write_bytes(
        header + b"".join(tensor.astype("<f4").tobytes() for tensor in tensors.values()) + rotary.tobytes()
    )
    special = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256))]
    raw = struct.pack("<i", 7)
    for number, piece in enumerate([*special, *PIECES]):
        encoded = piece.encode()
        raw += struct.pack("<fi", -float(max(0, number - 259)), len(encoded)) + encoded
    tokenizer = tmp_path / "t.bin"
    tokenizer.write_bytes(raw)
    return weights, tokenizer


def forward(w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits [T, V] as llama2.c computes them, in float64, with neighbouring dimensions turned."""
    w = {name: tensor.astype(np.float64) for name, tensor in w.items()}

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain

    def turned(x: np.ndarray) -> np.ndarray:
        """x [T, H, d] as complex numbers of neighbouring dimensions."""
        t, _, d = x.shape
        angle = np.arange(t)[:, None] / 10_000 ** (np.arange(0, d, 2) / d)[None]
        pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
        return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)

    x, size = w["tok"][tokens], D // HEADS
    for i in range(LAYERS):
        h = norm(x, w["att_norm"][i])
        q = turned((h @ w["wq"][i].T).reshape(-1, HEADS, size))
        k = turned((h @ w["wk"][i].T).reshape(-1, KV, size)).repeat(HEADS // KV, axis=1)
        v = (h @ w["wv"][i].T).reshape(-1, KV, size).repeat(HEADS // KV, axis=1)
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(size)
        scores = np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shd->thd", weights, v).reshape(len(tokens), D) @ w["wo"][i].T
        h = norm(x, w["ffn_norm"][i])
        gate = h @ w["w1"][i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["w3"][i].T)) @ w["w2"][i].T
    return norm(x, w["norm"]) @ w["tok"].T


def encoded(text: str) -> list[int]:
    """Token ids as llama2.c finds them: characters, and then the best pair merged, again and again."""
    ids = {piece: 259 + i for i, piece in enumerate(PIECES)}
    pieces = list(" " + text)
    while True:
        merged = [(ids["".join(pair)], i) for i, pair in enumerate(itertools.pairwise(pieces)) if "".join(pair) in ids]
        if not merged:
            break
        _, i = min(merged)
        pieces[i : i + 2] = ["".join(pieces[i : i + 2])]
    return [
        number for piece in pieces for number in ([ids[piece]] if piece in ids else [3 + b for b in piece.encode()])
    ]


def test_the_model_is_that_of_llama2c(files: tuple[Path, Path], tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_model(*files, tmp_path / "model")
    lm = api.load_model(str(tmp_path / "model"))
    tokens = [1, *np.random.default_rng(1).integers(3, VOCABULARY, 20).tolist()]
    with torch.no_grad():
        found = lm.model(input_ids=torch.tensor([tokens])).logits[0].double().numpy()
    np.testing.assert_allclose(found, forward(tensors, tokens), atol=2e-5)
    assert (lm.tokenizer.bos_id, lm.tokenizer.eos_id, lm.context) == (1, 2, CONTEXT)
    draw = np.random.default_rng(2)
    texts = ["".join(draw.choice([*"abc .", "z", "é"], size=30)).strip() for _ in range(50)]
    assert lm.tokenizer.encode(texts) == [encoded(text) for text in texts]
    assert lm.tokenizer.decode_after([1], encoded("abc bé. a")) == "abc bé. a"


def test_files_of_another_kind_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    weights, tokenizer = files
    raw = weights.read_bytes()
    bad = tmp_path / "bad.bin"
    for content, sentence in (
        (b"", "has 0 bytes: expected weights of llama2.c"),
        (raw[:-4], "its header says .*: download it again"),
        (
            struct.pack("<7i", D, HIDDEN, LAYERS, HEADS, KV, -VOCABULARY, CONTEXT) + raw[28:],
            "with a shared output matrix",
        ),
    ):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            read_weights(bad)
    for content in (tokenizer.read_bytes()[:-1], tokenizer.read_bytes() + b"x"):
        bad.write_bytes(content)
        with pytest.raises(UserError, match="is not a tokenizer of"):
            read_tokenizer(bad, VOCABULARY)


@pytest.fixture
def hub(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub, with the tiny model in the place of stories260K, and stories of its words; what it was asked for."""
    asked: list[str] = []
    of_name = dict(zip(data.MODEL_FILES, files, strict=True))
    checksums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in of_name.items()}
    monkeypatch.setattr(data, "MODEL_FILES", checksums)

    def download(repo: str, name: str) -> str:
        asked.append(f"{repo}/{name}")
        return str(of_name[name])

    def load(repo: str, **options: Any) -> list[dict[str, str]]:
        asked.append(repo)
        return [{"text": text} for i in range(30) for text in ("abc ab", f" abc ab a{'b' * i} c" + " abc" * 200)]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_the_data_is_fetched_once(hub: list[str], tmp_path: Path) -> None:
    options = Options(out=tmp_path / "out", stories=20, sampled=6)
    main(options)
    assert hub == [*(f"karpathy/tinyllamas/{name}" for name in data.MODEL_FILES), "roneneldan/TinyStories"]
    texts = [json.loads(line)["text"] for line in (tmp_path / "out" / REAL).read_text().splitlines()]
    assert len(texts) == 20 and texts[0].startswith("abc ab a c abc") and texts[19].startswith(f"abc ab a{'b' * 19} c")
    sampled = [json.loads(line)["text"] for line in (tmp_path / "out" / SAMPLED).read_text().splitlines()]
    assert len(sampled) == 6 and all(text.startswith("abc ab a") for text in sampled)
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(files) == 7
    main(options)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == files
    assert len(hub) == 3
    main(Options(out=tmp_path / "again", have=tmp_path / "out"))
    assert len(hub) == 3 and (tmp_path / "again" / MODEL / "config.json").is_file()
    with pytest.raises(UserError, match=r"--have: .* does not exist"):
        main(Options(out=tmp_path / "none", have=tmp_path / "elsewhere"))


def test_what_cannot_be_fetched_is_one_sentence(
    hub: list[str], files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(out=tmp_path / "out", stories=31, sampled=6)
    with pytest.raises(UserError, match="'roneneldan/TinyStories' cannot be read from the hub: it has too few stories"):
        main(options)
    monkeypatch.setattr(data, "MODEL_FILES", dict.fromkeys(data.MODEL_FILES, "0" * 64))
    with pytest.raises(UserError, match=r"m\.bin' is not the file that the numbers in docs/ were measured on"):
        main(Options(out=tmp_path / "other"))

    def away(*arguments: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", away)
    with pytest.raises(UserError, match="'karpathy/tinyllamas' cannot be downloaded from the hub: no network"):
        main(Options(out=tmp_path / "third"))
    assert not (tmp_path / "third" / MODEL).exists()


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_every_suite_is_of_this_data_or_the_built_in_one(suite: Path) -> None:
    """As a clone runs them without a network; and what they name is what data.py makes."""
    own = suite_from(str(suite), {})
    made = {str(Options().out / name) for name in (MODEL, REAL, SAMPLED)}
    assert {own.model.path, *own.data.text} <= made
    flags = {"model": "panscope://demo", "text": ("panscope://demo",), "context": 256}
    planned = api.plan(suite_from(str(suite), flags)).plan
    assert planned.coders and planned.suite.model.path == "panscope://demo"
