"""Reads and writes a norm's output before its gain and bias, which no module of the model outputs.

The norm computes y = n * gain + bias with n = normalise(x). To read n exactly as the model computed it, the norm's own
code runs once more on the same x with gain 1 and bias 0 (multiplying by 1 and adding 0 change no bit).

Writing n computes y = n * gain + bias in float32 (or wider), rounded once. A LayerNorm kernel may round it differently
(it may fuse the multiply and the add), and Gemma applies its gain before it rounds to a half-precision type, so the
result may differ from the model's y in the last bit. Therefore the model's own y is kept wherever the written n equals
the one read: writing an unchanged n changes nothing. Gradients flow through the written n in both cases.

If one norm is written several times in one pass, each read returns the n of the write before it.
"""

import copy
from collections.abc import MutableMapping

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_WRITTEN: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
"""Maps each written output to the n it was computed from, for as long as the output exists."""


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
        """The value n before the gain of the output `y`: the normalised `x`, or the n written before."""
        written = _WRITTEN.get(y)
        return self._bare.forward(x) if written is None else written  # not __call__, so that no hooks run

    def write(self, written: Tensor, read: Tensor, y: Tensor) -> Tensor:
        """The norm's output with `written` in place of `read`; exactly `y` in the elements where they are equal."""
        wide = torch.promote_types(y.dtype, torch.float32)
        result = written.to(wide) * (self._gain_offset + self._parameter("weight").to(wide))
        if self._norm._parameters.get("bias") is not None:
            result = result + self._parameter("bias").to(wide)
        result = result.to(y.dtype)
        if torch.is_grad_enabled() and result.requires_grad:
            y = y.detach() + (result - result.detach())  # the value of y, the gradient of what was written
        result = torch.where(written == read, y, result)
        _WRITTEN[result] = written
        return result

    def _parameter(self, name: str) -> Tensor:
        return self._norm.get_parameter(name)
