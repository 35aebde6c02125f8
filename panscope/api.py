"""What a notebook imports: train, evaluate, look at results, load any coder, use it on a running language model.

Nothing is defined here. `docs/guides/use_latents.md` shows it at work.
"""

from panscope.analysis.attach import Attached, attach
from panscope.analysis.attribution import Attribution, Logit, attribution
from panscope.analysis.codes import Codes
from panscope.analysis.edits import Ablate, Clamp, Edit, Positions, Steer
from panscope.analysis.loaded import LoadedCoder
from panscope.analysis.loading import load
from panscope.analysis.results import OpenRun, open_run
from panscope.data.documents import DataConfig
from panscope.evals.question import Share
from panscope.formats.base import Asked
from panscope.lms.load import LanguageModelConfig
from panscope.lms.load import load as load_model
from panscope.lms.model import LanguageModel
from panscope.suite.evaluating import Request
from panscope.suite.plan import SuiteConfig
from panscope.suite.reporter import Reporter
from panscope.suite.verbs import evaluate, train
from panscope.types import Latents, Site, UserError

__all__ = [
    "Ablate",
    "Asked",
    "Attached",
    "Attribution",
    "Clamp",
    "Codes",
    "DataConfig",
    "Edit",
    "LanguageModel",
    "LanguageModelConfig",
    "Latents",
    "LoadedCoder",
    "Logit",
    "OpenRun",
    "Positions",
    "Reporter",
    "Request",
    "Share",
    "Site",
    "Steer",
    "SuiteConfig",
    "UserError",
    "attach",
    "attribution",
    "evaluate",
    "load",
    "load_model",
    "open_run",
    "train",
]
