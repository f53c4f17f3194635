"""`hft2ane worker doctor` against a real Prefect server and a Hub on this machine; each check, when it should fail."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from flows.convert_model import check_lock
from hft2ane import doctor, provenance, room
from hft2ane.cli import main
from hft2ane.coreml import process
from hft2ane.doctor import huggingface, mac, machine, prefect
from hft2ane.doctor.check import Check
from hft2ane.errors import WorkerMismatch
from hft2ane.hub import Hub, _account
from hft2ane.localhub import LocalHub
from hft2ane.records.repo import Account
from tests.standin_coreml import Inside, Settings, install

PASSWORD = "admin:correct-horse"
LOCK = provenance.lock()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[str]:
    """A Prefect server with a password, as `make deploy` leaves it: two pools, a deployment, two automations."""
    home = tmp_path_factory.mktemp("prefect")
    shutil.copy(database, home / "prefect.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command = ["uvicorn", "prefect.server.api.server:create_app", "--factory", "--port", str(port)]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], env={**os.environ, **settings}, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(900):
            assert server.poll() is None, (home / "log").read_text()
            try:
                httpx2.get(f"{url}/health", verify=False)
                break
            except httpx2.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail((home / "log").read_text())
        for name in ("control", machine.MAC):
            send(url, "POST", "/work_pools/", {"name": name, "type": "process"})
        flow = send(url, "POST", "/flows/", {"name": "convert-model"})["id"]
        deployment = {"name": "mac", "flow_id": flow, "work_pool_name": machine.MAC, "parameters": {"lock": LOCK}}
        send(url, "POST", "/deployments/", deployment | {"job_variables": {"env": {FREQUENCY: "30"}}})
        for event in ("heartbeat", "Pending"):
            send(url, "POST", "/automations/", automation(event))
        yield url
    finally:
        server.terminate()
        server.wait()


FREQUENCY = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"


def send(url: str, method: str, path: str, body: Any = None) -> Any:
    with httpx2.Client(timeout=30) as client:
        headers = prefect.Server(client, url, PASSWORD).headers
        answer = client.request(method, url + path, json=body, headers=headers)
    assert answer.status_code < 400, answer.text
    return answer.json() if answer.content else None


def automation(event: str) -> dict[str, Any]:
    trigger = {
        "type": "event",
        "posture": "Proactive",
        "after": [f"prefect.flow-run.{event}"],
        "expect": ["prefect.flow-run.*"],
        "for_each": ["prefect.resource.id"],
        "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
        "threshold": 1,
        "within": 90,
    }
    action = {"type": "change-flow-run-state", "state": "CRASHED", "name": "Crashed"}
    return {"name": f"after {event}", "trigger": trigger, "actions": [action]}


@pytest.fixture
def healthy(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """A manifest, a Hub and a token, with nothing to complain of."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/README.md").write_text("# Something\n")
    hub.add("ane/something", tmp_path / "repo")
    (tmp_path / "m.yaml").write_text("defaults: {publish: {organization: ane}}\nmodels:\n  - me/first\n")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr(Hub, "waits", ())
    return hub


@pytest.fixture
def worker(api: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a worker that reaches the server."""
    monkeypatch.setenv("PREFECT_API_URL", api)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", PASSWORD)
    return api


def of(checks: list[Check], name: str) -> Check:
    (found,) = (each for each in checks if each.name == name)
    assert (found.verdict == "ok") == (not found.todo), "who finds something says what to do, and only who does"
    return found


def server(name: str, pool: str = machine.MAC) -> Check:
    return of(prefect.checks(pool), name)


# ---- all of it


@pytest.mark.slow
def test_a_machine_that_is_fit(
    healthy: LocalHub, worker: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["worker", "doctor", "--manifests", str(tmp_path / "m.yaml"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(provenance, "made", lambda: SimpleNamespace(commit="0" * 40, changed=False))
    monkeypatch.setattr(machine, "DISK", (1, 2))
    monkeypatch.setattr(machine, "MEMORY", (1, 2))
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {each["name"] for each in told if each["verdict"] == "problem"} == set()
    names = "Python system packages checkout server work pool lock lost runs missing night Hub clock token disk memory"
    assert re.sub(r" server's password", "", " ".join(each["name"] for each in told)).startswith(names)
    assert not (tmp_path / "work").exists()

    monkeypatch.delenv("HF_TOKEN")
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert re.search(r"^problem +token +there is no token", shown, re.MULTILINE)
    assert "make a token" in shown
    for secret in (PASSWORD, healthy.token):
        assert secret not in json.dumps(told) + shown


def test_a_manifest_that_cannot_be_read_ends_it(tmp_path: Path) -> None:
    assert main(["worker", "doctor", "--manifests", str(tmp_path / "none.yaml")]) == 2


# ---- the server


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server("server").found == "PREFECT_API_URL is not set"
    monkeypatch.setenv("PREFECT_API_URL", "http://someone:secret@127.0.0.1:1/api")
    found = server("server")
    assert found.verdict == "problem"
    assert found.found == "http://127.0.0.1:1/api does not answer (ConnectError)"
    for nonsense in ("prefect.internal/api", "http://[::"):
        monkeypatch.setenv("PREFECT_API_URL", nonsense)
        assert server("server").verdict == "problem"


@pytest.mark.slow
def test_the_servers_address_without_api(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", worker.removesuffix("/api"))
    assert "does PREFECT_API_URL end in /api?" in server("server").todo


@pytest.mark.slow
def test_the_servers_password(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server("server's password").found == "asked for, and accepted"
    monkeypatch.setenv("PREFECT_API_URL", worker.replace("127.0.0.1", "0.0.0.0"))  # the same, by another name
    assert "sent in the clear" in server("server's password").found
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:guess")
    found = server("server's password")
    assert found.verdict == "problem"
    assert "does not accept" in found.found
    assert "guess" not in f"{found}"
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    assert "it is not set" in server("server's password").found


class Careless(BaseHTTPRequestHandler):
    """Answers as Prefect does, to everybody."""

    def do_GET(self) -> None:
        told = {"/api/health": True, "/api/admin/version": "3.8.8"}
        self.answer(told.get(self.path, {"type": "process", "is_paused": False}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer([])

    def answer(self, told: Any) -> None:
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_server_that_asks_for_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as careless:
        threading.Thread(target=careless.serve_forever, args=(0.02,), daemon=True).start()
        port = careless.server_address[1]
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        assert server("server's password").verdict == "ok"
        assert "no deployments" in server("lock").found
        assert server("lost runs").found == ("no automation finds runs that were lost and runs that never started")
        monkeypatch.setenv("PREFECT_API_URL", f"http://0.0.0.0:{port}/api")
        assert "can run code on every worker" in server("server's password").found
        careless.shutdown()


@pytest.mark.slow
def test_the_servers_version(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server("server").verdict == "ok"
    for ours, verdict in (("3.8.7", "ok"), ("3.9.0", "problem"), ("10.0", "problem"), (None, "problem")):
        monkeypatch.setattr(machine, "installed_version", lambda name, ours=ours: ours)
        assert server("server").verdict == verdict


@pytest.mark.slow
def test_the_work_pool(worker: str) -> None:
    assert server("work pool", "nowhere").found == "the server has no pool nowhere"
    send(worker, "POST", "/work_pools/", {"name": "boats", "type": "docker"})
    assert "type docker" in server("work pool", "boats").found
    send(worker, "PATCH", f"/work_pools/{machine.MAC}", {"is_paused": True})
    try:
        assert "paused" in server("work pool").found
        assert server("work pool", "control").verdict == "ok"
    finally:
        send(worker, "PATCH", f"/work_pools/{machine.MAC}", {"is_paused": False})
    assert server("work pool").verdict == "ok"


@pytest.mark.slow
def test_the_lock(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server("lock").verdict == "ok"
    monkeypatch.setattr(provenance, "lock", lambda: "f" * 64)
    found = server("lock")
    assert (found.verdict, found.found) == ("problem", f"ffffffffffff here, {str(LOCK)[:12]} is deployed")
    assert prefect.same_lock([{"parameters": {}}]).verdict == "warning"


@pytest.mark.slow
def test_what_finds_lost_runs(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "due every 30 s" in server("lost runs").found
    found = server("lost runs", "control")  # no deployment says how often there
    assert found.verdict == ("problem" if float(os.environ[FREQUENCY]) > 45 else "ok")
    monkeypatch.delenv(FREQUENCY)
    assert "gives one every 180 s" in server("lost runs", "control").found
    monkeypatch.setenv(FREQUENCY, "30")
    assert server("lost runs", "control").verdict == "ok"
    for each in send(worker, "POST", "/automations/filter", {}):
        if each["name"] == "after Pending":
            send(worker, "PATCH", f"/automations/{each['id']}", {"enabled": False})
            try:
                assert server("lost runs").found == "no automation finds runs that never started"
            finally:
                send(worker, "PATCH", f"/automations/{each['id']}", {"enabled": True})


def test_who_is_told_of_a_missing_night() -> None:
    notifying = {"name": "no-night", "enabled": True, "actions": [{"type": "send-notification"}]}
    assert prefect.missing_night([notifying]).verdict == "ok"
    others = notifying | {"name": "lost-night"}  # tells, but of something else
    for silent in (notifying | {"enabled": False}, notifying | {"actions": [{"type": "do-nothing"}]}, others):
        assert prefect.missing_night([silent]).verdict == "warning"


# ---- the Hub


def hugging_face(name: str) -> Check:
    return of(huggingface.checks(Hub(), ["ane"]), name)


def test_the_token(healthy: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hugging_face("token").found == "localhub's may write to ane"
    assert of(huggingface.checks(Hub(), ["ane", "others"]), "token").found == "localhub's may not write to others"
    monkeypatch.setenv("HF_TOKEN", healthy.read_token)
    assert hugging_face("token").found == "reader's may not write to ane"
    monkeypatch.setenv("HF_TOKEN", "hf_forged")
    found = hugging_face("token")
    assert (found.verdict, "does not accept the token" in found.found) == ("problem", True)
    assert hugging_face("clock").verdict == "ok"  # asked without a token
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token" in hugging_face("token").found
    (tmp_path / "token").write_text(healthy.token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert hugging_face("token").verdict == "warning"


def test_a_hub_that_makes_no_sense(healthy: LocalHub) -> None:
    healthy.fail("/api/whoami-v2", status=200)
    assert "makes sense" in hugging_face("token").found
    healthy.fail("/api/models", status=503)
    (found,) = huggingface.checks(Hub(), ["ane"])
    assert (found.name, found.verdict) == ("Hub", "problem")


def test_where_a_token_may_write() -> None:
    def told(role: str, orgs: Any = (), scoped: Any = ()) -> Account:
        token = {"role": role, "fineGrained": {"scoped": scoped}}
        return _account({"name": "me", "orgs": orgs, "auth": {"accessToken": token}})

    orgs = [{"name": name, "roleInOrg": name} for name in ("admin", "write", "contributor", "read", "no_access")]
    assert told("write", orgs).writes == {"me", "admin", "write", "contributor"}
    assert told("read", orgs).writes == frozenset()
    assert told("else", orgs).writes is None
    scoped = [
        {"entity": {"type": "org", "name": "a"}, "permissions": ["repo.content.read", "repo.write"]},
        {"entity": {"type": "org", "name": "b"}, "permissions": ["repo.content.read"]},
        {"entity": {"type": "model", "name": "c/one"}, "permissions": ["repo.write"]},
    ]
    assert told("fineGrained", orgs, scoped).writes == {"a"}
    unsaid = huggingface.token(SimpleNamespace(account=lambda: Account("me", None)), [])  # type: ignore[arg-type]
    assert unsaid.verdict == "warning"


def test_the_clock(healthy: LocalHub) -> None:
    now = datetime.now(UTC)
    for away, verdict in ((-90, "warning"), (90, "warning"), (30, "ok"), (-30, "ok")):
        shown = format_datetime(now + timedelta(seconds=away), usegmt=True)
        healthy.fail("/api/models", status=200, headers={"Date": shown})
        assert hugging_face("clock").verdict == verdict, away


# ---- the machine


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tomllib.loads((provenance.ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    (least, below) = machine.PYTHON
    assert wanted == f">={'.'.join(map(str, least))},<{'.'.join(map(str, below))}"
    assert machine.python().found.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert machine.python().verdict == "warning"
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert machine.python().verdict == "problem"


def test_a_mac_seen_from_afar(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of a Mac, by what its programs are known to say; none was asked."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert "Rosetta" in machine.python().found
    for release, verdict in (("26.1", "ok"), ("15.0", "ok"), ("14.7.1", "problem")):
        monkeypatch.setattr(machine.platform, "mac_ver", lambda release=release: (release, ("", "", ""), "arm64"))
        assert machine.system(machine.MAC).verdict == verdict


def test_core_ml_seen_from_afar(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stand-ins, and by the process itself where there are no bindings."""
    if sys.platform != "darwin":
        assert mac.core_ml().verdict == "problem"
        assert mac.core_ml().found.startswith("probe on this Mac: ")
    settings = Settings()
    monkeypatch.setattr(Inside, "settings", settings)
    monkeypatch.setattr(process, "Child", Inside)
    install(monkeypatch.setattr, settings)
    assert mac.core_ml() == Check("Core ML", "ok", "answers on Apple M9, macOS 15.5 (24F74), with cpu, gpu, ane")
    settings.devices = ("cpu", "gpu")
    assert mac.core_ml().verdict == "warning"
    assert "with cpu, gpu: no Neural Engine" in mac.core_ml().found


def test_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.system(machine.MAC).verdict == "warning"
    found = machine.system("control")
    assert found.verdict == "ok"
    assert "not a Mac: conversion and evaluation only" in found.found


def test_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.packages().verdict == "ok"
    lock = (provenance.ROOT / provenance.LOCK).read_text()
    assert len(provenance.PIN.findall(lock)) == sum("==" in line for line in lock.splitlines())
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert "there is no" in machine.packages().found
    (tmp_path / "constraints.txt").write_text("# a lock\npydantic==1.0\nonly-on-other-systems==1.0\n")
    assert re.fullmatch(r"not those of the lock: pydantic 2\.\S+, not 1\.0", machine.packages().found)
    monkeypatch.setattr(provenance, "_version", lambda name: "1.0+cpu")
    assert provenance.strays() == []
    (tmp_path / "constraints.txt").write_text("".join(f"p{number}==2\n" for number in range(7)))
    assert machine.packages().found.endswith("p4 1.0+cpu, not 2, and 2 more")
    monkeypatch.setattr(machine, "installed_version", lambda name: None if name == "torch" else "1")
    assert machine.packages().found == "torch not installed"


def test_a_conversion_is_refused_where_the_environment_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the lock beside the code is the deployed one: a worker clones both."""
    check_lock(LOCK)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "constraints.txt").write_text("pydantic==1.0\n")
    with pytest.raises(WorkerMismatch, match=r"pydantic 2\.\S+, not 1\.0"):
        check_lock(provenance.lock())
    check_lock(None)


def test_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    for commit, changed, verdict in ((None, False, "problem"), ("a" * 40, True, "warning"), ("a" * 40, False, "ok")):
        made = SimpleNamespace(commit=commit, changed=changed)
        monkeypatch.setattr(provenance, "made", lambda made=made: made)
        assert machine.checkout().verdict == verdict


def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, verdict in ((9.9e9, "problem"), (10.1e9, "warning"), (29.9e9, "warning"), (30.1e9, "ok")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        found = machine.disk(tmp_path / "not" / "made")
        assert found.verdict == verdict
        assert f"{free / 1e9:.0f} GB" in found.found
    monkeypatch.setattr(machine.os, "access", lambda place, mode: place != tmp_path)
    assert f"{tmp_path} cannot be written to" in machine.disk(tmp_path / "not").found


def test_the_disk_is_the_one_that_runs_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(doctor, "examine", lambda owners, pool, work, hub: seen.append(work) or [])
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = ["worker", "doctor", "--json"]
    for named, options in (("", []), ("~/named", []), ("~/named", ["--work", "~/asked for"])):
        monkeypatch.setenv("HFT2ANE_WORK", named)
        assert main(asked + options) == 0
        assert seen[-1] == room.work_folder(Path(options[-1]) if options else None)
    assert seen == [tmp_path / ".cache/hft2ane/work", tmp_path / "named", tmp_path / "asked for"]


def test_memory_and_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for gigabytes, verdict in ((4, "problem"), (8, "warning"), (16, "ok")):
        monkeypatch.setattr(machine.os, "sysconf", lambda name, n=gigabytes: n * 2**20 if "PHYS" in name else 1024)
        assert machine.memory() == Check("memory", verdict, f"{gigabytes} GB", machine.memory().todo)
    for soft, verdict in ((256, "warning"), (4096, "ok"), (-1, "ok")):
        monkeypatch.setattr(machine.resource, "getrlimit", lambda which, soft=soft: (soft, -1))
        assert machine.open_files().verdict == verdict


PMSET = "System-wide power settings:\nCurrently in use:\n standby 0\n sleep                {} (by x)\n disksleep 10\n"
AWAKE = "Assertion status system-wide:\n   BackgroundTask    1\n   PreventSystemSleep             {}\n"


def test_sleep() -> None:
    assert mac.sleep(PMSET.format(0), "").verdict == "ok"
    assert mac.sleep(PMSET.format(1), AWAKE.format(1)).verdict == "ok"
    assert mac.sleep(PMSET.format(10), AWAKE.format(0)).found == "after 10 idle minutes"
    assert mac.sleep("", "").verdict == "warning"


def test_core_mls_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e5 = tmp_path / "home/Library/Caches/python3.11/com.apple.e5rt.e5bundlecache/24G84/abc"
    shared = (
        tmp_path / "home/Library/Caches/com.apple.e5rt.e5bundlecache/24G84/abc"
    )  # of programs that are in no bundle
    models = (tmp_path / "T/one.mlmodelc", tmp_path / "T/two.mlmodelc")
    for folder, name in ((e5, "model.bundle"), (shared, "other.bundle"), *((model, "a") for model in models)):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(bytes(1000))
    (tmp_path / "home/Library/Caches/other").mkdir()
    found = mac.core_ml_caches(tmp_path / "home", tmp_path / "T")
    assert list(found.values()) == [1000, 1000, 2000]
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert mac.caches().verdict == "ok"
    monkeypatch.setattr(mac, "CACHES", 999)
    assert "python3.11" in mac.caches().found
    assert mac.caches().verdict == "warning"
    assert mac.compiler().verdict in ("ok", "warning")
    assert mac.said("false") == mac.said("no-such-program") == ""
