"""Sending a folder to a hub repository so that a failure, or a kill, costs no more than what was under way.

The repository says which files it holds, by sha256 or, for small ones, git's sha1; those are not sent. The others go in
commits of some files, each in the repository whole or not at all. Within a commit that failed, large files that the hub
has received are not sent again either: it knows them by their sha256 before any commit names them. What may pass (a
dropped connection, a 500) is tried again after asking anew what is there, so that no commit whose answer was lost is
made twice.

A repository whose card is another project's is left alone. Of one of ours it is said which files are replaced, and what
earlier publications left in it.

The token is huggingface_hub's own to find and to send: HF_TOKEN, or what `hf auth login` left. Here it is read for one
thing only: to keep it out of whatever is said.
"""

import contextlib
import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, RepoFile
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from panscope.events import Reporter
from panscope.formats.hub import HUB_ERRORS, causes, safe_message
from panscope.publishing.card import README, is_ours
from panscope.types import UserError

ATTEMPTS = 5
"""How often something is tried that may pass, after huggingface_hub's own attempts."""
PAUSE_SECONDS = 2.0
"""Before the second attempt; twice as long before each further one."""
FILES_A_COMMIT, BYTES_A_COMMIT = 100, 4 << 30
"""A commit takes no more; the hub allows about a hundred commits an hour."""
_HUBS_OWN = ".gitattributes"
"""The hub makes it in every repository."""
_NAMED = 20
"""Paths that one line names."""
_PASSING = (408, 429, *range(500, 600))
_TOLD_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})\b")
"""How hf-xet, which large files go by where it is installed, says what the hub answered."""
_LASTING = (OfflineModeIsEnabled, HFValidationError, PermissionError)
"""Of that, what another attempt would not change."""
_THEN = {
    401: "the token is not accepted: make a new one and give it by HF_TOKEN or `hf auth login`",
    403: "the token may not do that: use one with write access to this repository",
    404: "the repository is not there, or this token may not see it",
}
T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """One file to be in the repository."""

    path: str
    """In the repository."""
    local: Path


@dataclass(frozen=True)
class Sent:
    """What sending a folder came to."""

    url: str
    """Where the repository can be looked at."""
    files: int
    """Sent now."""
    there: int
    """Not sent, since the repository held them already."""


def check_repository(name: str) -> str:
    """`name` if it can be a repository's; raises UserError otherwise."""
    with contextlib.suppress(HFValidationError):
        validate_repo_id(name)
        if name.count("/") == 1:
            return name
    raise UserError(f"to is {name!r}, which is no repository of the hub: write it as ORG/NAME, such as me/my-coders")


def check_token() -> None:
    """Raise UserError, before any work is done, where huggingface_hub finds no token."""
    if huggingface_hub.get_token() is None:
        raise UserError(
            "there is no token for the hub: set HF_TOKEN in the environment, or log in once by `hf auth login`"
        )


def send(folder: Path, repository: str, *, private: bool, reporter: Reporter) -> Sent:
    """Bring all files of `folder` into the hub repository, which is made if it is not there; nothing is deleted.

    `README.md` comes last, so a repository with a card is whole. Raises UserError, one sentence without any token,
    where the repository is another project's, or the hub refuses or cannot be reached; the same call then sends
    what is missing.
    """
    check_token()
    found = [File(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]
    files = sorted(found, key=lambda file: (file.path == README, "/" not in file.path, file.path))
    with _quiet():
        hub = _Repository(repository, reporter)
        hub.make(private)
        there = hub.lasting(lambda attempt: hub.files())
        missing = _missing(files, there)
        if README in there and any(file.path == README for file in missing):
            hub.check_card()
        _tell(files, missing, there, reporter)
        groups = list(_groups(missing))
        for number, group in enumerate(groups):
            reporter.say(f"sending {len(group)} files, commit {number + 1} of {len(groups)}")
            hub.commit(group, f"Panscope: {number + 1} of {len(groups)}")
    return Sent(f"{hub.api.endpoint}/{repository}", len(missing), len(files) - len(missing))


class _Repository:
    """One repository of the hub."""

    def __init__(self, name: str, reporter: Reporter) -> None:
        self.name = name
        self.api = HfApi(token=True)
        self._reporter = reporter

    def make(self, private: bool) -> None:
        """See to it that the repository exists, and that it is private where that was asked for."""
        self.lasting(lambda attempt: self.api.create_repo(self.name, private=private or None, exist_ok=True))
        if private and not self.lasting(lambda attempt: self.api.model_info(self.name)).private:
            raise UserError(
                f"private is asked for, but the repository {self.name!r} exists and is public: make it private in its "
                "settings, or publish to another one"
            )

    def files(self) -> dict[str, RepoFile]:
        """What it holds, by path."""
        tree = self.api.list_repo_tree(self.name, recursive=True)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def check_card(self) -> None:
        """Raise UserError unless its card is one of ours."""
        with tempfile.TemporaryDirectory() as folder:
            path = self.lasting(lambda attempt: self.api.hf_hub_download(self.name, README, local_dir=folder))
            text = Path(path).read_text(encoding="utf-8", errors="replace")
        if not is_ours(text):
            raise UserError(
                f"the repository {self.name!r} exists and its {README} was not written by Panscope: publish to another "
                f"name, or delete that {README} on the hub if it may be replaced"
            )

    def commit(self, files: list[File], message: str) -> None:
        """Send files and commit them; on a further attempt only those that are still missing."""

        def once(attempt: int) -> None:
            left = _missing(files, self.files()) if attempt else files
            if left:
                operations = [CommitOperationAdd(file.path, file.local) for file in left]
                self.api.create_commit(self.name, operations, commit_message=message)

        self.lasting(once)

    def lasting(self, job: Callable[[int], T]) -> T:
        """What `job` gives, tried again while what stops it may pass; raises UserError.

        The error is raised when the hub's own is gone, as that carries the request with the token in it.
        """
        sentence = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self._reporter.say(f"{sentence}; trying again")
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                return job(attempt)
            except HUB_ERRORS as error:
                sentence, then, passing = safe_message(error), _then(error), _may_pass(error)
            if not passing:
                raise UserError(f"publishing to {self.name!r} failed: {sentence}; {then}")
        raise UserError(f"publishing to {self.name!r} failed {ATTEMPTS} times: {sentence}; {_AGAIN}")


_AGAIN = "what was sent is kept: the same command continues from there"


def _missing(files: Iterable[File], there: Mapping[str, RepoFile]) -> list[File]:
    """Those of `files` that the repository lacks or holds with other content."""
    return [file for file in files if file.path not in there or not _same(file.local, there[file.path])]


def _tell(files: list[File], missing: list[File], there: Mapping[str, RepoFile], reporter: Reporter) -> None:
    """Say which of its files the repository loses, and what in it is not of this publication: folders, and files."""
    replaced = [file.path for file in missing if file.path in there]
    if replaced:
        reporter.say(f"replacing in the repository: {_listed(replaced)}")
    ours = {file.path for file in files} | {_HUBS_OWN}
    folders = {path.partition("/")[0] for path in ours if "/" in path}
    others = [path for path in sorted(there) if path not in ours]
    left = dict.fromkeys(path if path.partition("/")[0] in folders else _top(path) for path in others)
    if left:
        reporter.say(f"left in the repository, though not of this run: {_listed(list(left))}")


def _top(path: str) -> str:
    """The file at the top, or the folder there that holds it."""
    name, slash, _ = path.partition("/")
    return name + slash


def _listed(paths: list[str]) -> str:
    """All of them, or the first and how many more."""
    more = [f"and {len(paths) - _NAMED:,} more"] * (len(paths) > _NAMED)
    return ", ".join([*paths[:_NAMED], *more])


def _same(local: Path, there: RepoFile) -> bool:
    """Whether a file's content is that of the one in the repository."""
    if local.stat().st_size != there.size:
        return False
    if there.lfs is not None:
        with local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
    content = local.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return blob.hexdigest() == there.blob_id


def _groups(files: list[File]) -> Iterator[list[File]]:
    """The files in order, in lists that a commit takes."""
    group: list[File] = []
    size = 0
    for file in files:
        own = file.local.stat().st_size
        if group and (len(group) == FILES_A_COMMIT or size + own > BYTES_A_COMMIT):
            yield group
            group, size = [], 0
        group.append(file)
        size += own
    if group:
        yield group


def _status(error: BaseException) -> int | None:
    """What the hub answered, where an answer is the reason."""
    for one in causes(error):
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code
        if told := _TOLD_STATUS.search(str(one)):
            return int(told[1])
    return None


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may help."""
    status = _status(error)
    if status is not None:
        return status in _PASSING
    return not any(isinstance(one, _LASTING) for one in causes(error))


def _then(error: BaseException) -> str:
    return _THEN.get(_status(error) or 0, _AGAIN)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """huggingface_hub without bars and warnings of its own: it names addresses that carry signatures."""
    bars, verbosity = not are_progress_bars_disabled(), huggingface_hub.logging.get_verbosity()
    disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()
    try:
        yield
    finally:
        huggingface_hub.logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()
