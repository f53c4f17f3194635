"""Rows of the rules in `indexing`: gather, scatter, slices, sorting, against torch."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coremltools.converters.mil import Builder as mb

from hft2ane.errors import EvaluationError
from tests.milops import Row, check, names, normal, reseed, rng, run, save, unary

# An MLModel that is collected leaves the removal of its temporary folder to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> Iterator[None]:
    """`ct.convert` runs the garbage collector twice, which is most of its time when it must look at all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


reseed()
X = normal(3, 4, 5)
PLACES = np.array([[1, 3], [0, -1]], np.int32)
COLUMNS = rng.integers(-4, 4, (3, 2, 5)).astype(np.int32)
SHUFFLED = rng.permutation(60).reshape(3, 4, 5).astype(np.int32)
AXIS = np.array([2, 0, 2], np.int32)  # one place twice
STEPS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "max": torch.maximum,
    "min": torch.minimum,
}


def one_by_one(mode: str) -> Callable[..., Any]:
    """scatter on axis 1 with the indices AXIS, one after another."""

    def expected(data: Any, updates: Any) -> Any:
        out = data.clone()
        for i, at in enumerate(AXIS):
            out[:, at] = STEPS[mode](out[:, at], updates[:, i])
        return out

    return expected


def scattered(mode: str) -> Row:
    return Row(
        "scatter",
        lambda a, b: mb.scatter(data=a, indices=AXIS, updates=b, axis=1, mode=mode),
        one_by_one(mode),
        (X, normal(3, 3, 5)),
    )


def sorted_by(axis: int, descending: bool) -> Callable[..., Any]:
    return lambda x: torch.argsort(x, dim=axis, descending=descending)


ROWS = [
    *map(scattered, STEPS),
    Row(
        "scatter",
        lambda a, b: mb.scatter(data=a, indices=np.array([2, -3], np.int32), updates=b, axis=-1, mode="update"),
        lambda a, b: torch.stack((a[..., 0], a[..., 1], b[..., 0], a[..., 3], a[..., 4]), -1).index_copy(
            -1, torch.tensor([2]), b[..., 1:]
        ),
        (X, normal(3, 4, 2)),
    ),
    Row(
        "scatter_along_axis",
        lambda a, b: mb.scatter_along_axis(
            data=a, indices=np.array([[1, 0, 1]] * 2, np.int32), updates=b, axis=0, mode="add"
        ),
        lambda a, b: a + torch.tensor([[0, 1, 0], [1, 0, 1]]) * b.sum(0),
        (normal(2, 3), normal(2, 3)),
    ),
    Row(
        "scatter_along_axis",
        lambda a, b: mb.scatter_along_axis(
            data=a, indices=np.array([[3], [0], [1]], np.int32), updates=b, axis=1, mode="update"
        ),
        lambda a, b: a.scatter(1, torch.tensor([[3], [0], [1]]), b),
        (normal(3, 4), normal(3, 1)),
    ),
    Row(
        "scatter_nd",
        lambda a, b: mb.scatter_nd(data=a, indices=PLACES, updates=b, mode="update"),
        lambda a, b: a.index_put((torch.tensor([1, 0]), torch.tensor([3, 3])), b),
        (X, normal(2, 5)),
    ),
    Row(
        "scatter_nd",
        lambda a, b: mb.scatter_nd(
            data=a, indices=np.array([[1], [1]], np.int32), updates=b, mode="add", validate_indices=True
        ),
        lambda a, b: torch.stack((a[0], a[1] + b[0] + b[1], a[2])),
        (X, normal(2, 4, 5)),
        ct.target.iOS17,
    ),
    Row(
        "gather_along_axis",
        lambda a, b: mb.gather_along_axis(x=a, indices=b, axis=1),
        lambda a, b: torch.take_along_dim(a, b % 4, 1),
        (X, COLUMNS),
    ),
    Row("gather_nd", lambda a: mb.gather_nd(x=a, indices=PLACES), lambda a: torch.stack((a[1, 3], a[0, -1])), (X,)),
    Row(
        "gather_nd",
        lambda a: mb.gather_nd(
            x=a, indices=np.array([[2, 0], [3, 4], [1, 1]], np.int32), batch_dims=1, validate_indices=False
        ),
        lambda a: torch.stack((a[0, 2, 0], a[1, 3, 4], a[2, 1, 1])),
        (X,),
        ct.target.iOS17,
    ),
    unary("argsort", sorted_by(1, True), SHUFFLED, axis=1),
    unary("argsort", sorted_by(-1, False), X, axis=-1, ascending=True),
    unary("topk", lambda x: tuple(x.topk(2, 1)), SHUFFLED, k=2, axis=1),
    unary("topk", lambda x: tuple(x.topk(3, -1, largest=False)), X, k=3, ascending=True),
    Row(
        "topk",
        lambda a: mb.topk(x=a, k=3, axis=0, sort=False, return_indices=False),
        lambda a: a.sort(0, descending=True).values,
        (X,),
    ),
    unary("cumsum", lambda x: x.cumsum(1), axis=1),
    unary("cumsum", lambda x: F.pad(x, (1, 0)).cumsum(-1)[..., :-1], axis=-1, exclusive=True),
    unary("cumsum", lambda x: x.sum(0) - x.cumsum(0) + x, SHUFFLED, axis=0, reverse=True),
    unary("cumsum", lambda x: x.sum(0) - x.cumsum(0), SHUFFLED, axis=0, reverse=True, exclusive=True),
    unary("band_part", lambda x: x.triu(-1).tril(2), normal(2, 5, 6), lower=1, upper=2),
    unary("band_part", lambda x: x.triu(), normal(2, 5, 6), lower=0),
    unary("band_part", lambda x: x.tril(), normal(3, 4), upper=0),
    Row(
        "one_hot",
        lambda a: mb.one_hot(indices=a, one_hot_vector_size=5, axis=1, on_value=2.5, off_value=-1.0),
        lambda a: F.one_hot(a, 5).movedim(-1, 1) * 3.5 - 1,
        (abs(PLACES),),
    ),
    Row(
        "one_hot",
        lambda a: mb.one_hot(indices=a, one_hot_vector_size=3),
        lambda a: (a[..., None] == torch.arange(3)).int(),  # 3 and -1 are nowhere on
        (PLACES,),
    ),
    unary("pad", lambda x: F.pad(x, (0, 3, 1, 2), value=-2.5), X, pad=[1, 2, 0, 3], constant_val=-2.5),
    unary("pad", lambda x: F.pad(x, (2, 3, 3, 1), mode="reflect"), X, pad=[3, 1, 2, 3], mode="reflect"),
    unary("pad", lambda x: F.pad(x, (2, 4), mode="replicate"), X, pad=[2, 4], mode="replicate"),
    unary("reverse", lambda x: x.flip(0, 2), axes=[0, -1]),
    unary("reverse", lambda x: x.flip(0, 1, 2)),
    Row(
        "reverse_sequence",
        lambda a: mb.reverse_sequence(x=a, lengths=np.array([0, 3, 2, 4], np.int32), seq_axis=2, batch_axis=1),
        lambda a: torch.stack(
            [torch.cat((a[:, i, :n].flip(1), a[:, i, n:]), 1) for i, n in enumerate((0, 3, 2, 4))], 1
        ),
        (X,),
    ),
    unary("sliding_windows", lambda x: torch.stack([x[:, i : i + 2] for i in (0, 2)], 1), X, axis=1, size=2, stride=2),
    unary("sliding_windows", lambda x: torch.stack([x[..., i : i + 3] for i in range(3)], -2), X, axis=-1, size=3),
    Row(
        "slice_update",
        lambda a, b: mb.slice_update(
            x=a, update=b, begin=[0, 1, 0], end=[3, 4, 0], stride=[2, 1, 2], end_mask=[False, False, True]
        ),
        lambda a, b: a.index_put(
            (torch.tensor([0, 2])[:, None, None], torch.tensor([1, 2, 3])[:, None], torch.tensor([0, 2, 4])), b
        ),
        (X, normal(2, 3, 3)),
        ct.target.iOS18,
    ),
    unary("non_zero", lambda x: x.nonzero(), np.array([[0, 3, 0], [1, 0, 2]], np.int32)),
]


@pytest.mark.parametrize("row", ROWS, ids=names(ROWS))
def test_op(row: Row, tmp_path: Path) -> None:
    check(row, tmp_path)


def test_outside_the_band_infinity_is_zero_too(tmp_path: Path) -> None:
    x = np.full((3, 3), -np.inf, np.float32)
    program = save(tmp_path / "x.mlpackage", lambda a: mb.band_part(x=a, lower=0), [x])
    assert np.array_equal(np.isinf(run(program, [x])[0]), np.triu(np.ones((3, 3), bool)))
    assert not np.isnan(run(program, [x])[0]).any()


@pytest.mark.parametrize(
    "build",
    [
        lambda a, i: mb.gather_nd(x=a, indices=i, name="it"),
        lambda a, i: mb.gather_along_axis(x=a, indices=i, axis=0, name="it"),
        lambda a, i: mb.scatter_nd(data=a, indices=i, updates=normal(2), name="it"),
    ],
)
def test_an_index_out_of_range(build: Callable[..., Any], tmp_path: Path) -> None:
    x, bad = normal(2, 2), np.array([[0, 1], [2, 0]], np.int32)
    with pytest.raises(EvaluationError, match=r"'it': indices 0 to 2 are not all in -2\.\.1"):
        run(save(tmp_path / "x.mlpackage", build, [x, bad]), [x, bad])
