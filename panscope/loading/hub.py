"""One coder's folder out of a repository of the Hugging Face hub: `org/repo:folder`, nothing else of it is fetched.

The token, where one is needed, is the hub's own (its login or the environment); it is never read here.
"""

import contextlib
import re
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub.hf_api import RepoFolder

from panscope.formats.hub import HUB_ERRORS, safe_message
from panscope.types import UserError

_MOST_SHOWN = 30
_ADDRESS = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(:(?P<folder>.+))?")


def is_address(text: str) -> bool:
    """Whether `text` is written like `org/repo` or `org/repo:folder`."""
    return _ADDRESS.fullmatch(text) is not None


def fetch(address: str, revision: str | None = None) -> Path:
    """The local copy of a coder's folder; without a folder, of the files at the repository's top.

    Raises UserError for an address that is none, or that cannot be reached or has no such folder.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address!r} is no folder that exists and no hub id: write a hub id as org/repo:coder")
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
        raise UserError(f"{address!r} is no folder here, and cannot be fetched from the hub: {reason}")
    found = Path(copy) / folder
    if not found.is_dir() or not any(found.iterdir()):
        raise UserError(f"{match['repo']!r} has no folder {str(folder)!r}: {folders(match['repo'], revision)}")
    return found


def folders(repo: str, revision: str | None = None) -> str:
    """What can be named of a repository, as the end of a sentence."""
    names: list[str] = []
    with contextlib.suppress(*HUB_ERRORS):
        entries = huggingface_hub.HfApi().list_repo_tree(repo, revision=revision)
        names = sorted(entry.path for entry in entries if isinstance(entry, RepoFolder))
    shown = ", ".join(names[:_MOST_SHOWN]) + (
        f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    )
    return f"it has {shown}" if names else "look at its files on the hub"
