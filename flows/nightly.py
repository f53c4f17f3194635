"""The night: read the manifests, ask the Hub, plan, and do each job; one failing model stops no other.

A job is fetched and published in this process, which holds the token and runs no model code, and built in a child
process, which runs model code and has no token.
"""

import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff

from flows import child
from hft2ane import card, publish, records, source, state, waves
from hft2ane.attempts import news
from hft2ane.errors import Hft2aneError, Unavailable
from hft2ane.hub import Hub
from hft2ane.records import Job, Outcome, Published, Report, Run, silent
from hft2ane.survey import Survey, begin, owners, remember, survey, wanted
from hft2ane.waves import belongs, held

BUILD_TIMEOUT = 3600.0

# Told of each job's progress: (model id, what it does, share done). Set by whoever shows it.
Watcher = Callable[[str, str, float], None]
watcher: ContextVar[Watcher] = ContextVar("watcher", default=lambda model, what, share: None)
hub_of_run: ContextVar[Hub] = ContextVar("hub_of_run")


class NightlyFailed(Hft2aneError):
    """The run's other models are published all the same; run.json says what happened to each."""


def transient(_: Any, __: Any, end: Any) -> bool:
    """The surroundings failed, not the model: worth another try."""
    return isinstance(end.result(raise_on_failure=False), Unavailable)


retrying: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(2),
    "retry_condition_fn": transient,
}

fetch_task = task(name="fetch", **retrying)(source.fetch)
build_task = task(name="build", cache_policy=NO_CACHE)(child.build)
card_task = task(name="card", cache_policy=NO_CACHE)(card.refresh)
publish_task = task(name="publish", **retrying)(publish.publish)


@flow(name="nightly", validate_parameters=False)
def nightly(
    manifests: list[str],
    organization: str | None,
    work: str,
    only: list[str] | None = None,
    wave: int = waves.LIMIT,
) -> Run:
    """Everything that the manifests want and the Hub does not have. NightlyFailed: a model fails that did not before;
    see `work`/run.json. `wave`: models a night, of those to be done for a reason that many have."""
    started, clock, hub, folder = datetime.now(UTC), time.monotonic(), hub_of_run.get(Hub()), Path(work)
    models = wanted([Path(path) for path in manifests], organization, only)
    found = survey(models, hub, complete=not only, limit=wave)
    if any(job.to_do for job in found.jobs):
        hub.check_token()
    outcomes = tuple(each(found, folder, hub))
    before, after = found.world.state, remember(found, outcomes, folder, datetime.now(UTC))
    fresh = news(before, after)
    failed = tuple(outcome.id for outcome in outcomes if outcome.repo in fresh)
    skipped = sum(outcome.status == "skip" for outcome in outcomes)
    run = Run(started, outcomes, failed, round(time.monotonic() - clock, 1), tuple(found.warnings), skipped)
    warnings = state.write(hub, before, after, owners(models), run)
    run = replace(run, warnings=(*run.warnings, *warnings))
    for warning in run.warnings:
        get_run_logger().warning(warning)
    records.write(folder / "run.json", run)
    if failed:
        raise NightlyFailed(f"{len(failed)} of {len(outcomes)} models newly fail: {', '.join(failed)}")
    return run


def each(found: Survey, work: Path, hub: Hub) -> Iterator[Outcome]:
    """The jobs in turn, until a wave stops for its failures: what is left of it waits."""
    wave = found.wave
    for job in found.jobs:
        late = job.to_do and not wave.takes(job)
        outcome = do(held(job, wave.stopped or "") if late else job, work, hub)
        if belongs(job) and outcome.status in ("published", "unchanged", "failed"):
            wave = wave.after(job.repo, failed=outcome.status == "failed")
        yield outcome


def do(job: Job, work: Path, hub: Hub) -> Outcome:
    """One job from plan to Hub; a failure is an outcome."""
    if job.action in ("held", "blocked", "orphan", "skip"):
        return Outcome(job.id, job.repo, job.action, job.why, job.action)
    started, folder = time.monotonic(), work / job.repo.replace("/", "--")
    tell = watcher.get()

    def at(first: float, last: float) -> records.Progress:
        return lambda what, share: tell(job.id, what, first + (last - first) * share)

    try:
        begin(folder, job)
        fetch_task(folder, hub, at(0, 0.2))
        if job.action == "card":
            card_task(folder, silent)
        else:
            build_task(folder, work / "run.log", BUILD_TIMEOUT, at(0.2, 0.85))
        published = publish_task(folder, hub, at(0.85, 1))
    except Exception as err:  # noqa: BLE001 - whatever befalls one model, the others have their turn
        if not isinstance(err, Hft2aneError):
            get_run_logger().exception("%s failed in a way that nobody foresaw", job.id)
        tell(job.id, "failed", 1.0)
        seconds = round(time.monotonic() - started, 1)
        text = str(err) if isinstance(err, Hft2aneError) else f"{type(err).__name__}: {err}"
        kind = type(err).__name__
        return Outcome(job.id, job.repo, job.action, job.why, "failed", error=text, seconds=seconds, kind=kind)
    tell(job.id, "published", 1.0)
    return outcome(job, folder, published, round(time.monotonic() - started, 1))


def outcome(job: Job, folder: Path, published: Published, seconds: float) -> Outcome:
    """The figures of a finished job, from its folder."""
    report = records.read(folder / "report.json", Report)
    rewrite = [f.psnr_min for f in report.fidelity if f.is_rewrite]
    artefact = [f.psnr_min for f in report.fidelity if not f.is_rewrite]
    conversion = records.read(folder / "release" / "conversion.json", records.Conversion)
    return Outcome(
        id=job.id,
        repo=job.repo,
        action=job.action,
        why=job.why,
        status="published" if published.changed else "unchanged",
        task=conversion.task,
        rewrite=min(rewrite),
        artefact=min(artefact),
        size=sum(p.size for p in conversion.packages),
        tag=published.tag,
        seconds=seconds,
    )
