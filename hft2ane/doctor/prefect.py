"""The Prefect server: whether it answers, gives out work, and finds runs that are lost."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hft2ane import provenance
from hft2ane.doctor import machine
from hft2ane.doctor.check import SECONDS, Check, ok, problem, warning

if TYPE_CHECKING:
    import httpx2

NO_NIGHT = "no-night"  # the automation of `make deploy` that tells of it
HEARTBEAT = 180.0  # Prefect's default of PREFECT_FLOWS_HEARTBEAT_FREQUENCY


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


def checks(pool: str) -> list[Check]:
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
    ours = machine.installed_version("prefect")
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
