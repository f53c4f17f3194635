"""The folder of a release, with what may be in it and nothing else; and each version that the release may become."""

import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hft2ane import checksums, disk, layout
from hft2ane.blobs import digest
from hft2ane.checksums import SUMS
from hft2ane.errors import PublishError
from hft2ane.pin import pin, pinned
from hft2ane.records.release import Conversion
from hft2ane.signature import SIGNATURE, sign

RECORD = "conversion.json"
CARD = "README.md"
REPORT = "report.json"
LARGEST = 50_000_000_000  # bytes: the Hub takes no larger file
NAME = r"\w[\w.-]*"
OURS = re.compile(rf"{CARD}|{RECORD}|{SUMS}|{re.escape(SIGNATURE)}|reports/{NAME}\.json|assets/{NAME}\.png")
PACKAGED = re.compile(rf"{NAME}\.mlpackage/(Manifest\.json|Data/com\.apple\.CoreML/({NAME}/)*{NAME}\.(mlmodel|bin))")
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")
MACHINE_PATH = re.compile(rb"(?<![\w.])/(Users|home|root|tmp|private/var)/[\w.-]+")
HOST_NAME = re.compile(r"(?=.*[\d.-]).{8,}")  # any other one, like python or runner, is also a word of the text


@dataclass(frozen=True)
class Release:
    """What shall be on the Hub: SHA-256 by path (SHA256SUMS included), and the files that are on this disk.

    `number`: of the tag that its card names, None where it names none."""

    sums: Mapping[str, str]
    here: Mapping[str, Path]
    number: int | None

    @property
    def id(self) -> str:
        return self.sums[SUMS]


class Versions:
    """A release as each of the versions that it may become, made in the folder `into`, and signed with `key`."""

    def __init__(self, release: Release, into: Path, key: str | None) -> None:
        self.release, self.into, self.key = release, into, key
        self._signed: dict[int, Release] = {}
        shutil.rmtree(into, ignore_errors=True)

    def unsigned(self, number: int) -> Release:
        """With this number in the card, and the card's new digest in SHA256SUMS. As it is, if its card names none."""
        release = self.release
        if release.number in (number, None):
            return release
        card, sums = (self.into / f"v{number}" / name for name in (CARD, SUMS))
        disk.write_bytes(card, pin(release.here[CARD].read_bytes().decode(), number).encode())
        listed = {name: sum for name, sum in release.sums.items() if name not in (SUMS, SIGNATURE)}
        listed[CARD] = digest(card, lfs=True)
        disk.write_bytes(sums, checksums.dump(listed))
        listed[SUMS] = digest(sums, lfs=True)
        here = {name: path for name, path in release.here.items() if name != SIGNATURE}
        return Release(listed, {**here, CARD: card, SUMS: sums}, number)

    def signed(self, number: int) -> Release:
        """BadInput: there is no such key, or no library to sign with; HubUnavailable: Sigstore does not answer."""
        if number not in self._signed:
            release = self.unsigned(number)
            if self.key:
                sign(release.here[SUMS], self.key)
                path = release.here[SUMS].with_name(SIGNATURE)
                signature = digest(path, lfs=True)
                release = replace(
                    release,
                    sums={**release.sums, SIGNATURE: signature},
                    here={**release.here, SIGNATURE: path},
                )
            self._signed[number] = release
        return self._signed[number]


def read_release(folder: Path, conversion: Conversion) -> Release:
    """The release in this folder, every digest of SHA256SUMS computed again. PublishError: it is not what was built, or
    holds something that must not be published."""
    if not folder.is_dir():
        raise PublishError(f"{folder} is missing: make the card first")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    here = {path.relative_to(folder).as_posix(): path for path in paths}
    for name, path in here.items():
        if path.is_symlink() or not path.is_file():
            raise PublishError(f"{path} is not a plain file: make the release again")
        if path.stat().st_size > LARGEST:
            raise PublishError(f"{path} has {path.stat().st_size / 1e9:.1f} GB, the Hub takes files of at most 50 GB")
        if not _allowed(name):
            raise PublishError(f"{path} is nothing that is published: delete it, or make the release again")
    if absent := {CARD, RECORD, SUMS} - here.keys():
        raise PublishError(f"{folder} has no {', '.join(sorted(absent))}: make the release again")
    sums = checksums.read(here[SUMS], PublishError, "make the release again")
    if strange := [name for name in sums if not _allowed(name) or name in (SUMS, SIGNATURE)]:
        raise PublishError(f"{here[SUMS]} has {strange[0]}, which is not published: make the release again")
    for name, path in here.items():
        if name not in (SUMS, SIGNATURE) and name not in sums:
            raise PublishError(f"{path} is not in {SUMS}: make the release again")
        if name not in (SUMS, SIGNATURE) and digest(path, lfs=True) != sums[name]:
            raise PublishError(f"{path} has been changed since {SUMS} was written: make the release again")
        _scan(name, path)
    packages = {name.split("/")[0] for name in sums if PACKAGED.fullmatch(name)}
    if packages != {package.file for package in conversion.packages}:
        raise PublishError(f"{folder / SUMS} and {RECORD} do not name the same packages: make the release again")
    unlisted = {name: digest(here[name], lfs=True) for name in (SUMS, SIGNATURE) if name in here}
    return Release({**sums, **unlisted}, here, pinned(here[CARD].read_bytes().decode(errors="replace")))


def _allowed(name: str) -> bool:
    """Ours, a package's, or one of the original's small files at the place where it has it."""
    folder, _, last = name.rpartition("/")
    patterns = (layout.LEGAL, layout.SENTENCE, layout.SENTENCEPIECE)
    return (
        OURS.fullmatch(name) is not None
        or PACKAGED.fullmatch(name) is not None
        or (layout.MODULE.fullmatch(folder) is not None and last == layout.CONFIG)
        or (not folder and name in layout.TOKENIZER | {layout.CONFIG, layout.GENERATION})
        or (not folder and any(pattern.fullmatch(name) for pattern in patterns))
    )


def _scan(name: str, path: Path) -> None:
    """No token in any file that is read as text, and nothing about this machine in those that are ours. The original's
    own files are public with whatever paths they have."""
    if path.suffix in (".bin", ".png"):
        return
    secrets = {"a token": TOKEN}
    if OURS.fullmatch(name) or PACKAGED.fullmatch(name):
        secrets["a path of a machine"] = MACHINE_PATH
        if HOST_NAME.fullmatch(host := socket.gethostname()):
            secrets["this machine's name"] = re.compile(rb"(?<![\w-])" + re.escape(host.encode()) + rb"(?![\w-])")
    content = path.read_bytes()
    for what, pattern in secrets.items():
        if found := pattern.search(content):
            line = content.count(b"\n", 0, found.start()) + 1
            masked = found[0][:4].decode(errors="replace")
            raise PublishError(f"{path}:{line} has {what} ({masked}***): it must not be published")
