"""Which systems can load a package: what it claims, by specification version and opset, and what it needs.

Versions are Core ML's specification versions. Source: coremltools 9.0 (`_OPSET`, the registry of operations and their
documentation); a test holds NEW_OPS to that registry.
"""

from collections.abc import Iterable, Iterator

from hft2ane.mil.format import BY_NAME
from hft2ane.mil.load import Function, Op, Package

SYSTEMS = {
    6: "iOS 15 / macOS 12",
    7: "iOS 16 / macOS 13",
    8: "iOS 17 / macOS 14",
    9: "iOS 18 / macOS 15",
    10: "iOS 26 / macOS 26",
}
OPSETS = {f"CoreML{version - 1}": version for version in SYSTEMS}
# Operations that did not exist from the first ML Program on, by the version that has them.
NEW_OPS = {
    "constexpr_affine_dequantize": 7, "constexpr_cast": 7, "constexpr_lut_to_dense": 7, "constexpr_sparse_to_dense": 7,
    "fill_like": 7, "pixel_unshuffle": 7, "reshape_like": 7,
    "dequantize": 8, "quantize": 8, "resize": 8,
    "constexpr_blockwise_shift_scale": 9, "constexpr_lut_to_sparse": 9, "constexpr_sparse_blockwise_shift_scale": 9,
    "read_state": 9, "scaled_dot_product_attention": 9, "slice_update": 9, "write_state": 9,
}  # fmt: skip
NEW_TYPES = {"int8": 8, "uint8": 8, "int16": 8, "uint16": 8}  # of computed values; as stored weights they are older
IO_TYPES = {"float16": 7, "int8": 10}
STATES = FUNCTIONS = SUBBYTE = ENUMERATED_TWICE = 9


def system(version: int) -> str:
    return SYSTEMS.get(version, f"specification {version}")


def needs(package: Package, function: Function) -> Iterator[tuple[Op | None, str, int, int]]:
    """What is newer than the package claims: where, what, the version that has it, and the version claimed."""
    claimed = package.specification_version
    opset = OPSETS.get(function.opset, claimed)
    described = [("several functions", FUNCTIONS)] if len(package.functions) > 1 else []
    described += [
        (f"{each.dtype} {each.name}", IO_TYPES.get(each.dtype, 0)) for each in (*function.inputs, *function.outputs)
    ]
    described += [(f"state {each.name}", STATES) for each in function.states]
    if sum(len(ways) > 1 for ways in function.flexible.values()) > 1:
        described.append(("enumerated shapes of several inputs", ENUMERATED_TWICE))
    described.append((f"opset {function.opset}", opset))
    yield from ((None, what, version, claimed) for what, version in described if version > claimed)
    for op in every(function.ops):
        what, version = max(used(op), key=lambda each: each[1])
        if version > opset:
            yield op, what, version, opset


def used(op: Op) -> Iterator[tuple[str, int]]:
    """What one operation uses, with the version that has it."""
    yield op.type, NEW_OPS.get(op.type, 0)
    if op.type in ("constexpr_lut_to_dense", "constexpr_sparse_to_dense") and "shape" not in op.inputs:
        yield f"{op.type} by group", SUBBYTE
    for feature in op.outputs:
        bits = BY_NAME[feature.dtype].bits
        yield f"{feature.dtype} values", SUBBYTE if 0 < bits < 8 else NEW_TYPES.get(feature.dtype, 0)


def every(ops: Iterable[Op]) -> Iterator[Op]:
    """Those inside branches and loops too."""
    for op in ops:
        yield op
        for block in op.blocks:
            yield from every(block.ops)
