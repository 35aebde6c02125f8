"""What an evaluation must find, from the definitions alone: float64, one token at a time, no code of the evaluation.

Every number is written as a function of how much each sequence counts. With 1 for all of them it is the number; how it
changes with one of them is that sequence's influence I_s, and n / (n - 1) times the sum of (I_s - mean I)^2 is the
number's variance (the infinitesimal jackknife): the interval, without any covariance of sums.

Shape letters: D width of a site, V vocabulary, F latents, T tokens of a sequence.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from panscope.types import Site

Row = np.ndarray
Place = tuple[Site, int]
Forward = Callable[[list[int], Mapping[Place, Row]], tuple[dict[Place, Row], np.ndarray]]
"""One sequence through the model with the rows at some places replaced: the rows that were there, and logits [T, V]."""
BY_POSITION = (
    *("l0", "l1", "mse", "fvu", "explained_variance", "cosine"),
    *("ce_clean", "ce_spliced", "ce_zero_ablated", "ce_mean_ablated", "delta_loss", "loss_recovered"),
    *("kl", "kl_reverse", "kl_zero_ablated"),
)
Z = 1.959963984540054
STEP = 1e-4


@dataclass(frozen=True)
class Text:
    """Sequences of token ids, padded on the right, and the document of each token."""

    sequences: list[list[int]]
    documents: list[list[int]]
    special: frozenset[int]
    """Ids that are not content."""
    padding: int


@dataclass(frozen=True)
class Asked:
    """What differs between evaluations."""

    splice: str = "content"
    loss_mask: str = "target"
    probes: int = 0
    subsets: tuple[str, ...] = ("",)
    subset_of: Callable[[int], int] = lambda document: 0
    windows: tuple[int, ...] = ()
    step: float = 1e-5
    """By which a row is moved either way, to find the gradient at a probed token."""


@dataclass(frozen=True)
class Coded:
    """A coder of one site: what it does to one row."""

    reads: Site
    predicts: Site
    row: Callable[[Row], tuple[Row, Row]]
    """x [D] -> codes [F], y_hat [D]."""
    W_dec: np.ndarray
    """[F, D]."""


@dataclass(frozen=True)
class Token:
    """One token and the numbers measured at it."""

    sequence: int
    position: int
    subset: int
    of: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Group:
    """The tokens that numbers are over."""

    rows: list[Token]
    predictions: list[Token]
    probes: list[Token]

    def only(self, keep: Callable[[Token], bool]) -> "Group":
        return Group(
            *([token for token in tokens if keep(token)] for tokens in (self.rows, self.predictions, self.probes))
        )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[T, V]."""
    return np.array([row - row.max() - math.log(np.exp(row - row.max()).sum()) for row in logits])


def unpadded(text: Text, n: int) -> list[int]:
    return [token for token in text.sequences[n] if token != text.padding]


def content(text: Text, n: int) -> list[int]:
    """The positions of content tokens."""
    return [t for t, token in enumerate(text.sequences[n]) if token not in text.special]


def judged_places(text: Text, n: int, loss_mask: str) -> list[int]:
    """The positions t whose prediction of t + 1 counts."""
    real, own = len(unpadded(text, n)), content(text, n)
    return [t for t in range(real - 1) if (t + 1 if loss_mask == "target" else t) in own]


def measured(forward: Forward, text: Text, coded: Coded, asked: Asked) -> Group:
    """Every number of every token."""
    every = range(len(text.sequences))
    clean = [forward(unpadded(text, n), {}) for n in every]
    rows = [(n, t) for n in every for t in content(text, n)]
    y = {(n, t): clean[n][0][coded.predicts, t] for n, t in rows}
    mean = sum(y.values(), np.zeros(coded.W_dec.shape[1])) / len(y)
    replaced = rows if asked.splice == "content" else [(n, t) for n in every for t in range(len(unpadded(text, n)))]
    made = {(n, t): coded.row(clean[n][0][coded.reads, t]) for n, t in replaced}

    def with_rows(row: Callable[[int, int], Row]) -> list[np.ndarray]:
        """The log-probabilities [T, V] of each sequence, with a row put at every place that is replaced."""
        put: list[dict[Place, Row]] = [{} for _ in every]
        for n, t in replaced:
            put[n][coded.predicts, t] = row(n, t)
        return [log_softmax(forward(unpadded(text, n), put[n])[1]) for n in every]

    passes = {
        "clean": [log_softmax(logits) for _, logits in clean],
        "spliced": with_rows(lambda n, t: made[n, t][1]),
        "zero": with_rows(lambda n, t: np.zeros_like(mean)),
        "mean": with_rows(lambda n, t: mean),
    }

    def token(n: int, t: int, *, ahead: int = 0, **of: Any) -> Token:
        return Token(n, t, asked.subset_of(text.documents[n][t + ahead]), of)

    predictions = [(n, t) for n in every for t in judged_places(text, n, asked.loss_mask)]
    ahead = int(asked.loss_mask == "target")
    return Group(
        [token(n, t, **of_row(y[n, t], made[n, t][1], mean), codes=made[n, t][0]) for n, t in rows],
        [token(n, t, ahead=ahead, **of_prediction(passes, text, n, t)) for n, t in predictions],
        [
            token(n, t, uniformity=value)
            for n, t in probed(text, asked)
            if (value := uniformity(forward, text, coded, asked.step, (n, t), made[n, t][0])) is not None
        ],
    )


def of_row(y: Row, y_hat: Row, mean: Row) -> dict[str, Any]:
    return {"y": y, "y_hat": y_hat, "mean": mean}


def of_prediction(passes: dict[str, list[np.ndarray]], text: Text, n: int, t: int) -> dict[str, float]:
    """The losses and divergences of one prediction."""
    logs = {name: log_probs[n][t] for name, log_probs in passes.items()}
    p = np.exp(logs["clean"])
    return {f"ce_{name}": -log[text.sequences[n][t + 1]] for name, log in logs.items()} | {
        "kl": (p * (logs["clean"] - logs["spliced"])).sum(),
        "kl_reverse": (np.exp(logs["spliced"]) * (logs["spliced"] - logs["clean"])).sum(),
        "kl_zero": (p * (logs["clean"] - logs["zero"])).sum(),
    }


def probed(text: Text, asked: Asked) -> list[tuple[int, int]]:
    """One prediction from a content token in each of the first sequences, drawn with the sequence's number as seed."""
    chosen = []
    for n in range(min(asked.probes, len(text.sequences))):
        places = sorted({*judged_places(text, n, asked.loss_mask)} & {*content(text, n)})
        if places:
            draw = torch.randint(len(places), (), generator=torch.Generator().manual_seed(n))
            chosen.append((n, places[int(draw)]))
    return chosen


def uniformity(
    forward: Forward, text: Text, coded: Coded, step: float, place: tuple[int, int], codes: Row
) -> float | None:
    """exp(entropy(p)) / how many matter, with p the latents' shares in the mean-centred logit, by small steps."""
    n, t = place
    ids = unpadded(text, n)
    own = forward(ids, {})[0][coded.predicts, t]

    def centred_logit(row: Row) -> float:
        logits = forward(ids, {(coded.predicts, t): row})[1][t]
        return logits[ids[t + 1]] - logits.mean()

    steps = step * np.eye(len(own))
    gradient = np.array([centred_logit(own + one) - centred_logit(own - one) for one in steps]) / (2 * step)
    parts = [abs(codes[f] * (coded.W_dec[f] @ gradient)) for f in range(len(codes)) if codes[f] > 0]
    parts = [part / sum(parts) for part in parts if part > 0]
    return math.exp(-math.fsum(p * math.log(p) for p in parts)) / len(parts) if parts else None


def over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def counts_of(group: Group) -> dict[str, int]:
    return {
        "tokens": len(group.rows),
        "predicted_tokens": len(group.predictions),
        "probed_tokens": len(group.probes),
        "sequences": len({row.sequence for row in group.rows}),
    }


def numbers_of(group: Group, counts: Sequence[float]) -> dict[str, float]:
    """Every number, where sequence n counts `counts[n]` times."""
    return _of_rows(group.rows, counts) | _of_predictions(group, counts) | {
        "uniformity": _mean(group.probes, counts, lambda o: o["uniformity"])
    }  # fmt: skip


Value = Callable[[dict[str, Any]], float]


def _total(tokens: list[Token], counts: Sequence[float], value: Value) -> float:
    return math.fsum(counts[token.sequence] * float(value(token.of)) for token in tokens)


def _mean(tokens: list[Token], counts: Sequence[float], value: Value) -> float:
    return over(_total(tokens, counts, value), _total(tokens, counts, lambda _: 1))


def _squares(row: Row) -> float:
    return math.fsum(float(number) ** 2 for number in row)


def _of_rows(rows: list[Token], counts: Sequence[float]) -> dict[str, float]:
    def total(value: Value) -> float:
        return _total(rows, counts, value)

    def mean(value: Value, keep: Callable[[dict[str, Any]], bool] = lambda o: True) -> float:
        return _mean([row for row in rows if keep(row.of)], counts, value)

    def error(o: dict[str, Any]) -> float:
        return _squares(o["y"] - o["y_hat"])

    def cosine(o: dict[str, Any]) -> float:
        norms = math.sqrt(_squares(o["y"])) * math.sqrt(_squares(o["y_hat"]))
        return o["y"] @ o["y_hat"] / norms if norms else 0.0

    middle = over(total(lambda o: o["y"].sum()), total(lambda o: len(o["y"])))
    fvu = over(total(error), total(lambda o: _squares(o["y"] - o["mean"])))
    return {
        "l0": mean(lambda o: sum(code > 0 for code in o["codes"])),
        "l1": mean(lambda o: math.fsum(o["codes"])),
        "mse": over(total(error), total(lambda o: len(o["y"]))),
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "ev_uncentered": 1 - over(total(error), total(lambda o: _squares(o["y"]))),
        "fvu_scalar": over(total(error), total(lambda o: _squares(o["y"] - middle))),
        "ev_token_mean": mean(
            lambda o: 1 - error(o) / _squares(o["y"] - o["mean"]), lambda o: bool((o["y"] != o["mean"]).any())
        ),
        "nmse_token": mean(lambda o: error(o) / _squares(o["y"]), lambda o: bool(o["y"].any())),
        "cosine": mean(cosine),
        "relative_reconstruction_bias": over(
            total(lambda o: _squares(o["y_hat"])), total(lambda o: o["y"] @ o["y_hat"])
        ),
        "l2_ratio": mean(lambda o: math.sqrt(_squares(o["y_hat"]) / _squares(o["y"])), lambda o: bool(o["y"].any())),
    }


def _of_predictions(group: Group, counts: Sequence[float]) -> dict[str, float]:
    def mean(name: str) -> float:
        return _mean(group.predictions, counts, lambda o: o[name])

    clean, spliced, zero = mean("ce_clean"), mean("ce_spliced"), mean("ce_zero")
    sequences = math.fsum(counts[n] for n in {row.sequence for row in group.rows})
    return {
        "ce_clean": clean,
        "ce_spliced": spliced,
        "ce_zero_ablated": zero,
        "ce_mean_ablated": mean("ce_mean"),
        "delta_loss": spliced - clean,
        "loss_recovered": over(zero - spliced, zero - clean),
        "kl": mean("kl"),
        "kl_reverse": mean("kl_reverse"),
        "kl_reverse_per_sequence": over(_total(group.predictions, counts, lambda o: o["kl_reverse"]), sequences),
        "kl_zero_ablated": mean("kl_zero"),
    }


def intervals_of(group: Group) -> dict[str, list[float]]:
    """Both ends of every number's interval, by how much each sequence moves it."""
    n = len({row.sequence for row in group.rows})
    if n < 2:
        return {}
    every = 1 + max(token.sequence for token in [*group.rows, *group.predictions, *group.probes])
    numbers = numbers_of(group, [1.0] * every)
    influences: dict[str, list[float]] = {name: [] for name in numbers}
    for sequence in range(every):
        more, less = ([1.0 + sign * STEP * (s == sequence) for s in range(every)] for sign in (1, -1))
        up, down = numbers_of(group, more), numbers_of(group, less)
        for name, values in influences.items():
            values.append((up[name] - down[name]) / (2 * STEP))
    return {name: around(numbers[name], values, n) for name, values in influences.items()}


def around(number: float, influences: list[float], n: int) -> list[float]:
    variance = n / (n - 1) * (math.fsum(i * i for i in influences) - math.fsum(influences) ** 2 / n)
    half = Z * math.sqrt(max(0.0, variance))
    return [number - half, number + half]


def latents_of(rows: list[Token]) -> list[dict[str, float]]:
    """One entry a latent."""
    table = []
    for latent in range(len(rows[0].of["codes"])):
        values = [float(row.of["codes"][latent]) for row in rows]
        some = [value for value in values if value > 0]
        firing = [row.sequence for row, value in zip(rows, values, strict=True) if value > 0]
        each = [firing.count(sequence) for sequence in sorted({row.sequence for row in rows})]
        table.append(
            {
                "firings": len(some),
                "sequences": len(set(firing)),
                "frequency": len(some) / len(rows),
                "mean": over(math.fsum(some), len(some)),
                "max": max(some, default=0.0),
                "frequency_error": math.sqrt(len(each) * float(np.var(each, ddof=1))) / len(rows) if each[1:] else 0.0,
            }
        )
    return table


def firing_of(rows: list[Token], windows: Sequence[int]) -> dict[str, Any]:
    """Shares of latents, the histogram, and the intervals of the shares."""
    latents = latents_of(rows)
    width, n = len(latents), len({row.sequence for row in rows})
    dead = sum(latent["firings"] == 0 for latent in latents) / width
    dense = sum(latent["frequency"] > 0.1 for latent in latents) / width
    once = sum(latent["sequences"] == 1 for latent in latents)
    above = [(latent["frequency"] - 0.1) / max(latent["frequency_error"], 1e-300) for latent in latents]
    chances = [0.5 * math.erfc(-z / math.sqrt(2)) for z in above]
    spread = {"dead_fraction": (dead, once), "dense_fraction": (dense, math.fsum(p * (1 - p) for p in chances))}
    edges = [-7 + number / 8 for number in range(57)]
    bars = [0] * 56
    for latent in latents:
        if latent["firings"]:
            bars[max(n for n in range(56) if n == 0 or 10 ** edges[n] <= latent["frequency"])] += 1
    return {
        "dead_fraction": dead,
        "dead_window": len(rows),
        "dense_fraction": dense,
        "never_fired": {
            str(window): sum(latent["firings"] == 0 for latent in latents_of(rows[:window])) / width
            for window in windows
            if window <= len(rows)
        },
        "frequency": {
            "log10_edges": edges,
            "latents": bars,
            "never": sum(latent["firings"] == 0 for latent in latents),
        },
        "intervals": {
            name: [max(0.0, share - Z * half), min(1.0, share + Z * half)]
            for name, (share, half) in ((name, (s, math.sqrt(v) / width)) for name, (s, v) in spread.items())
        }
        if n >= 2
        else {},
    }


def fields_of(group: Group, asked: Asked) -> dict[str, Any]:
    """What eval.json must hold."""
    ones = [1.0] * (1 + max(row.sequence for row in group.rows))
    firing = firing_of(group.rows, asked.windows)
    fields = counts_of(group) | numbers_of(group, ones) | firing
    fields["intervals"] = intervals_of(group) | firing["intervals"]
    if len(asked.subsets) > 1:
        parts = {name: group.only(lambda token, n=n: token.subset == n) for n, name in enumerate(asked.subsets)}
        fields["subsets"] = {
            name: counts_of(part) | numbers_of(part, ones) | {"intervals": intervals_of(part)}
            for name, part in parts.items()
            if part.rows
        }
    return fields


def positions_of(group: Group, site: Site) -> list[dict[str, Any]]:
    """A row for each position that has a token or predicts one."""
    ones = [1.0] * (1 + max(row.sequence for row in group.rows))
    table = []
    for position in sorted({token.position for token in [*group.rows, *group.predictions]}):
        here = group.only(lambda token, position=position: token.position == position)
        numbers = numbers_of(here, ones)
        counts = {name: counts_of(here)[name] for name in ("tokens", "predicted_tokens")}
        table.append(
            {"site": str(site), "position": position, **counts, **{name: numbers[name] for name in BY_POSITION}}
        )
    return table


def differences(found: Any, expected: Any, tolerance: float, path: str = "") -> list[str]:
    """Where two nested values differ: numbers by more than `tolerance`, all else in any way; NaN equals NaN."""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or found.keys() != expected.keys():
            return [f"{path}: {list(found)} instead of {list(expected)}"]
        parts = [differences(found[key], value, tolerance, f"{path}/{key}") for key, value in expected.items()]
        return [line for part in parts for line in part]
    if isinstance(expected, list):
        if len(found) != len(expected):
            return [f"{path}: {len(found)} instead of {len(expected)}"]
        parts = [
            differences(a, b, tolerance, f"{path}[{n}]") for n, (a, b) in enumerate(zip(found, expected, strict=True))
        ]
        return [line for part in parts for line in part]
    if isinstance(expected, float) and not isinstance(found, str):
        near = abs(found - expected) <= tolerance * max(1, abs(expected))
        same = math.isnan(found) if math.isnan(expected) else found == expected or near
    else:
        same = found == expected
    return [] if same else [f"{path}: {found} instead of {expected}"]
