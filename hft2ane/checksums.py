"""SHA256SUMS of a release: a line a file, with its digest, two spaces and its path, sorted by path.

`sha256sum -c` reads it too. What is not exactly so is refused and never passed over, since the list says of what a
release consists.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from hft2ane.errors import Hft2aneError

SUMS = "SHA256SUMS"  # of a release: a line a file
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def dump(sums: Mapping[str, str]) -> bytes:
    """`sums`: digests by path."""
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums)).encode()


def read(path: Path, error: type[Hft2aneError], cure: str, where: str | None = None) -> dict[str, str]:
    """Digests by path. `error`: what is raised for another file than that, `cure`: its last words; `where`: what it
    calls the file, if not by its path."""
    try:
        return parse(path.read_bytes() if path.is_file() else b"")
    except ValueError as err:
        raise error(f"{where or path} {err}: {cure}") from err


def parse(data: bytes) -> dict[str, str]:
    """Digests by path. ValueError: what is wrong with such a file, in words that follow its name."""
    if not data:
        raise ValueError("is not there, or empty")
    *lines, rest = data.decode("utf-8", errors="replace").split("\n")
    sums: dict[str, str] = {}
    last = ""
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        said = f"is not a list of digests, sorted by path: line {number}"
        found = LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{said} ({line[:100]!r}) is not a SHA-256, two spaces and a path")
        path = found[2]
        if not _inside(path):
            raise ValueError(f"{said} names {path[:100]!r}, which is no path inside a release")
        if path <= last:
            raise ValueError(f"{said} has {path[:100]!r} after {last[:100]!r}")
        sums[path], last = found[1], path
    if rest:
        raise ValueError(f"is cut off in line {number}, which has no end")
    return sums


def _inside(path: str) -> bool:
    """Whether it is written as the path of a file below a folder, on any system. No file of a release is named so that
    it cannot be printed, not even by letters that are no UTF-8."""
    parts = PurePosixPath(path)
    return (
        path.isprintable()
        and not {"\\", "\ufffd"} & {*path}
        and not parts.is_absolute()
        and ".." not in parts.parts
        and parts.as_posix() == path
        and path != "."
    )
