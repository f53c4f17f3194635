"""The night on this machine: Prefect in this process, with no server to start, and a person looking on.

Prefect is kept apart from the user's own profile and database, and all that is not ours to show goes to a log file.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import copy_context
from pathlib import Path

from hft2ane import records, waves
from hft2ane.hub import Hub
from hft2ane.records.night import Run
from hft2ane.terminal.bars import Bars
from hft2ane.terminal.console import screen

SETTINGS = {
    "PREFECT_PROFILE": "ephemeral",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # the default of 20 s is less than a cold start
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",  # what its SQLite says while it stops
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO",
    "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "INFO",
}


def isolate(home: Path) -> None:
    """To be called before Prefect is imported, which reads its settings then. A PREFECT_API_URL is respected."""
    if "PREFECT_API_URL" not in os.environ:
        os.environ |= SETTINGS | {"PREFECT_HOME": str(home.resolve())}
    # So that the temporary server is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def night(
    manifests: Sequence[str],
    organization: str | None,
    work: Path,
    only: Sequence[str] | None = None,
    hub: Hub | None = None,
    wave: int = waves.LIMIT,
    hours: float | None = None,
) -> Run:
    """One run of the nightly flow over `manifests`, with progress bars; everything else is in `work`/run.log.

    Whoever reads Run.failed knows whether it went well; what stops the night as a whole is raised."""
    work.mkdir(parents=True, exist_ok=True)
    isolate(work / ".prefect")
    started = time.time()
    with silenced(work / "run.log"), Bars(screen()) as bars:
        bars.begin("plan")
        from prefect.exceptions import FailedRun

        from flows.nightly import hub_of_run, nightly, watcher

        def conduct() -> None:
            watcher.set(bars)
            hub_of_run.set(hub or Hub())
            with contextlib.suppress(FailedRun):  # a model fails: run.json tells it
                nightly(
                    list(manifests),
                    organization,
                    str(work),
                    list(only) if only else None,
                    wave,
                    hours=hours,
                    return_state=True,
                ).result()

        copy_context().run(conduct)
        bars.end("plan")
    result = work / "run.json"
    if not result.is_file() or result.stat().st_mtime < started - 1:
        raise RuntimeError(f"the flow ended without {result}")
    return records.read(result, Run)


@contextlib.contextmanager
def silenced(log: Path) -> Iterator[None]:
    """Standard output and error, of libraries and children too, go to `log`; `screen()` still reaches the user."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab") as file, screen.at(kept[0]):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
