"""Foreign formats, both ways: one file a format, and the table of them; other packages add theirs by entry points.

`base.py` says what a format is, `site_names.py` what a site is called elsewhere, `untrusted.py` reads files that
strangers made, and `archives.py` looks at those that are archives before.
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
"""By the name that the user types; the order in which they are tried on files of unknown make."""


def format_named(name: str) -> Format:
    """A format of the table, or of another package's entry point; raises UserError naming those that there are."""
    if name in FORMATS:
        return FORMATS[name]
    found = extension("formats", name)
    if found is None:
        raise UserError(f"format {name!r} is unknown: use one of {', '.join([*FORMATS, *names_of('formats')])}")
    if not isinstance(found, Format) or found.name != name:
        raise wrong_kind("formats", name, f"a panscope.formats.Format of the name {name!r}")
    return found
