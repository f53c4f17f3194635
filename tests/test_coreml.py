"""How Core ML is asked: coremltools' signatures, structures recorded in its dataclasses, and processes that misbehave.

What is measured is in tests/test_measure.py. Here as there, nothing is computed by Core ML but on a Mac.
"""

import ast
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import coremltools
import numpy as np
import pytest
from coremltools.models import CompiledMLModel, MLModel, compute_device, compute_plan
from coremltools.models.compute_plan import MLComputePlan
from coremltools.models.utils import compile_model

from hft2ane import coreml, export
from hft2ane.coreml import Child, Compiled, Host, child, process
from hft2ane.errors import EvaluationError, NotInTime, NotMeasured
from hft2ane.mil.load import load
from hft2ane.records.lint import Planned
from hft2ane.records.mac import UNITS, Mac
from tests.conftest import Checkpoint
from tests.standin_coreml import CLASSES, MAC, Inside, Settings, device, install
from tests.test_export import prepare

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def package(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of two lengths."""
    folder = prepare(tmp_path_factory.mktemp("coreml") / "job", checkpoint(), lengths=(8, 16))
    (made,) = export.export(folder).packages
    return folder / made.file


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Settings:
    settings = Settings()
    monkeypatch.setattr(Inside, "settings", settings)
    monkeypatch.setattr(process, "Child", Inside)
    install(monkeypatch.setattr, settings)
    return settings


# --- what is called ---

CALLED: dict[str, Callable[..., Any]] = {
    "CompiledMLModel": CompiledMLModel,
    "compile_model": compile_model,
    "MLComputePlan.load_from_path": MLComputePlan.load_from_path,
    "MLModel.get_available_compute_devices": MLModel.get_available_compute_devices,
    "self.model.predict": CompiledMLModel.predict,
    "planned.get_compute_device_usage_for_mlprogram_operation": (
        MLComputePlan.get_compute_device_usage_for_mlprogram_operation
    ),
    "planned.get_estimated_cost_for_mlprogram_operation": MLComputePlan.get_estimated_cost_for_mlprogram_operation,
}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the process's module, by the words that it is written with."""
    for node in ast.walk(ast.parse(inspect.getsource(child))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("name", CALLED)
def test_coremltools_has_the_signature_that_is_called(name: str) -> None:
    found = [node for called, node in calls() if called == name]
    assert found
    for node in found:
        of = inspect.signature(CALLED[name])
        bound = [object()] if next(iter(of.parameters), "") == "self" else []
        keywords = {str(each.arg): object() for each in node.keywords}
        of.bind(*bound, *(object() for _ in node.args), **keywords)


def test_every_call_of_coremltools_is_among_them() -> None:
    names = {
        alias.name
        for node in ast.walk(ast.parse(inspect.getsource(child)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coremltools")
        for alias in node.names
    }
    assert names == {name.partition(".")[0] for name in CALLED if name[0] not in "sp"} | {"ComputeUnit"}
    assert {unit.name for unit in coremltools.ComputeUnit} == set(UNITS)


def test_the_devices_are_those_of_coremltools() -> None:
    for name, class_ in CLASSES.items():
        assert issubclass(getattr(compute_device, class_), compute_device.MLComputeDevice)
        assert child.device_of(device(name)) == name
    assert set(child.DEVICES) == {
        name for name in vars(compute_device) if name.startswith("ML") and name != "MLComputeDevice"
    }
    assert child.device_of(object()) == "unknown"


# --- a package for those who use it, in their own process ---


def test_one_function_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = create_autospec(CompiledMLModel)
    monkeypatch.setattr(coremltools.models, "CompiledMLModel", model)
    coreml.Model(tmp_path, "main", "CPU_AND_NE", "x")
    model.assert_called_once_with(str(tmp_path), compute_units=coremltools.ComputeUnit.CPU_AND_NE, function_name=None)
    model.return_value.predict.return_value = {"y": np.zeros(1, np.float16)}
    found = coreml.Model(tmp_path, "tokens_8", "CPU_ONLY", "x")({"x": np.ones((1, 8), np.int64)})
    assert model.call_args.kwargs["function_name"] == "tokens_8"
    assert (found["y"].dtype, model.return_value.predict.call_args.args[0]["x"].dtype) == (np.float16, np.int32)
    model.return_value.predict.side_effect = RuntimeError("ANECCompile() FAILED")
    with pytest.raises(EvaluationError, match=r"does not run x\.mlpackage \(main\) on CPU_ONLY: ANECCompile"):
        coreml.Model(tmp_path, "main", "CPU_ONLY", "x.mlpackage")({})
    model.side_effect = RuntimeError("no such op")
    with pytest.raises(EvaluationError, match=r"does not load x\.mlpackage \(main\) on CPU_ONLY: no such op"):
        coreml.Model(tmp_path, "main", "CPU_ONLY", "x.mlpackage")


def test_what_is_compiled_is_kept(inside: Settings, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system finds again what it prepared of it; by the package's content, not by its name."""
    home = package.parent / "home"
    monkeypatch.setenv("HOME", str(home))
    place = coreml.kept("a" * 64)
    assert place == home / "Library" / "Caches" / "hft2ane" / f"{'a' * 64}.mlmodelc"
    coreml.keep(package, place)
    before = {path: path.stat().st_ino for path in place.rglob("*")}
    assert before
    coreml.keep(package, place)  # as a process does that began before this one had ended
    assert {path: path.stat().st_ino for path in place.rglob("*")} == before
    assert list(place.parent.iterdir()) == [place]


def test_what_core_ml_does_not_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        coremltools.models.utils, "compile_model", create_autospec(compile_model, side_effect=OSError("no"))
    )
    place = coreml.kept("b" * 64)
    with pytest.raises(EvaluationError, match=r"does not compile x\.mlpackage: no"):
        coreml.keep(tmp_path / "x.mlpackage", place)
    assert list(place.parent.iterdir()) == []


# --- structures recorded in coremltools' dataclasses ---


def operation(name: str, *inner: Any) -> Any:
    outputs = [compute_plan.MLModelStructureProgramNamedValueType(name, None)] if name else []
    block = compute_plan.MLModelStructureProgramBlock([], list(inner), [])
    return compute_plan.MLModelStructureProgramOperation({}, "ios18.cond", outputs, [block] if inner else [], name)


def recorded(*operations: Any, places: dict[str, Any], costs: dict[str, float]) -> MLComputePlan:
    block = compute_plan.MLModelStructureProgramBlock([], list(operations), [])
    function = compute_plan.MLModelStructureProgramFunction([], block)
    program = compute_plan.MLModelStructureProgram({"main": function})
    plan: MLComputePlan = object.__new__(MLComputePlan)
    plan.__proxy__ = SimpleNamespace(
        model_structure=compute_plan.MLModelStructure(None, program, None),
        get_compute_device_usage_for_mlprogram_operation=lambda op: places.get(op.__proxy__),
        get_estimated_cost_for_mlprogram_operation=lambda op: (
            compute_plan.MLComputePlanCost(costs[op.__proxy__]) if op.__proxy__ in costs else None
        ),
    )
    return plan


def usage(preferred: Any, *supported: Any) -> Any:
    return compute_plan.MLComputePlanDeviceUsage(preferred, list(supported))


def test_a_recorded_plan_is_read() -> None:
    """Operations inside others too; what it says nothing of, and what gives no result, is not in it."""
    ane, cpu, gpu = device("ane"), device("cpu"), device("gpu")
    plan = recorded(
        operation("a"),
        operation("b", operation("inner")),
        operation("silent"),
        operation(""),
        operation("new"),
        places={
            "a": usage(ane, cpu, gpu, ane),
            "b": usage(cpu, cpu, ane),
            "inner": usage(gpu, gpu),
            "": usage(cpu, cpu),
            "new": usage(object(), object(), cpu),
        },
        costs={"a": 0.75, "b": 0.0},
    )
    assert list(child.operations(plan, "main")) == [
        {"name": "a", "device": "ane", "supported": ["ane", "cpu", "gpu"], "cost": 0.75},
        {"name": "b", "device": "cpu", "supported": ["ane", "cpu"], "cost": 0.0},
        {"name": "inner", "device": "gpu", "supported": ["gpu"], "cost": None},
        {"name": "new", "device": "unknown", "supported": ["cpu", "unknown"], "cost": None},
    ]


def test_a_recorded_plan_of_something_else() -> None:
    network = compute_plan.MLModelStructure(compute_plan.MLModelStructureNeuralNetwork([]), None, None)
    with pytest.raises(NotMeasured, match="no function main: it has no program"):
        list(child.operations(SimpleNamespace(model_structure=network), "main"))
    with pytest.raises(NotMeasured, match="no function other: it has main"):
        list(child.operations(recorded(places={}, costs={}), "other"))


@pytest.mark.parametrize(
    ("raised", "said"), [(NotMeasured("no function x"), "no function x"), (ValueError("y"), "ValueError: y")]
)
def test_an_error_is_an_answer(raised: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: child.Served) -> None:
        raise raised

    monkeypatch.setattr(child.Served, "close", refuse)
    answers = io.StringIO()
    child.serve(['{"do": "close"}\n'], answers, 1.0)
    assert json.loads(answers.getvalue()) == {"error": said}


def test_a_plan_has_every_function_and_operation(package: Path, inside: Settings, tmp_path: Path) -> None:
    """Core ML's is for the default function, so each is made that in a copy; the package stays as it is."""
    inside.places |= {"gather": "cpu", "gelu": "gpu"}
    inside.could = ("gather",)
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    for name, function in load(package).functions.items():
        assert coreml.plan(package, name, tmp_path, 1.0) == {
            (name, op.outputs[0].name): {
                "gather": Planned("cpu", 0.01, ("ane", "cpu", "gpu")),
                "gelu": Planned("gpu", 0.01, ("cpu", "gpu")),
            }.get(op.type, Planned("ane", 0.01, ("ane", "cpu", "gpu")))
            for op in function.ops
        }
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == []


# --- the Mac ---


@pytest.mark.parametrize(
    ("devices", "units"),
    [
        (("cpu", "gpu", "ane"), UNITS),
        (("cpu", "ane"), ("CPU_ONLY", "CPU_AND_NE")),
        (("cpu", "gpu"), ("CPU_ONLY", "CPU_AND_GPU")),
        (("cpu",), ("CPU_ONLY",)),
        ((), ("CPU_ONLY",)),
    ],
)
def test_without_an_engine_nothing_is_called_the_engine_s(devices: Any, units: Any) -> None:
    assert Host(MAC, devices).units == units


@pytest.mark.parametrize(
    ("system", "there"), [("14.3", False), ("14.4", True), ("15.0.1", True), ("26.1", True), ("13.6.9", False)]
)
def test_plans_are_there_from_macos_14_4_on(system: str, there: bool) -> None:
    mac = Mac("Apple M9", "Mac99,1", 2**34, system, "24F74")
    assert Host(mac, ("cpu",)).has_plans is there
    assert str(mac) == f"Apple M9, macOS {system} (24F74)"


def test_what_a_mac_says_of_itself(inside: Settings, tmp_path: Path) -> None:
    assert coreml.probe(tmp_path, 1.0) == Host(MAC, ("cpu", "gpu", "ane"))


def test_of_a_virtual_mac_the_cpu_is_asked(inside: Settings, tmp_path: Path) -> None:
    """Whatever Core ML names."""
    inside.mac = Mac("Apple M1 (Virtual)", "VirtualMac2,1", 7 * 2**30, "15.5", "24F74")
    host = coreml.probe(tmp_path, 1.0)
    assert host == Host(inside.mac, ("cpu",))
    assert host.units == ("CPU_ONLY",)


# --- what is timed ---


def test_a_latency_is_taken_warm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By Core ML's clock, on which the first predictions are slower; ours runs on while Python has the outputs."""
    clock, count = [0.0], [0]
    monkeypatch.setattr(child.time, "perf_counter", lambda: clock[0])

    class Slow:
        def predict(self, data: dict[str, Any]) -> None:
            assert {name: (value.dtype, value.shape) for name, value in data.items()} == {"x": ("int32", (1, 8))}
            data.clear()  # coremltools changes what it is given
            count[0] += 1
            clock[0] += 100.0

        @property
        def _proxy(self) -> Any:
            last = 9_000_000_000 if count[0] <= 2 else 1_000_000 * count[0]
            return SimpleNamespace(get_last_predict_duration_in_nano_seconds=lambda: last)

    served = child.Served()
    served.model = Slow()
    process.save(tmp_path / "x.npz", {"x": np.ones((1, 8), np.int64)})
    took = served.time(str(tmp_path / "x.npz"), warm_up=2, rounds=20)["ms"]
    assert took == list(range(3, 23))


def test_core_ml_s_clock_is_where_it_is_looked_for() -> None:
    """A compiled model keeps the binding by this name, and the binding tells an MLModel's time by that one."""
    assert "self._proxy = _MLModelProxy(" in inspect.getsource(CompiledMLModel.__init__)
    assert "CompiledMLModel" not in inspect.getsource(MLModel)
    told = inspect.getsource(MLModel.last_predict_duration_in_nano_seconds.fget)
    assert "__proxy__.get_last_predict_duration_in_nano_seconds()" in told


def test_arrays_are_such_as_the_binding_takes() -> None:
    """It has no float16, and asks for memory that it may write to; numbers stay what they were."""
    read_only = np.broadcast_to(np.float32(0.1), (2, 3))
    ids = np.arange(6).reshape(2, 3).T
    found = coreml.model.prepared({"ids": ids, "states": read_only, "half": np.float16([0.1])})
    assert {name: value.dtype for name, value in found.items()} == {
        "ids": "int32",
        "states": "float32",
        "half": "float32",
    }
    assert all(value.flags.c_contiguous and value.flags.writeable for value in found.values())
    assert (found["ids"] == ids).all()
    assert (found["states"] == np.float32(0.1)).all()
    assert found["half"] == np.float16(0.1)


def test_the_most_memory_does_not_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter((5, 4, 6))
    monkeypatch.setattr(child, "peak", lambda: next(said))
    served = child.Served()
    assert [served.memory()["peak"] for _ in range(3)] == [5, 5, 6]


def test_a_latency_s_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a process whose answers are made up."""
    opens = iter((12.5, 0.25))
    memory = iter(({"peak": 100, "footprint": 90}, {"peak": 500, "footprint": 400}))
    asked: list[str] = []

    class Scripted(Inside):
        def ask(self, do: str, **given: object) -> dict[str, Any]:
            asked.append(do)
            if do == "time":
                assert (given["warm_up"], given["rounds"]) == (coreml.WARM_UP, coreml.ROUNDS)
                return {"ms": [float(n) for n in range(coreml.ROUNDS, 0, -1)]}
            return {"open": lambda: {"seconds": next(opens)}, "memory": lambda: next(memory)}.get(do, dict)()

    monkeypatch.setattr(process, "Child", Scripted)
    compiled = Compiled(tmp_path / "x.mlmodelc", 2.0)
    found = coreml.timed("float16", compiled, "main", "CPU_AND_NE", {}, tmp_path, 1.0)
    assert asked == ["ready", "memory", "open", "close", "open", "time", "memory"]
    assert (found.rounds >= 20, found.warm_up >= 1) == (True, True)
    assert (found.least_ms, found.median_ms, found.p90_ms) == (1.0, 15.5, 27.0)
    assert (found.compile_s, found.load_s, found.reload_s) == (2.0, 12.5, 0.25)
    assert (found.before, found.peak, found.footprint) == (100, 500, 400)


# --- processes ---


def scripted(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The process in which Core ML would be asked is one of this Python text."""
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-c", text))


def gone(pid: int) -> bool:
    """Ended, if perhaps not yet collected by the system's first process."""
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return not state or state.startswith("Z")


def test_what_hangs_is_ended_with_all_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripted(
        monkeypatch,
        "import subprocess, sys, time\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "input(); print('{\"pid\": %d}' % inner.pid, flush=True)\n"
        "time.sleep(600)",
    )
    with Child(tmp_path, "CPU_AND_NE", 20.0) as asked:
        pid = asked.ask("open")["pid"]
        asked.timeout = 0.2
        with pytest.raises(NotInTime, match=r"^predict did not finish in 0\.2 s on CPU_AND_NE$"):
            asked.ask("predict")
    assert asked.process.returncode == -9
    assert gone(pid)


def test_what_a_kill_does_not_reach_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a process that is inside a driver: here, one that no kill is sent to."""
    scripted(monkeypatch, "import time; time.sleep(30)")
    monkeypatch.setattr(process, "LETTING_GO", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(process.os, "killpg", lambda *_: None)
        with Child(tmp_path, "CPU_AND_NE", 0.1) as asked, pytest.raises(NotMeasured, match="^open did not finish"):
            asked.ask("open")
        assert asked.process.returncode is None
        assert asked.last_words() == "the process ended with no exit code yet"
    asked.end()
    asked.process.wait()
    assert asked.process.returncode == -9


def test_what_leaves_its_group_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Though it has the pipe that answers come through."""
    scripted(
        monkeypatch,
        "import subprocess, sys\n"
        "away = [sys.executable, '-c', 'import time; time.sleep(30)']\n"
        "away = subprocess.Popen(away, start_new_session=True)\n"
        "input(); print('{\"pid\": %d}' % away.pid, flush=True)\n"
        "input()",
    )
    with Child(tmp_path, "CPU_AND_NE", 20.0) as asked:
        pid = asked.ask("open")["pid"]
    assert asked.process.returncode == -9
    assert not gone(pid)
    os.kill(pid, 9)


def test_half_an_answer_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scripted(monkeypatch, "import time; print('{\"seconds\"', end='', flush=True); time.sleep(600)")
    with Child(tmp_path, "ALL", 0.5) as asked, pytest.raises(NotMeasured, match="did not finish"):
        asked.ask("open")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os; input(); os.kill(os.getpid(), 9)", "open on ALL: the process ended with signal 9"),
        ("raise SystemExit(3)", "open on ALL: the process ended with exit code 3"),
        (
            "import sys; print('ANECCompile() FAILED in /Users/me/x/M.mlmodelc\\n', file=sys.stderr); sys.exit(1)",
            "open on ALL: the process ended with exit code 1; its last words: ANECCompile() FAILED in M.mlmodelc",
        ),
        (
            'input(); print(\'{"error": "RuntimeError: no\\\\nsuch op in /private/var/a/b.mlmodelc"}\')',
            "open on ALL: RuntimeError: no such op in b.mlmodelc",
        ),
    ],
)
def test_what_ends_or_refuses_says_so(text: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the folders of this machine, since measurements are passed on."""
    scripted(monkeypatch, text)
    with Child(tmp_path, "ALL", 20.0) as asked, pytest.raises(NotMeasured) as failed:
        asked.ask("open")
    assert str(failed.value) == said


def test_a_process_gets_no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    scripted(monkeypatch, "import json, os; input(); print(json.dumps({'names': list(os.environ)}))")
    with Child(tmp_path, "ALL", 20.0) as asked:
        assert set(asked.ask("names")["names"]) <= {*process.KEEP, "LC_CTYPE", "__CF_USER_TEXT_ENCODING"}


def test_the_real_process_answers_without_torch(tmp_path: Path) -> None:
    """Here coremltools is without Core ML, and says so."""
    code = "import sys, hft2ane.coreml.child; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    held = bytearray(b"x") * 2**31  # by us, which is no part of what it holds
    with Child(tmp_path, "this Mac", 120.0) as asked:
        assert asked.ask("ready") == {}
        memory = asked.ask("memory")
        del held
        assert 2**24 < memory["peak"] < 2**31
        if sys.platform != "darwin":
            assert memory["footprint"] is None
            with pytest.raises(NotMeasured, match=r"compile on this Mac: Exception: Compiling a Core ML"):
                asked.ask("compile", package="x.mlpackage", into="y")
        with pytest.raises(NotMeasured, match="no attribute 'other'"):
            asked.ask("other")


@pytest.mark.slow
def test_a_process_computes_for_us(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stand-in as a process: arrays there and back, and nothing left of it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = str(ROOT / "tests" / "standin_coreml.py")
    monkeypatch.setattr(process, "COMMAND", (sys.executable, script, "{}"))
    compiled = Compiled(shutil.copytree(package, tmp_path / "x.mlmodelc"), 0.0)
    row = {name: np.ones((1, 8), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    runner = coreml.Runner(compiled, "tokens_8", "CPU_ONLY", tmp_path, 300.0)
    first = runner(row)
    assert all(np.isfinite(value).all() for value in first.values())
    changed = runner(row | {"input_ids": np.full((1, 8), 7)})
    assert any((first[name] != changed[name]).any() for name in first)
    runner.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.mlmodelc"]
