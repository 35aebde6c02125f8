"""What a notebook or script imports: every verb of the command line, coders and how they are used on a running model.

Nothing is defined here; `docs/api.md` says what each name is for, and how the public names may change.
"""

from panscope.activations.store.manifest import Manifest
from panscope.api.results import EvaluatedCoder, EvaluationResults
from panscope.api.suites import select
from panscope.api.verbs import (
    GeometryResult,
    collect,
    compare_decoders,
    evaluate,
    export,
    import_coders,
    make_rollouts,
    merge,
    plan,
    publish,
    report,
    resume,
    serve,
    train,
    verify_store,
    write_saebench,
)
from panscope.cost.estimate import Cost
from panscope.data.documents import DataConfig
from panscope.evals.spec import EvalShard
from panscope.events import (
    Evaluated,
    Event,
    Listener,
    Message,
    Progress,
    RunClosed,
    RunOpened,
    StepLogged,
    TaskEnded,
)
from panscope.formats.base import ImportOptions
from panscope.intervene.attach import Attached, attach
from panscope.intervene.attribution import Attribution, Logit, attribution
from panscope.intervene.edits import Ablate, Clamp, Edit, Positions, Steer
from panscope.listeners.log import LogListener
from panscope.listeners.notebook import NotebookListener
from panscope.listeners.terminal import TerminalListener
from panscope.listeners.trackers import tracker
from panscope.lms.load import LanguageModelConfig
from panscope.lms.load import load as load_model
from panscope.lms.model import LanguageModel
from panscope.loading.codes import Codes
from panscope.loading.load import load
from panscope.loading.loaded_coder import LoadedCoder
from panscope.loading.run_results import OpenRun, open_run
from panscope.planning.plan import Plan, SuiteConfig
from panscope.publishing.import_coders import Imported
from panscope.publishing.publish import Published, PublishOptions
from panscope.reporting.write import Written
from panscope.runs.collection import StoreOptions
from panscope.runs.eval_request import EvalRequest
from panscope.runs.geometry import GeometryOptions
from panscope.runs.rollouts import RolloutConfig, Rollouts
from panscope.runs.serving import ServeOptions
from panscope.serving.server.server import ActivationServer
from panscope.types import Latents, Site, UserError

__all__ = [
    "Ablate",
    "ActivationServer",
    "Attached",
    "Attribution",
    "Clamp",
    "Codes",
    "Cost",
    "DataConfig",
    "Edit",
    "EvalRequest",
    "EvalShard",
    "Evaluated",
    "EvaluatedCoder",
    "EvaluationResults",
    "Event",
    "GeometryOptions",
    "GeometryResult",
    "ImportOptions",
    "Imported",
    "LanguageModel",
    "LanguageModelConfig",
    "Latents",
    "Listener",
    "LoadedCoder",
    "LogListener",
    "Logit",
    "Manifest",
    "Message",
    "NotebookListener",
    "OpenRun",
    "Plan",
    "Positions",
    "Progress",
    "PublishOptions",
    "Published",
    "RolloutConfig",
    "Rollouts",
    "RunClosed",
    "RunOpened",
    "ServeOptions",
    "Site",
    "Steer",
    "StepLogged",
    "StoreOptions",
    "SuiteConfig",
    "TaskEnded",
    "TerminalListener",
    "UserError",
    "Written",
    "attach",
    "attribution",
    "collect",
    "compare_decoders",
    "evaluate",
    "export",
    "import_coders",
    "load",
    "load_model",
    "make_rollouts",
    "merge",
    "open_run",
    "plan",
    "publish",
    "report",
    "resume",
    "select",
    "serve",
    "tracker",
    "train",
    "verify_store",
    "write_saebench",
]
