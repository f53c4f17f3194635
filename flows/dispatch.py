"""Where a night's jobs are done: `Here`, one after another in this process, or on the machines of a `Pool`.

A run of the pool that crashed is dispatched again, a few times. A run that an earlier night left behind, still going,
is taken over.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from prefect import get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows import convert_model
from flows.deployments import GOING, deployment, runs
from flows.patience import GRACE, is_given_up, patiently
from hft2ane import records
from hft2ane.errors import BadInput, NoWorker, WorkerLost
from hft2ane.hub import Hub
from hft2ane.progress import Progress
from hft2ane.records.job import Job
from hft2ane.records.night import Outcome

DEPLOYMENT = "convert-model/mac"
TRIES = 3
POLL = 2.0  # seconds between looks at the runs
PATIENCE = 7200.0  # seconds without any machine that takes jobs up
TAG = "hft2ane"  # of the runs that nights dispatch
WORKER = "prefect.worker.name"  # the label that a worker gives to a run when it takes it up
PAUSE, LONGEST_PAUSE = 60.0, 900.0  # seconds until a run that never began is tried again, twice as long each time

Told = Callable[[str, str, float], None]  # model id, what it does, share done


class Place(Protocol):
    """Where jobs are done."""

    def has_room(self) -> bool:
        """Whether one more may be started."""

    def start(self, job: Job) -> None: ...

    def ended(self) -> list[Outcome]:
        """Of those started, what has ended since the last call: at least one, when one was started."""


class Here:
    def __init__(self, work: Path, hub: Hub, tell: Told) -> None:
        self.work, self.hub, self.tell = work, hub, tell
        self.job: Job | None = None

    def has_room(self) -> bool:
        return self.job is None

    def start(self, job: Job) -> None:
        self.job = job

    def ended(self) -> list[Outcome]:
        job, self.job = self.job, None
        return [convert_model.convert(job, self.work, self.hub, self.progress(job))] if job else []

    def progress(self, job: Job) -> Progress:
        return lambda what, share: self.tell(job.id, what, share)


@dataclass
class Flying:
    """A run of the pool: its job, and the number of the try. `losses`: of the tries before, how many were lost;
    `refused`: the machines that could not do it; `pauses`: how many of them never began; `began`: when it was first
    tried."""

    job: Job
    tries: int = 1
    losses: int = 0
    refused: frozenset[str] = frozenset()
    pauses: int = 0
    began: float = field(default_factory=time.monotonic)
    seen: str = ""  # its state when it was last looked at
    given_up: float | None = None  # since when the server takes it for lost


class Pool:
    """The machines that serve the deployment `convert-model/mac`. Two runs a machine are in the air at most, so that
    none waits for us, and few are to be called back."""

    def __init__(self, client: SyncPrefectClient, tell: Told) -> None:
        self.client, self.tell, self.log = client, tell, get_run_logger()
        self.night = str(runtime.flow_run.id)
        self.flying: dict[UUID, Flying] = {}
        there = deployment(client, DEPLOYMENT)
        self.pool, self.deployment = str(there.work_pool_name), there.id
        self.left = self.left_behind()
        self.machines, self.counted = self.online(), time.monotonic()
        self.alive = time.monotonic()  # when a machine last showed itself

    @classmethod
    @contextlib.contextmanager
    def opened(cls, tell: Told) -> Iterator["Pool"]:
        """A night that ends early, as when it is cancelled, takes its runs with it."""
        with get_client(sync_client=True) as client:
            pool = cls(client, tell)
            try:
                yield pool
            except BaseException:
                pool.cancel()
                raise

    def has_room(self) -> bool:
        if time.monotonic() - self.counted > 15 * POLL:
            self.machines, self.counted = self.online(), time.monotonic()
        return len(self.flying) < 2 * max(1, self.machines)

    def online(self) -> int:
        workers = patiently(lambda: self.client.read_workers_for_work_pool(self.pool))
        return sum(worker.status == WorkerStatus.ONLINE for worker in workers)

    def going(self) -> list[FlowRun]:
        """Runs of the deployment that have not ended, whoever dispatched them."""
        return runs(self.client, self.deployment, GOING)

    def left_behind(self) -> dict[str, list[FlowRun]]:
        """Runs that an earlier night dispatched and that have not ended, by the repo that they are for."""
        found: dict[str, list[FlowRun]] = {}
        for run in self.going():
            if isinstance(job := run.parameters.get("job"), dict):
                found.setdefault(str(job.get("repo")), []).append(run)
        return found

    def start(self, job: Job) -> None:
        if not self.takes_over(job):
            self.dispatch(Flying(job))

    def takes_over(self, job: Job) -> bool:
        """Whether a run of an earlier night does this job. One that does another one for the same repo is called back:
        it might publish later than ours."""
        taken, wanted = False, job_key(json.loads(records.dump(job)))
        for run in self.left.pop(job.repo, []):
            if not taken and job_key(run.parameters["job"]) == wanted:
                self.log.info("%s: its run of an earlier night is still going", job.id)
                self.flying[run.id], taken = Flying(job), True
            elif TAG in run.tags:
                self.log.info("%s: its run of an earlier night is called back", job.id)
                self.call_back(run.id, "a later night does it")
        return taken

    def dispatch(self, flying: Flying, after: float = 0.0) -> None:
        """`after`: seconds until a machine may take it up."""
        job, when = flying.job, datetime.now(UTC) + timedelta(seconds=after)
        made = patiently(
            lambda: run_deployment(
                DEPLOYMENT,
                parameters={"job": json.loads(records.dump(job))},
                timeout=0,
                scheduled_time=when,
                flow_run_name=job.repo,
                idempotency_key=f"{self.night}/{job.repo}/{flying.tries}",
                tags=[TAG],
            )
        )
        assert isinstance(made, FlowRun)  # a coroutine in async code only
        self.flying[made.id] = flying

    def ended(self) -> list[Outcome]:
        while self.flying:
            time.sleep(POLL)
            if outcomes := list(self.look_around()):
                return outcomes
            if time.monotonic() - self.alive > PATIENCE:
                if not self.busy():
                    return self.give_up()
                self.alive = time.monotonic()
        return []

    def busy(self) -> bool:
        """Whether the machines do something else, such as an audit."""
        return bool(
            patiently(
                lambda: self.client.read_flow_runs(
                    work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self.pool])),
                    flow_run_filter=FlowRunFilter(
                        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
                    ),
                    limit=1,
                )
            )
        )

    def look_around(self) -> Iterator[Outcome]:
        ids = list(self.flying)
        for first in range(0, len(ids), 100):
            some = ids[first : first + 100]
            which = FlowRunFilter(id=FlowRunFilterId(any_=some))
            runs = patiently(lambda which=which: self.client.read_flow_runs(flow_run_filter=which, limit=100))  # type: ignore[misc]
            there = {run.id: run for run in runs}
            for id in some:
                yield from self.look(id, there.get(id))

    def look(self, id: UUID, run: FlowRun | None) -> Iterator[Outcome]:
        """The outcome of a run that has ended, unless it is tried again."""
        flying = self.flying[id]
        if run and not (run.state and run.state.is_final()):
            name = (run.state and run.state.name) or ""
            if run.state and run.state.is_running():
                self.alive = time.monotonic()
            if name != flying.seen:
                flying.seen = name
                self.tell(flying.job.id, name.lower(), 0.0)
            flying.given_up = None
            return
        if run and run.state and is_given_up(run.state):
            flying.given_up = flying.given_up or time.monotonic()
            if time.monotonic() - flying.given_up < GRACE:
                return
        self.alive = time.monotonic()
        del self.flying[id]
        found = replace(self.told(run, flying.job), tries=flying.tries)
        idle = never_began(run)
        if again := self.once_more(flying, found, idle):
            pause = min(PAUSE * 2**flying.pauses, LONGEST_PAUSE) if idle else 0.0
            self.log.warning("%s: try %d, on %s: %s", found.id, flying.tries, found.worker or "no machine", found.error)
            self.dispatch(again, pause)
            return
        self.tell(found.id, found.status, 1.0)
        yield found

    def once_more(self, flying: Flying, found: Outcome, idle: bool) -> Flying | None:
        """Its next try; None: there is none. A loss counts. That a machine cannot do it says nothing of the others, and
        it may well be the first to take it up again: so that counts not, while there are others, for a while. `idle`:
        it never began, as on a machine that cannot fetch the code."""
        again = replace(flying, tries=flying.tries + 1, pauses=flying.pauses + idle, seen="", given_up=None)
        refuses = found.kind in convert_model.REFUSALS or (idle and found.worker)
        if refuses and time.monotonic() - flying.began < PATIENCE:
            refused = flying.refused | {found.worker}
            if len(refused) < self.online():
                return replace(again, refused=refused)
        if found.kind == WorkerLost.__name__ and flying.losses + 1 < TRIES:
            return replace(again, losses=flying.losses + 1)
        return None

    def told(self, run: FlowRun | None, job: Job) -> Outcome:
        """The outcome of a run that has ended. None: it is not there any more."""
        if run is None:
            err = WorkerLost("the server does not know its run any more: it was deleted, or the server is another one")
            return convert_model.failure(job, err)
        try:
            return self.outcome(run, job)
        except BadInput as err:  # of an earlier night's run, another version's
            return convert_model.failure(job, err)

    def outcome(self, run: FlowRun, job: Job) -> Outcome:
        """As the run told it, or what its end tells of it."""
        state = run.state
        assert state is not None
        answers = ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]), type=ArtifactFilterType(any_=[convert_model.ANSWER])
        )
        for answer in patiently(lambda: self.client.read_artifacts(artifact_filter=answers)):
            return records.parse(str(answer.data), Outcome, f"the answer of run {run.id}")
        address = convert_model.page(run.id)
        if state.is_cancelled():
            by_hand = "its run was cancelled by hand"
            return Outcome(job.id, job.repo, job.action, job.why, "held", error=by_hand, log=address)
        how = " ".join((state.message or "").split()) or "no reason is given"
        lost = convert_model.failure(job, WorkerLost(f"{state.name}: {how}"))
        return replace(lost, worker=str(run.labels.get(WORKER, "")), log=address)

    def give_up(self) -> list[Outcome]:
        flying = list(self.flying.values())
        self.cancel()
        hours = PATIENCE / 3600
        why = (
            f"no machine of the pool {self.pool} took a job up for {hours:g} hours: is a worker running? "
            "`hft2ane worker doctor` on one tells more"
        )
        return [convert_model.failure(each.job, NoWorker(why)) for each in flying]

    def cancel(self) -> None:
        """All runs of this night; also one that the server has made and whose answer we did not wait for."""
        ours = {run.id for run in self.going() if (run.idempotency_key or "").startswith(f"{self.night}/")}
        for id in self.flying.keys() | ours:
            self.call_back(id, "its night has ended")
        self.flying.clear()

    def call_back(self, run: UUID, why: str) -> None:
        with contextlib.suppress(ObjectNotFound):  # deleted by hand
            patiently(lambda: self.client.set_flow_run_state(run, Cancelling(message=why)))


def earlier_night() -> FlowRun | None:
    """Another run of the deployment that this one is of, which began before it and is going. Prefect's own limit will
    not do: whoever holds it is ended when the server was away for longer than its lease."""
    with get_client(sync_client=True) as client:
        mine = patiently(lambda: client.read_flow_run(UUID(str(runtime.flow_run.id))))
        if mine.deployment_id is None:
            return None
        found = runs(client, mine.deployment_id, [StateType.RUNNING])
    return next((run for run in found if (run.start_time, run.id) < (mine.start_time, mine.id)), None)


def never_began(run: FlowRun | None) -> bool:
    """Whether a machine took it up and failed before any of our code ran: that was not fetched, or Python did not
    start."""
    if not run or not run.state or is_given_up(run.state):
        return False
    return run.state.is_final() and not run.run_count and WORKER in run.labels


def job_key(job: Any) -> bytes:
    return json.dumps(job, sort_keys=True).encode()
