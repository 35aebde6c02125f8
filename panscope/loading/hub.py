"""Downloading coders from a repository of the Hugging Face hub, `org/repo:folder`, and nothing else.

`fetch` downloads the folder of one coder. An import first lists the files (`list_files`), decides by their names which
it needs, and downloads those. Authentication is left to huggingface_hub (its login or the environment); the token is
never read here.
"""

import contextlib
import glob
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile, RepoFolder

from panscope.formats.hub import HUB_ERRORS, safe_message
from panscope.types import UserError

_MAX_SHOWN = 30
_ADDRESS = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(:(?P<folder>.+))?")


@dataclass(frozen=True)
class HubFiles:
    """The files of one commit of a repository, and those of them that an address means."""

    repo: str
    revision: str | None
    """The branch, tag or commit that was asked for; None for the default branch."""
    commit: str
    """Its commit: 40 hex digits."""
    sizes: Mapping[PurePosixPath, int]
    """Bytes by path: every file of the repository or, if the hub could not be reached, of its local copy."""
    folders: tuple[PurePosixPath, ...]
    """The folders, or files, that the address means; the repository's root if it names none."""
    unreachable: str | None = None
    """Why the hub could not be reached; None if it was."""

    def download(self, paths: Iterable[PurePosixPath]) -> Path:
        """The local copy of the repository, in which those of `paths` that the repository has are downloaded.

        Raises UserError for a failed download, and for a local copy that lacks one of the files.
        """
        patterns = [glob.escape(str(path)) for path in paths]
        copy, reason = None, ""
        try:
            copy = Path(
                huggingface_hub.snapshot_download(
                    self.repo,
                    revision=self.revision,
                    allow_patterns=patterns,
                    local_files_only=self.unreachable is not None,
                )
            )
        except HUB_ERRORS as error:
            reason = safe_message(error)
        if copy is None:
            raise UserError(f"{self.repo!r} cannot be downloaded from the hub: {reason}")
        if copy.name != self.commit:
            raise UserError(f"{self.repo!r} was changed on the hub during the download: run the same command again")
        return copy


def is_address(text: str) -> bool:
    """Whether `text` is written like `org/repo` or `org/repo:folder`."""
    return _ADDRESS.fullmatch(text) is not None


def fetch(address: str, revision: str | None = None) -> Path:
    """The local copy of a coder's folder or, if none is named, of the files in the root of the repository.

    Raises UserError for an invalid address, a failed download, and a folder that does not exist.
    """
    repo, folder = _repo_and_folder(address, "?[]*")
    at_top = folder == PurePosixPath(".")
    allow, ignore = (None, ["*/*"]) if at_top else ([f"{folder}/*"], None)
    copy, reason = None, ""
    try:
        copy = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=allow, ignore_patterns=ignore)
    except HUB_ERRORS as error:
        reason = safe_message(error)
    if copy is None:
        raise UserError(f"{address!r} is not a local folder, and cannot be downloaded from the hub: {reason}")
    found = Path(copy) / folder
    if not found.is_dir() or not any(found.iterdir()):
        raise UserError(f"{repo!r} has no folder {str(folder)!r}: {folders(repo, revision)}")
    return found


def list_files(address: str, revision: str | None = None) -> HubFiles:
    """List the files of a repository; in the folder of `address`, `*` means any characters of one folder's name.

    If the hub cannot be reached, the files are those of its local copy. Raises UserError for an invalid address, a
    repository that does not exist or may not be read, and a folder that does not exist.
    """
    repo, folder = _repo_and_folder(address, "?[]")
    listed, reason, is_away = None, "", False
    try:
        listed = _on_hub(repo, revision)
    except HUB_ERRORS as error:
        reason, is_away = safe_message(error), _is_away(error)
    if listed is None and is_away:
        listed = _in_cache(repo, revision)
    if listed is None:
        copy = ", and there is no copy of it on this machine" if is_away else ""
        raise UserError(f"{address!r} is not a local file or folder, and cannot be read from the hub: {reason}{copy}")
    commit, sizes = listed
    found = _matching(folder, sizes)
    if not found:
        names = sorted({path.parts[0] for path in sizes if len(path.parts) > 1})
        raise UserError(f"{repo!r} has no folder {str(folder)!r}: {_shown(names)}")
    return HubFiles(repo, revision, commit, sizes, found, reason or None)


def _on_hub(repo: str, revision: str | None) -> tuple[str, dict[PurePosixPath, int]]:
    """The commit of a revision, and the sizes of its files."""
    api = huggingface_hub.HfApi()
    commit = api.model_info(repo, revision=revision).sha
    if commit is None:
        raise ValueError("its response states no commit")
    entries = api.list_repo_tree(repo, recursive=True, revision=commit)
    files = {PurePosixPath(entry.path): entry.size for entry in entries if isinstance(entry, RepoFile)}
    for path in files:
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise ValueError(f"its response lists the file {str(path)!r}, which is outside of the repository")
    return commit, files


def _is_away(error: BaseException) -> bool:
    """Whether the hub could not be reached, or is out of order, so that a local copy is the best there is."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError | OfflineModeIsEnabled)


def _in_cache(repo: str, revision: str | None) -> tuple[str, dict[PurePosixPath, int]] | None:
    """The same of the local copy, if there is one."""
    with contextlib.suppress(*HUB_ERRORS):
        copy = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=[], local_files_only=True)
        )
        paths = [path for path in copy.rglob("*") if path.is_file()]
        return copy.name, {PurePosixPath(path.relative_to(copy).as_posix()): path.stat().st_size for path in paths}
    return None


def _matching(folder: PurePosixPath, paths: Iterable[PurePosixPath]) -> tuple[PurePosixPath, ...]:
    """The folders and files that `folder` means, in order."""
    depth = len(folder.parts)
    heads = {PurePosixPath(*path.parts[:depth]) for path in paths if len(path.parts) >= depth}
    return tuple(sorted(head for head in heads if all(map(fnmatchcase, head.parts, folder.parts))))


def _repo_and_folder(address: str, forbidden: str) -> tuple[str, PurePosixPath]:
    """The two parts of an address; raises UserError if it is none, or its folder contains a forbidden character."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address!r} is neither an existing folder nor a hub id: write a hub id as org/repo:coder")
    folder = PurePosixPath(match["folder"] or ".")
    if folder.is_absolute() or ".." in folder.parts or any(mark in str(folder) for mark in forbidden):
        raise UserError(f"{address!r} names the folder {str(folder)!r}: write its path within the repository")
    return match["repo"], folder


def folders(repo: str, revision: str | None = None) -> str:
    """The folders of a repository, as the end of an error message."""
    names: list[str] = []
    with contextlib.suppress(*HUB_ERRORS):
        entries = huggingface_hub.HfApi().list_repo_tree(repo, revision=revision)
        names = sorted(entry.path for entry in entries if isinstance(entry, RepoFolder))
    return _shown(names)


def _shown(names: list[str]) -> str:
    shown = ", ".join(names[:_MAX_SHOWN]) + (f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else "")
    return f"it has {shown}" if names else "look at its files on the hub"
