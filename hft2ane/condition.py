"""Powers of two where numbers get too large for fp16: the same function of smaller numbers.

- A norm does not see the size of what goes into it. Its sum x + W y + b becomes 2^-k x + (2^-k W) y + 2^-k b, and its
  eps 2^-2k eps. That is exact, but for an eps that fp16 cannot hold: `lower` raises it to 2^-23, and `eps_error` bounds
  what comes of it.
- Scores are products of queries and keys, so one may be made smaller and the other larger; likewise values and the
  output projection of attention.

Nothing else is invariant: what is too large before an activation, a softmax or an output is reported, and fails.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hft2ane import records
from hft2ane.ane import EPS_LEAST, Attention, ChannelNorm, Linear
from hft2ane.audit import Batch, Measured, calibration, headroom, measure, significant
from hft2ane.errors import ExportError, GateFailed
from hft2ane.psnr import psnr
from hft2ane.records import Audit, Conditioned, Job
from hft2ane.reference import load
from hft2ane.rewrite import rewrite

LEAST = 1.0  # bits of headroom that everything must have, but for
LEAST_OF_SQUARES = 0.0  # which have half their bits in the value itself
AIM = 2.0  # bits that conditioning makes: other texts may go further than those measured
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
    done = [*attentions(module, before), *norms(module, before, reasons)]
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
            reasons[path] = (
                f"; scaled by 2^-{exponent} its eps would not survive fp16, and change it by up to {error:.1%}"
            )
            continue
        norm.scale, norm.eps = 2.0**-exponent, norm.eps * 4.0**-exponent
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


def attentions(module: nn.Module, before: Measured) -> Iterator[Conditioned]:
    """Makes queries smaller and keys larger or the reverse, and values smaller and the output projection larger."""
    for path, attention in module.named_modules():
        if isinstance(attention, Attention):
            for small, large in (("q", "k"), ("k", "q"), ("v", "out")):
                yield from balance(attention, path, small, large, before)


def balance(attention: Attention, path: str, small: str, large: str, before: Measured) -> Iterator[Conditioned]:
    largest = before.find(f"{path}.{small}", "linear").max
    if headroom(largest) >= LEAST:
        return
    exponent = math.ceil(AIM - headroom(largest))
    if large != "out" and headroom(before.find(f"{path}.{large}", "linear").max) - exponent < LEAST:
        return
    scale(getattr(attention, small), -exponent)
    scale(getattr(attention, large), exponent, bias=large != "out")
    yield record(f"{path}.{small}", exponent, (f"{path}.{small}", f"{path}.{large}"), largest, "linear", 0.0)


def scale(linear: Any, exponent: int, bias: bool = True) -> None:
    """Weights and bias times a power of two; the tensors that they were made of stay as they are."""
    assert isinstance(linear, Linear)
    linear.weight = nn.Parameter(linear.weight * 2.0**exponent, requires_grad=False)
    if bias and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias * 2.0**exponent, requires_grad=False)


def record(path: str, exponent: int, scaled: tuple[str, ...], largest: float, kind: str, error: float) -> Conditioned:
    return Conditioned(
        path, exponent, scaled, kind, significant(largest), round(headroom(largest), 2), significant(error)
    )
