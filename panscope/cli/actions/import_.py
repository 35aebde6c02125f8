"""`panscope import`: other tools' coders as a run folder."""

from rich.console import Console

from panscope import api
from panscope.cli.flags.import_ import Import
from panscope.cli.listening import listening, say
from panscope.cli.units import counted
from panscope.formats.base import ImportOptions
from panscope.formats.site_names import site_of_lens_name
from panscope.types import Site, UserError


def run(flags: Import, console: Console) -> int:
    """Import, and say what to do next."""
    if flags.k is not None and flags.k < 1:
        raise UserError(f"k is {flags.k}: expected a whole number above 0")
    reads = tuple(map(_site, flags.site)) or None
    predicts = None if flags.predicts is None else _site(flags.predicts)
    options = ImportOptions(reads=reads, predicts=predicts, model=flags.model, k=flags.k)
    with listening(console) as heard:
        made = api.import_coders(
            flags.source, flags.out, options, format=flags.format, revision=flags.revision, **heard
        )
    if not made.compared:
        say(console, f"{made.model} is not on this machine: its widths were not compared with those of the coders")
    then = f"panscope eval {flags.out} --text FILE"
    say(console, f"{counted(len(made.coders), 'coder')} of {made.model} in {flags.out}; evaluate by {then}")
    return 0


def _site(text: str) -> Site:
    """A site by our name or by TransformerLens'."""
    return site_of_lens_name(text) or Site.parse(text)
