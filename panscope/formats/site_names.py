"""What a site is called elsewhere: TransformerLens' hook name, Hugging Face's module path, sparsify's hookpoint.

A module path ends with which end of the module is meant, as Gemma Scope 2 writes it: `model.layers.3.output`,
`model.layers.3.self_attn.o_proj.input`. What TransformerLens calls `ln2.hook_normalized` is no tensor of a Hugging Face
model; its path ends with `output_before_gain`. sparsify's hookpoints are modules, counted from the base model, so
without the head's own prefix: `layers.3.mlp`.

A module path says a site only together with the family: `model.layers.3.mlp.output` is what the MLP adds to the
residual in Llama, and what goes into a post-norm in Gemma. Where the family is not known, a path is understood if all
families that have such a module agree.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from panscope.coders.wiring import Wiring
from panscope.formats.base import ImportedCoder, ImportOptions
from panscope.formats.untrusted import read_json
from panscope.lms.families import FAMILIES, ModelFamily, family_of
from panscope.site_kinds import KINDS
from panscope.types import Site, UserError

_BEFORE_GAIN = "output_before_gain"
_BLOCK = re.compile(r"blocks\.(\d{1,4})\.([\w.]+)")
_ENDING = re.compile(r"(.*?)\.?(input|output|" + _BEFORE_GAIN + ")")
_SIZE = r"\d+(\.\d+)?[mb]"
_MODEL_TYPES = (
    (rf"gemma-?2-{_SIZE}", "gemma2"),
    (r"gemma-?3-(270m|1b)", "gemma3_text"),
    (rf"gemma-?3-{_SIZE}", "gemma3"),
    (rf"pythia-{_SIZE}|gpt-?neox-20b", "gpt_neox"),
    (r"(distil)?gpt2(-(small|medium|large|xl))?", "gpt2"),
    (rf"((meta-|tiny|code)?llama(-?(2|3(\.[1-3])?))?|deepseek-r1-distill-llama)-{_SIZE}", "llama"),
    (r"mistral-7b", "mistral"),
    (rf"(qwen(1\.5|2|2\.5)(-coder|-math)?|deepseek-r1-distill-qwen)-{_SIZE}", "qwen2"),
    (rf"qwen3-{_SIZE}", "qwen3"),
    (rf"smollm2?-{_SIZE}", "llama"),
    (rf"smollm3-{_SIZE}", "smollm3"),
)
"""Language models whose name, without its owner and in small letters, says their type.

The whole name is compared: a word more may be another architecture under the same name (Llama-3.2-11B-Vision,
Qwen3-30B-A3B, gemma-3n).
"""
_VARIANT = r"(-(base|pt|it|chat|instruct|thinking|hf|deduped|v\d[\d.]*|\d{4}))*"
"""Words after the size that change nothing of the architecture."""
_PATHS = "module_paths"
"""In `ImportedCoder.about`: what a file says of its sites' module paths, by site."""


def lens_name(site: Site) -> str:
    """TransformerLens' hook name of a site: `blocks.3.hook_resid_post`."""
    return f"blocks.{site.layer}.{KINDS[site.kind].lens_name}"


def site_of_lens_name(name: str) -> Site | None:
    """The site that a hook name stands for; None where we have no such site.

    `hook_mlp_in` is such a name: the residual before the norm. `hook_resid_pre` is the block before's
    `hook_resid_post`.
    """
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    layer, hook = int(match[1]), match[2]
    if hook == "hook_resid_pre":
        return Site(layer - 1, "resid_post") if layer else None
    kinds = [kind for kind, known in KINDS.items() if known.lens_name == hook]
    return Site(layer, kinds[0]) if kinds else None


def module_path(site: Site, family: ModelFamily) -> str:
    """The Hugging Face module path of a site, from the whole model, and which end of the module it is."""
    kind = KINDS[site.kind]
    end = _BEFORE_GAIN if kind.no_gain else kind.end
    return ".".join(part for part in (family.blocks, str(site.layer), kind.module(family), end) if part)


def site_of_module_path(path: str, family: ModelFamily | None = None) -> Site | None:
    """The site that a module path stands for; None where there is none, or where families differ and none is given.

    A path without an end means the module's output.
    """
    ending = _ENDING.fullmatch(path)
    module, end = (ending[1], ending[2]) if ending else (path, "output")
    return _agreed(module, end, "", family)


def hookpoint(site: Site, family: ModelFamily) -> str | None:
    """sparsify's hookpoint whose output is this site: `layers.3.mlp`; None where no module's output is."""
    kind = KINDS[site.kind]
    if kind.end != "output" or kind.no_gain:
        return None
    return module_path(site, family).removeprefix(_base(family)).removesuffix(".output")


def site_of_hookpoint(hookpoint: str, family: ModelFamily | None = None, end: str = "output") -> Site | None:
    """The site at the output, or the input, of a hookpoint; None where there is none, or where families differ."""
    return _agreed(hookpoint, end, "base", family)


def _base(family: ModelFamily) -> str:
    """What stands before the base model's own modules: `model.`, `transformer.`."""
    return family.blocks.split(".", 1)[0] + "."


def _agreed(module: str, end: str, count_from: str, family: ModelFamily | None) -> Site | None:
    """The one site that a module's end is in every family that has the module."""
    found: set[Site | None] = set()
    for one in (family,) if family else FAMILIES:
        blocks = one.blocks.removeprefix(_base(one)) if count_from == "base" else one.blocks
        match = re.fullmatch(re.escape(blocks) + r"\.(\d{1,4})(?:\.([\w.]+))?", module)
        if match is None:
            continue
        kind, is_known = _kind_at(match[2] or "", end, one)
        if is_known:
            found.add(Site(int(match[1]), kind) if kind else None)
    return found.pop() if len(found) == 1 else None


def _kind_at(module: str, end: str, family: ModelFamily) -> tuple[str | None, bool]:
    """The kind of site at a module's end, and whether the family is known to have that module."""
    if module == family.mlp_norm and end == "output":
        return "mlp_in", True
    for kind, place in KINDS.items():
        own = _BEFORE_GAIN if place.no_gain else place.end
        if place.module(family) == module and own == end:
            return kind, True
    return None, module in ("", family.w_o, family.attn_end, family.mlp, family.mlp_end, family.mlp_norm)


def family_named(model: str | None, model_type: str | None = None) -> ModelFamily | None:
    """The family of a language model, from its type, its folder or its name; None where they do not tell."""
    if model_type is None and model and os.path.isfile(Path(model) / "config.json"):
        model_type = read_json(Path(model) / "config.json").get("model_type")
    if model_type is None:
        name = (model or "").lower().rsplit("/", 1)[-1]
        types = (found for pattern, found in _MODEL_TYPES if re.fullmatch(f"({pattern}){_VARIANT}", name))
        model_type = next(types, None)
    try:
        return family_of(model_type) if isinstance(model_type, str) else None
    except UserError:
        return None


def family_in(about: Mapping[str, Any]) -> ModelFamily | None:
    """The family of the language model that `about` names, by its `model_type`, its folder or its name."""
    model = about.get("model")
    return family_named(model if isinstance(model, str) else None, about.get("model_type"))


def names_of(foreign: ImportedCoder) -> dict[str, Any]:
    """What everything exported carries: both names of each site it reads and predicts, and where it comes from.

    `hook_name` and its like are those of the first site; of a coder that reads several, `panscope` has the others.
    Where the family is not known, module paths are those of the file that the coder came from, or null.
    """
    wiring, about = foreign.wired.wiring, dict(foreign.about)
    family, said = family_in(about), about.get(_PATHS)

    def both(site: Site) -> dict[str, str | None]:
        came_with = said.get(str(site)) if isinstance(said, Mapping) else None
        path = module_path(site, family) if family else came_with if isinstance(came_with, str) else None
        return {"hook_name": lens_name(site), "hf_hook_name": path}

    reads, predicts = both(wiring.reads[0]), both(wiring.predicts[0])
    names: dict[str, Any] = {"model_name": about.get("model"), **reads}
    if wiring.kind.predicts_other:
        names |= {f"{name}_out": value for name, value in predicts.items()}
    names["panscope"] = {
        "wiring": wiring.wiring,
        "reads": [{"site": str(site), **both(site)} for site in wiring.reads],
        "predicts": [{"site": str(site), **both(site)} for site in wiring.predicts],
        "about": about,
    }
    return names


def with_own(asked: ImportOptions, names: Mapping[str, Any], where: Path) -> ImportOptions:
    """What the user says and, of what they leave open, what we wrote ourselves: `names` are `names_of`'s if it is ours.

    Raises UserError where the file `where` is ours and its sites are damaged.
    """
    own, model = names.get("panscope"), names.get("model_name")
    if not isinstance(own, dict):
        return asked
    ends = {end: own.get(end) for end in ("reads", "predicts")}
    sites = {end: [_site_in(entry) for entry in said] if isinstance(said, list) else said for end, said in ends.items()}
    wiring = Wiring.read({"wiring": own.get("wiring"), **sites}, repr(str(where)))
    if wiring.kind.joins_columns:
        raise UserError(
            f"{str(where)!r} says it is a crosscoder, which no file of other tools is; take an undamaged copy"
        )
    reads, predicts = asked.sites or wiring.reads, asked.predicts
    if predicts is None and len(reads) == 1:
        predicts = wiring.predicts[0] if wiring.kind.predicts_other else reads[0]
    model = asked.model or (model if isinstance(model, str) else None)
    return replace(asked, reads=reads, predicts=predicts, model=model)


def _site_in(entry: Any) -> Any:
    return entry.get("site") if isinstance(entry, dict) else entry


def paths_said(wiring: Wiring, *ends: tuple[Site | None, Any]) -> dict[str, dict[str, str]]:
    """For `about`: a file's own module paths of what it reads and predicts, each with the site that it says.

    Kept for models whose family we do not know. A path at a site that the user has named otherwise is not.
    """
    paths: dict[str, str] = {}
    for (said, path), sites in zip(ends, (wiring.reads, wiring.predicts), strict=True):
        if isinstance(path, str) and len(sites) == 1 and said in (None, sites[0]):
            paths[str(sites[0])] = path
    return {_PATHS: paths} if paths else {}


def sites_named(names: dict[str, Any], model: str | None = None) -> tuple[Site | None, Site | None]:
    """The sites that a file with `names_of`'s names reads and predicts; None for what it does not say, or is none."""
    model = model or names.get("model_name")
    family = family_named(model if isinstance(model, str) else None)

    def named(suffix: str) -> Site | None:
        lens, module = names.get(f"hook_name{suffix}"), names.get(f"hf_hook_name{suffix}")
        found = site_of_module_path(module, family) if isinstance(module, str) else None
        if found is None and isinstance(lens, str):
            found = site_of_lens_name(lens) or site_of_module_path(lens, family)
        return found

    return named(""), named("_out")
