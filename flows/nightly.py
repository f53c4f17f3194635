"""The night: read the manifests, ask the Hub, plan, have each job done, report. One failing model stops no other."""

import asyncio
import contextlib
import inspect
import time
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed

from flows.convert_model import Bar, check_lock
from flows.dispatch import Here, Place, Pool, Told, earlier_night
from flows.patience import going_on, patiently
from hft2ane import disk, nights, records, room, state, waves
from hft2ane.attempts import news
from hft2ane.errors import Hft2aneError
from hft2ane.hub import Hub
from hft2ane.records.job import TO_DO, Job
from hft2ane.records.night import Outcome, Run
from hft2ane.survey import Survey, owners, remember, survey, wanted
from hft2ane.waves import belongs, held

# Told of each job's progress. Set by whoever shows it.
watcher: ContextVar[Told] = ContextVar("watcher", default=lambda model, what, share: None)
hub_of_run: ContextVar[Hub] = ContextVar("hub_of_run")


class NightlyFailed(Hft2aneError):
    """The run's other models are published all the same; run.json says what happened to each."""


@flow(name="nightly", validate_parameters=False)
def nightly(
    manifests: list[str] = ["manifests"],  # noqa: B006 - never changed; as a default it is in the deployment's schema
    organization: str | None = None,
    work: str | None = None,
    only: list[str] | None = None,
    wave: int = waves.LIMIT,
    dispatch: Literal["local", "pool"] = "local",
    lock: str | None = None,
    notify: str | None = None,
) -> State[Any]:
    """Everything that the manifests want and the Hub does not have. NightlyFailed: a model fails that did not before;
    see `work`/run.json.

    `wave`: models a night, of those to be done for a reason that many have; `dispatch`: here, or on the machines of the
    pool; `lock`: digest of the lock that is deployed, None: any will do; `notify`: a notification block of the server,
    e.g. `slack-webhook/hft2ane-night`, told of each night."""
    try:
        check_lock(lock)
        with here(dispatch) as other:
            if other:
                return Cancelled(message=f"another night is still going, {other.name}")
            run = conducted(manifests, organization, work, only, wave, dispatch, notify)
    except Exception as err:
        why = str(err) if isinstance(err, Hft2aneError) else f"{type(err).__name__}: {err}"
        for warning in told(notify, f"hft2ane: the night has broken off: {type(err).__name__}", why):
            get_run_logger().warning(warning)
        raise
    if run.failed:
        raise NightlyFailed(nights.headline(run))
    return Completed(message=nights.headline(run))


def conducted(
    manifests: list[str],
    organization: str | None,
    work: str | None,
    only: list[str] | None,
    wave: int,
    dispatch: Literal["local", "pool"],
    notify: str | None,
) -> Run:
    """A night that does not break off, with all that is left of it: run.json, what is remembered, what people read."""
    started, clock, hub = datetime.now(UTC), time.monotonic(), hub_of_run.get(Hub())
    folder = room.work_folder(work)
    models = wanted([Path(path) for path in manifests], organization, only)
    found = survey(models, hub, complete=not only, limit=wave)
    if any(job.to_do for job in found.jobs):
        hub.check_token()
    patiently(lambda: create_table_artifact(nights.plan_rows(found.jobs), "plan", "What is to be done, and why"))
    with place(dispatch, folder, hub) as there:
        outcomes = in_order(found.jobs, counted(each(found, there), sum(job.to_do for job in found.jobs)))
    before, after = found.world.state, remember(found, outcomes, datetime.now(UTC))
    outcomes = nights.explained(outcomes, after)
    fresh = news(before, after)
    run = Run(
        started,
        outcomes,
        tuple(outcome.id for outcome in outcomes if outcome.repo in fresh),
        round(time.monotonic() - clock, 1),
        found.warnings,
        sum(outcome.status == "skip" for outcome in outcomes),
    )
    run = replace(run, warnings=(*run.warnings, *state.write(hub, before, after, owners(models), run)))
    run = replace(run, warnings=(*run.warnings, *told(notify, nights.headline(run), nights.notification(run))))
    for warning in run.warnings:
        get_run_logger().warning(warning)
    records.write(folder / "run.json", run)
    disk.write_bytes(folder / "run.md", nights.markdown(run).encode())
    patiently(lambda: create_markdown_artifact(nights.markdown(run), "night", nights.headline(run)))
    return run


@contextlib.contextmanager
def here(dispatch: str) -> Iterator[FlowRun | None]:
    """On a server a night goes on though it was given up, and leaves it to the one that began before."""
    if dispatch == "local":
        yield None
    else:
        with going_on(str(runtime.flow_run.id)):
            yield earlier_night()


@contextlib.contextmanager
def place(dispatch: str, folder: Path, hub: Hub) -> Iterator[Place]:
    tell = watcher.get()
    if dispatch == "local":
        yield Here(folder, hub, tell)
    else:
        with Pool.opened(tell) as pool:
            yield pool


def each(found: Survey, there: Place) -> Iterator[Outcome]:
    """The jobs in their order, until a wave stops for its failures: what is left of it waits."""
    wave, waiting = found.wave, deque(found.jobs)
    going: dict[str, Job] = {}
    while waiting or going:
        while waiting and (not waiting[0].to_do or there.has_room()):
            job = waiting.popleft()
            if job.to_do and not wave.takes(job):
                job = held(job, wave.stopped or "")
            if job.to_do:
                there.start(job)
                going[job.repo] = job
            else:
                yield untouched(job)
        for outcome in there.ended():
            job = going.pop(outcome.repo)
            if belongs(job) and outcome.status in ("published", "unchanged", "failed"):
                wave = wave.after(job.repo, failed=outcome.status == "failed")
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


def in_order(jobs: list[Job], outcomes: Iterator[Outcome]) -> tuple[Outcome, ...]:
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
