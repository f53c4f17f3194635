"""The rows of the operation tests against coremltools' own constant folding, where that has an answer.

Each rule agrees with its row's expectation (the other tests), so that is what coremltools' answer is compared with.
"""

from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function

from tests import test_mil_constexpr, test_mil_indexing, test_mil_ops, test_mil_spatial
from tests.milops import Row, wide

ROWS = [
    row for module in (test_mil_ops, test_mil_indexing, test_mil_spatial, test_mil_constexpr) for row in module.ROWS
]

# What coremltools 9.0 folds wrongly, and why the documentation is followed instead.
DEFECTS = {
    "concat": "interleave is ignored",
    "scatter_along_axis": "mode is ignored: the updates always replace",
    "cumsum": "exclusive raises, since the data is given as the element type of the zeros",
}


def folded(row: Row) -> tuple[Any, ...] | None:
    """What coremltools makes of the row when its inputs are constants; None where it folds nothing."""
    with Function({}, row.target):
        constants = [mb.const(val=each) for each in row.inputs]
        made = row.build(*constants)
    results = made if isinstance(made, (tuple, list)) else (made,)
    values = tuple(each.val for each in results)
    return None if any(value is None for value in values) else values


def agrees(row: Row) -> bool | None:
    try:
        values = folded(row)
    except TypeError:  # cumsum
        return False
    if values is None:
        return None
    expected = row.expected(*(wide(each) for each in row.inputs))
    wanted = expected if isinstance(expected, tuple) else (expected,)
    return all(
        np.shape(value) == tuple(want.shape)
        and np.allclose(np.asarray(value, np.float64), torch.as_tensor(want).double().numpy(), rtol=2e-5, atol=2e-5)
        for value, want in zip(values, wanted, strict=True)
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rules_agree_with_constant_folding() -> None:
    answers = {at: agrees(row) for at, row in enumerate(ROWS)}
    assert {ROWS[at].op for at, answer in answers.items() if answer is False} == set(DEFECTS)
    assert len({ROWS[at].op for at, answer in answers.items() if answer}) > 90
