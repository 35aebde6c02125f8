"""Arithmetic of the compiled kernels: conversion to and from bfloat16, inner products, norms, the k-th largest.

bfloat16 is stored as int16, since Numba has no such type: the upper half of a float32's bits. Numbers that are not
negative are compared as int32 bit patterns, which have the same order and, unlike floats with their NaN, vectorise.

Shape letters: D width of a row, F latents.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from panscope.kernels.cpu.compiled import inlined

ZERO, LEAST, ONE = np.float32(0), np.float32(2.0**-149), np.float32(1)
"""0, the smallest positive float32, and 1; a literal 0.0 would promote expressions to float64."""
_HALF, _NAN = np.int32(0x7FFF), np.int16(0x7FC0)


def widen(stored: Any) -> Any:
    """The float32 value of a bfloat16 given by its bits; a float32 is returned unchanged."""
    raise NotImplementedError("widen can be called in compiled code only")


@overload(widen)
def _widen(stored):  # No annotations: Numba requires the signature of the lambdas.
    if isinstance(stored, types.Integer):
        return lambda stored: np.int32(np.int32(stored) << 16).view(np.float32)
    return lambda stored: stored


@inlined
def bits_of(value: Any) -> Any:
    """The int32 with a float32's bits."""
    return np.float32(value).view(np.int32)


@inlined
def from_bits(bits: Any) -> Any:
    """The float32 with an int32's bits."""
    return np.int32(bits).view(np.float32)


@inlined
def narrow(value: Any) -> Any:
    """The bits of the nearest bfloat16, ties to even."""
    bits = bits_of(value)
    return np.int16((bits + _HALF + ((bits >> 16) & 1)) >> 16) if value == value else _NAN


def _count_trailing_zeros(_: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int32(types.int32), generate


lowest_bit: Any = intrinsic(_count_trailing_zeros)
"""The index, from 0, of the lowest set bit of a nonzero int32."""


def _prefetch(_: Any, array: Any, place: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        data = context.make_array(array)(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), pointer)
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)
"""Prefetch an element of a one-dimensional array into the cache: (array, index)."""


@inlined
def dot(a: Any, b: Any) -> Any:
    """The inner product of two rows [D], in float32."""
    total = ZERO
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@inlined
def copy(row: Any, copied: Any) -> None:
    """copied = row, rows [D]; a slice assignment would first copy to newly allocated memory."""
    for d in range(len(copied)):
        copied[d] = row[d]


@inlined
def add(factor: Any, row: Any, total: Any) -> None:
    """total += factor * row, rows [D]."""
    for d in range(len(total)):
        total[d] += factor * row[d]


@inlined
def squared(row: Any) -> Any:
    """The squared norm of a float32 row [D], in float64, in which no float32's square over- or underflows."""
    total = 0.0
    for d in range(len(row)):
        total += np.float64(row[d]) * np.float64(row[d])
    return total


@inlined
def dots(x: Any, rows: Any, latents: Any, chosen: Any, count: Any, found: Any) -> None:
    """found[j] = x . rows[latents[j]] for the first `count` indices j of `chosen`, four at a time.

    `chosen` has at least three more elements, which are set to the last index, so that every product is computed by the
    same loop and in the same order.
    """
    for n in range(count, count + 3):
        chosen[n] = chosen[count - 1]
    for n in range(0, count, 4):
        j0, j1, j2, j3 = chosen[n], chosen[n + 1], chosen[n + 2], chosen[n + 3]
        w0, w1, w2, w3 = rows[latents[j0]], rows[latents[j1]], rows[latents[j2]], rows[latents[j3]]
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for d in range(len(x)):
            s0 += x[d] * w0[d]
            s1 += x[d] * w1[d]
            s2 += x[d] * w2[d]
            s3 += x[d] * w3[d]
        found[j0], found[j1], found[j2], found[j3] = s0, s1, s2, s3


@inlined
def kth_largest(keys: Any, count: Any, k: Any) -> Any:
    """A threshold that at least k of the first `count` keys reach, and more than k only if some are equal to it.

    The keys are int32, not negative, in an array of at least `count` + 63 elements; k >= 1; the threshold is 0 if there
    are fewer than k keys. Bisects by counting, which vectorises: several times faster than quickselect for a few
    hundred keys.
    """
    padded = (count + 63) & ~63
    keys[count:padded] = 0
    low, high = np.int32(0), np.int32(0)
    for n in range(padded):
        high = max(high, keys[n])
    high = np.int32(high + 1)
    while high - low > 1:
        middle = np.int32(low + ((high - low) >> 1))
        reached = np.int32(0)
        for n in range(padded):
            reached = np.int32(reached + (keys[n] >= middle))
        if reached == k:
            return middle
        if reached > k:
            low = middle
        else:
            high = middle
    return low
