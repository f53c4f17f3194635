"""Evaluates a program on any machine: float32 inside an operation, its result rounded to the declared type.

This models the Neural Engine's numbers (half precision between operations, a wide accumulator inside them); it is not
bit for bit what any one device computes. Every result is checked against its declared shape and kind; an overflow to
infinity stays, so that it is seen.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hft2ane.errors import EvaluationError
from hft2ane.mil.load import BY_NAME, Constant, Feature, Function, Op, Package
from hft2ane.mil.ops import CONSTEXPR, LISTS, OPS, STATIC

Array = NDArray[Any]
Mode = Literal["declared", "float32"]

# MIL's words for element types in `cast`, where they are not the types' names.
DTYPE_WORDS = {"fp16": "float16", "fp32": "float32"}

INTEGERS = {name: np.iinfo(name) for name in ("int8", "int16", "int32", "uint8", "uint16")}

# What a rule meets when a program binds values that it is not made for.
MISFITS = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)

# Only a few rows of an embedding table are read: the whole of it is not worth a float32 copy.
LOOKED_UP = ("gather", "x")


@dataclass(frozen=True)
class Step:
    """An op made ready: what never changes is in `fixed`, the rest is taken by name. `dead`: not needed after it."""

    op: Op
    compute: Callable[..., Tensor | tuple[Tensor, ...]]
    fixed: Mapping[str, Any]
    moving: tuple[tuple[str, tuple[str | Constant, ...]], ...]
    dead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A function made ready. `given`: constants that are outputs; `declared`: its inputs and results by name."""

    steps: tuple[Step, ...]
    given: Mapping[str, Tensor]
    declared: Mapping[str, Feature]


class Program:
    """A loaded package that can be evaluated. Constants are converted once, and shared by the functions."""

    def __init__(self, package: Package) -> None:
        self.functions: Mapping[str, Function] = package.functions
        self.default = package.default
        self.metadata: Mapping[str, str] = package.metadata
        self.specification_version = package.specification_version
        self._plans: dict[str, Plan] = {}
        self._tensors: dict[Constant, Tensor] = {}
        self._decompressed: dict[object, Constant] = {}

    def evaluate(
        self,
        inputs: Mapping[str, Array],
        function: str | None = None,
        *,
        mode: Mode = "declared",
        keep: Collection[str] = (),
    ) -> dict[str, Array]:
        """The outputs of `function` (None: the default one) by name, and the values named in `keep`.

        Inputs must have exactly the declared shapes and types. Mode `float32` leaves out the rounding between
        operations (weights stay as stored), and gives float16 results as float32 arrays. EvaluationError."""
        name = self.default if function is None else function
        if name not in self.functions:
            raise EvaluationError(f"no function {name!r}; there are {', '.join(self.functions)}")
        graph = self.functions[name]
        with torch.inference_mode():
            if name not in self._plans:
                self._plans[name] = self._plan(graph)
            plan = self._plans[name]
            wanted = {feature.name: feature for feature in graph.outputs}
            for each in keep:
                if each not in plan.declared:
                    raise EvaluationError(f"function {name} computes no value {each!r}")
                wanted[each] = plan.declared[each]
            values = {**plan.given, **_given(graph, inputs)}
            for step in plan.steps:
                values.update(self._run(step, values, mode))
                for dead in step.dead:
                    if dead not in wanted:
                        del values[dead]
            return {each: _array(values[each], feature, mode) for each, feature in wanted.items()}

    def _run(self, step: Step, values: Mapping[str, Tensor], mode: Mode) -> dict[str, Tensor]:
        moving = {parameter: self._argument(parameter, sources, values) for parameter, sources in step.moving}
        try:
            result = step.compute(**step.fixed, **moving)
        except MISFITS as err:
            _refuse(step.op, str(err).partition("\n")[0], err)
        results, declared = (result,) if isinstance(result, Tensor) else result, step.op.outputs
        if len(results) != len(declared):
            _refuse(step.op, f"gives {len(results)} results, declared are {len(declared)}")
        return {
            feature.name: _settled(tensor, feature, step.op, mode)
            for tensor, feature in zip(results, declared, strict=True)
        }

    def _argument(self, parameter: str, sources: tuple[str | Constant, ...], values: Mapping[str, Tensor]) -> Any:
        tensors = [values[each] if isinstance(each, str) else self._tensor(each) for each in sources]
        if parameter in LISTS:
            return tensors
        return tensors[0].tolist() if parameter in STATIC else tensors[0]

    def _plan(self, graph: Function) -> Plan:
        """Binds every op to its rule, decompresses constants, and finds after which step each value is dead."""
        constants = dict(graph.constants)
        steps = []
        for op in graph.ops:
            if op.type in CONSTEXPR:
                constants[op.outputs[0].name] = self._decompress(op, constants)
            else:
                steps.append(self._bind(op, constants))
        last: dict[str, int] = {}
        for index, step in enumerate(steps):
            last.update((feature.name, index) for feature in step.op.outputs)
            last.update((each, index) for _, sources in step.moving for each in sources if isinstance(each, str))
        dead: list[list[str]] = [[] for _ in steps]
        for value, index in last.items():
            dead[index].append(value)
        return Plan(
            steps=tuple(replace(step, dead=tuple(names)) for step, names in zip(steps, dead, strict=True)),
            given={each.name: self._tensor(constants[each.name]) for each in graph.outputs if each.name in constants},
            declared={
                feature.name: feature
                for feature in (*graph.inputs, *(out for step in steps for out in step.op.outputs))
            },
        )

    def _bind(self, op: Op, constants: Mapping[str, Constant]) -> Step:
        compute = OPS.get(op.type)
        if compute is None or op.nested:
            _refuse(op, "there is no rule for this operation. To add one: hft2ane/mil/ops.py, and a row in its tests")
        _check_parameters(op, compute)
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
                fixed[parameter] = torch.from_numpy(only.array)
            elif isinstance(only, Constant) and parameter not in LISTS:
                fixed[parameter] = self._tensor(only)
            else:
                moving.append((parameter, sources))
        if "dtype" in fixed and DTYPE_WORDS.get(fixed["dtype"], fixed["dtype"]) != op.outputs[0].dtype:
            _refuse(op, f"makes {fixed['dtype']}, declared is {op.outputs[0].dtype}")
        return Step(op, compute, fixed, tuple(moving))

    def _decompress(self, op: Op, constants: Mapping[str, Constant]) -> Constant:
        """A compressed weight as the constant that it stands for, once for all functions."""
        compute, feature = CONSTEXPR[op.type], op.outputs[0]
        _check_parameters(op, compute)
        sources: dict[str, Constant] = {}
        for parameter, (binding, *more) in sorted(op.inputs.items()):
            source = constants.get(binding) if isinstance(binding, str) else binding
            if source is None or more:
                _refuse(op, f"{parameter} is not one constant")
            sources[parameter] = source
        key = (op.type, feature.shape, feature.dtype, *sources.items())
        if key not in self._decompressed:
            try:
                values = compute(**{parameter: source.array for parameter, source in sources.items()})
            except MISFITS as err:
                _refuse(op, str(err), err)
            if len(op.outputs) != 1 or values.shape != feature.shape or BY_NAME[feature.dtype].bits < 8:
                _refuse(op, f"gives {values.dtype} {values.shape}, declared is {feature.dtype} {feature.shape}")
            with np.errstate(over="ignore"):
                stored = values.astype(feature.dtype).reshape(-1)
            self._decompressed[key] = Constant(feature.shape, feature.dtype, stored)
        return self._decompressed[key]

    def _tensor(self, constant: Constant) -> Tensor:
        if constant not in self._tensors:
            self._tensors[constant] = _carried(constant.array)
        return self._tensors[constant]


def _refuse(op: Op, why: str, cause: Exception | None = None) -> NoReturn:
    raise EvaluationError(f"{op.type} {op.name!r}: {why}") from cause


def _check_parameters(op: Op, compute: Callable[..., object]) -> None:
    signature = inspect.signature(compute)
    try:
        signature.bind(**op.inputs)
    except TypeError as err:
        _refuse(op, f"{err}; what is computed is ({', '.join(signature.parameters)})", err)


def _given(graph: Function, inputs: Mapping[str, Array]) -> dict[str, Tensor]:
    """The inputs as tensors, when they are exactly the declared ones."""
    if inputs.keys() != {feature.name for feature in graph.inputs}:
        declared = ", ".join(feature.name for feature in graph.inputs)
        raise EvaluationError(f"function {graph.name} takes inputs {declared}; given are {', '.join(inputs)}")
    for feature in graph.inputs:
        array = inputs[feature.name]
        if array.shape != feature.shape or array.dtype != feature.dtype:
            raise EvaluationError(
                f"input {feature.name} is {array.dtype} {array.shape}, must be {feature.dtype} {feature.shape}"
            )
    return {name: _carried(array) for name, array in inputs.items()}


def _carried(array: Array) -> Tensor:
    """As operations take it: floats as float32, integers as int32, bool."""
    carrier = {"f": "float32", "i": "int32", "u": "int32", "b": "bool"}.get(array.dtype.kind)
    if carrier is None or (array.dtype == np.uint32 and array.size and array.max() > INTEGERS["int32"].max):
        raise EvaluationError(f"a {array.dtype} constant cannot stand where a tensor is wanted")
    return torch.from_numpy(np.array(array, carrier))


def _settled(tensor: Tensor, feature: Feature, op: Op, mode: Mode) -> Tensor:
    """The result as declared: its shape checked, its kind checked, rounded to its type."""
    if tensor.shape != feature.shape:
        _refuse(op, f"gives shape {tuple(tensor.shape)} for {feature.name}, declared is {feature.shape}")
    if tensor.is_floating_point():
        if feature.dtype == "float16":
            return (tensor.half() if mode == "declared" else tensor).float()
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
