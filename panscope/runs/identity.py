"""What a run is of: the language model and the text, and what happens when one of them has changed since.

Everything that a run writes says of what it is: checkpoints, coders, evaluations. A changed model is refused, or used
where a person accepts it; a changed text is refused, since which of it was kept from training is not known any more.
"""

from collections.abc import Sequence
from typing import Any

from panscope.config import Config
from panscope.data.documents import DataConfig
from panscope.data.identity import text_identity
from panscope.lms.identity import ModelIdentity
from panscope.lms.model import LanguageModel
from panscope.types import UserError


class RunIdentity(Config):
    """The language model and the text of a checkpoint, a coder or an evaluation."""

    model: ModelIdentity
    text: tuple[str, ...]
    """See `data/identity.py`."""
    accepted_changes: tuple[str, ...] = ()
    """Differences from an earlier model that a person accepted."""

    @classmethod
    def of(cls, lm: LanguageModel, data: DataConfig, accepted_changes: Sequence[str] = ()) -> "RunIdentity":
        """That of work done now; raises UserError if a text cannot be read."""
        return cls(model=lm.identity, text=text_identity(data), accepted_changes=tuple(accepted_changes))

    def plain(self) -> dict[str, Any]:
        """Values for a JSON file."""
        return self.model_dump(mode="json")


class ModelChanges:
    """Differences between the language model and the one that stored work is of, accepted or refused."""

    def __init__(self, accept: bool = False, accepted: Sequence[str] = ()) -> None:
        """`accepted` are those of earlier; others are accepted only with `accept`."""
        self._accepts = accept
        self.accepted = tuple(accepted)

    @property
    def are_refused(self) -> bool:
        """Whether every difference is refused: none is accepted, and none was."""
        return not (self._accepts or self.accepted)

    def check(self, before: ModelIdentity, now: ModelIdentity, *, refusal: str, advice: str) -> None:
        """Add the differences to `accepted`; where they may not be, raise UserError with them between both texts."""
        found = tuple(change for change in before.differences(now) if change not in self.accepted)
        if found and not self._accepts:
            raise UserError(f"{refusal}: {' and '.join(found)}; {advice}")
        self.accepted += found


def check_same_text(before: Sequence[str], now: Sequence[str], *, since: str, advice: str) -> None:
    """Raise UserError, naming the first text that differs, unless all texts are those of `before`."""
    for number, text in enumerate(now):
        if number >= len(before) or before[number] != text:
            was = before[number] if number < len(before) else "not there"
            raise UserError(f"the text has changed since {since}: it was {was}, and now it is {text}; {advice}")
    if len(now) < len(before):
        raise UserError(f"the text has changed since {since}: it has no {before[len(now)]} any more; {advice}")
