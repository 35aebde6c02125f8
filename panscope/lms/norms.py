"""A norm's output before its gain and bias, which no module of the model holds as a tensor, and the way back.

The norm computes y = n * gain + bias with n = normalise(x). To read n exactly as the model computed it, the norm's own
code runs once more on the same x with gain 1 and bias 0 (multiplying by 1 and adding 0 change no bit).

The way back is n * gain + bias in float32 (or wider), rounded once. A LayerNorm kernel may round it differently (it may
fuse the multiply and the add), and Gemma applies its gain before it rounds to a half-precision type, so n * gain + bias
need not equal y in the last bit. Therefore, wherever the written n equals the one that was read, the model's own y is
kept: writing back what was read changes nothing. Gradients pass through what was written all the same.

Where several write at one norm in one pass, each reads what the one before it wrote.
"""

import copy
from collections.abc import MutableMapping

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_WRITTEN: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
"""Of outputs that were written, for as long as they live: the n they were written from."""


class NormWithoutGain:
    """Reads and writes the value of `norm` before its gain; the gain is `gain_offset + norm.weight`."""

    def __init__(self, norm: nn.Module, gain_offset: float) -> None:
        self._norm = norm
        self._gain_offset = gain_offset
        self._bare = copy.deepcopy(norm)
        with torch.no_grad():
            for name, parameter in self._bare.named_parameters():
                parameter.fill_(1.0 - gain_offset if name == "weight" else 0.0)

    def read(self, x: Tensor, y: Tensor) -> Tensor:
        """What stands before the gain of the output `y`: the normalised `x`, or what was written there since."""
        written = _WRITTEN.get(y)
        return self._bare.forward(x) if written is None else written  # not __call__: our own reading runs no hooks

    def write(self, written: Tensor, read: Tensor, y: Tensor) -> Tensor:
        """The norm's output if `written` stood where `read` did; exactly `y`, element by element, where they agree."""
        wide = torch.promote_types(y.dtype, torch.float32)
        result = written.to(wide) * (self._gain_offset + self._parameter("weight").to(wide))
        if self._norm._parameters.get("bias") is not None:
            result = result + self._parameter("bias").to(wide)
        result = result.to(y.dtype)
        if torch.is_grad_enabled() and result.requires_grad:
            y = y.detach() + (result - result.detach())  # y to the bit, and its gradient by way of what was written
        result = torch.where(written == read, y, result)
        _WRITTEN[result] = written
        return result

    def _parameter(self, name: str) -> Tensor:
        return self._norm.get_parameter(name)
