"""What the linter says of a package."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from hft2ane.records.lint import Device, Finding, Lint, Placed
from hft2ane.terminal.console import dimensions, screen, styled, table

SHOWN = 5  # findings of one rule


def show_lint(lint: Lint) -> None:
    """The findings by rule with what to do about them, and how much of each function will run where."""
    from hft2ane.mil.lint import RULES

    console = screen()
    console.print(f"[bold]{escape(lint.package)}[/]")
    by_rule: dict[str, list[Finding]] = {}
    for finding in lint.findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    for rule, findings in by_rule.items():
        fix = RULES[rule].fix
        console.print(f"\n{styled(RULES[rule].severity)} [bold]{rule}[/]  {escape(fix)}")
        made = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        made.add_column(width=2)
        made.add_column(justify="right", no_wrap=True)
        made.add_column(overflow="fold")
        made.add_column(overflow="fold", style="dim")
        for finding in findings[:SHOWN]:
            made.add_row("", f"{finding.count} ×", escape(finding.message), escape(place(finding, lint)))
        console.print(made)
        if more := findings[SHOWN:]:
            console.print(f"    [dim]and {sum(each.count for each in more)} × elsewhere: --json[/]")
    counts = Counter(finding.severity for finding in lint.findings)
    words = (
        f"{counts['error']} error{'s'[counts['error'] == 1 :]}",
        f"{counts['warning']} warning{'s'[counts['warning'] == 1 :]}",
    )
    console.print("\n" + (f"{', '.join(words)}, {counts['info']} info" if lint.findings else "no findings"))
    show_placed(lint.placed)
    console.print("[dim]A prediction from the file; work is in floating-point operations. The rules: docs/lint.md[/]")


def show_placed(places: Sequence[Placed]) -> None:
    """Shares by device, rounded down so that 100 % means all."""
    devices: tuple[Device, ...] = ("ane", "gpu", "cpu", "unknown")
    seen = [d for d in devices if d != "gpu" or any(d in (p.measured or p).share_of_ops for p in places)]
    made = table("", "", "function", "of", *seen, right=seen)

    def add(what: str, function: str, of: str, shares: Mapping[Device, float]) -> None:
        made.add_row(what, escape(function), of, *(percent(shares.get(device, 0)) for device in seen))

    for each in places:
        add("predicted", each.function, f"{each.ops} operations", each.share_of_ops)
        add("", "", flops(each.work), each.share_of_work)
        if each.measured:
            add("measured", "", f"{each.measured.ops} operations", each.measured.share_of_ops)
            add("", "", "their work", each.measured.share_of_work)
            if each.measured.share_of_cost:
                add("", "", "their cost to Core ML", each.measured.share_of_cost)
    screen().print(made)


def percent(share: float) -> str:
    return f"{math.floor(share * 1e3 + 1e-6) / 10:.1f} %"


def flops(work: float) -> str:
    """`1.4 GFLOP`"""
    step = min(max(int(math.log10(max(work, 1))) // 3, 0), 4)
    return f"{work / 1000**step:.3g} {('', 'k', 'M', 'G', 'T')[step]}FLOP"


def place(finding: Finding, lint: Lint) -> str:
    """The layers; in which functions, where that is not all of them; and the operation's type and shape."""
    few = len(finding.functions) < len(lint.placed)
    functions = f"{', '.join(finding.functions)}: " if few else ""
    shape = f"{finding.type} {dimensions(finding.shape)}" if finding.type else ""
    return f"{functions}{finding.layer} {shape}".strip()
