"""A coder's files, changed and then read, imported and exported under limits of memory and time."""

import contextlib
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from panscope.coders import files as store
from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.publishing.export import export
from panscope.publishing.import_coders import import_coders
from panscope.runs.run import Run
from panscope.types import UserError
from tests.support.hearing import Heard
from tests.support.making import AT_RESID, STANDARDISE, foreign, random_coder

MORE_MEMORY = 250 << 20
LONGEST = 5
NO_BIAS: dict[str, Any] = {"pre_encoder_bias": True, "encoder_bias": False}
MODEL = "someone/pythia-tiny"
"""Of a known family, with sizes that nobody knows."""
CANDIDATES = (
    foreign(random_coder("jumprelu"), model=MODEL),
    foreign(random_coder("topk", **NO_BIAS), model=MODEL),
    foreign(random_coder("topk", **NO_BIAS), normaliser=STANDARDISE, model=MODEL),
    foreign(random_coder("relu"), model=MODEL),
    foreign(random_coder("gated"), model=MODEL),
    foreign(random_coder("matryoshka", pre_encoder_bias=True, prefixes=(0.25, 1.0)), model=MODEL),
)


@dataclass(frozen=True)
class Original:
    """One coder of a format, as it was written and as it is read."""

    folder: Path
    read: ImportedCoder

    def files(self) -> list[Path]:
        return sorted(path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())

    def asked(self) -> ImportOptions:
        """What is to be said to import it: the model only where the files leave it out."""
        return AT_RESID if self.read.about.get("model") else replace(AT_RESID, model=MODEL)


def written(root: Path) -> dict[str, list[Original]]:
    """Every candidate that a format has a place for, by format."""
    found: dict[str, list[Original]] = {}
    for name, format in FORMATS.items():
        for number, candidate in enumerate(CANDIDATES):
            folder = root / f"{name}-{number}"
            with contextlib.suppress(UserError):
                format.write(candidate, folder)
                found.setdefault(name, []).append(Original(folder, format.read(folder, AT_RESID)))
    return found


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Neither memory nor time without end; nothing is written to the file that a link leads to."""

    def stop(*_: object) -> None:
        raise AssertionError(f"it took more than {LONGEST} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY, hard))
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def attacked(name: str, original: Original, change: Callable[[Path, Path], None]) -> ImportedCoder | None:
    """What reading a changed copy of a coder gives: a coder, or None after one good sentence.

    It is imported and exported too: what cannot be read is not imported either, and leaves nothing.
    """
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        (root / "outside").mkdir()
        (root / "outside" / "secret").write_text("keep out")
        folder = root / "inside" / original.folder.name
        shutil.copytree(original.folder, folder)
        change(folder, root / "outside")
        names = sorted(path.name for path in folder.rglob("*"))
        with bounded():
            found = _or_a_sentence(lambda: FORMATS[name].read(folder, AT_RESID))
            FORMATS[name].detect(folder)
        with bounded():
            imported = imported_again(name, folder, original.asked(), root)
        if found is None:
            assert imported is None
        elif imported is not None:
            assert_the_same(imported, found)
        assert [path.name for path in (root / "outside").iterdir()] == ["secret"], "code was run"
        assert (root / "outside" / "secret").read_text() == "keep out"
        assert sorted(path.name for path in folder.rglob("*")) == names
        shutil.rmtree(root / "run", ignore_errors=True)
        shutil.rmtree(root / "out", ignore_errors=True)
        assert sorted(path.name for path in root.iterdir()) == ["inside", "outside"]
        return found


def _or_a_sentence(job: Callable[[], Any]) -> Any:
    """What it gives, or None after one good sentence."""
    try:
        return job()
    except UserError as error:
        assert str(error).isprintable()
        assert 20 < len(str(error)) < 1500, str(error)
        return None


def imported_again(name: str, folder: Path, asked: ImportOptions, root: Path) -> ImportedCoder | None:
    """The coder of the run that the import made; exported again it is a folder, or a sentence."""
    heard = Heard()
    run = root / "run"
    made = _or_a_sentence(lambda: import_coders([folder], run, asked, format=name, reporter=heard))
    if made is None:
        assert not run.exists()
        return None
    "".join(heard.said).encode()
    (coder,) = Run.open(run).coder_names()
    again = _or_a_sentence(lambda: export(run, name, root / "out"))
    assert (root / "out").exists() == (again is not None)
    return ImportedCoder(store.load(run / "coders" / coder))


def assert_the_same(found: ImportedCoder, original: ImportedCoder) -> None:
    assert found.wired.wiring == original.wired.wiring
    assert found.wired.normaliser == original.wired.normaliser
    assert found.wired.coder.config == original.wired.coder.config
    wanted = original.wired.coder.tensors()
    for tensor_name, tensor in found.wired.coder.tensors().items():
        assert tensor.equal(wanted[tensor_name]), tensor_name
