"""The dictionaries: one file an architecture, and the table of them; other packages add theirs by entry points."""

from panscope.coders.base import Coder, CoderConfig
from panscope.coders.batchtopk import BatchTopKCoder, BatchTopKConfig
from panscope.coders.gated import GatedCoder, GatedConfig
from panscope.coders.jumprelu import JumpReLUCoder, JumpReLUConfig
from panscope.coders.matryoshka import MatryoshkaConfig
from panscope.coders.relu import ReLUCoder, ReLUConfig
from panscope.coders.topk import TopKCoder, TopKConfig
from panscope.extensions import extension, names_of, wrong_kind
from panscope.types import UserError

ARCHITECTURES: dict[str, tuple[type[CoderConfig], type[Coder]]] = {
    "relu": (ReLUConfig, ReLUCoder),
    "topk": (TopKConfig, TopKCoder),
    "batchtopk": (BatchTopKConfig, BatchTopKCoder),
    "matryoshka": (MatryoshkaConfig, BatchTopKCoder),
    "jumprelu": (JumpReLUConfig, JumpReLUCoder),
    "gated": (GatedConfig, GatedCoder),
}


def config_type(architecture: object) -> type[CoderConfig]:
    """The configuration class of an architecture; raises UserError naming those that exist."""
    return _architecture(architecture)[0]


def build(config: CoderConfig) -> Coder:
    """A coder of this configuration, its weights still zero; `initialise` or `load_tensors` fills them."""
    return _architecture(config.architecture)[1](config)


def _architecture(name: object) -> tuple[type[CoderConfig], type[Coder]]:
    """Configuration and coder: those of the table, else of another package's entry point."""
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    found = extension("architectures", name) if isinstance(name, str) else None
    if found is None:
        every = [*ARCHITECTURES, *names_of("architectures")]
        raise UserError(f"architecture {name!r} is unknown: use one of {', '.join(every)}")
    is_pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, type) for one in found)
    if not is_pair or not (issubclass(found[0], CoderConfig) and issubclass(found[1], Coder)):
        raise wrong_kind("architectures", str(name), "a pair of a CoderConfig and a Coder class")
    if found[0].model_fields["architecture"].default != name:
        raise wrong_kind("architectures", str(name), f"one whose configuration has architecture {name!r} by default")
    return found
