"""The only file that registers hooks: it lends a function the tensors at some modules' ends during one forward pass.

`giving` is the other way to reach into a pass: modules that are known to give what they gave before are not run again.

A pass may be cut short: whoever has seen enough raises `PassDone` from its tap, and `run_with` returns None. That is
safe because transformers restores what a forward call changes in `finally` blocks, and the hooks leave the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from panscope.site_kinds import End

Result = TypeVar("Result")


class PassDone(Exception):
    """Raised by a tap that needs nothing more of this pass."""


@dataclass(frozen=True)
class Tap:
    """One end of one module, and what to do there."""

    module: nn.Module
    end: End
    visit: Callable[[Tensor, Tensor], Tensor]
    """Called with the module's input and the tensor at `end`; what it returns takes that tensor's place."""


def run_with(taps: Sequence[Tap], forward: Callable[[], Result]) -> Result | None:
    """What `forward()` returns with the taps in place, or None if a tap ended the pass; no tap outlives it."""
    try:
        with attached(taps):
            return forward()
    except PassDone:
        return None


@contextmanager
def giving(modules: Sequence[nn.Module], given: Any) -> Iterator[None]:
    """For a while these modules compute nothing and give `given`, whatever they are called with."""
    try:
        for module in modules:
            module.forward = lambda *_, **__: given
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)  # the class's own is there again


@contextmanager
def watching(module: nn.Module, see: Callable[[Any], None]) -> Iterator[None]:
    """For a while `see` is called with whatever the module gives."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: see(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def before_each(module: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """For a while `see` is called before each call of the module, with what it is called with."""
    handle = module.register_forward_pre_hook(lambda _, args, options: see(args, options), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def attached(taps: Sequence[Tap]) -> Iterator[None]:
    """For a while the taps are in place, through any number of passes."""
    handles: list[RemovableHandle] = []
    try:
        handles.extend(map(_attach, taps))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(tap: Tap) -> RemovableHandle:
    if tap.end == "input":
        return tap.module.register_forward_pre_hook(_input_hook(tap))
    return tap.module.register_forward_hook(_output_hook(tap))


def _input_hook(tap: Tap) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (tap.visit(inputs[0], inputs[0]), *inputs[1:])

    return hook


def _output_hook(tap: Tap) -> Callable[..., Any]:
    """A module may return its tensor alone or first in a tuple, which differs between versions of transformers."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (tap.visit(inputs[0], output[0]), *output[1:])
        return tap.visit(inputs[0], output)

    return hook
