"""Drills on a real Prefect server on PostgreSQL, with real workers: what is lost in the night is found again.

The islands' clocks: a run without heartbeats is lost after 90 s, and one that was taken up and never began after
STUCK, here shorter than in production. So the drills of one night are done at once, and looked at one by one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import psutil
import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from flows import automations
from flows.dispatch import WORKER
from flows.patience import is_given_up
from hft2ane import records
from hft2ane.localhub.messages import Refusal
from hft2ane.records.night import Run
from tests.conftest import REPORTS, Checkpoint
from tests.island import CONTROL, MACS, Island, until

pytestmark = [pytest.mark.slow, pytest.mark.packages]

AWAY = automations.LOST.total_seconds() + 10  # when the server is back, it takes all runs for lost
MODELS = ("one", "two", "three", "four")


@dataclass
class Drills:
    """What was done to which model, and the seconds until it was published."""

    models: dict[str, str] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def strikes(self, what: str, model: str) -> None:
        self.models[what], self.began[what] = model, time.monotonic()

    def watch(self, island: Island) -> None:
        for what in self.began.keys() - self.seconds.keys():
            if "v1" in tags(island, self.models[what]):
                self.seconds[what] = time.monotonic() - self.began[what]

    def __str__(self) -> str:
        return "\n".join(f"{what:32}{seconds:5.0f} s to recovery" for what, seconds in self.seconds.items())


def tags(island: Island, model: str) -> dict[str, str]:
    with contextlib.suppress(Refusal):
        return island.hub.tags(f"ane/{model}-ane")
    return {}


def at_work(island: Island, worker: str) -> tuple[psutil.Process, str]:
    """A worker's converter, once there is one, and its model."""
    process = until(lambda: island.converter(worker), 240, f"{worker} converts nothing")
    folder = next(word for word in process.cmdline() if word.startswith(str(island.folder)))
    return process, Path(folder).name.removeprefix("ane--").removesuffix("-ane")


def state_of(island: Island, run: UUID) -> StateType | None:
    state = island.run(run).state
    return state.type if state else None


def over(island: Island, run: UUID) -> bool:
    """It has ended; not, that it was given up, and may say that it goes on."""
    state = island.run(run).state
    return bool(state and state.is_final() and not is_given_up(state))


@pytest.fixture(scope="module")
def drills(request: pytest.FixtureRequest) -> Drills:
    found = Drills()
    request.config.stash[REPORTS]["drills"] = found  # conftest.py shows it
    return found


@pytest.fixture(scope="module")
def island() -> Iterator[Island]:
    """In a folder that the database's user may enter too, as it may not those of pytest."""
    with (
        tempfile.TemporaryDirectory(prefix="hft2ane-", ignore_cleanup_errors=True) as place,
        pytest.MonkeyPatch.context() as patch,
    ):
        Path(place).chmod(0o755)
        patch.setattr(automations, "STUCK", timedelta(seconds=60))
        with Island(Path(place), "postgres").living() as island:
            island.worker("control", CONTROL)
            yield island


@pytest.fixture(scope="module")
def storm(island: Island, drills: Drills, checkpoint: Checkpoint) -> Run:
    """One night of four models, in which everything happens to three Macs and the server."""
    for name in ("mac-1", "mac-2", "mac-3"):
        island.worker(name)
    until(lambda: island.online(MACS) == 3, 120, "three workers are not there")
    night = island.night(island.models(MODELS, lambda n: checkpoint(seed=n)))

    process, model = at_work(island, "mac-1")
    process.kill()
    drills.strikes("kill -9 of the converter", model)
    _, model = at_work(island, "mac-2")
    island.end_worker("mac-2", signal.SIGKILL)
    drills.strikes("kill -9 of a worker", model)
    _, model = at_work(island, "mac-3")
    island.end_worker("mac-3", signal.SIGTERM)
    drills.strikes("SIGTERM of a worker", model)

    island.worker("mac-4")
    (process, *_) = until(lambda: island.runs_of("mac-4"), 120, "mac-4 takes nothing up")
    run = UUID(process.environ()["PREFECT__FLOW_RUN_ID"])
    assert state_of(island, run) == StateType.PENDING
    island.end_worker("mac-4", signal.SIGKILL)
    process.kill()
    drills.strikes("a worker lost, its run pending", island.run(run).name.removeprefix("ane/").removesuffix("-ane"))

    island.kill_server()
    drills.strikes("kill -9 of the server", model)
    time.sleep(AWAY)
    island.start_server()
    island.worker("mac-5")
    until(lambda: drills.watch(island) or over(island, night), 600, "the night has not ended")
    drills.watch(island)
    assert state_of(island, night) == StateType.COMPLETED, island.run(night).state
    return records.read(island.folder / "control/work/run.json", Run)


def test_everything_is_published_and_nothing_twice(island: Island, storm: Run) -> None:
    assert {o.id: o.status for o in storm.outcomes} == dict.fromkeys((f"me/{name}" for name in MODELS), "published")
    for name in MODELS:
        assert tags(island, name).keys() == {"v1"}
        assert len(island.hub.commits(f"ane/{name}-ane")) == 2  # the Hub's own, and ours


@pytest.mark.parametrize(
    ("what", "tries"),
    [
        ("kill -9 of the converter", 2),
        ("kill -9 of a worker", 1),  # its run goes on without it
        ("SIGTERM of a worker", 2),
        ("a worker lost, its run pending", 2),
    ],
)
def test_what_was_lost_is_found_again(storm: Run, drills: Drills, what: str, tries: int) -> None:
    (outcome,) = (o for o in storm.outcomes if o.id == f"me/{drills.models[what]}")
    assert outcome.tries >= tries
    assert outcome.log
    assert "/runs/flow-run/" in outcome.log


def test_each_try_is_a_run_of_its_own(island: Island, storm: Run, drills: Drills) -> None:
    """The one that outlived its worker and the server was not lost, and not done twice."""
    (survivor,) = (o for o in storm.outcomes if o.id == f"me/{drills.models['kill -9 of a worker']}")
    assert survivor.tries == 1
    for outcome in storm.outcomes:
        runs = island.conversions(outcome.repo)
        assert len(runs) == outcome.tries
        assert [run.state_type for run in runs].count(StateType.COMPLETED) == 1


def test_the_same_is_published_as_without_a_server(island: Island, storm: Run, tmp_path: Path) -> None:
    """To another organisation: byte for byte, but for its name, the seconds that it took, and the digests of those."""
    command = [sys.executable, "-m", "hft2ane.cli", "run", "--organization", "alone", "--only", "me/one"]
    command += ["--manifests", str(island.folder / "one.yaml"), "--work", str(tmp_path / "work")]
    environment = {**os.environ, "HF_ENDPOINT": island.hub.url, "HF_TOKEN": island.hub.token}
    subprocess.run(command, check=True, env=environment)
    here, there = island.hub.files("alone/one-ane"), island.hub.files("ane/one-ane")
    assert here.keys() == there.keys()
    for name in here.keys() - {"reports/report.json", "SHA256SUMS"}:
        assert here[name].replace(b"alone/one-ane", b"ane/one-ane") == there[name], name
    reports = [json.loads(files["reports/report.json"]) | {"seconds": 0} for files in (here, there)]
    assert reports[0] == reports[1]


def test_people_are_told_of_the_night_once(island: Island, storm: Run) -> None:
    (message,) = (json.loads(content) for _, content in island.chat.messages)
    assert message["text"] == "4 published"
    assert "me/one: ane/one-ane@v1 http" in message["body"]


def test_what_a_person_looks_at_is_there(island: Island, storm: Run) -> None:
    with island.client() as client:
        found = sorted(client.read_artifacts(limit=200), key=lambda each: str(each.created))
    made = {each.key: each for each in found if each.key}  # the newest: a run that was lost has left some, too
    assert made["plan"].type == "table"
    assert "nothing is published yet" in str(made["plan"].data)
    assert str(made["night"].data).startswith("# 20")
    assert "## Published: 4" in str(made["night"].data)
    assert {made["progress-night"].data, made["progress-ane-one-ane"].data} == {100.0}
    assert island.hub.url in str(made["published-ane-one-ane"].data)


@pytest.fixture(scope="module")
def orphaned(island: Island, storm: Run, drills: Drills, checkpoint: Checkpoint) -> UUID:
    """A night whose controller is killed: its runs go on, and it counts as lost after a while."""
    night = island.night(island.models(["five"], lambda n: checkpoint(seed=50)))
    until(lambda: island.converter("mac-1") or island.converter("mac-5"), 240, "five is not converted")
    for process in island.runs_of("control"):
        process.kill()
    drills.strikes("kill -9 of the nightly run", "five")
    return night


def test_a_worker_of_another_lock_refuses(island: Island, orphaned: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    with island.client() as client:
        job = island.conversions("ane/one-ane")[0].parameters["job"]
        made = client.create_flow_run_from_deployment(
            island.ids["convert-model/mac"], parameters={"job": job, "lock": "0" * 64}, name="skewed"
        )
    state = island.ended(made.id, 240).state
    assert state
    assert state.type == StateType.FAILED
    assert "000000000000 is deployed" in (state.message or "")
    assert tags(island, "one").keys() == {"v1"}


def test_a_lost_controller_s_models_are_published_and_its_place_is_free_again(
    island: Island, orphaned: UUID, drills: Drills
) -> None:
    until(lambda: drills.watch(island) or state_of(island, orphaned) == StateType.CRASHED,
          300, "the lost night has not been given up")  # fmt: skip
    until(lambda: drills.watch(island) or "v1" in tags(island, "five"), 120, "five is not published")
    again = island.ended(island.night(str(island.folder / "five.yaml")), 240)
    assert again.state
    assert again.state.is_completed(), again.state
    assert tags(island, "five").keys() == {"v1"}
    assert len(island.conversions("ane/five-ane")) == 1


def test_a_machine_that_cannot_fetch_the_code_leaves_its_jobs_to_others(
    island: Island, orphaned: UUID, drills: Drills, checkpoint: Checkpoint
) -> None:
    """It is always free, so it takes each job up before all others."""
    (island.folder / "mac-6").mkdir()
    (island.folder / "mac-6/no-code").touch()
    others = [island.workers[name] for name in ("mac-1", "mac-5")]
    try:
        for worker in others:
            worker.send_signal(signal.SIGSTOP)
        island.worker("mac-6")
        night = island.night(island.models(["seven"], lambda n: checkpoint(seed=70)))
        until(lambda: [run for run in island.conversions("ane/seven-ane") if run.state_type == StateType.CRASHED],
              120, "mac-6 does not fail")  # fmt: skip
    finally:
        for worker in others:
            worker.send_signal(signal.SIGCONT)
    drills.strikes("a machine that fetches no code", "seven")
    island.end_worker("mac-6", signal.SIGTERM)  # chance decides else who has the next try
    until(lambda: drills.watch(island) or over(island, night), 600, "the night has not ended")
    drills.watch(island)
    assert state_of(island, night) == StateType.COMPLETED, island.run(night).state
    assert tags(island, "seven").keys() == {"v1"}
    first = island.conversions("ane/seven-ane")[0]
    assert (first.run_count, first.labels[WORKER]) == (0, "mac-6")


def test_a_cancelled_night_takes_its_conversions_along(island: Island, orphaned: UUID, checkpoint: Checkpoint) -> None:
    night = island.night(island.models(["six"], lambda n: checkpoint(seed=60)))
    process = until(lambda: island.converter("mac-1") or island.converter("mac-5"), 240, "six is not converted")
    with island.client() as client:
        client.set_flow_run_state(night, Cancelling())
    state = island.ended(night, 120).state
    assert state
    assert state.type == StateType.CANCELLED
    (run,) = island.conversions("ane/six-ane")
    until(lambda: over(island, run.id), 60, "the conversion has not ended")
    assert state_of(island, run.id) == StateType.CANCELLED
    until(lambda: not process.is_running(), 30, "the converter lives")
    assert not tags(island, "six")


def test_nothing_of_it_is_left(island: Island, orphaned: UUID) -> None:
    """When the workers that are left are stopped, as for good."""
    for name in list(island.workers):
        island.end_worker(name, signal.SIGTERM)
    until(lambda: not island.ours(), 60, "processes are left behind")
