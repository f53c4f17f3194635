"""One function of a package as the rules look at it: who makes and uses a value, what a mask can be, what work is."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import numpy as np

from hft2ane.mil.load import Constant, Feature, Function, Op, Package

# Where a network spends its time. What lies before all of these is the entry, what lies after them the exit.
HEAVY = frozenset(
    {
        "batch_norm", "conv", "conv_transpose", "einsum", "gru", "instance_norm", "layer_norm", "linear", "lstm",
        "matmul", "rnn", "scaled_dot_product_attention", "softmax",
    }
)  # fmt: skip
PRODUCTS = frozenset({"conv", "einsum", "linear", "matmul", "scaled_dot_product_attention"})
# These move or retype values and compute nothing.
MOVES = frozenset({"cast", "concat", "expand_dims", "identity", "reshape", "slice_by_index", "slice_by_size", "split",
                   "squeeze", "stack", "tile", "transpose"})  # fmt: skip
FLOATS = ("float16", "float32")
COMPARISONS = frozenset({"equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_not",
                         "logical_or", "not_equal"})  # fmt: skip
FAMILY = "com.github.hft2ane.family"  # in the metadata of our packages, whose operations are named by module paths

Interval = tuple[float, float]


def compressed(op: Op) -> bool:
    """A weight that is stored in fewer bits: a constant to all that follows."""
    return op.type.startswith("constexpr_")


class Graph:
    """A function's operations without its compressed constants, which `weights` has by the name of their value."""

    def __init__(self, package: Package, function: Function) -> None:
        self.package, self.function = package, function
        self.ours = FAMILY in package.metadata
        self.weights = {op.outputs[0].name: op for op in function.ops if compressed(op)}
        self.ops = tuple(op for op in function.ops if not compressed(op))
        self.maker = {feature.name: op for op in self.ops for feature in op.outputs}
        made = (feature for op in function.ops for feature in op.outputs)
        self.features = {feature.name: feature for feature in (*function.inputs, *function.states, *made)}
        self.users: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in names(op):
                self.users.setdefault(name, []).append(op)

    def bound(self, op: Op, parameter: str) -> Feature | Constant | None:
        """What the (first) value of this parameter is; None: it is not given. A compressed constant is a Feature."""
        if parameter not in op.inputs:
            return None
        binding = op.inputs[parameter][0]
        if isinstance(binding, Constant):
            return binding
        return self.function.constants.get(binding) or self.features[binding]

    def constants(self, op: Op) -> Iterator[tuple[str, Constant]]:
        """Its constants with their parameters' names."""
        for parameter, bindings in op.inputs.items():
            for each in bindings:
                found = each if isinstance(each, Constant) else self.function.constants.get(each)
                if found is not None:
                    yield parameter, found

    def fixed(self, op: Op, parameter: str) -> bool:
        """The parameter is given and constant, compressed or not."""
        value = self.bound(op, parameter)
        return isinstance(value, Constant) or (value is not None and value.name in self.weights)

    def number(self, op: Op, parameter: str) -> float | None:
        """The value of a constant that is one number."""
        value = self.bound(op, parameter)
        one = isinstance(value, Constant) and value.dtype != "string" and math.prod(value.shape) == 1
        return float(value.array.reshape(())) if isinstance(value, Constant) and one else None

    def listed(self, op: Op, parameter: str) -> list[int]:
        """The values of a constant list; empty when it is not given."""
        value = self.bound(op, parameter)
        return value.array.reshape(-1).tolist() if isinstance(value, Constant) else []

    def read(self, op: Op) -> Iterator[Feature]:
        """The values that it takes and that something computes."""
        return (self.features[name] for name in names(op) if name in self.features and name not in self.weights)

    def makers(self, op: Op) -> Iterator[Op]:
        return (self.maker[name] for name in names(op) if name in self.maker)

    def takers(self, op: Op) -> Iterator[Op]:
        return (user for feature in op.outputs for user in self.users.get(feature.name, ()))

    def source(self, op: Op, parameter: str = "x", through: frozenset[str] = MOVES) -> Op | None:
        """The operation behind this operand, past those that only move it."""
        while True:
            value = self.bound(op, parameter)
            made = self.maker.get(value.name) if isinstance(value, Feature) else None
            if made is None or made.type not in through or "x" not in made.inputs:
                return made
            op, parameter = made, "x"

    @cached_property
    def after_heavy(self) -> frozenset[str]:
        """Operations (by `key`) with a heavy one somewhere before them."""
        return reached(self.ops, self.makers)

    @cached_property
    def before_heavy(self) -> frozenset[str]:
        return reached(tuple(reversed(self.ops)), self.takers)

    def at_entry(self, op: Op) -> bool:
        return key(op) not in self.after_heavy

    def inside(self, op: Op) -> bool:
        """Heavy operations before and after: running it elsewhere costs two hand-overs."""
        return key(op) in self.after_heavy and key(op) in self.before_heavy

    def layer(self, op: Op) -> str:
        """`blocks_3_attend_einsum_5` -> `blocks.3.attend` in our packages, the operation's name in others.

        A name without a layer's number is left as it is: its underscores may be the module's own."""
        if not self.ours:
            return op.name
        path = re.sub(rf"_{op.type}(_\d+)?$", "", op.name)
        numbered = r"_\d+_" if path == op.name else r"_\d+(_|$)"  # the last number may count uses of one module
        return path.replace("_", ".") if re.search(numbered, path) else path

    def blocks(self) -> dict[str, Counter[str]]:
        """Operations by type of each numbered layer, `blocks.3`, in our packages, whose names tell."""
        found: dict[str, Counter[str]] = {}
        for op in self.ops:
            if self.ours and (numbered := re.match(r"(.*?\.\d+)(\.|$)", self.layer(op))):
                found.setdefault(numbered[1], Counter())[op.type] += 1
        return found

    def interval(self, binding: str | Constant, depth: int = 64) -> Interval | None:
        """What a mask can be, from least to greatest, when attention masks are 0 or 1; None: it cannot be told."""
        constant = binding if isinstance(binding, Constant) else self.function.constants.get(binding)
        if constant is not None:
            return extent(constant)
        op = self.maker.get(str(binding))
        if op is None:
            return (0.0, 1.0) if any(f.name == binding for f in self.function.inputs) else None
        if op.type in COMPARISONS:
            return (0.0, 1.0)
        operands = OPERANDS.get(op.type, ("x",) if op.type in MOVES | {"gather", "logical_not"} else ())
        if not operands or depth == 0 or not all(operand in op.inputs for operand in operands):
            return None
        found = [self.interval(op.inputs[operand][0], depth - 1) for operand in operands]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        return ARITHMETIC[op.type](*known) if op.type in ARITHMETIC else known[0]


def key(op: Op) -> str:
    """Unique in a function, which an operation's name need not be. write_state alone gives no value."""
    return op.outputs[0].name if op.outputs else f"{op.type} {op.name}"


def shape(op: Op) -> tuple[int, ...]:
    """Of its first result."""
    return op.outputs[0].shape if op.outputs else ()


def names(op: Op) -> Iterator[str]:
    return (each for bindings in op.inputs.values() for each in bindings if isinstance(each, str))


def reached(ops: tuple[Op, ...], near: Callable[[Op], Iterator[Op]]) -> frozenset[str]:
    """Those of `ops`, which are in order, that a heavy one leads to by `near`."""
    found: set[str] = set()
    for op in ops:
        if any(each.type in HEAVY or key(each) in found for each in near(op)):
            found.add(key(op))
    return frozenset(found)


def extent(constant: Constant) -> Interval | None:
    """Least and greatest value; None when it is text, empty, or holds a NaN."""
    if constant.dtype == "string" or not constant.stored.size:
        return None
    least, greatest = float(np.min(constant.array)), float(np.max(constant.array))
    return None if math.isnan(least) else (least, greatest)


def products(x: Interval, y: Interval) -> Interval:
    every = [a * b if a and b else 0.0 for a in x for b in y]
    return min(every), max(every)


OPERANDS: Mapping[str, tuple[str, ...]] = {
    "add": ("x", "y"), "sub": ("x", "y"), "mul": ("x", "y"), "minimum": ("x", "y"), "maximum": ("x", "y"),
    "select": ("a", "b"),
}  # fmt: skip
ARITHMETIC: Mapping[str, Callable[..., Interval]] = {
    "add": lambda x, y: (x[0] + y[0], x[1] + y[1]),
    "sub": lambda x, y: (x[0] - y[1], x[1] - y[0]),
    "mul": products,
    "minimum": lambda x, y: (min(x[0], y[0]), min(x[1], y[1])),
    "maximum": lambda x, y: (max(x[0], y[0]), max(x[1], y[1])),
    "select": lambda a, b: (min(a[0], b[0]), max(a[1], b[1])),
}


def work(graph: Graph, op: Op) -> int:
    """Floating-point operations, estimated: two a multiply-add of a product, one an element of any other result.

    A size that is not known (ANY, which is −1) counts as 1."""
    return abs(arithmetic(graph, op))


def arithmetic(graph: Graph, op: Op) -> int:
    out = sum(math.prod(feature.shape) for feature in op.outputs)
    shapes = {each: value.shape for each in op.inputs if (value := graph.bound(op, each)) is not None}
    match op.type:
        case "conv" | "linear":
            return 2 * out * math.prod(shapes["weight"][1:])
        case "conv_transpose":
            return 2 * math.prod(shapes["x"]) * math.prod(shapes["weight"][1:])
        case "matmul":
            return 2 * out * axis(shapes["x"], -2 if graph.number(op, "transpose_x") else -1)
        case "einsum":  # both equations that MIL has contract the first operand's last axis
            return 2 * out * axis(shapes["values"], -1)
        case "scaled_dot_product_attention":
            return 4 * math.prod(shapes["query"]) * axis(shapes["key"], -2)
        case "lstm" | "gru" | "rnn":
            steps = axis(shapes.get("x", ()), -3)
            return 2 * steps * sum(math.prod(shapes[each]) for each in shapes if each.startswith("weight"))
    return out


def axis(sizes: tuple[int, ...], at: int) -> int:
    """Counted from the last; 1 where there is no such axis."""
    return sizes[at] if len(sizes) >= -at else 1
