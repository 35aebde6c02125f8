"""Import from and export to the file formats of other tools: one module per format, and the table of all formats.

`base.py` defines the interface, `site_names.py` translates site names, `untrusted.py` reads files from untrusted
sources, and `archives.py` checks zip archives before they are read. Other packages add formats through entry points.
"""

from panscope.extensions import extension, names_of, wrong_kind
from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.dictionary_learning import DICTIONARY_LEARNING
from panscope.formats.gemma_scope import GEMMA_SCOPE
from panscope.formats.gemma_scope_2 import GEMMA_SCOPE_2
from panscope.formats.llama_scope import LLAMA_SCOPE
from panscope.formats.mlsae import MLSAE
from panscope.formats.openai import OPENAI
from panscope.formats.saelens import SAELENS
from panscope.formats.sparsify import SPARSIFY
from panscope.types import UserError

__all__ = ["FORMATS", "Format", "ImportOptions", "ImportedCoder", "format_named"]

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        SAELENS,
        GEMMA_SCOPE,
        GEMMA_SCOPE_2,
        LLAMA_SCOPE,
        SPARSIFY,
        DICTIONARY_LEARNING,
        MLSAE,
        OPENAI,
    )
}
"""By name as typed on the command line, in the order in which they are tried on files of unknown format."""


def format_named(name: str) -> Format:
    """A format from the table or from another package's entry point; an unknown name raises UserError with a list."""
    if name in FORMATS:
        return FORMATS[name]
    found = extension("formats", name)
    if found is None:
        raise UserError(f"format {name!r} is unknown: use one of {', '.join([*FORMATS, *names_of('formats')])}")
    if not isinstance(found, Format) or found.name != name:
        raise wrong_kind("formats", name, f"a panscope.formats.Format of the name {name!r}")
    return found
