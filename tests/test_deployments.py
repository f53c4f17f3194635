"""prefect.yaml, and what `make deploy` makes of it on a real Prefect server; the weekly audit and automations there."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import yaml
from huggingface_hub import constants
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import Event, emit_event
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running

from flows import automations
from flows.deploy import FILE, NAMES, checkout, deploy
from flows.deploy import main as deploy_main
from flows.dispatch import DEPLOYMENT
from flows.server import Server, server
from flows.trigger import main as trigger_main
from flows.trigger import trigger
from hft2ane import provenance, records, state
from hft2ane.errors import BadInput
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.publish import publish
from hft2ane.records.night import Run
from hft2ane.records.package import Audit
from tests.chat import Chat
from tests.test_publish import FILES, REPO, release
from tests.test_recheck import record

ROOT = Path(__file__).parent.parent
YAML = yaml.safe_load(FILE.read_text())
DEPLOYMENTS = YAML["deployments"]
CHECKOUT = {"HFT2ANE_REPOSITORY": str(ROOT), "HFT2ANE_COMMIT": "c" * 40, "HFT2ANE_LOCK": "d" * 64}


# ---- offline: what a typo would break only on the server


@pytest.mark.parametrize("one", DEPLOYMENTS, ids=lambda one: one["name"])
def test_a_deployment_can_run(one: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(str(ROOT / one["entrypoint"]))
    assert f"{flow.name}/{one['name']}" in NAMES
    given = {"job": {}} if one["name"] == "mac" else {}  # the dispatcher's
    flow.validate_parameters({**one.get("parameters", {}), **given})
    assert one["work_pool"]["job_variables"]["env"] == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(automations.HEARTBEAT)}


def test_all_are_there() -> None:
    assert [each["name"] for each in DEPLOYMENTS] == [name.partition("/")[2] for name in NAMES]
    assert DEPLOYMENT in NAMES


@pytest.mark.parametrize(("name", "days"), [("nightly", 1), ("audit", 7)])
def test_a_schedule_is_one(name: str, days: int) -> None:
    (one,) = (each for each in DEPLOYMENTS if each["name"] == name)
    (schedule,) = one["schedules"]
    ZoneInfo(schedule["timezone"])
    cron = CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    assert cron.timezone == schedule["timezone"]
    assert schedule["slug"]  # without one, a deployment makes the schedule anew, and forgets that it was paused
    assert len(re.findall(r"\*", schedule["cron"])) == (3 if days == 1 else 2)


def test_no_secret_is_in_it() -> None:
    text = FILE.read_text()
    assert set(re.findall(r"{{\s*(.*?)\s*}}", text)) == {f"${name}" for name in (*CHECKOUT, "HFT2ANE_NOTIFY")}
    assert not re.search(r"prefect\.blocks|hf_[A-Za-z]|password|AUTH_STRING", text)


def test_a_worker_runs_the_deployed_commit(tmp_path: Path) -> None:
    """The pull steps, as a worker takes them: no other copy of our code is in the way, though one is installed."""
    commit = provenance.git("rev-parse", "HEAD")
    if not commit or provenance.lock() is None:
        pytest.skip("this is no git checkout")
    code = """\
import json, os, sys
from prefect.deployments.steps.core import run_steps
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.templating import apply_values
steps = apply_values(json.loads(sys.argv[1]), os.environ)
os.chdir(run_coro_as_sync(run_steps(steps))["directory"])
from prefect.flows import load_flow_from_entrypoint
flow = load_flow_from_entrypoint("flows/audit.py:audit")
import flows.child, hft2ane.recheck
print(flow.name, flows.child.__file__, hft2ane.recheck.__file__)
"""
    environment = os.environ | CHECKOUT | {"HFT2ANE_COMMIT": commit, "PREFECT_HOME": str(tmp_path / "home")}
    environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"  # none is needed, and none is to be started
    command = [sys.executable, "-c", code, json.dumps(YAML["pull"])]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    name, *files = done.stdout.splitlines()[-1].split()
    assert name == "audit"
    (clone,) = tmp_path.glob("*/hft2ane")
    assert all(Path(file).is_relative_to(clone.parent) for file in files), files
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True, check=True)
    assert head.stdout.strip() == commit


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A checkout of ours, of one commit."""
    for name, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}.items():
        monkeypatch.setenv(name, value)
    place = tmp_path / "checkout"
    place.mkdir()

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@localhost")
        done = subprocess.run(["git", "-C", str(place), *who, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    (place / "constraints.txt").write_text("numpy==1\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    monkeypatch.setattr(provenance, "ROOT", place)
    monkeypatch.delenv("HFT2ANE_REPOSITORY", raising=False)
    return git


def test_what_workers_could_not_fetch_is_not_deployed(
    repository: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="no remote origin.*HFT2ANE_REPOSITORY"):
        checkout()
    repository("init", "--quiet", "--bare", str(tmp_path / "origin"))
    repository("remote", "add", "origin", str(tmp_path / "origin"))
    with pytest.raises(BadInput, match="git push first"):
        checkout()
    repository("push", "--quiet", "origin", "HEAD:main")
    commit = repository("rev-parse", "HEAD")
    lock = hashlib.sha256(b"numpy==1\n").hexdigest()
    assert checkout() == {
        "HFT2ANE_REPOSITORY": str(tmp_path / "origin"),
        "HFT2ANE_COMMIT": commit,
        "HFT2ANE_LOCK": lock,
    }
    (tmp_path / "checkout" / "constraints.txt").write_text("numpy==2\n")
    with pytest.raises(BadInput, match=r"not committed \(constraints.txt\)"):
        checkout()
    repository("checkout", "--quiet", ".")
    monkeypatch.setenv("HFT2ANE_REPOSITORY", "https://x:s3cr3t@example.org/a/b")
    with pytest.raises(BadInput, match="example.org has a password in it") as told:
        checkout()
    assert "s3cr3t" not in str(told.value)
    monkeypatch.setenv("HFT2ANE_REPOSITORY", "git@example.org:a/b")
    assert checkout()["HFT2ANE_REPOSITORY"] == "git@example.org:a/b"


def test_without_a_server_it_says_what_to_do(
    repository: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert deploy_main() == 2
    assert "set PREFECT_API_URL" in capsys.readouterr().err
    monkeypatch.setenv("HFT2ANE_REPOSITORY", "git@example.org:a/b")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert deploy_main() == 75
    assert "no Prefect server answers at http://127.0.0.1:9/api" in capsys.readouterr().err


# ---- on a server


@dataclass
class Served:
    """A server with everything deployed once; the code is where it is."""

    server: Server
    file: Path
    client: SyncPrefectClient
    chat: Chat
    ids: dict[str, UUID] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def deploy(self) -> list[str]:
        lines: list[str] = []
        self.ids = deploy(self.server.url, CHECKOUT, self.file, lines.append)
        return lines

    def runs(self, name: str) -> int:
        which = DeploymentFilter(id=DeploymentFilterId(any_=[self.ids[name]]))
        found = self.client.read_flow_runs(deployment_filter=which)
        return len([run for run in found if run.state and run.state.is_scheduled()])

    def there(self) -> tuple[dict[str, UUID], list[UUID], list[UUID], list[str]]:
        """What is on it, by what does not change when nothing does."""
        all_ = self.client.request("POST", "/deployments/filter", json={}).json()
        schedules = [UUID(one["id"]) for each in all_ for one in each["schedules"]]
        kept = self.client.request("POST", "/automations/filter", json={}).json()
        pools = sorted(pool.name for pool in self.client.read_work_pools())
        return self.ids, sorted(schedules), sorted(UUID(each["id"]) for each in kept), pools


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "home").mkdir()
    shutil.copy(database, folder / "home/prefect.db")
    file = folder / "prefect.yaml"
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}]
    file.write_text(yaml.safe_dump({**YAML, "pull": pull}))
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY", "PT1S")  # to look at automations
            started = stack.enter_context(server(folder / "home"))
        stack.enter_context(temporary_settings({PREFECT_API_URL: started.url, PREFECT_LOGGING_TO_API_ENABLED: False}))
        chat = stack.enter_context(Chat().listening())
        made = Served(started, file, stack.enter_context(get_client(sync_client=True)), chat)
        made.said = made.deploy()
        yield made


BEAT = "prefect.flow-run.heartbeat"


@flow(name="lost")
def lost_flow() -> None: ...


def until(found: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()) and time.monotonic() < end:
        time.sleep(0.5)
    return value


@pytest.mark.slow
def test_schedules_produce_runs(served: Served) -> None:
    """An SQLAlchemy that does not suit it makes Prefect produce none, and say so only in the server's log."""
    assert until(lambda: served.runs("nightly/nightly"))
    assert until(lambda: served.runs("audit/audit"))
    assert served.runs("convert-model/mac") == 0


@pytest.mark.slow
def test_the_second_time_changes_nothing(served: Served) -> None:
    assert [line for line in served.said if line.startswith(("work pool", "deployment"))] == [
        "work pool control: created",
        "work pool apple-silicon: created",
        *(f"deployment {name}: created, at commit {'c' * 40}" for name in NAMES),
    ]
    before = served.there()
    runs = until(lambda: served.runs("nightly/nightly"))
    again = served.deploy()
    assert served.there() == before
    assert len(before[2]) == 4
    assert before[3] == ["apple-silicon", "control"]
    assert [line for line in again if "as before" not in line] == []
    assert "Nobody will be told" not in served.said[-1]
    assert until(lambda: served.runs("nightly/nightly") == runs)


@pytest.mark.slow
def test_what_is_deployed(served: Served) -> None:
    nightly, mac, audit = (served.client.read_deployment(id) for id in served.ids.values())
    notify = f"custom-webhook/{automations.BLOCK}"
    assert nightly.parameters == {"dispatch": "pool", "lock": "d" * 64, "notify": notify}
    assert nightly.global_concurrency_limit is None  # whoever holds it would be ended by an outage
    assert [each.work_pool_name for each in (nightly, mac, audit)] == ["control", "apple-silicon", "apple-silicon"]
    assert mac.parameters == audit.parameters == {"lock": "d" * 64}
    assert (mac.job_variables or {})["stream_output"] is False


@pytest.mark.slow
def test_automations_are_there_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though somebody made a second one, or changed one; a switched-off one stays so."""
    block = automations.notification_block(served.client)
    assert block
    by_name = {each.name: each for each in automations.wanted(served.ids, block.id)}
    kept = {name: served.client.read_automations_by_name(name)[0].id for name in by_name}
    served.client.create_automation(by_name["no-night"])
    lost = by_name["crash-lost-runs"]
    changed = lost.trigger.model_copy(update={"within": timedelta(seconds=70)})
    served.client.update_automation(
        kept["crash-lost-runs"], lost.model_copy(update={"trigger": changed, "enabled": False})
    )
    said = automations.ensure(served.client, served.ids)
    assert [line for line in said if "as before" not in line] == [
        "automation crash-lost-runs: updated",
        "automation no-night: a second one of that name is deleted",
    ]
    found = {name: served.client.read_automations_by_name(name) for name in by_name}
    assert all(len(each) == 1 for each in found.values())
    (mended,) = found["crash-lost-runs"]
    assert (mended.id, mended.enabled) == (kept["crash-lost-runs"], False)
    assert mended.trigger.within == automations.LOST  # type: ignore[union-attr]
    served.client.resume_automation(mended.id)

    monkeypatch.setattr(automations, "BLOCK", "hft2ane-nobody")
    said = automations.ensure(served.client, served.ids)
    assert said[2:4] == ["automation no-night: updated", "automation lost-night: updated"]
    assert "there is no notification block hft2ane-nobody" in said[4]


@pytest.mark.slow
def test_a_lost_run_is_crashed_and_a_missing_night_is_told(served: Served) -> None:
    """By the real triggers, whose times alone are shorter."""
    block = automations.notification_block(served.client)
    assert block
    nightly, mac, short = served.ids["nightly/nightly"], served.ids["convert-model/mac"], timedelta(seconds=10)
    lost = automations.crash("lost", {BEAT}, short, served.ids, "a test")
    served.client.create_automation(lost)
    start = served.client.create_flow_run_from_deployment
    run, mute, night = start(mac, parameters={"job": {}}), start(mac, parameters={"job": {}}), start(nightly)
    for one in (run, mute):  # of which one never begins to beat
        served.client.set_flow_run_state(one.id, Running(), force=True)
    emit_event(  # as Prefect's engine does
        event=BEAT,
        resource={"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
        related=[{"prefect.resource.id": f"prefect.deployment.{mac}", "prefect.resource.role": "deployment"}],
    )
    long = timedelta(seconds=15)
    served.client.create_automation(automations.no_night(long, nightly, block.id))
    time.sleep(4)
    ended = datetime.now(UTC)
    served.client.set_flow_run_state(night.id, Completed(), force=True)

    def crashed() -> bool:
        return served.client.read_flow_run(run.id).state_type == StateType.CRASHED

    assert until(crashed)
    now = served.client.read_flow_run(run.id).state
    assert now
    assert now.message == "No sign of it for 10 s: a test."
    assert served.client.read_flow_run(mute.id).state_type == StateType.RUNNING
    assert until(lambda: served.chat.messages)
    when, what = served.chat.messages[0]
    said = json.loads(what)
    assert said["text"] == "hft2ane: no night for 0.00416667 hours"
    assert "look at the control pool's worker and at the server" in said["body"]
    assert when - ended > long  # not since the automation was made


@pytest.mark.slow
def test_a_limit_of_an_earlier_version_goes(served: Served) -> None:
    """It would end the night that holds it."""
    id = served.ids["nightly/nightly"]
    served.client.request("PATCH", "/deployments/{id}", path_params={"id": id}, json={"concurrency_limit": 1})
    assert served.client.read_deployment(id).global_concurrency_limit
    served.deploy()
    assert served.client.read_deployment(id).global_concurrency_limit is None


@pytest.mark.slow
def test_a_run_that_was_lost_while_the_server_was_away_is_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a power cut, when the server starts minutes later. By itself Prefect forgets after a minute."""
    ten, heard = timedelta(seconds=10), datetime.now(UTC) - timedelta(minutes=10)
    monkeypatch.setenv("PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY", "PT1H")  # it is away before it looks
    with (
        server(tmp_path / "home") as first,
        temporary_settings({PREFECT_API_URL: first.url}),
        get_client(sync_client=True) as client,
    ):
        made = client.create_deployment(client.create_flow(lost_flow), "lost")
        client.create_automation(automations.crash("lost", {BEAT}, ten, {"lost": made}, "a test"))
        run = client.create_flow_run_from_deployment(made)
        client.set_flow_run_state(run.id, Running(), force=True)
        time.sleep(3)  # the server reads its automations
        beat = Event(
            event=BEAT,
            occurred=heard,
            resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
            related=[{"prefect.resource.id": f"prefect.deployment.{made}", "prefect.resource.role": "deployment"}],
        )
        client.request("POST", "/events", json=[beat.model_dump(mode="json")])
        with contextlib.closing(sqlite3.connect(tmp_path / "home/prefect.db", timeout=60)) as tables:
            assert until(lambda: tables.execute("SELECT count FROM automation_bucket").fetchall())  # it waits for more
        assert client.read_flow_run(run.id).state_type == StateType.RUNNING
    monkeypatch.setenv("PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY", "PT1S")
    with (
        server(tmp_path / "home") as second,
        temporary_settings({PREFECT_API_URL: second.url}),
        get_client(sync_client=True) as client,
    ):
        assert until(lambda: client.read_flow_run(run.id).state_type == StateType.CRASHED)


@pytest.mark.slow
def test_a_run_that_fetched_its_code_and_never_began_is_crashed(served: Served) -> None:
    """The code is fetched between pick-up and start, and Prefect tells of that as a sign of the run."""
    mac = served.ids["convert-model/mac"]
    stuck = automations.crash("stuck", automations.BEGUN, timedelta(seconds=10), served.ids, "a test")
    served.client.create_automation(stuck)
    run = served.client.create_flow_run_from_deployment(mac, parameters={"job": {}})
    time.sleep(4)  # the server reads its automations
    served.client.set_flow_run_state(run.id, Pending(), force=True)
    emit_event(  # as Prefect's steps do
        event="prefect.flow-run.pull-step.executed",
        resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"},
        related=[{"prefect.resource.id": f"prefect.deployment.{mac}", "prefect.resource.role": "deployment"}],
    )
    assert until(lambda: served.client.read_flow_run(run.id).state_type == StateType.CRASHED)


def subjects(served: Served) -> list[str]:
    return [json.loads(content)["text"] for _, content in served.chat.messages]


@pytest.mark.slow
def test_a_night_that_is_lost_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot tell of itself, and the next one may be well."""
    monkeypatch.setattr(automations, "RETURN", timedelta(seconds=10))
    automations.ensure(served.client, served.ids)
    served.chat.messages.clear()
    night = served.client.create_flow_run_from_deployment(served.ids["nightly/nightly"])
    back = served.client.create_flow_run_from_deployment(served.ids["nightly/nightly"])
    time.sleep(4)  # the server reads its automations
    for one in (back, night):
        served.client.set_flow_run_state(one.id, Crashed(message="machine lost"), force=True)
    served.client.set_flow_run_state(back.id, Running(), force=True)
    assert until(lambda: "hft2ane: a night was lost" in subjects(served)), subjects(served)
    assert subjects(served).count("hft2ane: a night was lost") == 1  # the other one was not
    served.client.set_flow_run_state(back.id, Completed(), force=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_a_night_that_breaks_off_is_told(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the automations it has ended, so that nobody else tells: a token without rights would fail each night. And
    it leaves a report."""
    from flows.nightly import nightly

    (tmp_path / "models.yaml").write_text("defaults: {publish: {organization: ane}}\nmodels: [up/tiny]\n")
    served.chat.messages.clear()
    with LocalHub(tmp_path / "hub") as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        monkeypatch.setenv("HF_TOKEN", local.token)
        night = nightly(
            [str(tmp_path / "models.yaml")],
            work=str(tmp_path / "work"),
            lock="0" * 64,
            notify=f"custom-webhook/{automations.BLOCK}",
            return_state=True,
        )
        (left,) = state.runs(Hub(), "ane", 7)
    assert night.is_failed()
    assert "000000000000 is deployed" in (night.message or "")
    assert "hft2ane: the night has broken off: WorkerMismatch" in subjects(served)
    assert left == records.read(tmp_path / "work/run.json", Run)
    assert (left.outcomes, left.whole) == ((), False)
    assert left.broken
    assert left.broken.startswith("WorkerMismatch: ")
    assert night.state_details.flow_run_id
    which = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[night.state_details.flow_run_id]))
    (page,) = (each for each in served.client.read_artifacts(artifact_filter=which) if each.key == "night")
    assert "broke off: WorkerMismatch" in str(page.data)


class Asked:
    """Somebody who asks for a night and waits for its end, as `make nightly.trigger` does."""

    def __init__(self, since: float | None = None) -> None:
        self.said: list[str] = []

        def ask() -> FlowRun:
            with get_client(sync_client=True) as client:
                return trigger(client, since, self.said.append)

        self.answer: Future[FlowRun] = Future()
        # A daemon, so that a test that fails before the night's end does not keep the process.
        asking = Thread(target=copy_context().run, args=(lambda: self.answer.set_result(ask()),), daemon=True)
        asking.start()

    def told(self, words: str) -> bool:
        return bool(until(lambda: self.answer.done() or any(words in line for line in list(self.said)))) and any(
            words in line for line in self.said
        )

    def ended(self) -> StateType | None:
        return self.answer.result(90).state_type


@pytest.fixture
def nights(served: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[FlowRun]]:
    """The runs of the night that are there beside those that the schedule has for days to come."""
    monkeypatch.setattr("flows.trigger.POLL", 0.2)
    which = DeploymentFilter(id=DeploymentFilterId(any_=[served.ids["nightly/nightly"]]))
    before = {run.id for run in served.client.read_flow_runs(deployment_filter=which)}
    return lambda: [
        run
        for run in served.client.read_flow_runs(deployment_filter=which)
        if run.id not in before and not run.auto_scheduled
    ]


@pytest.mark.slow
def test_a_night_that_is_asked_for_is_there_once(served: Served, nights: Callable[[], list[FlowRun]]) -> None:
    """Whoever asks while it is going waits for the same one; two that began at once are one, when the later of them
    has ended for the other's sake."""
    end = partial(served.client.set_flow_run_state, force=True)
    first = Asked()
    assert first.told("nightly/nightly: "), first.said
    (night,) = nights()
    end(night.id, Running())
    second = Asked(since=12)
    assert second.told(f"there is one already, {night.name}"), second.said
    other = served.client.create_flow_run_from_deployment(served.ids["nightly/nightly"], state=Running())
    end(night.id, Cancelled(message=f"another night is still going, {other.name}"))
    assert first.told(f"another one is going, {other.name}"), first.said
    assert second.told(f"another one is going, {other.name}"), second.said
    end(other.id, Completed(message="3 published"))
    assert first.ended() == second.ended() == StateType.COMPLETED
    assert first.said[-1].endswith(" Completed: 3 published")
    assert {run.id for run in nights()} == {night.id, other.id}


@pytest.mark.slow
def test_a_night_of_the_server_s_own_schedule_will_do(
    served: Served, nights: Callable[[], list[FlowRun]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless it was lost, or a person asks for one."""
    which = DeploymentFilter(id=DeploymentFilterId(any_=[served.ids["nightly/nightly"]]))
    made = until(lambda: [run for run in served.client.read_flow_runs(deployment_filter=which) if run.auto_scheduled])
    end = partial(served.client.set_flow_run_state, force=True)
    lost, failed = sorted(made, key=lambda run: run.expected_start_time)[:2]
    end(lost.id, Crashed())
    asked = Asked(since=12)
    assert asked.told("nightly/nightly: "), asked.said
    (night,) = nights()
    end(night.id, Completed())
    assert asked.ended() == StateType.COMPLETED

    end(failed.id, Failed(message="1 of 3 models newly fails"))
    assert trigger_main(["--since", "12"]) == 1
    said = capsys.readouterr().out
    assert f"there is one already, {failed.name}: http://127.0.0.1" in said
    assert "Failed: 1 of 3 models newly fails" in said
    assert len(nights()) == 1
    person = Asked()
    assert until(lambda: len(nights()) == 2)
    end(next(run.id for run in nights() if run.id != night.id), Cancelled())
    assert person.ended() == StateType.CANCELLED


def test_a_night_is_asked_of_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert trigger_main([]) == 2
    assert "set PREFECT_API_URL" in capsys.readouterr().err
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert trigger_main([]) == 75
    assert "no Prefect server answers at http://127.0.0.1:9/api" in capsys.readouterr().err


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub(tmp_path / "hub") as local:
        monkeypatch.setenv("HF_ENDPOINT", local.url)
        monkeypatch.setenv("HF_TOKEN", local.token)
        files = {**FILES, "reports/ranges.json": records.dump(Audit(1, 1, (), (), ()))}
        publish(release(tmp_path / "job", files, record(tmp_path / "package")), Hub())
        yield local


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_an_audit_says_what_is_true_and_what_is_not(served: Served, hub: LocalHub, tmp_path: Path) -> None:
    from flows.audit import audit

    (tmp_path / "models.yaml").write_text(
        "defaults: {publish: {organization: org}}\nmodels: [up/tiny, up/other, up/third]\n"
    )
    other = tmp_path / "other"
    for name, content in {**hub.files(REPO), "README.md": b"# Mine", "a|b.txt": b""}.items():
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes(content)
    Hub().tag("org/other-ane", "v1", hub.add("org/other-ane", other))

    ended = audit([str(tmp_path / "models.yaml")], return_state=True)
    assert ended.is_failed()
    assert "3 repos looked at, 1 not what they say: org/other-ane" in (ended.message or "")
    assert ended.state_details.flow_run_id
    which = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[ended.state_details.flow_run_id]))
    (artifact,) = (each for each in served.client.read_artifacts(artifact_filter=which) if each.key == "audit")
    lines = str(artifact.data).splitlines()
    assert lines[0] == "3 repos looked at, 1 not what they say."
    rows = [line for line in lines if "-ane |" in line]
    assert [re.split(r" \| ", row[2:])[:2] for row in rows] == [
        ["**untrue**", "org/other-ane"],
        ["nothing there", "org/third-ane"],
        ["true", "org/tiny-ane"],
    ]
    assert "README.md has not the digest that SHA256SUMS says" in rows[0]
    assert r"a\|b.txt" in rows[0]
    assert set(state.read(Hub(), ["org"])[0].untrue) == {"org/other-ane"}
