"""What a saved program is made of: element types by their numbers, and the records of the weight file."""

import struct
from typing import NamedTuple


class DType(NamedTuple):
    """An element type: the numpy type that holds it, the field of an immediate value, and the code in weight.bin."""

    name: str
    bits: int
    holder: str
    field: str
    code: int | None


# By number in MIL.proto's DataType; the codes are those of coremltools' blob writer.
DTYPES = {
    1: DType("bool", 8, "bool", "bools", None),
    2: DType("string", 0, "str", "strings", None),
    10: DType("float16", 16, "float16", "bytes", 1),
    11: DType("float32", 32, "float32", "floats", 2),
    21: DType("int8", 8, "int8", "bytes", 4),
    22: DType("int16", 16, "int16", "ints", 6),
    23: DType("int32", 32, "int32", "ints", 14),
    25: DType("int4", 4, "int8", "bytes", 8),
    31: DType("uint8", 8, "uint8", "bytes", 3),
    32: DType("uint16", 16, "uint16", "ints", 7),
    33: DType("uint32", 32, "uint32", "bytes", 15),
    35: DType("uint4", 4, "uint8", "bytes", 11),
    36: DType("uint2", 2, "uint8", "bytes", 10),
    37: DType("uint1", 1, "uint8", "bytes", 9),
    38: DType("uint6", 6, "uint8", "bytes", 13),
    39: DType("uint3", 3, "uint8", "bytes", 12),
}
BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}

# A weight file is a header (count of blobs, version), then for each blob a record of ALIGNMENT bytes and its data.
STORAGE_VERSION = 2
SENTINEL = 0xDEADBEEF
RECORD = struct.Struct("<IIQQ")  # sentinel, code, bytes, offset of the data
ALIGNMENT = 64
