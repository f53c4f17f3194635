"""A repo's file on this disk: where it goes, and whether it is that file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath

from hft2ane.errors import CorruptFile
from hft2ane.records.source import RemoteFile

PIECE = 1 << 20


def inside(folder: Path, path: str) -> Path:
    """Where the repo's `path` goes in `folder`. CorruptFile when it would go elsewhere."""
    parts = PurePosixPath(path).parts
    if not parts or "/".join(parts) != path or ".." in parts or parts[0] == "/" or re.search(r"[\\:\x00-\x1f]", path):
        raise CorruptFile(f"{path!r} is no path inside a repo: this file is refused")
    target = folder.joinpath(*parts)
    if target.is_symlink() or not target.parent.resolve().is_relative_to(folder.resolve()):
        raise CorruptFile(f"{path!r} leads out of {folder} by a symbolic link: delete the link")
    return target


def digest(path: Path, lfs: bool) -> str:
    """The `oid` of a RemoteFile: SHA-256 when `lfs`, else git's blob SHA-1."""
    summed = hashlib.sha256() if lfs else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            summed.update(piece)
    return summed.hexdigest()


def same(path: Path, file: RemoteFile) -> bool:
    """Whether `path` has the size and the digest of `file`."""
    return path.is_file() and path.stat().st_size == file.size and digest(path, file.lfs) == file.oid
