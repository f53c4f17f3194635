"""One conversion in a process of its own: it loads foreign files, so it gets no token and no way to outlive us."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hft2ane import errors
from hft2ane.records import Progress

KEEP = ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "SYSTEMROOT")


def build(folder: Path, log: Path, timeout: float, progress: Progress) -> None:
    """`hft2ane build FOLDER` with its standard error appended to `log`. Raises the error that the child names."""
    temporary = Path(tempfile.mkdtemp(prefix="tmp-", dir=folder))
    environment = {key: os.environ[key] for key in KEEP if key in os.environ}
    environment |= {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Not the token of `hf auth login` either, which the Hub's client finds below HOME.
    environment |= {"HF_HOME": str(temporary), "HF_TOKEN_PATH": str(temporary / "none")}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin while they wait cost a busy machine minutes
    command = [sys.executable, "-m", "hft2ane.cli", "build", str(folder), "--json"]
    with log.open("ab") as errors_to:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,  # held open: its end tells the child that we are gone
            stdout=subprocess.PIPE,
            stderr=errors_to,
            text=True,
            start_new_session=True,
        )
    late = threading.Event()
    assert process.stdout is not None
    with killed_after(process, timeout, late):
        failure = listen(process.stdout, log, progress)
    shutil.rmtree(temporary, ignore_errors=True)
    if late.is_set():
        raise errors.Hft2aneError(f"no result after {timeout:g} s: stopped")
    if failure:
        raise failure
    if process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise errors.Hft2aneError(f"the conversion ended with {how}; its last words are in {log}")


@contextlib.contextmanager
def killed_after(process: subprocess.Popen[str], timeout: float, late: threading.Event) -> Iterator[None]:
    """Whatever happens, the process and all it started are gone afterwards."""

    def stop() -> None:
        late.set()
        kill_group(process)

    timer = threading.Timer(timeout, stop)
    timer.start()
    try:
        yield
        process.wait()
    finally:
        timer.cancel()
        kill_group(process)
        process.communicate()


def kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone already
        os.killpg(process.pid, signal.SIGKILL)


def listen(lines: IO[str], log: Path, progress: Progress) -> errors.Hft2aneError | None:
    """Passes progress on, and the error the child ends with, if it does. What a library printed goes to the log."""
    failure = None
    for line in lines:
        message = parsed(line)
        if "share" in message:
            progress(str(message["what"]), float(message["share"]))
        elif "error" in message:
            failure = error(message["error"])
        else:
            with log.open("a") as file:
                file.write(line)
    return failure


def parsed(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return {}


def error(told: dict[str, str]) -> errors.Hft2aneError | None:
    """The error by the name of its class; None: a name that is none of ours."""
    kind = getattr(errors, told["kind"], None)
    return kind(told["text"]) if isinstance(kind, type) and issubclass(kind, errors.Hft2aneError) else None
