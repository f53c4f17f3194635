"""Evaluates a program on any machine: float32 inside an operation, its result rounded to the declared type.

Two other modes bracket it: `float32` rounds nothing, `half` also computes in half precision what declares it.
`declared` models the Neural Engine's numbers (half precision between operations, a wide accumulator inside them); it is
not bit for bit what any one device computes. Every result is checked against its declared shape and kind; an overflow
to infinity stays, so that it is seen.
"""

import inspect
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hft2ane.errors import EvaluationError
from hft2ane.mil.constexpr import CONSTEXPR
from hft2ane.mil.format import BY_NAME
from hft2ane.mil.load import ANY, Constant, Feature, Function, Op, Package, fits, sizes
from hft2ane.mil.ops import LISTS, OPS, STATIC

Array = NDArray[Any]
Mode = Literal["declared", "float32", "half"]
State = dict[str, Array]

# Is told each operation and the seconds that it took; the operations inside a branch or a loop are part of it.
Watch = Callable[[Op, float], None]

# MIL's words for element types in `cast`, where they are not the types' names.
DTYPE_WORDS = {"fp16": "float16", "fp32": "float32"}

INTEGERS = {name: np.iinfo(name) for name in ("int8", "int16", "int32", "uint8", "uint16")}

# What a rule meets when a program binds values that it is not made for.
MISFITS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)

# Only a few rows of an embedding table are read: the whole of it is not worth a float32 copy.
LOOKED_UP = ("gather", "x")

# A loop of a sound program ends; this one only ends what a damaged package began.
MOST_ROUNDS = 100_000


# The parameters of what has blocks; see Program._branch.
CONTROL: dict[str, Callable[..., Any]] = {"cond": lambda pred: pred, "while_loop": lambda loop_vars: loop_vars}


@dataclass(frozen=True)
class Step:
    """An op made ready: what never changes is in `fixed`, the rest is taken by name. `half`: in half precision.
    `results`: what it declares, for write_state the state. `dead`: not needed after it."""

    op: Op
    compute: Callable[..., Tensor | tuple[Tensor, ...]]
    fixed: Mapping[str, Any]
    moving: tuple[tuple[str, tuple[str | Constant, ...]], ...]
    results: tuple[Feature, ...]
    half: bool
    blocks: tuple["Plan", ...] = ()
    dead: tuple[str, ...] = ()

    def reads(self) -> set[str]:
        """Names of values that it takes, and that its blocks take from around it."""
        own = {each for _, sources in self.moving for each in sources if isinstance(each, str)}
        return own.union(*(block.reads() for block in self.blocks))


@dataclass(frozen=True)
class Plan:
    """A function or block made ready. `given`: constants that are outputs."""

    inputs: tuple[Feature, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    given: Mapping[str, Tensor]

    def reads(self) -> set[str]:
        """Names of values that it takes from around it."""
        made = {each.name for each in (*self.inputs, *(out for step in self.steps for out in step.results))}
        return {*self.outputs, *(each for step in self.steps for each in step.reads())} - made - self.given.keys()


@dataclass(frozen=True)
class Call:
    """What one evaluation is asked for; `wanted` values are kept."""

    mode: Mode
    wanted: Collection[str]
    watch: Watch | None


class Program:
    """A loaded package that can be evaluated. Constants are converted once, and shared by the functions."""

    def __init__(self, package: Package) -> None:
        self.functions: Mapping[str, Function] = package.functions
        self.default = package.default
        self.metadata: Mapping[str, str] = package.metadata
        self.specification_version = package.specification_version
        self._plans: dict[tuple[str, bool], Plan] = {}
        self._tensors: dict[tuple[Constant, bool], Tensor] = {}
        self._decompressed: dict[object, tuple[Constant, ...]] = {}

    def state(self, function: str | None = None) -> State:
        """The states of `function` (None: the default one), all zero, as a first call finds them. EvaluationError."""
        return {each.name: np.zeros(each.shape, each.dtype) for each in self.function(function).states}

    def function(self, name: str | None) -> Function:
        """The function of that name, None: the default one. EvaluationError."""
        name = self.default if name is None else name
        if name not in self.functions:
            raise EvaluationError(f"no function {name!r}; there are {', '.join(self.functions)}")
        return self.functions[name]

    def evaluate(
        self,
        inputs: Mapping[str, Array],
        function: str | None = None,
        *,
        mode: Mode = "declared",
        keep: Collection[str] = (),
        state: State | None = None,
        watch: Watch | None = None,
    ) -> dict[str, Array]:
        """The outputs of `function` (None: the default one) by name, and the values named in `keep`.

        Inputs must have exactly the declared types and shapes, or one of those that a flexible one may have. Mode
        `float32` leaves out the rounding between operations (weights stay as stored), and gives float16 results as
        float32 arrays; `half` computes float16 results in half precision. `state` (see `state()`; None: zeros) is
        brought up to date.
        `watch` is told what each operation took. EvaluationError."""
        graph = self.function(function)
        check_inputs(graph, inputs)
        with torch.inference_mode():
            plan = self._planned(graph, mode == "half")
            declared = {
                each.name: each for each in (*graph.inputs, *(out for step in plan.steps for out in step.results))
            }
            wanted = {feature.name: feature for feature in graph.outputs}
            for each in keep:
                if each not in declared:
                    raise EvaluationError(f"function {graph.name} computes no value {each!r}")
                wanted[each] = declared[each]
            state = self.state(graph.name) if state is None else state
            values = {
                **plan.given,
                **{name: _carried(array) for name, array in inputs.items()},
                **_remembered(graph, state),
            }
            self._follow(plan, values, Call(mode, {*wanted, *state}, watch))
            state.update((each.name, _array(values[each.name], each, mode)) for each in graph.states)
            return {each: _array(values[each], feature, mode) for each, feature in wanted.items()}

    def _follow(self, plan: Plan, values: dict[str, Tensor], call: Call) -> None:
        for step in plan.steps:
            began = time.perf_counter()
            values.update(self._run(step, values, call))
            for dead in step.dead:
                if dead not in call.wanted:
                    del values[dead]
            if call.watch is not None:
                call.watch(step.op, time.perf_counter() - began)

    def _run(self, step: Step, values: Mapping[str, Tensor], call: Call) -> dict[str, Tensor]:
        moving = {name: self._argument(name, sources, values, step.half) for name, sources in step.moving}
        try:
            result = (
                step.compute(**step.fixed, **moving) if not step.blocks else self._branch(step, moving, values, call)
            )
        except MISFITS as err:
            _refuse(step.op, str(err).partition("\n")[0], err)
        results = (result,) if isinstance(result, Tensor) else result
        if len(results) != len(step.results):
            _refuse(step.op, f"gives {len(results)} results, declared are {len(step.results)}")
        return {
            feature.name: _settled(tensor, feature, step.op, call.mode)
            for tensor, feature in zip(results, step.results, strict=True)
        }

    def _branch(
        self, step: Step, moving: Mapping[str, Any], values: Mapping[str, Tensor], call: Call
    ) -> tuple[Tensor, ...]:
        """cond (pred; a block for true, one for false) and while_loop (loop_vars; condition and body)."""
        if step.op.type == "cond":
            return self._inside(step.blocks[0 if moving["pred"] else 1], (), values, call)
        current: tuple[Tensor, ...] = tuple(moving["loop_vars"])
        condition, body = step.blocks
        for _ in range(MOST_ROUNDS):
            if not self._inside(condition, current, values, call)[0]:
                return current
            current = self._inside(body, current, values, call)
        raise ValueError(f"not at its end after {MOST_ROUNDS} rounds")

    def _inside(
        self, block: Plan, inputs: tuple[Tensor, ...], around: Mapping[str, Tensor], call: Call
    ) -> tuple[Tensor, ...]:
        taken = {feature.name: each for feature, each in zip(block.inputs, inputs, strict=True)}
        values = {**around, **block.given, **taken}
        self._follow(block, values, replace(call, watch=None))
        return tuple(values[each] for each in block.outputs)

    def _argument(
        self, parameter: str, sources: tuple[str | Constant, ...], values: Mapping[str, Tensor], half: bool
    ) -> Any:
        tensors = [values[each] if isinstance(each, str) else self._tensor(each, half) for each in sources]
        if half:
            tensors = [each.half() if each.is_floating_point() else each for each in tensors]
        if parameter in LISTS:
            return tensors
        return tensors[0].tolist() if parameter in STATIC else tensors[0]

    def _planned(self, graph: Function, half: bool) -> Plan:
        """The function's plan, in which each step knows the values that nothing after it needs."""
        key = (graph.name, half)
        if key not in self._plans:
            states = {each.name: each for each in graph.states}
            outputs = tuple(each.name for each in graph.outputs)
            plan = self._plan(graph.inputs, outputs, graph.ops, graph.constants, states, half)
            last: dict[str, int] = {}
            for index, step in enumerate(plan.steps):
                last.update((feature.name, index) for feature in step.results)
                last.update((each, index) for each in step.reads())
            dead: list[list[str]] = [[] for _ in plan.steps]
            for value, index in last.items():
                dead[index].append(value)
            ends = zip(plan.steps, dead, strict=True)
            self._plans[key] = replace(plan, steps=tuple(replace(step, dead=tuple(names)) for step, names in ends))
        return self._plans[key]

    def _plan(
        self,
        inputs: tuple[Feature, ...],
        outputs: tuple[str, ...],
        ops: tuple[Op, ...],
        constants: Mapping[str, Constant],
        states: Mapping[str, Feature],
        half: bool,
    ) -> Plan:
        """Binds every op to its rule, and decompresses constants."""
        known = dict(constants)
        steps = []
        for op in ops:
            if op.type in CONSTEXPR:
                known.update(zip((each.name for each in op.outputs), self._decompress(op, known), strict=True))
            else:
                steps.append(self._bind(op, known, states, half))
        given = {each: self._tensor(known[each]) for each in outputs if each in known}
        return Plan(inputs, outputs, tuple(steps), given)

    def _bind(self, op: Op, constants: Mapping[str, Constant], states: Mapping[str, Feature], half: bool) -> Step:
        compute = CONTROL.get(op.type) if op.blocks else OPS.get(op.type)
        if compute is None:
            _refuse(op, "there is no rule for this operation. To add one: hft2ane/mil/ops.py, and a row in its tests")
        _check_parameters(op, compute)
        results = op.outputs
        if op.type in ("read_state", "write_state"):
            state, *more = op.inputs["input"]
            if more or not isinstance(state, str) or state not in states:
                _refuse(op, "its input is not a state of the function")
            results = results or (states[state],)
        half = half and all(each.dtype == "float16" for each in results)
        fixed: dict[str, Any] = {}
        moving = []
        for parameter, bindings in op.inputs.items():
            if parameter not in LISTS and len(bindings) != 1:
                _refuse(op, f"{parameter} is bound to {len(bindings)} values")
            sources = tuple(constants.get(each, each) if isinstance(each, str) else each for each in bindings)
            only = sources[0] if len(sources) == 1 else None
            if isinstance(only, Constant) and parameter in STATIC:
                fixed[parameter] = only.array.tolist()
            elif isinstance(only, Constant) and (op.type, parameter, only.dtype) == (*LOOKED_UP, "float16"):
                fixed[parameter] = torch.from_numpy(only.array)  # rounded to half already, so right in every mode
            elif isinstance(only, Constant) and parameter not in LISTS:
                fixed[parameter] = self._tensor(only, half)
            else:
                moving.append((parameter, sources))
        if "dtype" in fixed and DTYPE_WORDS.get(fixed["dtype"], fixed["dtype"]) != op.outputs[0].dtype:
            _refuse(op, f"makes {fixed['dtype']}, declared is {op.outputs[0].dtype}")
        # States belong to the function: what a branch or a loop writes would be lost.
        blocks = tuple(
            self._plan(b.inputs, b.outputs, b.ops, {**constants, **b.constants}, {}, half) for b in op.blocks
        )
        return Step(op, compute, fixed, tuple(moving), results, half, blocks)

    def _decompress(self, op: Op, constants: Mapping[str, Constant]) -> tuple[Constant, ...]:
        """A compressed weight as the constants that it stands for, once for all functions."""
        compute = CONSTEXPR[op.type]
        _check_parameters(op, compute)
        sources: dict[str, Constant] = {}
        for parameter, (binding, *more) in sorted(op.inputs.items()):
            source = constants.get(binding) if isinstance(binding, str) else binding
            if source is None or more:
                _refuse(op, f"{parameter} is not one constant")
            sources[parameter] = source
        key = (op.type, *((feature.shape, feature.dtype) for feature in op.outputs), *sources.items())
        if key not in self._decompressed:
            try:
                result = compute(**{parameter: source.array for parameter, source in sources.items()})
            except MISFITS as err:
                _refuse(op, str(err), err)
            arrays = result if isinstance(result, tuple) else (result,)
            if len(op.outputs) != len(arrays):
                _refuse(op, f"gives {len(arrays)} results, declared are {len(op.outputs)}")
            pairs = zip(arrays, op.outputs, strict=True)
            self._decompressed[key] = tuple(_stored(values, feature, op) for values, feature in pairs)
        return self._decompressed[key]

    def _tensor(self, constant: Constant, half: bool = False) -> Tensor:
        key = (constant, half)
        if key not in self._tensors:
            tensor = _carried(constant.array)
            self._tensors[key] = tensor.half() if half and tensor.is_floating_point() else tensor
        return self._tensors[key]


def _refuse(op: Op, why: str, cause: Exception | None = None) -> NoReturn:
    raise EvaluationError(f"{op.type} {op.name!r}: {why}") from cause


def _stored(values: Array, feature: Feature, op: Op) -> Constant:
    """A decompressed array as the constant that the op declares."""
    dtype = BY_NAME[feature.dtype]
    if values.shape != feature.shape or (dtype.bits < 8 and dtype.name != "uint1"):
        _refuse(op, f"gives {values.dtype} {values.shape}, declared is {feature.dtype} {feature.shape}")
    if dtype.name == "uint1":
        return Constant(feature.shape, feature.dtype, np.packbits(values.reshape(-1), bitorder="little"))
    with np.errstate(over="ignore"):
        return Constant(feature.shape, feature.dtype, values.astype(feature.dtype).reshape(-1))


def _check_parameters(op: Op, compute: Callable[..., object]) -> None:
    signature = inspect.signature(compute)
    try:
        signature.bind(**op.inputs)
    except TypeError as err:
        _refuse(op, f"{err}; what is computed is ({', '.join(signature.parameters)})", err)


def check_inputs(graph: Function, inputs: Mapping[str, Array]) -> None:
    """EvaluationError when they are not what the function declares."""
    if inputs.keys() != {feature.name for feature in graph.inputs}:
        declared = ", ".join(f"{feature.name} ({_wanted(feature)})" for feature in graph.inputs)
        given = ", ".join(inputs) or "none"
        raise EvaluationError(f"function {graph.name} takes inputs {declared}; given are {given}")
    for feature in graph.inputs:
        array = inputs[feature.name]
        if not fits(array.shape, feature.shape) or array.dtype != feature.dtype:
            raise EvaluationError(f"input {feature.name} is {array.dtype} {array.shape}, must be {_wanted(feature)}")
        ways = graph.flexible.get(feature.name, ())
        if ways and not any(all(n in axis for n, axis in zip(array.shape, way, strict=True)) for way in ways):
            shown = " or ".join(sizes(way) for way in ways)
            raise EvaluationError(f"input {feature.name} has shape {array.shape}, must be {shown}")


def _wanted(feature: Feature) -> str:
    return f"{feature.dtype} {feature.shape}".replace(str(ANY), "any")


def _remembered(graph: Function, state: State) -> dict[str, Tensor]:
    """The states as tensors, when they are those of the function."""
    for each in graph.states:
        if each.name not in state or state[each.name].shape != each.shape:
            raise EvaluationError(f"function {graph.name} needs a state {each.name} {each.shape}: see Program.state()")
    return {each.name: _carried(state[each.name]) for each in graph.states}


def _carried(array: Array) -> Tensor:
    """As operations take it: floats as float32, integers as int32, bool."""
    carrier = {"f": "float32", "i": "int32", "u": "int32", "b": "bool"}.get(array.dtype.kind)
    if carrier is None or (array.dtype == np.uint32 and array.size and array.max() > INTEGERS["int32"].max):
        raise EvaluationError(f"a {array.dtype} constant cannot stand where a tensor is wanted")
    return torch.from_numpy(np.array(array, carrier))


def _settled(tensor: Tensor, feature: Feature, op: Op, mode: Mode) -> Tensor:
    """The result as declared: its shape checked, its kind checked, rounded to its type."""
    if not fits(tensor.shape, feature.shape):
        _refuse(op, f"gives shape {tuple(tensor.shape)} for {feature.name}, declared is {feature.shape}")
    if tensor.is_floating_point():
        if feature.dtype == "float16":
            return (tensor if mode == "float32" else tensor.half()).float()
        if feature.dtype == "float32":
            return tensor.float()
    elif tensor.dtype == torch.bool:
        if feature.dtype == "bool":
            return tensor
    elif feature.dtype in INTEGERS:
        limits = INTEGERS[feature.dtype]
        surely = tensor.dtype == torch.int32 and feature.dtype == "int32"
        if not surely and tensor.numel() and (tensor.min() < limits.min or tensor.max() > limits.max):
            _refuse(op, f"a value of {feature.name} is not in the range of {feature.dtype}")
        return tensor.to(torch.int32)
    _refuse(op, f"gives {tensor.dtype} for {feature.name}, declared is {feature.dtype}")


def _array(tensor: Tensor, feature: Feature, mode: Mode) -> Array:
    dtype = "float32" if mode == "float32" and feature.dtype == "float16" else feature.dtype
    return np.array(tensor.numpy(), dtype)
