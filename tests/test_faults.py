"""The fault matrix of publishing: every request to the Hub × every way in which it can go wrong × Xet and LFS.

Whatever happened, there is afterwards exactly one commit with exactly the release's files, or none and a clear error;
the next run finishes the job; and no token has gone to another origin. The matrix is shown at the end of the test run.
"""

import multiprocessing
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub import close_session, constants, get_session
from huggingface_hub.utils import _http
from huggingface_hub.utils._xet import abort_xet_session

from hft2ane import connection
from hft2ane import hub as module
from hft2ane.errors import Hft2aneError, PublishError
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.localhub.faults import Faults
from hft2ane.localhub.store import Commit
from hft2ane.publish import publish
from hft2ane.records.release import Published
from tests.conftest import REPORTS
from tests.test_publish import COMMIT, FILES, INNER, REPO, on_disk, on_hub, release

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")]

NAMES = ("README.md", "reports/report.json", "Tiny.float16.mlpackage/Manifest.json", f"{INNER}/model.mlmodel")
SMALL = {name: FILES[name] for name in (*NAMES, f"{INNER}/weights/weight.bin")}
SHORT = 0.4  # seconds: what an answer may take, where it takes 2.5 times that
FAULTS: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "503": {"status": 503},
    "429": {"status": 429, "headers": {"Retry-After": "2"}},
    "409": {"status": 409},
    "412": {"status": 412},
    "before": {"drop": "before"},
    "after": {"drop": "after"},
    "half": {"drop": "mid"},
    "cut": {"drop": "cut"},
    "silence": {"delay": 2.5 * SHORT},
}
KILLS: dict[str, dict[str, Any]] = {"kill, lost": {"delay": 0.2, "drop": "before"}, "kill, done": {"delay": 0.2}}
LEGEND = """\
once: this request goes wrong; ever: and so do all later ones of its kind. 429 says Retry-After. before, after: the
connection is reset before or after the Hub acted; half: it is reset half-way through the answer; cut: it ends there;
silence: no answer in time, and then the Hub acts all the same; kill: of the publisher, by kill -9 during the request,
which is lost or carried out. P: published; N: an error, or dead, and the next run published; empty: not there."""


@dataclass
class Matrix:
    """(transport, once or ever, request) -> what happened to it -> how it ended."""

    rows: dict[tuple[str, str, str], dict[str, str]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        columns = [*FAULTS, *KILLS]
        lines = [LEGEND, " " * 58 + "".join(f"  {name}" for name in columns)]
        for (transport, often, step), row in sorted(self.rows.items()):
            cells = "".join(f"  {row.get(name, ''):^{len(name)}}" for name in columns)
            lines.append(f"{transport} {often} {step:49} {cells}".rstrip())
        cells = sum(map(len, self.rows.values()))
        faults = f"{len(self.lost)} lost, {len(self.duplicated)} duplicated, {len(self.leaked)} tokens to others"
        return "\n".join([*lines, f"{cells} cells run: {faults}, {len(self.unclear)} unclear errors"])

    def run(self, cell: tuple[str, str, str], fault: str, local: LocalHub, job: Path, first: Callable[[], str]) -> None:
        """`first` goes wrong, perhaps; the next run does not."""
        how = first()
        close_session()
        local.settle()
        assert local.faults.met, (cell, fault)
        local.faults = Faults()
        where = f"{' '.join(cell)}, {fault}"
        if how not in ("P", "N"):
            self.unclear.append(f"{where}: {how}")
            how = "!"
        before = commits(local)
        if before and on_hub(local) != on_disk(job):
            self.lost.append(f"{where}: a commit that is not the release")
        if how == "N":
            publish(job, patient(local))
        after = commits(local)
        if not (after and on_disk(job) == on_hub(local) == on_hub(local, "v1") and is_public(local)):
            self.lost.append(f"{where}: {len(after)} commits, tags {local.tags(REPO)}, public: {is_public(local)}")
        if len(after) > 1 or list(local.tags(REPO)) != ["v1"]:
            self.duplicated.append(f"{where}: {len(after)} commits, tags {local.tags(REPO)}")
        self.leaked += [
            f"{where}: {call.path}" for call in local.log if call.auth and call.host.startswith("localhost")
        ]
        self.rows.setdefault(cell, {})[fault] = how

    def check(self) -> None:
        assert not [*self.lost, *self.duplicated, *self.leaked, *self.unclear]


def commits(local: LocalHub) -> list[Commit]:
    """Those of publishers: the first is the Hub's own."""
    return local.commits(REPO)[:-1] if Hub(local.url, local.token).repo(REPO) else []


def is_public(local: LocalHub) -> bool:
    return Hub(local.url, local.read_token).repo(REPO) is not None


@pytest.fixture(scope="module")
def matrix(request: pytest.FixtureRequest) -> Matrix:
    found = Matrix()
    request.config.stash[REPORTS]["fault matrix of publishing"] = found  # conftest.py shows it
    return found


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between tries, in our code and in the client's."""
    for talks in (module, connection):
        monkeypatch.setattr(talks, "time", SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
    abort_xet_session()  # the next one reads the environment again


@pytest.fixture(params=["xet", "lfs"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return str(request.param)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return release(tmp_path / "job", SMALL)


@pytest.fixture
def steps(job: Path, transport: str, tmp_path: Path) -> list[str]:
    """The requests of a publication in which nothing goes wrong, by kind."""
    with LocalHub(tmp_path / "normal") as local:
        publish(job, patient(local))
        return [kind(call) for call in local.calls()]


def patient(local: LocalHub, tries: int = 4) -> Hub:
    hub = Hub(local.url, local.token)
    hub.waits = (0.0,) * (tries - 1)
    return hub


def kind(call: str) -> str:
    """`PUT /_cdn/0c83… 200` -> `PUT /_cdn/{id}`; the query is left out"""
    line = " ".join(call.split()[:2]).replace(REPO, "{repo}").removesuffix("?blobs=true")
    line = re.sub("(/resolve/[^/]+/).*", r"\1{path}", line)
    return re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{40})\b", "{id}", line)


def pattern(kind: str) -> str:
    parts = {"{repo}": REPO, "{id}": "[0-9a-f]+", "{path}": ".*"}
    return re.sub(r"{\w+}|[^{]+", lambda found: parts.get(found[0], re.escape(found[0])), kind) + r"(\?blobs=true)?$"


def each(steps: list[str]) -> Iterator[tuple[str, int, str]]:
    """The first and the last request of each kind: the kind, how many of it were before, and a name."""
    for step, times in Counter(steps).items():
        for before in sorted({0, times - 1}):
            yield step, before, step + (f" #{before + 1}" if times > 1 else "")


@contextmanager
def short_time_outs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "LOOK_SECONDS", SHORT)
        for name in ("SILENCE_SECONDS", "XET_SECONDS"):
            patch.setattr(module, name, SHORT)
        patch.setattr(get_session(), "timeout", httpx2.Timeout(SHORT))
        yield


def attempt(job: Path, hub: Hub, fault: str) -> str:
    with short_time_outs() if fault == "silence" else nullcontext():
        try:
            publish(job, hub)
        except Hft2aneError as err:
            return "N" if "\n" not in str(err) and len(str(err)) > 20 else repr(err)
        except Exception as err:  # noqa: BLE001 - any other is what the matrix is to find
            return repr(err)
    return "P"


# ---- the matrix


@pytest.mark.parametrize("fault", FAULTS)
def test_once(matrix: Matrix, steps: list[str], job: Path, transport: str, fault: str, tmp_path: Path) -> None:
    for number, (step, before, name) in enumerate(each(steps)):
        with LocalHub(tmp_path / str(number)) as local:
            local.fail(pattern(step), skip=before, **FAULTS[fault])
            hub = patient(local)
            matrix.run((transport, "once", name), fault, local, job, lambda hub=hub: attempt(job, hub, fault))
    matrix.check()


@pytest.mark.parametrize("fault", FAULTS)
def test_for_ever(matrix: Matrix, steps: list[str], job: Path, transport: str, fault: str, tmp_path: Path) -> None:
    for number, step in enumerate(dict.fromkeys(steps)):
        with LocalHub(tmp_path / str(number)) as local:
            local.fail(pattern(step), times=1000, **FAULTS[fault])
            hub = patient(local, tries=1)
            matrix.run((transport, "ever", step), fault, local, job, lambda hub=hub: attempt(job, hub, fault))
    matrix.check()


@pytest.mark.parametrize("how", KILLS)
def test_killed(matrix: Matrix, steps: list[str], job: Path, transport: str, how: str, tmp_path: Path) -> None:
    for number, (step, before, name) in enumerate(each(steps)):
        with LocalHub(tmp_path / str(number)) as local:
            local.fail(pattern(step), skip=before, **KILLS[how])
            kill = partial(killed, local, job, transport, lambda call, step=step: kind(call) == step, before)
            matrix.run((transport, "once", name), how, local, job, kill)
    matrix.check()


def killed(local: LocalHub, job: Path, transport: str, is_step: Callable[[str], bool], before: int) -> str:
    """The publisher, a process of its own, is killed as soon as the request has come in."""
    publisher = NURSERY.Process(target=publish_alone, args=(local.url, local.token, job, transport == "xet"))
    publisher.start()
    while sum(map(is_step, local.calls())) <= before:
        assert publisher.is_alive(), publisher.exitcode
        time.sleep(0.002)
    publisher.kill()
    publisher.join()
    assert publisher.exitcode == -signal.SIGKILL
    return "N"


NURSERY = multiprocessing.get_context("forkserver")
NURSERY.set_forkserver_preload(["tests.test_faults"])


def publish_alone(url: str, token: str, job: Path, xet: bool) -> None:
    constants.HF_HUB_DISABLE_XET = not xet
    publish(job, Hub(url, token))


# ---- two publishers at once


@pytest.mark.parametrize("same", [True, False])
def test_two_at_once(transport: str, same: bool, tmp_path: Path) -> None:
    """They wait for each other before they commit, so both have seen the same head."""
    seen, wins = Counter[str](), Counter[str]()
    for number in range(5):
        jobs = [release(tmp_path / f"{number}" / "one", SMALL), release(tmp_path / f"{number}" / "two", SMALL)]
        if not same:
            release(jobs[1], {**SMALL, f"{INNER}/weights/weight.bin": b"another build" * 100})
        with LocalHub(tmp_path / f"hub{number}") as local, ThreadPoolExecutor(2) as threads:
            together = threading.Barrier(2, timeout=20)
            done = list(threads.map(lambda job, local=local, at=together: race(job, patient(local), at), jobs))  # type: ignore[misc]
            won = [job for job, how in zip(jobs, done, strict=True) if isinstance(how, Published)]
            lost = [how for how in done if not isinstance(how, Published)]
            seen.update(call.split()[2] for call in local.calls(COMMIT))
            assert len(won) == (2 if same else 1), done
            assert all(isinstance(how, PublishError) and "plan again" in str(how) for how in lost)
            assert len(commits(local)) == 1
            assert list(local.tags(REPO)) == ["v1"]
            assert on_hub(local) == on_hub(local, "v1") == on_disk(won[0])
            assert is_public(local)
            wins[won[0].name] += 1
    assert seen["200"] == 5
    assert seen["412"] == 5


def race(job: Path, hub: Hub, together: threading.Barrier) -> Published | Hft2aneError:
    commit, first = hub.commit, iter([True])

    def late(*args: Any, **more: Any) -> str:
        if next(first, False):
            together.wait()
        return commit(*args, **more)

    hub.commit = late  # type: ignore[method-assign]
    try:
        return publish(job, hub)
    except Hft2aneError as err:
        return err
