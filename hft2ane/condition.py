"""Powers of two where numbers get too large for fp16: the same function of smaller numbers.

- A norm does not see the size of what goes into it. Its sum x + W y + b becomes 2^-k x + (2^-k W) y + 2^-k b, and its
  eps 2^-2k eps. That is exact, but for an eps that fp16 cannot hold: `lower` raises it to 2^-23, and `eps_error` bounds
  what comes of it.
- The residual stream of pre-norm layers is read by norms only, so it may be smaller from where it gets too large on:
  one multiplication there, then weights and biases of what adds to it times 2^-k, and the norms' eps times 2^-2k.
- Scores are products of queries and keys, so one may be made smaller and the other larger; likewise values and the
  output projection of attention, and the gate and the output of a gated feed-forward.

Nothing else is invariant: what is too large before an activation, a softmax or an output is reported, and fails.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hft2ane import records
from hft2ane.ane import EPS_LEAST, Attention, ChannelNorm, Gated, Linear, RotaryAttention, Stream, Value
from hft2ane.audit import Batch, Measured, calibration, headroom, measure, significant
from hft2ane.errors import ExportError, GateFailed
from hft2ane.psnr import psnr
from hft2ane.records.job import Job
from hft2ane.records.package import Audit, Conditioned
from hft2ane.reference import load
from hft2ane.rewrite import rewrite

LEAST = 1.0  # bits of headroom that everything must have, but for
LEAST_OF_SQUARES = 0.0  # which have half their bits in the value itself
AIM = 2.0  # bits that conditioning makes: other texts may go further than those measured
AIM_OF_STREAMS = 4.0  # the same where they grow from layer to layer, and each step costs a multiplication
EPS_ERROR = 2.0**-11  # half a step of fp16: more would show in the result
SAME = 120.0  # dB in fp32 between a module and itself conditioned, which differ by the rounding of sums


def ranges(folder: Path) -> Audit:
    """The audit of a job's folder after fetch, and its ranges.json; what fails is in it."""
    job = records.read(folder / "job.json", Job)
    original = load(folder / "source", job.recipe.task)
    module = rewrite(original)
    audit = condition(module, calibration(folder / "source", original, module.inputs, job.recipe.lengths))
    records.write(folder / "ranges.json", audit)
    return audit


def condition(module: Any, batches: Sequence[Batch]) -> Audit:
    """Audits the module, in place makes smaller what is too large and can be, and audits again.

    GateFailed: not finite even in fp32. ExportError: the function is not the same any more."""
    before = measure(module, batches)
    reasons: dict[str, str] = {}
    done = list(streams(module, before, reasons))
    within = measure(module, batches) if done else before
    done += [*balances(module, within), *norms(module, within, reasons)]
    after = measure(module, batches) if done else before
    compare(before, after)
    failures = [
        f"{r.path or 'the model'}: {r.kind} up to {r.max:g} leave {r.headroom_bits:.1f} bits of headroom in fp16, "
        f"the least is {least(r.kind):g}{reasons.get(r.path, '')}"
        for r in after.ranges
        if r.headroom_bits < least(r.kind)
    ]
    rows, tokens = sum(len(batch[0]) for batch in batches), sum(batch[0].numel() for batch in batches)
    return Audit(rows, tokens, after.ranges, tuple(done), tuple(failures))


def least(kind: str) -> float:
    return LEAST_OF_SQUARES if kind == "squares" else LEAST


def check(audit: Audit, model: str) -> None:
    """GateFailed, with the layer's name: something does not fit into fp16."""
    if audit.failures:
        more = f" (and {len(audit.failures) - 1} more: hft2ane ranges)" if len(audit.failures) > 1 else ""
        raise GateFailed(f"{model}: {audit.failures[0]}{more}")


def compare(before: Measured, after: Measured) -> None:
    for old, new in zip(before.outputs, after.outputs, strict=True):
        for reference, got in zip(old, new, strict=True):
            if (same := psnr(reference.numpy(), got.numpy())) < SAME:
                raise ExportError(
                    f"conditioning changed the function ({same:.0f} dB): the output of a linear that goes into a norm "
                    "is used elsewhere too; add it there as norm(x, branch) only"
                )


def norms(module: nn.Module, before: Measured, reasons: dict[str, str]) -> Iterator[Conditioned]:
    """Makes sums smaller that go into norms. `reasons` gets, by path, why that was not possible."""
    for path, facts in before.norms.items():
        squares = before.find(path, "squares").max
        linear = before.find(facts.branch, "linear").max if facts.branch else 0.0
        largest = max(facts.largest, linear)
        if headroom(squares) >= LEAST_OF_SQUARES and headroom(largest) >= LEAST:
            continue
        if facts.has_branch and facts.branch is None:
            reasons[path] = "; what is added there is not the output of a linear, so it cannot be scaled"
            continue
        norm: ChannelNorm = module.get_submodule(path)  # type: ignore[assignment]
        exponent = math.ceil(max(AIM - headroom(largest), (AIM - headroom(squares)) / 2))
        error = eps_error(norm.eps, exponent, facts.least_variance)
        if error > EPS_ERROR:
            reasons[path] = too_much("its eps", exponent, error)
            continue
        norm.scale, norm.eps = norm.scale * 2.0**-exponent, norm.eps * 4.0**-exponent
        if facts.branch:
            scale(module.get_submodule(facts.branch), -exponent)
        branch = (facts.branch,) if facts.branch else ()
        yield record(path, exponent, branch, *min((largest, "sum"), (squares, "squares"), key=by_headroom), error)


def by_headroom(value: tuple[float, str]) -> float:
    return headroom(value[0])


def eps_error(eps: float, exponent: int, least_variance: float) -> float:
    """The most by which the result of a norm changes, as a share of it, when eps · 2^(-2 · exponent) is raised to
    the least that is exported: 1/√(v + eps) has the relative slope 1/2(v + eps), steepest at the least variance v."""
    raised = max(eps * 4.0**-exponent, EPS_LEAST) * 4.0**exponent
    return (raised - eps) / (2 * (least_variance + eps))


def streams(module: nn.Module, before: Measured, reasons: dict[str, str]) -> Iterator[Conditioned]:
    """Makes residual streams smaller where they are too large. `reasons` gets, by path, why that was not possible."""
    for path, stream in module.named_modules():
        if isinstance(stream, Stream):
            places = [place(stream, path, value, before) for value in stream.values()]
            yield from shrink(stream, path, places, reasons)


@dataclass(frozen=True)
class Place:
    """A value of a stream: the largest of what it is and of what was added, and what the norm makes of it, if any."""

    value: Value
    largest: float
    squares: float = 0.0
    eps: float = 0.0
    least_variance: float = math.inf

    def enough(self, aim: float) -> int:
        """The exponent that makes so many bits of headroom."""
        return max(0, math.ceil(max(aim - headroom(self.largest), (aim - headroom(self.squares)) / 2)))

    def error(self, exponent: int) -> float:
        return eps_error(self.eps, exponent, self.least_variance) if exponent else 0.0

    def fits(self, exponent: int) -> bool:
        room, of_squares = headroom(self.largest) + exponent, headroom(self.squares) + 2 * exponent
        return room >= LEAST and of_squares >= LEAST_OF_SQUARES and self.error(exponent) <= EPS_ERROR


def place(stream: Stream, path: str, value: Value, before: Measured) -> Place:
    added = before.find(f"{path}.{value.writer}", "norm" if value.writer == "start" else "linear").max
    if not value.norm:
        return Place(value, added)
    norm: Any = stream.get_submodule(value.norm)
    facts = before.norms[f"{path}.{value.norm}"]
    squares = before.find(f"{path}.{value.norm}", "squares").max
    return Place(value, max(added, facts.largest), squares, norm.eps, facts.least_variance)


def shrink(stream: Stream, path: str, places: Sequence[Place], reasons: dict[str, str]) -> Iterator[Conditioned]:
    exponents = [0]
    for here in places:
        choices = (exponents[-1], *(here.enough(aim) for aim in (AIM_OF_STREAMS, AIM, LEAST)))
        fitting = [exponent for exponent in choices if here.fits(exponent)]
        if not fitting:
            why = too_much(f"the eps of {path}.{here.value.norm}", choices[-1], here.error(choices[-1]))
            reasons.update(dict.fromkeys((f"{path}.{here.value.layer}", f"{path}.{here.value.writer}"), why))
            return
        exponents.append(fitting[0])
    for at, (here, last, exponent) in enumerate(zip(places, exponents, exponents[1:], strict=False)):
        if at and exponent != last:
            stream.scale(at, 2.0 ** (last - exponent))
        if not exponent:
            continue
        names = (here.value.writer, *here.value.linears)
        scale(stream.get_submodule(here.value.writer), -exponent)
        for linear in here.value.linears:
            scale(stream.get_submodule(linear), exponent, bias=False)
        if here.value.norm:
            norm: Any = stream.get_submodule(here.value.norm)
            norm.eps *= 4.0**-exponent
        tightest = min((here.largest, "sum"), (here.squares, "squares"), key=by_headroom)
        its = tuple(f"{path}.{name}" for name in names)
        yield record(f"{path}.{here.value.norm or here.value.writer}", exponent, its, *tightest, here.error(exponent))


def too_much(eps: str, exponent: int, error: float) -> str:
    return f"; scaled by 2^-{exponent} {eps} would not survive fp16, and change it by up to {error:.1%}"


def balances(module: nn.Module, before: Measured) -> Iterator[Conditioned]:
    """Makes one linear smaller and larger another one, by whose output its own is multiplied or which it goes into."""
    for path, part in module.named_modules():
        if isinstance(part, Attention | RotaryAttention | Gated):
            for small, large in part.BALANCED:
                yield from balance(part, path, small, large, before)


def balance(part: nn.Module, path: str, small: str, large: str, before: Measured) -> Iterator[Conditioned]:
    largest, kind, last = before.find(f"{path}.{small}", "linear").max, "linear", large in ("out", "down")
    if small == "gate":
        largest, kind = max((largest, kind), (before.find(path, "product").max, "product"))
    if headroom(largest) >= LEAST:
        return
    exponent = math.ceil(AIM - headroom(largest))
    if not last and headroom(before.find(f"{path}.{large}", "linear").max) - exponent < LEAST:
        return
    scale(getattr(part, small), -exponent)
    scale(getattr(part, large), exponent, bias=not last)
    yield record(f"{path}.{small}", exponent, (f"{path}.{small}", f"{path}.{large}"), largest, kind, 0.0)


def scale(layer: Any, exponent: int, bias: bool = True) -> None:
    """Weights and bias times a power of two; the tensors that they were made of stay as they are."""
    assert isinstance(layer, Linear | ChannelNorm)
    layer.weight = nn.Parameter(layer.weight * 2.0**exponent, requires_grad=False)
    if bias and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias * 2.0**exponent, requires_grad=False)


def record(path: str, exponent: int, scaled: tuple[str, ...], largest: float, kind: str, error: float) -> Conditioned:
    return Conditioned(
        path, exponent, scaled, kind, significant(largest), round(headroom(largest), 2), significant(error)
    )
