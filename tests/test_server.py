"""A Prefect server in the foreground, as `make server` starts it: it comes up, and leaves nothing behind."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import server
from flows.server import answers, free_port, main, program
from hft2ane.errors import BadInput, Unavailable


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the database's user may enter too, as it may not those of pytest."""
    with tempfile.TemporaryDirectory(prefix="hft2ane-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o755)
        yield Path(made)


def seen(process: psutil.Process) -> tuple[str, str, list[str]] | None:
    """Its name, user and arguments; None: it has ended, as PostgreSQL's helpers do at any time."""
    try:
        return process.name(), process.username(), process.cmdline()
    except psutil.NoSuchProcess:
        return None


@pytest.mark.slow
@pytest.mark.packages
def test_with_postgresql_it_comes_up_and_goes_with_all_it_started(place: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "flows.server",
        "--database",
        "postgres",
        "--home",
        str(place),
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = [process.stdout.readline() for _ in range(2)]
        assert said[1] == f"For whatever is to use it: export PREFECT_API_URL=http://127.0.0.1:{port}/api\n"
        assert answers(f"http://127.0.0.1:{port}/api/health")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ui-settings", timeout=60) as answer:
            assert json.load(answer)["api_url"] == f"http://127.0.0.1:{port}/api"  # which its pages ask
        started = psutil.Process(process.pid).children(recursive=True)
        there = list(filter(None, map(seen, started)))
        databases = [user for name, user, _ in there if name.startswith("postgres")]
        assert databases
        assert "root" not in databases
        assert not any("prefect:" in argument for *_, arguments in there for argument in arguments)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()
    gone, left = psutil.wait_procs(started, timeout=10)
    assert left == []
    assert not (place / "prefect.db").exists()
    assert (place / "postgres" / "PG_VERSION").is_file()
    assert stat.S_IMODE((place / "postgres.password").stat().st_mode) == 0o600


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="hft2ane-none is not installed: apt install postgresql"):
        program("hft2ane-none")


@pytest.mark.packages
def test_a_folder_that_the_database_may_not_enter(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("the database runs as us")
    tmp_path.chmod(0o700)
    with pytest.raises(BadInput, match=r"PostgreSQL cannot make its files in .* as the user postgres: .*denied"):
        server.postgres(tmp_path).__enter__()
    assert not (tmp_path / "postgres").exists()
    assert not (tmp_path / "postgres.new").exists()


def test_a_server_that_does_not_come_up_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho Port 4200 is already in use. >&2\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["--home", str(tmp_path / "home")]) == 75
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "exit code 1" in capsys.readouterr().err


def test_one_that_hangs_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STARTING", 0.5)
    monkeypatch.setattr(server, "STOPPING", 0.5)
    script = f"trap '' TERM; sleep 600 & echo $! > {tmp_path}/pid; while :; do sleep 1; done"
    with (
        pytest.raises(Unavailable, match=r"it does not answer after 0.5 s"),
        server.running(["sh", "-c", script], tmp_path / "log", os.environ) as process,
    ):
        server.wait_until(lambda: False, process, tmp_path / "log", "it")
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        pytest.fail("what it started is still there")
