"""Our side of the processes in which Core ML is asked: start, ask, wait no longer than we said, and end them.

One that hangs, crashes or refuses is NotMeasured, with what it did and on which compute unit.
"""

import contextlib
import json
import math
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from hft2ane import records
from hft2ane.errors import NotInTime, NotMeasured
from hft2ane.records.lint import Device, Plan, Planned
from hft2ane.records.mac import ENGINE, UNITS, Latency, Mac, Unit

Array = np.ndarray[Any, Any]

COMMAND = (sys.executable, "-m", "hft2ane.coreml.child")
KEEP = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH")  # no token: it loads foreign packages
TIMEOUT = 600.0  # seconds for one answer; the first load of a large model has been seen to take minutes
WARM_UP, ROUNDS = 3, 30
PLANS = (14, 4)  # the first macOS that says where operations will run
LAST_WORDS = 300  # characters
LETTING_GO = 10.0  # seconds that a process has to end when it is killed


class Child:
    """A process that answers; `on` is for messages."""

    def __init__(self, folder: Path, on: str, timeout: float) -> None:
        self.on, self.timeout, self.log = on, timeout, folder / "coreml.log"
        environment = {key: os.environ[key] for key in KEEP if key in os.environ}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                (*COMMAND, str(timeout)),
                env=environment,
                stdin=subprocess.PIPE,  # its end tells the child that we are gone
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """It and all that it started are gone afterwards; but not what waits inside the system, for a driver of the
        Neural Engine's say, where a kill reaches it only when the system lets go. That is not waited for."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone already
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):  # a request that was never read
            self.process.stdin.close()
        self.process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(LETTING_GO)

    def ask(self, do: str, **given: object) -> dict[str, Any]:
        """NotMeasured: an error, or the process is no more. NotInTime."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `line` says what became of it
            self.process.stdin.write(json.dumps({"do": do, **given}).encode() + b"\n")
            self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.line(do))
        if "error" in answer:
            raise NotMeasured(f"{do} on {self.on}: {plain(answer['error'])}")
        return answer

    def line(self, do: str) -> bytes:
        assert self.process.stdout is not None
        late = time.monotonic() + self.timeout
        while b"\n" not in self.unread:
            left = late - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                self.end()
                raise NotInTime(f"{do} did not finish in {self.timeout:g} s on {self.on}")
            if not (read := os.read(self.process.stdout.fileno(), 1 << 16)):
                raise NotMeasured(f"{do} on {self.on}: {self.last_words()}")
            self.unread += read
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def last_words(self) -> str:
        """How the process ended."""
        self.end()
        code = self.process.returncode
        how = "no exit code yet" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
        said = plain(self.log.read_text("utf-8", errors="replace"))
        return f"the process ended with {how}" + (f"; its last words: {said}" if said else "")


def plain(text: str) -> str:
    """The end of a text as one line, without the folders of this machine: measurements are passed on."""
    line = re.sub(r"(?<![\w.])(/[^\s/:\"']+){2,}", lambda path: path[0].rpartition("/")[2], " ".join(text.split()))
    return line if len(line) <= LAST_WORDS else f"…{line[-LAST_WORDS:]}"


@dataclass(frozen=True)
class Host:
    """This Mac, and the devices that Core ML may use here."""

    mac: Mac
    devices: tuple[Device, ...]

    @property
    def units(self) -> tuple[Unit, ...]:
        """What can be told apart here. Without a Neural Engine the figures of the other devices are not to be passed
        off as the engine's."""
        needs = {"CPU_ONLY": {"cpu"}, "CPU_AND_NE": {"ane"}, "CPU_AND_GPU": {"gpu"}, "ALL": {"ane", "gpu"}}
        return tuple(unit for unit in UNITS if needs[unit] <= {"cpu", *self.devices})

    @property
    def has_plans(self) -> bool:
        return tuple(int(part) for part in self.mac.macos.split(".")[:2]) >= PLANS


def probe(folder: Path, timeout: float) -> Host:
    """NotMeasured."""
    with Child(folder, "this Mac", timeout) as child:
        found = child.ask("probe")
    mac = records.parse(json.dumps(found["mac"]), Mac, "what this Mac says of itself")
    # Apple's Virtualization framework has no Neural Engine to give, whatever Core ML names in a virtual Mac; and for a
    # GPU a stand-in, of 1 GB on GitHub's (runner-images#11899), whose figures and faults are of no Mac.
    there = [each for each in found["devices"] if each == "cpu" or not mac.virtual]
    return Host(mac, tuple(there))


@dataclass(frozen=True)
class Compiled:
    """A compiled model, for every unit: what the first load on one of them adds is kept by the system elsewhere."""

    path: Path
    seconds: float


def compile_package(package: Path, into: Path, timeout: float) -> Compiled:
    """`into`: a folder of its own. NotMeasured."""
    into.mkdir()
    path = into / f"{package.stem}.mlmodelc"
    with Child(into, "this Mac", timeout) as child:
        return Compiled(path, child.ask("compile", package=str(package), into=str(path))["seconds"])


class Runner:
    """One function of a compiled model on one unit, in a process that stays until `close`. NotMeasured."""

    def __init__(self, compiled: Compiled, function: str, unit: Unit, folder: Path, timeout: float) -> None:
        """`folder`: for what passes between the processes."""
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.child = Child(self.folder, unit, timeout)
        try:
            self.child.ask("open", compiled=str(compiled.path), function=function, unit=unit)
        except NotMeasured:
            self.close()
            raise

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name, integers or floats, -> outputs by name."""
        into, out = self.folder / "inputs.npz", self.folder / "outputs.npz"
        save(into, inputs)
        self.child.ask("predict", inputs=str(into), outputs=str(out))
        with np.load(out, allow_pickle=False) as arrays:
            return dict(arrays)

    def close(self) -> None:
        self.child.end()
        shutil.rmtree(self.folder)


def save(path: Path, arrays: Mapping[str, Array]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type] # of an argument of savez's own that no array is named like


def timed(
    variant: str,
    compiled: Compiled,
    function: str,
    unit: Unit,
    inputs: Mapping[str, Array],
    folder: Path,
    timeout: float,
) -> Latency:
    """In a process that does nothing else, with no other beside it. NotMeasured."""
    opened = {"compiled": str(compiled.path), "function": function, "unit": unit}
    with tempfile.TemporaryDirectory(dir=folder) as own, Child(Path(own), unit, timeout) as child:
        path = Path(own) / "inputs.npz"
        save(path, inputs)
        child.ask("ready")
        before = child.ask("memory")["peak"]
        first = child.ask("open", **opened)["seconds"]
        child.ask("close")
        second = child.ask("open", **opened)["seconds"]
        took = sorted(child.ask("time", inputs=str(path), warm_up=WARM_UP, rounds=ROUNDS)["ms"])
        memory = child.ask("memory")
    return Latency(
        variant=variant,
        function=function,
        unit=unit,
        warm_up=WARM_UP,
        rounds=ROUNDS,
        median_ms=round(statistics.median(took), 3),
        p90_ms=round(took[math.ceil(0.9 * len(took)) - 1], 3),
        least_ms=round(took[0], 3),
        compile_s=round(compiled.seconds, 3),
        load_s=round(first, 3),
        reload_s=round(second, 3),
        peak=memory["peak"],
        before=before,
        footprint=memory["footprint"],
    )


def plan(package: Path, function: str, folder: Path, timeout: float) -> Plan:
    """Where Core ML will run the operations of a function, when it may use the Neural Engine. What it says nothing of,
    as of constants, is not in the plan. NotMeasured."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        with opening(package, function, Path(own)) as opened:
            compiled = compile_package(opened, Path(own) / "compiled", timeout)
        with Child(Path(own), ENGINE, timeout) as child:
            found = child.ask("plan", compiled=str(compiled.path), function=function, unit=ENGINE)["operations"]
    return {(function, each["name"]): Planned(each["device"], each["cost"], tuple(each["supported"])) for each in found}


@contextlib.contextmanager
def opening(package: Path, function: str, folder: Path) -> Iterator[Path]:
    """A copy of the package whose default function is this one: only of that one coremltools has the plan."""
    from hft2ane.mil.proto import Model  # they bring torch, which the child that imports this module is to be without
    from hft2ane.package import SPEC

    copy = folder / "planned.mlpackage"
    shutil.copytree(package, copy)
    model = Model.FromString((copy / SPEC).read_bytes())
    if model.description.functions:
        model.description.defaultFunctionName = function
        (copy / SPEC).write_bytes(model.SerializeToString(deterministic=True))
    yield copy
    shutil.rmtree(copy)
