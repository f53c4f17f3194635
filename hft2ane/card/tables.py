"""The rows of the card's tables, from the records."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hft2ane import measurements
from hft2ane.card.markdown import code, down, share, systems
from hft2ane.card.plots import Sized
from hft2ane.card.words import PRECISIONS, WARNINGS
from hft2ane.records.fidelity import Measure
from hft2ane.records.lint import Finding
from hft2ane.records.mac import ENGINE, Latency, Measurement, Unit
from hft2ane.records.package import Package, Part, Tensor, per_token
from hft2ane.records.recipe import Task
from hft2ane.records.release import Conversion, Report
from hft2ane.runtime.settings import Settings

STATES_MASK = "encoder_attention_mask"
WORST = 3  # inputs that are shown of one package


def least_psnr(report: Report) -> dict[str, float]:
    """The worst figure of each bar, over everything that evaluated it."""
    least: dict[str, float] = {}
    for bar in report.fidelity:
        least[bar.what] = min(bar.psnr_min, least.get(bar.what, math.inf))
    return least


def specification(conversion: Conversion, report: Report) -> list[list[object]]:
    """The first table, by column: its heading, and a cell for each package. What one chooses by comes first, as a phone
    shows no more. Figures are the least of all that evaluated the package."""
    packages = conversion.packages
    bars = {p.what: [bar for bar in report.fidelity if bar.what == p.what] for p in packages}
    agreed = {what: [bar.top1 for bar in of if bar.top1 is not None] for what, of in bars.items()}
    agreement: list[object] = ["Top-1 agreement¹", *(share(min(agreed[p.what], default=None)) for p in packages)]
    return [
        ["Variant", *(", ".join(filter(None, [PRECISIONS[p.variant][1], p.part])) for p in packages)],
        ["Size, MB", *(f"{p.size / 1e6:.1f}" for p in packages)],
        ["PSNR¹ worst row, dB", *(down(min(bar.psnr_min for bar in bars[p.what])) for p in packages)],
        ["PSNR¹ median, dB", *(down(min(bar.psnr_median for bar in bars[p.what])) for p in packages)],
        *([agreement] if any(agreed.values()) else []),
        ["Length, tokens", *(", ".join(str(f.length) for f in p.functions) for p in packages)],
        ["Minimum OS", *(systems(p.minimum_os) for p in packages)],
        *on_a_mac(packages, report),
        ["File", *(code(p.file) for p in packages)],
    ]


def on_a_mac(packages: Sequence[Package], report: Report) -> list[list[object]]:
    """The least share of any function on any Mac, and for each Mac the latency on what an app would ask for."""
    if not report.macs:
        return [["Neural Engine share, latency", *("not measured" for _ in packages)]]
    engine: dict[str, float] = {}
    for found in (each for m in report.macs for each in m.residency):
        for measured in (placed.measured for placed in found.placed if placed.measured):
            least = measured.share_of_ops.get("ane", 0.0)
            engine[found.variant] = min(least, engine.get(found.variant, least))

    def latency(package: Package, m: Measurement, unit: Unit) -> str:
        tokens = {f.name: f"{f.length} tokens" for f in package.functions}
        own = [each for each in m.latency if (each.variant, each.unit) == (package.what, unit)]
        return ", ".join(f"{each.median_ms:.2f} ms ({tokens[each.function]})" for each in own) or "not measured"

    shares = (share(engine[p.what]) if p.what in engine else "not measured" for p in packages)
    rows: list[list[object]] = [["Neural Engine share²", *shares]]
    for m in report.macs:
        unit: Unit = ENGINE if ENGINE in m.units else m.units[0]
        rows.append([f"Latency², {m.mac.short}, {unit}", *(latency(p, m, unit) for p in packages)])
    return rows


def accuracy(m: Measurement, of: Latency) -> float | None:
    """PSNR of the worst row in the same package on the same unit; None: it did not compute them all."""
    backend = measurements.BACKEND.format(of.unit)
    return next((bar.psnr_min for bar in m.fidelity if (bar.what, bar.backend) == (of.variant, backend)), None)


def worst(report: Report) -> list[tuple[str, Measure]]:
    """The inputs on which packages are furthest from the original: a few of one package, the worst of several."""
    bars = [bar for bar in report.fidelity if not bar.is_rewrite]
    backends = len({bar.backend for bar in bars}) > 1
    found = []
    for bar in bars:
        texts: dict[str, Measure] = {}
        for m in sorted(bar.measures, key=lambda m: m.psnr_min):
            texts.setdefault(m.worst, m)
        name = f"{bar.what}, {bar.backend}" if backends else bar.what
        found += [(name, m) for m in list(texts.values())[: WORST if len(bars) == 1 else 1]]
    return found


def sized(conversion: Conversion, report: Report) -> tuple[Sized, ...]:
    """Each variant, with all its parts."""
    found = []
    for variant in dict.fromkeys(package.variant for package in conversion.packages):
        packages = [package for package in conversion.packages if package.variant == variant]
        whats = {package.what for package in packages}
        bars = [bar for bar in report.fidelity if bar.what in whats]
        least, median = min(bar.psnr_min for bar in bars), min(bar.psnr_median for bar in bars)
        found.append(Sized(variant, sum(package.size for package in packages), least, median))
    return tuple(found)


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
    """A rule that some packages break, in `count` operations of a function, of the types named, and what that means for
    an app."""

    rule: str
    text: str
    count: int
    types: str


def warnings(report: Report) -> list[Warned]:
    """One a rule, whichever package and function it is in; `count` is of the function that has most."""
    found: dict[str, list[Finding]] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for each in report.lint:
        for finding in (finding for finding in each.findings if finding.severity == "warning"):
            found.setdefault(finding.rule, []).append(finding)
            for function in finding.functions:
                counts[finding.rule, each.package, function] += finding.count // len(finding.functions)
    return [
        Warned(
            rule,
            WARNINGS.get(rule, findings[0].message),
            max(count for (name, _, _), count in counts.items() if name == rule),
            ", ".join(dict.fromkeys(finding.type for finding in findings if finding.type)),
        )
        for rule, findings in found.items()
    ]


def ranges(settings: Settings, part: Part) -> dict[str, str]:
    """What ids may be, by the input's name, as far as config.json says it."""
    own = settings.ids.get(part, settings.ids[""])
    found = {name: f"0 … {size - 1}" for name, size in own.items() if size > 1}
    return {"attention_mask": "0, 1", "encoder_attention_mask": "0, 1", **found}


@dataclass(frozen=True)
class Port:
    """A row of the table of inputs and outputs."""

    way: Literal["in", "out"]
    name: str
    shape: str
    dtype: str
    range: str
    padding: str
    about: str


def contract(
    package: Package, pad: int, task: Task, ranges: Mapping[str, str], peaks: Mapping[str, float]
) -> list[Port]:
    """What goes in and out, the same for all functions but for the length, which is L where they differ.

    `ranges`: of inputs, by name; `peaks`: the largest magnitude that each output was seen to have."""
    padding = {"input_ids": str(pad), **dict.fromkeys(("attention_mask", "token_type_ids", STATES_MASK), "0")}
    inputs = zip(*(function.inputs for function in package.functions), strict=True)
    outputs = zip(*(function.outputs for function in package.functions), strict=True)

    def port(way: Literal["in", "out"], same: Sequence[Tensor], range: str, padding: str) -> Port:
        """One tensor of every function as a row. `about` is the same in all of them."""
        sizes = zip(*(t.shape for t in same), strict=True)
        shape = "×".join(str(size[0]) if len(set(size)) == 1 else "L" for size in sizes)
        return Port(way, same[0].name, shape, same[0].dtype, range, padding, same[0].about)

    def seen(output: str) -> str:
        return f"±{peaks[output]:.3g}" if output in peaks else "–"

    def ignored(output: Tensor) -> bool:
        return per_token(output.name, len(output.shape), task)

    return [
        *(port("in", same, ranges.get(same[0].name, "–"), padding.get(same[0].name, "any")) for same in inputs),
        *(port("out", same, seen(same[0].name), "ignore" if ignored(same[0]) else "–") for same in outputs),
    ]


def peaks(report: Report) -> dict[str, float]:
    """The largest magnitude of each output of the original over the protocol's inputs; none in older reports."""
    found: dict[str, float] = {}
    for m in (m for bar in report.fidelity for m in bar.measures):
        if m.peak is not None:
            found[m.output] = max(m.peak, found.get(m.output, 0.0))
    return found
