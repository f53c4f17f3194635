"""A whole production of our own on this machine: a Hub, a Prefect server with what `make deploy` makes of it, a control
worker, and workers that stand for Macs. For drills and for bench/nightly.py.

All of its processes carry MARK in their environment, or the island's folder in their command line, so that what is left
behind is found; and only those are ever ended.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psutil
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Scheduled

from flows.deploy import FILE, deploy
from flows.patience import patiently
from flows.server import Database, Server, free_port, server
from hft2ane import provenance
from hft2ane.localhub import LocalHub
from tests.chat import Chat

ROOT = provenance.ROOT
MARK = "HFT2ANE_ISLAND"
CONTROL, MACS = "control", "apple-silicon"

T = TypeVar("T")


class Island:
    def __init__(self, folder: Path, database: Database) -> None:
        self.folder, self.database, self.mark, self.port = folder, database, uuid.uuid4().hex, free_port()
        self.hub = LocalHub(folder / "hub")
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.pools: dict[str, str] = {}  # by worker
        self.ending = threading.Event()
        self.up = contextlib.ExitStack()  # the server
        self.served: Server | None = None
        self.ids: dict[str, UUID] = {}
        self.chat = Chat()

    @contextlib.contextmanager
    def living(self) -> Iterator["Island"]:
        keeper = threading.Thread(target=self.keep_alive, daemon=True)
        keeper.start()
        try:
            with self.hub:
                self.start_server()
                url = f"http://127.0.0.1:{self.port}/api"
                with temporary_settings({PREFECT_API_URL: url}), self.chat.listening():
                    self.ids = deploy(url, CHECKOUT | {"HFT2ANE_LOCK": self.lock}, self.yaml(), lambda _: None)
                    yield self
        finally:
            self.ending.set()
            keeper.join()
            for process in self.ours():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            for worker in self.workers.values():
                worker.wait()
            self.up.close()

    @property
    def lock(self) -> str:
        found = provenance.lock()
        assert found, "drills need a git checkout"
        return found

    def yaml(self) -> Path:
        """prefect.yaml, but for the code that runs: this checkout as it is, instead of a clone of a commit. A machine
        with a file `no-code` in its folder cannot fetch it."""
        file = self.folder / "prefect.yaml"
        fetch = {"script": 'test ! -e "$(dirname "$HFT2ANE_WORK")/no-code"', "shell": True}
        pull = [
            {"prefect.deployments.steps.run_shell_script": fetch},
            {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}},
        ]
        file.write_text(yaml.safe_dump({**yaml.safe_load(FILE.read_text()), "pull": pull}))
        return file

    # ---- the server

    def start_server(self) -> None:
        self.served = self.up.enter_context(server(self.folder / "server", self.database, self.port))

    def kill_server(self) -> None:
        assert self.served
        os.killpg(self.served.process.pid, signal.SIGKILL)
        self.up.close()

    @contextlib.contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        with get_client(sync_client=True) as client:
            yield client

    # ---- workers

    def keep_alive(self) -> None:
        """Starts a worker again that ended by itself, as launchd and systemd do: after some time without a server."""
        while not self.ending.wait(2):
            for name, worker in list(self.workers.items()):
                if worker.poll() is not None:
                    self.worker(name, self.pools[name])

    def worker(self, name: str, pool: str = MACS) -> None:
        """One that takes a run at a time, with a work folder of its own, as a machine has."""
        self.pools[name] = pool
        home = self.folder / name
        home.mkdir(exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "HF_"))}
        environment |= {
            MARK: self.mark,
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DO_NOT_TRACK": "1",
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": self.hub.token,
            "HFT2ANE_WORK": str(home / "work"),
            "HFT2ANE_WORKER": name,
            "OMP_NUM_THREADS": "1",
        }
        limit = ["--limit", "1"] if pool == MACS else []
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process",
                   "--name", name, *limit]  # fmt: skip
        with (home / "worker.log").open("ab") as log:
            self.workers[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def end_worker(self, name: str, how: signal.Signals) -> None:
        worker = self.workers.pop(name)
        worker.send_signal(how)
        worker.wait(60)

    def online(self, pool: str) -> int:
        with self.client() as client:
            workers = patiently(lambda: client.read_workers_for_work_pool(pool))
        return sum(worker.status == WorkerStatus.ONLINE for worker in workers)

    def ours(self) -> list[psutil.Process]:
        """All processes of this island but the server's."""
        return [process for process in psutil.process_iter() if self.is_ours(process)]

    def is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return process.environ().get(MARK) == self.mark or bool(self.work_of(process))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def work_of(self, process: psutil.Process) -> str:
        """Of which worker a process is the converter; ""."""
        command = process.cmdline()
        if "build" not in command:
            return ""
        names = [Path(word).relative_to(self.folder).parts[0] for word in command if word.startswith(str(self.folder))]
        return names[0] if names else ""

    def converter(self, worker: str) -> psutil.Process | None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if self.work_of(process) == worker:
                    return process
        return None

    def runs_of(self, worker: str) -> list[psutil.Process]:
        """The processes that a worker started for its runs."""
        return [each for each in self.ours() if each.pid != self.workers[worker].pid
                and each.environ().get("HFT2ANE_WORKER") == worker]  # fmt: skip

    # ---- models and nights

    def models(self, names: Sequence[str], upstream: Callable[[int], Path]) -> str:
        """Originals on the Hub, and a manifest that wants them."""
        for number, name in enumerate(names):
            self.hub.add(f"me/{name}", upstream(number))
        manifest = self.folder / f"{names[0]}.yaml"
        lines = ["defaults: {publish: {organization: ane}, lengths: [16]}", "models:", *(f"  - me/{n}" for n in names)]
        manifest.write_text("\n".join(lines) + "\n")
        return str(manifest)

    def night(self, manifest: str, **more: Any) -> UUID:
        with self.client() as client:
            made = client.create_flow_run_from_deployment(
                self.ids["nightly/nightly"], parameters={"manifests": [manifest], **more}, state=Scheduled()
            )
            return made.id

    def run(self, id: UUID) -> FlowRun:
        with self.client() as client:
            return patiently(lambda: client.read_flow_run(id))

    def conversions(self, repo: str) -> list[FlowRun]:
        """The runs of convert-model for a repo, the oldest first."""
        with self.client() as client:
            found = patiently(
                lambda: client.read_flow_runs(
                    deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[self.ids["convert-model/mac"]])),
                    flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[repo])),
                )
            )
        return sorted(found, key=lambda run: run.created or run.expected_start_time)

    def ended(self, id: UUID, seconds: float = 600) -> FlowRun:
        def final() -> FlowRun | None:
            run = self.run(id)
            return run if run.state and run.state.is_final() else None

        return until(final, seconds, f"run {id} has not ended")


# The commit is only a version's name here.
CHECKOUT = {"HFT2ANE_REPOSITORY": str(ROOT), "HFT2ANE_COMMIT": "island"}


def until(ask: Callable[[], T | None], seconds: float, complaint: str) -> T:
    """What `ask` gives once it gives something."""
    end = time.monotonic() + seconds
    while not (found := ask()):
        if time.monotonic() > end:
            raise AssertionError(f"{complaint} after {seconds:g} s")
        time.sleep(0.3)
    return found
