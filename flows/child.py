"""One conversion in a process of its own: it loads foreign files, so it gets no token, and no way to outlive us or to
take more of the machine than it may."""

import contextlib
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from hft2ane import errors, provenance
from hft2ane.progress import Progress
from hft2ane.records.job import Job

KEEP = ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "SYSTEMROOT", "OMP_NUM_THREADS")
LOG = "build.log"  # in the job's folder: what the conversion and its libraries print
EVERY = 0.5  # seconds between looks at the process
# Seconds that a stage may take, and more for each TFLOP of the job: 1 TFLOP takes two slow cores about a minute.
START, STAGES, BY_WORK = (
    300.0,
    {"export": 1200.0, "verify": 1800.0, "measure": 7200.0, "card": 300.0},
    {"export": 60.0, "verify": 300.0},
)
SHARE = 0.8  # of the machine's memory
FLOOR = 2e9  # bytes of a disk that stay free, or
FLOOR_SHARE = 0.02  # of a small one


@dataclass(frozen=True)
class Limits:
    """What one conversion may take. `start`: seconds until its first stage; `stages`: seconds, by stage; `memory`:
    bytes, of all its processes; `disk`: bytes that stay free."""

    start: float = START
    stages: Mapping[str, float] = field(default_factory=lambda: STAGES)
    memory: float = field(default_factory=lambda: SHARE * psutil.virtual_memory().total)
    disk: float | None = None

    @classmethod
    def of(cls, job: Job) -> "Limits":
        return cls(stages={name: s + BY_WORK.get(name, 0) * job.work for name, s in STAGES.items()})

    def free(self, folder: Path) -> float:
        """Bytes of the disk of `folder` that stay free."""
        return min(FLOOR, FLOOR_SHARE * shutil.disk_usage(folder).total) if self.disk is None else self.disk


def build(folder: Path, limits: Limits, progress: Progress) -> None:
    """`hft2ane build FOLDER`, its standard error in `folder`/build.log. Raises the error that the child names.

    OverLimit: it took too long, or too much memory. NoSpace: the disk is nearly full. WorkerLost: it was killed."""
    temporary, log = Path(tempfile.mkdtemp(prefix="tmp-", dir=folder)), folder / LOG
    environment = {key: os.environ[key] for key in KEEP if key in os.environ}
    environment |= {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Below the user's there are credentials where libraries look for them: of `hf auth login`, .netrc, worker.env.
    environment["HOME"] = str(temporary)
    if site.ENABLE_USER_SITE:  # not in an environment of its own: then we may be installed below the user's, too
        environment["PYTHONUSERBASE"] = site.getuserbase()
    # It runs this checkout's code, so its git may read it, whoever owns it; the user's own .gitconfig may say so too.
    environment |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory"}
    environment["GIT_CONFIG_VALUE_0"] = str(provenance.ROOT.resolve())
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin while they wait cost a busy machine minutes
    command = [sys.executable, "-m", "hft2ane.cli", "build", str(folder), "--json"]
    with log.open("wb") as errors_to:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,  # held open: its end tells the child that we are gone
            stdout=subprocess.PIPE,
            stderr=errors_to,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        with Watch(process, folder, limits).running() as watch:
            failure = listen(process.stdout, log, progress, watch.enter)
        if process.returncode and not failure:
            watch.stopped = watch.stopped or watch.full()  # it may have been quicker than a look
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if watch.stopped:
        raise watch.stopped
    if failure:
        raise failure
    if code := process.returncode:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        # Nobody kills itself so: the system did, for its memory, or somebody by hand.
        kind = errors.WorkerLost if code in (-signal.SIGKILL, -signal.SIGTERM) else errors.Hft2aneError
        raise kind(f"the conversion ended with {how}; its last words are in {log}")


class Watch:
    """Looks at a process now and then, and ends it with all that it started when it is over one of its limits."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path, limits: Limits) -> None:
        self.process, self.folder, self.limits = process, folder, limits
        self.stopped: errors.Hft2aneError | None = None
        self.least_free = limits.free(folder)
        self.done = threading.Event()
        self.seen: set[psutil.Process] = set()  # of them one may have left the group
        self.entered = {"start"}
        self.stage, self.allowed, self.began = "start", limits.start, time.monotonic()

    def enter(self, stage: str) -> None:
        """Once each: a stage that is told of again gets no more time."""
        if stage not in self.entered:
            self.entered.add(stage)
            self.stage, self.allowed, self.began = stage, self.limits.stages[stage], time.monotonic()

    @contextlib.contextmanager
    def running(self) -> Iterator["Watch"]:
        """Whatever happens, the process and all it started are gone afterwards."""
        looking = threading.Thread(target=self.look, daemon=True)
        looking.start()
        try:
            yield self
            self.process.wait()
        finally:
            self.done.set()
            looking.join()
            self.kill()
            self.process.communicate()

    def look(self) -> None:
        """Until it has ended. What it started and left behind goes then: it may hold the pipe that we read."""
        while not self.done.wait(EVERY):
            if self.process.poll() is None:
                try:
                    self.stopped = self.over()
                except Exception as err:  # noqa: BLE001 - it must not run unwatched
                    self.stopped = errors.Hft2aneError(f"stopped: it cannot be watched: {type(err).__name__}: {err}")
            if self.stopped or self.process.returncode is not None:
                self.kill()
                return

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone already
            os.killpg(self.process.pid, signal.SIGKILL)
        for each in self.seen:
            with contextlib.suppress(psutil.Error):
                each.kill()

    def over(self) -> errors.Hft2aneError | None:
        """Which limit it is over."""
        if time.monotonic() - self.began > self.allowed:
            doing = "it did not start" if self.stage == "start" else f"its stage {self.stage} did not end"
            return errors.OverLimit(f"stopped: {doing} within {self.allowed:g} s")
        now = family(self.process.pid)
        self.seen |= set(now)
        if (used := memory(now)) > self.limits.memory:
            return errors.OverLimit(
                f"stopped in its stage {self.stage}: it took {used / 1e9:.1f} GB of memory, "
                f"and may take {self.limits.memory / 1e9:.1f}"
            )
        return self.full()

    def full(self) -> errors.NoSpace | None:
        if (free := shutil.disk_usage(self.folder).free) < self.least_free:
            return errors.NoSpace(
                f"stopped in its stage {self.stage}: the disk of {self.folder} has {free / 1e9:.2f} GB free, and "
                f"{self.least_free / 1e9:.2f} GB have to stay so: make room, or work on another disk"
            )
        return None


def family(pid: int) -> list[psutil.Process]:
    """A process, and those it started."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def memory(processes: Sequence[psutil.Process]) -> int:
    """Bytes that they hold."""
    held = 0
    for each in processes:
        with contextlib.suppress(psutil.Error):
            held += each.memory_info().rss
    return held


def listen(lines: IO[str], log: Path, progress: Progress, enter: Callable[[str], None]) -> errors.Hft2aneError | None:
    """Passes stages and progress on, and the error the child ends with, if it does. What a library printed goes to the
    log."""
    failure = None
    for line in lines:
        match parsed(line):
            case {"stage": str(stage)} if stage in STAGES:
                enter(stage)
            case {"what": str(what), "share": float() | int() as share}:
                progress(what, share)
            case {"error": {"kind": str(kind), "text": str(text)}}:
                failure = error(kind, text)
            case _:
                with log.open("a") as file:
                    file.write(line)
    return failure


def parsed(line: str) -> object:
    with contextlib.suppress(ValueError):
        return json.loads(line)
    return None


def error(name: str, text: str) -> errors.Hft2aneError | None:
    """The error by the name of its class; None: a name that is none of ours."""
    kind = getattr(errors, name, None)
    return kind(text) if isinstance(kind, type) and issubclass(kind, errors.Hft2aneError) else None
