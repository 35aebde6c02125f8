"""Writes whole run folders, without any training, whose every number is known: what a report is tested on."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from panscope.coders.files import FORMAT
from panscope.storage.atomic import checksum
from panscope.storage.json_lines import JsonLines
from panscope.storage.sealed import write_sealed, write_sealed_toml

LETTERS = {"resid_post": "R", "attn_z": "Z", "mlp_out": "M"}
SCALE = {"resid_post": 1.0, "attn_z": 0.15, "mlp_out": 0.3}
Rows = dict[str, list[Any]]


@dataclass(frozen=True)
class Fake:
    """What a fake run holds."""

    layers: int = 3
    kinds: tuple[str, ...] = ("resid_post", "attn_z", "mlp_out")
    widths: tuple[int, ...] = (512, 1024, 2048)
    sparsities: tuple[int, ...] = (8, 16, 32)
    architectures: tuple[str, ...] = ("topk", "jumprelu")
    labels: tuple[str, ...] = ("text", "long", "instruct", "bf16", "as-trained")
    context: int = 128
    multilayer: bool = True
    transcoder: bool = True
    subsets: tuple[str, ...] = ("books", "news", "code")
    text: str = "stories.jsonl"
    model: str = "tiny"
    seed: int = 0
    geometry: bool = True
    tables: bool = True
    """positions, latents and layers beside eval.json, histograms in it."""
    d: int = 64

    def bare(self) -> "Fake":
        """The same with nothing beside what every evaluation has."""
        return replace(self, tables=False, geometry=False, multilayer=False, transcoder=False)


def write_run(folder: Path, fake: Fake) -> Path:
    """Write a finished run folder; returns it."""
    folder.mkdir(parents=True)
    suite = {"name": folder.name, "tokens": 100_000, "model": {"path": fake.model, "dtype": "float32"}}
    suite |= {"data": {"text": [fake.text], "context": fake.context, "packing": "documents", "held_out": 0.05}}
    write_sealed_toml(folder / "suite.toml", suite | {"coders": [{"width": 64, "sparsity": 8}]})
    names = [_write_coder(folder, fake, *combination) for combination in _combinations(fake)]
    if fake.transcoder:
        wiring = _wiring("transcoder", ["L01.mlp_in_no_gain"], ["L01.mlp_out"])
        names.append(_write(folder, fake, "L01TC-8x-topk-k16", wiring, "topk", 512, 16))
    if fake.multilayer:
        sites = [f"L{layer:02d}.resid_post" for layer in range(fake.layers)]
        wiring = _wiring("multilayer", sites, sites)
        names += [_write(folder, fake, f"all-R-8x-topk-k{k}", wiring, "topk", 512, k) for k in fake.sparsities[:2]]
    _write_log(folder, names)
    if fake.geometry:
        write_geometry(folder, names)
    return folder


def _combinations(fake: Fake) -> list[tuple[int, str, str, int, int]]:
    return [
        (layer, kind, architecture, width, sparsity)
        for layer in range(fake.layers)
        for kind in fake.kinds
        for architecture in fake.architectures
        for width in fake.widths
        for sparsity in fake.sparsities
    ]


def _wiring(wiring: str, reads: list[str], predicts: list[str]) -> dict[str, Any]:
    return {"wiring": wiring, "reads": reads, "predicts": predicts}


def _write_coder(folder: Path, fake: Fake, layer: int, kind: str, architecture: str, width: int, sparsity: int) -> str:
    site = f"L{layer:02d}.{kind}"
    value = f"k{sparsity}" if architecture == "topk" else f"l{sparsity}"
    name = f"L{layer:02d}{LETTERS[kind]}-{width // fake.d}x-{architecture}-{value}"
    return _write(folder, fake, name, _wiring("sae", [site], [site]), architecture, width, sparsity)


def _write(folder: Path, fake: Fake, name: str, wiring: dict, architecture: str, width: int, sparsity: int) -> str:
    place = folder / "coders" / name
    coder = {"architecture": architecture, "d_in": fake.d, "d_out": fake.d, "width": width, "sparsity": float(sparsity)}
    annealed = architecture == "topk" and sparsity != 8
    config = {
        "format": FORMAT,
        "wiring": wiring,
        "coder": coder | {"architecture": "jumprelu"},
        "applies": {},
        "training": {"coder": coder},
        "xxh3": {},
    }
    config |= {
        "name": name,
        "tokens": 100_000,
        "schedule": {"sparsity_from": 64.0, "sparsity_warmup_steps": 40 * annealed},
    }
    write_sealed(place / "config.json", config)
    for label in ("held_out", *fake.labels):
        if label != "as-trained" or architecture == "topk":
            write_evaluation(place, fake, wiring, architecture, width, sparsity, label)
    return name


def write_evaluation(
    place: Path, fake: Fake, wiring: dict, architecture: str, width: int, sparsity: int, label: str
) -> None:
    """Write eval.json of one label and the tables beside it."""
    draw = np.random.default_rng([fake.seed, width, sparsity, len(label), len(place.name), ord(place.name[2])])
    suffix = "" if label == "held_out" else f"-{label}"
    context = fake.context * 2 if label == "long" else fake.context
    sites = {site: numbers(site, architecture, width, sparsity, label, draw) for site in wiring["predicts"]}
    first = next(iter(sites.values()))
    mean = {name: float(np.mean([one[name] for one in sites.values()])) for name in first if name != "intervals"}
    frequencies = 10 ** draw.normal(math.log10(sparsity / width) - 0.4, 0.6, width).clip(-4.5, -0.05)
    counts, edges = np.histogram(np.log10(frequencies), bins=50, range=(-5, 0))
    part = "held_out" if label in ("held_out", "as-trained", "bf16") else "all"
    about = {"text": [fake.text], "part": part, "packing": "documents"}
    about |= {"context": context, "model": fake.model, "label": label, "splice": "content"}
    about |= {"coder_dtype": "bfloat16" if label == "bf16" else "float32", "as_trained": label == "as-trained"}
    content: dict[str, Any] = {"coder": place.name, "evaluated_on": about, "tokens": 16_000, "sequences": 120}
    content |= mean | {"intervals": first["intervals"]} | {"predicted_tokens": 15_000, "dead_window": 16_000}
    if not fake.tables:
        write_sealed(place / f"eval{suffix}.json", content)
        return
    content["frequency"] = {"log10_edges": edges.tolist(), "latents": counts.tolist(), "never": width // 50}
    content["never_fired"] = {"1000": 0.2, "10000": 0.08}
    if len(sites) > 1:
        content["sites"] = sites
    if label == "text":
        content["subsets"] = {
            subset: numbers("L01.resid_post", architecture, width, sparsity, subset, draw) for subset in fake.subsets
        }
    tables = {"positions": _positions(wiring["predicts"], context, sites, draw)}
    tables["latents"] = _latents(frequencies, draw)
    if wiring["wiring"] == "multilayer":
        tables["layers"] = _layers(len(sites), width, draw)
        content["layers"] = {"layer_variance": 4.0, "ratio_latent": 0.5}
    content["files"] = {}
    for name, columns in tables.items():
        file = place / f"{name}{suffix}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
        content["files"][file.name] = checksum(file)
    write_sealed(place / f"eval{suffix}.json", content)


def numbers(
    site: str, architecture: str, width: int, sparsity: int, label: str, draw: np.random.Generator
) -> dict[str, Any]:
    """The flat numbers of one site: smooth in layer, width and sparsity, with a little noise."""
    layer, kind = int(site[1:3]), site[4:]
    worse = {"held_out": 1.0, "as-trained": 0.99, "bf16": 1.002, "text": 1.2, "long": 1.1, "instruct": 1.05}.get(
        label, 1.3
    )
    fvu = 0.5 * sparsity**-0.45 * (512 / width) ** 0.15 * (1 + 0.06 * layer) * worse * float(draw.normal(1, 0.01))
    fvu *= 0.95 if architecture == "jumprelu" else 1.0
    delta = fvu * SCALE[kind] * (1 + 0.1 * layer) * 0.6
    l0 = sparsity * (1.0 if architecture == "topk" and label == "as-trained" else 0.97 + 0.03 * layer)
    clean, zero, mean = 1.9, 1.9 + 4 * SCALE[kind], 1.9 + 3 * SCALE[kind]
    found = {"l0": l0, "l1": l0 * 1.5, "mse": fvu * (layer + 1) * 0.2, "fvu": fvu, "explained_variance": 1 - fvu}
    found |= {"ce_clean": clean, "ce_spliced": clean + delta, "ce_zero_ablated": zero, "ce_mean_ablated": mean}
    found |= {
        "delta_loss": delta,
        "loss_recovered": 1 - delta / (zero - clean),
        "kl": delta * 0.9,
        "cosine": 1 - fvu / 2,
    }
    found |= {"dead_fraction": 0.02 * layer, "dense_fraction": 0.01 + 0.004 * layer}
    intervals = {name: [found[name] * 0.94, found[name] * 1.06] for name in ("fvu", "delta_loss", "mse", "kl")}
    return found | {"intervals": intervals}


def _positions(sites: list[str], context: int, whole: dict[str, Any], draw: np.random.Generator) -> Rows:
    columns: Rows = {
        name: [] for name in ("site", "position", "tokens", "predicted_tokens", "l0", "mse", "fvu", "delta_loss")
    }
    for site in sites:
        for position in range(context):
            tokens = 0 if position == 0 else max(1, 120 - position // 2)
            rise = 1 - math.exp(-position / 12)
            noise = float(draw.normal(1, 0.05))
            values: list[Any] = [site, position, tokens, max(0, tokens - 1)]
            here = [whole[site][name] * rise * noise if tokens else None for name in ("l0", "mse", "fvu", "delta_loss")]
            for name, value in zip(columns, values + here, strict=True):
                columns[name].append(value)
    return columns


def _latents(frequencies: np.ndarray, draw: np.random.Generator) -> Rows:
    width = len(frequencies)
    cosine = draw.beta(3, 6, width)
    columns = {"latent": range(width), "firings": (frequencies * 16_000).astype(int), "frequency": frequencies}
    columns |= {"mean": frequencies + 1, "max": frequencies + 3, "decoder_cosine": cosine, "encoder_cosine": cosine}
    return {name: list(values) for name, values in columns.items()}


def _layers(layers: int, width: int, draw: np.random.Generator) -> Rows:
    centre = draw.uniform(-0.5, layers - 0.5, width)
    share = np.exp(-(((np.arange(layers)[None] - centre[:, None]) / 0.8) ** 2))
    columns: dict[str, Any] = {
        "latent": np.repeat(np.arange(width), layers),
        "layer": np.tile(np.arange(layers), width),
    }
    columns |= {"firings": (share * 100).astype(int).ravel(), "total": (share * 150).ravel()}
    return {name: values.tolist() for name, values in columns.items()}


def _write_log(folder: Path, names: list[str]) -> None:
    lines = []
    for step in range(10, 401, 10):
        for n, name in enumerate(names):
            progress = step / 400
            late = 1.0 if "k8" not in name else 1.5
            line = {"step": step, "rows": step * 250, "coder": name, "loss": 50 * late * math.exp(-4 * progress) + 5}
            line |= {"fvu": 0.1 + 0.5 * math.exp(-5 * progress / late) + 0.001 * n % 0.05, "l0": 16.0}
            line |= {"dead_fraction": 0.3 * math.exp(-4 * progress) * (late - 0.9), "dead_window": 10_000}
            lines.append(line | {"learning_rate": 1e-3, "sparsity": 16.0})
    log = JsonLines(folder / "train.jsonl")
    log.append(lines)
    write_sealed(folder / "status.json", {"stage": "done"} | log.mark())


def write_geometry(folder: Path, names: list[str]) -> None:
    """Write what `panscope geometry` leaves in a run."""
    draw = np.random.default_rng(5)
    narrow, wide = names[0], names[-1] if len(names) < 4 else names[3]
    count = 300
    cosine = draw.beta(6, 3, count)
    matching = {"latent": range(count), "partner": [-1, *range(count - 1)], "cosine": cosine}
    matching |= {"random_cosine": draw.beta(3, 12, count)}
    roles = ["seed"] + ["own"] * 6 + ["other"] * 6 + ["wider"] * 24
    place = draw.normal(size=(2, len(roles)))
    around = {"coder": [narrow] * len(roles), "latent": range(len(roles)), "cosine": np.linspace(1, 0.3, len(roles))}
    around |= {"x": place[0], "y": place[1], "role": roles}
    entries = [
        *(
            _analysis(folder, "matching", {"a": a, "b": wide}, {}, f"matching/{a}--{wide}.parquet", matching)
            for a in names[:4]
        ),
        *(
            _analysis(folder, "neighbourhood", {"coder": a, "latent": 0}, {}, f"neighbourhood/{a}-0.parquet", around)
            for a in names[:4]
        ),
        _analysis(folder, "splitting", {"narrow": narrow, "wide": wide}, SPLITTING, "splitting/a--b.parquet", matching),
        _analysis(folder, "mmcs", {}, dict.fromkeys(names, MMCS), "mmcs.parquet", {"coder": names}),
    ]
    write_sealed(folder / "geometry" / "summary.json", {"analyses": entries})


SPLITTING = {"wide": 1024, "narrow": 512, "new": 0.12, "split": 0.3, "threshold": 0.5}
MMCS = {"mean": 0.42, "sem": 0.01, "random_mean": 0.3, "random_max": 0.4, "jl": 0.9, "above_random": 0.5}


def _analysis(folder: Path, kind: str, about: dict, numbers: dict, name: str, columns: dict) -> dict[str, Any]:
    path = folder / "geometry" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({key: list(values) for key, values in columns.items()}), path)
    about = {"kind": kind, "place": "sae L00.resid_post", "seed": 0, "coders": {}} | about
    return about | {"files": {name: checksum(path)}, "numbers": numbers}
