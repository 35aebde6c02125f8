"""What a notebook imports: train, evaluate, look at results, load any coder, use it on a running language model.

Nothing is defined here. `docs/guides/use_latents.md` shows it at work.
"""

from panscope.api.verbs import evaluate, train
from panscope.data.documents import DataConfig
from panscope.evals.spec import EvalShard
from panscope.formats.base import ImportOptions
from panscope.intervene.attach import Attached, attach
from panscope.intervene.attribution import Attribution, Logit, attribution
from panscope.intervene.edits import Ablate, Clamp, Edit, Positions, Steer
from panscope.lms.load import LanguageModelConfig
from panscope.lms.load import load as load_model
from panscope.lms.model import LanguageModel
from panscope.loading.codes import Codes
from panscope.loading.load import load
from panscope.loading.loaded_coder import LoadedCoder
from panscope.loading.run_results import OpenRun, open_run
from panscope.plan.plan import SuiteConfig
from panscope.runs.evaluation import EvalRequest
from panscope.runs.reporter import Reporter
from panscope.types import Latents, Site, UserError

__all__ = [
    "Ablate",
    "Attached",
    "Attribution",
    "Clamp",
    "Codes",
    "DataConfig",
    "Edit",
    "EvalRequest",
    "EvalShard",
    "ImportOptions",
    "LanguageModel",
    "LanguageModelConfig",
    "Latents",
    "LoadedCoder",
    "Logit",
    "OpenRun",
    "Positions",
    "Reporter",
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
