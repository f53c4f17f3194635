"""Everything on a Prefect server that is ours: work pools, the deployments of prefect.yaml, automations.

    PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.deploy

What is there as it should be stays as it is, so the second time changes nothing.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.workers.process import ProcessWorker

from flows import automations
from hft2ane import provenance
from hft2ane.errors import BadInput, Hft2aneError, Unavailable

FILE = provenance.ROOT / "prefect.yaml"
NAMES = ("nightly/nightly", "convert-model/mac", "audit/audit")
# Not the description: Prefect writes None as "None" when it is updated.
COMPARED = {
    "entrypoint",
    "version",
    "pull_steps",
    "parameters",
    "job_variables",
    "work_pool_name",
    "concurrency_options",
    "parameter_openapi_schema",
}


def deploy(
    url: str, checkout: Mapping[str, str], file: Path = FILE, tell: Callable[[str], object] = print
) -> dict[str, UUID]:
    """To the server whose API is at `url`; the ids of the deployments. `checkout`: see there; `tell` gets a line for
    each thing. BadInput; Unavailable."""
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        reach(client, url)
        wanted = yaml.safe_load(file.read_text())["deployments"]
        for pool in dict.fromkeys(each["work_pool"]["name"] for each in wanted):
            tell(f"work pool {pool}: {ensure_pool(client, pool)}")
        before = {name: read(client, name) for name in NAMES}
        told = automations.notification_block(client)
        told_of_nights = {"HFT2ANE_NOTIFY": f"{told.block_type.slug}/{told.name}"} if told and told.block_type else {}
        run_prefect(url, {**checkout, **told_of_nights}, file)
        ids = {}
        for name in NAMES:
            now = read(client, name)
            if now is None or now.version != checkout["HFT2ANE_COMMIT"]:
                raise Hft2aneError(f"prefect deploy left {name} as it was: look at {file}")
            ids[name] = now.id
            tell(f"deployment {name}: {compared(before[name], now)}")
        for line in automations.ensure(client, ids):
            tell(line)
    return ids


def reach(client: SyncPrefectClient, url: str) -> None:
    if trouble := client.api_healthcheck():
        raise Unavailable(
            f"no Prefect server answers at {url} ({trouble}): start one (make server), or correct the URL"
        )
    try:
        client.read_work_pools(limit=1)
    except PrefectHTTPStatusError as err:
        if err.response.status_code in (401, 403):
            raise BadInput(f"{url} wants a password: set PREFECT_API_AUTH_STRING to user:password") from err
        raise


def ensure_pool(client: SyncPrefectClient, name: str) -> str:
    """A process pool; settings that somebody changed there stay."""
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template))
        return "created"
    if there.type != ProcessWorker.type:
        raise BadInput(
            f"the work pool {name} is there, of type {there.type} instead of {ProcessWorker.type}: delete it"
        )
    return "as before"


def read(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def compared(before: DeploymentResponse | None, now: DeploymentResponse) -> str:
    def said(one: DeploymentResponse) -> Any:
        schedules = sorted((str(each.slug), str(each.schedule), each.active) for each in one.schedules)
        limit = one.global_concurrency_limit and one.global_concurrency_limit.limit
        return one.model_dump(include=COMPARED), schedules, limit

    if before is None:
        return f"created, at commit {now.version}"
    return "as before" if said(before) == said(now) else f"updated, at commit {now.version}"


def run_prefect(url: str, checkout: Mapping[str, str], file: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    environment = {"DO_NOT_TRACK": "1", **os.environ, **checkout, "PREFECT_API_URL": url}
    done = subprocess.run(command, cwd=provenance.ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        words = " ".join((done.stdout + done.stderr).split())[-1000:]
        raise Hft2aneError(f"prefect deploy ended with exit code {done.returncode}: {words}")


def checkout() -> dict[str, str]:
    """What prefect.yaml asks the environment for. A worker must be able to fetch it, and it must be all there is:
    BadInput."""
    commit, lock = provenance.git("rev-parse", "HEAD"), provenance.lock()
    if not commit or not lock:
        raise BadInput(f"{provenance.ROOT} is no git checkout with a {provenance.LOCK}: deploy from one")
    if changed := provenance.git("status", "--porcelain"):
        paths = ", ".join(line.split(maxsplit=1)[-1] for line in changed.splitlines()[:5])
        raise BadInput(f"workers would not have what is not committed ({paths}): commit it, or put it away")
    repository = os.environ.get("HFT2ANE_REPOSITORY")
    if not repository:
        repository = provenance.git("remote", "get-url", "origin")
        if not repository:
            raise BadInput("there is no remote origin that workers could clone: set HFT2ANE_REPOSITORY")
        if not provenance.git("branch", "--remotes", "--contains", commit):
            raise BadInput(f"commit {commit} is on no branch of {repository} that workers could clone: git push first")
    parts = urlsplit(repository)
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        raise BadInput(
            f"the address of the repository at {parts.hostname} has a password in it, which would be stored in plain "
            "text: set HFT2ANE_REPOSITORY to one without, and give the workers git credentials of their own"
        )
    return {"HFT2ANE_REPOSITORY": repository, "HFT2ANE_COMMIT": commit, "HFT2ANE_LOCK": lock}


def main() -> int:
    def work() -> int:
        url = get_current_settings().api.url
        if not url:
            raise BadInput(
                "set PREFECT_API_URL to the server's, e.g. http://127.0.0.1:4200/api (make server starts one)"
            )
        deploy(url, checkout())
        return 0

    return exit_code(work)


def exit_code(work: Callable[[], int]) -> int:
    """Of `work`; a failure is told, and has that of its kind."""
    try:
        return work()
    except httpx.HTTPError as err:
        print(f"hft2ane: the Prefect server does not answer any more: {err}", file=sys.stderr)
        return Unavailable.exit_code
    except Hft2aneError as err:
        print(f"hft2ane: {err}", file=sys.stderr)
        return err.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
