"""The rows of the card's tables, from the records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hft2ane import records
from hft2ane.card.markdown import down, megabytes, share, systems
from hft2ane.card.words import PRECISIONS, WARNINGS
from hft2ane.records import Conversion, Finding, Function, Package, Report, Task, Tensor

ENGINE = "CPU_AND_NE"  # coremltools' name of the compute units that an app asks for
STATES_MASK = "encoder_attention_mask"


def least_psnr(report: Report) -> dict[str, float]:
    """The worst figure of each bar, over everything that evaluated it."""
    least: dict[str, float] = {}
    for bar in report.fidelity:
        least[bar.what] = min(bar.psnr_min, least.get(bar.what, math.inf))
    return least


def specification(conversion: Conversion, report: Report) -> list[list[str]]:
    """The rows of the first table: a label, and a cell for each package."""
    packages = conversion.packages
    compressed = any(package.variant != "float16" for package in packages)
    rows = [
        ["Precision", *(PRECISIONS[package.variant][1] for package in packages)],
        *([["Weights", *(package.weights for package in packages)]] if compressed else []),
        ["Size", *(megabytes(package.size) for package in packages)],
        ["Input length, tokens", *(", ".join(str(f.length) for f in package.functions) for package in packages)],
        ["Minimum OS", *(systems(package.minimum_os) for package in packages)],
    ]
    bars = {(bar.backend, bar.what): bar for bar in report.fidelity if not bar.is_rewrite}
    backends = list(dict.fromkeys(backend for backend, _ in bars))
    for backend in backends:
        by = f", {backend}" if len(backends) > 1 else ""
        of = [bars.get((backend, package.what)) for package in packages]
        rows.append([f"PSNR, worst row, dB ¹{by}", *(down(bar.psnr_min) if bar else "not measured" for bar in of)])
        rows.append([f"PSNR median, dB ¹{by}", *(down(bar.psnr_median) if bar else "not measured" for bar in of)])
        if any(bar and bar.top1 is not None for bar in of):
            rows.append([f"Top-1 agreement ¹{by}", *(share(bar.top1) if bar else "not measured" for bar in of)])
    return [*rows, *on_a_mac(packages, report)]


def on_a_mac(packages: Sequence[Package], report: Report) -> list[list[str]]:
    """The least share of any function, and the latency of each on what an app would ask for."""
    if not report.mac:
        return [["Neural Engine share, latency", *("not measured on this host" for _ in packages)]]
    engine = {
        found.package: min(p.measured.share_of_ops.get("ane", 0.0) for p in found.placed if p.measured)
        for found in report.lint
        if any(p.measured for p in found.placed)
    }
    unit = max((each.unit for each in report.latency), key=lambda unit: unit == ENGINE, default="")
    taken = [each for each in report.latency if each.unit == unit]
    tokens = {f.name: f.length for package in packages for f in package.functions}
    return [
        [
            "On the Neural Engine ²",
            *(share(engine.get(p.file)) if p.file in engine else "not measured" for p in packages),
        ],
        [
            f"Latency ², {unit}",
            *(
                ", ".join(
                    f"{each.median_ms:.2f} ms ({tokens[each.function]} tokens)"
                    for each in taken
                    if each.variant == p.what
                )
                or "not measured"
                for p in packages
            ),
        ],
    ]


@dataclass(frozen=True)
class Placement:
    """What is predicted for some functions of some packages, as it is shown."""

    variants: Sequence[str]
    functions: Sequence[str]
    ops: int
    of_ops: str
    of_work: str


def placements(packages: Sequence[Package], report: Report) -> list[Placement]:
    """A row for what differs: lengths and variants mostly have the same graph."""
    variants = {package.file: package.what for package in packages}
    rows: dict[tuple[tuple[str, ...], int, str, str], list[str]] = {}
    for found in report.lint:
        own: dict[tuple[int, str, str], list[str]] = {}
        for p in found.placed:
            figures = (p.ops, share(p.share_of_ops.get("ane", 0.0)), share(p.share_of_work.get("ane", 0.0)))
            own.setdefault(figures, []).append(p.function)
        for figures, functions in own.items():
            rows.setdefault((tuple(functions), *figures), []).append(variants[found.package])
    return [Placement(names, *figures) for figures, names in rows.items()]


@dataclass(frozen=True)
class Warned:
    """A rule that some packages break, in `count` operations of the types named, and what that means for an app."""

    rule: str
    text: str
    count: int
    types: str


def warnings(report: Report) -> list[Warned]:
    """One a rule, whichever package and function it is in."""
    found: dict[str, list[Finding]] = {}
    for finding in (finding for each in report.lint for finding in each.findings if finding.severity == "warning"):
        found.setdefault(finding.rule, []).append(finding)
    return [
        Warned(
            rule,
            WARNINGS.get(rule, each[0].message),
            sum(finding.count for finding in each),
            ", ".join(dict.fromkeys(finding.type for finding in each if finding.type)),
        )
        for rule, each in found.items()
    ]


@dataclass(frozen=True)
class Port:
    """A row of the table of inputs and outputs."""

    way: Literal["in", "out"]
    name: str
    shape: str
    dtype: str
    about: str
    padding: str


def contract(functions: Sequence[Function], pad: int, task: Task) -> list[Port]:
    """What goes in and out, the same for all functions but for the length, which is L where they differ."""
    padding = {"input_ids": str(pad), **dict.fromkeys(("attention_mask", "token_type_ids", STATES_MASK), "0")}
    inputs = zip(*(function.inputs for function in functions), strict=True)
    outputs = zip(*(function.outputs for function in functions), strict=True)

    def ignored(output: Tensor) -> bool:
        return records.per_token(output.name, len(output.shape), task)

    return [
        *(port("in", same, padding.get(same[0].name, "any")) for same in inputs),
        *(port("out", same, "ignore" if ignored(same[0]) else "–") for same in outputs),
    ]


def port(way: Literal["in", "out"], same: Sequence[Tensor], padding: str) -> Port:
    """One tensor of every function as a row. `about` is the same in all of them."""
    sizes = zip(*(t.shape for t in same), strict=True)
    shape = "×".join(str(size[0]) if len(set(size)) == 1 else "L" for size in sizes)
    return Port(way, same[0].name, shape, same[0].dtype, same[0].about, padding)
