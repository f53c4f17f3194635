"""Mixed variants: more bits for the linear layers that lose most by theirs, as few as the variant's aim asks for.

Three measurements on the protocol's inputs decide, all on our torch module with the weights that the package will have:
- What each layer alone does to the outputs, to first order: its error is let in by a factor, one a layer and row, and
  the derivatives of the outputs by these factors at 0, taken for random sums of the outputs, give its energy.
- In the order of that energy a byte, layers go from 4 bits to 6, 8 and fp16: a list of steps.
- The least number of these steps with which the module has its aim is found by bisection, by running it.

Nothing hinges on last bits: derivatives are taken in double precision, and so is each PSNR near the aim.
"""

import itertools
import math
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hft2ane import protocol
from hft2ane.ane import Embedding, Linear, TokenConvolution
from hft2ane.audit import Batch
from hft2ane.compress import LEAST_NUMBERS, MIXED, Palettized, compress, quantize, stored_bytes
from hft2ane.errors import GateFailed
from hft2ane.psnr import Deviation
from hft2ane.records.package import Mixture, Raised, per_token
from hft2ane.records.recipe import Form, Task, Variant
from hft2ane.reference import Original, Tokenizer

STEPS: tuple[Form, ...] = ("palettized-4", "palettized-6", "palettized-8", "float16")
AIMS: dict[Variant, float] = {
    "mixed-6": 31.0,
    "mixed-4": 26.0,
}  # dB: the gate and 1 more, Core ML rounds in its own way
PROBES = 2  # random sums of the outputs
EVERY = 3  # which of the batch's rows are enough to compare layers
FINE = 16  # tokens: rows are padded to a multiple of it, not to the length
CLEAR = 0.01  # dB: a PSNR in single precision is nearer to its aim than this is taken again in double


@dataclass(frozen=True)
class Row:
    """One row of the protocol, (1, n) or (1, 1, n) in the order of the module's inputs. `tokens`, bool (n,): what is
    not padding. `places`: the (length, kind of input) where it is measured; a short text is the same row at each."""

    tensors: Batch
    tokens: Tensor
    places: set[tuple[int, str]]


def rows(folder: Path, original: Original, inputs: Sequence[str], lengths: Sequence[int]) -> list[Row]:
    """Each different row that the protocol has for these lengths, for an original loaded from `folder`; `inputs`: the
    names of those that its module takes."""
    vocabulary = original.config.vocab_size
    found: dict[bytes, Row] = {}
    tokenizer = Tokenizer(folder, vocabulary)
    for length in lengths:
        for kind in protocol.inputs(tokenizer, vocabulary, length, original.task, inputs):
            for i in range(len(kind.names)):
                count = int(kind.tensors["attention_mask"][i].sum())
                end = min(-(-count // FINE) * FINE, length)
                tensors = tuple(kind.tensors[name][i : i + 1, :end].int() for name in inputs)
                if original.task == "multiple-choice":  # a question with one candidate
                    tensors = tuple(tensor[:, None] for tensor in tensors)
                key = b"".join(tensor[..., :count].numpy().tobytes() for tensor in tensors)
                tokens = kind.tensors["attention_mask"][i, :end].bool()
                found.setdefault(key, Row(tensors, tokens, set())).places.add((length, kind.kind))
    return list(found.values())


class Weights(TorchFunctionMode):
    """While it is on, a module computes in `dtype`, with other weights in place of some of its own.

    `weights`: by the id of the parameter that they stand for. `errors`, `factors`: by it too, what the output of a
    linear layer is added, factor (rows, 1, 1, 1) · error ∗ input."""

    def __init__(
        self,
        weights: Mapping[int, Tensor],
        dtype: torch.dtype,
        errors: Mapping[int, Tensor] | None = None,
        factors: Mapping[int, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.parts: list[Tensor] = []
        self.weights, self.errors, self.factors = dict(weights), dict(errors or {}), dict(factors or {})

    def __torch_function__(
        self, function: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.__name__.strip("_")
        if name == "split" and (id(args[0]) in self.weights or id(args[0]) in self.errors):
            return self.split(*args, **(kwargs or {}))
        parameter = id(args[1]) if name in ("conv2d", "embedding") else 0
        if parameter in self.weights:
            args = (args[0], self.weights[parameter], *args[2:])
        if name == "embedding":  # the rows that are looked up are converted, not the whole table
            return function(*args, **(kwargs or {})).to(self.dtype)
        if name == "to" and args[1] is torch.float32:
            args = (args[0], self.dtype)
        args = self.cast(args)
        if name != "conv2d":
            return function(*args, **{key: self.cast(value) for key, value in (kwargs or {}).items()})
        out = convolve(*args, **(kwargs or {}))
        if parameter in self.errors:
            error = convolve(args[0].detach(), self.cast(self.errors[parameter]), **(kwargs or {}))
            out = out + self.factors[parameter][: len(error)] * error  # positions have one row for all texts
        return out

    def split(self, parameter: Tensor, *sizes: Any, **more: Any) -> Any:
        """The parameter's parts, and what is used for each: a vocabulary may be decoded in parts."""
        parts = torch.split(parameter, *sizes, **more)
        self.parts += parts  # held, so that nothing else gets their ids
        for known in (self.weights, self.errors):
            if id(parameter) in known:
                pieces = torch.split(known[id(parameter)], *sizes, **more)
                known.update(zip(map(id, parts), pieces, strict=True))
        if id(parameter) in self.factors:
            self.factors.update(dict.fromkeys(map(id, parts), self.factors[id(parameter)]))
        return parts

    def cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.dtype) if value.is_floating_point() else value
        return type(value)(map(self.cast, value)) if type(value) in (list, tuple) else value


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, **more: Any) -> Tensor:
    """A 1×1 convolution of (rows, channels, 1, tokens) as one product of matrices: quicker, in double above all."""
    if weight.shape[2:].numel() > 1:
        return torch.conv2d(x, weight, bias, **more)
    columns = x.transpose(0, 1).flatten(1)
    out = weight.flatten(1) @ columns if bias is None else torch.addmm(bias[:, None], weight.flatten(1), columns)
    return out.reshape(len(weight), len(x), 1, -1).transpose(0, 1)


@dataclass(frozen=True)
class Layer:
    """A linear layer in each form that it may have. `stored`: its fp16 weights, or what stands for them; `lost`: the
    sum of the squares of what it is off."""

    parameter: nn.Parameter
    stored: Mapping[Form, Any]
    lost: Mapping[Form, float]

    def weight(self, form: Form) -> Tensor:
        stored = self.stored[form]
        return torch.from_numpy((stored.dense if isinstance(stored, Palettized) else stored).astype(np.float32))


class Trial:
    """A module, and what becomes of its outputs when its linear layers have these or those forms."""

    def __init__(self, module: Any, task: Task, rows: Sequence[Row], forms: Sequence[Form]) -> None:
        self.module, self.task, self.rows, self.forms = module, task, rows, forms
        self.layers: dict[str, Layer] = {}
        self.tables: dict[int, Tensor] = {}
        for path, part in module.named_modules():
            if isinstance(part, Linear | TokenConvolution | Embedding) and part.weight.numel() >= LEAST_NUMBERS:
                half = part.weight.detach().half().numpy()
                if isinstance(part, Embedding):
                    self.tables[id(part.weight)] = torch.from_numpy(quantize(half).dense.astype(np.float32))
                else:
                    self.layers[path] = layer(part.weight, half, forms)
        groups: dict[torch.Size, list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            groups[row.tensors[0].shape].append(i)
        self.groups = list(groups.values())
        self.references: dict[torch.dtype, tuple[list[Batch], list[tuple[float, ...]]]] = {}

    def reference(self, dtype: torch.dtype) -> tuple[list[Batch], list[tuple[float, ...]]]:
        """By row: the outputs with the module's own weights, and what errors are measured by, see `peaks`."""
        if dtype not in self.references:
            found: dict[int, Batch] = {}
            for group in self.groups:
                found |= self.run(group, {}, dtype)
            outputs = [found[i] for i in range(len(self.rows))]
            self.references[dtype] = outputs, peaks(self.module.OUTPUTS, self.rows, outputs)
        return self.references[dtype]

    def psnrs(self, forms: Mapping[str, Form], dtype: torch.dtype) -> Iterator[list[float]]:
        """In dB, the least of a row's outputs', group by group of rows. `forms`: by path."""
        reference, peaks = self.reference(dtype)
        weights = {id(each.parameter): each.weight(forms[path]) for path, each in self.layers.items()} | self.tables
        for group in self.groups:
            got = self.run(group, weights, dtype)
            yield [
                min(
                    Deviation(peak, float((answer - value).square().sum()), answer.numel()).psnr
                    for value, answer, peak in zip(got[i], reference[i], peaks[i], strict=True)
                )
                for i in group
            ]

    def least(self, forms: Mapping[str, Form], dtype: torch.dtype, aim: float = -math.inf) -> float:
        """The worst row's. Below the aim the first that was found, which need not be the worst."""
        least = math.inf
        for found in self.psnrs(forms, dtype):
            least = min(least, *found)
            if least < aim:
                break
        return least

    @torch.no_grad()
    def run(self, group: Sequence[int], weights: Mapping[int, Tensor], dtype: torch.dtype) -> dict[int, Batch]:
        """The outputs for rows of one shape, each at its tokens. `weights`: see `Weights`."""
        with Weights(weights, dtype):
            outputs = self.module(
                *(torch.cat(each) for each in zip(*(self.rows[i].tensors for i in group), strict=True))
            )
        return {
            i: tuple(
                output[n][self.rows[i].tokens] if per_token(name, output.dim(), self.task) else output[n]
                for name, output in zip(self.module.OUTPUTS, outputs, strict=True)
            )
            for n, i in enumerate(group)
        }

    def energies(self, batch: Batch) -> dict[str, float]:
        """What the error of each layer in the first form does to the outputs, to first order, by path.

        Σ over the rows of the mean square of an output's change, as a share of its peak, all outputs together."""
        errors = {id(e.parameter): e.weight("float16") - e.weight(self.forms[0]) for e in self.layers.values()}
        factors = {key: torch.zeros(len(batch[0]), 1, 1, 1, dtype=torch.double, requires_grad=True) for key in errors}
        with Weights({}, torch.double, errors, factors):
            outputs = self.module(*batch)
        tokens = batch[self.module.inputs.index("attention_mask")].flatten(1)
        shares = [
            share(output, tokens if per_token(name, output.dim(), self.task) else None)
            for name, output in zip(self.module.OUTPUTS, outputs, strict=True)
        ]
        generator = torch.Generator().manual_seed(protocol.SEED)
        found = dict.fromkeys(self.layers, 0.0)
        for _ in range(PROBES):
            signs = [torch.randint(0, 2, each.shape, generator=generator) * 2 - 1 for each in shares]
            total = torch.stack([(sign * each).sum() for sign, each in zip(signs, shares, strict=True)]).sum()
            slopes = torch.autograd.grad(total, list(factors.values()), retain_graph=True)
            for path, slope in zip(self.layers, slopes, strict=True):
                found[path] += float(slope.square().sum()) / PROBES
        return found


def share(output: Tensor, tokens: Tensor | None) -> Tensor:
    """An output (rows, …) over its peak and the root of a row's numbers. `tokens`, (rows, S): where only they count."""
    counted = torch.ones_like(output)
    if tokens is not None:
        counted = counted * tokens.reshape(*tokens.shape, *[1] * (output.dim() - 2))
    numbers = counted.flatten(1).sum(1).reshape(-1, *[1] * (output.dim() - 1))
    output = output * counted
    return output / (output.detach().abs().max() * numbers.sqrt())


def layer(parameter: nn.Parameter, half: Any, forms: Sequence[Form]) -> Layer:
    stored = {form: compress(half, form, table=False) or half for form in forms}
    exact, lost = half.astype(np.float32), {}
    for form, each in stored.items():
        dense = each.dense if isinstance(each, Palettized) else each
        lost[form] = float(np.square(exact - dense, dtype=np.float64).sum())
    return Layer(parameter, stored, lost)


def mix(module: Any, task: Task, variant: Variant, rows: Sequence[Row], batch: Batch) -> Mixture:
    """Chooses the forms of the module's linear layers. `task`: of the original; `batch`: short rows, on some of which
    layers are compared.

    GateFailed: the aim is not reached even with all of them in fp16."""
    forms = STEPS[STEPS.index(MIXED[variant]) :]
    aim, trial = AIMS[variant], Trial(module, task, rows, forms)
    usual = dict.fromkeys(trial.layers, forms[0])
    by_group = [min(found) for found in trial.psnrs(usual, torch.float)]
    before = min(by_group)
    # What is worst now will mostly be what fails later.
    trial.groups = [trial.groups[i] for i in sorted(range(len(by_group)), key=lambda i: by_group[i])]

    def passes(chosen: Mapping[str, Form], value: float | None = None) -> bool:
        value = trial.least(chosen, torch.float, aim - CLEAR) if value is None else value
        return (trial.least(chosen, torch.double) if abs(value - aim) < CLEAR else value) >= aim

    if passes(usual, before) or not trial.layers:
        return Mixture(forms[0], aim, round(before, 2), round(before, 2), ())
    energies = trial.energies(tuple(tensor[::EVERY] for tensor in batch))
    steps = ordered(trial.layers, energies, forms)
    # Of two steps of a layer the later one counts.
    candidates = [usual | dict(steps[: count + 1]) for count in range(len(steps))]
    if (place := bisect_left(candidates, True, key=passes)) == len(candidates):
        best = trial.least(candidates[-1], torch.float)
        raise GateFailed(
            f"{variant}: {best:.1f} dB with all linear layers in fp16, its aim is {aim:g} dB: ask for float16 instead"
        )
    chosen, total = candidates[place], sum(energies.values())
    return Mixture(
        form=forms[0],
        aim=aim,
        before=round(before, 2),
        after=round(trial.least(chosen, torch.float), 2),
        raised=tuple(
            Raised(path, form, round(energies[path] / total, 4)) for path, form in chosen.items() if form != forms[0]
        ),
    )


def ordered(
    layers: Mapping[str, Layer], energies: Mapping[str, float], forms: Sequence[Form]
) -> list[tuple[str, Form]]:
    """(path, next form), first what takes away most energy a byte. A layer's energy goes as its weights' error."""
    steps = []
    for path, each in layers.items():
        worth = math.inf
        for old, new in itertools.pairwise(forms):
            less = (each.lost[old] - each.lost[new]) / (each.lost[forms[0]] or 1.0)
            more = stored_bytes(each.parameter.shape, new) - stored_bytes(each.parameter.shape, old)
            worth = min(worth, energies[path] * less / more)  # never before the step that it goes on from
            steps.append((-float(f"{worth:.6g}"), path, forms.index(new), new))
    return [(path, form) for _, path, _, form in sorted(steps)]


def peaks(outputs: Sequence[str], rows: Sequence[Row], reference: Sequence[Batch]) -> list[tuple[float, ...]]:
    """By row and output, what its errors are measured by (see `verify.condense`), the least of the row's places."""
    found: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row, answers in zip(rows, reference, strict=True):
        for name, answer in zip(outputs, answers, strict=True):
            for length, kind in row.places:
                kinds = found[name, length]
                kinds[kind] = max(float(answer.abs().max()), kinds.get(kind, 0.0))
    usual = {key: statistics.median(kinds.values()) for key, kinds in found.items()}
    if zero := [name for (name, _), peak in usual.items() if peak == 0]:
        raise GateFailed(f"{zero[0]} is zero on most inputs, so nothing can be measured by it")
    return [
        tuple(
            min(max(usual[name, length], found[name, length][kind]) for length, kind in row.places) for name in outputs
        )
        for row in rows
    ]
