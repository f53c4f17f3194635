"""Smaller weights: what each variant makes of a tensor, on plain numpy arrays and without data.

Only sums in a fixed order, products and quotients are used, which IEEE 754 defines to the last bit: the
same weights give the same bytes anywhere.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hft2ane.records.package import Mixture
from hft2ane.records.recipe import Form, Variant

Array = NDArray[Any]

# What each form says of the weights.
KEPT = (
    "int8 with a scale and zero point a row for tables that are looked up; "
    "fp16 for positions, norms, biases and tensors below 2048 numbers"
)
WEIGHTS: dict[Form, str] = {
    "float16": "fp16",
    "int8": f"int8 with a scale and zero point an output channel for linear layers; {KEPT}",
    "palettized-8": f"a palette of 256 fp16 values a linear layer; {KEPT}",
    "palettized-6": f"a palette of 64 fp16 values a linear layer; {KEPT}",
    "palettized-4": f"a palette of 16 fp16 values a linear layer; {KEPT}",
}
LEAST_NUMBERS = 2048  # a smaller tensor stays in fp16: it would save nothing that one could measure
PALETTES: dict[Form, int] = {"palettized-8": 8, "palettized-6": 6, "palettized-4": 4}  # bits an index
MIXED: dict[Variant, Form] = {"mixed-6": "palettized-6", "mixed-4": "palettized-4"}  # what most layers have
ROUNDS = 300  # of Lloyd's algorithm at most; it stops before when nothing moves
# Quantisation in ranges up to INT8_MAX - INT8_LEAST steps.
INT8_LEAST, INT8_MAX = -128, 127


@dataclass(frozen=True)
class Quantized:
    """weight = scale · (data − zero_point), with one scale and zero point for each entry of axis 0.

    `data` int8 in the weight's shape, `scale` fp16 (channels,), `zero_point` int8 (channels,)."""

    data: Array
    scale: Array
    zero_point: Array

    @property
    def dense(self) -> Array:
        """The fp16 weights that it stands for."""
        shape = (-1, *[1] * (self.data.ndim - 1))
        scale, zero_point = (each.astype(np.float32).reshape(shape) for each in (self.scale, self.zero_point))
        return (scale * (self.data.astype(np.float32) - zero_point)).astype(np.float16)


@dataclass(frozen=True)
class Palettized:
    """weight = lut[indices]: `indices` uint8 in the weight's shape, each of `bits` bits; `lut` fp16 (2^bits,)."""

    indices: Array
    lut: Array
    bits: int

    @property
    def dense(self) -> Array:
        """The fp16 weights that it stands for."""
        values: Array = self.lut[self.indices]
        return values

    @property
    def packed(self) -> Array:
        """The indices as the bytes of a file, uint8: from the lowest bit of the first byte up, nothing between them."""
        return pack(self.indices.ravel(), self.bits)


Compressed = Quantized | Palettized


def about(variant: Variant, mixture: Mixture | None) -> str:
    """What a package says of its weights. `mixture`: of a mixed variant."""
    if mixture is None:
        return WEIGHTS[variant]  # type: ignore[index]
    if not mixture.raised:
        return WEIGHTS[mixture.form]
    counts = Counter(raised.form for raised in mixture.raised)
    more = [
        f"{'fp16' if each == 'float16' else f'one of {1 << PALETTES[each]}'} in {counts[each]}"
        for each in ("palettized-6", "palettized-8", "float16")
        if each in counts
    ]
    most = WEIGHTS[mixture.form].removesuffix(f"; {KEPT}")
    return f"{most}, but {' and '.join(more)} that lose most for their size; {KEPT}"


def compress(weight: Array, linear: Form, table: bool) -> Compressed | None:
    """What becomes of an fp16 weight (out, in, 1, 1) or table (entries, channels) where linear layers have the form
    `linear`; None: it stays fp16. `table`: rows are looked up."""
    stored = form(weight.size, linear, table)
    if stored == "float16":
        return None
    return quantize(weight) if stored == "int8" else palettize(weight, PALETTES[stored])


def form(numbers: int, linear: Form, table: bool) -> Form:
    """How a tensor of so many numbers is stored where linear layers have the form `linear`.

    Tables, whose rows are looked up, have a scale a row in every variant; why: docs/decisions.md."""
    if linear == "float16" or numbers < LEAST_NUMBERS:
        return "float16"
    return "int8" if table else linear


def stored_bytes(shape: Sequence[int], stored: Form) -> int:
    """What a tensor of this shape takes in the form in which it is stored, without what aligns it in a file."""
    numbers: int = math.prod(shape)
    if stored == "float16":
        return 2 * numbers
    if stored == "int8":
        return numbers + 3 * shape[0]
    bits = PALETTES[stored]
    return -(-numbers * bits // 8) + (2 << bits)


def quantize(weight: Array) -> Quantized:
    """int8 with a scale and a zero point for each entry of axis 0. Zero stays zero, and no weight is out of range.

    The scale is rounded up to fp16 before anything is divided by it."""
    rows = weight.astype(np.float32).reshape(len(weight), -1)
    low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    scale = above((high - low) / (INT8_MAX - INT8_LEAST))
    step = scale.astype(np.float32)
    zero_point = np.clip(np.rint(INT8_LEAST - low / step), INT8_LEAST, INT8_MAX)
    rows /= step[:, None]
    rows += zero_point[:, None]
    data = np.clip(np.rint(rows, out=rows), INT8_LEAST, INT8_MAX, out=rows).astype(np.int8)
    return Quantized(data.reshape(weight.shape), scale, zero_point.astype(np.int8))


def above(values: Array) -> Array:
    """The least fp16 numbers that are not below these; 1 in place of 0."""
    near = values.astype(np.float16)
    near = np.where(near < values, np.nextafter(near, np.float16(np.inf)), near)
    return np.where(near == 0, np.float16(1), near)


def palettize(weight: Array, bits: int) -> Palettized:
    """The 2^bits fp16 values that stand for all weights with the least mean square error that Lloyd's algorithm finds.

    It runs on the histogram of the weights, for fp16 has few different numbers: at most 63 488 finite ones, whatever
    the size of the tensor."""
    words = weight.ravel().view(np.uint16)
    counts = np.bincount(words, minlength=1 << 16)
    held = np.flatnonzero(counts).astype(np.uint16)
    values = held.view(np.float16).astype(np.float64)
    order = np.argsort(values, kind="stable")
    held, values, counts = held[order], values[order], counts[held[order]]
    lut = centroids(values, counts, 1 << bits).astype(np.float16)
    index = np.zeros(1 << 16, np.uint8)
    index[held] = nearest(lut.astype(np.float64), values)
    return Palettized(index[words].reshape(weight.shape), lut, bits)


def centroids(values: Array, counts: Array, count: int) -> Array:
    """`count` ascending values; `values` ascend too."""
    if len(values) <= count:
        return np.concatenate([values, np.full(count - len(values), values[-1])])
    histogram = Histogram.of(values, counts)
    return histogram.lloyd(histogram.merged(count))


@dataclass(frozen=True)
class Histogram:
    """Weighted ascending numbers, and the running sums from which any stretch of them is summed at once."""

    values: Array
    weights: Array  # running sums of counts
    sums: Array  # of counts · values

    @classmethod
    def of(cls, values: Array, counts: Array) -> "Histogram":
        running = (np.concatenate([[0.0], np.cumsum(each)]) for each in (counts, counts * values))
        return cls(values, *running)

    def merged(self, count: int) -> Array:
        """`count` centres: neighbours that lose least by it are merged, first of all numbers, until so many are left.

        At once those that lose less than the pairs on both sides of them, and are among a quarter of what has to go."""
        bounds = np.arange(len(self.values) + 1)
        while (excess := len(bounds) - 1 - count) > 0:
            weights = np.diff(self.weights[bounds])
            means = np.diff(self.sums[bounds]) / weights
            loss = np.diff(means) ** 2 * weights[1:] * weights[:-1] / (weights[1:] + weights[:-1])
            loss[1::2] *= 1 + 2.0**-20  # of a row of equal losses every second is the least
            around = np.concatenate([[np.inf], loss, [np.inf]])
            enough = np.partition(loss, excess // 4)[excess // 4]
            pairs = np.flatnonzero((loss < around[:-2]) & (loss <= around[2:]) & (loss <= enough))[:excess]
            bounds = np.delete(bounds, pairs + 1)
        return np.diff(self.sums[bounds]) / np.diff(self.weights[bounds])

    def lloyd(self, centers: Array) -> Array:
        """Each centre to the mean of what is nearest to it, again and again; one with nothing near it stays."""
        for _ in range(ROUNDS):
            bounds = self.bounds(centers)
            weights = np.diff(self.weights[bounds])
            means = np.divide(np.diff(self.sums[bounds]), weights, out=centers.copy(), where=weights > 0)
            if np.array_equal(means, centers):
                break
            centers = means
        return centers

    def bounds(self, centers: Array) -> Array:
        """Where the values nearest to each centre begin and end."""
        between = np.searchsorted(self.values, (centers[1:] + centers[:-1]) / 2)
        return np.concatenate([[0], between, [len(self.values)]])


def nearest(centers: Array, values: Array) -> Array:
    """The index of the centre nearest to each value; both ascend."""
    return np.searchsorted((centers[1:] + centers[:-1]) / 2, values, side="right")


def pack(indices: Array, bits: int) -> Array:
    """Numbers below 2^bits, uint8 (n,) -> uint8 (ceil(n · bits / 8),)."""
    if bits == 8:
        return indices
    per_group = 4  # 4 indices of 6 bits are 3 bytes, 4 of 4 bits are 2
    padded = np.pad(indices, (0, -len(indices) % per_group)).reshape(-1, per_group).astype(np.uint32)
    words: Array = padded[:, 0]
    for i in range(1, per_group):
        words = words | padded[:, i] << (i * bits)
    count = per_group * bits // 8
    groups = np.stack([(words >> (8 * i)).astype(np.uint8) for i in range(count)], axis=1)
    return np.ascontiguousarray(groups.ravel()[: -(-len(indices) * bits // 8)])
