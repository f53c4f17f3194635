"""One job: from its line of the plan to the Hub, in its folder, with whatever befalls it as an outcome.

It is fetched and published in this process, which holds the token and runs no model code, and built in a child
process, which runs model code and has no token. `convert` does it where it is called; the flow `convert-model` does it
on the machine of a pool that takes it up, and answers with an artifact.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import Artifact, create_link_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff
from prefect.utilities.urls import url_for

from flows import child
from flows.patience import forgiven, going_on, patiently
from hft2ane import card, provenance, publish, records, room, source
from hft2ane.attempts import signature
from hft2ane.errors import Hft2aneError, NoSpace, OverLimit, TokenRefused, Unavailable, WorkerMismatch
from hft2ane.hub import Hub
from hft2ane.progress import Progress, silent
from hft2ane.records.job import Job
from hft2ane.records.night import Outcome
from hft2ane.records.release import Conversion, Published, Report
from hft2ane.survey import begin, folder_of, model_type

# Why one machine cannot do what another may.
REFUSALS = (WorkerMismatch.__name__, NoSpace.__name__, TokenRefused.__name__)
ANSWER = "outcome"  # the type of the artifact that a run leaves
HOLD = 60.0  # seconds that a worker which cannot do a job keeps it, so that it does not empty the queue
TOLD = 5.0  # seconds between two updates of a progress bar
WAITS = "waits until another run on this machine is done"
TAIL = 40  # lines of a failed conversion's log that go to the run's


def transient(_: Any, __: Any, end: Any) -> bool:
    """The surroundings failed, not the model: worth another try."""
    return isinstance(end.result(raise_on_failure=False), Unavailable)


retrying: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": transient,
}

# Their runs are named by what they do and the job's folder, which a night in one process has many of.
fetch_task = task(name="fetch", task_run_name="fetch {folder.name}", **retrying)(source.fetch)
build_task = task(name="build", task_run_name="build {folder.name}", cache_policy=NO_CACHE)(child.build)
card_task = task(name="card", task_run_name="card {folder.name}", cache_policy=NO_CACHE)(card.refresh)
publish_task = task(name="publish", task_run_name="publish {folder.name}", **retrying)(publish.publish)


@flow(name="convert-model", flow_run_name="{job[repo]}", validate_parameters=False)
def convert_model(job: dict[str, Any], lock: str | None = None, work: str | None = None) -> State[Any]:
    """`job`: as in job.json; `lock`: digest of the lock that is deployed, None: any will do; `work`: see
    `room.work_folder`."""
    line = records.parse(json.dumps(job), Job, "the job")
    with going_on(str(runtime.flow_run.id)):
        try:
            check_lock(lock)
        except WorkerMismatch as err:
            found = failure(line, err)
        else:
            found = convert(line, room.work_folder(work), Hub(), Bar(line.repo))
        if found.kind in REFUSALS:
            time.sleep(HOLD)
        found = replace(found, worker=machine(), log=page(runtime.flow_run.id))
        answer = Artifact(type=ANSWER, key=slug(f"{ANSWER}-{line.repo}"), data=json.loads(records.dump(found)))
        patiently(answer.create)
        if found.url:
            name, key = f"{found.repo}@{found.tag}", slug(f"published-{found.repo}")
            patiently(lambda: create_link_artifact(str(found.url), name, key=key))
    said = f"{found.status}: {found.error or found.why}"
    return Failed(message=said) if found.status == "failed" else Completed(message=said)


def convert(job: Job, work: Path, hub: Hub, tell: Progress) -> Outcome:
    """A job that is to be done, from plan to Hub; a failure is an outcome."""
    started, folder = time.monotonic(), folder_of(work, job)

    def at(first: float, last: float) -> Progress:
        return lambda what, share: tell(what, first + (last - first) * share)

    try:
        with room.alone(folder):
            hub.check_token()  # this machine's: else it would convert for nothing
            room.make(work, folder, job)
            begin(folder, job)
            fetch_task(folder, hub, at(0, 0.2))
            if job.action == "card":
                card_task(folder, silent)
            else:
                with turn(work, at(0.2, 0.85)):
                    build_task(folder, child.Limits.of(job), at(0.2, 0.85))
            published = publish_task(folder, hub, at(0.85, 1))
            found = finished(job, folder, published)
    except Exception as err:  # noqa: BLE001 - whatever befalls one model, the others have their turn
        if not isinstance(err, Hft2aneError):
            get_run_logger().exception("%s failed in a way that nobody foresaw", job.id)
        for line in tail(folder / child.LOG):
            get_run_logger().info("%s", line)
        if isinstance(err, NoSpace | OverLimit):
            room.empty(folder)
        found = failure(job, err)
    tell(found.status, 1.0)
    return replace(
        found, seconds=round(time.monotonic() - started, 1), family=model_type(folder), worker=machine(),
        log=str(folder / child.LOG),
    )  # fmt: skip


@contextlib.contextmanager
def turn(work: Path, tell: Progress) -> Iterator[None]:
    """One process at a time runs models on a machine, that is, over one work folder. A run goes on when its worker has
    ended, and the next worker takes up another one: two at once would need the memory of both."""
    with room.alone(work / "machine", wait=False) as free:
        if free:
            yield
            return
    tell(WAITS, 0.0)
    get_run_logger().info(WAITS)
    with room.alone(work / "machine"):
        yield


def failure(job: Job, err: Exception) -> Outcome:
    kind, text = type(err).__name__, str(err) if isinstance(err, Hft2aneError) else f"{type(err).__name__}: {err}"
    return Outcome(
        job.id, job.repo, job.action, job.why, "failed", error=text, kind=kind, signature=signature(kind, text)
    )  # fmt: skip


def finished(job: Job, folder: Path, published: Published) -> Outcome:
    """The figures of a finished job, from its folder."""
    report = records.read(folder / "report.json", Report)
    rewrite = [f.psnr_min for f in report.fidelity if f.is_rewrite]
    artefact = [f.psnr_min for f in report.fidelity if not f.is_rewrite]
    conversion = records.read(folder / "release" / "conversion.json", Conversion)
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
        url=published.url,
    )


def check_lock(deployed: str | None) -> None:
    """WorkerMismatch: the packages installed here are not those of the deployment's lock."""
    here = provenance.lock()
    if deployed is not None and here != deployed:
        raise WorkerMismatch(
            f"{machine()} has the lock {(here or 'none')[:12]}, and {deployed[:12]} is deployed: in its checkout, "
            "`git pull && make .venv`, and start its worker again"
        )
    # The lock came with the deployed code, which a worker clones for each run; its environment is older.
    if deployed is not None and (strays := provenance.strays()):
        raise WorkerMismatch(
            f"{machine()} has not what is deployed: {', '.join(strays[:3])}: in its checkout, `git pull`, make .venv "
            "anew, and start its worker again"
        )


def machine() -> str:
    """By which people know it: HFT2ANE_WORKER, or its name in the network."""
    return os.environ.get("HFT2ANE_WORKER") or socket.gethostname().partition(".")[0]


def page(run: UUID | str | None) -> str | None:
    """Where Prefect shows a run; None: nowhere, outside of a server."""
    return url_for("flow-run", obj_id=run) if run and os.environ.get("PREFECT_API_URL") else None


def tail(log: Path) -> list[str]:
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        return file.read().decode(errors="replace").splitlines()[-TAIL:]


def slug(text: str) -> str:
    """A key that Prefect takes: lower case letters, digits and dashes."""
    return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in text.lower()).split())


class Bar:
    """Progress as Prefect shows it, told now and then. `what`: a repo, or the night."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.told = clock, clock()
        made = patiently(lambda: create_progress_artifact(0.0, key=slug(f"progress-{what}"), description=what))
        assert isinstance(made, UUID)  # a coroutine in async code only
        self.artifact = made

    def __call__(self, what: str, share: float) -> None:
        if share < 1 and self.clock() - self.told < TOLD:
            return
        self.told = self.clock()
        with forgiven():
            update_progress_artifact(self.artifact, 100 * min(share, 1.0), what)
