"""Site names in other tools: TransformerLens hook names, Hugging Face module paths and sparsify hookpoints.

A module path ends with `input` or `output`, as in Gemma Scope 2: `model.layers.3.output`,
`model.layers.3.self_attn.o_proj.input`. TransformerLens' `ln2.hook_normalized` is not a tensor of a Hugging Face
model; its path ends with `output_before_gain`. sparsify's hookpoints are module names relative to the base model,
without the prefix of the language-model class: `layers.3.mlp`.

A module path identifies a site only together with the model family: `model.layers.3.mlp.output` is what the MLP adds to
the residual in Llama, but the input of a post-norm in Gemma. If the family is unknown, a path is resolved only if all
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
"""Model types by a pattern for the lower-case model name without its owner.

The pattern must match the whole name, as a further word may denote another architecture (Llama-3.2-11B-Vision,
Qwen3-30B-A3B, gemma-3n).
"""
_VARIANT = r"(-(base|pt|it|chat|instruct|thinking|hf|deduped|v\d[\d.]*|\d{4}))*"
"""Suffixes after the size that do not affect the architecture."""
_PATHS = "module_paths"
"""Key in `ImportedCoder.about` for the module paths that the file states, by site."""


def lens_name(site: Site) -> str:
    """The TransformerLens hook name of a site: `blocks.3.hook_resid_post`."""
    return f"blocks.{site.layer}.{KINDS[site.kind].lens_name}"


def site_of_lens_name(name: str) -> Site | None:
    """The site of a TransformerLens hook name; None if Panscope has no such site.

    `hook_mlp_in`, the residual before the norm, is such a name. `hook_resid_pre` is the previous block's
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
    """The Hugging Face module path of a site, relative to the whole model, with its suffix `input` or `output`."""
    kind = KINDS[site.kind]
    end = _BEFORE_GAIN if kind.no_gain else kind.end
    return ".".join(part for part in (family.blocks, str(site.layer), kind.module(family), end) if part)


def site_of_module_path(path: str, family: ModelFamily | None = None) -> Site | None:
    """The site of a module path; None if there is none, or if families disagree and `family` is not given.

    A path without a suffix means the module's output.
    """
    ending = _ENDING.fullmatch(path)
    module, end = (ending[1], ending[2]) if ending else (path, "output")
    return _common_site(module, end, "", family)


def hookpoint(site: Site, family: ModelFamily) -> str | None:
    """The sparsify hookpoint whose output is this site: `layers.3.mlp`; None if it is not a module's output."""
    kind = KINDS[site.kind]
    if kind.end != "output" or kind.no_gain:
        return None
    return module_path(site, family).removeprefix(_base_prefix(family)).removesuffix(".output")


def site_of_hookpoint(hookpoint: str, family: ModelFamily | None = None, end: str = "output") -> Site | None:
    """The site at the output, or the input, of a hookpoint; None if there is none, or if families disagree."""
    return _common_site(hookpoint, end, "base", family)


def _base_prefix(family: ModelFamily) -> str:
    """The prefix of the base model's modules: `model.`, `transformer.`."""
    return family.blocks.split(".", 1)[0] + "."


def _common_site(module: str, end: str, count_from: str, family: ModelFamily | None) -> Site | None:
    """The site at the `end` of a module, if it is the same in all families that have the module; otherwise None.

    Module names are relative to the base model if `count_from` is "base".
    """
    found: set[Site | None] = set()
    for one in (family,) if family else FAMILIES:
        blocks = one.blocks.removeprefix(_base_prefix(one)) if count_from == "base" else one.blocks
        match = re.fullmatch(re.escape(blocks) + r"\.(\d{1,4})(?:\.([\w.]+))?", module)
        if match is None:
            continue
        kind, is_known = _kind_at(match[2] or "", end, one)
        if is_known:
            found.add(Site(int(match[1]), kind) if kind else None)
    return found.pop() if len(found) == 1 else None


def _kind_at(module: str, end: str, family: ModelFamily) -> tuple[str | None, bool]:
    """The kind of site at the `end` of a module, and whether the family is known to have that module."""
    if module == family.mlp_norm and end == "output":
        return "mlp_in", True
    for kind, spec in KINDS.items():
        kind_end = _BEFORE_GAIN if spec.no_gain else spec.end
        if spec.module(family) == module and kind_end == end:
            return kind, True
    return None, module in ("", family.w_o, family.attn_end, family.mlp, family.mlp_end, family.mlp_norm)


def find_family(model: str | None, model_type: str | None = None) -> ModelFamily | None:
    """The family of a language model, from its type, its folder or its name; None if it cannot be determined."""
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


def family_of_source(about: Mapping[str, Any]) -> ModelFamily | None:
    """The family of the language model in `about`, from its `model_type`, its folder or its name."""
    model = about.get("model")
    return find_family(model if isinstance(model, str) else None, about.get("model_type"))


def exported_names(foreign: ImportedCoder) -> dict[str, Any]:
    """The metadata in every export: the hook name and module path of each site, and the provenance.

    The top-level names are those of the first site; the entry `panscope` has those of all sites. If the family is
    unknown, module paths are those stated in the file that the coder was imported from, or null.
    """
    wiring, about = foreign.wired.wiring, dict(foreign.about)
    family, stated = family_of_source(about), about.get(_PATHS)

    def names_of_site(site: Site) -> dict[str, str | None]:
        stated_path = stated.get(str(site)) if isinstance(stated, Mapping) else None
        path = module_path(site, family) if family else stated_path if isinstance(stated_path, str) else None
        return {"hook_name": lens_name(site), "hf_hook_name": path}

    reads, predicts = names_of_site(wiring.reads[0]), names_of_site(wiring.predicts[0])
    names: dict[str, Any] = {"model_name": about.get("model"), **reads}
    if wiring.kind.predicts_other:
        names |= {f"{name}_out": value for name, value in predicts.items()}
    names["panscope"] = {
        "wiring": wiring.wiring,
        "reads": [{"site": str(site), **names_of_site(site)} for site in wiring.reads],
        "predicts": [{"site": str(site), **names_of_site(site)} for site in wiring.predicts],
        "about": about,
    }
    return names


def with_exported(options: ImportOptions, names: Mapping[str, Any], where: Path) -> ImportOptions:
    """The user's options, completed from `names` if Panscope exported the file (see `exported_names`).

    Raises UserError if Panscope exported the file `where` but its sites are damaged.
    """
    exported, model = names.get("panscope"), names.get("model_name")
    if not isinstance(exported, dict):
        return options
    sites: dict[str, Any] = {end: exported.get(end) for end in ("reads", "predicts")}
    for end, entries in sites.items():
        if isinstance(entries, list):
            sites[end] = [_site_in(entry) for entry in entries]
    wiring = Wiring.read({"wiring": exported.get("wiring"), **sites}, repr(str(where)))
    if wiring.kind.joins_columns:
        raise UserError(
            f"{str(where)!r} states that it is a crosscoder, which no foreign format can hold; take an undamaged copy"
        )
    reads, predicts = options.sites or wiring.reads, options.predicts
    if predicts is None and len(reads) == 1:
        predicts = wiring.predicts[0] if wiring.kind.predicts_other else reads[0]
    model = options.model or (model if isinstance(model, str) else None)
    return replace(options, reads=reads, predicts=predicts, model=model)


def _site_in(entry: Any) -> Any:
    return entry.get("site") if isinstance(entry, dict) else entry


def stated_module_paths(wiring: Wiring, *ends: tuple[Site | None, Any]) -> dict[str, dict[str, str]]:
    """An entry for `about`: the module paths that a file states for the sites it reads and predicts.

    `ends` are pairs of the site that the file states and its module path. The paths are needed for models of unknown
    families. A path is dropped if the user has named another site than the file.
    """
    paths: dict[str, str] = {}
    for (stated, path), sites in zip(ends, (wiring.reads, wiring.predicts), strict=True):
        if isinstance(path, str) and len(sites) == 1 and stated in (None, sites[0]):
            paths[str(sites[0])] = path
    return {_PATHS: paths} if paths else {}


def stated_sites(names: dict[str, Any], model: str | None = None) -> tuple[Site | None, Site | None]:
    """The sites that `names` (see `exported_names`) say are read and predicted; None if missing or not a known site."""
    model = model or names.get("model_name")
    family = find_family(model if isinstance(model, str) else None)

    def named(suffix: str) -> Site | None:
        lens, module = names.get(f"hook_name{suffix}"), names.get(f"hf_hook_name{suffix}")
        found = site_of_module_path(module, family) if isinstance(module, str) else None
        if found is None and isinstance(lens, str):
            found = site_of_lens_name(lens) or site_of_module_path(lens, family)
        return found

    return named(""), named("_out")
