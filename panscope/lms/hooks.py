"""Forward hooks that read and replace the inputs and outputs of modules; no other file registers hooks.

`stubbed` skips modules whose output is already known: they return it without computing anything.

A tap ends a forward pass early by raising `PassDone`, and `run_with` then returns None. This is safe because
transformers restores the state that a forward call changes in `finally` blocks, and the hooks are removed in one too.
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
    """Raised by a tap to end the forward pass early."""


@dataclass(frozen=True)
class Tap:
    """A function called with a module's input or output during a forward pass."""

    module: nn.Module
    end: End
    visit: Callable[[Tensor, Tensor], Tensor]
    """Called with the module's input and the tensor at `end`; its return value replaces that tensor."""


def run_with(taps: Sequence[Tap], forward: Callable[[], Result]) -> Result | None:
    """The result of `forward()` with the taps attached, or None if a tap ended the pass; the taps are removed after."""
    try:
        with attached(taps):
            return forward()
    except PassDone:
        return None


@contextmanager
def stubbed(modules: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """A context in which these modules return `output` for any input and compute nothing."""
    try:
        for module in modules:
            module.forward = lambda *_, **__: output
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)  # restores the class's method


@contextmanager
def after_each_call(module: nn.Module, callback: Callable[[Any], None]) -> Iterator[None]:
    """A context in which `callback` is called with each output of the module."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: callback(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def before_each_call(module: nn.Module, callback: Callable[[tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """A context in which `callback` is called before each call of the module, with its arguments."""
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: callback(args, kwargs), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def attached(taps: Sequence[Tap]) -> Iterator[None]:
    """A context in which the taps are attached, for any number of forward passes."""
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
    """Handles an output that is a tensor or a tuple that begins with it: this differs between transformers releases."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (tap.visit(inputs[0], output[0]), *output[1:])
        return tap.visit(inputs[0], output)

    return hook
