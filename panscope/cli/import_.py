"""`panscope import`: other tools' coders as a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from panscope.cli.flags import flag
from panscope.cli.units import counted
from panscope.formats.base import ImportOptions
from panscope.formats.site_names import site_of_lens_name
from panscope.publish.import_coders import import_coders
from panscope.types import Site, UserError


@dataclass(frozen=True)
class Import:
    """Read the coders of another tool, one or a folder of many, into a new run folder; nothing is ever run from a file.

    What the files do not say is said by flags. The run can then be measured, drawn, compared, exported and published.

    For example
      panscope import gemma-scope-2b-pt-res/layer_12 --out runs/gemma --model google/gemma-2-2b
      panscope import ae.pt --format dictionary_learning --site L03.resid_post --model MODEL --out runs/theirs
      panscope eval runs/theirs --text stories.jsonl
    """

    source: Annotated[Path, tyro.conf.Positional, flag("SRC")]
    """A file or folder of one coder, or a folder with many below it."""
    out: Annotated[Path, flag("RUN")]
    """The run folder to make."""
    format: Annotated[str | None, flag("NAME")] = None
    """One of `panscope formats`; left out, it is told by the files' names."""
    site: Annotated[tuple[str, ...], flag("SITE ...")] = ()
    """Which site the coders read, such as L08.resid_post or blocks.8.hook_resid_post, in place of what the files say;
    several for one coder of all of them (mlsae, saelens)."""
    predicts: Annotated[str | None, flag("SITE")] = None
    """Which site transcoders predict."""
    model: Annotated[str | None, flag("PATH_OR_HUB_ID")] = None
    """The language model that the coders belong to."""
    k: Annotated[int | None, flag("K")] = None
    """K of TopK coders whose files do not say it."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        reads = tuple(map(_site, self.site)) or None
        predicts = None if self.predicts is None else _site(self.predicts)
        asked = ImportOptions(reads=reads, predicts=predicts, model=self.model, k=self._k())

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        made = import_coders(self.source, self.out, asked, format=self.format, say=say)
        if not made.compared:
            say(f"{made.model} is not on this machine: its widths were not compared with those of the coders")
        say(
            f"{counted(len(made.coders), 'coder')} of {made.model} in {self.out}; measure by "
            f"panscope eval {self.out} --text FILE"
        )
        return 0

    def _k(self) -> int | None:
        if self.k is not None and self.k < 1:
            raise UserError(f"k is {self.k}: expected a whole number above 0")
        return self.k


def _site(text: str) -> Site:
    """A site by our name or by TransformerLens'."""
    return site_of_lens_name(text) or Site.parse(text)
