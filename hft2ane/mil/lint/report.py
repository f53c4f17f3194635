"""Rules asked of every function, equal findings counted as one, and a verdict for every operation."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hft2ane.mil.lint.graph import HEAVY, MOVES, OPERANDS, Graph, key, work
from hft2ane.mil.lint.rules import RULES, Hit, Rule
from hft2ane.mil.load import Op, Package, load
from hft2ane.records import Device, Finding, Lint, LintSettings, Placed, Severity, Verdict

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


def lint(path: Path, settings: LintSettings | None = None) -> Lint:
    """What the rules say of the .mlpackage at `path`. PackageError: it cannot be read."""
    return lint_package(load(path), path.name, settings)


def lint_package(package: Package, name: str, settings: LintSettings | None = None) -> Lint:
    chosen = settings or LintSettings()
    hits: list[tuple[Graph, Rule, Hit]] = []
    verdicts: list[Verdict] = []
    for function in package.functions.values():
        graph = Graph(package, function)
        own = [(rule, hit) for rule in RULES.values() for hit in rule.check(graph, chosen)]
        verdicts += judged(graph, own)
        hits += ((graph, rule, hit) for rule, hit in own)
    return Lint(
        package=name,
        settings=chosen,
        findings=tuple(sorted(grouped(hits), key=lambda each: ORDER[each.severity])),
        placed=tuple(
            placed(function, [v for v in verdicts if v.function == function]) for function in package.functions
        ),
        verdicts=tuple(verdicts),
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
            shape=first.outputs[0].shape if first else (),
            count=len(found),
            ops=tuple(dict.fromkeys(op.name for _, op in found if op)),
        )


def pattern(layer: str) -> str:
    """`blocks.3.norm1` -> `blocks.{i}.norm1`, and `input_31_cast_fp16` -> `input_{i}_cast_fp16`."""
    return re.sub(r"(?<![^._])\d+(?![^._])", "{i}", layer)


def judged(graph: Graph, hits: Iterable[tuple[Rule, Hit]]) -> list[Verdict]:
    """A rule that places an operation decides; else its types do, then whether the operation is known at all."""
    placing = [(rule, hit) for rule, hit in hits if rule.places]
    placed_by: dict[str, tuple[Device, str]] = {}
    for rule, hit in placing:
        for op in [hit.op] if hit.op else graph.ops:
            placed_by.setdefault(key(op), (rule.places or "unknown", f"{rule.id}: {hit.message}"))
    verdicts = []
    for op in graph.ops:
        device, why = placed_by.get(key(op)) or by_type(graph, op)
        verdicts.append(
            Verdict(
                function=graph.function.name,
                op=op.name,
                layer=graph.layer(op),
                type=op.type,
                shape=op.outputs[0].shape,
                work=work(graph, op),
                predicted=device,
                why=why,
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


def placed(function: str, verdicts: list[Verdict]) -> Placed:
    ops: Counter[Device] = Counter()
    flops: Counter[Device] = Counter()
    for verdict in verdicts:
        ops[verdict.predicted] += 1
        flops[verdict.predicted] += verdict.work
    return Placed(function, ops.total(), flops.total(), shares(ops), shares(flops))


def shares(counts: Counter[Device]) -> dict[Device, float]:
    total = counts.total() or 1
    return {device: round(count / total, 6) for device, count in sorted(counts.items())}
