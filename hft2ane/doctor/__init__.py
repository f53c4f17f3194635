"""Whether this machine can do a worker's part of the night, and what to do now where it cannot: one line a check.

It looks only; nothing is changed, and no secret is told.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from hft2ane.doctor import huggingface, mac, machine, prefect
from hft2ane.doctor.check import Check
from hft2ane.hub import Hub


def examine(owners: Sequence[str], pool: str, work: Path, hub: Hub) -> list[Check]:
    """All checks, for a worker of this pool. `owners`: the organisations that the manifests publish to."""
    checks = [machine.python(), machine.system(pool), machine.packages(), machine.checkout()]
    checks += [*prefect.checks(pool), *huggingface.checks(hub, owners)]
    checks += [machine.disk(work), machine.memory(), machine.open_files()]
    return [*checks, *mac.checks()] if sys.platform == "darwin" else checks


def dumped(checks: Iterable[Check]) -> str:
    return json.dumps([vars(each) for each in checks], indent=2)
