"""The folder of a release: whole or not there, with the original's small files and the packages in it, and its sums."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hft2ane import checksums, disk, layout
from hft2ane.checksums import SUMS
from hft2ane.errors import BadInput
from hft2ane.progress import Progress
from hft2ane.records.release import Conversion
from hft2ane.records.source import RemoteFile


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new folder that becomes `path` at the end, in place of an old one, or never exists."""
    building, old = path.with_name(f".{path.name}.building"), path.with_name(f".{path.name}.old")
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    try:
        yield building
        if path.exists():
            path.rename(old)
        building.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def small_files(files: Sequence[RemoteFile]) -> list[str]:
    """What is published of the original's files: not its weights, and not its card."""
    return [f.path for f in files if f.path != layout.README and not f.path.endswith((".safetensors", layout.INDEX))]


def copy(names: Sequence[str], source: Path, release: Path) -> None:
    for name in names:
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, release / name)


def link(source: Path, target: Path) -> None:
    """The files of a package again, without a second copy on disk where the file system can."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, place)
        except OSError:
            shutil.copyfile(file, place)


def sums(release: Path, carried: Mapping[str, str], progress: Progress) -> None:
    """SHA256SUMS over every other file, written last. `carried`: digests of files that are not here, by path."""
    digests = dict(carried)
    for file in (p for p in release.rglob("*") if p.is_file()):
        name = file.relative_to(release).as_posix()
        progress(f"digest {name}", 0.7)
        with file.open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    disk.write_bytes(release / SUMS, checksums.dump(digests))


def package_sums(published: Path, conversion: Conversion) -> dict[str, str]:
    """The lines of a published SHA256SUMS that are files of the packages. BadInput: it is another file, or a
    package has none."""
    again = "publish this model in full again"
    files = {package.file for package in conversion.packages}
    listed = checksums.read(published, BadInput, again)
    found = {name: digest for name, digest in listed.items() if name.split("/")[0] in files}
    if missing := files - {name.split("/")[0] for name in found}:
        raise BadInput(f"{published} has no line for {', '.join(sorted(missing))}; {again}")
    return found
