"""`panscope geometry`: how the decoder vectors of a run's coders lie to each other, to chance and to tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from panscope.cli.flags.flag import flag

_Analysis = Literal["mmcs", "matching", "splitting", "neighbourhood", "tokens"]


@dataclass(frozen=True)
class Geometry:
    """Compare the decoder vectors of a run's coders and write what was found into RUN/geometry.

    With no flags: for every coder how near its latents are to each other and to chance; for coders of the same wiring
    and sites who matches whom and, between widths, which latents split and which are new; one neighbourhood a site.

    For example
      panscope geometry runs/demo
      panscope geometry runs/demo --coder L03R-4x-topk-k16 --latent 17         its neighbourhood, in two dimensions
      panscope geometry runs/demo --against runs/other                          the same sites, two runs
    """

    run_folder: Annotated[Path, tyro.conf.Positional, flag("RUN")]
    """The folder of a run."""
    coder: Annotated[tuple[str, ...], flag("NAME ...")] = ()
    """Only these coders, and only pairs among them; one alone is compared with all others at its sites."""
    latent: Annotated[tuple[int, ...], flag("N ...")] = ()
    """Only the neighbourhoods of these latents of the coder named."""
    against: Annotated[Path | None, flag("RUN2")] = None
    """Compare with the coders of this other run, at equal wiring and sites."""
    only: Annotated[tuple[_Analysis, ...], flag("mmcs|matching|splitting|neighbourhood|tokens ...")] = ()
    """Only these analyses."""
    tokens: bool = False
    """Find the tokens that every latent points to, too; reads the language model."""
    pairs: Annotated[int, flag("N")] = 10
    """At most so many matchings and so many splittings a site."""
    neighbours: Annotated[tuple[int, int, int], flag("OWN OTHER WIDER")] = (6, 6, 24)
    """How many neighbours of a latent: in its own coder, in another, in the widest."""
    seed: Annotated[int, flag("N")] = 0
    """Of the random baselines and the layout."""
    device: Annotated[str | None, flag("NAME")] = None
    """auto, cpu, cuda, cuda:1 ..."""
