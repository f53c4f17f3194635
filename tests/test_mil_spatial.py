"""Rows of the rules in `spatial`: convolutions, pooling, resizing, blocks, against torch."""

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

from tests.milops import Row, check, names, normal, reseed, unary, wide

# An MLModel that is collected leaves the removal of its temporary folder to the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")


@pytest.fixture(autouse=True, scope="module")
def quick_collection() -> Iterator[None]:
    """`ct.convert` runs the garbage collector twice, which is most of its time when it must look at all of torch."""
    gc.freeze()
    yield
    gc.unfreeze()


reseed()
IMAGE = normal(2, 6, 7, 8)
KERNEL, BIAS = normal(8, 3, 3, 2), normal(8)
SPREAD, SPREAD_BIAS = normal(6, 4, 3, 2), normal(8)
LINE = normal(2, 3, 9)


def conv_transpose(expected: Callable[..., Any], **how: Any) -> Row:
    """A kernel of 3 x 2, strides 2 and 1, two groups."""
    return Row(
        "conv_transpose",
        lambda a: mb.conv_transpose(x=a, weight=SPREAD, bias=SPREAD_BIAS, strides=[2, 1], groups=2, **how),
        expected,
        (IMAGE,),
    )


def spread(a: Any, **how: Any) -> Any:
    return F.conv_transpose2d(a, wide(SPREAD), wide(SPREAD_BIAS), (2, 1), groups=2, **how)


def sampled(mode: str, points: list[float]) -> Row:
    """The grid points that the documentation of resize_bilinear gives for Xin = 2, Xout = 5."""
    expected = torch.tensor(points, dtype=torch.float64)
    return unary(
        "resize_bilinear",
        lambda x: x[:, :, :1] * (1 - expected) + x[:, :, 1:] * expected,
        normal(2, 1, 2),
        target_size_height=1,
        target_size_width=5,
        sampling_mode=mode,
    )


def batches(x: Any) -> Any:
    """space_to_batch by blocks of 2 x 3, batch by batch."""
    return torch.cat([x[:, :, i::2, j::3] for i in range(2) for j in range(3)])


ROWS = [
    Row(
        "conv",
        lambda a: mb.conv(x=a, weight=KERNEL, bias=BIAS, strides=[2, 1], pad_type="same", groups=2),
        # 7 rows by 2 with a kernel of 3: one before and one after; 8 columns with a kernel of 2: one after.
        lambda a: F.conv2d(F.pad(a, (0, 1, 1, 1)), wide(KERNEL), wide(BIAS), (2, 1), groups=2),
        (IMAGE,),
    ),
    Row(
        "conv",
        lambda a: mb.conv(x=a, weight=KERNEL, strides=[2, 1], pad_type="same_lower", groups=2),
        lambda a: F.conv2d(F.pad(a, (1, 0, 1, 1)), wide(KERNEL), None, (2, 1), groups=2),
        (IMAGE,),
    ),
    conv_transpose(spread),
    conv_transpose(lambda a: spread(a, dilation=(1, 2)), dilations=[1, 2]),
    conv_transpose(lambda a: spread(a)[:, :, 1:-2, 1:], pad_type="custom", pad=[1, 2, 1, 0]),
    conv_transpose(
        lambda a: spread(a, padding=(1, 0), output_padding=(1, 0)),
        pad_type="custom",
        pad=[1, 1, 0, 0],
        output_shape=[2, 8, 14, 9],
    ),
    conv_transpose(lambda a: spread(a)[:, :, :14, :8], pad_type="same"),
    unary(
        "max_pool",
        lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0)),
        IMAGE,
        kernel_sizes=[3, 2],
        strides=[2, 1],
        pad_type="custom",
        pad=[1, 1, 0, 0],
    ),
    unary("max_pool", lambda x: F.max_pool1d(x, 4, 1), LINE, kernel_sizes=[4], pad_type="valid"),
    unary(
        "max_pool",
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        normal(1, 2, 8, 7),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    unary("max_pool", lambda x: F.max_pool1d(F.pad(x, (0, 1)), 2, 1), abs(LINE), kernel_sizes=[2], pad_type="same"),
    unary(
        "avg_pool",
        lambda x: F.avg_pool1d(x, 3, 2, 1),
        LINE,
        kernel_sizes=[3],
        strides=[2],
        pad_type="custom",
        pad=[1, 1],
    ),
    unary(
        "avg_pool",
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        normal(1, 2, 8, 7),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    unary(
        "avg_pool",
        lambda x: F.avg_pool3d(x, 2, 1, 1, count_include_pad=False),
        normal(1, 2, 3, 4, 3),
        kernel_sizes=[2, 2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1, 1, 1],
        exclude_padding_from_average=True,
    ),
    unary(
        "l2_pool",
        lambda x: F.avg_pool2d(x.square(), (2, 3), (2, 2), divisor_override=1).sqrt(),
        IMAGE,
        kernel_sizes=[2, 3],
        strides=[2, 2],
        pad_type="valid",
    ),
    sampled("STRICT_ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
    sampled("ALIGN_CORNERS", [0, 0.25, 0.5, 0.75, 1]),
    sampled("DEFAULT", [0, 0.4, 0.8, 1, 1]),
    sampled("OFFSET_CORNERS", [0.1, 0.3, 0.5, 0.7, 0.9]),
    sampled("UNALIGN_CORNERS", [0, 0.1, 0.5, 0.9, 1]),
    unary(
        "resize_bilinear",
        lambda x: x[:, :, 3:4, :],
        IMAGE,
        target_size_height=1,
        target_size_width=8,
        sampling_mode="ALIGN_CORNERS",
    ),
    unary(
        "upsample_bilinear",
        lambda x: F.interpolate(x, (14, 24), mode="bilinear", align_corners=True),
        IMAGE,
        scale_factor_height=2,
        scale_factor_width=3,
    ),
    unary(
        "upsample_bilinear",
        lambda x: F.interpolate(x, (10, 12), mode="bilinear", align_corners=False),
        IMAGE,
        scale_factor_height=1.5,
        scale_factor_width=1.5,
        align_corners=False,
    ),
    unary(
        "resize_nearest_neighbor",
        lambda x: F.interpolate(x, (5, 17), mode="nearest"),
        IMAGE,
        target_size_height=5,
        target_size_width=17,
    ),
    unary(
        "upsample_nearest_neighbor",
        lambda x: x.repeat_interleave(3, -2).repeat_interleave(2, -1),
        IMAGE,
        scale_factor_height=3,
        scale_factor_width=2,
    ),
    Row(
        "resize",
        lambda a: mb.resize(
            x=a,
            shape=[1, 0, 13],
            resized_dims=np.uint32(2),
            interpolation_mode="LINEAR",
            sampling_mode="UNALIGN_CORNERS",
        ),
        lambda a: F.interpolate(a, (7, 13), mode="bilinear", align_corners=False),
        (IMAGE,),
        ct.target.iOS17,
    ),
    Row(
        "resize",
        lambda a: mb.resize(x=a, shape=[3, 13], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"),
        lambda a: F.interpolate(a, (3, 13), mode="nearest"),
        (IMAGE,),
        ct.target.iOS17,
    ),
    unary("crop", lambda x: x[..., 1:-2, 3:], IMAGE, crop_height=[1, 2], crop_width=[3, 0]),
    unary("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), normal(2, 8, 3, 4), upscale_factor=2),
    Row(
        "pixel_unshuffle",
        lambda a: mb.pixel_unshuffle(x=a, downscale_factor=np.uint32(2)),
        lambda a: F.pixel_unshuffle(a, 2),
        (normal(2, 3, 4, 6),),
    ),
    unary(
        "space_to_depth",
        lambda x: torch.cat([x[:, :, i::2, j::2] for i in range(2) for j in range(2)], 1),
        normal(2, 3, 4, 6),
        block_size=2,
    ),
    unary(
        "depth_to_space",
        # torch's order of channels is (channel, place), here it is (place, channel)
        lambda x: F.pixel_shuffle(x.reshape(2, 4, 3, 3, 2).transpose(1, 2).reshape(2, 12, 3, 2), 2),
        normal(2, 12, 3, 2),
        block_size=2,
    ),
    unary(
        "space_to_batch",
        lambda x: batches(F.pad(x, (1, 2, 0, 1))),
        normal(2, 3, 3, 6),
        block_shape=[2, 3],
        paddings=np.array([[0, 1], [1, 2]], np.int32),
    ),
    Row(
        "batch_to_space",
        lambda a: mb.batch_to_space(
            x=mb.space_to_batch(x=a, block_shape=[2, 3], paddings=np.zeros((2, 2), np.int32)),
            block_shape=[2, 3],
            crops=np.array([[0, 1], [2, 1]], np.int32),
        ),
        lambda a: a[:, :, :-1, 2:-1],
        (normal(2, 3, 4, 6),),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=names(ROWS))
def test_op(row: Row, tmp_path: Path) -> None:
    check(row, tmp_path)
