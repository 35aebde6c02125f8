"""Finding other tools' coders: in files and folders of this machine, and in repositories of the Hugging Face hub.

A source is searched for whatever a format recognises by its names: at most so deep and so many entries, and no link to
a folder is followed. A repository is searched before anything is downloaded, as an outline: its names as empty files.
Only the files that the formats read of the coders found are then downloaded.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from panscope.config import expanded
from panscope.events import Reporter
from panscope.formats import FORMATS, Format, format_named
from panscope.loading import hub
from panscope.loading.hub import HubFiles
from panscope.publishing.export import ABOUT
from panscope.types import UserError

MOST_DEEP, MOST_ENTRIES = 8, 100_000
"""How deep below the source, and at how many files and folders, the search ends."""


@dataclass(frozen=True)
class FoundCoder:
    """Something in a source that a format recognises."""

    path: Path
    """Where it is read: for a coder of the hub, in the local copy of the repository."""
    format: Format
    """The format that it is in."""
    origin: str
    """Where it comes from: its path, or its address on the hub, `org/repo:folder`."""
    place: str
    """Its path within the source."""
    revision: str | None = None
    """The commit, for a coder of the hub."""


def find_all(
    sources: Iterable[Path | str], format: str | None, revision: str | None, reporter: Reporter
) -> list[FoundCoder]:
    """Every coder at or below each source, a path or else an address on the hub; those of the hub are downloaded.

    Raises UserError for a source without a coder, for what cannot be downloaded, and for a revision of a local path.
    """
    found: dict[str, FoundCoder] = {}
    for source in sources:
        path = expanded(source)
        if os.path.exists(path) or not hub.is_address(str(source)):
            if revision is not None:
                raise UserError(f"revision {revision!r} is set, but {str(source)!r} is a local path: omit revision")
            coders = find(path, format)
        else:
            coders = _find_on_hub(str(source), format, revision, reporter)
        found |= {coder.origin: coder for coder in coders}
    return list(found.values())


def find(source: Path, format: str | None = None) -> list[FoundCoder]:
    """Every coder at or below the local `source`; raises UserError if there is none, or no end of searching."""
    source = expanded(source)
    if not os.path.exists(source):
        raise UserError(f"{str(source)!r} does not exist: give a file or folder of another tool's coders")
    formats = list(FORMATS.values()) if format is None else [format_named(format)]
    found = list(_search(source, formats, str(source)))
    if not found and format is not None and source.is_file():
        found = [(source, formats[0])]
    if not found:
        raise _no_coder(str(source), format)
    return [FoundCoder(path, one, str(path.absolute()), _place(path, source)) for path, one in found]


def _find_on_hub(address: str, format: str | None, revision: str | None, reporter: Reporter) -> list[FoundCoder]:
    """The coders that an address means, downloaded."""
    files = hub.list_files(address, revision)
    if files.unreachable is not None:
        reporter.say(f"the hub cannot be reached ({files.unreachable}): using this machine's copy of {files.repo}")
    formats = list(FORMATS.values()) if format is None else [format_named(format)]
    with tempfile.TemporaryDirectory() as folder:
        outline = _outlined(files, Path(folder).resolve())
        found = [one for start in files.folders for one in _search(outline / start, formats, address)]
        if not found and format is not None and all((outline / start).is_file() for start in files.folders):
            found = [(outline / start, formats[0]) for start in files.folders]
        places = [(_inside_outline(path, outline), one) for path, one in found]
        wanted = {place for path, one in found for place in _needed(path, one, outline)}
    if not found:
        raise _no_coder(address, format)
    sizes = [files.sizes[path] for path in wanted if path in files.sizes]
    count = "1 coder" if len(found) == 1 else f"{len(found):,} coders"
    reporter.say(f"{address}: {count}, {sum(sizes) / 1e6:,.1f} MB, at revision {files.commit}")
    copy = files.download(wanted)
    return [_of_hub(files, copy, place, one) for place, one in places]


def _of_hub(files: HubFiles, copy: Path, place: PurePosixPath, format: Format) -> FoundCoder:
    origin = files.repo if place == PurePosixPath(".") else f"{files.repo}:{place}"
    return FoundCoder(copy / place, format, origin, str(place), files.commit)


def _outlined(files: HubFiles, outline: Path) -> Path:
    """The folder `outline` with an empty file for every file at, below and next to what the address means."""
    parents = {start.parent for start in files.folders}
    depth = len(files.folders[0].parent.parts)
    shown = [path for path in files.sizes if PurePosixPath(*path.parts[:depth]) in parents]
    if len(shown) > MOST_ENTRIES:
        raise UserError(f"{files.repo!r} holds {len(shown):,} files, more than {MOST_ENTRIES:,}: give a folder of it")
    for path in shown:
        try:
            (outline / path).parent.mkdir(parents=True, exist_ok=True)
            (outline / path).touch()
        except OSError as error:
            raise UserError(
                f"{files.repo!r} lists the file {str(path)!r}, which cannot exist here: {error.strerror}"
            ) from None
    return outline


def _needed(path: Path, format: Format, outline: Path) -> Iterator[PurePosixPath]:
    """The files of the repository that reading a coder needs; some may not exist."""
    beside = (path if path.is_dir() else path.parent) / ABOUT
    for file in (*format.files(path), beside):
        if file.is_relative_to(outline):
            yield _inside_outline(file, outline)


def _inside_outline(path: Path, outline: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(outline).as_posix())


def _no_coder(source: str, format: str | None) -> UserError:
    of = f"the format {format}" if format else "any format of `panscope formats`"
    return UserError(f"{source!r} holds no coder of {of}: give another folder, or say which by --format")


def _place(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix() if path != source else path.name


def _search(source: Path, formats: list[Format], said: str) -> Iterator[tuple[Path, Format]]:
    """What is recognised, level by level; nothing below a folder that is."""
    level, entries = [source], 0
    for _ in range(MOST_DEEP + 1):
        below: list[Path] = []
        for path in level:
            entries += 1
            if entries > MOST_ENTRIES:
                raise UserError(f"{said!r} holds more than {MOST_ENTRIES:,} files and folders: give a part of it")
            format = next((one for one in formats if one.detect(path)), None)
            if format is not None:
                yield path, format
            elif path.is_dir():
                below += _inside(path)
        level = below


def _inside(folder: Path) -> list[Path]:
    """What a folder holds, in order: folders, files and links to files; a link to a folder could lead anywhere."""
    try:
        with os.scandir(folder) as entries:
            kept = [one.name for one in entries if os.path.isfile(one.path) or one.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be read ({error.strerror}): make it readable, or move it") from None
    return [folder / name for name in sorted(kept) if not name.startswith(".")]
