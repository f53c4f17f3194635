"""The plan as Markdown, for a pull request that touches manifests: what it leads to, before anybody merges it.

All that comes from the Hub and from manifests is written so that it stays text."""

import html
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from hft2ane import layout, licenses
from hft2ane.card.markdown import code, escape, megabytes, row
from hft2ane.card.readme import languages as languages_of
from hft2ane.card.words import LOSSY, PAIRS, PRECISIONS, TAGS, TASKS
from hft2ane.errors import AccessDenied, BadInput, Hft2aneError, HubUnavailable, LicenseError, ManifestError
from hft2ane.forecast import RATE, Forecast, Port, forecast, minutes
from hft2ane.hub import Hub
from hft2ane.manifest.read import read_manifests
from hft2ane.plan import changes
from hft2ane.records.job import Job
from hft2ane.records.package import SEVERAL_OS, SINGLE_OS
from hft2ane.records.recipe import Wanted
from hft2ane.records.release import Conversion
from hft2ane.records.repo import Redo, Repo
from hft2ane.records.source import Upstream
from hft2ane.survey import Survey, survey, wanted

LIMIT = 1_000_000  # bytes: GitHub takes 1 MiB a step
LONGEST = 600  # characters of one text from outside

Kind = Literal["new", "changed", "paused", "resumed"]


@dataclass(frozen=True)
class Change:
    """What is otherwise in one entry; `what` in words."""

    kind: Kind
    what: str


@dataclass(frozen=True)
class Changes:
    """What is otherwise in the manifests. `changed`: by id; `removed`: entries as they were, whose repos nobody wants
    any more; `unchanged`: how many entries are as before."""

    changed: Mapping[str, Change]
    removed: tuple[Wanted, ...]
    unchanged: int


@dataclass(frozen=True)
class Preview:
    """`changes`: None where nothing is compared, and all is shown. `left`: what is published in the repos of those
    removed. `forecasts`: by repo, of the jobs that make packages. `hub`: the address of its pages."""

    survey: Survey
    changes: Changes | None
    left: Mapping[str, Conversion | Redo | Hft2aneError | None]
    forecasts: Mapping[str, Forecast]
    notes: tuple[str, ...]
    hub: str

    @cached_property
    def paused(self) -> frozenset[str]:
        """Repos of paused entries."""
        return frozenset(each.repo for each in self.survey.models if each.paused is not None)


# ---- what is otherwise in the manifests


def before(base: str, manifests: Sequence[Path], organization: str | None) -> list[Wanted]:
    """What the manifests said at `base`: a folder of manifests, or a commit of this git repository, at the same paths.

    BadInput: it is neither."""
    if base and (folder := Path(base)).is_dir():
        return read_manifests([folder], organization)
    if not (commit := _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}")):
        raise BadInput(f"--base {base!r} is neither a folder nor a commit of a git repository here: fetch it first")
    old, root = commit.decode().strip(), (_git("rev-parse", "--show-toplevel") or b"").decode().strip()
    with tempfile.TemporaryDirectory() as temporary:
        for path in manifests:
            inside = Path(os.path.relpath(path.resolve(), root))
            listed = _git("ls-tree", "-r", "-z", "--full-tree", "--name-only", old, "--", inside.as_posix()) or b""
            for name in filter(None, listed.decode().split("\0")):
                if Path(name) == inside or (Path(name).parent == inside and name.endswith((".yaml", ".yml"))):
                    copy = Path(temporary, name)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(_git("cat-file", "blob", f"{old}:{name}") or b"")
        files = sorted(file for file in Path(temporary).rglob("*") if file.is_file())
        return read_manifests(files, organization) if files else []


def _git(*arguments: str) -> bytes | None:
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def compare(old: Sequence[Wanted], new: Sequence[Wanted]) -> Changes:
    """Entries are the same when their ids are, whatever file they stand in."""
    earlier = {each.id.lower(): each for each in old}
    changed = {}
    for each in new:
        was = earlier.get(each.id.lower())
        if was is None:
            changed[each.id] = Change("new", "new")
        elif was.paused is None and each.paused is not None:
            changed[each.id] = Change("paused", "paused")
        elif was.paused is not None and each.paused is None:
            changed[each.id] = Change("resumed", "; ".join(["no longer paused", *_differences(was, each)]))
        elif differences := list(_differences(was, each)):
            changed[each.id] = Change("changed", "; ".join(differences))
    repos = {each.repo.lower() for each in new}
    removed = tuple(each for each in old if each.repo.lower() not in repos)
    return Changes(changed, removed, len(new) - len(changed))


def _differences(old: Wanted, new: Wanted) -> Iterator[str]:
    names = ("id", "repo", "revision", "license", "major", "paused")
    yield from changes({name: getattr(old, name) for name in names}, {name: getattr(new, name) for name in names})
    yield from changes(asdict(old.recipe), asdict(new.recipe))
    yield from (f"gate {each}" for each in changes(asdict(old.gates), asdict(new.gates)))


# ---- asking


def make(
    manifests: Sequence[Path], organization: str | None, only: Sequence[str] | None, limit: int, base: str | None
) -> Preview:
    """Of these manifests, and with `base` of what is otherwise than there. ManifestError, BadInput, HubUnavailable."""
    models = wanted(manifests, organization, only)
    notes: tuple[str, ...] = ()
    if base is None:
        return look(models, Hub(), None, complete=not only, limit=limit)
    try:
        old = before(base, manifests, organization)
    except ManifestError as err:
        old, notes = [], (f"the manifests at {base} have problems, so every entry counts as new: {err}",)
    if only:
        old = [each for each in old if each.id in only]
    found = look(models, Hub(), compare(old, models), complete=False, limit=limit)
    return replace(found, notes=(*notes, *found.notes))


def look(models: Sequence[Wanted], hub: Hub, changes: Changes | None, complete: bool, limit: int) -> Preview:
    """With `changes`, only those entries are asked about. HubUnavailable: the Hub does not answer."""
    if changes is not None:
        models = [each for each in models if each.id in changes.changed]
    found = survey(models, hub, complete, limit)
    removed = changes.removed if changes is not None else ()
    left = hub.conversions(each.repo for each in removed)
    asked = any(each.paused is None for each in models)
    if left and not asked and all(isinstance(each, HubUnavailable) for each in left.values()):
        raise HubUnavailable(str(next(iter(left.values()))))
    making = [job for job in found.jobs if job.action in ("create", "convert") and job.commit]
    configs = hub.read_all((Repo(job.id, str(job.commit), job.files, False), layout.CONFIG) for job in making)
    forecasts = {job.repo: forecast(job, content) for job, content in zip(making, configs, strict=True)}
    notes = list(found.warnings)
    try:
        hub.check_token()
    except AccessDenied:
        notes.append("Seen without a token: what earlier runs remember of failures is private, and not known here.")
    return Preview(found, changes, left, forecasts, tuple(notes), hub.page)


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
    lines = [str(row([code(at), said(text)])) for at, text in err.problems]
    return fit([Block("", [head]), Block("| Where | What, and what to do |\n|:--|:--|", lines, "\n")], limit)


def unavailable(err: HubUnavailable) -> str:
    return (
        "## Plan preview: the Hub does not answer\n\n"
        f"{said(str(err))}\n\nThe manifests can be read. What they lead to is not known: run this again later.\n"
    )


def title(preview: Preview) -> str:
    jobs = [job for job in preview.survey.jobs if job.action != "skip"]
    kinds = ["paused" if job.repo in preview.paused else job.action for job in jobs]
    words = [f"{count} {kind if kind in NO_VERB else f'to {kind}'}" for kind, count in Counter(kinds).items()]
    if removed := preview.changes.removed if preview.changes else ():
        words.append(f"{len(removed)} taken out")
    text = f"**{', '.join(words)}**" if words else "**Nothing is to be done.**"
    if to_do := [job for job in jobs if job.to_do]:
        size = sum(sum(each.sizes.values()) for each in preview.forecasts.values())
        text += f"; about {duration(sum(map(minutes, to_do)))} of one machine, and {amount(size)} of packages"
    if failing := sum(bool(each.refusals) for each in preview.forecasts.values()):
        text += f"; **{failing} would fail**"
    return f"## Plan preview\n\n{text}"


NO_VERB = ("held", "blocked", "orphan", "paused")


def blocks(preview: Preview) -> Iterator[Block]:
    models = {each.repo: each for each in preview.survey.models}
    jobs = preview.survey.jobs
    if preview.changes is None:
        yield table("### To be done", [job for job in jobs if job.to_do], models, preview)
    else:
        shown = [job for job in jobs if job.repo in models]
        yield table("### What this changes", shown, models, preview)
        yield Block("### Taken out", [taken_out(each, preview.left.get(each.repo)) for each in preview.changes.removed])
    yield Block("### Needs attention", list(attention(jobs, models, preview)))
    if preview.changes is None:
        yield Block("### Orphans", [f"- {code(job.repo)}: {said(job.why)}" for job in jobs if job.action == "orphan"])
    yield Block(*rest(preview))
    yield Block("### Notes", [f"- {each}" for each in (*map(said, preview.notes), *how(preview))])
    sound = {repo for repo, each in preview.forecasts.items() if not each.refusals}
    cards = [job for job in jobs if job.action == "create" and job.repo in sound]
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
    found = preview.forecasts.get(job.repo)
    sizes = [f"{variant} {amount(size)}" for variant, size in found.sizes.items()] if found else []
    whole = "<br>".join(sizes).replace(" ", "&nbsp;").replace("-", "&#8209;")  # each is one line
    action = "nothing" if job.repo in preview.paused else f"{job.action} ({job.cause})" if job.cause else job.action
    waits = job.action in ("blocked", "held") and job.repo not in preview.paused
    cells = [
        page(job.id, preview) + Markup("<br>→ ") + code(job.repo),
        Markup(f"{action}<br>**would fail**") if found and found.refusals else action,
        Markup("see *Needs attention*") if waits else said(job.why),
        verdict(model, preview),
        Markup(whole),
        about(job),
    ]
    if preview.changes is not None:
        cells.insert(1, said(preview.changes.changed[model.id].what))
    return str(row(cells))


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
        return Markup("✗ ") + (code(named) if named else said("names none"))
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


def attention(jobs: Sequence[Job], models: Mapping[str, Wanted], preview: Preview) -> Iterator[str]:
    """What will not be done, or would fail, and what to do about it."""
    for job in jobs:
        if job.action in ("blocked", "held") and job.repo not in preview.paused:
            yield f"- {code(job.id)} at {code(models[job.repo].where)} is **{job.action}**: {said(job.why)}"
        if found := preview.forecasts.get(job.repo):
            for text in found.refusals:
                yield f"- {code(job.id)} at {code(models[job.repo].where)} **would fail**: {said(text)}"


def rest(preview: Preview) -> tuple[str, Sequence[str]]:
    if preview.changes is not None:
        count = preview.changes.unchanged
        few = (
            "1 other entry is as it was, and was" if count == 1 else f"{count} other entries are as they were, and were"
        )
        return "### Unchanged", [f"{few} not looked at."] if count else []
    counts = {
        "as they should be": sum(job.action == "skip" for job in preview.survey.jobs),
        "paused": len(preview.paused),
    }
    words = [f"{count} {what}" for what, count in counts.items() if count]
    return "### Nothing to do", [f"Models: {', '.join(words)}."] if words else []


def how(preview: Preview) -> Iterator[str]:
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
    """As text: no markup, no mention, no link, and not without end."""
    short = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return Markup(re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=@)", "\u200b", escape(short), flags=re.IGNORECASE))


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
        if job.action == "blocked" and job.repo not in preview.paused:
            yield annotate("warning", models[job.repo].where, f"{job.id}: {job.why}")
        if found := preview.forecasts.get(job.repo):
            for text in found.refusals:
                yield annotate("warning", models[job.repo].where, f"{job.id} would fail: {text}")
