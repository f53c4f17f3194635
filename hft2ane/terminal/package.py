"""What is in a package, what it computes, and how far that is from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from hft2ane.terminal.console import dimensions, screen, table

if TYPE_CHECKING:  # they bring torch and numpy
    from hft2ane.mil.compare import Compared, Layer
    from hft2ane.mil.evaluate import Array
    from hft2ane.mil.inspect import Summary


def show_package(path: Path, summary: Summary, identity: str) -> None:
    """Contract by function, operations beside one another, since functions mostly have the same."""
    console = screen()
    console.print(f"[bold]{escape(path.name)}[/]")
    console.print(f"specification {summary.specification_version}, from {summary.system} on")
    kinds = ", ".join(f"{megabytes(size)} of {kind}" for kind, size in summary.weights.items() if size >= 5000)
    console.print(f"{megabytes(summary.weight_bytes)} of weights" + (f": {kinds}" if kinds else ""))
    console.print(f"digest {identity}")
    for function in summary.functions:
        mark = " (default)" if function.name == summary.default and len(summary.functions) > 1 else ""
        made = table(f"\nfunction {escape(function.name)}{mark}", "", "name", "shape", "type")
        for kind, ports in (("in", function.inputs), ("out", function.outputs), ("state", function.states)):
            for port in ports:
                shape = " or ".join(port.may_be) or dimensions(port.shape, " × ")
                made.add_row(kind, escape(port.name), shape, port.dtype)
        console.print(made)
    alike = all(function.ops == summary.functions[0].ops for function in summary.functions)
    columns = summary.functions[:1] if alike else summary.functions
    names = ["number" if alike else escape(function.name) for function in columns]
    made = table(
        "\noperations" + (" of each function" if alike and len(summary.functions) > 1 else ""), "", *names, right=names
    )
    for op in dict.fromkeys(op for function in columns for op in function.ops):
        made.add_row(op, *(str(function.ops.get(op, 0)) for function in columns))
    made.add_row("[bold]all[/]", *(str(sum(function.ops.values())) for function in columns))
    console.print(made)
    made = table("\nmetadata", "", "", whole=("key",))
    for key, value in (*summary.about.items(), *sorted(summary.metadata.items())):
        made.add_row(escape(key), escape(value))
    if summary.about or summary.metadata:
        console.print(made)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 5e4 else f"{size / 1e3:.1f} kB"


def show_arrays(arrays: Mapping[str, Array]) -> None:
    numeric = ("least", "greatest", "mean")
    made = table(None, "output", "shape", "type", *numeric, "finite", right=numeric)
    for name, values in arrays.items():
        numbers = values.astype("float64")
        taken = (numbers.min(), numbers.max(), numbers.mean()) if values.size else ()
        figures = [f"{each:.6g}" for each in taken] or [""] * 3
        finite = bool((abs(numbers) < float("inf")).all())
        shown = "yes" if finite else "[red]no[/]"
        made.add_row(escape(name), dimensions(values.shape, " × "), str(values.dtype), *figures, shown)
    screen().print(made)


def show_times(times: Mapping[str, Sequence[float]]) -> None:
    """`times`: seconds of each operation, by type."""
    whole = sum(map(sum, times.values()))
    columns = ("operation", "number", "ms", "share")
    made = table(f"\n{whole * 1e3:.1f} ms in operations", *columns, right=columns[1:])
    for name, seconds in sorted(times.items(), key=lambda each: -sum(each[1])):
        spent = sum(seconds)
        made.add_row(escape(name), str(len(seconds)), f"{spent * 1e3:.2f}", f"{spent / whole:.1%}")
    screen().print(made)


def show_compared(found: Sequence[Compared], gate: float | None) -> None:
    made = table(None, "output", "PSNR", right=("PSNR",))
    for each in found:
        style = "" if gate is None else "red" if each.below(gate) else "green"
        made.add_row(escape(each.name), decibels(each), style=style)
    screen().print(made)


def show_layers(layers: Sequence[Layer], least: float) -> None:
    """Then the first value below `least` dB, and what makes it."""
    made = table("\nby layer", "layer", "values", "PSNR", "worst value", right=("values", "PSNR"), whole=("layer",))
    parted = next(((layer, value) for layer in layers for value in layer.values if value.below(least)), None)
    for layer in layers:
        row = (
            escape(layer.name),
            str(len(layer.values)),
            decibels(layer.worst),
            escape(inner(layer.worst.name, layer)),
        )
        made.add_row(*row, style="red" if parted and layer is parted[0] else "")
    screen().print(made)
    if parted:
        value = parted[1]
        screen().print(f"first below {least:g} dB: {escape(value.name)}, {decibels(value)}")


def inner(value: str, layer: Layer) -> str:
    """Its name without the layer's, which stands beside it."""
    return value.removeprefix(f"{layer.name}_") if value != layer.name else ""


def decibels(value: Compared) -> str:
    if value.psnr is None:
        return escape(value.why)
    return "equal" if value.psnr == float("inf") else f"{value.psnr:.1f} dB"
