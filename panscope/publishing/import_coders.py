"""Other tools' coders as a run folder, which every verb that needs no training takes: eval, geometry, report, export.

`find_coders.py` says what is found in a source. The run appears whole or not at all.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panscope.coders import files as store
from panscope.config import expanded
from panscope.data.documents import DataConfig
from panscope.events import Reporter
from panscope.formats import ImportedCoder, ImportOptions
from panscope.formats.untrusted import read_json
from panscope.lms.facts import ModelFacts, built_in_facts, facts_of, full_hub_id
from panscope.lms.load import LanguageModelConfig
from panscope.planning import names
from panscope.planning.plan import MAX_CONTEXT, SuiteConfig
from panscope.publishing.export import ABOUT, check_free, new_folder
from panscope.publishing.find_coders import FoundCoder, find_all
from panscope.runs.run import Run
from panscope.storage.sealed import write_sealed_toml
from panscope.types import UserError

_LONGEST_TAG = 100
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,119}", re.ASCII)
"""A name that a file may give a coder: it becomes that of a folder."""


@dataclass(frozen=True)
class Imported:
    """What an import came to."""

    model: str
    """The language model that the coders say they were trained on; None where they do not."""
    coders: dict[str, FoundCoder]
    """By name."""
    compared: bool
    """Whether the coders' widths were compared with the model's, which is not done for one that is not here."""


def import_coders(
    sources: Sequence[Path | str],
    out: Path,
    asked: ImportOptions,
    *,
    format: str | None = None,
    revision: str | None = None,
    reporter: Reporter,
) -> Imported:
    """Write every coder at or below the sources, paths or addresses on the hub, into the new run folder `out`.

    Raises UserError for the first that cannot be read, is of another model than the others, or does not fit the model;
    then there is no folder.
    """
    out = expanded(out)
    check_free(out, "out")
    if not sources:
        raise UserError("source is empty: give a file or folder of another tool's coders, or an address on the hub")
    found = find_all(sources, format, revision, reporter)
    with new_folder(out) as fresh:
        return _fill(Run(fresh), out.name, found, asked, reporter)


def _fill(
    run: Run,
    run_name: str,
    found: list[FoundCoder],
    asked: ImportOptions,
    reporter: Reporter,
) -> Imported:
    """Write coder after coder, and then the suite that they make."""
    model: tuple[str, Path] | None = None
    coders: dict[str, FoundCoder] = {}
    context = None
    for one in found:
        foreign = one.format.read(one.path, asked)
        model = _same_model(asked.model or _model_of(foreign), one.path, model)
        language_model = LanguageModelConfig.read({"path": model[0]}, str(one.path))
        facts = _facts(language_model)
        _check_fits(one.path, foreign, facts)
        name = _free(_own_name(foreign, one, asked) or _made_name(foreign, facts), one, coders)
        provenance = {
            "name": name,
            "normaliser": foreign.wired.normaliser.model_dump(mode="json"),
            "model": language_model.model_dump(exclude={"device"}),
            "origin": _plain(foreign.about) | _origin(one),
        }
        store.save(run.coder_folder(name), foreign.wired, foreign.wired.coder, provenance)
        coders[name] = one
        context = context or _stated_context(foreign, facts)
        reporter.say(f"{name}: {one.format.name}, {_said(one)}")
    assert model is not None
    suite = SuiteConfig(
        name=re.sub(r"[^\w.-]+", "-", run_name).strip(".-") or "imported",
        model=LanguageModelConfig(path=model[0]),
        data=DataConfig(context=context or MAX_CONTEXT, held_out=0),
        coders=(),
    )
    write_sealed_toml(run.suite_file, suite.model_dump(mode="json"))
    run.write_status("done")
    return Imported(model[0], coders, compared=_facts(suite.model) is not None)


def _model_of(foreign: ImportedCoder) -> str | None:
    """The language model that the files name."""
    model = foreign.about.get("model")
    return model if isinstance(model, str) else None


def _origin(one: FoundCoder) -> dict[str, str]:
    """The format and the source of a coder, with its commit if it is one of the hub."""
    revision = {} if one.revision is None else {"revision": one.revision}
    return {"format": one.format.name, "source": one.origin} | revision


def _said(one: FoundCoder) -> str:
    """A path or an address on one line of text, whatever bytes the names in it have."""
    source = str(one.path) if one.revision is None else one.origin
    return source if source.isprintable() else repr(source)


def _same_model(model: str | None, path: Path, before: tuple[str, Path] | None) -> tuple[str, Path]:
    """The model of this coder, which is that of the ones before."""
    if model is None:
        raise UserError(f"{str(path)!r} does not say which language model it belongs to: say it by --model")
    try:
        local = expanded(model)
    except UserError as error:
        raise UserError(f"{str(path)!r} names a language model that cannot be: {error}, by --model") from None
    model = str(local.absolute()) if os.path.isdir(local) else full_hub_id(model)
    if before is not None and before[0] != model:
        raise UserError(
            f"{str(path)!r} is of the model {model!r}, {str(before[1])!r} of {before[0]!r}: import them into a run "
            "each, or say which model it is by --model"
        )
    return model, path


def _facts(model: LanguageModelConfig) -> ModelFacts | None:
    """The sizes of a model that is on this machine or in our table; None for any other, as the hub is not asked."""
    is_here = os.path.isdir(model.path) or model.path.startswith("panscope://") or model.path in built_in_facts()
    return facts_of(model) if is_here else None


def _check_fits(path: Path, foreign: ImportedCoder, facts: ModelFacts | None) -> None:
    """Raise UserError unless the sites of the model are as wide as the coder."""
    if facts is None:
        return
    wiring, config = foreign.wired.wiring, foreign.wired.coder.config
    for sites, width in ((wiring.reads, config.d_in), (wiring.predicts, config.d_out)):
        parts = wiring.site_width(width)
        for site in sites:
            if facts.width(site) != parts:
                raise UserError(
                    f"{str(path)!r} takes rows of {parts} numbers at {site}, where the model {facts.name!r} has "
                    f"{facts.width(site)}: say the right ones by --model and --site"
                )


def _own_name(foreign: ImportedCoder, one: FoundCoder, asked: ImportOptions) -> str | None:
    """The name under which Panscope once wrote the coder; None for other tools' files, and for a site said anew."""
    beside = (one.path if one.path.is_dir() else one.path.parent) / ABOUT
    about = foreign.about
    if "name" not in about and beside.is_file():
        written = read_json(beside).get("panscope")
        found = written.get("about") if isinstance(written, dict) else None
        about = found if isinstance(found, dict) else {}
    name = about.get("name")
    is_name = isinstance(name, str) and _NAME.fullmatch(name)
    return name if is_name and not (asked.reads or asked.predicts) else None


def _made_name(foreign: ImportedCoder, facts: ModelFacts | None) -> str:
    """A name as a trained coder would have it, but for the coefficient of a penalty, which no file says."""
    wiring, config = foreign.wired.wiring, foreign.wired.coder.config
    return names.coder_name(wiring, config, facts.n_layers if facts else 0, knows_coefficient=False)


def _free(name: str, one: FoundCoder, taken: dict[str, FoundCoder]) -> str:
    """The name, or where it is taken, the name with the place that the coder was found at."""
    if name not in taken:
        return name
    place = Path(one.place).with_suffix("").as_posix()
    tag = re.sub(r"[^\w-]+", ".", place, flags=re.ASCII)[-_LONGEST_TAG:].strip(".-") or "coder"
    tagged = f"{name}-{tag}"
    return tagged if tagged not in taken else f"{tagged}.{len(taken)}"


def _stated_context(foreign: ImportedCoder, facts: ModelFacts | None) -> int | None:
    """Tokens of a sequence: as the file says, or as the model has them, at most as many as we take by default."""
    metadata = foreign.about.get("metadata")
    said = {**foreign.about, **metadata} if isinstance(metadata, Mapping) else foreign.about
    stated = said.get("context_size")
    if isinstance(stated, int) and stated >= 2 and (facts is None or stated <= facts.context):
        return stated
    return min(facts.context, MAX_CONTEXT) if facts else None


def _plain(value: Any) -> Any:
    """What JSON can hold of what a file says of itself."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
