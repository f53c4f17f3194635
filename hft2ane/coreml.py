"""The Mac: Core ML itself. The only place that needs macOS; elsewhere `available()` is false, nothing is measured."""

import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hft2ane.errors import EvaluationError
from hft2ane.mil.proto import Model
from hft2ane.package import SPEC
from hft2ane.records import Device, Latency, Plan, Planned

Array = np.ndarray[Any, Any]

ENGINE = "CPU_AND_NE"
WARM_UP, ROUNDS = 3, 20
PLANS = (14, 4)  # the first macOS that says where operations will run
# Core ML's words for devices, the classes of coremltools.models.compute_device.
DEVICES: Mapping[str, Device] = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "ane",
}


def available() -> bool:
    return sys.platform == "darwin"


def units() -> tuple[str, ...]:
    """What packages are measured on, names of coremltools.ComputeUnit. A virtual Mac has no Neural Engine, and its
    CPU's figures are not to be passed off as the engine's."""
    return ("CPU_ONLY", ENGINE) if has_engine() else ("CPU_ONLY",)


def has_engine() -> bool:
    from coremltools.models import MLModel

    return "ane" in [device_of(each) for each in MLModel.get_available_compute_devices()]


def has_plans() -> bool:
    return tuple(map(int, platform.mac_ver()[0].split(".")[:2])) >= PLANS


def host() -> str:
    """`Apple M2, macOS 15.5 (24F74)`."""
    chip, build = (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        for command in (("sysctl", "-n", "machdep.cpu.brand_string"), ("sw_vers", "-buildVersion"))
    )
    return f"{chip}, macOS {platform.mac_ver()[0]} ({build})"


class Runner:
    """One function of a package on one compute unit (a name of coremltools.ComputeUnit); opening it took `load_s`."""

    def __init__(self, package: Path, function: str, unit: str) -> None:
        import coremltools

        self.function, self.unit = function, unit
        # A package with one function takes no name.
        name = None if function == "main" else function
        units = coremltools.ComputeUnit[unit]
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # MLModel warns where Core ML cannot compile or load
            try:
                self.model = coremltools.models.MLModel(str(package), compute_units=units, function_name=name)
            except RuntimeWarning as err:
                raise EvaluationError(f"Core ML does not load {package.name} ({function}) on {unit}: {err}") from err
        self.load_s = time.perf_counter() - began

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name, integers or floats, -> outputs by name."""
        given = {name: v.astype(np.float16 if v.dtype.kind == "f" else np.int32) for name, v in inputs.items()}
        outputs = self.model.predict(given)
        return {name: np.asarray(value) for name, value in outputs.items()}

    def latency(self, variant: str, inputs: Mapping[str, Array]) -> Latency:
        """Of `predict` as Python has it, so the conversion of arrays is in it."""
        for _ in range(WARM_UP):
            self(inputs)
        took = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            self(inputs)
            took.append((time.perf_counter() - began) * 1e3)
        return Latency(
            variant=variant,
            function=self.function,
            unit=self.unit,
            warm_up=WARM_UP,
            rounds=ROUNDS,
            median_ms=round(statistics.median(took), 3),
            least_ms=round(min(took), 3),
            load_s=round(self.load_s, 3),
        )


def plan(package: Path, functions: Iterable[str]) -> Plan:
    """Where Core ML will run the operations of these functions, when it may use the Neural Engine.

    EvaluationError: it cannot compile the package. What it says nothing of, as of constants, is not in the plan."""
    from coremltools import ComputeUnit
    from coremltools.models.compute_plan import MLComputePlan
    from coremltools.models.utils import compile_model

    found: dict[tuple[str, str], Planned] = {}
    for function in functions:
        with opening(package, function) as opened:
            try:
                compiled = compile_model(str(opened), str(opened.with_suffix(".mlmodelc")))
                planned = MLComputePlan.load_from_path(compiled, compute_units=ComputeUnit[ENGINE])
            except RuntimeError as err:
                raise EvaluationError(f"Core ML has no plan for {package.name} ({function}): {err}") from err
            for operation in planned.model_structure.program.functions[function].block.operations:
                usage = planned.get_compute_device_usage_for_mlprogram_operation(operation)
                cost = planned.get_estimated_cost_for_mlprogram_operation(operation)
                if usage is not None and operation.outputs:
                    device = device_of(usage.preferred_compute_device)
                    found[function, operation.outputs[0].name] = Planned(device, cost.weight if cost else None)
    return found


def device_of(device: Any) -> Device:
    return DEVICES.get(type(device).__name__, "unknown")


@contextmanager
def opening(package: Path, function: str) -> Iterator[Path]:
    """A copy of the package whose default function is this one: only of that one coremltools has the plan."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "planned.mlpackage"
        shutil.copytree(package, copy)
        model = Model.FromString((copy / SPEC).read_bytes())
        if model.description.functions:
            model.description.defaultFunctionName = function
            (copy / SPEC).write_bytes(model.SerializeToString(deterministic=True))
        yield copy
