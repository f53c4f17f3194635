"""Rows of compressed constants: the examples of their documentation, coremltools' own compression, and each rule."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize as cto
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from hft2ane.mil import open_package
from hft2ane.mil.constexpr import CONSTEXPR
from hft2ane.psnr import psnr
from tests.milops import Row, check, names, normal, reseed, run, save

# An MLModel that is collected leaves the removal of its temporary folder to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> Iterator[None]:
    """`ct.convert` runs the garbage collector twice, which is most of its time when it must look at all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


reseed()
LUT = normal(4)
HALVES = normal(3, 2).astype(np.float16)

# The documentation's example of constexpr_sparse_blockwise_shift_scale, with its arithmetic put right.
MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]], np.int8)
STORED = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)
SCALED = [[0.9, 1.8, 0, 0], [0.2, 0.4, 0.6, 0], [0, 0, 0.9, 1.2], [0.7, 1.4, 0, 0]]


def bits(array: np.ndarray) -> Any:
    return array.astype(types.np_uint1_dtype)


def sparse(mask: np.ndarray, data: np.ndarray) -> Any:
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask)


ROWS = [
    Row(
        "constexpr_lut_to_dense",
        lambda a: mb.matmul(
            x=a,
            y=mb.constexpr_lut_to_dense(
                indices=np.array([0b11011000, 0b01], np.uint8), lut=LUT, shape=np.array([1, 5], np.uint32)
            ),
        ),
        lambda a: a @ torch.tensor(LUT[[[0, 2, 1, 3, 1]]]).double(),
        (normal(3, 1),),
    ),
    Row(
        "constexpr_affine_dequantize",
        lambda a: mb.matmul(
            x=a,
            y=mb.constexpr_affine_dequantize(
                quantized_data=np.array([[-128, 5], [127, 9]], np.int8),
                zero_point=np.array([-128, 3], np.int8),
                scale=np.array([0.5, 0.25], np.float32),
                axis=0,
            ),
        ),
        lambda a: a @ torch.tensor([[0, 66.5], [31, 1.5]]).double(),
        (normal(3, 2),),
    ),
    Row(
        "constexpr_blockwise_shift_scale",
        lambda a: mb.matmul(
            x=a,
            y=mb.constexpr_blockwise_shift_scale(
                data=np.array([[-8, 5, 3, 7], [7, 1, 0, -1]]).astype(types.np_int4_dtype),
                scale=np.array([[0.5, 2]], np.float32),
                offset=np.array([[1, -2]]).astype(types.np_int4_dtype),
            ),
        ),
        lambda a: a @ torch.tensor([[-4.5, 2, 10, 18], [3, 0, 4, 2]]).double(),
        (normal(3, 2),),
        ct.target.iOS18,
    ),
    Row(
        "constexpr_cast",
        lambda a: mb.matmul(x=a, y=mb.constexpr_cast(source_val=HALVES, output_dtype="fp32")),
        lambda a: a @ torch.tensor(HALVES).double(),
        (normal(2, 3),),
    ),
    Row(
        "constexpr_sparse_to_dense",
        lambda a: mb.matmul(
            x=a,
            y=mb.constexpr_sparse_to_dense(
                nonzero_data=np.array([3, 5], np.float32),
                mask=np.array([0b1100], np.uint8),
                shape=np.array([1, 5], np.uint32),
            ),
        ),
        lambda a: a @ torch.tensor([[0, 0, 3, 5, 0]]).double(),
        (normal(3, 1),),
    ),
    Row(
        "constexpr_sparse_to_dense",
        lambda a: mb.matmul(x=a, y=sparse(bits(MASK), STORED.astype(np.float32))),
        lambda a: a @ torch.tensor([[10, 11, 0, 0], [3, 4, 5, 0], [0, 0, 6, 7], [8, 9, 0, 0]]).double(),
        (normal(3, 4),),
        ct.target.iOS18,
    ),
    Row(
        "constexpr_sparse_blockwise_shift_scale",
        lambda a: mb.matmul(
            x=a,
            y=sparse(
                *mb.constexpr_sparse_blockwise_shift_scale(
                    data_mask=bits(MASK),
                    nonzero_data=STORED,
                    scale=np.array([[0.1, 0.2, 0.3, 0.4]], np.float32),
                    offset=np.array([[1, 2, 3, 4]], np.int8),
                )
            ),
        ),
        lambda a: a @ torch.tensor(SCALED).double(),
        (normal(3, 4),),
        ct.target.iOS18,
    ),
    Row(
        "constexpr_lut_to_sparse",
        lambda a: mb.matmul(
            x=a,
            y=sparse(
                *mb.constexpr_lut_to_sparse(
                    indices_mask=bits(MASK[:2]),
                    indices_nonzero_data=np.array([3, 0, 1, 2, 1]).astype(types.np_uint2_dtype),
                    lut=LUT.reshape(1, 1, 4, 1),
                )
            ),
        ),
        lambda a: a @ torch.tensor([[LUT[3], LUT[0], 0, 0], [LUT[1], LUT[2], LUT[1], 0]]).double(),
        (normal(3, 2),),
        ct.target.iOS18,
    ),
    Row(
        "constexpr_lut_to_sparse",
        lambda a: mb.matmul(
            x=a,
            y=sparse(
                *mb.constexpr_lut_to_sparse(
                    indices_mask=bits(np.array([[1, 0], [0, 1]])),
                    indices_nonzero_data=bits(np.array([1, 0])),
                    lut=LUT.reshape(1, 1, 2, 2),
                    vector_axis=1,
                )
            ),
        ),
        lambda a: a @ torch.tensor([[LUT[2], LUT[3], 0, 0], [0, 0, LUT[0], LUT[1]]]).double(),
        (normal(3, 2),),
        ct.target.iOS18,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=names(ROWS))
def test_op(row: Row, tmp_path: Path) -> None:
    check(row, tmp_path)


# Both tests: the examples in the iOS 18 documentation of constexpr_lut_to_dense.
def test_a_table_for_each_group_of_rows() -> None:
    indices = np.array([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]], np.uint8)
    tables = np.array([[1, 5, 9, 13], [2, 10, 18, 26]], np.float32).reshape(2, 1, 4, 1)
    dense = CONSTEXPR["constexpr_lut_to_dense"](indices, tables)
    assert dense.tolist() == [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]


@pytest.mark.parametrize(("axis", "shape"), [(0, (6, 2, 2)), (1, (2, 6, 2)), (2, (2, 2, 6)), (-1, (2, 2, 6))])
def test_a_table_of_vectors(axis: int, shape: tuple[int, ...]) -> None:
    indices = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], np.uint8)
    table = np.array([[1, 2, 3], [7, 8, 9]], np.float32)
    dense = CONSTEXPR["constexpr_lut_to_dense"](indices, table.reshape(1, 1, 1, 2, 3), vector_axis=np.array(axis))
    assert dense.shape == shape
    at = np.moveaxis(dense, axis, -1).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(at, table[np.moveaxis(indices, axis, -1)])


@pytest.mark.parametrize("target", [ct.target.iOS16, ct.target.iOS18], ids=["iOS16", "iOS18"])
@pytest.mark.parametrize(
    "compress",
    [
        lambda model: cto.coreml.palettize_weights(
            model,
            cto.coreml.OptimizationConfig(cto.coreml.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0)),
        ),
        lambda model: cto.coreml.linear_quantize_weights(
            model, cto.coreml.OptimizationConfig(cto.coreml.OpLinearQuantizerConfig(mode="linear", weight_threshold=0))
        ),
    ],
    ids=["palettized", "quantized"],
)
def test_compressed_by_coremltools(compress: Callable[[Any], Any], target: Any, tmp_path: Path) -> None:
    weight = normal(24, 40).astype(np.float16)
    x = normal(3, 40).astype(np.float16)

    def build(a: Any) -> Any:
        return mb.linear(x=a, weight=weight)

    save(tmp_path / "plain.mlpackage", build, [x], target)
    small = compress(ct.models.MLModel(str(tmp_path / "plain.mlpackage"), skip_model_load=True))
    small.save(str(tmp_path / "small.mlpackage"))
    cto.coreml.decompress_weights(small).save(str(tmp_path / "dense.mlpackage"))
    compressed = open_package(tmp_path / "small.mlpackage")
    assert any(op.type in CONSTEXPR for op in compressed.functions["main"].ops)
    [got], [want] = run(compressed, [x]), run(open_package(tmp_path / "dense.mlpackage"), [x])
    # coremltools dequantises in half precision; here it is float32, rounded once.
    assert psnr(want.astype(np.float64), got.astype(np.float64)) > 60


@pytest.mark.parametrize(
    ("quantized", "target"),
    [(False, ct.target.iOS16), (False, ct.target.iOS18), (True, ct.target.iOS18)],
    ids=["iOS16", "iOS18", "iOS18, quantised too"],
)
def test_pruned_by_coremltools(quantized: bool, target: Any, tmp_path: Path) -> None:
    weight, x = normal(24, 40).astype(np.float16), normal(3, 40).astype(np.float16)
    save(tmp_path / "plain.mlpackage", lambda a: mb.linear(x=a, weight=weight), [x], target)
    plain = ct.models.MLModel(str(tmp_path / "plain.mlpackage"), skip_model_load=True)
    config = cto.coreml.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0)
    small = cto.coreml.prune_weights(plain, cto.coreml.OptimizationConfig(config))
    if quantized:
        linear = cto.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
        small = cto.coreml.linear_quantize_weights(small, cto.coreml.OptimizationConfig(linear), joint_compression=True)
    small.save(str(tmp_path / "small.mlpackage"))
    cto.coreml.decompress_weights(small).save(str(tmp_path / "dense.mlpackage"))
    program = open_package(tmp_path / "small.mlpackage")
    kinds = {op.type for op in program.functions["main"].ops}
    assert {"constexpr_sparse_to_dense"} | ({"constexpr_sparse_blockwise_shift_scale"} if quantized else set()) <= kinds
    [got], [want] = run(program, [x]), run(open_package(tmp_path / "dense.mlpackage"), [x])
    assert psnr(want.astype(np.float64), got.astype(np.float64)) > (60 if quantized else 140)
