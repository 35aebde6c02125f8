"""Loading: local folders without a network, the tokenizer's ids, and the error message of each mistake."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
import torch
import transformers

from panscope import builtin
from panscope.lms.load import LanguageModelConfig, load, memory_bytes, pretrained
from panscope.lms.model import LanguageModel
from panscope.types import Site, UserError

Save = Callable[[str, Path], Path]


pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def folder(save_tiny: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("llama"))


def config(path: Path | str, **fields: Any) -> LanguageModelConfig:
    return LanguageModelConfig.model_validate({"path": str(path), "device": "cpu"} | fields)


def refusal(chosen: LanguageModelConfig) -> str:
    with pytest.raises(UserError) as error:
        load(chosen)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_folder_is_loaded_as_it_was_saved(
    folder: Path, make_lm: Callable[[str], LanguageModel], tokens: Any, capfd: pytest.CaptureFixture[str]
):
    lm = load(config(folder))
    logits, expected = lm.run(*tokens, logits=True).logits, make_lm("llama").run(*tokens, logits=True).logits
    assert logits is not None
    assert expected is not None
    assert torch.equal(logits, expected)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_dtype_and_attention_are_the_asked_ones(folder: Path, tokens: Any):
    lm = load(config(folder, dtype="bfloat16", attention="eager"))
    assert lm.dtype == torch.bfloat16
    assert lm.model.config._attn_implementation == "eager"
    assert lm.run(*tokens, read=[Site(0, "attn_z")]).activations[Site(0, "attn_z")].dtype == torch.bfloat16
    assert load(config(folder)).model.config._attn_implementation == "sdpa"


def test_built_in_model_is_the_demo_folder(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(builtin, "DEMO_MODEL", folder)
    assert load(LanguageModelConfig(device="cpu")).n_layers == 3
    assert "panscope://other" in refusal(config("panscope://other"))


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "a/b/c", "~/no-such-folder-here"])
def test_missing_folder(path: str):
    assert f"path {path!r} is not a folder that exists" in refusal(config(path))


def test_a_file_is_no_folder(folder: Path):
    assert "is not a folder that exists" in refusal(config(folder / "config.json"))


def test_hub_id_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(config("no-such-owner/no-such-model", revision="v2"))
    assert "path 'no-such-owner/no-such-model' is not a local folder, and the Hugging Face hub" in message


@pytest.mark.parametrize("name", ["my..model", "a--b/c", "foo.", "name-", "x" * 120, "été/modèle"])
def test_names_that_no_hub_has(name: str, no_network: None):
    with pytest.raises(UserError, match=r"cannot be loaded|is not a folder that exists"):
        load(LanguageModelConfig(path=name))


def test_the_hub_is_asked_once_where_it_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, caplog, capfd):
    """And nothing is printed but the error message."""
    asked: list[str] = []

    def unreachable(self: object, request: httpx2.Request) -> None:
        asked.append(request.url.host)
        raise httpx2.ConnectError("Name or service not known")

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", unreachable)
    message = refusal(config("no-such-owner/no-such-model"))
    assert (
        "cannot be reached to look for a model of that name (Name or service not known): give a folder, or" in message
    )
    assert asked == ["huggingface.co"] and caplog.text == ""
    assert capfd.readouterr() == ("", "")


def test_a_model_that_is_in_the_cache_is_not_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch, no_network: None):
    cached = str(folder / "config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names, revision: cached)
    assert pretrained(config("owner/model", revision="abc"))[1]["revision"] == "abc"


def test_what_the_hub_says_of_a_model_is_transformers_to_tell(monkeypatch: pytest.MonkeyPatch):
    def none_there(self: object, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(404, headers={"X-Error-Code": "RepoNotFound"}, request=request)

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", none_there)
    assert "path 'no-such-owner/no-such-model' cannot be loaded" in refusal(config("no-such-owner/no-such-model"))


def test_hub_id_is_asked_for_with_its_revision(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[Any, ...]] = []

    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        real = getattr(transformers, name).from_pretrained

        def pretend(source: Any, *, name: str = name, real: Any = real, **options: Any) -> Any:
            if source == folder:  # the real functions call each other
                return real(source, **options)
            asked.append((name, source, options.pop("revision"), options.pop("local_files_only")))
            return real(folder, **options)

        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", pretend)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, path, revision, timeout: None)
    assert load(config("owner/model", revision="abc")).n_layers == 3
    names = ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"]
    assert asked == [(name, "owner/model", "abc", False) for name in names]


def test_folder_has_no_revision(folder: Path):
    assert "revision 'main' is set" in refusal(config(folder, revision="main"))


def test_folder_without_a_model(tmp_path: Path):
    assert "cannot be loaded" in refusal(config(tmp_path))


def test_folder_without_a_tokenizer(save_tiny: Save, tmp_path: Path):
    save_tiny("llama", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    assert "cannot be loaded" in refusal(config(tmp_path))


def test_damaged_weights(save_tiny: Save, tmp_path: Path):
    weights = save_tiny("llama", tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cannot be loaded" in refusal(config(tmp_path))


def test_missing_weights_are_not_made_up(save_tiny: Save, tmp_path: Path):
    save_tiny("llama", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 4}))
    assert "that lacks the weights 'model.layers.3" in refusal(config(tmp_path))


def test_unknown_family(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    assert "model type 'opt' is not supported: use a model of one of the types gpt2" in refusal(config(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows"}')
    assert "nobody-knows" in refusal(config(tmp_path))


def test_gemma2_is_not_computed_without_its_softcap(save_tiny: Save, tmp_path: Path, tokens: Any):
    save_tiny("gemma2", tmp_path)
    asked = config(tmp_path, attention="sdpa")
    assert "attention 'sdpa' does not support Gemma 2: set it to eager" in refusal(asked)
    by_default = load(config(tmp_path))
    assert by_default.model.config._attn_implementation == "eager"
    assert by_default.run(*tokens, logits=True).logits is not None


def test_flash_attention_wants_a_half_type_and_its_package(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert "set dtype to bfloat16 or float16" in refusal(config(folder, attention="flash_attention_2"))

    def missing(*arguments: Any, **options: Any) -> None:
        raise ImportError("the package flash_attn is missing\nand more")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", missing)
    message = refusal(config(folder, attention="flash_attention_2", dtype="bfloat16"))
    assert "attention 'flash_attention_2' or path" in message
    assert message.endswith("(transformers: the package flash_attn is missing)")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_device_that_does_not_exist(folder: Path, device: str):
    assert f"device {device!r} cannot be used on this machine" in refusal(config(folder, device=device))


def test_memory_is_that_of_the_device_and_needs_no_model():
    """On the CPU, the total in /proc."""
    found = memory_bytes(config("./nothing"))
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        kib = int(meminfo.read_text().split("MemTotal:")[1].split()[0])
        assert found == kib * 1024
    assert found > 2**28
    with pytest.raises(UserError, match="device 'cuda:99' cannot be used on this machine"):
        memory_bytes(config("./nothing", device="cuda:99"))


def test_tokenizer_adds_nothing(folder: Path):
    tokenizer = load(config(folder)).tokenizer
    assert tokenizer.encode(["w3 w4", "", "w5"]) == [[3, 4], [], [5]]
    assert tokenizer.encode([]) == []
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.special_ids) == (1, 2, {0, 1, 2})


def test_tokenizer_falls_back_on_the_config(save_tiny: Save, tmp_path: Path):
    save_tiny("llama", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if not key.endswith("_token")}
    path.write_text(json.dumps(kept))
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"bos_token_id": 5, "eos_token_id": [7, 8, 40], "pad_token_id": 9})
    )
    tokenizer = load(config(tmp_path)).tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id) == (5, 7)
    assert tokenizer.special_ids == {5, 7, 8, 9}  # not 40: the vocabulary ends at 39


def test_tokenizers_of_the_trained_models(shared: Path):
    shakespeare = load(config(shared / "models" / "tinygpt-shakespeare")).tokenizer
    assert (shakespeare.bos_id, shakespeare.eos_id, shakespeare.special_ids) == (None, None, frozenset())
    assert len(shakespeare.encode(["to be or not"])[0]) == len("to be or not")
    stories = load(config(shared / "models" / "stories260K")).tokenizer
    assert (stories.bos_id, stories.eos_id) == (1, 2)
    assert not stories.special_ids.intersection(stories.encode(["Once upon a time"])[0])


@pytest.mark.parametrize(("name", "nats"), [("stories260K", 1.26), ("TinyStories-656K", 2.82)])
def test_trained_model_predicts_stories(shared: Path, name: str, nats: float):
    """The loss on the first stories is close to the one documented in the folder, so the weights are those trained."""
    lm = load(config(shared / "models" / name))
    lines = (shared / "text" / "tinystories.jsonl").read_text().splitlines()[:8]
    assert lm.tokenizer.bos_id is not None
    ids = [[lm.tokenizer.bos_id, *text][:200] for text in lm.tokenizer.encode([json.loads(x)["text"] for x in lines])]
    losses = []
    for sequence in ids:
        tokens = torch.tensor([sequence])
        logits = lm.run(tokens, torch.ones_like(tokens, dtype=torch.bool), logits=True).logits
        assert logits is not None
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="none"))
    assert abs(torch.cat(losses).mean().item() - nats) < 0.25  # 8 truncated stories instead of 50 whole ones
