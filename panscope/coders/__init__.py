"""The dictionaries: one file an architecture, and the table of them."""

from panscope.coders.base import Coder, CoderConfig
from panscope.coders.batchtopk import BatchTopKCoder, BatchTopKConfig
from panscope.coders.gated import GatedCoder, GatedConfig
from panscope.coders.jumprelu import JumpReLUCoder, JumpReLUConfig
from panscope.coders.matryoshka import MatryoshkaConfig
from panscope.coders.relu import ReLUCoder, ReLUConfig
from panscope.coders.topk import TopKCoder, TopKConfig
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
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(f"architecture {architecture!r} is unknown: use one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture][0]


def build(config: CoderConfig) -> Coder:
    """A coder of this configuration, its weights still zero; `initialise` or `load_tensors` fills them."""
    return ARCHITECTURES[config.architecture][1](config)
