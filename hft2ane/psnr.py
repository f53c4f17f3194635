"""The one definition of PSNR, and the other figures of a report, on plain arrays."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def psnr(reference: Array, got: Array) -> float:
    """20·log10(max|reference| / rms(reference − got)) in dB; infinite when equal.

    ValueError on another shape, and on NaN or infinity on either side, which comparisons would let pass."""
    if reference.shape != got.shape:
        raise ValueError(f"shape {got.shape}, expected {reference.shape}")
    for name, values in (("reference", reference), ("result", got)):
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} has {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    rms = float(np.sqrt(np.mean(np.square(reference.astype(np.float64) - got))))
    peak = float(np.abs(reference).max())
    if peak == 0:
        raise ValueError("the reference is zero everywhere")
    return float("inf") if rms == 0 else 20 * float(np.log10(peak / rms))


def cosine(reference: Array, got: Array) -> float:
    """Cosine similarity of the two arrays as vectors."""
    a, b = reference.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def top1(reference: Array, got: Array) -> float:
    """Share of positions whose largest entry on the last axis is the same."""
    return float(np.mean(reference.argmax(-1) == got.argmax(-1)))
