"""What an evaluation of a run is asked for: which text, model and precision, and the label that names its files."""

from dataclasses import dataclass, replace
from typing import Literal

from panscope.data.documents import DataConfig
from panscope.evals.passes import Splice
from panscope.evals.spec import WHOLE_TEXT, EvalShard
from panscope.lms.load import LanguageModelConfig
from panscope.planning.plan import SuiteConfig
from panscope.runs.finished_coder import HELD_OUT, suffix_of
from panscope.types import UserError

SAVE_SECONDS = 60.0
"""Seconds after which an evaluation saves its sums again."""
_LONGEST_LABEL = 60
CoderDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class EvalRequest:
    """What is evaluated; without arguments, the held-out text with the run's own model.

    The numbers are those of docs/reference.md, with `saebench` those of Karvonen et al. 2025 (SAEBench). Raises
    UserError for a label that cannot name files, and for fields that do not go together.
    """

    label: str = ""
    """What the files are named after: letters, digits and dashes. Left out, it follows from what is asked."""
    data: DataConfig | None = None
    """Text to measure on, all of it unless it has a held-out share; None for that of the run."""
    tokens: int | None = None
    """Content tokens at least; None for the suite's number on held-out text, else for all of it."""
    model: LanguageModelConfig | None = None
    """Another model of the same shape, or the run's in another precision or on another device; None for the run's."""
    coder_dtype: CoderDtype | None = None
    """The precision the coders are computed in; None for that of their files."""
    as_trained: bool = False
    """Whether the coders are those of training, before they were folded and turned into JumpReLU."""
    splice: Splice = "content"
    """Which tokens are replaced."""
    saebench: bool = False
    """Whether SAEBench's own definitions are measured; then every token is replaced."""
    accept_changed_model: bool = False
    """Whether the run's model is used although its weights, configuration or tokenizer have changed since training."""
    metrics: tuple[str, ...] = ()
    """Metrics of other packages (docs/extending.md), beside those that the suite names."""
    share: EvalShard = WHOLE_TEXT
    """Which part of the text this process measures."""
    save_seconds: float = SAVE_SECONDS
    """Seconds after which the sums are saved again."""

    def __post_init__(self) -> None:
        plain = self.label in ("", HELD_OUT) or (self.label.replace("-", "").isalnum() and self.label.isascii())
        if not plain or len(self.label) > _LONGEST_LABEL:
            raise UserError(
                f"label is {self.label!r}: it names files, so write it with letters, digits and dashes, at most "
                f"{_LONGEST_LABEL}"
            )
        if isinstance(self.data, dict) or isinstance(self.model, dict):
            raise UserError(
                "data or model is a dict: make it a DataConfig or LanguageModelConfig, or all of the request a dict"
            )
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"tokens is {self.tokens}: give 1 or more, or leave it out")

    def labelled(self, suite: SuiteConfig) -> "EvalRequest":
        """The same with a label: the one given, or what differs from the run's own model and held-out text.

        Raises UserError where the label is that of the held-out text and something differs, so that these numbers are
        never written over by others.
        """
        differs = "-".join(self._differences(suite))
        if self.label == HELD_OUT and differs:
            raise UserError(
                f"label is {HELD_OUT!r}, which is that of the run's own model and held-out text as they are: what is "
                f"asked for differs ({differs}), so give it another label, or none"
            )
        return self if self.label else replace(self, label=differs or HELD_OUT)

    def is_of_other_model(self, suite: SuiteConfig) -> bool:
        """Whether a model other than the run's is asked for."""
        own, asked = suite.model, self.model
        return asked is not None and (asked.path, asked.revision) != (own.path, own.revision)

    def _differences(self, suite: SuiteConfig) -> list[str]:
        own, data = suite.data, self.data or suite.data
        is_other_text = any(getattr(data, name) != getattr(own, name) for name in _TEXT)
        has_responses = data.chat is not None and data.chat.has_responses
        dtype = suite.model.dtype if self.model is None else self.model.dtype
        found = {
            "text": is_other_text,
            "chat": data.chat != own.chat and not has_responses,
            f"context-{data.context}": data.context not in (None, own.context),
            "other-model": self.is_of_other_model(suite),
            "as-trained": self.as_trained,
            str(dtype): dtype != suite.model.dtype,
            f"coder-{self.coder_dtype}": self.coder_dtype is not None,
            f"splice-{self.splice}": self.splice != "content",
            "saebench": self.saebench,
        }
        return [name for name, differs in found.items() if differs]

    @property
    def suffix(self) -> str:
        """What the names of its files end with; it must have a label."""
        assert self.label
        return suffix_of(self.label)


_TEXT = ("text", "column", "subset", "split", "revision", "packing", "held_out")
"""Fields of [data] that say which text it is."""
HELD_OUT_REQUEST = EvalRequest()
