"""How near to the original a rewrite or a package computes."""

from dataclasses import dataclass

from hft2ane.records import STRICT

CAP = 300.0  # dB: equal arrays have no finite PSNR, and JSON no infinity


@dataclass(frozen=True)
class Measure:
    """One output on one set of inputs at one length. `psnr` of all rows taken together; `psnr_min`, `psnr_median` and
    `cosine_min` over rows; for the peak see `verify.condense`. `top1` where the output is logits.

    `worst` is the text (or the name) of the row with the least PSNR; `peak` the original's largest magnitude over these
    rows, None in reports of before there was this."""

    __pydantic_config__ = STRICT
    output: str
    length: int
    inputs: str
    rows: int
    psnr: float
    psnr_min: float
    psnr_median: float
    cosine_min: float
    top1: float | None
    worst: str
    peak: float | None = None


@dataclass(frozen=True)
class Fidelity:
    """One bar: `what` is `rewrite` or a variant's name (see `named`), `backend` says what computed it.

    `psnr` and `psnr_min` are the least of the measures'; the gate stands on `psnr_min`."""

    __pydantic_config__ = STRICT
    what: str
    backend: str
    gate: float
    psnr: float
    psnr_min: float
    psnr_median: float
    top1: float | None
    measures: tuple[Measure, ...]

    @property
    def is_rewrite(self) -> bool:
        return self.what.startswith("rewrite")


@dataclass(frozen=True)
class Greedy:
    """Texts that the packages of a variant write, the best token each time, beside those of transformers' `generate`.

    `same`: texts that are the same to the end; `equal`: of the original's `tokens`, those before the first that
    differs."""

    __pydantic_config__ = STRICT
    what: str
    backend: str
    length: int
    texts: int
    same: int
    tokens: int
    equal: int
