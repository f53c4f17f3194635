"""What is to be done: how what is published differs from what the manifests want, with a reason for each line.

Pure: the caller asks the Hub and hands in the answers, errors among them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, cached_property

from hft2ane import interface, keys, layout, licenses, measurements, waves
from hft2ane.attempts import DELETED, State, shown, waits
from hft2ane.errors import Hft2aneError, LicenseError, ModelNotFound, SourceError
from hft2ane.records.job import CAUSES, TO_DO, Action, Cause, Job
from hft2ane.records.mac import Measurement
from hft2ane.records.recipe import Gates, Recipe, Wanted
from hft2ane.records.release import Conversion
from hft2ane.records.repo import Redo, Vanished
from hft2ane.records.source import RemoteFile, Upstream
from hft2ane.waves import Wave

ORDER: tuple[Action, ...] = (*TO_DO, "held", "blocked", "orphan", "skip")
Reason = tuple[Cause, str]

ROWS = 30  # about so many rows has the protocol at each length
BYTES = 4  # a parameter, as most originals store it


@dataclass(frozen=True)
class Settled:
    """An earlier plan read what is published and said skip, and all that it depends on is the same: `keys.settled`."""


Released = Conversion | Redo | Settled | Hft2aneError | None


@dataclass(frozen=True)
class World:
    """What is so when the plan is made. Errors are answers too.

    `upstream` has an answer for each wanted id, `published` for each wanted repo (None: nothing is there); paused
    models need none. `unwanted`: repos that we published and no manifest wants, with the originals' ids. `heads`: the
    commits of published repos, as far as they are known. `state`: what
    earlier runs remember; `now`: the time, which only that is compared with; `measured`: what people measured on Macs,
    by repo."""

    upstream: Mapping[str, Upstream | Vanished | Hft2aneError]
    published: Mapping[str, Released]
    unwanted: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    state: State = field(default_factory=State)
    now: datetime = datetime.max.replace(tzinfo=UTC)
    measured: Mapping[str, Sequence[Measurement]] = field(default_factory=dict)


def plan(wanted: Sequence[Wanted], world: World, protocol: str = keys.PROTOCOL, limit: int = waves.LIMIT) -> list[Job]:
    """One job for each wanted model, and one for each orphan: the most urgent first, what needs nothing last.

    `protocol`: how figures are taken now; `limit`: models of a wave, see `waves`. ToolchainMismatch: hft2ane is not
    installed."""
    now = Now(protocol)
    jobs = [
        _blocked(one, f"paused: {one.paused}")
        if one.paused is not None
        else _patient(_compare(one, world, now), world, now)
        for one in wanted
    ]
    jobs = waves.hold(jobs, wave(jobs, world, now), limit)
    return sorted([*jobs, *map(_orphan, world.unwanted.items())], key=urgency)


def wave(jobs: Iterable[Job], world: World, now: "Now | None" = None) -> Wave:
    """How the wave goes that these jobs are of, before any of them is done."""
    now = now or Now()
    done = sum(digest == now.today for digest in world.state.renewed.values())
    failing = (
        job.repo
        for job in jobs
        if waves.belongs(job)
        and (tried := world.state.attempts.get(job.repo)) is not None
        and tried.equal  # by itself
        and tried.subject == subject(job, tried.family, now)
    )
    return Wave(done, frozenset(failing))


def subject(job: Job, family: str, now: "Now | None" = None) -> str:
    """Digest of what a try at this job is made of; `family`: the model_type, as far as it is known."""
    now = now or Now()
    return keys.subject(job, now.implementation(family), now.versions)


def urgency(job: Job) -> tuple[bool, int, int, str, str]:
    """What jobs are sorted by."""
    cause = CAUSES.index(job.cause) if job.to_do and job.cause else len(CAUSES)
    return not job.to_do, cause, ORDER.index(job.action), job.id.lower(), job.repo


def estimate(action: Action, files: Iterable[RemoteFile], recipe: Recipe) -> float:
    """The 10^12 floating-point operations that measuring takes, which is most of a job: the original, the rewrite and
    each variant, two operations a parameter and token. Parameters are counted by the size of the weights, so tables
    of embeddings, which cost nothing, count too."""
    if action not in ("create", "convert", "verify"):
        return 0.0
    parameters = sum(file.size for file in files if file.path.endswith(".safetensors")) / BYTES
    passes = ROWS * (2 + len(recipe.variants))
    return round(2 * parameters * sum(recipe.lengths) * passes / 1e12, 3)


class Now:
    """What keys are made of today, each worked out once."""

    def __init__(self, protocol: str = keys.PROTOCOL) -> None:
        self.protocol = protocol
        self.code = cache(keys.code_digest)
        self.implementation = cache(keys.implementation_digest)

    @cached_property
    def versions(self) -> dict[str, str]:
        return keys.toolchain()

    @cached_property
    def today(self) -> str:
        return keys.today(self.protocol)

    @cached_property
    def presentation(self) -> str:
        return keys.presentation_digest()


def _orphan(unwanted: tuple[str, str]) -> Job:
    repo, id = unwanted
    why = f"published from {id}, and no manifest wants it: add it to one, or take its card down with `hft2ane retire`"
    return Job("orphan", why, id, repo)


def _patient(job: Job, world: World, now: Now) -> Job:
    """Held when it has failed, and nothing has changed since, and it is not time yet."""
    attempts = world.state.attempts.get(job.repo)
    if not job.to_do or attempts is None or attempts.subject != subject(job, attempts.family, now):
        return job
    why = waits(attempts, world.now)
    return job if why is None else waves.held(job, why)


def _compare(one: Wanted, world: World, now: Now) -> Job:
    found, released = world.upstream[one.id], world.published[one.repo]
    if isinstance(released, Conversion) and released.retired is not None:
        return replace(_blocked(one, f"retired: {released.retired}"), action="skip")
    if isinstance(found, ModelNotFound) and released is not None:
        return _gone(one, found, world)
    if isinstance(found, Hft2aneError):
        return _blocked(one, str(found))
    if isinstance(found, Vanished):
        return _unpinned(one, found, world, now)
    if found.id != one.id:
        return _blocked(one, f"the original is now called {found.id}: write that at {one.where}")
    try:
        files = layout.select(found.files)
        license = licenses.check(found.card.license, one.license, one.id, layout.legal(files))
    except (SourceError, LicenseError) as err:
        return _blocked(one, str(err))
    if isinstance(released, Settled):
        why = "nothing has changed since the last run"
        return Job("skip", why, one.id, one.repo, found.commit, files, one.recipe, one.gates, license)
    if isinstance(released, Hft2aneError):
        return _blocked(one, f"the record published at {one.repo} cannot be read: {released}")
    if isinstance(released, Conversion) and released.source.id != one.id:
        made = f"what is published at {one.repo} was made from {released.source.id}"
        return _blocked(one, f"{made}: delete that repo, or name another with publish.name at {one.where}")
    if isinstance(released, Conversion) and license not in (released.license, one.license):
        return _blocked(one, _relicensed(one, released.license, license))
    if isinstance(released, Conversion) and (broken := _broken(one, released)):
        return _blocked(one, broken)
    macs: tuple[Measurement, ...] = ()
    if isinstance(released, Conversion):
        macs = measurements.news(released, world.measured.get(one.repo, ()))
    action, reasons = _decide(one, found, files, released, now, macs)
    untrue = world.state.untrue.get(one.repo)
    if untrue is not None and untrue.commit == world.heads.get(one.repo):
        action = min(action, untrue.mend, key=ORDER.index)
        reasons.append(("request", f"an audit of {one.repo} found: {untrue.why}"))
    cause = min((cause for cause, _ in reasons), key=CAUSES.index, default=None)
    why = "; ".join(why for _, why in reasons) or _settled(found, released)
    work = estimate(action, files, one.recipe)
    job = Job(
        action, why, one.id, one.repo, found.commit, files, one.recipe, one.gates, license, cause, work, one.major
    )
    return replace(job, macs=macs) if action in ("verify", "card") else job  # of other packages they say nothing


def _blocked(one: Wanted, why: str) -> Job:
    return Job("blocked", " ".join(why.split()), one.id, one.repo, recipe=one.recipe, gates=one.gates)


def _broken(one: Wanted, released: Conversion) -> str | None:
    """What would break apps that use the release, unless the manifest says that it may."""
    now, following = released.major, released.major + 1
    if one.major not in (now, following):
        return f"`major:` at {one.where} is {one.major}, and what is published has {now}: write {now} or {following}"
    if one.major == now and (broken := interface.planned(released, one.recipe)):
        return (
            f"apps that use {one.repo} would break ({'; '.join(broken)}): undo that at {one.where}, or write `major: "
            f"{following}` there; its tags stay as they are"
        )
    return None


def _relicensed(one: Wanted, old: str, new: str) -> str:
    return (
        f"the original's licence was {old!r} when it was published and is {new!r} now: read what that changes, "
        f"then write `license: {new}` at {one.where}, or pause the entry"
    )


def _unpinned(one: Wanted, found: Vanished, world: World, now: Now) -> Job:
    """The pinned commit is gone, as when an author rewrites the history: the same files at the head will do."""
    released, lost = world.published[one.repo], f"the original has no revision {found.revision} any more"
    again = f"write another `revision:` at {one.where}"
    if not isinstance(released, Conversion):
        return _blocked(one, f"{lost}: {again}")
    try:
        old, new = (layout.shaping(files) for files in (released.source.files, layout.select(found.head.files)))
    except SourceError as err:
        return _blocked(one, f"{lost}, and of its head: {err}; {again}")
    if changed := "; ".join(_changed_files(old, new)):
        return _blocked(one, f"{lost}, and its head has other files ({changed}): {again}")
    job = _compare(one, replace(world, upstream={one.id: found.head}), now)
    return replace(job, why=f"{job.why} ({lost}, its head {found.head.commit[:12]} has the same files)")


def _gone(one: Wanted, err: ModelNotFound, world: World) -> Job:
    """The original of a published model is not found: the Hub may stumble, so once is not enough."""
    since = world.state.gone.get(one.repo)
    if since is None or world.now - since < DELETED:
        again = f"since {shown(since)}" if since else "for the first time"
        why = (
            f"the original is not found, {again}, and counts as deleted after {DELETED.total_seconds() / 3600:g} hours"
        )
        return replace(_blocked(one, f"{why}: {err}"), action="held")
    choice = f"pause the entry at {one.where}, or take the card down with `hft2ane retire`"
    return _blocked(one, f"the original is deleted or private, not found since {shown(since)}: {choice}; {err}")


def _decide(
    one: Wanted,
    found: Upstream,
    files: Sequence[RemoteFile],
    released: Conversion | Redo | None,
    now: Now,
    macs: Sequence[Measurement],
) -> tuple[Action, list[Reason]]:
    if released is None:
        return "create", [("request", "nothing is published yet")]
    if isinstance(released, Redo):
        return "convert", [(released.cause, " ".join(released.why.split()))]
    outdated = list(_outdated(one, files, released, now))
    unmeasured = [*_unmeasured(released, now), *_below(one.gates, released)]
    if outdated or unmeasured:
        return "convert" if outdated else "verify", outdated + unmeasured
    misdescribed = list(_misdescribed(found, files, released, now))
    misdescribed += [("verify", f"measured on {each.mac}") for each in macs]
    if one.major != released.major:
        misdescribed.append(("request", f"major {released.major} → {one.major}"))
    return "card" if misdescribed else "skip", misdescribed


def _settled(found: Upstream, released: Conversion | Redo | None) -> str:
    assert isinstance(released, Conversion)
    commit = released.source.commit[:12]
    if found.commit == released.source.commit:
        return f"nothing has changed since commit {commit}"
    return f"what has changed since commit {commit} is not part of the release"


def _outdated(one: Wanted, files: Sequence[RemoteFile], released: Conversion, now: Now) -> Iterator[Reason]:
    """Why the packages would not be the same today."""
    family, code = released.family, now.code(released.family)
    if keys.convert_key(files, one.recipe, family, code=code, versions=now.versions) == released.convert_key:
        return
    old = released.source.files
    for why in _changed_files(layout.shaping(old), layout.shaping(files)):
        yield "upstream", why
    for why in changes(asdict(released.recipe), asdict(one.recipe)):
        yield "request", why
    for why in changes(released.toolchain, now.versions):
        yield "toolchain", why
    if keys.convert_key(old, released.recipe, family, code=code, versions=released.toolchain) != released.convert_key:
        yield "toolchain", "the code that shapes the packages has changed"


def _unmeasured(released: Conversion, now: Now) -> Iterator[Reason]:
    """Why the published figures are not those that would be taken today."""
    if released.protocol != now.protocol:
        yield "verify", f"verification protocol changed: {released.protocol} → {now.protocol}"
        return
    packages: dict[str, str] = {package.what: package.digest for package in released.packages}
    if keys.verify_key(packages, now.protocol, keys.BACKEND, released.macs) != released.verify_key:
        yield "verify", "the published figures are of other packages, or were taken by another backend"


def _below(gates: Gates, released: Conversion) -> Iterator[Reason]:
    """Which published figures would not pass the gates as they are now."""
    for what, figure in released.psnr.items():
        gate = gates.of(what)
        if figure < gate:
            yield "verify", f"{what}: published {figure:.1f} dB, the gate is now {gate:g}"


def _misdescribed(found: Upstream, files: Sequence[RemoteFile], released: Conversion, now: Now) -> Iterator[Reason]:
    """Why the card, or the licence files with it, would not be the same today."""
    old, new = layout.legal(released.source.files), layout.legal(files)
    if keys.card_key(found.card, new, released.verify_key, now.presentation) == released.card_key:
        return
    for why in (*changes(asdict(released.source.card), asdict(found.card)), *_changed_files(old, new)):
        yield "upstream", why
    if keys.card_key(released.source.card, old, released.verify_key, now.presentation) != released.card_key:
        yield "toolchain", "the card's template has changed"


def _changed_files(old: Iterable[RemoteFile], new: Iterable[RemoteFile]) -> Iterator[str]:
    """e.g. `changed: config.json, vocab.txt; new: model.safetensors`"""
    before, after = ({file.path: file.oid for file in files} for files in (old, new))
    kinds = {
        "changed": {path for path in before.keys() & after.keys() if before[path] != after[path]},
        "new": after.keys() - before.keys(),
        "gone": before.keys() - after.keys(),
    }
    for kind, paths in kinds.items():
        if paths:
            yield f"{kind}: {', '.join(sorted(paths))}"


def changes(old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[str]:
    """e.g. `lengths 128 → 64, 128`"""
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} {_shown(old.get(name))} → {_shown(new.get(name))}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
