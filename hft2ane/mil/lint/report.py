"""Rules asked of every function, equal findings counted as one, and a verdict for every operation."""

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hft2ane.errors import PackageError
from hft2ane.mil.lint.graph import HEAVY, MOVES, OPERANDS, Graph, key, shape, work
from hft2ane.mil.lint.rules import RULES, Hit, Rule
from hft2ane.mil.load import Op, Package, load
from hft2ane.mil.ops import OPS
from hft2ane.records.lint import (
    Calibrated,
    Device,
    Finding,
    Lint,
    LintSettings,
    Measured,
    Placed,
    Plan,
    Planned,
    Severity,
    Verdict,
)

ORDER: Mapping[Severity, int] = {"error": 0, "warning": 1, "info": 2}

# What encoders are made of, and compute plans show on the engine (eeANE: 96.7 to 99.5 % of the operations of 64 models;
# Apple 2022: 602 of 606). An operation in no list has the verdict `unknown`.
KNOWN = frozenset(
    (HEAVY | MOVES | OPERANDS.keys()) - {"gru", "lstm", "rnn"}
    | {
        "abs", "avg_pool", "clip", "exp", "gelu", "leaky_relu", "max_pool", "pow", "real_div", "reduce_l2_norm",
        "reduce_max", "reduce_mean", "reduce_min", "reduce_sum", "reduce_sum_square", "relu", "rsqrt", "sigmoid",
        "silu", "sqrt", "square", "tanh",
    }
)  # fmt: skip
RUN = frozenset({"float16", "int8", "int16", "uint8", "uint16"})


def lint(path: Path, settings: LintSettings | None = None, plan: Plan | None = None) -> Lint:
    """What the rules say of the .mlpackage at `path`, beside what a compute plan of it says. PackageError: it cannot be
    read."""
    return lint_package(load(path), path.name, settings, plan)


def lint_package(package: Package, name: str, settings: LintSettings | None = None, plan: Plan | None = None) -> Lint:
    chosen, plan = settings or LintSettings(), plan or {}
    hits: list[tuple[Graph, Rule, Hit]] = []
    verdicts: list[Verdict] = []
    places: list[Placed] = []
    for function in package.functions.values():
        graph = Graph(package, function)
        check_parameters(graph)
        own = [(rule, hit) for rule in RULES.values() for hit in rule.check(graph, chosen)]
        planned = [plan.get((function.name, key(op))) for op in graph.ops]
        judgements = judged(graph, own, planned)
        verdicts += judgements
        places.append(placed(function.name, judgements, planned))
        hits += ((graph, rule, hit) for rule, hit in own)
    return Lint(
        package=name,
        settings=chosen,
        findings=tuple(sorted(grouped(hits), key=lambda each: ORDER[each.severity])),
        placed=tuple(places),
        verdicts=tuple(verdicts),
        calibration=tuple(calibrated(verdicts)),
    )


def check_parameters(graph: Graph) -> None:
    """PackageError: an operation lacks what its kind must have, so that nothing can be said of it."""
    for op in graph.ops:
        parameters = inspect.signature(OPS[op.type]).parameters.values() if op.type in OPS else ()
        if missing := [each.name for each in parameters if each.default is each.empty and each.name not in op.inputs]:
            raise PackageError(
                f"function {graph.function.name}: {op.type} {op.name!r} has no {', '.join(missing)}. "
                "Export or fetch the package again."
            )


def grouped(hits: Iterable[tuple[Graph, Rule, Hit]]) -> Iterator[Finding]:
    """One finding for hits of one rule with one message, in layers that differ by their numbers only."""
    groups: dict[tuple[str, str, str], list[tuple[str, Op | None]]] = {}
    for graph, rule, hit in hits:
        layer = pattern(graph.layer(hit.op)) if hit.op else ""
        groups.setdefault((rule.id, hit.message, layer), []).append((graph.function.name, hit.op))
    for (id, message, layer), found in groups.items():
        first = found[0][1]
        yield Finding(
            rule=id,
            severity=RULES[id].severity,
            functions=tuple(dict.fromkeys(function for function, _ in found)),
            message=message,
            layer=layer,
            type=first.type if first else "",
            shape=shape(first) if first else (),
            count=len(found),
            ops=tuple(dict.fromkeys(op.name for _, op in found if op)),
        )


def pattern(layer: str) -> str:
    """`blocks.3.norm1` -> `blocks.{i}.norm1`, and `input_31_cast_fp16` -> `input_{i}_cast_fp16`."""
    return re.sub(r"(?<![^._])\d+(?![^._])", "{i}", layer)


def judged(graph: Graph, hits: Iterable[tuple[Rule, Hit]], planned: Sequence[Planned | None]) -> list[Verdict]:
    """Beside what a plan says. A rule that places an operation decides; else its types do, then whether it is known."""
    placing = [(rule, hit) for rule, hit in hits if rule.places]
    placed_by: dict[str, tuple[Device, str]] = {}
    for rule, hit in placing:
        for op in [hit.op] if hit.op else graph.ops:
            placed_by.setdefault(key(op), (rule.places or "unknown", f"{rule.id}: {hit.message}"))
    verdicts = []
    for op, measured in zip(graph.ops, planned, strict=True):
        device, why = placed_by.get(key(op)) or by_type(graph, op)
        verdicts.append(
            Verdict(
                function=graph.function.name,
                op=op.name,
                layer=graph.layer(op),
                type=op.type,
                shape=shape(op),
                work=work(graph, op),
                predicted=device,
                why=why,
                measured=measured.device if measured else None,
                supported=measured.supported if measured else (),
                cost=measured.cost if measured else None,
            )
        )
    return verdicts


def by_type(graph: Graph, op: Op) -> tuple[Device, str]:
    dtypes = {feature.dtype for feature in (*op.outputs, *graph.read(op))}
    if wide := sorted(dtypes - RUN - {"bool"}):
        return "cpu", f"takes or gives {', '.join(wide)}"
    if "bool" in dtypes:
        return "unknown", "takes or gives bool"
    if op.type not in KNOWN:
        return "unknown", f"no source says where {op.type} runs"
    return "ane", ""


def placed(function: str, verdicts: Sequence[Verdict], planned: Sequence[Planned | None]) -> Placed:
    known = [(verdict, each) for verdict, each in zip(verdicts, planned, strict=True) if each]
    measured = Measured(
        ops=len(known),
        share_of_ops=shares((each.device, 1) for _, each in known),
        share_of_work=shares((each.device, verdict.work) for verdict, each in known),
        share_of_cost=shares((each.device, each.cost) for _, each in known if each.cost is not None),
    )
    return Placed(
        function=function,
        ops=len(verdicts),
        work=sum(verdict.work for verdict in verdicts),
        share_of_ops=shares((verdict.predicted, 1) for verdict in verdicts),
        share_of_work=shares((verdict.predicted, verdict.work) for verdict in verdicts),
        measured=measured if known else None,
    )


def shares(amounts: Iterable[tuple[Device, float]]) -> dict[Device, float]:
    sums: dict[Device, float] = {}
    for device, amount in amounts:
        sums[device] = sums.get(device, 0) + amount
    total = sum(sums.values()) or 1
    return {device: round(amount / total, 6) for device, amount in sorted(sums.items())}


def calibrated(verdicts: Iterable[Verdict]) -> list[Calibrated]:
    """What was predicted and what was measured, counted; disagreements first, then by number."""
    counts = Counter((rule_of(v), v.type, v.predicted, v.measured) for v in verdicts if v.measured)
    rows = [Calibrated(*of, ops) for of, ops in counts.items()]
    return sorted(rows, key=lambda row: (row.predicted == row.measured, -row.ops, row.type))


def rule_of(verdict: Verdict) -> str:
    """The rule that decided, "" where types or the list of known operations did."""
    named = verdict.why.partition(":")[0]
    return named if named in RULES else ""
