"""PSNR against its definition and against figures worked out by hand, and the properties that a report relies on."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hft2ane import records
from hft2ane.psnr import Array, Deviation, cosine, deviation, psnr, top1
from hft2ane.records.fidelity import Measure
from hft2ane.verify import CAP, capped

numbers = st.floats(-(2.0**100), 2.0**100, width=32)
shapes = arrays.array_shapes(max_dims=3, max_side=5)
pairs = shapes.flatmap(
    lambda shape: st.tuples(*(arrays.arrays(np.float32, shape, elements=numbers) for _ in range(2)))
).filter(lambda pair: bool(pair[0].any()))


def test_by_hand() -> None:
    reference, got = np.array([3.0, -4.0, 0.0, 0.0]), np.array([3.0, -4.0, 0.02, 0.0])
    assert psnr(reference, got) == pytest.approx(20 * math.log10(4 / 0.01))  # rms = 0.02 / √4
    assert psnr(reference.reshape(2, 2), got.reshape(2, 2)) == psnr(reference, got)
    assert psnr(np.array([1.0]), np.array([3.0])) == pytest.approx(-20 * math.log10(2))  # worse than nothing


@given(pairs)
def test_the_definition(pair: tuple[Array, Array]) -> None:
    reference, got = (each.astype(np.float64) for each in pair)
    rms = np.sqrt(np.mean((reference - got) ** 2))
    figure = psnr(*pair)
    assert figure == pytest.approx(20 * np.log10(np.abs(reference).max() / rms)) if rms else figure == math.inf
    assert not math.isnan(figure)


@given(pairs, st.integers(-20, 20))
def test_scale_does_not_matter(pair: tuple[Array, Array], exponent: int) -> None:
    reference, got = (each.astype(np.float64) for each in pair)
    assert psnr(reference * 2.0**exponent, got * 2.0**exponent) == pytest.approx(psnr(reference, got))


@given(pairs, st.floats(1.5, 1000))
def test_more_error_is_fewer_decibels(pair: tuple[Array, Array], factor: float) -> None:
    reference, got = (each.astype(np.float64) for each in pair)
    figure = psnr(reference, got)
    worse = psnr(reference, reference + factor * (got - reference))
    assert worse == pytest.approx(figure - 20 * math.log10(factor), abs=1e-3) if figure < 150 else worse <= math.inf


@given(st.lists(pairs, min_size=1, max_size=5))
def test_the_whole_from_its_parts(parts: list[tuple[Array, Array]]) -> None:
    """One peak, one rms over everything: what concatenating gives, and between the worst and the best part or above."""
    reference, got = (np.concatenate([part[side].ravel() for part in parts]) for side in (0, 1))
    whole = sum((deviation(*part) for part in parts), Deviation(0, 0, 0))
    assert whole.psnr == pytest.approx(psnr(reference, got))
    assert whole.count == reference.size
    assert whole.psnr >= min(psnr(*part) for part in parts) - 1e-6  # the worst row is the stricter figure


def test_what_must_not_be_compared() -> None:
    good = np.array([[1.0, 2.0]])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="the result has 1 values that are not finite"):
            psnr(good, np.array([[1.0, bad]]))
        with pytest.raises(ValueError, match="the reference has 1 values that are not finite"):
            psnr(np.array([[1.0, bad]]), good)
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(1, 2\)"):
        psnr(good, good[0])
    with pytest.raises(ValueError, match="zero everywhere"):
        psnr(good * 0, good)
    with pytest.raises(ValueError, match="nothing to compare"):
        psnr(good[:0], good[:0])


def test_half_precision_is_not_added_up_in_half_precision() -> None:
    reference = np.full(100_000, 1000, np.float32)
    assert psnr(reference, (reference + 1).astype(np.float16)) == pytest.approx(60)


@given(pairs)
def test_no_figure_is_beyond_json(pair: tuple[Array, Array]) -> None:
    """Equal arrays, results of zero, and anything in between give numbers that JSON has."""
    for got in (pair[1], pair[0], pair[0] * 0):
        figures = (capped(deviation(pair[0], got)), cosine(pair[0], got))
        assert all(map(math.isfinite, figures))
        assert abs(figures[1]) <= 1 + 1e-9
        measure = Measure("logits", 8, "sentences", 1, *(figures[0],) * 3, figures[1], None, "")
        assert records.parse(records.dump(measure), Measure, "here") == measure
        json.loads(records.dump(measure), parse_constant=pytest.fail)
    assert capped(deviation(pair[0], pair[0])) == CAP


def test_cosine() -> None:
    a = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert cosine(a, 3 * a) == pytest.approx(1)
    assert cosine(a, -a) == pytest.approx(-1)
    assert cosine(a, a[::-1]) == 0
    assert cosine(a, 0 * a) == 0


def test_top1() -> None:
    reference = np.array([[1.0, 5.0, 2.0], [9.0, 1.0, 0.0]])
    assert top1(reference, reference + 100) == 1
    assert top1(reference, np.array([[0.0, 0.1, 0.0], [1.0, 2.0, 3.0]])) == 0.5
    assert top1(reference[0], reference[1]) == 0
