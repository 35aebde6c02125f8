"""`panscope publish`: a run as a repository of the Hugging Face hub, with a model card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class Publish:
    """Publish every coder of a run: a folder each that SAELens loads by its name, and a model card with the numbers.

    The same command continues what failed or was interrupted. The token is the hub's own:
    HF_TOKEN in the environment, or what `hf auth login` left.

    For example
      panscope publish runs/demo --to me/demo-saes --dry-run look/     what would be sent, in a folder
      panscope publish runs/demo --to me/demo-saes --private
    """

    run_folder: Annotated[Path, tyro.conf.Positional, flag("RUN")]
    """The folder of a run."""
    to: Annotated[str, flag("ORG/NAME")]
    """The repository, which is made if it is not there."""
    licence: Annotated[str, flag("NAME")] = "cc-by-4.0"
    """As the hub writes it: cc-by-4.0, apache-2.0, mit ..."""
    eval: Annotated[str | None, flag("LABEL")] = None
    """Whose numbers are published; left out, those on held-out text, or of the only evaluation there is."""
    private: bool = False
    """Make it a private repository."""
    dry_run: Annotated[Path | None, flag("DIR")] = None
    """Send nothing: write what would be sent into this new folder."""
