"""`panscope import`: other tools' coders as a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class Import:
    """Read the coders of another tool, one or many, into a new run folder; nothing is ever run from a file.

    What the files do not say is said by flags. The run can then be measured, drawn, compared, exported and published.

    For example
      panscope import gemma-scope-2b-pt-res/layer_12 --out runs/gemma --model google/gemma-2-2b
      panscope import google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82 --out runs/gemma12
      panscope import "google/gemma-scope-2b-pt-res:layer_*/width_16k" --out runs/gemma16k
      panscope import ae.pt --format dictionary_learning --site L03.resid_post --model MODEL --out runs/theirs
      panscope eval runs/theirs --text stories.jsonl
    """

    source: Annotated[tuple[str, ...], tyro.conf.Positional, flag("SRC ...")]
    """A file or folder of one coder, a folder with many below it, or an address on the hub: ORG/REPO or
    ORG/REPO:FOLDER, of which only the files that are read are downloaded."""
    out: Annotated[Path, flag("RUN")]
    """The run folder to make."""
    format: Annotated[str | None, flag("NAME")] = None
    """One of `panscope formats`; left out, it is told by the files' names."""
    revision: Annotated[str | None, flag("REV")] = None
    """Branch, tag or commit of a repository on the hub; by default its newest commit."""
    site: Annotated[tuple[str, ...], flag("SITE ...")] = ()
    """Which site the coders read, such as L08.resid_post or blocks.8.hook_resid_post, in place of what the files say;
    several for one coder of all of them (mlsae, saelens)."""
    predicts: Annotated[str | None, flag("SITE")] = None
    """Which site transcoders predict."""
    model: Annotated[str | None, flag("PATH_OR_HUB_ID")] = None
    """The language model that the coders belong to."""
    k: Annotated[int | None, flag("K")] = None
    """K of TopK coders whose files do not say it."""
