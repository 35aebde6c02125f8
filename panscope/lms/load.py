"""Loading a language model: the built-in one, one in a local folder, or one from the Hugging Face hub.

A local folder is read without any network request. transformers is used through its lazy attributes, so that importing
this file does not import the code of every model.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError

from panscope import builtin
from panscope.config import Config, expanded
from panscope.lms.families import family_of
from panscope.lms.identity import weight_files
from panscope.lms.model import LanguageModel
from panscope.lms.tokenizer import HfTokenizer
from panscope.types import UserError

_BUILT_IN = "panscope://"
_HUB_SECONDS = 10.0
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


class LanguageModelConfig(Config):
    """The language model: the `[model]` table of a suite."""

    path: str = "panscope://demo"
    """The built-in model (`panscope://demo`), a local folder, or a Hugging Face hub id; a folder takes precedence."""
    revision: str | None = None
    """The branch, tag or commit of a hub id."""
    device: str = "auto"
    """The device to run it on, as torch names devices; `auto` is `cuda` if there is one, else `cpu`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype of its parameters and activations."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """The attention implementation; default: `sdpa`, or `eager` for Gemma 2, which `sdpa` does not support."""


def load(config: LanguageModelConfig | Path | str) -> LanguageModel:
    """The language model, in `eval` mode and frozen; a path or hub id alone is loaded with default options.

    Raises UserError if there is no such model, if its family or attention implementation is not supported, if weights
    are missing, or if the device does not exist.
    """
    if not isinstance(config, LanguageModelConfig):
        config = LanguageModelConfig(path=str(config))
    device = named_device(config.device)
    source, options = pretrained(config)
    with as_user_error(config):
        model_config = transformers.AutoConfig.from_pretrained(source, **options)
    attention = _attention(config, model_config.model_type)
    with as_user_error(config), _quiet(options["local_files_only"]):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        options |= {"config": model_config, "output_loading_info": True}
        options |= {"dtype": getattr(torch, config.dtype), "attn_implementation": attention}
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(source, **options)
    model, report = loaded
    _check_complete(config, report)
    files = weight_files(source, config.revision, getattr(model_config, "transformers_weights", None))
    return LanguageModel(model.to(device), tokenizer, files)


def load_tokenizer(config: LanguageModelConfig) -> HfTokenizer:
    """The tokenizer alone, from a local folder or the hub's local cache; nothing is downloaded.

    Raises UserError if it is in neither.
    """
    source, local = locate(config)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if not local:
        options["revision"] = config.revision
    with as_user_error(config):
        model_config = transformers.AutoConfig.from_pretrained(source, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    return HfTokenizer(tokenizer, model_config.get_text_config())


def memory_bytes(config: LanguageModelConfig) -> int:
    """Total memory in bytes of the device that `config` names, used or not; raises UserError if there is none."""
    device = named_device(config.device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_of(config: LanguageModelConfig) -> torch.device:
    """The device that `config` names; raises UserError if there is no such device."""
    return named_device(config.device)


def named_device(name: torch.device | str) -> torch.device:
    """The torch device of that name; `auto` is `cuda` if there is one, else `cpu`.

    Raises UserError if the name is not valid or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {str(name)!r} cannot be used on this machine: set it to auto, cpu or a device that it has"
        ) from error


def locate(config: LanguageModelConfig) -> tuple[str, bool]:
    """The folder or hub id to load from, and whether it is a folder."""
    if config.path.startswith(_BUILT_IN):
        if config.path != f"{_BUILT_IN}demo":
            raise UserError(f"path {config.path!r} is not a built-in model: the only one is panscope://demo")
        return _folder(config, builtin.DEMO_MODEL)
    folder = expanded(config.path)
    if os.path.isdir(folder):
        return _folder(config, folder)
    if os.path.exists(folder) or not _HUB_ID.fullmatch(config.path):
        raise UserError(
            f"path {config.path!r} is not a folder that exists: give a folder with a Hugging Face model or a hub id"
        )
    return config.path, False


def pretrained(config: LanguageModelConfig) -> tuple[str, dict[str, Any]]:
    """The arguments of transformers' `from_pretrained`: the folder or hub id, and keyword options.

    Raises UserError, after one request, for a hub id that is not in the local cache when the hub cannot be reached:
    transformers would retry many times and log each failure.
    """
    source, local = locate(config)
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    if local:
        return source, options
    with as_user_error(config):
        found = huggingface_hub.try_to_load_from_cache(source, "config.json", revision=config.revision)
        failure = None if isinstance(found, str) else _connection_failure(config)
    if failure:
        raise UserError(
            f"path {config.path!r} is not a local folder, and the Hugging Face hub cannot be reached to look for a "
            f"model of that name ({failure}): give a folder, or go online"
        )
    return source, options | {"revision": config.revision}


def _connection_failure(config: LanguageModelConfig) -> str | None:
    """Why the hub does not respond; None if it responds, with any status."""
    try:
        huggingface_hub.HfApi().model_info(config.path, revision=config.revision, timeout=_HUB_SECONDS)
    except HfHubHTTPError:
        return None
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        return _first_line(error) or type(error).__name__
    return None


def _folder(config: LanguageModelConfig, folder: Path) -> tuple[str, bool]:
    if config.revision is not None:
        raise UserError(f"revision {config.revision!r} is set, but {config.path!r} is a folder: leave revision out")
    return str(folder), True


def _attention(config: LanguageModelConfig, model_type: str) -> str:
    """The implementation to use; raises UserError for one that is not correct for this family or dtype."""
    family = family_of(model_type)
    if config.attention is None:
        return family.attention[0]
    if config.attention not in family.attention:
        choices = " or ".join(family.attention)
        raise UserError(f"attention {config.attention!r} does not support {family.name}: set it to {choices}")
    if config.attention == "flash_attention_2" and config.dtype == "float32":
        raise UserError(f"attention {config.attention!r} cannot use dtype 'float32': set dtype to bfloat16 or float16")
    return config.attention


def _check_complete(config: LanguageModelConfig, report: dict[str, Any]) -> None:
    """Raise UserError for a model with missing weights, which transformers would initialise at random."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"path {config.path!r} holds a model that lacks the weights {missing[0]!r} ({len(missing)} missing): "
            "give a complete model"
        )


@contextmanager
def as_user_error(config: LanguageModelConfig) -> Iterator[None]:
    """Convert transformers' errors about a missing, unreadable or unreachable model into a UserError."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"attention {config.attention!r} or path {config.path!r} needs a package that is not installed: "
            f"install it, or choose another attention or model (transformers: {_first_line(error)})"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        revision = "" if config.revision is None else f" at revision {config.revision!r}"
        raise UserError(
            f"path {config.path!r}{revision} cannot be loaded: give a folder with a Hugging Face model, or a hub id "
            f"that can be reached (transformers: {_first_line(error)})"
        ) from error


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Hide transformers' progress bars while a local folder is read; downloads show theirs on stderr."""
    logging = transformers.utils.logging
    hide = local and logging.is_progress_bar_enabled()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
