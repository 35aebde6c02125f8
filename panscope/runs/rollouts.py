"""The stage that makes rollouts: prompts -> a fine-tuned model's own responses -> chats in JSON lines.

Gemma Scope (section 4.5) judges coders on 1,024 of them. A rollout's random numbers are a function of the seed, of its
prompt's number and of how often the prompt came before, so more rollouts begin with the same ones.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from panscope.config import Config
from panscope.data.order import generator
from panscope.events import Reporter
from panscope.lms.model import LanguageModel
from panscope.lms.rollouts import Rollout, roll_out
from panscope.storage.atomic import replacing
from panscope.types import UserError

_ORDER, _DRAWS = 0, 1
"""Streams of random numbers: which prompts are taken, and which tokens."""


class RolloutConfig(Config):
    """Which rollouts are made."""

    count: int = Field(default=1024, ge=1)
    """How many. Of more prompts a random sample is taken, of fewer each one several times."""
    tokens: int = Field(default=256, ge=1)
    """Of a response at most; the context's end may come before."""
    temperature: float = Field(default=1.0, gt=0)
    """1 samples from the model's own distribution."""
    seed: int = Field(default=0, ge=0)
    """Fixes which prompts are taken and every response."""
    user: str = ""
    """The prefix of the user's query, written before every prompt."""
    model: str = ""
    """The prefix of the model's response, written after it."""
    batch: int = Field(default=32, ge=1)
    """Sequences that are sampled together."""


@dataclass(frozen=True)
class Rollouts:
    """What was made, in numbers."""

    count: int
    """The number of conversations."""
    prompts: int
    """How many different ones were answered."""
    too_long: int
    """Prompts that fill the context, so that no response fits, and were left out."""
    tokens: int
    """Tokens of all responses."""
    has_ended: float
    """The share of responses that the model ended itself."""
    surprise: float
    """Mean over tokens of -log p, in nats: near `entropy` where the sampling is right."""
    entropy: float
    """Mean over tokens of the entropy of the distribution they were drawn from, in nats."""


@dataclass(frozen=True)
class _Task:
    """One rollout to make."""

    prompt: int
    round: int
    """How often the prompt was taken before."""
    tokens: list[int]


def make_rollouts(
    lm: LanguageModel,
    prompts: list[str],
    config: RolloutConfig,
    out: Path,
    reporter: Reporter,
) -> Rollouts:
    """Write a line {"prompt", "response"} a rollout to the new file `out`; prompts are written without their prefixes.

    Raises UserError if no prompt is short enough for a response to fit into the context.
    """
    check_new(out)
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        tasks, too_long = _tasks(lm, prompts, config)
        made = _made(lm, tasks, config, reporter)
        for task, rollout in zip(tasks, made, strict=True):
            response = lm.tokenizer.decode_after(task.tokens, rollout.tokens)
            file.write(json.dumps({"prompt": prompts[task.prompt], "response": response}, ensure_ascii=False) + "\n")
    drawn = sum(rollout.drawn for rollout in made)
    return Rollouts(
        count=len(made),
        prompts=len({task.prompt for task in tasks}),
        too_long=too_long,
        tokens=drawn,
        has_ended=sum(rollout.has_ended for rollout in made) / len(made),
        surprise=sum(rollout.surprise for rollout in made) / drawn,
        entropy=sum(rollout.entropy for rollout in made) / drawn,
    )


def check_new(out: Path) -> None:
    """Raise UserError if `out` is there already."""
    if out.exists():
        raise UserError(f"the file {str(out)!r} already exists: choose another --out, or delete it")


def _tasks(lm: LanguageModel, prompts: list[str], config: RolloutConfig) -> tuple[list[_Task], int]:
    """As many as are wanted, and how many prompts were left out as too long."""
    opening = [] if lm.tokenizer.bos_id is None else [lm.tokenizer.bos_id]
    tasks: list[_Task] = []
    too_long: set[int] = set()
    for round_, number in _order(len(prompts), config.seed):
        if number not in too_long:
            tokens = opening + lm.tokenizer.encode([config.user + prompts[number] + config.model])[0]
            if len(tokens) < lm.context:
                tasks.append(_Task(number, round_, tokens))
            else:
                too_long.add(number)
        if len(tasks) == config.count:
            return tasks, len(too_long)
        if len(too_long) == len(prompts):
            break
    raise UserError(
        f"prompts: all {len(prompts)} of them are longer than the model's context of {lm.context} tokens: give "
        "shorter ones"
    )


def _order(prompts: int, seed: int) -> Iterator[tuple[int, int]]:
    """Round and number of prompts without end: every prompt once a round, in a random order."""
    for round_ in count():
        for number in generator(seed, _ORDER, round_).permutation(prompts):
            yield round_, int(number)


def _made(lm: LanguageModel, tasks: list[_Task], config: RolloutConfig, reporter: Reporter) -> list[Rollout]:
    """The rollout of every task; prompts of like length are sampled together."""
    order = sorted(range(len(tasks)), key=lambda i: len(tasks[i].tokens))
    made: dict[int, Rollout] = {}
    begun = time.monotonic()
    for begin in range(0, len(order), config.batch):
        chosen = order[begin : begin + config.batch]
        draws = [generator(config.seed, _DRAWS, tasks[i].round, tasks[i].prompt).random(config.tokens) for i in chosen]
        prompts = [tasks[i].tokens for i in chosen]
        rollouts = roll_out(lm, prompts, torch.from_numpy(np.stack(draws)), temperature=config.temperature)
        made |= zip(chosen, rollouts, strict=True)
        drawn, seconds = sum(rollout.drawn for rollout in made.values()), max(time.monotonic() - begun, 1e-9)
        reporter.progress("sampling", len(made), len(tasks), "rollouts", f"{drawn / seconds:,.0f} tokens/s")
    reporter.ended()
    return [made[i] for i in range(len(tasks))]
