"""The one definition of PSNR, and the other figures of a report, on plain arrays."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Deviation:
    """What PSNR is made of. Those of parts add up to that of the whole, so that the whole need not be kept.

    `peak`: max|reference|; `squares`: Σ(reference − got)²; `count`: numbers compared."""

    peak: float
    squares: float
    count: int

    def __add__(self, other: "Deviation") -> "Deviation":
        return Deviation(max(self.peak, other.peak), self.squares + other.squares, self.count + other.count)

    @property
    def psnr(self) -> float:
        """20·log10(max|reference| / rms(reference − got)) in dB; infinite when equal."""
        mean = self.squares / self.count
        return math.inf if mean == 0 else 20 * math.log10(self.peak) - 10 * math.log10(mean)


def deviation(reference: Array, got: Array) -> Deviation:
    """ValueError on another shape, on nothing or only zeros to compare with, and on NaN or infinity on either side,
    which comparisons would let pass."""
    if reference.shape != got.shape:
        raise ValueError(f"shape {got.shape}, expected {reference.shape}")
    for name, values in (("reference", reference), ("result", got)):
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} has {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    peak = float(np.abs(reference).max(initial=0))
    if peak == 0:
        raise ValueError("the reference is zero everywhere" if reference.size else "there is nothing to compare")
    return Deviation(peak, float(np.square(reference.astype(np.float64) - got).sum()), reference.size)


def psnr(reference: Array, got: Array) -> float:
    """20·log10(max|reference| / rms(reference − got)) in dB; infinite when equal. ValueError: see `deviation`."""
    return deviation(reference, got).psnr


def cosine(reference: Array, got: Array) -> float:
    """Cosine similarity of the two arrays as vectors; 0 where one of them is zero and has no direction."""
    a, b = reference.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def top1(reference: Array, got: Array) -> float:
    """Share of positions whose largest entry on the last axis is the same."""
    return float(np.mean(reference.argmax(-1) == got.argmax(-1)))
