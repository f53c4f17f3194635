"""Stand-ins for Core ML, for machines that have none: what it would compute, our evaluator computes, and its plan is a
structure recorded in coremltools' own dataclasses. Nothing that they say is a measurement of anything.

Every call is bound to the signature of the function of coremltools that it stands in for. Run as a script, this is the
process that Core ML is asked in.
"""

import inspect
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools
import numpy as np
from coremltools.models import compute_device, compute_plan
from coremltools.models.compute_plan import MLComputePlan

from hft2ane.coreml import child
from hft2ane.errors import NotInTime, NotMeasured
from hft2ane.mil import open_package
from hft2ane.mil.load import Op, load
from hft2ane.records.lint import Device
from hft2ane.records.mac import Mac

Set = Callable[[Any, str, Any], None]  # setattr, or what a test has in its place
CLASSES = {"ane": "MLNeuralEngineComputeDevice", "gpu": "MLGPUComputeDevice", "cpu": "MLCPUComputeDevice"}
MAC = Mac("Apple M9", "Mac99,1", 16 * 2**30, "15.5", "24F74")
REAL = {
    "compiled": coremltools.models.CompiledMLModel.__init__,
    "predict": coremltools.models.CompiledMLModel.predict,
    "compile": coremltools.models.utils.compile_model,
    "plan": MLComputePlan.load_from_path,
}


@dataclass
class Settings:
    """`places`: the device of operations of a type, the engine's where there is none; None: the plan says nothing of
    them; `could`: types that the engine could run and does not. `noise`, `refuse`, `hang`: by unit."""

    devices: tuple[Device, ...] = ("cpu", "gpu", "ane")
    mac: Mac = MAC
    places: dict[str, Device | None] = field(default_factory=dict)
    could: tuple[str, ...] = ()
    cost: float | None = 0.01
    noise: dict[str, float] = field(default_factory=dict)
    refuse: dict[str, str] = field(default_factory=dict)
    hang: tuple[str, ...] = ()


def device(name: str) -> Any:
    """A device as Core ML gives it; its constructor wants a proxy of macOS."""
    return object.__new__(getattr(compute_device, CLASSES[name]))


def recorded(compiled: Path, settings: Settings) -> MLComputePlan:
    """The plan of a 'compiled' package: a structure in coremltools' dataclasses, behind its own class. It lists all
    functions, and says something of the default one's operations only, nothing of compressed constants."""
    package = load(compiled)

    def structure(op: Op) -> Any:
        names = [compute_plan.MLModelStructureProgramNamedValueType(each.name, None) for each in op.outputs]
        return compute_plan.MLModelStructureProgramOperation({}, f"ios16.{op.type}", names, [], op)

    blocks = {
        name: compute_plan.MLModelStructureProgramBlock([], [structure(op) for op in function.ops], [])
        for name, function in package.functions.items()
    }
    known = {id(op) for op in package.functions[package.default].ops if not op.type.startswith("constexpr_")}

    def usage(operation: Any) -> Any:
        op: Op = operation.__proxy__
        place = settings.places.get(op.type, "ane") if id(op) in known else None
        if place is None:
            return None
        could = ["cpu", "gpu", *(["ane"] if place == "ane" or op.type in settings.could else [])]
        return compute_plan.MLComputePlanDeviceUsage(device(place), [device(each) for each in could])

    plan: MLComputePlan = object.__new__(MLComputePlan)
    plan.__proxy__ = SimpleNamespace(
        model_structure=compute_plan.MLModelStructure(
            None,
            compute_plan.MLModelStructureProgram(
                {name: compute_plan.MLModelStructureProgramFunction([], block) for name, block in blocks.items()}
            ),
            None,
        ),
        get_compute_device_usage_for_mlprogram_operation=usage,
        get_estimated_cost_for_mlprogram_operation=lambda _: (
            settings.cost and compute_plan.MLComputePlanCost(settings.cost)
        ),
    )
    return plan


def install(put: Set, settings: Settings) -> None:
    """Makes this process one that asks the stand-ins."""

    class Compiled:
        def __init__(self, *args: Any, **options: Any) -> None:
            given = inspect.signature(REAL["compiled"]).bind(self, *args, **options).arguments
            self.unit: str = given["compute_units"].name
            assert isinstance(given["compute_units"], coremltools.ComputeUnit)
            assert given["path"].endswith(".mlmodelc")
            if self.unit in settings.refuse:
                raise RuntimeError(settings.refuse[self.unit])
            self.program, self.function = open_package(Path(given["path"])), given["function_name"]
            assert (self.function is None) == (list(self.program.functions) == ["main"])

        def predict(self, *args: Any, **options: Any) -> dict[str, Any]:
            data: Mapping[str, Any] = inspect.signature(REAL["predict"]).bind(self, *args, **options).arguments["data"]
            assert type(data) is dict
            for value in data.values():  # as PybindCompatibleArray takes them
                assert value.dtype in (np.int32, np.float32)
                assert value.flags.c_contiguous
                assert value.flags.writeable
            graph = self.program.function(self.function)
            declared = {each.name: data[each.name].astype(each.dtype) for each in graph.inputs}
            noise, random = settings.noise.get(self.unit, 0.0), np.random.default_rng(0)
            began = time.perf_counter_ns()
            found = self.program.evaluate(declared, self.function)
            took = time.perf_counter_ns() - began
            self._proxy = SimpleNamespace(get_last_predict_duration_in_nano_seconds=lambda: took)
            return {  # of float16 too, convertArrayValueToPython makes float32
                name: np.asarray(value + noise * random.standard_normal(value.shape), np.float32)
                for name, value in found.items()
            }

    def compile_model(*args: Any, **options: Any) -> str:
        given = inspect.signature(REAL["compile"]).bind(*args, **options).arguments
        assert given["model"].endswith(".mlpackage")
        return str(shutil.copytree(given["model"], given["destination_path"]))

    def load_from_path(*args: Any, **options: Any) -> MLComputePlan:
        given = inspect.signature(REAL["plan"]).bind(*args, **options).arguments
        assert given["compute_units"] is coremltools.ComputeUnit.CPU_AND_NE
        return recorded(Path(given["path"]), settings)

    def told(*command: str) -> str:
        mac = settings.mac
        says = {"machdep.cpu.brand_string": mac.chip, "hw.model": mac.model, "hw.memsize": str(mac.memory)}
        return {**says, "-productVersion": mac.macos, "-buildVersion": mac.build}[command[-1]]

    put(coremltools.models, "CompiledMLModel", Compiled)
    put(coremltools.models.utils, "compile_model", compile_model)
    put(MLComputePlan, "load_from_path", staticmethod(load_from_path))
    put(
        coremltools.models.MLModel,
        "get_available_compute_devices",
        classmethod(lambda cls: [device(each) for each in settings.devices]),
    )
    put(child, "told", told)


class Inside:
    """In the place of `coreml.Child`: the same requests and answers, in this process, which is a hundred times as fast.
    A unit that hangs is one that answers so at once."""

    settings = Settings()

    def __init__(self, folder: Path, on: str, timeout: float) -> None:
        self.on, self.timeout, self.served = on, timeout, child.Served()

    def __enter__(self) -> "Inside":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self.served.close()

    def ask(self, do: str, **given: object) -> dict[str, Any]:
        if do == "open" and self.on in self.settings.hang:
            raise NotInTime(f"{do} did not finish in {self.timeout:g} s on {self.on}")
        try:
            answer = getattr(self.served, do)(**json.loads(json.dumps(given)))
        except Exception as err:
            raise NotMeasured(f"{do} on {self.on}: {type(err).__name__}: {err}") from err
        found: dict[str, Any] = json.loads(json.dumps(answer))
        return found


if __name__ == "__main__":
    install(setattr, Settings(**json.loads(sys.argv[1])))
    child.serve(sys.stdin, sys.stdout, float(sys.argv[2]))
