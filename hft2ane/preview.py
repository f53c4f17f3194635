"""The plan as Markdown, for a pull request that touches manifests: what it leads to, before anybody merges it.

All that comes from the Hub and from manifests is written so that it stays text."""

import html
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from markupsafe import Markup

from hft2ane import layout, licenses
from hft2ane.asked import Asked, Changes
from hft2ane.card.markdown import clean, code, escape, megabytes, row
from hft2ane.card.readme import languages as languages_of
from hft2ane.card.words import LOSSY, PAIRS, PRECISIONS, TAGS, TASKS
from hft2ane.errors import (
    AccessDenied,
    Hft2aneError,
    HubUnavailable,
    LicenseError,
    ManifestError,
    ModelNotFound,
    RevisionNotFound,
)
from hft2ane.forecast import RATE, Forecast, Port, forecast, minutes
from hft2ane.hub import Hub
from hft2ane.records.job import Job
from hft2ane.records.package import SEVERAL_OS, SINGLE_OS
from hft2ane.records.recipe import Wanted
from hft2ane.records.release import Conversion
from hft2ane.records.repo import Redo, Repo
from hft2ane.records.source import Upstream
from hft2ane.survey import Survey, survey

LIMIT = 1_000_000  # bytes: GitHub takes 1 MiB a step
LONGEST = 600  # characters of one text from outside
# Seconds that the Hub may ask to wait: the check ends after 5 minutes, and then without a page.
PATIENCE = 60.0


@dataclass(frozen=True)
class Preview:
    """`left`: what is published in the repos of those removed. `forecasts`: by repo, of the jobs that make packages.
    `hub`: the address of its pages. `token`: it was asked with one."""

    asked: Asked
    survey: Survey
    left: Mapping[str, Conversion | Redo | Hft2aneError | None]
    forecasts: Mapping[str, Forecast]
    hub: str
    token: bool

    @property
    def changes(self) -> Changes | None:
        return self.asked.changes

    @cached_property
    def paused(self) -> frozenset[str]:
        """Repos of paused entries."""
        return frozenset(each.repo for each in self.survey.models if each.paused is not None)

    @cached_property
    def failing(self) -> frozenset[str]:
        """Repos of jobs that the night would refuse once it has begun them."""
        return frozenset(repo for repo, each in self.forecasts.items() if each.refusals)

    @cached_property
    def faulty(self) -> frozenset[str]:
        """Repos of changed entries that will not do as they are, or of which the Hub said nothing: the check is red.

        Not of those whose original is gated: the night's account may have been let in."""
        if self.changes is None:
            return frozenset()
        blocked = {
            job.repo
            for job in self.survey.jobs
            if job.action == "blocked" and not isinstance(self.survey.world.upstream.get(job.id), AccessDenied)
        }
        return (self.failing | blocked) - self.paused


# ---- asking


def look(asked: Asked, hub: Hub, limit: int) -> Preview:
    """What that leads to; `limit`: models of a wave. HubUnavailable: the Hub does not answer."""
    removed = asked.changes.removed if asked.changes is not None else ()
    if removed or any(each.paused is None for each in asked.models):
        hub.clock()  # a Hub that is away is found so once, and not for each model in turn
    found = survey(asked.models, hub, asked.complete, limit)
    left = hub.conversions(each.repo for each in removed)
    making = [job for job in found.jobs if job.action in ("create", "convert") and job.commit]
    configs = hub.read_all((Repo(job.id, str(job.commit), job.files, False), layout.CONFIG) for job in making)
    forecasts = {job.repo: forecast(job, content) for job, content in zip(making, configs, strict=True)}
    try:
        hub.check_token()
        token = True
    except AccessDenied:
        token = False
    return Preview(asked, found, left, forecasts, hub.page, token)


# ---- the page


@dataclass(frozen=True)
class Block:
    """A part of the page. `head` stands with the first line, `joint` between them, `between` between the lines."""

    head: str
    lines: Sequence[str]
    joint: str = "\n\n"
    between: str = "\n"


def markdown(preview: Preview, limit: int = LIMIT) -> str:
    """The page, of at most `limit` bytes."""
    return fit([Block("", [title(preview)]), *blocks(preview)], limit)


def problems(err: ManifestError, limit: int = LIMIT) -> str:
    """All that is wrong in the manifests."""
    count = f"{len(err.problems)} problem{'s' if len(err.problems) > 1 else ''}"
    head = f"## Plan preview: {count} in the manifests\n\nNothing is planned before they are mended."
    lines = [str(row([place(where), said(text)])) for where, text in err.problems]
    return fit([Block("", [head]), Block("| Where | What, and what to do |\n|:--|:--|", lines, "\n")], limit)


def unavailable(err: HubUnavailable, asked: Asked, limit: int = LIMIT) -> str:
    """What can be said without the Hub."""
    head = (
        f"## Plan preview: the Hub does not answer\n\n{said(str(err))}\n\n"
        "The manifests can be read, and what they ask for is below. **Nothing of it is verified**, neither that the "
        "originals exist nor their licences: run this again later."
    )
    columns, lines = ["Model", "Licence", "Lengths", "Packages"], []
    if asked.changes is not None:
        columns.insert(1, "In the manifests")
    for model in asked.models:
        license = code(model.license) + Markup(", unverified") if model.license else said("not in the manifest")
        cells = [name(code(model.id), model.repo), license, *map(", ".join, wishes(model))]
        if asked.changes is not None:
            cells.insert(1, said(asked.changes.changed[model.id].what))
        lines.append(str(row(cells)))
    table = f"### {'What this changes' if asked.changes is not None else 'Asked for'}\n\n{row(columns)}\n|"
    out = [f"- {code(each.id)}" for each in asked.changes.removed] if asked.changes is not None else []
    blocks = [Block(table + ":--|" * len(columns), lines, "\n"), Block("### Taken out", out)]
    return fit([Block("", [head]), Block("### Needs attention", unread(asked)), *blocks], limit)


def wishes(model: Wanted) -> tuple[list[str], Sequence[str]]:
    return [str(each) for each in model.recipe.lengths], model.recipe.variants


def title(preview: Preview) -> str:
    jobs = [job for job in preview.survey.jobs if job.action != "skip"]
    kinds = Counter(sorted((kind(job, preview) for job in jobs), key=lambda each: each in NO_VERB))
    words = [f"{count} {each if each in NO_VERB else f'to {each}'}" for each, count in kinds.items()]
    if removed := preview.changes.removed if preview.changes else ():
        words.append(f"{len(removed)} taken out")
    if preview.changes and not preview.changes.changed and not removed:
        count = f"the {preview.changes.unchanged} entries are" if preview.changes.unchanged != 1 else "the entry is"
        return f"## Plan preview\n\n**Nothing changes** in the manifests: {count} as at {code(preview.asked.base)}."
    text = f"**{', '.join(words)}**" if words else "**Nothing is to be done.**"
    if to_do := [job for job in jobs if job.to_do and job.repo not in preview.failing]:
        size = sum(sum(preview.forecasts[job.repo].sizes.values()) for job in to_do if job.repo in preview.forecasts)
        text += f"; about {duration(sum(map(minutes, to_do)))} of one machine, and {amount(size)} of packages"
    return f"## Plan preview\n\n{text}"


NO_VERB = ("would fail", "held", "blocked", "orphan", "paused")


def kind(job: Job, preview: Preview) -> str:
    if job.repo in preview.paused:
        return "paused"
    return "would fail" if job.repo in preview.failing else job.action


def blocks(preview: Preview) -> Iterator[Block]:
    models = {each.repo: each for each in preview.survey.models}
    jobs = preview.survey.jobs
    yield Block("### Needs attention", [*unread(preview.asked), *attention(jobs, models, preview)])
    if preview.changes is None:
        yield table("### To be done", [job for job in jobs if job.to_do], models, preview)
    else:
        shown = [job for job in jobs if job.repo in models]
        yield table("### What this changes", shown, models, preview)
        yield Block("### Taken out", [taken_out(each, preview.left.get(each.repo)) for each in preview.changes.removed])
    if preview.changes is None:
        yield Block("### Orphans", [f"- {code(job.repo)}: {said(job.why)}" for job in jobs if job.action == "orphan"])
    yield Block(*rest(preview))
    yield Block("### Notes", [f"- {each}" for each in notes(preview)])
    cards = [job for job in jobs if job.action == "create" and job.repo not in preview.failing]
    what = "### Cards to come\n\nAs far as they can be known: nothing is converted yet, so there are no figures."
    yield Block(what, [details(job, preview) for job in cards], between="\n\n")


def table(head: str, jobs: Sequence[Job], models: Mapping[str, Wanted], preview: Preview) -> Block:
    """What is done with each of these models, a line each."""
    names = ["Model", "To do", "Why", "Licence", "Packages, about", "Minutes, about"]
    if preview.changes is not None:
        names.insert(1, "In the manifests")
    columns = f"{row(names)}\n|" + "".join("--:|" if name.endswith("about") else ":--|" for name in names)
    return Block(f"{head}\n\n{columns}", [line(job, models[job.repo], preview) for job in jobs], joint="\n")


def line(job: Job, model: Wanted, preview: Preview) -> str:
    found, what = preview.forecasts.get(job.repo), kind(job, preview)
    sizes = [f"{variant} {amount(size)}" for variant, size in found.sizes.items()] if found else []
    whole = "<br>".join(sizes).replace(" ", "&nbsp;").replace("-", "&#8209;")  # each is one line
    tells = job.cause and what not in ("create", "would fail")  # what is new is always asked for
    cells = [
        name(page(job.id, preview), job.repo),
        "nothing" if what == "paused" else f"{what} ({job.cause})" if tells else what,
        Markup("see *Needs attention*") if what in ("blocked", "held", "would fail") else said(job.why),
        verdict(model, preview),
        Markup(whole),
        about(job),
    ]
    if preview.changes is not None:
        cells.insert(1, said(preview.changes.changed[model.id].what))
    return str(row(cells))


def name(id: Markup, repo: str) -> Markup:
    return id + Markup("<br>→ ") + code(repo)


def about(job: Job) -> str:
    """Its minutes; little is not nothing."""
    return f"{max(minutes(job), 0.1):.1f}" if job.work else ""


def page(id: str, preview: Preview) -> Markup:
    """A link to the model's page; the characters of an id are those that a manifest allows."""
    return Markup("[") + code(id) + Markup(f"]({preview.hub}/{id})")


def verdict(model: Wanted, preview: Preview) -> Markup:
    """Whether the original's licence lets a converted copy be published."""
    found = preview.survey.world.upstream.get(model.id)
    if not isinstance(found, Upstream):
        return said("not asked" if model.paused is not None else "not known")
    named = found.card.license
    try:
        licenses.check(named, model.license, model.id, layout.legal(found.files))
    except LicenseError:
        other = model.license is not None and named and named.strip().lower() != model.license
        rest = Markup(", not ") + code(model.license) if other else Markup("")
        return Markup("✗ ") + (code(named) if named else said("names none")) + rest
    return Markup("✓ ") + code(named) + Markup("" if model.license else ", not in the manifest")


def taken_out(model: Wanted, left: Conversion | Redo | Hft2aneError | None) -> str:
    """What becomes of the release of an entry that is gone."""
    name = f"- {code(model.id)}: "
    if left is None:
        return f"{name}nothing is published at {code(model.repo)}, so nothing is left behind"
    if isinstance(left, Hft2aneError):
        return f"{name}what is published at {code(model.repo)} is not known: {said(str(left))}"
    if isinstance(left, Conversion) and left.retired is not None:
        return f"{name}{code(model.repo)} is retired already, and stays as it is"
    retire = code(f"hft2ane retire {model.repo} --reason …")
    return (
        f"{name}{code(model.repo)} becomes an **orphan**: it stays on the Hub, and gets no new versions. "
        f"Add the entry again, or say so in its card with {retire}"
    )


def unread(asked: Asked) -> list[str]:
    return [
        f"- {code(each)} is changed, and **not read**: manifests are the files `*.yaml` of a folder itself, not of the "
        "folders in it"
        for each in asked.unread
    ]


def attention(jobs: Sequence[Job], models: Mapping[str, Wanted], preview: Preview) -> Iterator[str]:
    """What will not be done, or would fail, and what to do about it; by file and line."""
    for job in sorted(jobs, key=lambda job: line_of(models[job.repo].where) if job.repo in models else ("", 0)):
        if job.action in ("blocked", "held") and job.repo not in preview.paused:
            yield f"- {code(job.id)} at {place(models[job.repo].where)} is **{job.action}**: {reason(job, preview)}"
        if found := preview.forecasts.get(job.repo):
            for text in found.refusals:
                yield f"- {code(job.id)} at {place(models[job.repo].where)} **would fail**: {said(text)}"


def line_of(where: str) -> tuple[str, int]:
    file, _, line = where.rpartition(":")
    return file, int(line)


def place(where: str) -> Markup:
    """`file:line`; on GitHub a link to it."""
    file, line = line_of(where)
    server, repo, commit = (os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "SHA"))
    if not (server and repo and commit) or Path(file).is_absolute():
        return code(where)
    return Markup("[") + code(where) + Markup(f"]({server}/{repo}/blob/{commit}/{quote(file)}#L{line})")


def reason(job: Job, preview: Preview) -> Markup:
    """The plan's; to an entry's author what is more to the point: names are mistyped, and there is no token."""
    answer = preview.survey.world.upstream.get(job.id)
    if isinstance(answer, ModelNotFound) and not isinstance(answer, RevisionNotFound) and job.action == "blocked":
        search = f"{preview.hub}/models?search={job.id.rpartition('/')[2]}"  # of letters, digits, '.', '_', '-'
        text = "the Hub has no model of this name, or it is private: correct the name"
        return Markup(f"{text} ([search the Hub for it]({search}))")
    if isinstance(answer, AccessDenied) and not preview.token:
        text = (
            "its files are gated, and this was asked without a token: ask the maintainers whether the night's account"
        )
        return Markup(f"{text} has accepted its terms, or choose another original")
    return said(job.why)


def rest(preview: Preview) -> tuple[str, Sequence[str]]:
    if preview.changes is not None:
        count = preview.changes.unchanged
        few = (
            "1 other entry is as it was, and was" if count == 1 else f"{count} other entries are as they were, and were"
        )
        return "### Unchanged", [f"{few} not looked at."] if count and len(preview.survey.jobs) else []
    counts = {
        "as they should be": sum(job.action == "skip" for job in preview.survey.jobs),
        "paused": len(preview.paused),
    }
    words = [f"{count} {what}" for what, count in counts.items() if count]
    return "### Nothing to do", [f"Models: {', '.join(words)}."] if words else []


def notes(preview: Preview) -> Iterator[str]:
    yield from map(said, (*preview.asked.notes, *preview.survey.warnings))
    found = [preview.survey.world.upstream.get(each.id) for each in preview.survey.models if each.license is None]
    if any(isinstance(each, Upstream) and each.card.license for each in found):
        yield "*Not in the manifest*: write `license:` into the entry, with the licence that you have read."
    if preview.survey.jobs and not preview.token:
        yield "Seen without a token: what earlier runs remember of failures is private, and not known here."
    if preview.forecasts:
        yield (
            f"Minutes are an estimate: what there is to compute, by the sizes of the weights, at {RATE:g}·10¹² "
            "operations a second, which `make demo` reached on two shared cores; downloads and uploads are not in it."
        )
        yield "Sizes are an estimate too, from the weights of the original; of a mixed variant it is the least."


def details(job: Job, preview: Preview) -> str:
    """The card as far as it can be known, folded up."""
    found, upstream = preview.forecasts[job.repo], preview.survey.world.upstream[job.id]
    assert isinstance(upstream, Upstream)
    rows = "\n".join(row(each) for each in facts(job, found, upstream))
    return (
        f"<details><summary>Preview of the card of <code>{html.escape(job.repo)}</code></summary>\n\n"
        "> **A preview, before anything is converted.** PSNR, sizes, latencies and placement are measured on the "
        "package itself, and stand in the card that is published with it. What is below may turn out otherwise.\n\n"
        f"**{said(job.id.rpartition('/')[2])} for the Apple Neural Engine**\n\n{said(purpose(found, upstream))}\n\n"
        f"| | As expected |\n|:--|:--|\n{rows}\n\n</details>"
    )


def purpose(found: Forecast, upstream: Upstream) -> str:
    """The card's first sentence."""
    if found.task is None:
        return "What it does is not known before its weights are read."
    pair = found.task in PAIRS or upstream.card.pipeline_tag == "text-ranking"
    scores = "one score" if found.scores == 1 else f"a score for each of {found.scores} labels"
    texts = "Two texts" if pair else "Text"
    return TASKS[found.task].what.format(n=found.scores or "some", texts=texts, scores=scores)


def facts(job: Job, found: Forecast, upstream: Upstream) -> Iterator[Sequence[object]]:
    recipe, several = job.recipe, len(job.recipe.lengths) > 1
    yield "Original", code(job.id) + Markup(" at ") + code((job.commit or "")[:12])
    yield "Task", (code(found.task) if found.task else said("not known")) + Markup(": ") + said(found.reason)
    if found.inputs:
        yield "In", Markup("int32: ") + ports(found.inputs)
        yield "Out", ports(found.outputs)
    yield "Input lengths L, tokens", ", ".join(map(str, recipe.lengths))
    yield "Packages", ", ".join(f"{each} (lossy)" if each in LOSSY else each for each in recipe.variants)
    yield "Minimum OS", SEVERAL_OS if several else SINGLE_OS
    gates = {each: job.gates.of(each) for each in ("rewrite", *recipe.variants)}
    yield "Gates, dB", ", ".join(f"{name} {gate:g}" for name, gate in gates.items())
    yield "Licence", code(job.license)
    if languages := languages_of(upstream.card):
        yield "Languages", ", ".join(languages)
    tags = [*TAGS, *dict.fromkeys(PRECISIONS[each][0] for each in recipe.variants)]
    yield "Tags", Markup(" ").join(map(code, tags))


def ports(found: Iterable[Port]) -> Markup:
    return Markup(", ").join(code(each.name) + Markup(" ") + said(each.shape) for each in found)


def amount(size: int) -> str:
    return megabytes(size) if size < 1e9 else f"{size / 1e9:.1f} GB"


def duration(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes" if minutes >= 1 else "a minute"


# ---- text from outside


def said(text: str) -> Markup:
    """As text: no markup but code in backticks, no mention, no link, and not without end."""
    short = clean(text)
    short = short if len(short) <= LONGEST else short[: LONGEST - 1] + "…"
    parts = re.split(r"`([^`]+)`", short)  # every second one is code
    return Markup("").join(code(part) if place % 2 else unlinked(part) for place, part in enumerate(parts))


def unlinked(text: str) -> Markup:
    """Between spaces as they are: GitHub makes links of bare text after Markdown is done."""
    whole = " " * text.startswith(" ") + escape(text) + " " * (text.endswith(" ") and bool(text.strip()))
    return Markup(re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)", "\u200b", whole, flags=re.IGNORECASE))


def fit(blocks: Iterable[Block], limit: int) -> str:
    """The blocks one below the other, those without lines left out; lines beyond `limit` bytes are counted only."""
    note = "**Cut here, at what GitHub shows of a page: {} more lines.** `make preview` shows all of it"
    room, left, page = limit - len(note.encode()) - 20, 0, ""
    for block in blocks:
        joint = "\n\n" * bool(page) + block.head + block.joint * bool(block.head)
        for text in block.lines:
            room -= len((joint + text).encode())
            if room < 0:
                left, room = left + 1, 0  # what would still fit after a gap is not shown either
                continue
            page, joint = page + joint + text, block.between
    return page + (f"\n\n{note.format(left)}" if left else "") + "\n"


# ---- GitHub's annotations


def annotate(kind: Literal["error", "warning"], where: str, text: str) -> str:
    """A line that GitHub shows beside the line of the file. `where` is `file:line`."""
    file, _, line = where.rpartition(":")
    for character in "%\r\n":
        text, file = (each.replace(character, f"%{ord(character):02X}") for each in (text, file))
    file = file.replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} file={file},line={line}::{text}"


def annotations(preview: Preview) -> Iterator[str]:
    models = {each.repo: each for each in preview.survey.models}
    for job in preview.survey.jobs:
        level: Literal["error", "warning"] = "error" if job.repo in preview.faulty else "warning"
        if job.action == "blocked" and job.repo not in preview.paused:
            yield annotate(level, models[job.repo].where, f"{job.id}: {job.why}")
        if found := preview.forecasts.get(job.repo):
            for text in found.refusals:
                yield annotate(level, models[job.repo].where, f"{job.id} would fail: {text}")


def quiet() -> str:
    """From here on GitHub takes nothing in this step's log for a command, whatever stands in it."""
    return f"::stop-commands::{secrets.token_hex(16)}"
