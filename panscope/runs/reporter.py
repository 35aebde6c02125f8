"""What a run tells the person who started it; the command line draws it, tests and notebooks stay silent."""

from typing import Any, Protocol

from panscope.plan.plan import Plan


class Reporter(Protocol):
    """Listens to a run."""

    def say(self, text: str) -> None:
        """One line to show."""
        ...

    def planned(self, plan: Plan) -> None:
        """What is going to be trained."""
        ...

    def training(self, start: int, steps: int, batch: int) -> None:
        """Training begins at step `start`."""
        ...

    def stepped(self, step: int) -> None:
        """`step` steps are done."""
        ...

    def logged(self, records: list[dict[str, Any]]) -> None:
        """The newest figures of every coder."""
        ...

    def evaluating(self, done: int, total: int | None) -> None:
        """`done` of about `total` tokens are evaluated."""
        ...

    def collecting(self, done: int, total: int) -> None:
        """`done` of at most `total` rows are stored."""
        ...

    def finished(self) -> None:
        """What was under way is over, or was left."""
        ...


class Silent:
    """A reporter that says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def planned(self, plan: Plan) -> None:
        """Nothing."""

    def training(self, start: int, steps: int, batch: int) -> None:
        """Nothing."""

    def stepped(self, step: int) -> None:
        """Nothing."""

    def logged(self, records: list[dict[str, Any]]) -> None:
        """Nothing."""

    def evaluating(self, done: int, total: int | None) -> None:
        """Nothing."""

    def collecting(self, done: int, total: int) -> None:
        """Nothing."""

    def finished(self) -> None:
        """Nothing."""
