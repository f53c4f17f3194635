"""The process in which Core ML is asked, for one model on one compute unit; `process` starts and ends it.

A line of JSON in is a request, and one out its answer; arrays go through .npz files. The only place that calls
coremltools for what it has on a Mac. torch is kept out: coremltools would import it, for a third of a gigabyte that is
no part of a model's memory.
"""

import ctypes
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from hft2ane.coreml.model import prepared
from hft2ane.errors import NotMeasured
from hft2ane.records.lint import Device

Answer = dict[str, Any]

# Core ML's words for devices, the classes of coremltools.models.compute_device.
DEVICES: Mapping[str, Device] = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "ane",
}
# <sys/resource.h> of macOS: rusage_info_v4 is a UUID and numbers of 64 bits, the 29th ri_lifetime_max_phys_footprint.
RUSAGE_INFO_V4, UUID, FOOTPRINT = 4, 2, 28


class Served:
    """The requests; at most one model is open."""

    def __init__(self) -> None:
        self.model: Any = None
        self.most = 0

    def probe(self) -> Answer:
        """The Mac, and the devices that Core ML may use."""
        from coremltools.models import MLModel

        mac = {
            "chip": told("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"),
            "model": told("/usr/sbin/sysctl", "-n", "hw.model"),
            "memory": int(told("/usr/sbin/sysctl", "-n", "hw.memsize")),
            "macos": told("/usr/bin/sw_vers", "-productVersion"),
            "build": told("/usr/bin/sw_vers", "-buildVersion"),
        }
        return {"mac": mac, "devices": [device_of(each) for each in MLModel.get_available_compute_devices()]}

    def ready(self) -> Answer:
        """What Python itself needs is in memory after this."""
        import coremltools.models.compute_plan  # noqa: F401

        return {}

    def compile(self, package: str, into: str) -> Answer:
        from coremltools.models.utils import compile_model

        began = time.perf_counter()
        compile_model(package, into)
        return {"seconds": time.perf_counter() - began}

    def open(self, compiled: str, function: str, unit: str) -> Answer:
        from coremltools import ComputeUnit
        from coremltools.models import CompiledMLModel

        # A package with one function takes no name.
        name = None if function == "main" else function
        began = time.perf_counter()
        self.model = CompiledMLModel(compiled, compute_units=ComputeUnit[unit], function_name=name)
        return {"seconds": time.perf_counter() - began}

    def close(self) -> Answer:
        self.model = None
        return {}

    def predict(self, inputs: str, outputs: str) -> Answer:
        found = self.model.predict(given(inputs))
        arrays = {name: np.asarray(value) for name, value in found.items()}
        np.savez(outputs, **arrays)  # type: ignore[arg-type] # of an argument of savez's own that no array is named like
        return {}

    def time(self, inputs: str, warm_up: int, rounds: int) -> Answer:
        """Of Core ML's own call, as coremltools times it, which is what an app waits for. Around it coremltools copies
        each output and makes float32 of it: 62 MB for the logits of 512 tokens over 30 522 words. An MLModel tells the
        time, but a CompiledMLModel's is behind its `_proxy` alone."""
        arrays = given(inputs)
        took = []
        for _ in range(warm_up + rounds):
            self.model.predict(dict(arrays))
            took.append(self.model._proxy.get_last_predict_duration_in_nano_seconds() / 1e6)
        return {"ms": took[warm_up:]}

    def memory(self) -> Answer:
        """The most so far, in bytes. Linux counts by processor, and may say some pages less than it did before."""
        self.most = max(self.most, peak())
        return {"peak": self.most, "footprint": footprint()}

    def plan(self, compiled: str, function: str, unit: str) -> Answer:
        """What Core ML says of each operation; of some, as of constants, it says nothing."""
        from coremltools import ComputeUnit
        from coremltools.models.compute_plan import MLComputePlan

        planned = MLComputePlan.load_from_path(compiled, compute_units=ComputeUnit[unit])
        return {"operations": list(operations(planned, function))}


def peak() -> int:
    """Bytes of memory that this process held at most. Linux counts into ru_maxrss what the parent held when it forked,
    and has the process's own figure elsewhere."""
    if platform.system() == "Darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (own,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(own.split()[1]) * 1024


def operations(planned: Any, function: str) -> Iterator[Answer]:
    """Of a coremltools MLComputePlan, by the name of their first result. NotMeasured."""
    program = planned.model_structure.program
    if program is None or function not in program.functions:
        has = ", ".join(sorted(program.functions)) if program else "no program"
        raise NotMeasured(f"the compute plan has no function {function}: it has {has}")
    for operation in walk(program.functions[function].block):
        usage = planned.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = planned.get_estimated_cost_for_mlprogram_operation(operation)
        if usage is not None and operation.outputs:
            yield {
                "name": operation.outputs[0].name,
                "device": device_of(usage.preferred_compute_device),
                "supported": sorted({device_of(each) for each in usage.supported_compute_devices}),
                "cost": cost.weight if cost else None,
            }


def walk(block: Any) -> Iterator[Any]:
    """Every operation of a block, and of those inside it."""
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from walk(inner)


def device_of(device: object) -> Device:
    return DEVICES.get(type(device).__name__, "unknown")


def given(path: str) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return prepared(arrays)


def told(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def footprint() -> int | None:
    """The most memory that the system has held this process to account for; None where it does not say."""
    if platform.system() != "Darwin":
        return None
    usage = (ctypes.c_uint64 * 64)()  # longer than any version of the structure
    if ctypes.CDLL("/usr/lib/libproc.dylib").proc_pid_rusage(os.getpid(), RUSAGE_INFO_V4, ctypes.byref(usage)):
        return None
    return int(usage[UUID + FOOTPRINT])


def serve(requests: Iterable[str], answers: IO[str], seconds: float) -> None:
    """`seconds`: whoever asks ends us when an answer takes longer. Should they be gone, the system does a minute later,
    whatever a compiler of Apple's is doing then."""
    served = Served()
    for line in requests:
        signal.alarm(math.ceil(seconds) + 60)
        request = json.loads(line)
        try:
            answer = getattr(served, request.pop("do"))(**request)
        except NotMeasured as err:
            answer = {"error": str(err)}
        except Exception as err:  # noqa: BLE001 - coremltools raises plain Exceptions, and each is an answer
            answer = {"error": f"{type(err).__name__}: {err}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        signal.alarm(0)


def main() -> None:
    for library in ("torch", "transformers"):
        sys.modules[library] = None  # type: ignore[assignment] # importing it fails, as where it is not installed
    # Core ML and its frameworks print to where they like: what they print is no answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers, float(sys.argv[1]))


if __name__ == "__main__":
    main()
