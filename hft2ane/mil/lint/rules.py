"""The rules: what keeps an operation off the Neural Engine, or makes it wrong or slow there. One function a rule.

Apple documents the engine in no one place, so each rule names who found the fact. Where sources contradict each other,
`source` says so, and `records.LintSettings` decides.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hft2ane.mil import target
from hft2ane.mil.format import BY_NAME
from hft2ane.mil.lint.graph import FLOATS, HEAVY, MOVES, PRODUCTS, Graph, axis, key, shape
from hft2ane.mil.load import ANY, Constant, Feature, Op
from hft2ane.records.lint import CONSTANT_MOST, WEIGHTS_MOST, Device, LintSettings, Severity

FP16_MAX = 65504.0
FP16_TRIED = 2.0**-23  # 1e-7 in fp16, the epsilon that Apple runs on the engine
FP16_LEAST = 2.0**-24  # the least that is not zero
CHANNELS_MOST, AXIS_MOST, RANK_MOST = 65536, 16384, 5
ROW = 64  # bytes to which the last axis is padded
WASTE = 1.01  # padded to unpadded size that is not worth a word
BIG = 2**20  # bytes of a tensor above which padding and copies are worth a word
SCORES_MOST = 2**20
OPS_MOST = 5000
SMALL = 50 * 10**6  # bytes of weights


@dataclass(frozen=True)
class Hit:
    """`op` None: it is about the whole function."""

    op: Op | None
    message: str


Check = Callable[[Graph, LintSettings], Iterator[Hit]]


@dataclass(frozen=True)
class Rule:
    """`places`: where an operation that it hits will run, None when that does not follow."""

    id: str
    severity: Severity
    about: str
    source: str
    fix: str
    places: Device | None
    check: Check


RULES: dict[str, Rule] = {}


def rule(
    id: str, severity: Severity, *, source: str, fix: str, places: Device | None = None
) -> Callable[[Check], Check]:
    """Registers a check as a row of RULES; its docstring is what the rule says."""

    def register(check: Check) -> Check:
        RULES[id] = Rule(id, severity, " ".join((check.__doc__ or "").split()), source, fix, places, check)
        return check

    return register


def size(feature: Feature) -> int:
    """Bytes, unpadded; a size that is not known counts as 1."""
    return abs(math.prod(feature.shape)) * BY_NAME[feature.dtype].bits // 8


def shown(shape: tuple[int, ...]) -> str:
    return "×".join("?" if size == ANY else str(size) for size in shape) or "scalar"


# ---- what it can be loaded on


@rule(
    "target",
    "error",
    source="coremltools 9.0: the targets in its registry of operations, and their documentation",
    fix="Convert with the deployment target that the message names, or without what needs it.",
)
def deployment_target(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Nothing is newer than the specification version and the opset that the package claims."""
    for op, what, version, claimed in target.needs(graph.package, graph.function):
        yield Hit(op, f"{what} needs {target.system(version)}, the package claims {target.system(claimed)}")


# ---- shapes


def beyond(feature: Feature) -> bool:
    """Axes are counted from the last: width, height, channels, then batch (and depth before channels at rank 5)."""
    width_height, channels, outer = feature.shape[-2:], feature.shape[-3:-2], feature.shape[:-3]
    batch, depth = outer[:1], outer[1:]
    return any(n > AXIS_MOST for n in (*width_height, *depth)) or any(n > CHANNELS_MOST for n in (*channels, *batch))


def beyond_limits(graph: Graph) -> Iterator[tuple[Op, Feature]]:
    for op in graph.ops:
        over = next((f for f in (*op.outputs, *graph.read(op)) if beyond(f)), None)
        if over is not None and not op.type.startswith("gather"):
            yield op, over


def only_copies_at_an_end(graph: Graph, op: Op) -> bool:
    return op.type in MOVES and (graph.at_entry(op) or key(op) not in graph.before_heavy)


LIMITS = (
    "text of the ANE compiler's error (FluidInference/mobius mel_encoder_ane_behavior); more-ane-transformers NOTES"
)


@rule(
    "axis-limit",
    "error",
    places="cpu",
    source=LIMITS,
    fix="Put the long axis on channels (a 1×1 convolution to the vocabulary), or split it.",
)
def axis_limit(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Channels (third axis from the last) and batch up to 65 536, every other axis up to 16 384."""
    for op, over in beyond_limits(graph):
        if not only_copies_at_an_end(graph, op):
            yield Hit(op, f"{op.type} with {shown(over.shape)}: beyond the engine's axes")


@rule(
    "axis-limit-copy",
    "warning",
    places="cpu",
    source=LIMITS,
    fix="Give the output in the layout that it is computed in, (B, C, 1, S), or accept one copy on the CPU.",
)
def axis_limit_copy(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """As axis-limit, for an operation that only copies, before or after the network: the network stays where it is."""
    for op, over in beyond_limits(graph):
        if only_copies_at_an_end(graph, op):
            yield Hit(op, f"{op.type} with {shown(over.shape)}: beyond the engine's axes, copied on the CPU")


@rule(
    "rank",
    "error",
    places="cpu",
    source="apple/coreai-models neural_engine_rules",
    fix="Reshape to rank 4 with the channels on axis 1.",
)
def rank(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No tensor of more than five axes."""
    for op in graph.ops:
        over = next((f for f in (*op.outputs, *graph.read(op)) if len(f.shape) > RANK_MOST), None)
        if over is not None:
            yield Hit(op, f"{op.type} at rank {len(over.shape)}: {shown(over.shape)}")


@rule(
    "rank-5",
    "warning",
    source="eeANE modernbert, repeat_kv: ANECCompile fails; executorch rewrites attention to avoid it",
    fix="Fold two axes into one before the product.",
)
def rank_5(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No tensor of five axes with a batch of more than one, nor in attention."""
    for op in graph.ops:
        at = next((f for f in (*op.outputs, *graph.read(op)) if len(f.shape) == RANK_MOST), None)
        near = {op.type, *(taker.type for taker in graph.takers(op))}
        if at is not None and (at.shape[0] > 1 or near & {"softmax", "matmul", "einsum"}):
            yield Hit(op, f"{op.type} at rank 5: {shown(at.shape)}")


@rule(
    "dynamic-shape",
    "error",
    places="cpu",
    source="executorch docs: RangeDim means CPU or GPU; more-ane-transformers NOTES.md: dynamic goes to the CPU",
    fix="Fix the shapes: one package a length, or one function a length in a multifunction package.",
)
def dynamic_shape(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No size that only the inputs of a call decide, unless those that it may have are listed."""
    if settings.enumerated and enumerated(graph):
        return
    for op in graph.ops:
        open_ended = next((f for f in (*op.outputs, *graph.read(op)) if ANY in f.shape), None)
        if open_ended is not None:
            yield Hit(op, f"{op.type} on a size known only at run time: {shown(open_ended.shape)}")


def enumerated(graph: Graph) -> bool:
    """Its inputs list the sizes that they may have, instead of a range."""
    ways = [way for several in graph.function.flexible.values() for way in several]
    return bool(ways) and all(len(sizes) == 1 for way in ways for sizes in way)


@rule(
    "enumerated-shape",
    "warning",
    source="contradictory: coremltools' documentation has the engine take up to 128 of them; coremltools#1909: before "
    "iOS 17 / macOS 14 layer norms and attention leave it (setting enumerated)",
    fix="One function a length in a multifunction package, which shares the weights just as well.",
)
def enumerated_shape(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Sizes are fixed, not listed."""
    if settings.enumerated and enumerated(graph):
        for name, ways in graph.function.flexible.items():
            yield Hit(None, f"input {name} has {len(ways)} shapes: {', '.join(listed(way) for way in ways)}")


def listed(way: tuple[range, ...]) -> str:
    return shown(tuple(sizes.start for sizes in way))


PADDING = "apple/coreai-models neural_engine_rules: rows are padded to 64 bytes"


def padded(graph: Graph, op: Op) -> Iterator[tuple[Feature, int]]:
    """Its big results whose rows are much shorter than when padded, with their size when padded."""
    for feature in op.outputs:
        width = feature.shape[-1] if feature.shape else 1
        row = width * BY_NAME[feature.dtype].bits // 8
        rows = abs(math.prod(feature.shape[:-1]))
        full = rows * -(-row // ROW) * ROW
        if feature.dtype in FLOATS and full >= BIG and full > WASTE * row * rows:
            yield feature, full


@rule(
    "last-axis-single",
    "error",
    source=PADDING + "; 32 times the memory in fp16",
    fix="Transpose or reshape so that the long axis is last.",
)
def last_axis_single(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """The last axis of a big tensor (1 MiB when padded) is longer than one."""
    for op in graph.ops:
        for feature, full in padded(graph, op):
            if feature.shape[-1:] == (1,):
                yield Hit(op, f"{shown(feature.shape)} takes {full / size(feature):.0f} times its size")


@rule(
    "last-axis-unaligned",
    "warning",
    source=PADDING + "; eeANE pads lengths; coremltools#2631 (a state of width 270 fails, 256 works)",
    fix="Export lengths that are multiples of 32.",
)
def last_axis_unaligned(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """The last axis of a big tensor (1 MiB) is a multiple of 64 bytes, 32 numbers in fp16."""
    for op in graph.ops:
        for feature, full in padded(graph, op):
            if feature.shape[-1:] != (1,):
                yield Hit(op, f"last axis of {feature.shape[-1]}: padded to {full / size(feature):.2f} times its size")


def attention(graph: Graph) -> Iterator[tuple[Op, int, int]]:
    """Softmaxes whose result a product takes: the operation, keys, and queries of one head."""
    for op in graph.ops:
        if op.type == "softmax" and shape(op) and any(leads_to_product(graph, taker) for taker in graph.takers(op)):
            sizes = shape(op)
            at = over(graph, op) % len(sizes)
            queries = axis(sizes, -2) if at == len(sizes) - 1 else max(sizes[-2:])
            yield op, sizes[at], queries
        elif op.type == "scaled_dot_product_attention":
            query, keys = graph.bound(op, "query"), graph.bound(op, "key")
            if query is not None and keys is not None:
                yield op, axis(keys.shape, -2), axis(query.shape, -2)


def over(graph: Graph, softmax: Op) -> int:
    """The axis that a softmax runs over."""
    return int(graph.number(softmax, "axis") or 0) if "axis" in softmax.inputs else -1


def leads_to_product(graph: Graph, op: Op) -> bool:
    return op.type in PRODUCTS or (op.type in MOVES and any(leads_to_product(graph, t) for t in graph.takers(op)))


@rule(
    "scores-size",
    "error",
    source="eeANE: wrong numbers, on the engine only",
    fix="Attend in chunks of queries.",
)
def scores_size(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """One head's scores are fewer than 2^20 numbers."""
    for op, keys, queries in attention(graph):
        if keys * queries >= SCORES_MOST:
            yield Hit(op, f"one head's scores are {queries}×{keys}, the engine errs from 2^20 numbers on")


@rule(
    "query-chunk",
    "info",
    source="contradictory: argmaxtools chunks above 256 queries, ml-stable-diffusion 512, Apple 2026 576 "
    "(setting query_chunk)",
    fix="Attend in chunks of queries where it is measured to be faster.",
)
def query_chunk(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Attention takes at most `query_chunk` queries at once."""
    for op, keys, queries in attention(graph):
        if settings.query_chunk < queries and keys * queries < SCORES_MOST:
            yield Hit(op, f"{queries} queries at once, more than {settings.query_chunk}")


@rule(
    "softmax-axis",
    "warning",
    source="apple/coreai-models neural_engine_rules",
    fix="Lay scores out as (B, keys, 1, queries) and take the softmax over axis 1.",
)
def softmax_axis(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """A big softmax runs over channels, not over the last axis."""
    for op in graph.ops:
        big = op.type == "softmax" and size(op.outputs[0]) >= BIG
        if big and over(graph, op) % len(shape(op)) == len(shape(op)) - 1:
            yield Hit(op, f"softmax over the last axis of {shown(shape(op))}")


@rule(
    "runtime-slice",
    "error",
    places="cpu",
    source="more-ane-transformers NOTES 2023-10-25; coreai-torch#6",
    fix="Make bounds, shapes and repetitions constants.",
)
def runtime_slice(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Bounds, shapes and repetitions are constants, not computed while it runs."""
    for op in graph.ops:
        for parameter in ("begin", "end", "size", "shape", "reps", "pad"):
            if parameter in op.inputs and not graph.fixed(op, parameter):
                yield Hit(op, f"{op.type}: {parameter} is computed while it runs")


# ---- types


@rule(
    "float32",
    "error",
    places="cpu",
    source="apple/coreai-models neural_engine_rules: fp16, int8 and int16 only",
    fix="Convert with fp16 precision.",
)
def float32(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Nothing is computed in fp32; casts at the entry and the exit are float32-io's."""
    for op in graph.ops:
        wide = any(feature.dtype == "float32" for feature in (*op.outputs, *graph.read(op)))
        if wide and (op.type not in MOVES or graph.inside(op)):
            yield Hit(op, f"{op.type} in float32")


@rule(
    "float32-io",
    "warning",
    source="more-ane-transformers; argmaxtools; fp16 inputs and outputs exist from iOS 16 / macOS 13 on",
    fix="Declare inputs and outputs as fp16, with a deployment target of iOS 16 or later.",
)
def float32_io(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Inputs and outputs are fp16 (or int32), so that nothing is cast on the CPU."""
    for kind, features in (("input", graph.function.inputs), ("output", graph.function.outputs)):
        for feature in features:
            if feature.dtype == "float32":
                yield Hit(None, f"{kind} {feature.name} is float32")


@rule(
    "integers",
    "error",
    places="cpu",
    source="apple/coreai-models neural_engine_rules: fp16, int8 and int16 only; coremltools#1498",
    fix="Do index arithmetic before the network, or make its results constants.",
)
def integers(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No integers between the network's products; at its entry they are expected, on the CPU."""
    for op in graph.ops:
        wide = {f.dtype for f in op.outputs} & {"int32", "uint32"}
        if wide and graph.inside(op) and not (op.type.startswith("gather") or op.type in ON_CPU):
            yield Hit(op, f"{op.type} gives {min(wide)} inside the network")


# ---- operations

CONTROL = frozenset({"cond", "custom_layer", "gru", "lstm", "rnn", "while_loop"})
ON_CPU = frozenset(
    {
        "argsort", "cumsum", "list_gather", "list_read", "list_scatter", "list_write", "make_list",
        "non_maximum_suppression", "non_zero", "one_hot", "random_bernoulli", "random_categorical", "random_normal",
        "random_uniform", "range_1d", "scatter", "scatter_along_axis", "scatter_nd", "shape", "topk",
    }
)  # fmt: skip
GATHERS = ("gather", "gather_along_axis", "gather_nd")


@rule(
    "gather-entry",
    "info",
    places="cpu",
    source="more-ane-transformers; Apple 2022 (4 of 606 operations)",
    fix="Nothing to do: looking up token embeddings is expected there.",
)
def gather_entry(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Look-ups at the network's entry run on the CPU."""
    for op in graph.ops:
        if op.type in GATHERS and graph.at_entry(op):
            yield Hit(op, f"{op.type} at the entry, on the CPU")


@rule(
    "gather-inside",
    "error",
    places="cpu",
    source="more-ane-transformers; coreai-models; roboflow/rf-detr#1495",
    fix="Slice with constant bounds, or move the look-up to the entry.",
)
def gather_inside(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No look-up in what the network has computed."""
    for op in graph.ops:
        if op.type in GATHERS and not graph.at_entry(op):
            yield Hit(op, f"{op.type} in computed values")


@rule(
    "control",
    "error",
    places="cpu",
    source="coremltools#1780; hollance/neural-engine",
    fix="Unroll it, or replace the layer.",
)
def control(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No recurrent layers, no control flow, no custom layers."""
    for op in graph.ops:
        if op.type in CONTROL:
            yield Hit(op, f"{op.type} does not run on the engine")


@rule(
    "cpu-op-inside",
    "error",
    places="cpu",
    source="roboflow/rf-detr#1495; hollance/neural-engine; the list is partly inference from its kind",
    fix="Compute it before or after the network, or make its result a constant.",
)
def cpu_op_inside(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No topk, sort, scatter, cumulative sum, random numbers or shape arithmetic between the network's products."""
    for op in graph.ops:
        if op.type in ON_CPU and graph.inside(op):
            yield Hit(op, f"{op.type} inside the network")


@rule(
    "cpu-op-at-end",
    "warning",
    places="cpu",
    source="as cpu-op-inside",
    fix="Do it in the app, or make its result a constant (positions, for example).",
)
def cpu_op_at_end(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """As cpu-op-inside, before or after the network: one hand-over to the CPU."""
    for op in graph.ops:
        if op.type in ON_CPU and not graph.inside(op):
            yield Hit(op, f"{op.type} at the {'entry' if graph.at_entry(op) else 'exit'}, on the CPU")


@rule("conv-3d", "error", places="cpu", source="Anemll#40", fix="Use 2-D convolutions.")
def conv_3d(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No convolution over three spatial axes."""
    for op in graph.ops:
        if op.type in ("conv", "conv_transpose") and len(shape(op)) == 5:
            yield Hit(op, f"{op.type} over three axes")


@rule(
    "conv-strides",
    "warning",
    source="apple/coreai-models neural_engine_rules",
    fix="Factor dilations and strides into twos and threes, the same along both axes.",
)
def conv_strides(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Convolutions have no dilation, and equal strides that are products of 2 and 3."""
    for op in graph.ops:
        if op.type != "conv":
            continue
        dilations, strides = graph.listed(op, "dilations"), graph.listed(op, "strides")
        if any(n > 1 for n in dilations):
            yield Hit(op, f"dilations {dilations}")
        if len(set(strides)) > 1 or not all(smooth(n) for n in strides):
            yield Hit(op, f"strides {strides}")


def smooth(n: int) -> bool:
    """A product of twos and threes."""
    for prime in (2, 3):
        while n % prime == 0:
            n //= prime
    return n == 1


@rule(
    "pooling",
    "warning",
    source="hollance/neural-engine, of older systems",
    fix="Several small poolings, or a strided convolution.",
)
def pooling(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Pooling has kernels up to 13 and strides up to 2."""
    for op in graph.ops:
        kernels, strides = graph.listed(op, "kernel_sizes"), graph.listed(op, "strides")
        if op.type in ("avg_pool", "max_pool", "l2_pool") and (
            max(kernels, default=1) > 13 or max(strides, default=1) > 2
        ):
            yield Hit(op, f"{op.type} with kernel {kernels}, strides {strides}")


@rule(
    "upsampling",
    "warning",
    source="hollance/neural-engine, of older systems",
    fix="Check on a device; resize by 2 several times, or use a convolution and a reshape.",
)
def upsampling(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No transposed convolution, no scaling up by more than 2, no depthwise convolution over one axis."""
    for op in graph.ops:
        scales = [graph.number(op, f"scale_factor_{side}") or 1 for side in ("height", "width")]
        if op.type == "conv_transpose" or (op.type.startswith("upsample") and max(scales) > 2):
            yield Hit(op, f"{op.type}" + (f" by {max(scales):g}" if max(scales) > 1 else ""))
        if op.type == "conv" and len(op.outputs[0].shape) == 3 and (graph.number(op, "groups") or 1) > 1:
            yield Hit(op, "depthwise convolution over one axis")


@rule(
    "log-softmax",
    "error",
    source="coremltools#2728: −inf on the engine",
    fix="Give the scores before the softmax; the app takes the logarithm.",
)
def log_softmax(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No logarithm of a softmax: its zeros in fp16 become −inf."""
    for op in graph.ops:
        made = graph.source(op) if op.type == "log" else None
        if made is not None and made.type == "softmax":
            yield Hit(op, "log of a softmax")


@rule(
    "softplus",
    "error",
    source="coremltools#2687: its result falls to 0 from x ≈ 10.4 on",
    fix="max(x, 0) + log(1 + exp(−|x|)), or relu where x is large.",
)
def softplus(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No softplus."""
    for op in graph.ops:
        if op.type.startswith("softplus"):
            yield Hit(op, f"{op.type} is 0 for large x")


@rule(
    "linear",
    "warning",
    source="contradictory: Apple 2022 and 2026 want 1×1 convolutions; eeANE and GigaAM keep linear with 97 to 99.9 % "
    "on the engine (setting convolutions)",
    fix="A 1×1 convolution on (B, C, 1, S).",
)
def linear(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Products with constant weights are 1×1 convolutions."""
    for op in graph.ops:
        constant = op.type == "matmul" and (graph.fixed(op, "x") or graph.fixed(op, "y"))
        if settings.convolutions and (op.type == "linear" or constant):
            yield Hit(op, f"{op.type} with constant weights")


@rule(
    "native-attention",
    "warning",
    source="maderix/ANE: the engine ignores the mask; executorch#15833: wrong at rank 5 on iOS 26; "
    "coreai-models: no fused path",
    fix="Write attention as products and a softmax.",
)
def native_attention(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No scaled_dot_product_attention."""
    for op in graph.ops:
        if op.type == "scaled_dot_product_attention":
            masked = "attn_mask" in op.inputs
            yield Hit(op, "attention as one op" + (", with a mask that the engine may ignore" if masked else ""))


def squared_mean(graph: Graph, op: Op) -> Op | None:
    """The mean of squares behind this root, past an added epsilon."""
    made = graph.source(op, through=MOVES | {"add"})
    square = graph.source(made) if made is not None and made.type == "reduce_mean" else None
    return made if square is not None and squares(graph, square) else None


def squares(graph: Graph, op: Op) -> bool:
    if op.type == "mul":
        return op.inputs["x"] == op.inputs["y"]
    return op.type == "square" or (op.type == "pow" and graph.number(op, "y") == 2)


@rule(
    "decomposed-norm",
    "warning",
    source="contradictory: coremltools 9.0 fuses (z · rsqrt + b) · w into one op; Apple 2022 writes the parts by hand "
    "(setting fused_norms)",
    fix="One layer_norm over axis 1.",
)
def decomposed_norm(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """A norm is one op, not a chain of means, squares and roots."""
    for op in graph.ops:
        root = op.type in ("rsqrt", "sqrt") or (op.type == "pow" and abs(graph.number(op, "y") or 0) == 0.5)
        if settings.fused_norms and root and squared_mean(graph, op) is not None:
            yield Hit(op, f"a norm in parts, around {op.type}")


@rule(
    "activation",
    "info",
    source="apple/coreai-models common_issues: they are lowered through fp32 by Core AI; of Core ML nothing is known",
    fix="x · sigmoid(x), 2 · sigmoid(2x) − 1, or the sigmoid form of gelu, where measured to help.",
)
def activation(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """silu, tanh and gelu that are not written with sigmoid."""
    for op in graph.ops:
        mode = graph.bound(op, "mode")
        exact = not (isinstance(mode, Constant) and str(mode.array) == "SIGMOID_APPROXIMATION")
        if op.type in ("silu", "tanh") or (op.type == "gelu" and exact):
            yield Hit(op, f"{op.type} as one op")


@rule(
    "tile",
    "warning",
    source="CoreML-LLM and executorch: slow, and at rank 5 it fails",
    fix="Use the unrepeated keys and values with each group of heads.",
)
def tile(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No repeating of computed values (keys and values of grouped heads)."""
    for op in graph.ops:
        if op.type == "tile" and not graph.at_entry(op):
            yield Hit(op, f"tile to {shown(op.outputs[0].shape)}")


@rule(
    "concat-width",
    "warning",
    source="apple/coreai-models neural_engine_rules",
    fix="Concatenate along the channels.",
)
def concat_width(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Big tensors (1 MiB) are not concatenated along the last axis."""
    for op in graph.ops:
        last = op.type == "concat" and graph.number(op, "axis") in (-1, len(op.outputs[0].shape) - 1)
        if last and size(op.outputs[0]) >= BIG:
            yield Hit(op, f"concat along the last axis of {shown(op.outputs[0].shape)}")


@rule("matmul-transposes", "warning", source="apple/coreai-models neural_engine_rules", fix="Swap the operands.")
def matmul_transposes(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No product that transposes both its operands."""
    for op in graph.ops:
        if op.type == "matmul" and graph.number(op, "transpose_x") and graph.number(op, "transpose_y"):
            yield Hit(op, "matmul with both operands transposed")


@rule(
    "copies",
    "info",
    source="apple/coreai-models neural_engine_rules: each one that touches the last axis rewrites the tensor",
    fix="Fewer changes of layout; (B, C, 1, S) throughout needs one transpose an attention.",
)
def copies(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Transposes and reshapes, counted, in all and in each layer."""
    counts, softmaxes = Counter(op.type for op in graph.ops), sum(1 for _ in attention(graph))
    if counts.keys() & set(COPIES):
        text = counted(counts) + (
            f" beside {softmaxes} attention softmax{'es'[: 2 * (softmaxes > 1)]}" if softmaxes else ""
        )
        most = max(graph.blocks().values(), key=Counter.total, default=None)
        yield Hit(
            None, text + (f"; {most.total()} operations a layer, with {counted(most) or 'neither'}" if most else "")
        )


COPIES = ("reshape", "transpose")


def counted(counts: Counter[str]) -> str:
    """`3 reshapes and 1 transpose`."""
    return " and ".join(f"{counts[name]} {name}{'s'[: counts[name] > 1]}" for name in COPIES if counts[name])


# ---- constants


@rule(
    "constant-not-finite",
    "error",
    source="apple/coreai-models neural_engine_rules; hft2ane",
    fix="Replace it with a finite number; masks with −1e4.",
)
def constant_not_finite(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No infinity and no NaN in a constant."""
    for op in graph.ops:
        for parameter, constant in graph.constants(op):
            if constant.dtype in FLOATS and not finite(constant):
                yield Hit(op, f"{op.type}: {parameter} holds infinity or NaN")


def finite(constant: Constant) -> bool:
    """Of fp16 by its bits, which is many times faster: from 0x7C00 on, sign aside, they are not finite."""
    stored = constant.stored
    if constant.dtype != "float16" or not stored.size:
        return bool(np.isfinite(stored).all())
    return int(stored.view(np.int16).max()) < 0x7C00 and int(stored.view(np.uint16).max()) < 0xFC00


@rule(
    "constant-overflow",
    "error",
    source="fp16's range",
    fix="Scale it, and undo the scale where the result is small again.",
)
def constant_overflow(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No constant beyond ±65 504, which is infinite in fp16."""
    for op in graph.ops:
        for parameter, constant in graph.constants(op):
            if constant.dtype == "float32" and constant.stored.size and finite(constant):
                most = float(np.abs(constant.stored).max())
                if most > FP16_MAX:
                    yield Hit(op, f"{op.type}: {parameter} reaches {most:g}, infinite in fp16")


def scalars(graph: Graph) -> Iterator[tuple[Op, str, float]]:
    """Numbers that are calculated with, not weights: operations that give fp16, parameter, value."""
    for op in graph.ops:
        if any(feature.dtype == "float16" for feature in op.outputs):
            for parameter, constant in graph.constants(op):
                if constant.dtype in FLOATS and constant.stored.size == 1:
                    yield op, parameter, abs(float(constant.stored[0]))


@rule(
    "constant-lost",
    "error",
    source="ml-ane-transformers (eps of 1e-7 for that reason); hft2ane",
    fix="An epsilon of at least 1e-7.",
)
def constant_lost(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No number that is 0 in fp16 where it must not be: epsilons, and small factors in fp32."""
    for op, parameter, value in scalars(graph):
        if value < FP16_LEAST and (value > 0 or parameter == "epsilon"):
            yield Hit(op, f"{op.type}: {parameter} is {value:g}" + (", 0 in fp16" if value else ""))


@rule(
    "constant-subnormal",
    "warning",
    source="contradictory: Apple 2022 uses 1e-7, coremltools raises epsilons to 5.96e-8, both subnormal; whether the "
    "engine keeps subnormals is not documented",
    fix="At least 1e-7.",
)
def constant_subnormal(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No number below 1e-7: it is fp16's least, subnormal, and hardware may take it for 0."""
    for op, parameter, value in scalars(graph):
        if FP16_LEAST <= value < FP16_TRIED:
            yield Hit(op, f"{op.type}: {parameter} is {value:.3g}, the least number of fp16")


@dataclass(frozen=True)
class Mask:
    """What is added to one attention's scores, as `parts` that are added up: their least values."""

    op: Op
    parts: tuple[float, ...]


def masks(graph: Graph) -> Iterator[Mask]:
    """One for each softmax whose scores something is added to that no product has made."""
    for op in graph.ops:
        if op.type == "softmax":
            parts = [least for binding in beside_scores(graph, op) for least in leasts(graph, binding)]
            if parts:
                yield Mask(op, tuple(parts))


def beside_scores(graph: Graph, softmax: Op) -> Iterator[str | Constant]:
    """From the softmax back along what products have made: the other operands of add, sub and select."""
    op: Op | None = softmax
    while op is not None:
        operands = {"add": ("x", "y"), "select": ("a", "b"), "softmax": ("x",)}.get(op.type, ("x",))
        bindings = [op.inputs[each][0] for each in operands if each in op.inputs]
        scores = [graph.maker[each] for each in bindings if isinstance(each, str) and computed(graph, each)]
        if op.type in ("add", "select"):
            yield from (each for each in bindings if not (isinstance(each, str) and computed(graph, each)))
        follow = op.type in MOVES | {"add", "select", "softmax", "mul", "real_div", "clip", "maximum"}
        op = scores[0] if follow and len(scores) == 1 and scores[0].type not in HEAVY else None


def computed(graph: Graph, name: str) -> bool:
    """A product, or something after one, makes this value."""
    made = graph.maker.get(name)
    return made is not None and (made.type in HEAVY or not graph.at_entry(made))


def leasts(graph: Graph, binding: str | Constant) -> Iterator[float]:
    """The least value of each part of a sum of masks, where it can be told."""
    made = graph.maker.get(binding) if isinstance(binding, str) else None
    while made is not None and made.type in MOVES and "x" in made.inputs:
        binding = made.inputs["x"][0]
        made = graph.maker.get(binding) if isinstance(binding, str) else None
    if made is not None and made.type == "add":
        for side in ("x", "y"):
            yield from leasts(graph, made.inputs[side][0])
    elif (interval := graph.interval(binding)) is not None:
        yield interval[0]


@rule(
    "mask-overflow",
    "error",
    source="Apple 2026: the engine does not handle −inf in a softmax; eeANE: NaN for rows that are all padding",
    fix="Mask with −1e4.",
)
def mask_overflow(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No mask below −65 504, which is −inf in fp16, nor a select that puts it in."""
    for mask in masks(graph):
        if min(mask.parts) < -FP16_MAX:
            yield Hit(mask.op, f"masked with {min(mask.parts):.6g}, −inf in fp16")


@rule(
    "mask-sum",
    "warning",
    source="derived from fp16's range",
    fix="Combine masks with minimum instead of adding them.",
)
def mask_sum(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Masks that are added up (padding and causal) stay above −65 504."""
    for mask in masks(graph):
        if min(mask.parts) >= -FP16_MAX > sum(mask.parts):
            yield Hit(mask.op, f"masks add up to {sum(mask.parts):.6g}, −inf in fp16")


@rule(
    "mask-constant",
    "warning",
    source="contradictory: Apple −1e4 in 2022, −4e4 in 2026; beyond, little room is left for the scores "
    "(setting mask_least)",
    fix="Mask with −1e4.",
)
def mask_constant(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No mask below the setting `mask_least`."""
    for mask in masks(graph):
        if -FP16_MAX <= min(mask.parts) < settings.mask_least:
            yield Hit(mask.op, f"masked with {min(mask.parts):.6g}, below {settings.mask_least:g}")


@rule(
    "square-overflow",
    "warning",
    source="coremltools' rms_norm: |x| over 256 overflows when squared; ml-ane-transformers clip_mag",
    fix="Divide by the largest magnitude (or a power of two) first.",
)
def square_overflow(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Values are scaled down before their squares are added up."""
    for op in graph.ops:
        made = graph.source(op) if op.type in ("reduce_mean", "reduce_sum") else None
        summed = op if op.type in ("reduce_l2_norm", "reduce_sum_square") else made
        if summed is not None and (summed is op or squares(graph, summed)) and not scaled(graph, summed):
            yield Hit(op, f"{op.type} of squares of values that nothing scales: over 255.9 they overflow")


def scaled(graph: Graph, op: Op) -> bool:
    """What it squares has been divided by something that comes from a maximum."""
    divided = graph.source(op)
    by = graph.source(divided, "y", MOVES | {"maximum", "add"}) if divided and divided.type == "real_div" else None
    return by is not None and by.type == "reduce_max"


# ---- sizes


@rule(
    "constant-size",
    "error",
    places="cpu",
    source="derived from more-ane-transformers' `Illegal offset = -2144766976`",
    fix="Split the tensor.",
)
def constant_size(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """No single constant of 2^31 bytes."""
    for op in graph.ops:
        for parameter, constant in graph.constants(op):
            if constant.stored.nbytes >= CONSTANT_MOST:
                yield Hit(op, f"{op.type}: {parameter} is {constant.stored.nbytes / 2**30:.2f} GiB")


def weight_bytes(graph: Graph) -> int:
    """As stored, each constant once, however many operations take it."""
    found = {id(constant): constant for op in graph.function.ops for _, constant in graph.constants(op)}
    return sum(constant.stored.nbytes for constant in found.values())


@rule(
    "weights-size",
    "error",
    places="cpu",
    source="eeANE, measured on macOS 27.0.1: above it everything runs on the CPU, with no word (setting system); "
    "coremltools' mlmodel-utilities on iPhones",
    fix="Split the model by layers, or store its weights in fewer bits.",
)
def weights_size(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """A function's weights stay under what the system compiles: 1 GiB on macOS 27 and iPhones, 2 GiB on macOS 26."""
    total, most = weight_bytes(graph), WEIGHTS_MOST[settings.system]
    if total > most:
        yield Hit(None, f"{total / 2**30:.2f} GiB of weights, {settings.system} takes {most / 2**30:.0f} GiB")


@rule(
    "small",
    "info",
    source="FluidAudio ANE_Profiler; Vx#436: small networks go to the CPU by preference",
    fix="Nothing to do, but measure.",
)
def small(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Networks of less than 50 MB may run on the CPU although the engine could."""
    if weight_bytes(graph) < SMALL:
        yield Hit(None, f"{weight_bytes(graph) / 1e6:.2g} MB of weights: the system may prefer the CPU")


@rule(
    "op-count",
    "warning",
    source="more-ane-transformers: compiling explodes from 5 000 to 10 000 on",
    fix="Split the model, or fuse what is written in parts.",
)
def op_count(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """At most 5 000 operations a function."""
    if len(graph.ops) > OPS_MOST:
        yield Hit(None, f"{len(graph.ops)} operations")


# ---- compressed weights and states


def lut(op: Op, graph: Graph) -> tuple[int, int] | None:
    """Bits an index, and rows or columns that share a table (0: one table for all). None: it is no palette."""
    table, indices = graph.bound(op, "lut"), graph.bound(op, "indices")
    if op.type != "constexpr_lut_to_dense" or not isinstance(table, Constant) or not isinstance(indices, Constant):
        return None
    if "shape" in op.inputs:  # the form up to iOS 17, one table for all
        return (math.prod(table.shape) - 1).bit_length(), 0
    groups = table.shape[:-2]
    parts = [n // g for n, g in zip(indices.shape, groups, strict=True) if g > 1]
    return (table.shape[-2] - 1).bit_length(), min(parts, default=0)


@rule(
    "palette-groups",
    "warning",
    source="coremltools' optimisation guide; apple/coreai-models: other groups are slow",
    fix="One table a tensor, or groups of 8, 16 or 32 channels.",
)
def palette_groups(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Palettes are for the whole tensor, or for groups of 8, 16 or 32 channels."""
    for op in graph.weights.values():
        found = lut(op, graph)
        if found and found[1] not in (0, 8, 16, 32):
            yield Hit(op, f"a palette for each {found[1]} channels")


@rule(
    "palette-place",
    "warning",
    source="apple/coreai-models; argmaxtools recipes",
    fix="Leave embeddings and norms in fp16.",
)
def palette_place(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Embedding tables and norms have no palette."""
    for name, op in graph.weights.items():
        takers = {taker.type for taker in graph.users.get(name, ())}
        if lut(op, graph) and takers & {"gather", "layer_norm", "batch_norm"}:
            yield Hit(op, f"a palette for {', '.join(sorted(takers))}")


@rule(
    "int4-blocks",
    "warning",
    source="coremltools' optimisation guide: for GPUs; executorch: the engine wants one scale a channel",
    fix="4 bits with one scale a channel, or a palette.",
)
def int4_blocks(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Weights of 4 bits have one scale a channel, not one a block."""
    for op in graph.weights.values():
        data, scale = graph.bound(op, "data"), graph.bound(op, "scale")
        if op.type == "constexpr_blockwise_shift_scale" and data is not None and scale is not None:
            blocks = [s for n, s in zip(data.shape, scale.shape, strict=True) if 1 < s < n]
            if BY_NAME[data.dtype].bits == 4 and (blocks or sum(s > 1 for s in scale.shape) > 1):
                yield Hit(op, f"{data.dtype} with {shown(scale.shape)} scales for {shown(data.shape)}")


@rule(
    "quantized-activations",
    "info",
    source="coremltools' optimisation guide: faster on A17 Pro, M4 and later only",
    fix="Measure on the devices that you support.",
)
def quantized_activations(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """Activations of 8 bits help on the newest chips only."""
    for op in graph.ops:
        if op.type == "quantize":
            yield Hit(op, "activations of 8 bits")


@rule(
    "state",
    "warning",
    source="Anemll#27; coremltools#2553, #2325, #2631",
    fix="Pass the cache in and out, or try it on every device.",
)
def state(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """States need iOS 18 / macOS 15, and often do not run on the engine."""
    for op in graph.ops:
        if op.type in ("read_state", "write_state", "coreml_update_state"):
            yield Hit(op, f"{op.type} on the engine is not sure")


@rule(
    "state-width",
    "warning",
    source="coremltools#2631: a state of width 270 fails on the engine, 256 works",
    fix="Make the last axis of the cache a multiple of 32, by another order of its axes or by padding.",
)
def state_width(graph: Graph, settings: LintSettings) -> Iterator[Hit]:
    """The last axis of a state is a multiple of 32."""
    for each in graph.function.states:
        if each.shape and each.shape[-1] % 32:
            yield Hit(None, f"state {each.name} is {shown(each.shape)}, its last axis no multiple of 32")


def table() -> str:
    """The rules as Markdown, for docs/lint.md."""
    rows = [
        f"| `{each.id}` | {each.severity} | {each.about} | {each.fix} | {each.source} | {each.places or ''} |"
        for each in RULES.values()
    ]
    return "\n".join(
        ["| rule | severity | it wants | what to do | source | runs on |", "|:--|:--|:--|:--|:--|:--|", *rows]
    )
