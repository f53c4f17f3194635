"""The plots of a release, as PNG without a background, the same bytes each time."""

import contextlib
import io
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hft2ane.card.markdown import by_output, clean
from hft2ane.records.fidelity import Fidelity
from hft2ane.records.package import Audit

PSNR, SIZES, HEADROOM = "assets/psnr.png", "assets/sizes.png", "assets/fp16-headroom.png"
LABELS = 70  # letters that fit side by side below the headroom plot
GREY, GATE = "#7a828c", "#d1495b"  # readable on white and on near-black: the image has no background
COLOURS = ("#3b82f6", "#e08a1e", "#2ca25f", "#a06cd5", "#d45d9e", "#17a2b8", "#8a9a2b")
FORMS = ("o", "s", "^", "D", "v", "P", "X")  # a point of each variant, whatever colours one sees
PALETTE = 128  # colours of a picture, with their transparency
HEADROOM_KINDS = ("linear", "sum", "squares", "scores", "activation")  # each a line; the rest shares one


@dataclass(frozen=True)
class Sized:
    """A variant, all its packages taken together: bytes, and PSNR in dB."""

    variant: str
    size: int
    least: float
    median: float


def plot_psnr(bars: Sequence[Fidelity], protocol: str) -> bytes:
    """PNG: for every output and length a line, on it the worst row and the median of every set of inputs; of several
    packages or evaluations, of each of those."""
    measures = by_output([m for bar in bars for m in bar.measures])
    lines = list(dict.fromkeys((m.output, m.length) for m in measures))
    if len(bars) == 1:
        series = {kind: [m for m in measures if m.inputs == kind] for kind in dict.fromkeys(m.inputs for m in measures)}
    else:
        backends = len({bar.backend for bar in bars}) > 1
        series = {f"{bar.what}, {bar.backend}" if backends else bar.what: list(bar.measures) for bar in bars}
    gates = sorted({bar.gate for bar in bars})
    with drawing(8, 1.9 + len(lines) * (0.35 + 0.13 * len(series))) as (figure, axes, image):
        for n, (name, found) in enumerate(series.items()):
            rows = {line: [m for m in found if (m.output, m.length) == line] for line in lines}
            there = [line for line in lines if rows[line]]
            heights = [lines.index(line) + (n - (len(series) - 1) / 2) * 0.8 / len(series) for line in there]
            least = [min(m.psnr_min for m in rows[line]) for line in there]
            middle = [statistics.median(m.psnr_median for m in rows[line]) for line in there]
            colour = COLOURS[n % len(COLOURS)]
            axes.hlines(heights, least, middle, color=colour, linewidth=1.5, alpha=0.6)
            axes.scatter(middle, heights, marker="|", s=60, color=colour, linewidths=1.5)
            axes.scatter(least, heights, s=28, color=colour, label=clean(name), zorder=3)
            if len(gates) > 1:
                own, half = bars[n].gate, 0.4 / len(series)
                label = "gate of each" if n == len(series) - 1 else None
                above, below = ([height + side for height in heights] for side in (-half, half))
                axes.vlines([own] * len(heights), above, below, color=GATE, linewidth=2.5, label=label)
        if len(gates) == 1:
            axes.axvline(gates[0], color=GATE, linestyle="--", linewidth=1.5, label=f"gate, {gates[0]:g} dB")
        axes.set_yticks(range(len(lines)), [f"{clean(output)}\n{length} tokens" for output, length in lines])
        axes.set_ylim(len(lines) - 0.4, -0.6)
        figure.supxlabel(f"PSNR in dB, {protocol}: dot = worst row, stroke = median", fontsize=12)
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.4, columnspacing=1.4)
    return image.getvalue()


def plot_sizes(variants: Sequence[Sized], protocol: str) -> bytes:
    """PNG: a point for each variant, by its size and its worst row, and a stroke up to its median.

    Points may lie upon one another, so each has a form of its own, and those below are larger."""
    with drawing(8, 4) as (figure, axes, image):
        for n, each in enumerate(variants):
            colour, size = COLOURS[n % len(COLOURS)], each.size / 1e6
            axes.vlines(size, each.least, each.median, color=colour, linewidth=1.5, alpha=0.6)
            axes.scatter(size, each.median, marker="_", s=60, color=colour, linewidths=1.5)
            wide = 110 - 12 * n
            axes.scatter(size, each.least, marker=FORMS[n], s=wide, color=colour, label=each.variant, zorder=3)
        axes.margins(x=0.05, y=0.12)
        axes.set_xlim(left=0)
        axes.set_xlabel("size in MB; point = worst row, stroke = median")
        axes.set_ylabel(f"PSNR in dB, {protocol}")
        axes.grid(color=GREY, alpha=0.25, linewidth=0.8)
        figure.legend(loc="outside upper left", ncols=4, frameon=False, handletextpad=0.4, columnspacing=1.4)
    return image.getvalue()


def plot_headroom(audit: Audit) -> bytes:
    """PNG: for every kind of value a line over the layers, and a cross where conditioning found too little."""
    stages = list(dict.fromkeys(stage(r.path) for r in audit.layers))
    named = [kind for kind in HEADROOM_KINDS if any(r.kind == kind for r in audit.layers)]
    with drawing(8, 4.5) as (figure, axes, image):
        for n, kind in enumerate([*named, "all else"]):
            least: dict[str, float] = {}
            for r in audit.layers:
                if r.kind == kind or (kind == "all else" and r.kind not in named):
                    least[stage(r.path)] = min(r.headroom_bits, least.get(stage(r.path), math.inf))
            line = [least.get(name, math.nan) for name in stages]
            size = 7 - 0.8 * n  # so that one shows below another
            axes.plot(line, marker="o", markersize=size, color=COLOURS[n], linewidth=size / 2, label=kind)
        for n, c in enumerate(audit.conditioned):
            label = "before conditioning" if n == 0 else None
            place = stages.index(stage(c.path))
            axes.scatter(place, c.headroom_bits_before, marker="x", s=45, color=GATE, zorder=3, label=label)
        axes.axhline(0, color=GATE, linestyle="--", linewidth=1.5, label="overflow")
        crowded = len(stages) * max(map(len, stages)) > LABELS
        axes.set_xticks(range(len(stages)), stages, rotation=90 if crowded else 0)
        axes.set_ylabel("bits of headroom to 65504")
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.8)
        axes.tick_params(axis="x", length=0)
        figure.legend(loc="outside upper left", ncols=4, frameon=False, handletextpad=0.4, columnspacing=1.4)
    return image.getvalue()


def stage(path: str) -> str:
    """`encoder.blocks.3.attend.q` -> `blocks 3`; `encoder.norm` -> `norm`; the model's own operations -> `model`; a
    pair's `decoder.blocks.3.attend.q` -> `decoder blocks 3`."""
    numbered = re.search(r"(\w+)\.(\d+)(?:\.|$)", path)
    name = f"{numbered[1]} {numbered[2]}" if numbered else path.rpartition(".")[2] or "model"
    return f"decoder {name}" if path.startswith("decoder.") else name


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Any, Any, io.BytesIO]]:
    """A figure, in inches, with one diagram; at the end it is in the BytesIO as PNG, the same bytes every time."""
    import matplotlib
    from matplotlib.figure import Figure
    from PIL import Image

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for part in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
            matplotlib.rcParams[part] = GREY
        matplotlib.rcParams["font.size"], matplotlib.rcParams["text.parse_math"] = 12, False
        figure, image = Figure(figsize=(width, height), dpi=160, layout="constrained"), io.BytesIO()
        axes = figure.subplots()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        yield figure, axes, image
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", transparent=True, metadata={"Software": None})
        with Image.open(drawn) as colours:  # as a palette it has a third of the bytes
            colours.quantize(PALETTE, Image.Quantize.FASTOCTREE).save(image, format="png", optimize=True)
