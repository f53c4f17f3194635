"""The pages: what was collected -> HTML.

Whatever upstream or the Hub wrote is escaped, and freed of control characters. The same records give the same bytes.
"""

import functools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hft2ane import keys
from hft2ane.card.markdown import by_output, clean, cosine, down, share
from hft2ane.card.readme import is_hub, saying, short_name
from hft2ane.card.tables import placements, warnings
from hft2ane.records.fidelity import Fidelity, Measure
from hft2ane.records.lint import WEIGHTS_MOST
from hft2ane.records.night import Outcome, Run
from hft2ane.site.collect import STATUSES, Catalogue, Collected, Listing, Offer, Plot, Release, Request

STATIC = Path(__file__).parent / "static"
SIZES = (10, 25, 50, 100, 250, 500, 1000)  # MB, and dB below: what one can filter by
EXACT = (80, 70, 60, 50, 40, 30)
WORST = 5  # inputs that a page names
# What a failure of each class means for a reader; its own message says the rest.
KINDS: Mapping[str, str] = {
    "AccessDenied": "The original is gated or private.",
    "TokenRefused": "We were not let in to publish it; nothing is wrong with the model.",
    "ModelNotFound": "The original is not there any more.",
    "RevisionNotFound": "The revision asked for is not there any more.",
    "UnsafeFormat": "It has pickle weights or code of its own, and neither is ever loaded.",
    "CorruptFile": "A file of the original is not what the Hub says it is.",
    "UnknownFamily": "Nobody has rewritten this architecture for the Neural Engine yet.",
    "UnknownTask": "The checkpoint does not say what it is for, or its family has no such task here.",
    "UnsupportedConfig": "One of its settings is not reproduced, and a model that differs is not published.",
    "MissingWeights": "The checkpoint lacks weights that its task needs.",
    "TooLarge": "It has more weights than the system takes for the Neural Engine.",
    "ExportError": "It cannot be written as a Core ML program.",
    "GateFailed": "It came out less exact than the gate asks for.",
    "LicenseError": "Its licence is unknown, has changed, or does not allow to pass a converted copy on.",
    "OverLimit": "Its conversion took more time or memory than it may.",
    "HubUnavailable": "The Hub did not answer; nothing is wrong with the model.",
    "NoSpace": "A disk was full; nothing is wrong with the model.",
    "NoWorker": "No machine was free for it; nothing is wrong with the model.",
    "WorkerLost": "The machine was lost while it converted; nothing is wrong with the model.",
    "WorkerMismatch": "The machine was not set up as it should be; nothing is wrong with the model.",
}


def pages(found: Collected, images: bool) -> dict[str, bytes]:
    """By path. `images`: the plots are beside the pages, see `picture`; else they are shown from the Hub."""
    catalogue, environment = found.catalogue, templates()
    common = {"catalogue": catalogue, "hub": catalogue.hub, "kinds": KINDS}
    there = {each.repo: each for each in catalogue.models}
    requested = {each.repo: each for each in catalogue.requested}
    made = {
        "index.html": environment.get_template("index.html").render(common | index(catalogue)),
        "runs.html": environment.get_template("runs.html").render(
            common, nights=[night(run, there) for run in found.runs]
        ),
        "requested.html": environment.get_template("requested.html").render(
            common, there=there, groups=groups(catalogue.requested), families=families(), weights=WEIGHTS_MOST
        ),
    }
    model = environment.get_template("model.html")
    for release, listed in zip(found.releases, catalogue.models, strict=True):
        shown = [
            (picture(release, plot) if images else source(catalogue, release, plot), plot) for plot in release.plots
        ]
        made[listed.page] = model.render(
            common, **facts(release, listed), request=requested.get(listed.repo), plots=shown
        )
    return {path: text.encode() for path, text in made.items()} | {
        path.name: path.read_bytes() for path in sorted(STATIC.iterdir())
    }


def picture(release: Release, plot: Plot) -> str:
    """The path of a plot's copy, below models/. With the commit, so that no browser shows an older one."""
    return f"{release.name}-{release.commit[:12]}/{plot.path.rpartition('/')[2]}"


def source(catalogue: Catalogue, release: Release, plot: Plot) -> str:
    """The address of a plot on the Hub."""
    return f"{catalogue.hub}/{release.repo}/resolve/{release.commit}/{plot.path}"


# ---------------------------------------------------------------------------------------------- the list of models


@dataclass(frozen=True)
class Row:
    """A line of the index. `offers`: `MB,dB,system` of each variant, which filters compare; `note`: which protocol its
    figure is of, None for that of most."""

    listed: Listing
    offers: str
    size: str
    psnr: str
    system: str
    note: int | None


def index(catalogue: Catalogue) -> dict[str, Any]:
    """`filters`: (name, label, what stands for no choice, (value, word) of each choice)."""
    models = catalogue.models
    counts = Counter(each.protocol for each in models)
    protocols = sorted(counts, key=lambda name: (-counts[name], name))
    minimum = {(release_of(each.minimum_os), systems(each.minimum_os)) for one in models for each in one.variants}

    def names(words: Iterable[str]) -> list[tuple[str, str]]:
        return [(word, word) for word in sorted(set(words))]

    return {
        "rows": [row(each, protocols.index(each.protocol)) for each in models],
        "protocols": protocols,
        "filters": [
            ("task", "Task", "any", names(each.task for each in models)),
            ("family", "Family", "any", names(each.family for each in models)),
            ("license", "Licence", "any", names(each.license for each in models)),
            ("os", "Runs on", "any system", sorted(minimum)),
            ("size", "Size", "any", [(size, f"at most {size} MB") for size in SIZES]),
            ("psnr", "Exactness", "any", [(least, f"at least {least} dB") for least in EXACT]),
        ],
    }


def row(listed: Listing, protocol: int) -> Row:
    offers = listed.variants
    first = f"{min(offers, key=lambda each: release_of(each.minimum_os)).minimum_os}"
    return Row(
        listed=listed,
        offers=";".join(
            f"{each.size / 1e6:.1f},{floor(each.psnr_worst)},{release_of(each.minimum_os)}" for each in offers
        ),
        size=between([each.size for each in offers], lambda size: megabytes(int(size))),
        psnr=between([each.psnr_worst for each in offers], down),
        system=systems(first),
        note=protocol + 1 if protocol else None,
    )


def between(values: Sequence[float], word: Any) -> str:
    """`17.5–45.1`, or one figure where both ends are the same."""
    return "–".join(dict.fromkeys(word(value) for value in (min(values), max(values))))


def release_of(minimum: str) -> int:
    """`iOS 16 / macOS 13` -> 16"""
    found = re.search(r"\d+", minimum)
    return int(found[0]) if found else 0


# ---------------------------------------------------------------------------------------------- the page of a model


@dataclass(frozen=True)
class Bad:
    """An input that came out among the worst."""

    bar: Fidelity
    measure: Measure


def facts(release: Release, listed: Listing) -> dict[str, Any]:
    made, report = release.conversion, release.report
    artefacts = [bar for bar in report.fidelity if not bar.is_rewrite]
    return {
        "release": release,
        "listed": listed,
        "made": made,
        "report": report,
        "what": saying(made),
        "name": short_name(made.source),
        "on_hub": is_hub(made.source),
        "bars": [*artefacts, *(bar for bar in report.fidelity if bar.is_rewrite)],
        "backends": sorted({bar.backend for bar in artefacts}),
        "worst": worst(artefacts),
        "placements": placements(made.packages, report),
        "warnings": warnings(report),
        "tools": ", ".join(f"{name} {v}" for name, v in [("hft2ane", made.hft2ane), *made.toolchain.items()]),
        "latency": {each.variant: latency(each) for each in listed.variants},
    }


def worst(bars: Iterable[Fidelity]) -> list[Bad]:
    """The inputs with the least PSNR, each text once."""
    found: dict[str, Bad] = {}
    for bad in sorted((Bad(bar, m) for bar in bars for m in bar.measures), key=lambda each: each.measure.psnr_min):
        found.setdefault(bad.measure.worst, bad)
    return list(found.values())[:WORST]


def latency(offer: Offer) -> str:
    return ", ".join(f"{ms:.2f} ms ({name})" for name, ms in offer.latency_ms.items()) or "not measured"


# ---------------------------------------------------------------------------------------------- runs and requests


@dataclass(frozen=True)
class Failures:
    """Those of one run that have a signature in common; `fresh`: models that did not fail so in the run before."""

    signature: str
    kind: str
    outcomes: tuple[Outcome, ...]
    fresh: frozenset[str]


@dataclass(frozen=True)
class Night:
    """A run as it is shown; `pages`: of the models that have one, by repo."""

    run: Run
    failures: tuple[Failures, ...]
    done: tuple[Outcome, ...]
    waiting: tuple[Outcome, ...]
    pages: Mapping[str, str]

    def count(self, status: str) -> int:
        return sum(each.status == status for each in self.run.outcomes)


def night(run: Run, there: Mapping[str, Listing]) -> Night:
    def of(*statuses: str) -> list[Outcome]:
        return sorted((each for each in run.outcomes if each.status in statuses), key=lambda each: each.id.lower())

    alike: dict[str, list[Outcome]] = {}
    for each in of("failed"):
        alike.setdefault(each.signature or f"{each.kind}: {each.error}", []).append(each)
    fresh = frozenset(run.failed)
    failures = [
        Failures(signature, each[0].kind or "", tuple(sorted(each, key=lambda one: one.id not in fresh)), fresh)
        for signature, each in alike.items()
    ]
    failures.sort(key=lambda each: (not any(one.id in each.fresh for one in each.outcomes), -len(each.outcomes)))
    return Night(
        run,
        tuple(failures),
        tuple(of("published", "unchanged")),
        tuple(sorted(of("blocked", "held", "orphan"), key=lambda each: each.status)),
        {each.repo: there[each.repo].page for each in run.outcomes if each.repo in there},
    )


def groups(requested: Sequence[Request]) -> list[tuple[str, list[Request]]]:
    """What is not there by status, and last what is there in an earlier version."""
    named = {
        "failed": "Tried, and not possible so far",
        "blocked": "Not possible as they are",
        "paused": "Paused by us",
        "held": "Held back for now",
        "waiting": "Waiting for their turn",
    }
    found = [(named[s], [each for each in requested if each.status == s and not each.published]) for s in STATUSES]
    found.append(("Published, but not in their newest form", [each for each in requested if each.published]))
    return [(title, each) for title, each in found if each]


def families() -> list[str]:
    """By their files, as importing them takes torch."""
    files = (path.stem for path in (keys.CODE / "families").glob("*.py"))
    return sorted(name.replace("_", "-") for name in files if not name.startswith("_"))


# ---------------------------------------------------------------------------------------------- HTML


@functools.cache
def templates() -> Environment:
    """Templates in which every value is escaped; one that is not there fails."""
    environment = Environment(
        loader=PackageLoader("hft2ane.site"),
        autoescape=True,
        finalize=plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (address, by_output, code, cosine, day, down, megabytes, minute, plural, share, span, systems, url, word)
    environment.filters.update({each.__name__: each for each in filters})
    return environment


def plain(value: object) -> object:
    """One line of text without control characters, which could turn the direction of what follows."""
    if value is None:
        raise TypeError("a page never shows a value that is not there")
    text = value if isinstance(value, str) else str(value)
    return text if isinstance(text, Markup) or text.isprintable() else clean(text)


def code(text: str) -> Markup:
    """Lines of code as they are, but for control characters."""
    return escape("\n".join("".join(c if c.isprintable() else " " for c in line) for line in text.split("\n")))


def url(value: object) -> Markup:
    """As (part of) a link's target. Nothing of it is special in HTML, with quotes or without."""
    return Markup(quote(str(value), safe="/"))


def address(value: str) -> Markup:
    """A link's target that is an address, or a path of this site."""
    return escape(quote(value, safe="/:?=&#%+@,~"))


def word(value: str) -> str:
    """As one word of a shell line."""
    return shlex.quote(clean(value))


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}" if size < 1e8 else f"{size / 1e6:.0f}"


def floor(psnr: float) -> str:
    return "300" if (text := down(psnr)) == "equal" else text


def systems(minimum: str) -> str:
    """`iOS 16 / macOS 13` -> `iOS 16 · macOS 13`"""
    return minimum.replace(" / ", " · ")


def day(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d}"


def minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def span(seconds: float) -> str:
    """`1 h 12 min`"""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
