"""Every mistake at the command line: one sentence, exit status 2, no traceback, nothing that was there is changed."""

import shutil
from pathlib import Path

import pytest

from tests.support.tiny_lm import Command, Tiny

CODER = ("--width", 32, "--sparsity", 4)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def refused(panscope: Command, tmp_path: Path, tiny: Tiny):
    """Calls a command that must be refused with a sentence that holds `expected`, and leave all files alone."""

    def check(expected: str, *arguments: object) -> None:
        before = contents(tmp_path)
        sentence = panscope(*arguments).sentence()
        assert expected in sentence
        assert contents(tmp_path) == before

    return check


def test_models_that_are_not_there(refused, tiny: Tiny, tmp_path: Path):
    refused(
        "path './nowhere' is not a folder that exists", "train", "--model", "./nowhere", "--text", tiny.text, *CODER
    )
    (tmp_path / "empty").mkdir()
    refused("cannot be loaded", "train", "--model", tmp_path / "empty", "--text", tiny.text, *CODER)
    refused("is not a built-in model", "train", "--model", "panscope://big", "--text", tiny.text, *CODER)


@pytest.mark.parametrize("name", ["empty.jsonl", "blank.txt", "empty.txt"])
def test_an_empty_text(refused, tiny: Tiny, tmp_path: Path, name: str):
    (tmp_path / name).write_text("\n \n" if name == "blank.txt" else "")
    refused("there is no document", "train", "--model", tiny.model, "--text", tmp_path / name, *CODER)


def test_texts_that_cannot_be_read(refused, tiny: Tiny, tmp_path: Path):
    refused("is not a file", "train", "--model", tiny.model, "--text", "none.jsonl", *CODER)
    (tmp_path / "a.csv").write_text("text\nw5")
    refused("the type '.csv'", "train", "--model", tiny.model, "--text", "a.csv", *CODER)
    refused("--text is missing", "train", "--model", tiny.model, *CODER)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ("--sites", "resid_pre"),
            "'resid_pre' is unknown: resid_pre is the resid_post of the layer before; use one of",
        ),
        (("--sites", "mlp_in -> mlp_out"), "names two sites"),
        (("--wiring", "transcoder", "--sites", "mlp_in"), "names one site"),
        (("--wiring", "pairs"), "wiring is 'pairs'"),
        (("--layers", "2"), "layer 2 does not exist: the model has 2 layers; choose from 0 to 1"),
        (("--layers", "x"), "--layers 'x' is not a number: give layer numbers from 0, or the one word all"),
        (("--layers", "0", "all"), "--layers 'all' is not a number"),
        (("--architecture", "gate"), "architecture 'gate' is unknown: use one of relu, topk, batchtopk, matryoshka"),
        (("--recipe", "gemma"), "recipe 'gemma' is unknown: use one of anthropic_relu, gemma_scope"),
        (("--wiring", "multilayer", "--layers", "1"), "wiring 'multilayer' needs several sites"),
        (("--wiring", "transcoder", "--recipe", "openai_topk"), "normaliser is 'standardise'"),
        (("--tokens", "0"), "tokens is 0"),
        (("--context", "25"), "data.context 25 is longer than the model's 24 positions"),
        (("--packing", "pairs"), "data.packing is 'pairs'"),
        (("--seed", "-1"), "seed is -1"),
        (("--device", "abacus"), "device 'abacus' cannot be used"),
        (("--dtype", "int8"), "model.dtype is 'int8'"),
    ],
)
def test_flags_that_make_no_sense(refused, tiny: Tiny, flags: tuple[str, ...], expected: str):
    refused(expected, "train", "--model", tiny.model, "--text", tiny.text, *CODER, *flags)


@pytest.mark.parametrize(
    ("width", "sparsity", "expected"),
    [
        (0, 4, "width is 0: input should be greater than 0"),
        (-8, 4, "width is -8"),
        (32, 33, "sparsity (K) 33 is above the width 32: give a smaller K or a larger width"),
        (32, 0, "sparsity is 0"),
        (32, 1.5, "sparsity (K) 1.5 is not a whole number"),
    ],
)
def test_widths_and_sparsities_that_make_no_sense(refused, tiny: Tiny, width: int, sparsity: float, expected: str):
    flags = ("--width", width, "--sparsity", sparsity)
    refused(expected, "train", "--model", tiny.model, "--text", tiny.text, *flags)


def test_what_flags_alone_need(refused):
    refused("--width is missing", "train", "--sparsity", 4)
    refused("--sparsity is missing", "train", "--width", 32)


def test_a_text_needs_the_model_that_reads_it(refused, tiny: Tiny, tmp_path: Path):
    """The built-in model is for the built-in text alone, unless it is asked for."""
    missing = "and the model that reads it is missing: set path under [model] (or --model, where the command has it)"
    refused(f"text is {tiny.text} {missing}", "train", "--text", tiny.text, *CODER)
    (tmp_path / "s.toml").write_text(f"[data]\ntext = '{tiny.text}'\n[[coders]]\nwidth = 32\nsparsity = 4\n")
    refused(missing, "plan", "s.toml")
    refused(missing, "collect", "s.toml", "--out", "store")


def test_suites_that_are_not_there(refused):
    refused("suite 'demon' is neither a file nor a built-in suite: give a .toml file or one of demo", "train", "demon")
    refused("'gone.toml' does not exist", "train", "gone.toml")


def test_a_folder_is_no_suite(refused, tiny: Tiny, tmp_path: Path):
    """Such as a run folder, given without --resume."""
    (tmp_path / "folder").mkdir()
    refused("folder", "train", "folder")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokens = = 3", "'s.toml' is not TOML"),
        ("\xff", "'s.toml' is not TOML"),
        ("", "coders"),
        ("[[coders]]\nwidht = 3\nsparsity = 1", "the key 'widht' is unknown; did you mean 'width'?"),
        ("tokns = 3\n[[coders]]\nwidth = 3\nsparsity = 1", "the key 'tokns' is unknown; did you mean 'tokens'?"),
        ("[dat]\n[[coders]]\nwidth = 3\nsparsity = 1", "the key 'dat' is unknown; did you mean 'data'?"),
        ("[data]\ncontxt = 3\n[[coders]]\nwidth = 3\nsparsity = 1", "did you mean 'context'?"),
        ("[train]\nlog_evry = 3\n[[coders]]\nwidth = 3\nsparsity = 1", "did you mean 'log_every'?"),
        ("[coders]\nwidth = 3\nsparsity = 1", "coders"),
        ("coders = [1]", "coders"),
        ('model = "gpt2"\n[[coders]]\nwidth = 3\nsparsity = 1', "model"),
        ('data = "a.txt"\n[[coders]]\nwidth = 3\nsparsity = 1', "data"),
        ("[[model]]\n[[coders]]\nwidth = 3\nsparsity = 1", "model"),
    ],
)
def test_suite_files_that_make_no_sense(refused, tmp_path: Path, text: str, expected: str):
    (tmp_path / "s.toml").write_bytes(text.encode("latin-1"))
    refused(expected, "train", "s.toml")


def test_a_run_folder_is_never_written_into_again(refused, panscope: Command, tiny: Tiny, tmp_path: Path):
    suite = tiny.suite(tmp_path / "s.toml", tokens=640)
    assert panscope("train", suite, "--out", "run").status == 0
    refused("the run folder 'run' already exists: choose another --out", "train", suite, "--out", "run")
    (tmp_path / "file").write_text("mine")
    refused("already exists", "train", suite, "--out", "file")


def test_resume_needs_a_run_folder_and_nothing_else(refused, tmp_path: Path):
    refused("'nowhere' is not a run folder: it has no suite.toml", "train", "--resume", "nowhere")
    (tmp_path / "some").mkdir()
    refused("'some' is not a run folder", "train", "--resume", "some")
    refused("so --tokens cannot be combined with --resume", "train", "--resume", "some", "--tokens", 5)
    refused("so --out cannot be combined with --resume", "train", "--resume", "some", "--out", "b")
    refused("cannot be combined with --resume", "train", "demo", "--resume", "some")
    refused("'some' is not a run folder", "eval", "some")


def test_a_half_written_checkpoint(refused, panscope: Command, tiny: Tiny, tmp_path: Path):
    suite = tiny.suite(tmp_path / "s.toml", tokens=1280)
    assert panscope("train", suite, "--out", "run").status == 0
    newest = tmp_path / "run" / "checkpoint" / "step_00000020"
    tensors = newest / "0000.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "run" / "coders" / "L00R-2x-topk-k4")
    status = tmp_path / "run" / "status.json"
    status.unlink()
    sentence = panscope("train", "--resume", "run").sentence()
    assert "step_00000020' is half-written or damaged (0000.safetensors does not match its checksum)" in sentence
    assert sentence.endswith("delete that folder and resume again to continue from the checkpoint of step 10")
    shutil.rmtree(newest)
    assert panscope("train", "--resume", "run").status == 0
    assert (tmp_path / "run" / "coders" / "L00R-2x-topk-k4" / "eval.json").is_file()


def test_activations_that_are_no_numbers(panscope: Command, tiny: Tiny, tmp_path: Path):
    flags = ("--text", tiny.text, *CODER, "--tokens", 640, "--out", "run")
    sentence = panscope("train", "--model", tiny.spoilt_model, *flags).sentence()
    assert "the activations of site 'L01.resid_post' are not finite at document" in sentence
    assert not (tmp_path / "run").exists()


def test_a_site_before_the_broken_one_can_still_be_learned(panscope: Command, tiny: Tiny, tmp_path: Path):
    """Training reads only what it needs; the evaluation needs the whole model and says what is wrong with it."""
    flags = ("--text", tiny.text, *CODER, "--tokens", 640, "--layers", 0, "--out", "run")
    sentence = panscope("train", "--model", tiny.spoilt_model, *flags).sentence()
    assert "NaN or infinit" in sentence
    assert (tmp_path / "run" / "coders" / "L00R-2x-topk-k4" / "weights.safetensors").is_file()


@pytest.mark.parametrize("held_out", [0.0, 0.001])
def test_a_text_with_nothing_held_out_is_refused_before_training(refused, tiny: Tiny, tmp_path: Path, held_out: float):
    """Not at the very end, when all the work is done and no flag can be given any more."""
    text = tmp_path / "few.jsonl"
    text.write_text("".join(tiny.text.read_text().splitlines(keepends=True)[:5]))
    suite = tiny.suite(tmp_path / "s.toml", data={"text": [str(text)], "held_out": held_out}, tokens=640)
    refused("held", "train", suite, "--out", "run")


def test_too_small_a_buffer_is_refused_before_the_run_folder_is_made(refused, tiny: Tiny, tmp_path: Path):
    suite = tiny.suite(tmp_path / "s.toml", activations={"buffer_rows": 63})
    refused("activations.buffer_rows 63 is below the batch of 64 rows", "train", suite, "--out", "run")


def test_a_place_that_cannot_be_written_to(refused, tiny: Tiny, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    suite = tiny.suite(tmp_path / "s.toml")
    refused("file", "train", suite, "--out", "file/run")


def test_an_unknown_flag_and_a_wrong_type(panscope: Command):
    for arguments in (("train", "--widht", "3"), ("train", "--width", "many"), ("eval",), ("trian",), ()):
        call = panscope(*arguments)
        assert call.status == 2
        assert "Traceback" not in call.err


def test_a_long_sentence_is_not_broken_into_lines(panscope: Command, monkeypatch: pytest.MonkeyPatch):
    """Where the output is a file, a path cut in two cannot be searched for or copied."""
    monkeypatch.setenv("COLUMNS", "80")
    path = "a-folder-with-a-long-name/" * 5 + "suite.toml"
    call = panscope("train", path)
    assert call.status == 2
    assert path in call.err
    assert call.err.count("\n") == 1


def test_square_brackets_in_names_are_shown_as_they_are(panscope: Command):
    assert "'[red]odd[/nonsense].toml'" in panscope("train", "[red]odd[/nonsense].toml").sentence()
    assert r"'a\[b].toml'" in panscope("train", r"a\[b].toml").sentence().replace("\\\\", "\\")
