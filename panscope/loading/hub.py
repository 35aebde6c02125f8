"""Downloading the folder of one coder from a repository of the Hugging Face hub, `org/repo:folder`, and nothing else.

Authentication is left to huggingface_hub (its login or the environment); the token is never read here.
"""

import contextlib
import re
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub.hf_api import RepoFolder

from panscope.formats.hub import HUB_ERRORS, safe_message
from panscope.types import UserError

_MAX_SHOWN = 30
_ADDRESS = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(:(?P<folder>.+))?")


def is_address(text: str) -> bool:
    """Whether `text` is written like `org/repo` or `org/repo:folder`."""
    return _ADDRESS.fullmatch(text) is not None


def fetch(address: str, revision: str | None = None) -> Path:
    """The local copy of a coder's folder or, if none is named, of the files in the root of the repository.

    Raises UserError for an invalid address, a failed download, and a folder that does not exist.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address!r} is neither an existing folder nor a hub id: write a hub id as org/repo:coder")
    folder = PurePosixPath(match["folder"] or ".")
    if folder.is_absolute() or ".." in folder.parts or any(mark in str(folder) for mark in "*?[]"):
        raise UserError(f"{address!r} names the folder {str(folder)!r}: write its path within the repository")
    at_top = folder == PurePosixPath(".")
    allow, ignore = (None, ["*/*"]) if at_top else ([f"{folder}/*"], None)
    copy, reason = None, ""
    try:
        copy = huggingface_hub.snapshot_download(
            match["repo"], revision=revision, allow_patterns=allow, ignore_patterns=ignore
        )
    except HUB_ERRORS as error:
        reason = safe_message(error)
    if copy is None:
        raise UserError(f"{address!r} is not a local folder, and cannot be downloaded from the hub: {reason}")
    found = Path(copy) / folder
    if not found.is_dir() or not any(found.iterdir()):
        raise UserError(f"{match['repo']!r} has no folder {str(folder)!r}: {folders(match['repo'], revision)}")
    return found


def folders(repo: str, revision: str | None = None) -> str:
    """The folders of a repository, as the end of an error message."""
    names: list[str] = []
    with contextlib.suppress(*HUB_ERRORS):
        entries = huggingface_hub.HfApi().list_repo_tree(repo, revision=revision)
        names = sorted(entry.path for entry in entries if isinstance(entry, RepoFolder))
    shown = ", ".join(names[:_MAX_SHOWN]) + (f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else "")
    return f"it has {shown}" if names else "look at its files on the hub"
