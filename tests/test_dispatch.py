"""A night's runs on a real Prefect server, where the test does what workers would: it ends them, in every way."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Running

from flows import convert_model, dispatch, patience
from flows.dispatch import Pool
from flows.patience import SILENCE, is_given_up
from flows.server import server
from hft2ane import records
from hft2ane.errors import NoSpace, TokenRefused, WorkerMismatch
from hft2ane.records.job import Job
from hft2ane.records.night import Outcome
from tests.island import until

pytestmark = pytest.mark.slow

JOB = Job("create", "nothing is published yet", "me/one", "ane/one-ane")


@dataclass
class Machines:
    """A pool named as the test, with the deployment that is dispatched to."""

    client: SyncPrefectClient
    pool: str
    deployment: UUID
    told: list[tuple[str, str, float]] = field(default_factory=list)

    def opened(self) -> Pool:
        return Pool(self.client, lambda *what: self.told.append(what))

    def online(self, *names: str) -> None:
        for name in names:
            self.client.send_worker_heartbeat(self.pool, name, 30)

    def run(self, job: Job, **more: Any) -> FlowRun:
        """As a night would dispatch it, or a person."""
        parameters = {"job": json.loads(records.dump(job))}
        return self.client.create_flow_run_from_deployment(self.deployment, parameters=parameters, **more)

    def takes_up(self, run: UUID, worker: str) -> None:
        """As a worker says of itself before it fetches the code."""
        self.client.update_flow_run_labels(run, {dispatch.WORKER: worker})

    def ends(self, run: UUID, state: State[Any], answer: str | None = None) -> None:
        if answer is not None:
            self.client.create_artifact(ArtifactCreate(type=convert_model.ANSWER, data=answer, flow_run_id=run))
        self.client.set_flow_run_state(run, state, force=True)

    def state(self, run: UUID) -> StateType | None:
        return self.client.read_flow_run(run).state_type


@flow(name="convert-model")
def stand_in(job: dict[str, Any]) -> None: ...


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[SyncPrefectClient]:
    home = tmp_path_factory.mktemp("server")
    shutil.copy(database, home / "prefect.db")
    with (
        server(home) as started,
        temporary_settings({PREFECT_API_URL: started.url, PREFECT_LOGGING_TO_API_ENABLED: False}),
        get_client(sync_client=True) as client,
        disable_run_logger(),
    ):
        yield client


@pytest.fixture
def machines(
    client: SyncPrefectClient, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machines]:
    name = convert_model.slug(request.node.name)
    client.create_work_pool(WorkPoolCreate(name=name, type="process"))
    made = client.create_deployment(client.create_flow(stand_in), name, work_pool_name=name)
    monkeypatch.setattr(dispatch, "DEPLOYMENT", f"convert-model/{name}")
    monkeypatch.setattr(dispatch, "POLL", 0.05)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(uuid4()))
    yield Machines(client, name, made)
    for run in client.read_flow_runs():
        client.delete_flow_run(run.id)


def answer(**more: Any) -> str:
    done = Outcome(JOB.id, JOB.repo, JOB.action, JOB.why, "published", worker="mac-1")
    return records.dump(replace(done, **more)).decode()


def refusal(kind: type[Exception], worker: str) -> str:
    return records.dump(replace(convert_model.failure(JOB, kind("no")), worker=worker)).decode()


def only(pool: Pool) -> UUID:
    (run,) = pool.flying
    return run


def step(pool: Pool) -> list[Outcome]:
    return list(pool.look_around())


def test_a_run_of_an_earlier_night_is_taken_over(machines: Machines) -> None:
    earlier = machines.run(JOB, tags=[dispatch.TAG])
    pool = machines.opened()
    pool.start(JOB)
    assert only(pool) == earlier.id
    machines.ends(earlier.id, Completed(), answer())
    assert [outcome.status for outcome in pool.ended()] == ["published"]


def test_one_that_does_something_else_for_the_same_repo_is_called_back(machines: Machines) -> None:
    """It would publish what is no longer wanted, maybe after ours. One that a person made is left alone."""
    other = replace(JOB, commit="b" * 40)
    earlier, by_hand = machines.run(other, tags=[dispatch.TAG]), machines.run(other)
    pool = machines.opened()
    pool.start(JOB)
    assert only(pool) not in (earlier.id, by_hand.id)
    assert machines.state(earlier.id) == StateType.CANCELLED
    assert machines.state(by_hand.id) == StateType.SCHEDULED


def test_one_that_is_being_cancelled_is_not_waited_for(machines: Machines) -> None:
    """Its machine may be gone, and then it never ends."""
    earlier = machines.run(JOB, tags=[dispatch.TAG])
    for state in (Running(), Cancelling()):
        machines.ends(earlier.id, state)
    assert machines.state(earlier.id) == StateType.CANCELLING
    pool = machines.opened()
    pool.start(JOB)
    assert only(pool) != earlier.id


def test_a_run_that_is_lost_is_tried_three_times(machines: Machines) -> None:
    pool = machines.opened()
    pool.start(JOB)
    machines.ends(only(pool), Crashed(message="worker lost"))
    assert step(pool) == []
    machines.client.delete_flow_run(only(pool))  # by hand, or the whole server is another one
    assert step(pool) == []
    machines.ends(only(pool), Failed(message="it could not be cloned"))
    (outcome,) = pool.ended()
    assert (outcome.status, outcome.kind, outcome.tries) == ("failed", "WorkerLost", 3)
    assert "could not be cloned" in (outcome.error or "")


def test_a_deleted_run_is_told_as_that(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "TRIES", 1)
    pool = machines.opened()
    pool.start(JOB)
    machines.client.delete_flow_run(only(pool))
    (outcome,) = pool.ended()
    assert "the server does not know its run any more" in (outcome.error or "")


@pytest.mark.parametrize("kind", [NoSpace, WorkerMismatch, TokenRefused])
def test_a_machine_that_can_do_no_job_spoils_none(machines: Machines, kind: type[Exception]) -> None:
    """It has nothing else to do, so it takes up again and again what a busy one would do."""
    machines.online("mac-1", "mac-2")
    pool = machines.opened()
    pool.start(JOB)
    for _ in range(5):
        machines.ends(only(pool), Failed(), refusal(kind, "mac-1"))
        assert step(pool) == []
    machines.ends(only(pool), Completed(), answer(worker="mac-2"))
    (outcome,) = pool.ended()
    assert (outcome.status, outcome.tries) == ("published", 6)


def test_what_all_machines_refuse_has_failed(machines: Machines) -> None:
    machines.online("mac-1", "mac-2")
    pool = machines.opened()
    pool.start(JOB)
    machines.ends(only(pool), Failed(), refusal(NoSpace, "mac-1"))
    assert step(pool) == []
    machines.ends(only(pool), Failed(), refusal(NoSpace, "mac-2"))
    (outcome,) = pool.ended()
    assert (outcome.status, outcome.kind, outcome.tries) == ("failed", "NoSpace", 2)


def test_a_machine_that_cannot_fetch_the_code_spoils_none(machines: Machines) -> None:
    """Its runs crash before any of our code runs, within seconds, and it takes up the next one before all others. So
    they wait, the longer the more of them there were, and count not, while another machine is there."""
    machines.online("mac-1", "mac-2")
    pool = machines.opened()
    pool.start(JOB)
    for pause in (60, 120, 240, 480, 900, 900):
        machines.takes_up(only(pool), "mac-1")
        machines.ends(only(pool), Crashed(message="exited with non-zero status code 1"))
        assert step(pool) == []
        again = machines.client.read_flow_run(only(pool))
        assert again.next_scheduled_start_time
        assert again.created
        assert (again.next_scheduled_start_time - again.created).total_seconds() == pytest.approx(pause, abs=10)
    machines.ends(only(pool), Completed(), answer(worker="mac-2"))
    (outcome,) = pool.ended()
    assert (outcome.status, outcome.tries) == ("published", 7)


def test_what_no_machine_begins_is_told_with_the_machine(machines: Machines) -> None:
    machines.online("mac-1")
    pool = machines.opened()
    pool.start(JOB)
    for _ in range(dispatch.TRIES):
        assert pool.flying
        machines.takes_up(only(pool), "mac-1")
        machines.ends(only(pool), Crashed(message="exited with non-zero status code 1"))
        outcomes = step(pool)
    (outcome,) = outcomes
    assert (outcome.kind, outcome.worker, outcome.tries) == ("WorkerLost", "mac-1", 3)


def test_a_run_that_had_begun_is_tried_again_at_once(machines: Machines) -> None:
    machines.online("mac-1", "mac-2")
    pool = machines.opened()
    pool.start(JOB)
    machines.takes_up(only(pool), "mac-1")
    machines.ends(only(pool), Running())
    machines.ends(only(pool), Crashed(message="killed"))
    assert step(pool) == []
    again = machines.client.read_flow_run(only(pool))
    assert again.next_scheduled_start_time
    assert again.created
    assert again.next_scheduled_start_time <= again.created
    assert pool.flying[again.id].losses == 1


GIVEN_UP = f"{SILENCE} 90 s: worker or machine lost."


def test_a_run_that_was_given_up_and_goes_on_is_not_done_twice(machines: Machines) -> None:
    """A server that was away calls healthy runs lost when it is back; they have a while to say that they are not."""
    pool = machines.opened()
    pool.start(JOB)
    machines.ends(only(pool), Running())
    machines.ends(only(pool), Crashed(message=GIVEN_UP))
    assert step(pool) == []
    machines.ends(only(pool), Running())
    assert step(pool) == []
    machines.ends(only(pool), Completed(), answer())
    (outcome,) = pool.ended()
    assert (outcome.status, outcome.tries) == ("published", 1)


def test_one_that_does_not_go_on_is_tried_again(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = machines.opened()
    pool.start(JOB)
    lost = only(pool)
    machines.ends(lost, Running())
    machines.ends(lost, Crashed(message=GIVEN_UP))
    assert step(pool) == []
    assert only(pool) == lost
    monkeypatch.setattr(dispatch, "GRACE", 0.0)
    assert step(pool) == []
    assert only(pool) != lost
    machines.ends(only(pool), Completed(), answer())
    assert [outcome.tries for outcome in pool.ended()] == [2]


def test_one_that_ended_while_it_was_given_up_has_done_its_job(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "GRACE", 0.0)
    pool = machines.opened()
    pool.start(JOB)
    machines.ends(only(pool), Crashed(message=GIVEN_UP), answer())
    (outcome,) = pool.ended()
    assert (outcome.status, outcome.tries) == ("published", 1)


def test_a_run_says_that_it_goes_on(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it was given up for its silence; not when it has ended otherwise."""
    monkeypatch.setattr(patience, "LOOK", 0.05)
    run = machines.run(JOB).id
    for _ in range(2):
        with patience.going_on(run):
            machines.ends(run, Crashed(message=GIVEN_UP))
            until(lambda: machines.state(run) == StateType.RUNNING, 60, "it does not say that it goes on")
    looked = threading.Event()
    monkeypatch.setattr(patience, "is_given_up", lambda state: looked.set() or is_given_up(state))
    with patience.going_on(run):
        machines.ends(run, Crashed(message="killed"))
        looked.clear()
        assert looked.wait(60)
    assert machines.state(run) == StateType.CRASHED


def test_of_two_nights_the_first_goes_on(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, waiting = (machines.run(JOB).id for _ in range(3))
    machines.ends(first, Running())
    machines.ends(second, Running())

    def earlier(than: UUID) -> UUID | None:
        monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(than))
        found = dispatch.earlier_night()
        return found and found.id

    assert earlier(first) is None
    assert earlier(second) == first
    machines.ends(first, Crashed(message=GIVEN_UP))
    assert earlier(second) is None
    assert machines.state(waiting) == StateType.SCHEDULED


def test_an_answer_that_cannot_be_read_is_one_model_s_failure(machines: Machines) -> None:
    pool = machines.opened()
    pool.start(JOB)
    machines.ends(only(pool), Completed(), json.dumps({"schema": 99}))
    (outcome,) = pool.ended()
    assert (outcome.id, outcome.status, outcome.kind) == (JOB.id, "failed", "BadInput")


def test_a_cancelled_run_is_held(machines: Machines) -> None:
    pool = machines.opened()
    pool.start(JOB)
    machines.ends(only(pool), Cancelled())
    (outcome,) = pool.ended()
    assert (outcome.status, outcome.error) == ("held", "its run was cancelled by hand")


def test_machines_that_do_something_else_are_waited_for(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit takes hours, and runs in the same pool."""
    audit = machines.run(JOB)
    pool = machines.opened()
    pool.left.clear()
    pool.start(JOB)
    machines.ends(audit.id, Running())
    monkeypatch.setattr(dispatch, "PATIENCE", 0.2)
    looked: list[bool] = []

    def busy() -> bool:
        looked.append(Pool.busy(pool))
        if len(looked) == 2:
            machines.ends(audit.id, Completed())
        return looked[-1]

    monkeypatch.setattr(pool, "busy", busy)
    (outcome,) = pool.ended()
    assert looked == [True, True, False]
    assert (outcome.status, outcome.kind) == ("failed", "NoWorker")


def test_a_night_that_ends_early_takes_all_its_runs_along(machines: Machines) -> None:
    """Also one that the server made, and that we were ended before we knew of."""
    theirs = machines.run(replace(JOB, repo="ane/by-hand"))
    ours: list[UUID] = []

    def night() -> None:
        with Pool.opened(lambda *what: None) as pool:
            pool.start(JOB)
            unknown = machines.run(replace(JOB, repo="ane/two"), idempotency_key=f"{pool.night}/ane/two/1")
            ours.extend((only(pool), unknown.id))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        night()
    assert [machines.state(run) for run in ours] == [StateType.CANCELLED] * 2
    assert machines.state(theirs.id) == StateType.SCHEDULED
