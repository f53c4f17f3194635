"""The original's files, pinned and checked: from the Hub, or from a folder on this machine, into the job's source/.

Nothing of a model is run or unpickled here: JSON is parsed, safetensors headers are read and added up.
"""

import errno
import json
import math
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from hft2ane import disk, layout, records
from hft2ane.blobs import digest, inside, same
from hft2ane.errors import BadInput, CorruptFile, ModelNotFound, UnsafeFormat
from hft2ane.hub import Hub
from hft2ane.progress import Progress, silent
from hft2ane.records.job import Job
from hft2ane.records.package import Audit, Exported
from hft2ane.records.release import Conversion
from hft2ane.records.source import CardFields, RemoteFile, Source, card_fields

HEADER_LIMIT = 100_000_000  # bytes; the same as in the safetensors library
ROOM_TO_EXPORT = 3  # times the source: fp32 weights in memory-mapped files, the package, its canonical copy
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file: bytes [begin, end) of its data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def fetch(folder: Path, hub: Hub, progress: Progress = silent) -> Source:
    """job.json's files at its commit -> source/ and source.json. SourceError, UnsupportedModel, Unavailable.

    For a new card alone: only the card and licence files; and what is published, without packages -> previous/. To
    measure again what is published: its packages too, in their place, and export.json as their export left it."""
    job = records.read(folder / "job.json", Job)
    if job.commit is None or not job.files:
        raise BadInput(f"{folder / 'job.json'} names no commit and files to fetch: plan this job again")
    layout.select(job.files)
    into = folder / "source"
    card = hub.look(job.id, job.commit).card
    if job.action == "card":
        shaping = layout.shaping(job.files)
        fresh = tuple(file for file in job.files if file not in shaping)
        hub.download(job.id, job.commit, fresh, into)
        take_published(folder, hub, job.repo, progress)
        source = Source(job.id, job.commit, fresh, card)
        records.write(folder / "source.json", source)
        return source
    missing = [file for file in job.files if not same(inside(into, file.path), file)]
    _need_room(folder, job.id, job.files, missing)
    hub.download(job.id, job.commit, job.files, into, progress)
    if job.action == "verify":
        take_published(folder, hub, job.repo, progress)
        take_packages(folder, hub, job.repo, progress)
    return _finish(folder, Source(job.id, job.commit, job.files, card))


def take_published(folder: Path, hub: Hub, repo: str, progress: Progress = silent, revision: str = "main") -> None:
    """The small files of the release -> previous/."""
    now = hub.look(repo, revision)
    small = [file for file in now.files if not re.match(r"\.|[^/]+\.mlpackage/", file.path)]
    hub.download(now.id, now.commit, small, folder / "previous", progress)


def take_packages(folder: Path, hub: Hub, repo: str, progress: Progress = silent, revision: str = "main") -> None:
    """The packages of the release, and export.json from previous/: as if they had been exported here."""
    record, now = records.read(folder / "previous" / "conversion.json", Conversion), hub.look(repo, revision)
    names = {package.file for package in record.packages}
    files = [file for file in now.files if file.path.partition("/")[0] in names]
    hub.download(now.id, now.commit, files, folder, progress)
    exported = Exported(
        family=record.family,
        task=record.task,
        original=record.original,
        convert_key=record.convert_key,
        packages=record.packages,
        labels=record.labels,
        problem=record.problem,
        audit=records.read(folder / "previous" / "reports" / "ranges.json", Audit),
        toolchain=record.toolchain,
        seconds=0.0,
        generation=record.generation,
        made=record.made,
    )
    records.write(folder / "export.json", exported)


def take(folder: Path, local: Path, id: str) -> Source:
    """The same from a folder on this machine; its commit is `local`. SourceError, UnsupportedModel, NoSpace."""
    if not local.is_dir():
        raise ModelNotFound(
            f"{local} is no folder: give one with config.json and *.safetensors, or the name of a Hub model"
        )
    chosen = layout.select(_listing(local))
    found = {file.path: _within(local, file.path) for file in chosen}
    files = tuple(replace(file, oid=digest(found[file.path], lfs=True)) for file in chosen)
    into = folder / "source"
    missing = [file for file in files if not same(inside(into, file.path), file)]
    _need_room(folder, id, files, missing)
    for file in missing:
        target = inside(into, file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        _link(found[file.path], target)
    return _finish(folder, Source(id, "local", files, _card(local / "README.md")))


def check(folder: Path, files: Iterable[RemoteFile]) -> None:
    """These files of `folder` are what their names and headers say. SourceError, UnsupportedModel."""
    paths = sorted(file.path for file in files)
    tensors = {path: read_header(folder / path) for path in paths if path.endswith(".safetensors")}
    if not tensors:
        raise UnsafeFormat(f"{folder} has no *.safetensors: weights in other formats are not loaded")
    for path in paths:
        if path.endswith(".json"):
            content = _json(folder / path)
            if path == layout.CONFIG:
                if not isinstance(content, dict):
                    raise CorruptFile(f"{folder / path} is no JSON object")
                layout.check_config(content, str(folder / path))
            elif path.endswith(".safetensors.index.json"):
                _check_index(folder, path, content, tensors)


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, by name; every figure of its header is checked, up to the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise CorruptFile(f"{path} is truncated: {size} bytes are less than a safetensors header")
        (length,) = struct.unpack("<Q", start)
        if length > HEADER_LIMIT:
            raise CorruptFile(f"{path} is no safetensors file: its header would be {length} bytes long")
        if 8 + length > size:
            raise CorruptFile(f"{path} is truncated: a header of {length} bytes does not fit into {size}")
        header = _parsed(file.read(length), f"the header of {path}")
    if not isinstance(header, dict):
        raise CorruptFile(f"the header of {path} is no JSON object")
    tensors = {
        name: _stored(entry, f"{path}: tensor {name!r}") for name, entry in header.items() if name != "__metadata__"
    }
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != end:
            raise CorruptFile(f"{path}: tensor {name!r} begins at byte {tensor.begin} of the data instead of {end}")
        end = tensor.end
    data = size - 8 - length
    if end != data:
        fault = "is truncated" if data < end else "has bytes too many"
        raise CorruptFile(f"{path} {fault}: its header promises {end} bytes of data, there are {data}")
    return tensors


def _stored(entry: Any, where: str) -> Stored:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptFile(f"{where} is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CorruptFile(f"{where} has the unknown dtype {dtype!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptFile(f"{where} has the impossible shape {shape} or offsets {offsets}"[:300])
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CorruptFile(
            f"{where}: {dtype} of shape {shape} is not the {offsets[1] - offsets[0]} bytes it is given"[:300]
        )
    return Stored(dtype, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    # 64 axes at most, so that a product of lies stays cheap.
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _check_index(folder: Path, path: str, content: Any, tensors: dict[str, dict[str, Stored]]) -> None:
    where = folder / path
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CorruptFile(f"{where} has no weight_map of tensor names to files")
    beside = PurePosixPath(path).parent
    present = {PurePosixPath(name).name: of for name, of in tensors.items() if PurePosixPath(name).parent == beside}
    if set(weight_map.values()) != present.keys():
        differ = ", ".join(sorted(set(weight_map.values()) ^ present.keys())[:5])
        raise CorruptFile(f"{where} does not list exactly the shards that are there: {differ}")
    for name, shard in weight_map.items():
        if name not in present[shard]:
            raise CorruptFile(f"{where} says that tensor {name!r} is in {shard}, but it is not")


def _json(path: Path) -> Any:
    return _parsed(path.read_bytes(), str(path))


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as err:
        raise CorruptFile(f"{where} is not JSON: {err}") from err


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _listing(local: Path) -> tuple[RemoteFile, ...]:
    """Every file below `local`, hidden ones apart, like a repo's; digests to come for those that are needed."""
    return tuple(RemoteFile(path, (local / path).stat().st_size, "", True) for path in sorted(_walk(local)))


def _walk(local: Path) -> Iterator[str]:
    for top, folders, names in os.walk(local):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(top, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(local).as_posix()


def _within(local: Path, path: str) -> Path:
    found = (local / path).resolve()
    if not found.is_relative_to(local.resolve()):
        raise UnsafeFormat(f"{local / path} is a link to a file outside the folder: put the file itself there")
    return found


def _link(found: Path, target: Path) -> None:
    """A hard link where both are on one disk, else a copy."""
    try:
        os.link(found, target)
    except OSError as err:
        if err.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(found, target)


def _need_room(folder: Path, id: str, files: Iterable[RemoteFile], missing: Iterable[RemoteFile]) -> None:
    need = sum(file.size for file in missing) + ROOM_TO_EXPORT * sum(file.size for file in files)
    disk.need_room(folder, need, f"{id} (its files, and {ROOM_TO_EXPORT} times as much to export)")


def _card(readme: Path) -> CardFields:
    """From the README's front matter; what cannot be read counts as not given."""
    text = readme.read_text("utf-8", errors="replace") if readme.is_file() else ""
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip("\ufeff \n"):
        return CardFields()
    try:
        return card_fields(yaml.safe_load(parts[1]))
    except (yaml.YAMLError, ValueError, RecursionError):
        return CardFields()


def _finish(folder: Path, source: Source) -> Source:
    """What is not of this source goes, what is there is checked, and source.json says that it is."""
    wanted = {folder / "source" / file.path for file in source.files}
    for path in sorted((folder / "source").rglob("*")):
        if not path.is_dir() and path not in wanted:
            path.unlink()
    check(folder / "source", source.files)
    records.write(folder / "source.json", source)
    return source
