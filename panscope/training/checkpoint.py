"""Checkpoints: everything needed to resume bit for bit, complete or not there at all.

A checkpoint is a folder `step_00001000` that appears under its name only when all of it is on disk. Inside: one
safetensors file and one JSON file a part (a trainer, the source of activations), and `manifest.json` with a checksum
of each and of itself. The newest two are kept, so that the last complete one is untouched while the next is written.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from panscope.storage.atomic import checksum, replacing_folder, writing
from panscope.storage.sealed import read_json, unsealed, write_json, write_sealed
from panscope.storage.tensors import read_tensors, write_tensors
from panscope.types import UserError

FORMAT = 3
_KEPT = 2
_TENSOR = "tensor:"


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        matches = [re.fullmatch(r"step_(\d+)", name) for name in names]
        return sorted(int(match[1]) for match in matches if match)

    def save(self, step: int, parts: dict[str, dict[str, Any]]) -> None:
        """Write a checkpoint of `parts` (nested dicts of JSON values and tensors), then drop all but the newest two."""
        if step in self.steps():
            return
        with replacing_folder(self._path(step)) as folder:
            checksums = {}
            for number, (name, state) in enumerate(parts.items()):
                tensors: dict[str, Tensor] = {}
                values = _split(state, "", tensors)
                write_tensors(folder / f"{number:04d}.safetensors", tensors)
                write_json(folder / f"{number:04d}.json", {"part": name, "state": values})
            for path in sorted(folder.iterdir()):
                checksums[path.name] = checksum(path)
            manifest = {"format": FORMAT, "step": step, "checksums": checksums}
            write_sealed(folder / "manifest.json", manifest)
        for old in self.steps()[:-_KEPT]:
            with writing(self._path(old)):
                shutil.rmtree(self._path(old))

    def load(self, step: int) -> dict[str, dict[str, Any]]:
        """The parts of the checkpoint of `step`; raises UserError if any of it is missing or changed."""
        folder = self._path(step)
        parts = {}
        for name in self._verified(step):
            path = folder / name
            if path.suffix == ".json":
                record = read_json(path)
                tensors = read_tensors(path.with_suffix(".safetensors"))
                parts[record["part"]] = _join(record["state"], tensors)
        return parts

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def _verified(self, step: int) -> list[str]:
        """The files of the checkpoint of `step`, once all have proved to be as they were written."""
        folder = self._path(step)
        checksums, problem = _checksums(folder, step)
        problem = problem or _first_problem(folder, checksums)
        if problem is None:
            return sorted(checksums)
        others = [other for other in self.steps() if other != step]
        then = f"the checkpoint of step {others[-1]}" if others else "the beginning"
        raise UserError(
            f"the checkpoint {str(folder)!r} is half-written or damaged ({problem}): "
            f"delete that folder and resume again to continue from {then}"
        )


def _checksums(folder: Path, step: int) -> tuple[dict[str, str], str | None]:
    """The checksums in a manifest, or what is wrong with it."""
    path = folder / "manifest.json"
    try:
        found = read_json(path)
        if isinstance(found, dict) and found.keys() == {"step", "checksums"}:
            return {}, f"manifest.json is of an older version of panscope, without a checksum; format {FORMAT} has one"
        manifest = unsealed(path, found)
        if (manifest["format"], manifest["step"]) != (FORMAT, step):
            return (
                {},
                f"manifest.json is of format {manifest['format']} and step {manifest['step']}, not {FORMAT} and {step}",
            )
        return manifest["checksums"], None
    except (UserError, KeyError):
        return {}, "manifest.json is missing or unreadable"


def _first_problem(folder: Path, checksums: dict[str, str]) -> str | None:
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if checksum(path) != expected:
            return f"{name} does not match its checksum"
    return None


def _split(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Move every tensor of a nested value into `tensors`, leaving its name behind."""
    if isinstance(value, Tensor):
        tensors[place] = value
        return _TENSOR + place
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value)
        return {key: _split(item, f"{place}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, f"{place}/{number}", tensors) for number, item in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `_split`."""
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if isinstance(value, dict):
        return {key: _join(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    return value
