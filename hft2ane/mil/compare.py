"""Programs side by side on the same inputs: PSNR by output, and by layer, to find the first operation that parts.

The reference is computed without rounding between operations, so a package compared with itself shows what the rounding
costs. Without inputs of one's own there are two seeded samples: all tokens valid, and half of them padding.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hft2ane.errors import BadInput, EvaluationError
from hft2ane.mil.constexpr import CONSTEXPR
from hft2ane.mil.evaluate import Mode, Program, check_inputs
from hft2ane.mil.load import ANY, Constant, Feature, Function, Op, fits
from hft2ane.psnr import psnr

Array = NDArray[Any]
Inputs = Mapping[str, Array]

SEED = 0
PARTED = 50.0  # dB, as the gate of fp16 packages
LENGTH = 128  # tokens of a sample, where the package leaves it open

# What may stand between ids and the look-up: casts, and the guards that iOS 17 puts around negative indices.
PASSING = {"add", "cast", "expand_dims", "greater_equal", "identity", "reshape", "select", "squeeze"}


@dataclass(frozen=True)
class Compared:
    """PSNR in dB of a value or, in a layer, of its worst one. `why` says what keeps it from being taken."""

    name: str
    psnr: float | None
    why: str = ""

    def below(self, least: float) -> bool:
        return self.psnr is None or self.psnr < least


@dataclass(frozen=True)
class Layer:
    """The values of one layer, in order of computation."""

    name: str
    values: tuple[Compared, ...]

    @property
    def worst(self) -> Compared:
        return _least(self.values)


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file by name. BadInput."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as err:
        raise BadInput(f"{path}: {err.strerror or err}") from err
    except (ValueError, AttributeError) as err:  # not numpy's, objects inside, or a single array (.npy)
        raise BadInput(f"{path}: is not an .npz file of plain arrays (numpy.savez): {err}") from err


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """An .npz file of exactly that name. BadInput."""
    try:
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as err:
        raise BadInput(f"{path}: {err.strerror or err}") from err


def read_inputs(path: Path, program: Program, function: str | None = None) -> dict[str, Array]:
    """The inputs of a function from an .npz file. BadInput says what is wanted. EvaluationError: no such function."""
    graph, inputs = program.function(function), read_arrays(path)
    try:
        check_inputs(graph, inputs)
    except EvaluationError as err:
        raise BadInput(f"{path}: {err}{_choice(program) if function is None else ''}") from err
    return inputs


def sample_inputs(graph: Function) -> list[dict[str, Array]]:
    """Seeded inputs: ids in the range of the table that they look up, masks of ones, floats from a normal distribution.
    When there is a mask, a second sample has its second half at zero."""
    rng = np.random.default_rng(SEED)
    samples = {}
    for feature in graph.inputs:
        shape = _shape(graph, feature)
        if "mask" in feature.name:
            samples[feature.name] = np.ones(shape, feature.dtype)
        elif feature.dtype.startswith("float"):
            samples[feature.name] = rng.standard_normal(shape).astype(feature.dtype)
        else:
            samples[feature.name] = rng.integers(0, _rows(graph, feature.name), shape).astype(feature.dtype)
    masks = [name for name in samples if "mask" in name]
    if not masks:
        return [samples]
    padded = {name: samples[name].copy() for name in masks}
    for mask in padded.values():
        mask[..., (mask.shape[-1] + 1) // 2 :] = 0
    return [samples, samples | padded]


def _shape(graph: Function, feature: Feature) -> tuple[int, ...]:
    if ANY not in feature.shape:
        return feature.shape
    way = graph.flexible[feature.name][0]
    return tuple(min(max(sizes.start, LENGTH), sizes.stop - 1) for sizes in way)


def _rows(graph: Function, name: str) -> int:
    """Rows of the table in which the input is looked up; 1 when it is in none, so that all is 0."""
    same = {name}
    shapes = {each: value.shape for each, value in graph.constants.items()}
    shapes.update((each.name, each.shape) for each in (*graph.inputs, *graph.states))
    for op in graph.ops:
        shapes.update((out.name, out.shape) for out in op.outputs)
        if op.type == "gather" and _is_one(op, "indices", same):
            table = next(iter(op.inputs.get("x", ())), "")
            rows, *_ = (shapes.get(table, ()) if isinstance(table, str) else table.shape) or (1,)
            return max(rows, 1)
        if op.type in PASSING and any(_is_one(op, parameter, same) for parameter in op.inputs):
            same.update(out.name for out in op.outputs)
    return 1


def _is_one(op: Op, parameter: str, names: set[str]) -> bool:
    return any(not isinstance(each, Constant) and each in names for each in op.inputs.get(parameter, ()))


def check_alike(program: Program, reference: Program, function: str | None = None) -> None:
    """BadInput: the two do not take the same inputs."""
    here, there = program.function(function), reference.function(_same_function(reference, function))
    takes, wanted = ({each.name: each for each in graph.inputs} for graph in (here, there))
    for name in dict.fromkeys((*takes, *wanted)):
        one, other = takes.get(name), wanted.get(name)
        if one is None or other is None or not _alike(one, other):
            raise BadInput(
                f"input {name} is {_described(one)} in function {here.name}, {_described(other)} in function "
                f"{there.name} of the reference{_choice(program)}"
            )


def _alike(one: Feature, other: Feature) -> bool:
    return one.dtype == other.dtype and (fits(one.shape, other.shape) or fits(other.shape, one.shape))


def _described(feature: Feature | None) -> str:
    return f"{feature.dtype} {feature.shape}" if feature else "not there"


def _choice(program: Program) -> str:
    return f"; choose with --function: {', '.join(program.functions)}" if len(program.functions) > 1 else ""


def outputs(
    program: Program,
    reference: Program | Mapping[str, Array],
    samples: Iterable[Inputs],
    function: str | None = None,
    mode: Mode = "declared",
) -> list[Compared]:
    """Each output's least PSNR over the samples. Outputs are paired by name, else by shape where no two have the same.
    BadInput: there is nothing to pair."""
    worst: dict[str, Compared] = {}
    for inputs in samples:
        got = program.evaluate(inputs, function, mode=mode)
        answers: Mapping[str, Array]
        if isinstance(reference, Program):
            answers = reference.evaluate(inputs, _same_function(reference, function), mode="float32")
        else:
            answers = reference
        want = _paired(got, answers)
        for name in (name for name in got if name in want):
            worst[name] = _worse(worst.get(name), compared(name, want[name], got[name]))
    return list(worst.values())


def _paired(got: Mapping[str, Array], want: Mapping[str, Array]) -> Mapping[str, Array]:
    """What is wanted, by our names."""
    if got.keys() & want.keys():
        return want
    if len(got) == len(want) == 1:
        return dict(zip(got, want.values(), strict=True))
    ours, theirs = ({array.shape: name for name, array in arrays.items()} for arrays in (got, want))
    if len(ours) == len(theirs) == len(got) == len(want) and ours.keys() == theirs.keys():
        return {name: want[theirs[shape]] for shape, name in ours.items()}
    raise BadInput(f"no output in common: {', '.join(got)} here, {', '.join(want)} in the reference")


def where(
    program: Program,
    reference: Program,
    samples: Iterable[Inputs],
    function: str | None = None,
    mode: Mode = "declared",
) -> list[Layer]:
    """Each layer's values that both programs have by name and shape, in order of computation. BadInput: none."""
    graph, other = program.function(function), reference.function(_same_function(reference, function))
    theirs = {out.name: out for op in other.ops if op.type not in CONSTEXPR for out in op.outputs}
    common = [
        out.name
        for op in graph.ops
        if op.type not in CONSTEXPR
        for out in op.outputs
        if out.name in theirs and out.shape == theirs[out.name].shape and _is_float(out) and _is_float(theirs[out.name])
    ]
    if not common:
        raise BadInput(
            "no value has the same name and shape in both packages, so there are no layers to pair: compare with a "
            "package of the same origin, or with itself"
        )
    worst: dict[str, Compared] = {}
    for inputs in samples:
        got = program.evaluate(inputs, graph.name, mode=mode, keep=common)
        want = reference.evaluate(inputs, other.name, mode="float32", keep=common)
        for name in common:
            worst[name] = _worse(worst.get(name), compared(name, want[name], got[name]))
    layers: dict[str, list[Compared]] = {}
    for name in common:
        layers.setdefault(layer_of(name), []).append(worst[name])
    return [Layer(name, tuple(values)) for name, values in layers.items()]


def _is_float(feature: Feature) -> bool:
    return feature.dtype.startswith("float")


def _same_function(program: Program, name: str | None) -> str | None:
    """The function of that name; a package with one function only has no other to offer."""
    return None if len(program.functions) == 1 else name


def layer_of(name: str) -> str:
    """`blocks_3_attend_q` -> `blocks_3`; `embed_norm`, without a number, is a layer of its own."""
    match = re.match(r".*?_\d+(?=_)", name)
    return match[0] if match else name


def compared(name: str, want: Array, got: Array) -> Compared:
    """Values that are equal everywhere, infinities and zeros too, are infinitely alike."""
    if want.shape == got.shape and np.array_equal(want, got):
        return Compared(name, float("inf"))
    try:
        return Compared(name, psnr(want.astype(np.float64), got.astype(np.float64)))
    except ValueError as err:
        return Compared(name, None, str(err))


def _worse(one: Compared | None, other: Compared) -> Compared:
    return other if one is None else _least([one, other])


def _least(values: Sequence[Compared]) -> Compared:
    return min(values, key=lambda each: float("-inf") if each.psnr is None else each.psnr)
