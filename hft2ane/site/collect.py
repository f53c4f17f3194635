"""What the catalogue shows: the releases of an organisation, its last runs, and what is wanted and is not there.

A release is read at the commit of its newest version tag, so its pages never mix two versions.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from hft2ane import records, state
from hft2ane.card.tables import least_psnr
from hft2ane.card.words import LOSSY
from hft2ane.errors import BadInput, ModelNotFound
from hft2ane.hub import VERSION, Hub
from hft2ane.records import SCHEMA, STRICT
from hft2ane.records.mac import ENGINE
from hft2ane.records.night import Outcome, Run
from hft2ane.records.package import Package
from hft2ane.records.recipe import Task, Variant, Wanted
from hft2ane.records.release import Conversion, Report
from hft2ane.records.repo import Repo
from hft2ane.survey import MARK

THREADS = 8
IMAGE = re.compile(r"^!\[([^\]\n]*)\]\((assets/[\w.-]+\.png)\)$", re.MULTILINE)
SNIPPET = re.compile(r"^```(python|swift)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
Status = Literal["failed", "blocked", "paused", "held", "waiting"]
STATUSES: tuple[Status, ...] = ("failed", "blocked", "paused", "held", "waiting")


@dataclass(frozen=True)
class Plot:
    """A picture of the card: its path in the repo, and what it shows."""

    __pydantic_config__ = STRICT
    path: str
    about: str


@dataclass(frozen=True)
class Release:
    """models/<name>.json: a published model at one commit, with what its page takes over from its card.

    `snippets`: code, by language. The report's predictions for single operations are left out."""

    __pydantic_config__ = STRICT
    repo: str
    commit: str
    tag: str
    conversion: Conversion
    report: Report
    plots: tuple[Plot, ...]
    snippets: dict[str, str]
    schema: Literal[1] = SCHEMA

    @property
    def name(self) -> str:
        return self.repo.rpartition("/")[2]


@dataclass(frozen=True)
class Offer:
    """A variant of a model, of one file or of several. PSNR in dB, the least of its files; `latency_ms`: medians on the
    Neural Engine by function and Mac, empty where not measured."""

    __pydantic_config__ = STRICT
    variant: Variant
    files: tuple[str, ...]
    size: int
    lengths: tuple[int, ...]
    minimum_os: str
    weights: str
    lossy: bool
    psnr_worst: float
    psnr_median: float
    top1: float | None
    latency_ms: dict[str, float]


@dataclass(frozen=True)
class Listing:
    """A model of catalogue.json; the first variant is the one that its code loads. `page`, `record`: in this site."""

    __pydantic_config__ = STRICT
    id: str
    repo: str
    page: str
    record: str
    commit: str
    tag: str
    task: Task
    family: str
    license: str
    languages: tuple[str, ...]
    protocol: str
    variants: tuple[Offer, ...]
    retired: str | None


@dataclass(frozen=True)
class Request:
    """What is wanted and is not there, or not in its newest form. `kind`: the class of the error; `since`: the run
    that said so, None: a manifest says it; `next`: when it is tried again; `published`: an earlier version is there."""

    __pydantic_config__ = STRICT
    id: str
    repo: str
    status: Status
    why: str
    kind: str | None
    since: datetime | None
    next: datetime | None
    published: bool


@dataclass(frozen=True)
class Catalogue:
    """catalogue.json. `last_run`: when the last run began that is known here."""

    __pydantic_config__ = STRICT
    organization: str
    hub: str
    last_run: datetime | None
    models: tuple[Listing, ...]
    requested: tuple[Request, ...]
    schema: Literal[1] = SCHEMA


@dataclass(frozen=True)
class Collected:
    """Everything that the pages are made of. `releases` in the order of the catalogue's models."""

    catalogue: Catalogue
    releases: tuple[Release, ...]
    runs: tuple[Run, ...]
    warnings: tuple[str, ...]


def collect(hub: Hub, organization: str, models: Sequence[Wanted], nights: int, earlier: Path) -> Collected:
    """`models`: what the manifests want; `earlier`: a site made before, which may know some releases already.

    HubUnavailable: a release or the list of them cannot be read now. What is not public is not shown."""
    repos = hub.repos(organization)
    private = {repo for repo, head in repos.items() if head.private}
    heads = {repo: head.commit for repo, head in repos.items() if MARK in head.tags and repo not in private}
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(lambda repo: release(hub, repo, heads[repo], earlier), heads))
    releases = [each for each in found if isinstance(each, Release)]
    warnings = [each for each in found if isinstance(each, str)]
    runs = [shown(run, private) for run in state.runs(hub, organization, nights)]
    wanted = [each for each in models if each.repo not in private]
    return arrange(organization, hub.page, releases, runs, wanted, warnings)


def arrange(
    organization: str,
    hub: str,
    releases: Iterable[Release],
    runs: Sequence[Run],
    models: Sequence[Wanted],
    warnings: Iterable[str] = (),
) -> Collected:
    """`hub`: its address for people."""
    ordered = sorted(releases, key=lambda each: (each.conversion.source.id.lower(), each.repo))
    catalogue = Catalogue(
        organization=organization,
        hub=hub,
        last_run=runs[0].started if runs else None,
        models=tuple(map(listing, ordered)),
        requested=tuple(requests(models, runs, (each.repo for each in ordered))),
    )
    return Collected(catalogue, tuple(ordered), tuple(runs), tuple(warnings))


# ---------------------------------------------------------------------------------------------- releases


def release(hub: Hub, repo: str, head: str, earlier: Path) -> Release | str:
    """The newest finished version; a string says why there is none to show."""
    if known := remembered(earlier / "models" / f"{repo.rpartition('/')[2]}.json", repo, head):
        return known
    versions = {tag: commit for tag, commit in hub.tags(repo).items() if VERSION.fullmatch(tag)}
    if not versions:
        return f"{repo} is left out: no publication of it was finished, it has no version tag"
    tag = max(versions, key=lambda name: int(name[1:]))
    at = Repo(repo, versions[tag], (), private=False)
    try:
        conversion = records.parse(hub.read(at, "conversion.json"), Conversion, "conversion.json")
        report = records.parse(hub.read(at, "reports/report.json"), Report, "reports/report.json")
        card = hub.read(at, "README.md").decode(errors="replace")
        check(conversion, report)
    except (BadInput, ModelNotFound) as err:
        return f"{repo} is left out, its {tag} cannot be shown: {err}"
    short = replace(report, lint=tuple(replace(each, verdicts=()) for each in report.lint))
    return Release(repo, at.commit, tag, conversion, short, plots(card), snippets(card))


def remembered(path: Path, repo: str, head: str) -> Release | None:
    """What an earlier site knows of this repo, if its head is still the same."""
    try:
        known = records.read(path, Release)
    except BadInput:
        return None
    return known if (known.repo, known.commit) == (repo, head) else None


def check(conversion: Conversion, report: Report) -> None:
    """BadInput: a record that has the right form, and not what a page is made of."""
    for package in conversion.packages:
        if not any(each.name == package.default_function and each.outputs for each in package.functions):
            raise BadInput(f"{package.file} has no default function with an output")
        if not any(bar.what == package.what and bar.measures for bar in report.fidelity):
            raise BadInput(f"the report has no figures for {package.what}")
    if not conversion.packages:
        raise BadInput("it has no package")


def plots(card: str) -> tuple[Plot, ...]:
    """The pictures of a card, as it names them."""
    return tuple(Plot(path, re.sub(r"\\(.)", r"\1", about)) for about, path in IMAGE.findall(card))


def snippets(card: str) -> dict[str, str]:
    """The first code of each language in a card."""
    return {language: code.rstrip("\n") for language, code in reversed(SNIPPET.findall(card))}


# ---------------------------------------------------------------------------------------------- the catalogue


def listing(release: Release) -> Listing:
    made = release.conversion
    return Listing(
        id=made.source.id,
        repo=release.repo,
        page=f"models/{release.name}.html",
        record=f"models/{release.name}.json",
        commit=release.commit,
        tag=release.tag,
        task=made.task,
        family=made.family,
        license=made.license,
        languages=made.source.card.language,
        protocol=release.report.protocol,
        variants=tuple(offers(release)),
        retired=made.retired,
    )


def offers(release: Release) -> Iterator[Offer]:
    by_variant: dict[Variant, list[Package]] = {}
    for package in release.conversion.packages:
        by_variant.setdefault(package.variant, []).append(package)
    least = least_psnr(release.report)
    for variant, packages in by_variant.items():
        named = {package.what for package in packages}
        bars = [bar for bar in release.report.fidelity if bar.what in named]
        agreements = [bar.top1 for bar in bars if bar.top1 is not None]
        latencies = {
            f"{each.variant} {each.function}, {m.mac.short}".removeprefix(f"{variant} "): each.median_ms
            for m in release.report.macs
            for each in m.latency
            if each.variant in named and each.unit == ENGINE
        }
        yield Offer(
            variant=variant,
            files=tuple(package.file for package in packages),
            size=sum(package.size for package in packages),
            lengths=tuple(function.length for function in packages[0].functions),
            minimum_os=packages[0].minimum_os,
            weights=packages[0].weights,
            lossy=variant in LOSSY,
            psnr_worst=min(least[what] for what in named),
            psnr_median=min(bar.psnr_median for bar in bars),
            top1=min(agreements, default=None),
            latency_ms=latencies,
        )


# ---------------------------------------------------------------------------------------------- what is wanted


def shown(run: Run, private: Iterable[str]) -> Run:
    """Without what is not public: private repos, and the names of machines and their folders."""
    hidden = set(private)
    outcomes = tuple(outward(each) for each in run.outcomes if each.repo not in hidden)
    ids = {each.id for each in outcomes}
    failed = tuple(id for id in run.failed if id in ids)
    only = tuple(id for id in run.only if id in ids)
    return replace(run, outcomes=outcomes, failed=failed, warnings=(), broken=kind_of(run.broken), only=only)


def kind_of(broken: str | None) -> str | None:
    """`WorkerMismatch: mac-2 has the lock …` -> `WorkerMismatch`"""
    return broken and broken.partition(":")[0]


def outward(outcome: Outcome) -> Outcome:
    """Logs stay that have an address for others: one without TLS is that of a server in the house."""
    log = outcome.log if (outcome.log or "").startswith("https://") else None
    error, signature = (without_folders(text) if text else text for text in (outcome.error, outcome.signature))
    return replace(outcome, error=error, signature=signature, why=without_folders(outcome.why), log=log, worker="")


def without_folders(text: str) -> str:
    """`/home/me/work/job.json is missing` -> `…/job.json is missing`"""
    return re.sub(r"(?<![\w/:.])/(?:[^\s/]+/)+", "…/", text)


def requests(models: Sequence[Wanted], runs: Sequence[Run], published: Iterable[str]) -> list[Request]:
    """Every wanted model that is not published, or whose last job was not done: what fails first."""
    last: dict[str, tuple[Outcome, datetime]] = {}
    for run in reversed(runs):
        last |= {outcome.repo: (outcome, run.started) for outcome in run.outcomes}
    there = set(published)
    found = [request for model in models if (request := wish(model, last, model.repo in there))]
    return sorted(found, key=lambda each: (each.published, STATUSES.index(each.status), each.id.lower(), each.repo))


def wish(model: Wanted, last: Mapping[str, tuple[Outcome, datetime]], there: bool) -> Request | None:
    if model.paused is not None:
        return Request(model.id, model.repo, "paused", model.paused, None, None, None, there)
    outcome, since = last.get(model.repo, (None, None))
    if outcome and outcome.status in ("failed", "blocked", "held"):
        why = outcome.error or outcome.why
        return Request(model.id, model.repo, outcome.status, why, outcome.kind, since, outcome.next, there)
    if there:
        return None
    return Request(model.id, model.repo, "waiting", "no run has come to it yet", None, None, None, there)
