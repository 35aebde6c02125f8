"""Shares of a suite: parts that are trained apart, on several machines or one after another, and merged afterwards.

The cut depends on the suite and the language model's configuration alone, so every machine makes the same one. Coders
are sorted by the deepest layer that they need, since a pass of the language model stops after the deepest site of a
run, and the sorted list is cut so that the costliest share costs as little as possible. Coders of the same sites stay
together unless they cost more than an average share. The cost of a share is its part of the suite's time or of its
memory, whichever is larger: FLOPs of its coders' dense steps and of its own passes of the language model, and bytes of
its coders in training.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from panscope.cost.flops import coder_flops, token_flops, tokens_per_row
from panscope.cost.gpus import Gpu
from panscope.cost.memory import USABLE, estimate_memory, lm_bytes, state_bytes
from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import Plan, SuiteConfig, plan
from panscope.types import Site, UserError

_REPORTED = 0.97
"""What devices report of the memory that they are sold with, at least; assumed."""
_HALVINGS = 40
"""Steps of the search for the lowest cost of the costliest share."""
_ROUNDING = 1e-9


def plan_share(suite: SuiteConfig, facts: ModelFacts, memory_bytes: int) -> Plan:
    """The plan of a suite, or of the part of it that `share` names; raises UserError as `plan` and `cut`."""
    whole, share = plan(suite, facts, memory_bytes), suite.shard
    return whole if share.of == 1 else cut(whole, facts, share.of)[share.number]


def cut(whole: Plan, facts: ModelFacts, count: int) -> list[Plan]:
    """The shares of a plan, each coder in exactly one; raises UserError for more shares than coders.

    Batch, log lines, checkpoints and shuffle buffer are those of the whole plan, so that a coder learns from the same
    rows in the same order as without shares.
    """
    if count > len(whole.coders):
        raise UserError(
            f"share: {count:,} shares are more than the {len(whole.coders):,} coders of {whole.suite.name}, and each "
            f"share needs one: cut it into {len(whole.coders):,} at most"
        )
    return _Cutter(whole, facts).shares(count)


def too_large(whole: Plan, facts: ModelFacts, gpu: Gpu) -> list[PlannedCoder]:
    """The coders that do not fit on one device, even alone."""
    return [coder for coder in whole.coders if not _fits(_only(whole, (coder.name,)), facts, gpu)]


def fitting(whole: Plan, facts: ModelFacts, gpu: Gpu, at_least: int = 1) -> list[Plan]:
    """As few shares as a bisection finds, but `at_least` so many, that each fit on one device.

    None if a coder does not fit alone. A plan that is a share of a suite is not cut again.
    """
    if whole.suite.shard.of > 1:
        return [whole] if _fits(whole, facts, gpu) else []
    if too_large(whole, facts, gpu):
        return []
    cutter, coders = _Cutter(whole, facts), len(whole.coders)
    needed = sum(state_bytes(coder) for coder in whole.coders) / (_usable(gpu) - lm_bytes(whole, facts))

    def shares_that_fit(count: int) -> list[Plan]:
        shares = cutter.shares(count)
        return shares if all(_fits(share, facts, gpu) for share in shares) else []

    too_few, count = 0, min(coders, max(at_least, math.ceil(needed)))
    while not (found := shares_that_fit(count)):
        too_few, count = count, min(coders, 2 * count)
    while too_few and count - too_few > 1:
        middle = (too_few + count) // 2
        if fewer := shares_that_fit(middle):
            found, count = fewer, middle
        else:
            too_few = middle
    return found


def _fits(part: Plan, facts: ModelFacts, gpu: Gpu) -> bool:
    """Whether training it is accepted on this device, with the kernels that take most memory: the reference."""
    return estimate_memory(part, facts, lambda name: None).total <= _usable(gpu)


def _usable(gpu: Gpu) -> float:
    return USABLE * _REPORTED * gpu.memory_bytes


def _only(whole: Plan, names: Sequence[str]) -> Plan:
    kept = tuple(coder for coder in whole.coders if coder.name in frozenset(names))
    return dataclasses.replace(whole, coders=kept, steps=max(coder.steps for coder in kept))


@dataclass(frozen=True)
class _Piece:
    """Coders that stay together."""

    names: tuple[str, ...]
    time: float
    """Their part of the FLOPs of all coders."""
    memory: float
    """Their part of the bytes of all coders."""
    layers: int
    """Blocks of the language model that they need."""
    steps: int

    def __add__(self, other: "_Piece") -> "_Piece":
        return _Piece(
            self.names + other.names,
            self.time + other.time,
            self.memory + other.memory,
            max(self.layers, other.layers),
            max(self.steps, other.steps),
        )

    def cost(self, lm: float, total: float) -> float:
        """The cost as a share: its part of the `total` time, or of the memory, whichever is larger.

        A block of the language model takes the time `lm` a step.
        """
        return max((self.time + self.layers * self.steps * lm) / total, self.memory)


class _Cutter:
    """Cuts a plan into any number of shares."""

    def __init__(self, whole: Plan, facts: ModelFacts) -> None:
        self._whole = whole
        flops = [coder_flops(coder, whole.batch)[0] for coder in whole.coders]
        states = [state_bytes(coder) for coder in whole.coders]
        self._lm = _layer_flops(whole, facts) / sum(flops)
        groups: dict[tuple[Site, ...], list[_Piece]] = {}
        for coder, time, state in zip(whole.coders, flops, states, strict=True):
            sites = tuple(sorted(coder.wiring.sites()))
            piece = _Piece((coder.name,), time / sum(flops), state / sum(states), 1 + sites[-1].layer, coder.steps)
            groups.setdefault(sites, []).append(piece)
        self._groups = [groups[sites] for sites in sorted(groups, key=lambda sites: (sites[-1].layer, sites))]
        """The coders of the same sites, in the order of layers."""

    def shares(self, count: int) -> list[Plan]:
        """The plans of so many shares."""
        parts = zip(self._groups, self._parts(count), strict=True)
        pieces = [piece for group, number in parts for piece in _balanced(group, number)]
        mean_pass = sum(piece.time * piece.layers * piece.steps * self._lm for piece in pieces)
        shares = _balanced(pieces, count, self._lm, total=1 + count * mean_pass)
        return [_only(self._whole, share.names) for share in shares]

    def _parts(self, count: int) -> list[int]:
        """Into how many pieces each group is cut: none costs above an average share, and there are enough in all."""
        costs = [
            max(sum(piece.time for piece in group), sum(piece.memory for piece in group)) for group in self._groups
        ]
        parts = [
            min(len(group), max(1, math.ceil(cost * count - _ROUNDING)))
            for group, cost in zip(self._groups, costs, strict=True)
        ]
        while sum(parts) < count:
            divisible = [number for number, group in enumerate(self._groups) if parts[number] < len(group)]
            parts[max(divisible, key=lambda number: costs[number] / parts[number])] += 1
        return parts


def _layer_flops(whole: Plan, facts: ModelFacts) -> float:
    """FLOPs of one block of the language model for one step's rows; 0 where rows are stored."""
    context = whole.suite.data.context
    if whole.suite.activations.source != "live" or context is None:
        return 0.0
    return whole.batch * tokens_per_row(whole) * token_flops(facts, 1, context)


def _balanced(pieces: Sequence[_Piece], count: int, lm: float = 0.0, total: float = 1.0) -> list[_Piece]:
    """Neighbouring pieces joined to `count`, so that the costliest costs as little as possible."""

    def joined(limit: float, at_least: int) -> list[_Piece]:
        return _joined(pieces, at_least, lambda piece: piece.cost(lm, total) <= limit)

    low, high = 0.0, sum(piece.cost(lm, total) for piece in pieces)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if len(joined(middle, 1)) > count else (low, middle)
    return joined(high, count)


def _joined(pieces: Sequence[_Piece], at_least: int, is_allowed: Callable[[_Piece], bool]) -> list[_Piece]:
    """Neighbouring pieces joined as far as is allowed, and as `at_least` so many can be made."""
    made: list[_Piece] = []
    for left, piece in zip(range(len(pieces), 0, -1), pieces, strict=True):
        if made and left > at_least - len(made) and is_allowed(together := made[-1] + piece):
            made[-1] = together
        else:
            made.append(piece)
    return made
