"""Whether this machine can do a worker's part of the night, and what to do now where it cannot: one line a check.

It looks only; nothing is changed, and no secret is told.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from hft2ane import keys, provenance
from hft2ane.errors import Hft2aneError
from hft2ane.hub import Hub

if TYPE_CHECKING:
    import httpx2

Verdict = Literal["ok", "warning", "problem"]

MAC = "apple-silicon"  # the pool of the machines that measure with Core ML
NO_NIGHT = "no-night"  # the automation of `make deploy` that tells of it
PYTHON = (3, 11), (3, 14)  # from, and below: requires-python of pyproject.toml
MACOS = (15, 0)  # packages of several lengths need it
GB = 1e9
DISK = 10 * GB, 30 * GB  # below these: problem, warning
MEMORY = 8 * 2**30, 16 * 2**30  # original and rewrite in fp32, and the package beside them
CACHES = 50 * GB
FILES = 1024  # launchd gives 256
SKEW = 60.0
HEARTBEAT = 180.0  # Prefect's default of PREFECT_FLOWS_HEARTBEAT_FREQUENCY
SECONDS = 10.0  # for an answer of the server, or of a program


@dataclass(frozen=True)
class Check:
    """`todo`: what to do now; "" where nothing is to be done."""

    name: str
    verdict: Verdict
    found: str
    todo: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warning(name: str, found: str, todo: str) -> Check:
    return Check(name, "warning", found, todo)


def problem(name: str, found: str, todo: str) -> Check:
    return Check(name, "problem", found, todo)


def examine(owners: Sequence[str], pool: str, work: Path, hub: Hub) -> list[Check]:
    """All checks, for a worker of this pool. `owners`: the organisations that the manifests publish to."""
    checks = [python(), system(pool), packages(), checkout(), *server(pool), *hugging_face(hub, owners)]
    checks += [disk(work), memory(), open_files()]
    return [*checks, *mac()] if sys.platform == "darwin" else checks


# ---- what is installed


def python() -> Check:
    found = f"{platform.python_version()} on {platform.machine()}"
    if not PYTHON[0] <= sys.version_info < PYTHON[1]:
        return problem("Python", found, "make .venv again with Python 3.11, 3.12 or 3.13: make .venv PYTHON=python3.13")
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return problem(
            "Python",
            f"{found}: not for Apple silicon, or under Rosetta",
            "install an arm64 Python, and make .venv again with it",
        )
    if sys.prefix == sys.base_prefix:
        return warning("Python", f"{found}, not a virtual environment", "use that of the lock: make .venv")
    return ok("Python", found)


def system(pool: str) -> Check:
    if sys.platform != "darwin":
        found = f"{platform.system()}, not a Mac: conversion and evaluation only, nothing is measured with Core ML"
        return warning("system", found, f"give the pool {MAC} Macs only") if pool == MAC else ok("system", found)
    found = f"macOS {platform.mac_ver()[0]}"
    if tuple(int(part) for part in platform.mac_ver()[0].split(".")[:2]) < MACOS:
        return problem("system", found, f"update macOS: packages of several lengths need {MACOS[0]}")
    return ok("system", found)


def packages() -> Check:
    if missing := [name for name in ("prefect", "coremltools", "torch") if not installed_version(name)]:
        return problem("packages", f"{', '.join(missing)} not installed", "make .venv")
    if provenance.lock() is None:
        todo = "work in a checkout of the project, not in an installed copy"
        return problem("packages", f"there is no {provenance.ROOT / provenance.LOCK}", todo)
    if strays := provenance.strays():
        more = f", and {len(strays) - 5} more" if len(strays) > 5 else ""
        found = f"not those of the lock: {', '.join(strays[:5])}{more}"
        return problem("packages", found, "rm -r .venv, and make .venv")
    return ok("packages", "those of the lock")


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def checkout() -> Check:
    made = provenance.made()
    if made.commit is None:
        todo = "work in a git checkout: packages are to say which commit made them"
        return problem("checkout", f"{provenance.ROOT} is none", todo)
    if made.changed:
        return warning(
            "checkout",
            f"{made.commit[:12]}, and {keys.CODE.name}/ has changed since",
            "git stash, or commit: else every package made here says that its code is nowhere to be found",
        )
    return ok("checkout", f"{made.commit[:12]}, nothing changed")


# ---- the Prefect server


class Unwilling(Exception):
    """The server's answer is no. `status`: of HTTP; 0: there was no answer."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Server:
    """Prefect's API by plain HTTP: its client takes seconds to import, and takes a wrong password for silence."""

    def __init__(self, client: httpx2.Client, url: str, password: str | None) -> None:
        self.client, self.url = client, url.rstrip("/")
        self.headers = {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"} if password else {}

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer's JSON; a POST when there is a body."""
        import httpx2

        method = "GET" if body is None else "POST"
        try:
            answer = self.client.request(method, self.url + path, json=body, headers=self.headers)
        except (httpx2.HTTPError, httpx2.InvalidURL) as err:
            raise Unwilling(0, type(err).__name__) from err
        if answer.status_code >= 400:
            raise Unwilling(answer.status_code, f"HTTP {answer.status_code}")
        try:
            return answer.json()
        except ValueError as err:
            raise Unwilling(answer.status_code, "no JSON") from err


def server(pool: str) -> list[Check]:
    """All that depends on the server."""
    import httpx2

    url, password = os.environ.get("PREFECT_API_URL", ""), os.environ.get("PREFECT_API_AUTH_STRING")
    if not url:
        todo = "set it to the server's address, https://…/api, in the worker's environment file"
        return [problem("server", "PREFECT_API_URL is not set", todo)]
    try:
        shown = without_password(url)
    except ValueError:
        return [problem("server", "PREFECT_API_URL is no address", "let it look like https://prefect.example.org/api")]
    with httpx2.Client(timeout=SECONDS) as client:
        return answers(Server(client, url, password), shown, pool)


def answers(prefect: Server, shown: str, pool: str) -> list[Check]:
    """Up to the first without which the next question makes no sense."""
    try:
        healthy = prefect.ask("/health")
    except Unwilling as err:
        healthy = err
    if healthy is not True:
        silent = isinstance(healthy, Unwilling) and healthy.status == 0
        todo = "is it running, and PREFECT_API_URL right?" if silent else "does PREFECT_API_URL end in /api?"
        said = f"does not answer ({healthy})" if silent else "answers, but not as Prefect's API does"
        return [problem("server", f"{shown} {said}", todo)]
    try:
        checks = [server_version(shown, str(prefect.ask("/admin/version")))]
    except Unwilling as err:
        if err.status != 401:
            return [problem("server", f"{shown}: {err}", "look at the server's log")]
        given = bool(prefect.headers)
        said = "does not accept PREFECT_API_AUTH_STRING" if given else "wants PREFECT_API_AUTH_STRING: it is not set"
        todo = "give it the value of the server's PREFECT_SERVER_API_AUTH_STRING"
        return [ok("server", f"{shown} answers"), problem("server's password", f"{shown} {said}", todo)]
    try:
        place = work_pool(prefect, pool)
        deployments = prefect.ask("/deployments/filter", {"limit": 200})
        automations = prefect.ask("/automations/filter", {"limit": 200})
    except Unwilling as err:
        return [*checks, problem("server", f"{shown}: {err}", "look at the server's log")]
    beat = heartbeat([each for each in deployments if each.get("work_pool_name") == pool])
    checks += [server_password(prefect), place, same_lock(deployments)]
    return [*checks, crash_detection(automations, beat), missing_night(automations)]


def without_password(url: str) -> str:
    """ValueError: that is no address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def server_version(shown: str, theirs: str) -> Check:
    ours = installed_version("prefect")
    if ours is None:
        return problem("server", f"{shown} has Prefect {theirs}, and here is none", "make .venv")
    if numbers(theirs) < numbers(ours):
        todo = "upgrade the server first: an older server does not know what a newer client asks"
        return problem("server", f"{shown} has Prefect {theirs}, older than {ours} here", todo)
    return ok("server", f"{shown} has Prefect {theirs}, here is {ours}")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def server_password(prefect: Server) -> Check:
    """That of this machine is accepted; does the server insist on one, and does it travel in the clear?"""
    parts = urlsplit(prefect.url)
    here = parts.hostname in ("127.0.0.1", "localhost", "::1")
    try:
        Server(prefect.client, prefect.url, None).ask("/admin/version")
    except Unwilling:
        if here or parts.scheme == "https":
            return ok("server's password", "asked for, and accepted")
        return warning(
            "server's password",
            "accepted, and sent in the clear: PREFECT_API_URL begins with http:",
            "put a proxy with TLS before the server",
        )
    if here:
        return ok("server's password", "none is asked for, on this machine")
    return problem(
        "server's password",
        "none is asked for: who reaches the server can run code on every worker",
        "set PREFECT_SERVER_API_AUTH_STRING for the server, and PREFECT_API_AUTH_STRING for the workers",
    )


def work_pool(prefect: Server, pool: str) -> Check:
    try:
        found = prefect.ask(f"/work_pools/{pool}")
    except Unwilling as err:
        if err.status != 404:
            raise
        return problem("work pool", f"the server has no pool {pool}", "on the server: make deploy")
    if found["type"] != "process":
        todo = f"on the server: prefect work-pool delete {pool}, and make deploy"
        return problem("work pool", f"{pool} is of type {found['type']}, not process", todo)
    if found["is_paused"]:
        todo = f"when it shall work again: prefect work-pool resume {pool}"
        return problem("work pool", f"{pool} is paused: no worker gets anything", todo)
    return ok("work pool", f"{pool} gives out work")


def same_lock(deployments: Sequence[Mapping[str, Any]]) -> Check:
    """The nightly hands work to machines whose lock is its own."""
    asked = {lock for each in deployments if (lock := (each.get("parameters") or {}).get("lock"))}
    ours = provenance.lock() or ""
    if not deployments:
        return problem("lock", "the server has no deployments", "on the server: make deploy")
    if not asked:
        return warning("lock", "no deployment says which it wants", "on the server, from a fresh checkout: make deploy")
    if asked != {ours}:
        theirs = ", ".join(sorted(lock[:12] for lock in asked))
        todo = "git checkout the deployed commit, rm -r .venv, make .venv; or deploy this one: make deploy"
        return problem("lock", f"{ours[:12]} here, {theirs} is deployed", todo)
    return ok("lock", f"{ours[:12]}, as deployed")


def heartbeat(deployments: Iterable[Mapping[str, Any]]) -> float:
    """Seconds between the signs of life of a run that a worker of the pool starts; of several the longest."""
    own = os.environ.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY") or str(HEARTBEAT)
    told = [(each.get("job_variables") or {}).get("env") or {} for each in deployments]
    return max([float(env.get("PREFECT_FLOWS_HEARTBEAT_FREQUENCY") or own) for env in told], default=float(own))


def crash_detection(automations: Iterable[Mapping[str, Any]], beat: float) -> Check:
    """A worker that is stopped leaves its run in the state that it had, for ever, without the automations."""
    watched: dict[str, float] = {}
    for each in automations:
        trigger = each.get("trigger") or {}
        crashes = any(action.get("state") == "CRASHED" for action in each.get("actions") or ())
        if each.get("enabled") and crashes and trigger.get("posture") == "Proactive":
            watched |= dict.fromkeys(trigger.get("after") or (), float(trigger.get("within") or 0))
    wanted = {
        "prefect.flow-run.heartbeat": "runs that were lost",
        "prefect.flow-run.Pending": "runs that never started",
    }
    if missing := [what for event, what in wanted.items() if event not in watched]:
        todo = "on the server: make deploy"
        return problem("lost runs", f"no automation finds {' and '.join(missing)}", todo)
    within = watched["prefect.flow-run.heartbeat"]
    if within < 2 * beat:
        return problem(
            "lost runs",
            f"a run is given up after {within:g} s without a sign of life, and gives one every {beat:g} s",
            "set PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 in the worker's environment file",
        )
    return ok("lost runs", f"given up after {within:g} s without a sign of life, due every {beat:g} s")


def missing_night(automations: Iterable[Mapping[str, Any]]) -> Check:
    """Is somebody told when no night ends?"""
    told = any(
        action.get("type") == "send-notification"
        for each in automations
        if each["name"] == NO_NIGHT and each.get("enabled")
        for action in each.get("actions") or ()
    )
    if not told:
        todo = "make the notification block that `make deploy` names, and deploy again"
        return warning("missing night", "nobody is told of it", todo)
    return ok("missing night", f"told of by {NO_NIGHT}")


# ---- the Hub


def hugging_face(hub: Hub, owners: Sequence[str]) -> list[Check]:
    before = datetime.now(UTC)
    try:
        theirs = hub.clock()
    except Hft2aneError as err:
        return [problem("Hub", str(err), "see whether the network or the Hub is down: nothing is lost by waiting")]
    checks = [ok("Hub", f"{hub.page} answers"), clock(before, theirs, datetime.now(UTC))]
    return [*checks, token(hub, owners)]


def clock(before: datetime, theirs: datetime, after: datetime) -> Check:
    """By the Hub's, which was read between two times of ours."""
    away = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    if away > SKEW:
        todo = "set the clock by the network: what failed waits by this clock"
        return warning("clock", f"{away:.0f} s from the Hub's", todo)
    return ok("clock", f"within {SKEW:.0f} s of the Hub's")


def token(hub: Hub, owners: Sequence[str]) -> Check:
    renew = "make a token that may write to them, and put it as HF_TOKEN into the worker's environment file"
    try:
        account = hub.account()
    except Hft2aneError as err:
        return problem("token", str(err), renew)
    whose = f"{account.name}'s"
    if account.writes is None:
        return warning("token", f"{whose}; the Hub does not say where it may write", "see that it may: " + renew)
    if lacking := [owner for owner in owners if owner not in account.writes]:
        return problem("token", f"{whose} may not write to {', '.join(lacking)}", renew)
    if not os.environ.get("HF_TOKEN"):
        todo = "put one as HF_TOKEN into the worker's environment file: another user or a reboot has not this one"
        return warning("token", f"{whose}, of `hf auth login`, not HF_TOKEN", todo)
    return ok("token", f"{whose} may write to {', '.join(owners) or 'nothing that a manifest asks for'}")


# ---- the machine


def disk(work: Path) -> Check:
    """Where job folders are kept."""
    place = next(folder for folder in (work.resolve(), *work.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    found = f"{free / GB:.0f} GB free for {work.resolve()}"
    if not os.access(place, os.W_OK):
        return problem("disk", f"{place} cannot be written to", "let HFT2ANE_WORK name a folder of the worker's own")
    if free < DISK[0]:
        return problem("disk", found, f"make room: a large model needs {DISK[0] / GB:.0f} GB")
    if free < DISK[1]:
        return warning("disk", found, f"make room: below {DISK[0] / GB:.0f} GB models fail")
    return ok("disk", found)


def memory() -> Check:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{size / 2**30:.0f} GB"
    if size < MEMORY[0]:
        return problem("memory", found, f"use a machine with {MEMORY[1] / 2**30:.0f} GB")
    if size < MEMORY[1]:
        return warning("memory", found, "the largest models may be killed for it: keep the worker's --limit at 1")
    return ok("memory", found)


def open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:  # below zero: no limit
        return warning(
            "open files", f"at most {soft}", f"ulimit -n {FILES}; what `hft2ane worker plist` writes does so"
        )
    return ok("open files", "no limit" if soft < 0 else f"at most {soft}")


# ---- the Mac


def mac() -> list[Check]:
    return [sleep(said("pmset", "-g"), said("pmset", "-g", "assertions")), compiler(), caches()]


def said(*command: str) -> str:
    """What a program says; nothing where it fails or is not there."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout
    return ""


def sleep(settings: str, assertions: str) -> Check:
    """By `pmset -g` and `pmset -g assertions`."""
    minutes = re.search(r"^\s*sleep\s+(\d+)", settings, re.MULTILINE)
    if re.search(r"^\s*Prevent(?:System|UserIdleSystem)Sleep\s+1\s*$", assertions, re.MULTILINE):
        return ok("sleep", "held off by a program, as deploy/worker.sh does with caffeinate")
    if minutes and int(minutes[1]) == 0:
        return ok("sleep", "switched off")
    found = f"after {minutes[1]} idle minutes" if minutes else "pmset does not say when"
    return warning("sleep", found, "start the worker by deploy/worker.sh, or sudo pmset -a sleep 0")


def compiler() -> Check:
    if said("xcrun", "--find", "coremlcompiler"):
        return ok("Xcode", "has coremlcompiler")
    return warning("Xcode", "no coremlcompiler", "install Xcode, should you want to compile packages by hand")


def caches() -> Check:
    sizes = core_ml_caches(Path.home(), Path(tempfile.gettempdir()))
    found = ", ".join(f"{size / GB:.1f} GB in {place}" for place, size in sizes.items()) or "none that can be read"
    if sum(sizes.values()) > CACHES:
        return warning("Core ML's caches", found, "drain the worker, delete these folders, restart the Mac")
    return ok("Core ML's caches", f"{found}; /Library/Caches/com.apple.aned cannot be read")


def core_ml_caches(home: Path, temporary: Path) -> dict[str, int]:
    """Bytes by folder: what the runtime has compiled for each program, and models compiled on the way."""
    folders = [*home.glob("Library/Caches/*/com.apple.e5rt.e5bundlecache"), *temporary.glob("*.mlmodelc")]
    sizes: dict[str, int] = {}
    for folder in folders:
        place = str(folder if folder.name.startswith("com.apple") else folder.parent / "*.mlmodelc")
        sizes[place] = sizes.get(place, 0) + size(folder)
    return sizes


def size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += os.lstat(Path(place) / name).st_size
    return total


def dumped(checks: Iterable[Check]) -> str:
    return json.dumps([vars(each) for each in checks], indent=2)
