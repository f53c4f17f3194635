"""Values on their way into Markdown: everything is escaped there that no filter has made Markdown."""

import functools
import html
import json
import math
import re
import shlex
from collections.abc import Sequence
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hft2ane.errors import BadInput
from hft2ane.records.fidelity import CAP, Measure


@functools.cache
def environment() -> Environment:
    """Templates in which every value is escaped that no filter has made Markdown; one that is not there fails."""
    templates = Environment(
        loader=PackageLoader("hft2ane.card"),
        autoescape=True,
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (by_output, row, code, plain, shell, literal, url, down, share, cosine, systems)
    templates.filters.update({each.__name__: each for each in filters})
    return templates


def clean(text: str) -> str:
    """One line without control characters, which could end a cell, a span or a block."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escape(value: object) -> Markup:
    """Any value as plain text in Markdown."""
    if isinstance(value, Markup):
        return value
    if value is None:
        raise TypeError("a card never shows a value that is not there")
    text = re.sub(r"([\\`*_{}\[\]#|~$!])", r"\\\1", html.escape(clean(str(value)), quote=False))
    return Markup(re.sub(r"^(?:(\d+)(?=[.)](?:\s|$))|(?=[-+=]))", r"\1\\", text))  # no list, no underline


def code(value: object) -> Markup:
    """As code, also in a table cell: in backticks, or where those cannot hold it, in HTML with entities only."""
    text = clean(str(value))
    if re.search(r"[`|\\]", text) or not text:
        return Markup("<code>" + re.sub(r"[!-/:-@\[-`{-~]", lambda m: f"&#{ord(m[0])};", text) + "</code>")
    return Markup(f"`{text}`")


def by_output(measures: Sequence[Measure]) -> list[Measure]:
    """In the order in which one reads them: output, length, then inputs as they were measured."""
    outputs = [m.output for m in measures]
    return sorted(measures, key=lambda m: (outputs.index(m.output), m.length))


def row(cells: Sequence[object]) -> Markup:
    """A table's row."""
    return Markup("| " + " | ".join(map(escape, cells)) + " |")


def plain(value: object) -> Markup:
    """As it is, inside code. BadInput: it has more than the characters of a name."""
    if not re.fullmatch(r"[\w.-]+", str(value)):
        raise BadInput(
            f"{str(value)[:200]!r} cannot stand in the card's code: a name has letters, digits, '.', '_', '-'"
        )
    return Markup(str(value))


def shell(value: object) -> Markup:
    """As one word of a shell line."""
    return Markup(shlex.quote(clean(str(value))))


def literal(value: object) -> Markup:
    """As a string of Python or Swift."""
    return Markup(json.dumps(clean(str(value)), ensure_ascii=False))


def url(value: object) -> Markup:
    """As (part of) a link's target."""
    return Markup(quote(str(value), safe="/"))


def down(value: float) -> str:
    """A figure in dB, rounded down."""
    return "equal" if value >= CAP else f"{math.floor(value * 10 + 1e-6) / 10:.1f}"


def share(value: float | None) -> str:
    """Rounded down, so that 100% means all. None: the output is not logits."""
    return "–" if value is None else f"{math.floor(value * 1e4 + 1e-6) / 100:.6g}%"


def cosine(value: float) -> str:
    """Rounded down."""
    return f"{math.floor(value * 1e6 + 1e-3) / 1e6:.6f}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def systems(minimum: str) -> str:
    """`iOS 16 / macOS 13` -> `iOS 16, macOS 13`."""
    return minimum.replace(" / ", ", ")
