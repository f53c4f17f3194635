"""The night: read the manifests, ask the Hub, plan, have each job done, report. One failing model stops no other."""

import asyncio
import contextlib
import inspect
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.schemas.objects import State as Ended
from prefect.states import Cancelled, Completed, Failed

from flows.convert_model import Bar, check_lock
from flows.dispatch import Here, Place, Pool, Told, earlier_night
from flows.patience import forgiven, going_on, patiently
from hft2ane import disk, nights, records, room, state, waves
from hft2ane.attempts import State, news
from hft2ane.errors import NoSpace, NoWorker, TokenRefused
from hft2ane.hub import Hub
from hft2ane.records.job import TO_DO, Job
from hft2ane.records.night import Outcome, Run
from hft2ane.records.repo import owner_of
from hft2ane.survey import Survey, owners, remember, survey, wanted
from hft2ane.waves import belongs, held

# Told of each job's progress. Set by whoever shows it.
watcher: ContextVar[Told] = ContextVar("watcher", default=lambda model, what, share: None)
hub_of_run: ContextVar[Hub] = ContextVar("hub_of_run")


HOURS = 20.0  # so that a night that has much to do ends before the next one, with a report


def name() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


@flow(name="nightly", flow_run_name=name, validate_parameters=False)
def nightly(
    manifests: list[str] = ["manifests"],  # noqa: B006 - never changed; as a default it is in the deployment's schema
    organization: str | None = None,
    work: str | None = None,
    only: list[str] | None = None,
    wave: int = waves.LIMIT,
    dispatch: Literal["local", "pool"] = "local",
    lock: str | None = None,
    notify: str | None = None,
    hours: float | None = HOURS,
) -> Ended[Any]:
    """Everything that the manifests want and the Hub does not have. *Failed*: a model fails that did not before; the
    others are published all the same, and `work`/run.json says what happened to each.

    `wave`: models a night, of those to be done for a reason that many have; `dispatch`: here, or on the machines of the
    pool; `lock`: digest of the lock that is deployed, None: any will do; `notify`: a notification block of the server,
    e.g. `slack-webhook/hft2ane-night`, told of each night; `hours`: after so many no job is begun, None:
    all are. What is left waits for the next night."""
    night = Night(room.work_folder(work), tuple(only or ()), [organization] if organization else [])
    with going_on(str(runtime.flow_run.id)) if dispatch == "pool" else contextlib.nullcontext():
        try:
            if dispatch == "pool" and (other := earlier_night()):
                return Cancelled(message=f"another night is still going, {other.name}")
            conduct(night, manifests, organization, wave, dispatch, lock, hours)
            run = keep(night)
        except BaseException as err:
            broken_off(night, err, notify)
            raise
        run = replace(run, warnings=(*run.warnings, *told(notify, nights.headline(run), nights.notification(run))))
        show(run, save(night.folder, run))
        patiently(lambda: create_markdown_artifact(nights.markdown(run), "night", nights.headline(run)))
    return Failed(message=nights.headline(run)) if run.failed else Completed(message=nights.headline(run))


@dataclass
class Night:
    """What there is to tell of a night, as far as it has come. `owners`: the organisations that it is for."""

    folder: Path
    only: tuple[str, ...]
    owners: list[str]
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)
    hub: Hub | None = None
    found: Survey | None = None
    outcomes: list[Outcome] = field(default_factory=list)


def conduct(
    night: Night,
    manifests: list[str],
    organization: str | None,
    wave: int,
    dispatch: Literal["local", "pool"],
    lock: str | None,
    hours: float | None,
) -> None:
    """The night itself. Whatever it raises breaks it off, and what `night` has by then is told."""
    night.hub = hub = hub_of_run.get(None) or Hub()
    models = wanted([Path(path) for path in manifests], organization, night.only)
    night.owners = owners(models)
    check_lock(lock)
    night.found = found = survey(models, hub, complete=not night.only, limit=wave)
    to_do = sum(job.to_do for job in found.jobs)
    if to_do:
        hub.check_token()

    def late() -> str | None:
        over = hours is not None and time.monotonic() - night.clock > hours * 3600
        return f"{hours:g} hours are over, and so is the night" if over else None

    patiently(lambda: create_table_artifact(nights.plan_rows(found.jobs), "plan", "What is to be done, and why"))
    with place(dispatch, night.folder, hub) as there:
        for outcome in counted(each(found, there, late), to_do):
            night.outcomes.append(outcome)
            if outcome.action in TO_DO:
                get_run_logger().info("%s: %s", outcome.id, nights.line(outcome))


def keep(night: Night, broken: str | None = None) -> Run:
    """The night's report, on this machine and with what is to be remembered in the organisations' state. `broken`: why
    it broke off; what it had not come to waits, and what had failed by then counts."""
    outcomes: tuple[Outcome, ...] = ()
    before = after = State()
    if found := night.found:
        done = {outcome.repo for outcome in night.outcomes}
        rest = (job for job in found.jobs if job.repo not in done)
        left = [untouched(held(job, "the night broke off before it was done") if job.to_do else job) for job in rest]
        outcomes = in_order(found.jobs, [*night.outcomes, *left])
        before, after = found.world.state, remember(found, outcomes, datetime.now(UTC))
        outcomes = nights.explained(outcomes, after)
    fresh = news(before, after)
    run = Run(
        night.started,
        outcomes,
        tuple(outcome.id for outcome in outcomes if outcome.repo in fresh),
        round(time.monotonic() - night.clock, 1),
        found.warnings if found else (),
        sum(outcome.status == "skip" for outcome in outcomes),
        broken,
        night.only,
    )
    warnings = save(night.folder, run)  # first of all: whoever is ended from outside has not much time
    if night.hub:
        warnings += tuple(state.write(night.hub, before, after, night.owners, run))
    return replace(run, warnings=(*run.warnings, *warnings))


def save(folder: Path, run: Run) -> tuple[str, ...]:
    """run.json and run.md. Warnings: a disk that is full must not keep the night from being told elsewhere."""
    try:
        records.write(folder / "run.json", run)
        disk.write_bytes(folder / "run.md", nights.markdown(run).encode())
    except (OSError, NoSpace) as err:
        return (f"the report of this night is not in {folder}: {err}",)
    return ()


def broken_off(night: Night, err: BaseException, notify: str | None) -> None:
    """Leaves a report of a night all the same. Whoever ended it from outside need not be told that it has ended."""
    said = err if isinstance(err, Exception) else "it was ended from outside"
    why = " ".join(f"{type(err).__name__}: {said}".split())
    text, log = why, get_run_logger()
    try:
        run = keep(night, why)
        text = nights.notification(run)
        show(run, save(night.folder, run))
        if isinstance(err, Exception):
            with forgiven():
                create_markdown_artifact(nights.markdown(run), "night", nights.headline(run))
    finally:
        if isinstance(err, Exception):
            for warning in told(notify, f"hft2ane: the night has broken off: {type(err).__name__}", text):
                log.warning(warning)


def show(run: Run, more: Iterable[str]) -> None:
    for warning in (*run.warnings, *more):
        get_run_logger().warning(warning)


@contextlib.contextmanager
def place(dispatch: str, folder: Path, hub: Hub) -> Iterator[Place]:
    tell = watcher.get()
    if dispatch == "local":
        yield Here(folder, hub, tell)
    else:
        with Pool.opened(tell) as pool:
            yield pool


def each(found: Survey, there: Place, late: Callable[[], str | None]) -> Iterator[Outcome]:
    """The jobs in their order. What waits: what is not begun before it is `late` (and why), what is left of a wave that
    stops for its failures, what is for an organisation where nobody's token may publish, so that it is not converted
    for nothing, and all when there is no machine."""
    wave, waiting = found.wave, deque(found.jobs)
    barred: dict[str, str] = {}
    nobody: str | None = None
    going: dict[str, Job] = {}
    while waiting or going:
        while waiting and (not waiting[0].to_do or there.has_room()):
            job = waiting.popleft()
            if job.to_do and (why := nobody or late()):
                job = held(job, why)
            if job.to_do and not wave.takes(job):
                job = held(job, wave.stopped or "")
            if job.to_do and (why := barred.get(owner_of(job.repo))):
                job = held(job, why)
            if job.to_do:
                there.start(job)
                going[job.repo] = job
            else:
                yield untouched(job)
        for outcome in there.ended():
            job = going.pop(outcome.repo)
            if belongs(job) and outcome.status in ("published", "unchanged", "failed"):
                wave = wave.after(job.repo, failed=outcome.status == "failed")
            if outcome.kind == TokenRefused.__name__:
                barred[owner_of(job.repo)] = f"it could not be published, as {job.id} cannot: {outcome.error}"
            if outcome.kind == NoWorker.__name__:
                nobody = outcome.error
            yield outcome


def counted(outcomes: Iterator[Outcome], whole: int) -> Iterator[Outcome]:
    """Shows how many of the `whole` that are to be done have been."""
    bar, done = Bar("night"), 0
    for outcome in outcomes:
        if outcome.action in TO_DO:
            done += 1
            bar(f"{done} of {whole}", done / max(whole, done))
        yield outcome
    bar("done", 1.0)


def untouched(job: Job) -> Outcome:
    assert job.action in ("held", "blocked", "orphan", "skip")
    return Outcome(job.id, job.repo, job.action, job.why, job.action)


def in_order(jobs: list[Job], outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """As the plan has them, whenever they ended."""
    place = {job.repo: number for number, job in enumerate(jobs)}
    return tuple(sorted(outcomes, key=lambda outcome: place[outcome.repo]))


def told(block: str | None, subject: str, text: str) -> tuple[str, ...]:
    """Tells whoever wants to be told of the night. Warnings: it could not be."""
    if not block:
        return ()
    try:
        loaded = patiently(lambda: Block.load(block), away=60)
        if not isinstance(loaded, NotificationBlock):
            return (f"{block} is no notification block of Prefect, so nobody was told of this night",)
        sent: object = loaded.notify(text, subject=subject)
        if inspect.iscoroutine(sent):  # as the block was written
            asyncio.run(sent)
    except Exception as err:  # noqa: BLE001 - services of others fail in ways of their own, and the night is done
        return (f"{block} could not be told of this night: {type(err).__name__}: {err}",)
    return ()
