"""What was measured of a release: its figures, its ranges, on Macs, and made again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from hft2ane import measurements, records
from hft2ane.records.mac import Measurement, Residency
from hft2ane.records.package import Audit, Exported, Range
from hft2ane.records.release import Report
from hft2ane.terminal.console import number, screen, table
from hft2ane.terminal.lint import show_placed

if TYPE_CHECKING:  # they bring torch and numpy
    from hft2ane.rebuild import Rebuilt


def show_report(report: Report) -> None:
    title = f"{report.protocol}: PSNR in dB against transformers in fp32"
    right = ("tokens", "rows", "all", "worst row", "median", "top-1")
    made = table(title, "", "by", "output", "tokens", "inputs", *right[1:], right=right)
    for bar_ in report.fidelity:
        for m in bar_.measures:
            agreed = "" if m.top1 is None else f"{m.top1:.1%}"
            figures = (f"{m.psnr:.1f}", f"{m.psnr_min:.1f}", f"{m.psnr_median:.1f}", agreed)
            made.add_row(bar_.what, bar_.backend, m.output, str(m.length), m.inputs, str(m.rows), *figures)
    console = screen()
    console.print(made)
    for mac in report.macs:
        show_measurement(mac)
    for text in report.not_measured:
        console.print(f"[dim]Not measured here: {escape(text)}[/]")


def show_measurement(m: Measurement) -> None:
    """What Core ML itself took, computed and planned on one Mac."""
    console, right = screen(), ("PSNR dB", "median ms", "p90", "least", "load s", "again", "peak MB")
    made = table(f"\n{m.mac}", "", "function", "on", *right, right=right)
    least = {(bar.what, bar.backend): bar.psnr_min for bar in m.fidelity}
    for each in m.latency:
        figures = (each.median_ms, each.p90_ms, each.least_ms)
        made.add_row(
            escape(each.variant),
            escape(each.function),
            each.unit,
            number(least.get((each.variant, measurements.BACKEND.format(each.unit))), 1),
            *(f"{value:.2f}" for value in figures),
            f"{each.load_s:.1f}",
            f"{each.reload_s:.1f}",
            f"{(each.footprint or each.peak) / 1e6:.0f}",
        )
    if m.latency:
        console.print(made)
    for found in m.residency:
        console.print(f"\n[bold]{escape(found.variant)}[/]")
        show_placed(found.placed)
        show_off(found)
    for text in m.failures:
        console.print(f"[yellow]Below the gate: {escape(text)}[/]")
    for text in measurements.told(m):
        console.print(f"[dim]Not measured: {escape(text)}[/]")


def show_off(found: Residency) -> None:
    """What is not on the engine, and how the linter's rules did."""
    console, right = screen(), ("×", "of the cost")
    made = table("\nnot on the engine", "operation", "layer", "×", "on", "predicted", "of the cost", "why", right=right)
    for each in found.off:
        cost = "" if each.cost is None else f"{each.cost:.2%}"
        values = (each.type, each.layer, str(each.count), each.measured, each.predicted, cost, each.why)
        made.add_row(*map(escape, values))
    if found.off:
        console.print(made)
    made = table("\npredicted and measured", "rule", "operation", "predicted", "measured", "×", right=("×",))
    for row in found.calibration:
        style = "" if row.predicted == row.measured else "yellow"
        made.add_row(escape(row.rule), escape(row.type), row.predicted, row.measured, str(row.ops), style=style)
    console.print(made)


def show_ranges(audit: Audit) -> None:
    """In the order in which they are computed: layers that differ by their numbers are one row, of the one with the
    least headroom. What does not fit is said in words below."""
    rows: dict[tuple[str, str], tuple[int, Range]] = {}
    for r in audit.layers:
        of = (re.sub(r"(?<=\.)\d+(?=\.|$)", "{i}", r.path), r.kind)
        count, least = rows.get(of, (0, r))
        rows[of] = (count + 1, min(least, r, key=lambda each: each.headroom_bits))
    console, right = screen(), ("×", "largest", "bits", "lost")
    made = table(
        f"fp16 ranges on {audit.rows} rows, {audit.tokens} tokens",
        "layer",
        "values",
        *right,
        "in",
        right=right,
        whole=("layer",),
    )
    for (layer, _), (count, r) in rows.items():
        numbered = re.search(r"\.(\d+)(?:\.|$)", r.path)
        worst = f"layer {numbered[1]}" if numbered and count > 1 else ""
        figures = (str(count), f"{r.max:.5g}", f"{r.headroom_bits:.1f}", f"{r.subnormal:.1%}")
        made.add_row(escape((layer if count > 1 else r.path) or "model"), r.kind, *figures, worst)
    console.print(made)
    console.print(
        "[dim]largest: magnitude, of the layer with the least headroom to 65504; bits: that headroom; "
        "lost: share below fp16's least normal number. Every layer: ranges.json[/]"
    )
    for c in audit.conditioned:
        console.print(
            f"{escape(c.path)} computes with 2^-{c.exponent} of its values: {c.kind} were up to {c.max_before:g}"
        )
    for text in audit.failures:
        console.print(f"[red]{escape(text)}[/]")


def show_release(folder: Path, release: Path) -> None:
    """What `convert` made, in a few lines."""
    exported, report = records.read(folder / "export.json", Exported), records.read(folder / "report.json", Report)
    console = screen()
    for package in exported.packages:
        console.print(f"[bold]{escape(str(release / package.file))}[/]")
        console.print(f"  {package.size / 1e6:.1f} MB, from {package.minimum_os}")
    wide = max(10, *(len(bar_.what) for bar_ in report.fidelity))
    for bar_ in report.fidelity:
        figures = f"{bar_.psnr_min:6.1f} dB at least, {bar_.psnr_median:.1f} dB median"
        console.print(f"  {bar_.what:{wide}} {figures} ({bar_.backend})")
    for each in report.greedy:
        written = (
            f"{each.equal} of {each.tokens} tokens as the original's, {each.same} of {each.texts} texts to the end"
        )
        console.print(f"  {each.what:{wide}} writes {written} ({each.backend})")
    console.print(f"  {'card':{wide}} {escape(str(release / 'README.md'))}")
    if (release / "tokenizer.json").is_file():
        console.print(f"  {'try it':{wide}} hft2ane try {escape(shlex.quote(str(release)))} TEXT", soft_wrap=True)
    for text in report.not_measured:
        console.print(f"  [dim]not measured here: {escape(text)}[/]")


def show_rebuilt(rebuilt: Rebuilt) -> None:
    """Which packages came out the same, and if not all did, what is to be blamed for it."""
    console = screen()
    for file, published, now in rebuilt.packages:
        how = "the same bytes" if now == published else f"not the same: published {published}, now {now}"
        console.print(f"{escape(file)}  {how}")
    if rebuilt.same:
        return
    if rebuilt.differences:
        console.print("Made otherwise than then, which may be why:")
        for line in rebuilt.differences:
            console.print(f"  {escape(line)}")
    else:
        console.print("Toolchain, code and machine are as then: only the bytes differ, which should not be.")
