"""The nightly flow on a real Prefect in this process, over a Hub on this machine; and its child process."""

import contextlib
import hashlib
import json
import os
import site
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterStartTime
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows import child, local
from flows.convert_model import WAITS
from flows.local import night
from hft2ane import disk, errors, keys, provenance, records, room, state
from hft2ane.cli import main
from hft2ane.cli.steps import steps
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.maintain import retire
from hft2ane.plan import World as Answers
from hft2ane.progress import Progress, silent
from hft2ane.records.job import Job
from hft2ane.records.night import Outcome, Run
from hft2ane.records.release import Conversion
from hft2ane.survey import Survey
from hft2ane.waves import Wave
from tests.conftest import Checkpoint

MANIFEST = """\
defaults: {publish: {organization: ane}, lengths: [16]}
models:
  - me/first
  - {id: me/gpt, license: mit}
  - {id: me/paused, status: paused, reason: upstream is being repaired}
  - me/second
"""


PYTHON = sys.executable


class World:
    """A Hub, a manifest, and a night whenever one is asked for."""

    def __init__(self, folder: Path, local: LocalHub) -> None:
        self.folder, self.local = folder, local
        self.hub = Hub(local.url, local.token)
        (folder / "models.yaml").write_text(MANIFEST)

    def night(self) -> Run:
        return night([str(self.folder / "models.yaml")], None, self.folder / "work", hub=self.hub)

    def local_files(self, repo: str) -> Path:
        """A folder with the files of a repo."""
        place = self.folder / "copies" / repo
        for name, content in self.local.files(repo).items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return place

    def conversion(self, repo: str) -> Conversion:
        found = self.hub.conversion(repo)
        assert isinstance(found, Conversion)
        return found


def of(run: Run, id: str) -> Outcome:
    return next(outcome for outcome in run.outcomes if outcome.id == id)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with LocalHub(folder / "hub") as local:
        local.add("me/first", checkpoint(seed=1))
        local.add("me/second", checkpoint("BertForSequenceClassification", seed=2))
        other = checkpoint(seed=3)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
        local.add("me/gpt", other)
        yield World(folder, local)


@pytest.fixture(scope="module")
def first_night(world: World, temporary_server: None) -> Run:
    return world.night()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of a conversion in this process, which has the libraries: 11 s of CPU less. For tests of what nights
    decide: those of the first are children, which have tests of their own below."""

    def build(folder: Path, limits: child.Limits, progress: Progress) -> None:
        steps(folder, progress)

    monkeypatch.setattr("flows.convert_model.build_task", build)
    monkeypatch.setattr(child, "build", build)  # an audit's


@pytest.mark.slow
def test_one_bad_model_stops_no_other_and_the_run_says_so(world: World, first_night: Run) -> None:
    assert {o.id: o.status for o in first_night.outcomes} == {
        "me/first": "published",
        "me/second": "published",
        "me/gpt": "failed",
        "me/paused": "blocked",
    }
    assert first_night.failed == ("me/gpt",)
    assert "model_type 'gpt2'" in (of(first_night, "me/gpt").error or "")
    assert (of(first_night, "me/first").artefact or 0) > 50
    assert world.local.tags("ane/first-ane").keys() == {"v1"}
    assert records.read(world.folder / "work/run.json", Run) == first_night


@pytest.mark.slow
def test_what_prefect_shows_of_a_night(world: World, first_night: Run) -> None:
    with get_client(sync_client=True) as client:
        since = FlowRunFilterStartTime(after_=first_night.started - timedelta(seconds=30))
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(start_time=since), sort=FlowRunSort.START_TIME_ASC, limit=5
        )
        run = min(runs, key=lambda run: abs(run.start_time - first_night.started))
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert run.name == f"{run.start_time:%Y-%m-%d %H:%M} UTC"
    assert run.state_type == StateType.FAILED
    assert run.state.message == "1 of 4 models newly fails: me/gpt · 2 published, 1 blocked"
    assert {task.name for task in tasks} >= {f"{step} ane--second-ane" for step in ("fetch", "build", "publish")}


@pytest.mark.slow
def test_the_second_night_finds_nothing_to_do(world: World, first_night: Run) -> None:
    before = len(world.local.calls())
    again = world.night()
    assert {o.id for o in again.outcomes if o.status == "skip"} == {"me/first", "me/second"}
    writes = [call for call in world.local.calls()[before:] if call.startswith("POST")]
    assert all("/api/datasets/ane/hft2ane-state/" in call for call in writes)
    assert len([call for call in writes if "/commit/" in call]) == 1
    (last, *_) = state.runs(world.hub, "ane", 1)
    assert last == replace(again, outcomes=last.outcomes)
    assert {o.id for o in last.outcomes} == {"me/gpt", "me/paused"}


@pytest.mark.slow
def test_nights_are_shown_and_missed(
    world: World, first_night: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", world.local.url)
    monkeypatch.setenv("HF_TOKEN", world.local.token)
    command = ["nights", "--manifests", str(world.folder / "models.yaml")]
    assert main([*command, "--within", "26"]) == 0
    assert "newly fails: me/gpt" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--within", "0"]) == 1
    assert "no night of ane in the last 0 hours" in capsys.readouterr().err
    assert main([*command, "--organization", "nobody", "--within", "26"]) == 1
    assert "may HF_TOKEN read nobody/hft2ane-state?" in capsys.readouterr().err
    assert main([*command, "--markdown", "--last", "30"]) == 0
    assert capsys.readouterr().out.startswith("# 20")


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_what_failed_is_remembered_and_no_news(world: World, first_night: Run, tmp_path: Path) -> None:
    """The run fails when a model newly does; it is left alone for a while, and longer after the next failure."""
    remembered = json.loads(world.local.files("datasets/ane/hft2ane-state")["state.json"])
    tried = remembered["attempts"]["ane/gpt-ane"]
    assert (tried["family"], tried["equal"], tried["count"]) == ("gpt2", 1, 1.0)
    again = world.night()
    assert (of(again, "me/gpt").status, again.failed) == ("held", ())
    assert "model_type 'gpt2'" in of(again, "me/gpt").why

    tried["last"] = "2026-01-01T00:00:00Z"  # time passes
    (tmp_path / "state.json").write_text(json.dumps(remembered))
    world.local.add("datasets/ane/hft2ane-state", tmp_path)
    again = world.night()
    assert (of(again, "me/gpt").status, again.failed) == ("failed", ())
    remembered = json.loads(world.local.files("datasets/ane/hft2ane-state")["state.json"])
    assert remembered["attempts"]["ane/gpt-ane"]["equal"] == 2

    world.local.delete("datasets/ane/hft2ane-state")
    again = world.night()
    assert (of(again, "me/gpt").status, again.failed) == ("failed", ("me/gpt",))


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_new_upstream_is_told_apart(world: World, first_night: Run, checkpoint: Checkpoint) -> None:
    """A README edit is nothing, a card field only the card, new weights a conversion."""
    published = world.conversion("ane/first-ane")
    upstream = checkpoint(seed=1)
    (upstream / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny, said better\n")
    world.local.add("me/first", upstream)
    assert of(world.night(), "me/first").action == "skip"

    (upstream / "README.md").write_text("---\nlicense: mit\nlanguage: de\n---\n\n# Tiny\n")
    world.local.add("me/first", upstream)
    outcome = of(world.night(), "me/first")
    assert (outcome.action, outcome.status, outcome.tag) == ("card", "published", "v2")
    assert b"- de" in world.local.files("ane/first-ane")["README.md"]
    assert world.conversion("ane/first-ane").packages == published.packages

    world.local.add("me/first", checkpoint(seed=9))
    outcome = of(world.night(), "me/first")
    assert (outcome.action, outcome.status, outcome.tag) == ("convert", "published", "v3")
    assert "model.safetensors" in outcome.why
    assert world.conversion("ane/first-ane").packages != published.packages


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_what_is_published_is_measured_again(world: World, first_night: Run, tmp_path: Path) -> None:
    """By a new protocol: the same packages, byte for byte, with a new report and card."""
    before = world.local.files("ane/second-ane")
    older = {"protocol": "hft2ane-psnr-0", "verify_key": "0" * 64}
    record = json.dumps(json.loads(before["conversion.json"]) | older).encode()
    for name, content in {**before, "conversion.json": record}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    world.hub.tag("ane/second-ane", "v2", world.local.add("ane/second-ane", tmp_path))
    uploads = len(world.local.calls("info/lfs|xet-write-token"))
    outcome = of(world.night(), "me/second")
    assert (outcome.action, outcome.status, outcome.tag) == ("verify", "published", "v3")
    assert outcome.why == "verification protocol changed: hft2ane-psnr-0 → hft2ane-psnr-2"
    after = world.local.files("ane/second-ane")
    packages = [name for name in after if ".mlpackage/" in name]
    assert packages
    assert {name: after[name] for name in packages} == {name: before[name] for name in packages}
    assert after["conversion.json"] == before["conversion.json"]
    assert len(world.local.calls("info/lfs|xet-write-token")) == uploads
    assert of(world.night(), "me/second").action == "skip"


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_an_audit_finds_what_is_not_so_and_the_next_night_mends_it(
    world: World, first_night: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def audit(*more: str) -> tuple[int, list[dict[str, Any]]]:
        command = ["audit", "--manifests", str(world.folder / "models.yaml"), "--only", "me/second", "--json", *more]
        capsys.readouterr()
        code = main(command)
        return code, json.loads(capsys.readouterr().out)

    monkeypatch.setenv("HF_ENDPOINT", world.local.url)
    monkeypatch.setenv("HF_TOKEN", world.local.token)
    code, (found,) = audit()
    assert (code, found["problems"], found["notes"]) == (0, [], [])
    (measured,) = found["measured"]
    assert measured[0] == "float16"
    assert measured[1] == pytest.approx(measured[2], abs=0.5)

    path = "reports/report.json"
    place = world.local_files("ane/second-ane")
    report = json.loads((place / path).read_text())
    bar = next(bar for bar in report["fidelity"] if bar["what"] == "float16")
    bar["measures"][0]["psnr_min"] += 20  # embellished
    (place / path).write_text(json.dumps(report))
    version = f"v{len(world.local.tags('ane/second-ane')) + 1}"
    world.hub.tag("ane/second-ane", version, world.local.add("ane/second-ane", place))
    code, (found,) = audit("--digests")
    assert (code, found["mend"]) == (1, "convert")
    assert found["problems"] == [f"{path} has not the digest that SHA256SUMS says"]

    sums = (place / "SHA256SUMS").read_text().splitlines()
    digest = hashlib.sha256((place / path).read_bytes()).hexdigest()
    lines = [f"{digest}  {path}" if line.endswith(f"  {path}") else line for line in sums]
    (place / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    version = f"v{len(world.local.tags('ane/second-ane')) + 1}"
    world.hub.tag("ane/second-ane", version, world.local.add("ane/second-ane", place))
    code, (found,) = audit()
    assert (code, found["mend"]) == (1, "verify")
    assert "the report says" in found["problems"][0]

    outcome = of(world.night(), "me/second")
    assert (outcome.action, outcome.status) == ("verify", "published")
    assert "an audit of ane/second-ane found: float16: " in outcome.why
    assert audit()[0] == 0
    assert of(world.night(), "me/second").status == "skip"


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_fall_fails_the_night(world: World, checkpoint: Checkpoint) -> None:
    """The version before has figures that what is made now does not reach, of the same original."""
    manifest = world.folder / "fallen.yaml"
    manifest.write_text(MANIFEST.partition("models:")[0] + "models: [me/fallen]\n")
    world.local.add("me/fallen", checkpoint(seed=4))

    def fallen() -> Outcome:
        return of(night([str(manifest)], None, world.folder / "work", hub=world.hub), "me/fallen")

    assert fallen().status == "published"
    place = world.local_files("ane/fallen-ane")
    record = json.loads((place / "conversion.json").read_text())
    record["convert_key"] = record["packages"][0]["digest"] = "0" * 64  # of older code
    record["verify_key"] = keys.verify_key({"float16": "0" * 64}, keys.PROTOCOL, keys.BACKEND)
    record["psnr"]["float16"] += 40
    (place / "conversion.json").write_text(json.dumps(record))
    world.hub.tag("ane/fallen-ane", "v2", world.local.add("ane/fallen-ane", place))

    outcome = fallen()
    assert (outcome.status, outcome.kind) == ("failed", "GateFailed")
    assert "it fell by more than 3 dB since ane/fallen-ane v2: float16 has" in (outcome.error or "")
    assert world.local.tags("ane/fallen-ane").keys() == {"v1", "v2"}


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_retired_release_says_so_and_is_left_alone(world: World, first_night: Run) -> None:
    """Though its original is gone. The packages stay, byte for byte."""
    world.local.add("me/third", world.local_files("me/second"))
    (world.folder / "third.yaml").write_text(MANIFEST.partition("models:")[0] + "models: [me/third]\n")

    def third() -> Run:
        return night([str(world.folder / "third.yaml")], None, world.folder / "work", hub=world.hub)

    assert of(third(), "me/third").status == "published"
    before = world.local.files("ane/third-ane")
    world.local.delete("me/third")
    done = retire("ane/third-ane", "there is a better one", world.hub)
    assert (done.tag, done.changed) == ("v2", True)
    after = world.local.files("ane/third-ane")
    assert b"> **Retired**: there is a better one. Its files and tags stay" in after["README.md"]
    assert b"\n- retired\n" in after["README.md"]
    small = {"README.md", "SHA256SUMS", "conversion.json"}
    assert {name: after[name] for name in after if name not in small} == {
        name: before[name] for name in before if name not in small
    }
    assert world.conversion("ane/third-ane").retired == "there is a better one"
    assert retire("ane/third-ane", "there is a better one", world.hub).changed is False
    outcome = of(third(), "me/third")
    assert (outcome.status, outcome.why) == ("skip", "retired: there is a better one")


def conducted(
    tmp_path: Path, jobs: list[Job], ends: Callable[[Job], dict[str, Any]], late: Callable[[list[str]], str | None]
) -> tuple[list[str], list[Outcome]]:
    """The jobs that are begun by a night, and all outcomes. `ends`: how one is done; `late`: of what has been."""
    from flows.dispatch import Here  # it imports Prefect, whose settings are read then: not before a night sets them
    from flows.nightly import each

    done: list[str] = []

    class There(Here):
        def ended(self) -> list[Outcome]:
            job, self.job = self.job, None
            if not job:
                return []
            done.append(job.id)
            return [Outcome(job.id, job.repo, job.action, job.why, **{"status": "published", **ends(job)})]

    found = Survey(jobs, Answers({}, {}), [], True, {}, Wave(), ())
    there = There(tmp_path, Hub("http://127.0.0.1:9", "hf_x"), lambda model, what, share: None)
    return done, list(each(found, there, lambda: late(done)))


def test_a_wave_stops_in_the_night_too(tmp_path: Path) -> None:
    jobs = [Job("convert", "torch", f"me/m{n}", f"ane/m{n}", cause="toolchain") for n in range(9)]
    asked = Job("create", "new", "me/new", "ane/new", cause="request")
    bad = ("me/m1", "me/m3")
    done, outcomes = conducted(
        tmp_path, [*jobs, asked], lambda job: {"status": "failed"} if job.id in bad else {}, lambda _: None
    )
    assert done == ["me/m0", "me/m1", "me/m2", "me/m3", "me/m4", "me/new"]
    assert [o.status for o in outcomes] == [
        "published", "failed", "published", "failed", "published", "held", "held", "held", "held", "published",
    ]  # fmt: skip
    assert "2 of the 5 models" in outcomes[5].why


def test_a_night_has_an_end(tmp_path: Path) -> None:
    """One that is late begins nothing more, and tells of all the same."""
    jobs = [Job("create", "new", f"me/m{n}", f"ane/m{n}", cause="request") for n in range(3)]
    jobs.append(Job("skip", "nothing has changed", "me/m3", "ane/m3"))
    done, outcomes = conducted(tmp_path, jobs, lambda _: {}, lambda done: "the night is over" if done else None)
    assert done == ["me/m0"]
    assert [o.status for o in outcomes] == ["published", "held", "held", "skip"]
    assert outcomes[1].why == "to create (new): the night is over"


@pytest.mark.parametrize(
    ("kind", "begun", "why"),
    [
        ("TokenRefused", [0, 1, 2, 4], "to create (new): it could not be published, as me/m1 cannot: no"),
        ("NoWorker", [0, 1], "to create (new): no"),
        ("HubUnavailable", [0, 1, 2, 3, 4, 5], "new"),
    ],
)
def test_what_the_others_cannot_either_is_not_tried_with_each(
    tmp_path: Path, kind: str, begun: list[int], why: str
) -> None:
    """A token that may not publish there, for hours of converting; or two hours of waiting for a machine."""
    jobs = [Job("create", "new", f"me/m{n}", f"{'ane' if n % 2 else 'other'}/m{n}", cause="request") for n in range(6)]
    failed = {"status": "failed", "kind": kind, "error": "no"}
    done, outcomes = conducted(
        tmp_path, jobs, lambda job: failed if job.repo.startswith("ane/") else {}, lambda _: None
    )
    assert done == [f"me/m{n}" for n in begun]
    assert [o.id for o in outcomes if o.status == "held"] == [f"me/m{n}" for n in range(6) if n not in begun]
    assert outcomes[3].why == why


def test_a_machine_without_a_token_converts_nothing(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a pool, whose controller has one: others have its jobs."""
    from flows.convert_model import REFUSALS, convert

    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    found = convert(Job("create", "new", "me/a", "ane/a"), tmp_path, Hub(hub.url), silent)
    assert (found.status, found.kind) == ("failed", "TokenRefused")
    assert found.kind in REFUSALS
    assert hub.calls() == []


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_lost_work_folder_costs_nothing(world: World, first_night: Run) -> None:
    (world.folder / "work").rename(world.folder / "lost")
    assert of(world.night(), "me/second").status == "skip"


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_token_that_may_not_write_costs_one_conversion(
    world: World, first_night: Run, checkpoint: Checkpoint
) -> None:
    world.local.add("me/first", checkpoint(seed=40))
    world.local.add("me/second", checkpoint("BertForSequenceClassification", seed=41))
    reader = Hub(world.local.url, world.local.read_token)
    run = night([str(world.folder / "models.yaml")], None, world.folder / "reader", hub=reader)
    statuses = {of(run, id).status: of(run, id) for id in ("me/first", "me/second")}
    assert statuses.keys() == {"failed", "held"}
    assert statuses["failed"].kind == "TokenRefused"
    fetched = {each.parent.name for each in (world.folder / "reader").glob("*/source")}
    assert len(fetched & {"ane--first-ane", "ane--second-ane"}) == 1


@pytest.mark.slow
def test_the_hub_down_is_told_as_that(world: World, first_night: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hub, "waits", (0.0,))
    dead = Hub("http://127.0.0.1:9", "hf_x")
    with pytest.raises(errors.HubUnavailable, match="127.0.0.1:9"):
        night([str(world.folder / "models.yaml")], None, world.folder / "dead", hub=dead)
    left = records.read(world.folder / "dead/run.json", Run)
    assert left.broken
    assert left.broken.startswith("HubUnavailable: cannot look up me/")
    assert left.outcomes == ()
    assert "ane/hft2ane-state cannot be written" in left.warnings[0]
    assert "broke off: HubUnavailable" in (world.folder / "dead/run.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_what_nobody_foresaw_stops_one_model_only(
    world: World,
    first_night: Run,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world.local.add("me/first", checkpoint(seed=20))
    world.local.add("me/second", checkpoint("BertForSequenceClassification", seed=21))
    shipped = disk.clear

    def clear(folder: Path, keep: str) -> None:
        if "first" in folder.name:
            raise PermissionError(13, "Permission denied", str(folder))
        shipped(folder, keep)

    monkeypatch.setattr(disk, "clear", clear)
    run = world.night()
    assert of(run, "me/first").status == "failed"
    assert "PermissionError" in (of(run, "me/first").error or "")
    assert of(run, "me/second").status == "published"
    assert "me/first failed in a way that nobody foresaw" in caplog.text


@pytest.mark.slow
def test_one_conversion_at_a_time_on_a_machine(
    world: World, first_night: Run, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before may be of a run that outlived its worker; here it ends when the other waits and has said so."""
    world.local.add("me/first", checkpoint(seed=40))
    begun, waited, said, alone = threading.Event(), threading.Event(), [], room.alone

    def asked(folder: Path, wait: bool = True) -> Any:
        if folder.name == "machine" and wait:
            waited.set()
        return alone(folder, wait)

    class Bars(local.Bars):
        def __call__(self, model: str, what: str, share: float) -> None:
            said.append((waited.is_set(), model, what))
            super().__call__(model, what, share)

    def another() -> None:
        with alone(world.folder / "work/machine"):
            begun.set()
            waited.wait(120)

    monkeypatch.setattr(room, "alone", asked)
    monkeypatch.setattr(local, "Bars", Bars)
    thread = threading.Thread(target=another)
    thread.start()
    begun.wait()
    run = world.night()
    thread.join()
    assert waited.is_set()
    assert (False, "me/first", WAITS) in said
    assert of(run, "me/first").status == "published"


@pytest.mark.slow
def test_without_a_token_nothing_is_built(
    world: World, first_night: Run, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.local.add("me/first", checkpoint(seed=30))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(errors.AccessDenied, match="HF_TOKEN"):
        night([str(world.folder / "models.yaml")], None, world.folder / "tokenless", hub=Hub(world.local.url))
    assert not list((world.folder / "tokenless").glob("*/source"))
    left = records.read(world.folder / "tokenless/run.json", Run)
    assert (of(left, "me/first").status, of(left, "me/paused").status) == ("held", "blocked")
    assert of(left, "me/first").why.endswith("the night broke off before it was done")


# ---- the child process


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shell script in the place of Python, for what a real conversion does only on a bad day."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))
    (tmp_path / "job").mkdir()
    return script


def build(tmp_path: Path, **limits: Any) -> None:
    child.build(tmp_path / "job", child.Limits(**limits), silent)


def log(tmp_path: Path) -> str:
    return (tmp_path / "job" / child.LOG).read_text()


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_the_child_has_no_token(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    stand_in.write_text("#!/bin/sh\nenv >&2\n")
    build(tmp_path)
    environment = log(tmp_path)
    assert "hf_secret" not in environment
    assert "HF_HUB_OFFLINE=1" in environment
    assert f"TMPDIR={tmp_path}" in environment
    assert [each.name for each in (tmp_path / "job").iterdir()] == [child.LOG], "the temporary folder stays behind"


LOOKS = """\
import netrc, pathlib, subprocess, sys
from huggingface_hub import get_token
def found():
    yield get_token()
    for name in (".netrc", ".config/hft2ane/worker.env", ".git-credentials"):
        yield pathlib.Path(f"~/{name}").expanduser().exists() or None
    yield subprocess.run(["git", "config", "user.password"], capture_output=True, text=True).stdout or None
    try:
        yield netrc.netrc().hosts
    except FileNotFoundError:
        yield None
print(list(found()), file=sys.stderr)
"""


def test_the_child_finds_no_credentials_where_programs_look_for_them(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie below the home of whoever runs it."""
    for name, text in {
        ".cache/huggingface/token": "hf_secret",
        ".config/hft2ane/worker.env": "HF_TOKEN=hf_secret",
        ".netrc": "machine huggingface.co login me password hf_secret",
        ".git-credentials": "https://me:hf_secret@huggingface.co",
        ".gitconfig": "[user]\n\tpassword = hf_secret\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".netrc").chmod(0o600)
    (tmp_path / "looks.py").write_text(LOOKS)
    monkeypatch.setenv("HOME", str(tmp_path))
    stand_in.write_text(f"#!/bin/sh\nexec '{PYTHON}' '{tmp_path}/looks.py'\n")
    build(tmp_path)
    assert log(tmp_path).strip() == str([None] * 6)


def test_what_is_installed_for_the_user_alone_is_there_for_the_child(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the home, which is not the child's."""
    there = site.getuserbase()
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    stand_in.write_text(
        f"#!/bin/sh\nexec '{PYTHON}' -c 'import site, sys; print(site.getuserbase(), file=sys.stderr)'\n"
    )
    build(tmp_path)
    assert log(tmp_path).strip() == there


@pytest.mark.skipif(provenance.made().commit is None, reason="a copy of the files is no checkout")
def test_the_child_s_git_reads_a_checkout_that_somebody_else_owns(stand_in: Path, tmp_path: Path) -> None:
    """Which the user's own .gitconfig may allow; else a release would not say which commit made it."""
    ask = f"GIT_TEST_ASSUME_DIFFERENT_OWNER=1 git -C '{provenance.ROOT}' rev-parse HEAD >&2"
    stand_in.write_text(f"#!/bin/sh\n{ask}\n")
    build(tmp_path)
    assert log(tmp_path).strip() == provenance.made().commit


def test_a_child_that_hangs_is_stopped_with_all_it_started(stand_in: Path, tmp_path: Path) -> None:
    stand_in.write_text(f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/pid\nwait\n")
    with pytest.raises(errors.OverLimit, match="it did not start within 1 s"):
        build(tmp_path, start=1.0)
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_stage_that_is_told_of_again_gets_no_more_time(stand_in: Path, tmp_path: Path) -> None:
    stand_in.write_text("""#!/bin/sh\nwhile :; do echo '{"stage": "export"}'; sleep 0.2; done\n""")
    with pytest.raises(errors.OverLimit, match="its stage export did not end within 1 s"):
        build(tmp_path, stages={"export": 1.0})


# Long enough that it is seen, also on a busy machine.
LEAVES = """\
import subprocess, sys, time
print(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, file=open(sys.argv[1], "w"))
time.sleep(2)
"""


@pytest.mark.parametrize(("then", "start"), [("wait; sleep 600", 4.0), ("wait", 300.0)])
def test_what_left_the_child_s_group_does_not_outlive_it(
    stand_in: Path, tmp_path: Path, then: str, start: float
) -> None:
    """It holds the pipe that we read: we would wait as long as it lives, past all limits."""
    stand_in.write_text(f"#!/bin/sh\n'{PYTHON}' -c '{LEAVES}' {tmp_path}/pid &\n{then}\n")
    with pytest.raises(errors.OverLimit) if start < 10 else contextlib.nullcontext():
        build(tmp_path, start=start)
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_child_that_cannot_be_watched_is_stopped(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.write_text("#!/bin/sh\nsleep 600\n")

    def family(pid: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(child, "family", family)
    with pytest.raises(errors.Hft2aneError, match="it cannot be watched: PermissionError"):
        build(tmp_path)


def test_a_conversion_that_is_interrupted_leaves_no_temporary_files(stand_in: Path, tmp_path: Path) -> None:
    stand_in.write_text("""#!/bin/sh\ntouch $TMPDIR/large\necho '{"what": "it", "share": 0.5}'\nsleep 600\n""")

    def interrupt(what: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.build(tmp_path / "job", child.Limits(), interrupt)
    assert [each.name for each in (tmp_path / "job").iterdir()] == [child.LOG]


def test_a_child_that_is_killed_is_told_of(stand_in: Path, tmp_path: Path) -> None:
    stand_in.write_text("#!/bin/sh\nkill -SEGV $$\n")
    with pytest.raises(errors.Hft2aneError, match="signal 11"):
        build(tmp_path)


def test_the_child_s_error_keeps_its_kind(stand_in: Path, tmp_path: Path) -> None:
    line = json.dumps({"error": {"kind": "GateFailed", "text": "12 dB"}})
    stand_in.write_text(f"#!/bin/sh\necho '{line}'\nexit 1\n")
    with pytest.raises(errors.GateFailed, match="12 dB"):
        build(tmp_path)


def test_what_is_not_ours_on_standard_output_goes_to_the_log(stand_in: Path, tmp_path: Path) -> None:
    """A library that prints must not break the conversation."""
    lines = ["Loading shards...", '{"error": "none"}', '{"share": null, "what": 1}', '{"stage": ["export"]}', "[1]"]
    stand_in.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    build(tmp_path)
    assert log(tmp_path).splitlines() == lines


@pytest.mark.slow
def test_a_real_child_ends_when_its_parent_is_gone(tmp_path: Path, checkpoint: Checkpoint) -> None:
    import subprocess

    (tmp_path / "job").mkdir()
    command = [sys.executable, "-m", "hft2ane.cli", "build", str(tmp_path / "job"), "--json"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(120) in (75, 2)  # 2: it had found that job.json is missing before it looked


def test_no_error_but_ours_is_taken_for_one(stand_in: Path, tmp_path: Path) -> None:
    line = json.dumps({"error": {"kind": "SystemExit", "text": "x"}})
    stand_in.write_text(f"#!/bin/sh\necho '{line}'\nexit 1\n")
    with pytest.raises(errors.Hft2aneError, match="exit code 1"):
        build(tmp_path)
