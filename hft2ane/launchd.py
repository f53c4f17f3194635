"""The property list by which a Mac's launchd keeps a worker running: from the system's start, with nobody logged in.

It names no secret, because everybody on the Mac may read it: those are in a file that deploy/worker.sh reads.
"""

import plistlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hft2ane import provenance
from hft2ane.doctor.machine import FILES
from hft2ane.errors import BadInput

WORKER = "deploy/worker.sh"
LABEL = "org.hft2ane.worker"


@dataclass(frozen=True)
class Worker:
    """`user` is whose files, environment and caches it uses; `home` is theirs."""

    user: str
    home: Path
    pool: str
    environment: Path
    label: str = LABEL


def plist(worker: Worker) -> bytes:
    """For /Library/LaunchDaemons/<label>.plist. BadInput: this is no checkout, or a name or path will not do there."""
    root = provenance.ROOT.resolve()
    script = root / WORKER
    if not script.is_file():
        raise BadInput(f"there is no {script}: run this in a checkout of the project, by its .venv/bin/hft2ane")
    if not worker.label.isprintable() or "/" in worker.label or not worker.label:
        raise BadInput(f"{worker.label!r} cannot be a label: it is like {LABEL}, and the name of a file")
    log = str(worker.home / "Library" / "Logs" / f"{worker.label}.log")
    described: dict[str, Any] = {
        "Label": worker.label,
        "UserName": worker.user,
        "ProgramArguments": ["/bin/sh", str(script), worker.pool, str(worker.environment)],
        "WorkingDirectory": str(root),
        # A daemon of a user is not promised a HOME; Core ML and the Hub's client keep their caches below it.
        "EnvironmentVariables": {"HOME": str(worker.home), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": 30,  # seconds between starts, when something is wrong from the first moment
        "ProcessType": "Interactive",  # no limits of a background job: latencies are measured
        "SoftResourceLimits": {"NumberOfFiles": 4 * FILES},
        "Umask": 0o077,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    return plistlib.dumps(described)
