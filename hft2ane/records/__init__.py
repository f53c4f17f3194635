"""The frozen records that pass between steps, by what they are about, and the JSON files that hold them.

Inside the program they are plain dataclasses; `read` checks them at the border (unknown keys, wrong types and other
schema numbers fail), `write` puts them on disk atomically, so that a file's existence means that its step is done.
"""

import functools
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ConfigDict, RootModel, TypeAdapter, ValidationError

from hft2ane.disk import write_bytes
from hft2ane.errors import BadInput

SCHEMA: Final = 1
STRICT = ConfigDict(extra="forbid", frozen=True)

R = TypeVar("R")


def read(path: Path, record: type[R]) -> R:
    """The record in the JSON file `path`. BadInput: missing, not JSON, or not this record."""
    if not path.is_file():
        raise BadInput(f"{path} is missing: the step that writes it has not been done in this folder")
    return parse(path.read_bytes(), record, str(path))


def parse(data: bytes | str, record: type[R], where: str) -> R:
    """The record in this JSON text; `where` is for the message only."""
    try:
        found: R = _reader(record).validate_json(data)  # type: ignore[arg-type]  # to mypy, types are not hashable
        return found
    except ValidationError as err:
        first = err.errors()[0]
        spot = ".".join(map(str, first["loc"])) or "the whole file"
        raise BadInput(f"{where} is not a {record.__name__} record of this version: {spot}: {first['msg']}") from err


@functools.cache
def _reader(record: type[Any]) -> TypeAdapter[Any]:
    """Making one takes longer than reading a record with it."""
    return TypeAdapter(record)


def dump(record: object) -> bytes:
    """Canonical JSON: two spaces, fields in their order, a newline at the end."""
    return RootModel[Any](record).model_dump_json(indent=2, by_alias=True).encode() + b"\n"


def write(path: Path, record: object) -> None:
    write_bytes(path, dump(record))
