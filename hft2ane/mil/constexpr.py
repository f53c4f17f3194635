"""Compressed constants: what each encoding stands for, on numpy arrays as they are stored, a row an operation.

Parameter names are MIL's. Results are as exact as their inputs; the evaluator rounds them to the declared type. Source
of the formulas: the documentation of `constexpr_*` in coremltools 9.0, iOS 16 (one table, everything packed into bytes)
and iOS 18 (types of less than a byte, tables and scales by group, sparse pairs of mask and data).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def lut_to_dense(indices: Array, lut: Array, shape: Array | None = None, vector_axis: Array | None = None) -> Array:
    """`shape` makes it the form up to iOS 17: one table, indices packed into bytes. From iOS 18 on the table has two
    axes more than the indices, (…, entries, vector), and its leading axes divide the tensor into groups of entries."""
    if shape is not None:
        return lut[_unpacked(indices, lut.size.bit_length() - 1, shape)]
    *groups, _, length = lut.shape
    which = np.ix_(*(np.arange(size) // (size // group) for size, group in zip(indices.shape, groups, strict=True)))
    vectors: Array = lut[(*which, indices)]
    if vector_axis is None:
        if length != 1:
            raise ValueError(f"vectors of {length} values need a vector_axis")
        return vectors[..., 0]
    axis = int(vector_axis) % indices.ndim
    out_shape = [size * length if at == axis else size for at, size in enumerate(indices.shape)]
    return np.moveaxis(vectors, -1, axis + 1).reshape(out_shape)


def _unpacked(packed: Array, width: int, shape: Array) -> Array:
    """Elements of `width` bits, packed from the lowest bit up."""
    count = math.prod(shape.tolist())
    bits = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
    values: Array = np.packbits(bits, axis=1, bitorder="little").reshape(shape.tolist())
    return values


def affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    shape = [1] * quantized_data.ndim
    shape[int(axis)] = -1
    scale, zero_point = (each.astype(np.float32).reshape(shape) for each in (scale, zero_point))
    return scale * (quantized_data.astype(np.float32) - zero_point)


def blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    """Blocks are of data.shape / scale.shape elements along each axis."""
    which = np.ix_(*(np.arange(size) // (size // block) for size, block in zip(data.shape, scale.shape, strict=True)))
    shifted = data.astype(np.float32) - (0 if offset is None else offset[which].astype(np.float32))
    return scale[which].astype(np.float32) * shifted


def sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> Array:
    """`shape` makes it the form up to iOS 17: the mask's bits packed into bytes."""
    filled = (mask if shape is None else _unpacked(mask, 1, shape)) != 0
    if nonzero_data.shape != (np.count_nonzero(filled),):
        raise ValueError(f"a mask with {np.count_nonzero(filled)} bits set, and {nonzero_data.shape} values")
    dense = np.zeros(filled.shape, nonzero_data.dtype)
    dense[filled] = nonzero_data
    return dense


def lut_to_sparse(
    indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Array | None = None
) -> tuple[Array, Array]:
    """The mask and the values of a sparse tensor whose values are in a table. A vector fills its place in the mask."""
    dense = lut_to_dense(sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis=vector_axis)
    mask = indices_mask if vector_axis is None else np.repeat(indices_mask, lut.shape[-1], int(vector_axis))
    return mask, dense[mask != 0]


def sparse_blockwise_shift_scale(
    data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None
) -> tuple[Array, Array]:
    """The mask and the values of a sparse tensor whose values are quantised by block."""
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


def cast(source_val: Array, output_dtype: Array) -> Array:
    if output_dtype != "fp32":
        raise ValueError(f"output_dtype {output_dtype} is not computed")
    return source_val.astype(np.float32)


CONSTEXPR: dict[str, Callable[..., Array | tuple[Array, ...]]] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_cast": cast,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": sparse_to_dense,
}
