"""Foreign formats, both ways: one file a format, and the table of them.

`base.py` says what a format is, `hooks.py` what a site is called elsewhere, `untrusted.py` reads files that strangers
made, and `archives.py` looks at those that are archives before.
"""

from panscope.formats.base import Format, ImportedCoder, ImportOptions
from panscope.formats.dictionary_learning import DICTIONARY_LEARNING
from panscope.formats.gemma_scope import GEMMA_SCOPE
from panscope.formats.gemma_scope_2 import GEMMA_SCOPE_2
from panscope.formats.llama_scope import LLAMA_SCOPE
from panscope.formats.mlsae import MLSAE
from panscope.formats.openai import OPENAI
from panscope.formats.saelens import SAELENS
from panscope.formats.sparsify import SPARSIFY

__all__ = ["FORMATS", "Format", "ImportOptions", "ImportedCoder"]

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
