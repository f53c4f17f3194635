"""The .mlpackage on disk: written in one canonical form, so that the same program gives the same bytes anywhere.

coremltools' own writer draws random identifiers and leaves maps in hash order; here identifiers are name-based
(UUIDv5), protobuf is serialised deterministically, and there are no dates. Weights go straight into the weight file.
"""

import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hft2ane.errors import NoSpace, PackageError

if TYPE_CHECKING:  # it brings torch, which what reads a package does without
    from hft2ane.mil.write import Program

SPEC = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
AUTHOR = "com.apple.CoreML"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(
    path: Path, program: "Program", about: str, described: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    """The `program` as a package at `path`, which appears whole or not at all. NoSpace: the disk is full.

    `described`: a sentence for each input and output name; `metadata`: author, and user-defined pairs."""
    spec = program.model()
    for function in spec.description.functions or [spec.description]:
        for feature in (*function.input, *function.output):
            feature.shortDescription = described[feature.name]
    spec.description.metadata.shortDescription = about
    spec.description.metadata.author = metadata["author"]
    spec.description.metadata.userDefined.update({key: value for key, value in metadata.items() if key != "author"})
    if path.exists():
        shutil.rmtree(path)
    building = path.with_name(f".{path.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        (building / WEIGHTS.parent).mkdir(parents=True)
        program.weights.write(building / WEIGHTS)
        (building / SPEC).write_bytes(spec.SerializeToString(deterministic=True))
        (building / "Manifest.json").write_text(manifest())
        building.rename(path)
    except OSError as err:
        if err.errno in FULL:
            raise NoSpace(f"{path} cannot be written ({err}): make room on its disk, and export again") from err
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def manifest() -> str:
    items = {
        "model.mlmodel": ("com.apple.CoreML/model.mlmodel", "CoreML Model Specification"),
        "weights": ("com.apple.CoreML/weights", "CoreML Model Weights"),
    }
    ids = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, f"hft2ane:{place}")).upper() for name, (place, _) in items.items()}
    content = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            ids[name]: {"author": AUTHOR, "description": about, "name": name, "path": place}
            for name, (place, about) in items.items()
        },
        "rootModelIdentifier": ids["model.mlmodel"],
    }
    return json.dumps(content, indent=4, sort_keys=True) + "\n"


def files(path: Path) -> list[Path]:
    """The files of the package, sorted, relative to it. PackageError: not a package."""
    found = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
    if Path("Manifest.json") not in found:
        raise PackageError(f"{path} is not an .mlpackage: it has no Manifest.json")
    return found


def digest(path: Path) -> str:
    """SHA-256 over lines `<sha256 of the file>  <path in the package>`, sorted by path."""
    lines = []
    for name in files(path):
        with (path / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name.as_posix()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def size(path: Path) -> int:
    """Bytes of all its files."""
    return sum((path / name).stat().st_size for name in files(path))
