"""How large the numbers get: every value that the graph computes, on real texts, against what fp16 holds.

Our module runs in fp32 under a torch function mode, which sees each function that `lower` writes as an operation. Of a
norm the squares are seen too. Sums inside an operation are not: the Neural Engine adds up wider than fp16.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from hft2ane import protocol
from hft2ane.ane import ChannelNorm
from hft2ane.ane.attention import MASKED
from hft2ane.errors import GateFailed
from hft2ane.records.package import Range
from hft2ane.reference import Original, Tokenizer

FP16_MAX = 65504.0
FP16_NORMAL = 2.0**-14
# The protocol's sentences are cut here: how large numbers get hardly depends on the length.
TOKENS = 16

# Functions that compute nothing.
MOVES = ("reshape", "transpose", "split", "getitem", "unsqueeze", "squeeze", "flatten", "cat", "to", "get")
# What people call the results of the others; without a row, by the function's own name.
KINDS: Mapping[str, str] = {
    "conv2d": "linear",
    "embedding": "embedding",
    "add": "sum",
    "mul": "product",
    "div": "quotient",
    **dict.fromkeys(("gelu", "relu", "silu", "tanh"), "activation"),
    "channel_norm": "norm",
    "linalg_vector_norm": "length",
}
SCORES = "bkhc,bchq->bkhq"

Batch = tuple[Tensor, ...]  # in the order of the module's inputs


@dataclass
class Seen:
    """What is known of one kind of value of one layer. `count`: of those that are not zero."""

    largest: float = 0.0
    subnormal: int = 0
    count: int = 0

    def add(self, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        self.largest = float(torch.stack([-low, high, torch.tensor(self.largest)]).max())  # NaN stays
        not_zero = int(torch.count_nonzero(values))
        self.subnormal += not_zero - int(torch.count_nonzero(values.abs() >= FP16_NORMAL))
        self.count += not_zero


@dataclass
class Norm:
    """What goes into one norm. `least_variance`: over all tokens; `branch`: the linear whose output is added."""

    largest: float = 0.0
    least_variance: float = math.inf
    has_branch: bool = False
    branch: str | None = None


@dataclass(frozen=True)
class Measured:
    """`outputs`: the module's, batch by batch."""

    ranges: tuple[Range, ...]
    norms: Mapping[str, Norm]
    outputs: Sequence[tuple[Tensor, ...]] = field(repr=False)

    def find(self, path: str, kind: str) -> Range:
        return next(r for r in self.ranges if (r.path, r.kind) == (path, kind))


def headroom(largest: float) -> float:
    """In bits; fp16's least number has 40."""
    return math.log2(FP16_MAX / max(largest, 2.0**-24))


def calibration(folder: Path, original: Original, inputs: Sequence[str], lengths: Sequence[int]) -> list[Batch]:
    """The protocol's rows, and one as long as the job's longest text, for an original loaded from `folder`; `inputs`:
    the names of those that its module takes."""
    vocabulary, longest = original.vocabulary, max(lengths)
    tokenizer = Tokenizer(folder, vocabulary)
    kinds = list(protocol.rows(tokenizer, original, min(TOKENS, longest), inputs))
    generator = torch.Generator().manual_seed(protocol.SEED)
    whole = protocol.random_ids("longest", torch.tensor([longest]), vocabulary, tokenizer.pad, generator, longest)
    groups = kinds, [protocol.complete(whole, original)]
    batches = [tuple(joined([kind.tensors[name] for kind in group]) for name in inputs) for group in groups]
    if original.task == "multiple-choice":  # each row a question with one candidate
        return [tuple(tensor[:, None] for tensor in batch) for batch in batches]
    return batches


def joined(rows: Sequence[Tensor]) -> Tensor:
    """Ids and masks as the package takes them."""
    all_rows = torch.cat(list(rows))
    return all_rows if all_rows.is_floating_point() else all_rows.int()


@torch.no_grad()
def measure(module: Any, batches: Sequence[Batch]) -> Measured:
    """GateFailed: a value is not finite even in fp32."""
    recorder = Recorder(module)
    with recorder.following():
        outputs = [recorder.run(module, batch) for batch in batches]
    return Measured(tuple(recorder.ranges()), recorder.norms, outputs)


class Recorder(TorchFunctionMode):
    """While it is on, looks at the result of every torch function, in the name of the module that called it."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.modules = dict(root.named_modules())
        self.stack: list[str] = []
        self.seen: dict[tuple[str, str], Seen] = {}
        self.norms: dict[str, Norm] = {}
        self.live = WeakTensorKeyDictionary()  # tensors made of the other inputs
        self.masks = WeakTensorKeyDictionary()  # tensors made of the attention mask and constants only
        self.makers = WeakTensorKeyDictionary()  # output of a linear -> its path

    @property
    def path(self) -> str:
        return self.stack[-1] if self.stack else ""

    def run(self, module: Any, batch: Batch) -> tuple[Tensor, ...]:
        for name, tensor in zip(module.inputs, batch, strict=True):
            (self.masks if name.endswith("attention_mask") else self.live)[tensor] = True
        with self:
            outputs: tuple[Tensor, ...] = module(*batch)
        return outputs

    @contextmanager
    def following(self) -> Iterator[None]:
        """While this holds, `path` is the innermost module of the root that is being called."""
        hooks = []
        for path, module in self.modules.items():
            hooks.append(module.register_forward_pre_hook(partial(self.enter, path)))
            hooks.append(module.register_forward_hook(self.leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def enter(self, path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.stack.append(path)
        if isinstance(module, ChannelNorm) and args[0] in self.live:
            norm = self.norms.setdefault(path, Norm())
            norm.has_branch = len(args) > 1
            norm.branch = self.makers[args[1]] if norm.has_branch and args[1] in self.makers else None

    def leave(self, *_: Any) -> None:
        self.stack.pop()

    def __torch_function__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__.strip("_")
        operands = list(tensors(args))
        masks = [operand for operand in operands if operand in self.masks]
        live = any(operand in self.live for operand in operands)
        for out in tensors((result,)):
            if live:
                self.live[out] = True
                if name not in MOVES and out.is_floating_point():
                    self.look(name, args, out, masks)
            elif masks:
                self.masks[out] = True
        return result

    def look(self, name: str, args: tuple[Any, ...], out: Tensor, masks: Sequence[Tensor]) -> None:
        if name == "conv2d":
            self.makers[out] = self.path
        elif name == "channel_norm":
            self.look_into_norm(args[0])
        elif name == "linalg_vector_norm":
            self.note("squares", args[0].square())
        elif name == "add" and masks:  # a masked score is out of the game: how low it is says nothing
            out = out[(masks[0] > MASKED / 2).expand_as(out)]
            if not out.numel():
                return
        elif name == "einsum":
            name = "scores" if args[0] == SCORES else "weighted sum"
        self.note(KINDS.get(name, name), out)

    def look_into_norm(self, x: Tensor) -> None:
        norm = self.norms.setdefault(self.path, Norm())
        squares = (x - x.mean(1, keepdim=True)).square()
        norm.largest = max(norm.largest, float(x.abs().max()))
        norm.least_variance = min(norm.least_variance, float(squares.mean(1).min()))
        self.note("squares", squares)

    def note(self, kind: str, values: Tensor) -> None:
        seen = self.seen.setdefault((self.path, kind), Seen())
        seen.add(values)
        if not math.isfinite(seen.largest):
            raise GateFailed(f"{self.path or 'the model'}: {kind} is not finite even in fp32")

    def ranges(self) -> Iterator[Range]:
        """In the order in which they are computed. Rounded, so that they are the same on any machine."""
        for (path, kind), seen in self.seen.items():
            share = seen.subnormal / max(seen.count, 1)
            yield Range(path, kind, significant(seen.largest), round(headroom(seen.largest), 2), round(share, 4))


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among some arguments or results, one level of lists deep."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))


def significant(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
