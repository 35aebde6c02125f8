"""dictionary_learning's files, compared with the tool itself if installed, and with float64 formulas.

Shape letters: B rows, D width, F latents.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.coders.base import Coder
from panscope.formats import FORMATS, ImportOptions
from panscope.formats.dictionary_learning import SHAPES
from panscope.transforms.to_jumprelu import frozen
from panscope.types import Site, UserError
from tests.support.making import (
    AT_RESID,
    RESID,
    D,
    F,
    K,
    assert_equal,
    assert_near,
    foreign,
    random_coder,
    reconstruct,
    rows,
    save_rows,
    through_a_run,
)
from tests.support.peers import peers_python, run_in_peers

FORMAT = FORMATS["dictionary_learning"]
STUBS = """
import datasets, sys, types  # before the stubs: it looks for zstandard itself
for name in ("nnsight", "zstandard"):  # imported by the tool at its top, needed to run language models only
    sys.modules[name] = types.ModuleType(name)
sys.modules["nnsight"].LanguageModel = object
import json, pathlib, torch
"""
LOAD = (
    STUBS
    + """
from dictionary_learning.utils import load_dictionary
root = pathlib.Path(sys.argv[1])
x, answers = torch.load(root / "rows.pt"), {}
for folder in sorted(path for path in root.iterdir() if (path / "ae.pt").is_file()):
    dictionary, config = load_dictionary(str(folder), "cpu")
    codes = dictionary.encode(x)
    answers[folder.name] = {"codes": codes.detach(), "y_hat": dictionary.decode(codes).detach()}
    answers[folder.name]["class"] = type(dictionary).__name__
torch.save(answers, root / "answers.pt")
"""
)
TRAIN = (
    STUBS
    + """
from dictionary_learning.training import trainSAE
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
from dictionary_learning.trainers.top_k import TopKTrainer
root, d, f, k = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
shared = dict(steps=30, activation_dim=d, dict_size=f, layer=3, lm_name="EleutherAI/pythia-70m", device="cpu",
              warmup_steps=2, seed=0, submodule_name="resid_post_layer_3", lr=1e-2)
least = dict(k=k, threshold_start_step=2)
configs = [
    dict(trainer=StandardTrainer, sparsity_warmup_steps=2, l1_penalty=0.1, **shared),
    dict(trainer=StandardTrainerAprilUpdate, sparsity_warmup_steps=2, l1_penalty=0.1, **shared),
    dict(trainer=GatedSAETrainer, sparsity_warmup_steps=2, l1_penalty=0.1, **shared),
    dict(trainer=JumpReluTrainer, sparsity_warmup_steps=2, **shared),
    dict(trainer=TopKTrainer, **least, **shared),
    dict(trainer=BatchTopKTrainer, **least, **shared),
    dict(trainer=MatryoshkaBatchTopKTrainer, group_fractions=[0.25, 0.75], **least, **shared),
]
class Rows:
    config = {"d_submodule": d}
    def __iter__(self):
        generator = torch.Generator().manual_seed(1)
        while True:
            yield torch.randn(64, d, generator=generator) * 1.5 + 0.3
trainSAE(Rows(), configs, steps=30, save_dir=str(root), save_steps=[20], normalize_activations=True, device="cpu")
"""
)
"""Runs each trainer for 30 steps on normalised rows; the norm is folded in when it saves."""

AT_UNKNOWN = ImportOptions(reads=RESID, model="someone/unknown")
NAMES = (
    "StandardTrainer",
    "StandardTrainerAprilUpdate",
    "GatedSAETrainer",
    "JumpReluTrainer",
    "TopKTrainer",
    "BatchTopKTrainer",
    "MatryoshkaBatchTopKTrainer",
)
GROUPS = {"prefixes": (0.25, 0.5, 1.0)}
CODERS: dict[str, tuple[Coder, str]] = {
    "relu": (random_coder("relu"), "AutoEncoderNew"),
    "relu_pre": (random_coder("relu", pre_encoder_bias=True), "AutoEncoder"),
    "gated": (random_coder("gated"), "GatedAutoEncoder"),
    "gated_pre": (random_coder("gated", pre_encoder_bias=True), "GatedAutoEncoder"),
    "jumprelu": (random_coder("jumprelu"), "JumpReluAutoEncoder"),
    "jumprelu_pre": (random_coder("jumprelu", pre_encoder_bias=True), "JumpReluAutoEncoder"),
    "topk": (random_coder("topk"), "AutoEncoderTopK"),
    "topk_pre": (random_coder("topk", pre_encoder_bias=True), "AutoEncoderTopK"),
    "topk_norm": (random_coder("topk", selection="decoder_norm"), "AutoEncoderTopK"),
    "batchtopk": (random_coder("batchtopk"), "BatchTopKSAE"),
    "batchtopk_pre": (random_coder("batchtopk", pre_encoder_bias=True), "BatchTopKSAE"),
    "batchtopk_norm": (random_coder("batchtopk", selection="decoder_norm"), "JumpReluAutoEncoder"),
    "matryoshka": (random_coder("matryoshka", pre_encoder_bias=True, **GROUPS), "MatryoshkaBatchTopKSAE"),
    "frozen": (frozen(random_coder("batchtopk")), "JumpReluAutoEncoder"),  # pyright: ignore[reportArgumentType]
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The class, codes and reconstruction that the tool computes for every exported coder."""
    peers_python()
    root = tmp_path_factory.mktemp("exported")
    save_rows(root)
    for name, (coder, _) in CODERS.items():
        FORMAT.write(foreign(coder), root / name)
    run_in_peers(LOAD, root)
    return torch.load(root / "answers.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Coders trained and saved by the tool itself, with its codes and reconstructions."""
    peers_python()
    root = tmp_path_factory.mktemp("trained")
    save_rows(root)
    run_in_peers(TRAIN, root, D, F, K)
    run_in_peers(LOAD, root)
    return root, torch.load(root / "answers.pt")


@pytest.mark.parametrize("name", CODERS)
def test_their_loader_reads_what_we_write(name: str, exported: dict[str, Any]) -> None:
    coder, kind = CODERS[name]
    codes, y_hat = reconstruct(foreign(coder), rows())
    assert exported[name]["class"] == kind
    assert_near(exported[name]["y_hat"], y_hat)
    if name != "topk_norm":  # unit decoder vectors there, so codes in other units
        norms = coder.W_dec.detach().norm(dim=1) if name == "relu_pre" else 1.0
        assert_near(exported[name]["codes"], codes * norms)
    assert 0 < (codes > 0).sum() < codes.numel()


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_we_read_what_they_train(number: int, trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = trained[0] / f"trainer_{number}"
    assert FORMAT.detect(folder)
    found = FORMAT.read(folder, ImportOptions())
    codes, y_hat = reconstruct(found, rows())
    theirs = trained[1][folder.name]
    assert_near(y_hat, theirs["y_hat"])
    # Their loader of AutoEncoder brings decoder vectors to norm 1 in memory; the file and we keep them.
    unit = found.wired.coder.W_dec.detach().norm(dim=1) if theirs["class"] == "AutoEncoder" else 1.0
    assert_near(codes * unit, theirs["codes"])
    assert codes.count_nonzero() > 0
    assert found.wired.wiring.reads == (RESID,)
    assert found.about["model"] == "EleutherAI/pythia-70m"
    FORMAT.write(found, tmp_path / "again")
    again, first = (torch.load(place / "ae.pt") for place in (tmp_path / "again", folder))
    if theirs["class"] == "JumpReluAutoEncoder":  # a ReLU follows, so a threshold below 0 is one of 0 and becomes it
        assert first["threshold"].min() < 0
        first["threshold"].clamp_(min=0)
    assert_equal(again, dict(first))
    wanted, config = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "again"))
    assert {key: config["trainer"][key] for key in wanted["trainer"]} == wanted["trainer"]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_a_checkpoint_of_a_run_is_read_with_the_runs_configuration(
    number: int, trained: tuple[Path, dict[str, Any]]
) -> None:
    folder = trained[0] / f"trainer_{number}"
    file = folder / "checkpoints" / "ae_20.pt"
    assert FORMAT.detect(file)
    last, then = FORMAT.read(folder, ImportOptions()).wired.coder, FORMAT.read(file, ImportOptions()).wired.coder
    assert type(then) is type(last)
    assert not torch.equal(then.W_enc, last.W_enc)


def their_state(kind: str) -> dict[str, Tensor]:
    """A random state dict of each class."""
    generator = torch.Generator().manual_seed(4)
    sizes = {"D": D, "F": F}
    special = {"k": torch.tensor(K, dtype=torch.int32), "group_sizes": torch.tensor([F // 4, F - F // 4])}
    special["threshold"] = torch.tensor(0.3)
    state = {}
    for name, letters in SHAPES[kind].items():
        draw = torch.randn([sizes[letter] for letter in letters if letter in sizes], generator=generator) * 0.5
        state[name] = draw.abs() if name == "threshold" and letters else special.get(name, draw)
    return state


def save(folder: Path, state: dict[str, Any], kind: str | None = None, **trainer: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    if kind is not None:
        config = {"trainer": {"dict_class": kind, **trainer}}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def oracle(kind: str, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The reconstruction [B, D] in float64 by the formula of each class, independent of both implementations."""
    s = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    x = x.double()
    if "encoder.weight" in s:
        s |= {"W_enc": s["encoder.weight"].T, "W_dec": s["decoder.weight"].T}
    bias = next(s[name] for name in ("bias", "decoder_bias", "b_dec", "decoder.bias") if name in s)
    h = (x if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else x - bias) @ s["W_enc"]
    if kind == "GatedAutoEncoder":
        codes = (h + s["gate_bias"] > 0) * (s["r_mag"].exp() * h + s["mag_bias"]).clamp_min(0)
    else:
        h = (h + s.get("encoder.bias", s.get("b_enc", torch.zeros(F)))).clamp_min(0)
        codes = h * (h > s["threshold"]) if "threshold" in s else h
        if kind == "AutoEncoderTopK":
            kept = h.argsort(dim=1, descending=True)[:, : int(s["k"])]
            codes = torch.zeros_like(h).scatter(1, kept, h.gather(1, kept))
    return codes @ s["W_dec"] + bias


@pytest.mark.parametrize("kind", SHAPES)
def test_every_class_in_float64_and_back(kind: str, tmp_path: Path) -> None:
    state = their_state(kind)
    found = FORMAT.read(save(tmp_path / "first", state, kind, k=K), AT_RESID)
    assert_near(reconstruct(found, rows())[1], oracle(kind, state, rows()))
    again = through_a_run(tmp_path / "first", "dictionary_learning", tmp_path, AT_UNKNOWN)
    assert_equal(torch.load(again / "ae.pt"), state)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("norm_factor", [None, 7.25])
def test_the_backup_variant_is_brought_to_raw_rows(kind: str, norm_factor: float | None, tmp_path: Path) -> None:
    """The backup encodes rows divided by norm_factor: the reference divides, encodes, and multiplies again."""
    state, factor = their_state(kind), norm_factor or 1.0
    adam = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(D)}}, "param_groups": [{"lr": 1e-3}]}
    backup = {"step": 100, "ae": state, "optimizer": adam, "config": {"dict_class": kind, "k": K, "layer": 3}}
    if norm_factor is not None:
        backup["norm_factor"] = norm_factor
    found = FORMAT.read(save(tmp_path / "run-100", backup), AT_RESID)
    wanted = oracle(kind, state, rows(size=factor) / factor) * factor
    assert_near(reconstruct(found, rows(size=factor))[1], wanted)
    again = torch.load(through_a_run(tmp_path / "run-100", "dictionary_learning", tmp_path, AT_UNKNOWN) / "ae.pt")
    assert_near(oracle(kind, again, rows(size=factor)), wanted)
    if factor == 1:
        assert_equal(again, state)


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
@pytest.mark.parametrize("threshold", [-1.0, 0.0])
def test_a_threshold_that_was_never_set_cuts_nothing_and_stays_as_it_is(
    kind: str, threshold: float, tmp_path: Path
) -> None:
    state = their_state(kind) | {"threshold": torch.tensor(threshold)}
    found = FORMAT.read(save(tmp_path / "first", state, kind, k=K), AT_RESID)
    assert_near(reconstruct(found, rows())[1], oracle(kind, state, rows()))
    again = through_a_run(tmp_path / "first", "dictionary_learning", tmp_path, AT_UNKNOWN)
    assert float(torch.load(again / "ae.pt")["threshold"]) == threshold


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
def test_without_its_threshold_it_would_be_another_coder(kind: str, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in their_state(kind).items() if name != "threshold"}
    with pytest.raises(UserError, match="lacks threshold"):
        FORMAT.read(save(tmp_path / "first", state, kind, k=K), AT_RESID)


@pytest.mark.parametrize("least", [0.0, -0.5])
def test_a_threshold_of_zero_or_less_is_a_relu(least: float, tmp_path: Path) -> None:
    state = their_state("JumpReluAutoEncoder")
    state["threshold"][::2] = least
    found = FORMAT.read(save(tmp_path / "first", state), AT_RESID)
    assert_near(reconstruct(found, rows())[1], oracle("JumpReluAutoEncoder", state, rows()))
    FORMAT.write(found, tmp_path / "again")
    assert torch.load(tmp_path / "again" / "ae.pt")["threshold"][0] == 0


def test_without_configuration_the_tensors_tell_the_class(tmp_path: Path) -> None:
    for kind in SHAPES:
        folder = save(tmp_path / kind, their_state(kind))
        if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
            with pytest.raises(UserError, match="may be AutoEncoderTopK or BatchTopKSAE: add the config"):
                FORMAT.read(folder, AT_RESID)
        else:
            assert FORMAT.read(folder, AT_RESID).about["dict_class"] == kind


def test_k_may_be_in_the_configuration_alone_or_be_said(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in their_state("AutoEncoderTopK").items() if name not in ("k", "threshold")}
    found = FORMAT.read(save(tmp_path / "a", state, "AutoEncoderTopK", k=7), AT_RESID)
    assert found.wired.coder.config.sparsity == 7
    bare = save(tmp_path / "b", state, "AutoEncoderTopK")
    with pytest.raises(UserError, match="--k"):
        FORMAT.read(bare, AT_RESID)
    assert FORMAT.read(bare, ImportOptions(reads=RESID, k=3)).wired.coder.config.sparsity == 3
    two = save(tmp_path / "c", their_state("AutoEncoderTopK"), "AutoEncoderTopK", k=7)
    with pytest.raises(UserError, match=r"say \[5, 7\]"):
        FORMAT.read(two, AT_RESID)


@pytest.mark.parametrize(
    ("trainer", "site"),
    [
        ({"layer": 3, "submodule_name": "mlp_out_layer_3"}, Site(3, "mlp_out")),
        ({"layer": 2, "submodule_name": "resid_post"}, Site(2, "resid_post")),
        ({"layer": 2, "submodule_name": "resid_post_layer_3"}, None),
        ({"layer": 2, "submodule_name": None}, None),
        ({"layer": True, "submodule_name": "resid_post"}, None),
        ({"layer": -1, "submodule_name": "resid_post"}, None),
        ({}, None),
    ],
)
def test_the_site_is_the_configurations_or_asked_for(
    trainer: dict[str, Any], site: Site | None, tmp_path: Path
) -> None:
    folder = save(tmp_path / "a", their_state("AutoEncoder"), "AutoEncoder", **trainer)
    if site is None:
        with pytest.raises(UserError, match="site"):
            FORMAT.read(folder, ImportOptions())
    else:
        assert FORMAT.read(folder, ImportOptions()).wired.wiring.reads == (site,)
    assert FORMAT.read(folder, AT_RESID).wired.wiring.reads == (RESID,)


def test_names_and_origin_are_beside_the_weights(tmp_path: Path) -> None:
    FORMAT.write(foreign(random_coder("relu"), note="from a test"), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["hook_name"] == "blocks.3.hook_resid_post"
    assert config["hf_hook_name"] == "gpt_neox.layers.3.output"
    assert config["panscope"]["about"]["note"] == "from a test"
    assert FORMAT.read(tmp_path / "a", ImportOptions()).wired.wiring.reads == (RESID,)


def test_the_same_coder_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        FORMAT.write(foreign(random_coder("topk")), tmp_path / name)
    assert (tmp_path / "a" / "ae.pt").read_bytes() == (tmp_path / "b" / "ae.pt").read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bias": torch.zeros(D + 1)}, "'bias' has shape"),
        ({"surprise": torch.zeros(1)}, "surprise"),
        ({"bias": torch.full((D,), torch.nan)}, "NaN"),
    ],
)
def test_damaged_weights_are_a_sentence(change: dict[str, Tensor], words: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "a", their_state("AutoEncoder") | change, "AutoEncoder")
    with pytest.raises(UserError, match=words):
        FORMAT.read(folder, AT_RESID)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("AutoEncoderTopK", {"k": torch.tensor(F + 1, dtype=torch.int32)}, "above the width"),
        ("AutoEncoderTopK", {"k": torch.tensor(0, dtype=torch.int32)}, "k is 0"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([F, F])}, "group_sizes do not add up"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([F + 1, -1])}, "group_sizes do not add up"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([0.5, 0.5])}, "group_sizes do not add up"),
    ],
)
def test_wrong_numbers_are_a_sentence(kind: str, change: dict[str, Tensor], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        FORMAT.read(save(tmp_path / "a", their_state(kind) | change, kind), AT_RESID)


def test_unknown_classes_and_strange_configurations_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of class 'CrossCoder'"):
        FORMAT.read(save(tmp_path / "a", their_state("AutoEncoder"), "CrossCoder"), AT_RESID)
    with pytest.raises(UserError, match="match no class of dictionary_learning"):
        FORMAT.read(save(tmp_path / "b", {"x": torch.zeros(2)}), AT_RESID)
    folder = save(tmp_path / "c", their_state("AutoEncoder"))
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no object 'trainer'"):
        FORMAT.read(folder, AT_RESID)
    backup = {"step": 1, "ae": their_state("AutoEncoder"), "config": {}, "norm_factor": 0.0}
    with pytest.raises(UserError, match="norm_factor is 0"):
        FORMAT.read(save(tmp_path / "d", backup), AT_RESID)


def test_what_there_is_no_place_for_is_refused(tmp_path: Path) -> None:
    for one, words in (
        (foreign(random_coder("topk"), Site(3, "mlp_in"), Site(3, "mlp_out")), "wiring 'transcoder'"),
        (foreign(random_coder("topk", skip=True)), "skip"),
    ):
        with pytest.raises(UserError, match=words):
            FORMAT.write(one, tmp_path / "a")
    assert not (tmp_path / "a").exists()
