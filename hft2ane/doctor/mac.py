"""What a Mac has besides: Core ML, sleep, Xcode, and Core ML's caches."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from hft2ane.doctor.check import SECONDS, Check, ok, problem, warning
from hft2ane.doctor.machine import GB
from hft2ane.errors import NotMeasured

CACHES = 50 * GB
CORE_ML = 120.0  # seconds for an answer of Core ML's, coremltools' import among them


def checks() -> list[Check]:
    return [core_ml(), sleep(said("pmset", "-g"), said("pmset", "-g", "assertions")), compiler(), caches()]


def core_ml() -> Check:
    """Whether it answers, and with which devices."""
    from hft2ane import coreml  # with numpy, which planning does without

    with tempfile.TemporaryDirectory() as folder:
        try:
            host = coreml.probe(Path(folder), CORE_ML)
        except NotMeasured as err:
            todo = "make .venv again with an arm64 Python, whose coremltools has Core ML's bindings; restart the Mac"
            return problem("Core ML", str(err), todo)
    found = f"answers on {host.mac}, with {', '.join(host.devices)}"
    if "ane" not in host.devices:
        todo = "take a Mac that is not virtual: nothing is measured of it here"
        return warning("Core ML", f"{found}: no Neural Engine", todo)
    return ok("Core ML", found)


def said(*command: str) -> str:
    """What a program says; nothing where it fails or is not there."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout
    return ""


def sleep(settings: str, assertions: str) -> Check:
    """By `pmset -g` and `pmset -g assertions`."""
    minutes = re.search(r"^\s*sleep\s+(\d+)", settings, re.MULTILINE)
    if re.search(r"^\s*Prevent(?:System|UserIdleSystem)Sleep\s+1\s*$", assertions, re.MULTILINE):
        return ok("sleep", "held off by a program, as deploy/worker.sh does with caffeinate")
    if minutes and int(minutes[1]) == 0:
        return ok("sleep", "switched off")
    found = f"after {minutes[1]} idle minutes" if minutes else "pmset does not say when"
    return warning("sleep", found, "start the worker by deploy/worker.sh, or sudo pmset -a sleep 0")


def compiler() -> Check:
    if said("xcrun", "--find", "coremlcompiler"):
        return ok("Xcode", "has coremlcompiler")
    return warning("Xcode", "no coremlcompiler", "install Xcode, should you want to compile packages by hand")


def caches() -> Check:
    sizes = core_ml_caches(Path.home(), Path(tempfile.gettempdir()))
    found = ", ".join(f"{size / GB:.1f} GB in {place}" for place, size in sizes.items()) or "none that can be read"
    if sum(sizes.values()) > CACHES:
        return warning("Core ML's caches", found, "drain the worker, delete these folders, restart the Mac")
    return ok("Core ML's caches", f"{found}; /Library/Caches/com.apple.aned cannot be read")


def core_ml_caches(home: Path, temporary: Path) -> dict[str, int]:
    """Bytes by folder: what the runtime has compiled for each program, and models compiled on the way."""
    kept, library = "com.apple.e5rt.e5bundlecache", home / "Library" / "Caches"
    folders = [*library.glob(kept), *library.glob(f"*/{kept}"), *temporary.glob("*.mlmodelc")]
    sizes: dict[str, int] = {}
    for folder in folders:
        place = str(folder if folder.name.startswith("com.apple") else folder.parent / "*.mlmodelc")
        sizes[place] = sizes.get(place, 0) + size(folder)
    return sizes


def size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += os.lstat(Path(place) / name).st_size
    return total
