"""How workers and the server are started: launchd's property list, deploy/worker.sh, and the units for systemd."""

import os
import plistlib
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hft2ane import launchd, provenance
from hft2ane.cli import main
from hft2ane.doctor import machine

DEPLOY = provenance.ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def test_the_property_list(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    assert main(["worker", "plist", "--environment", str(tmp_path / "my file.env")]) == 0
    written = capfdbinary.readouterr().out
    found = plistlib.loads(written)
    shell, script, pool, environment = found["ProgramArguments"]
    assert (shell, pool, environment) == ("/bin/sh", "apple-silicon", str(tmp_path / "my file.env"))
    assert os.access(script, os.X_OK)
    assert Path(found["WorkingDirectory"], "deploy/worker.sh").samefile(script)
    assert found["Label"] == launchd.LABEL
    assert found["Umask"] == 0o077
    assert set(found["EnvironmentVariables"]) == {"HOME", "PATH"}, "everybody may read the file"
    assert found["SoftResourceLimits"]["NumberOfFiles"] >= machine.FILES


def test_a_property_list_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert main(["worker", "plist", "--user", "no-such-user"]) == 2
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert main(["worker", "plist"]) == 2


# ---- deploy/worker.sh

Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Runs worker.sh in a checkout whose `prefect` says what it was started with."""
    checkout = tmp_path / "my checkout"
    for name, script in (
        (
            ".venv/bin/prefect",
            'printf "%s\\n" "$PWD" "$HF_TOKEN" "$PREFECT_API_URL" "$PREFECT_WORKER_QUERY_SECONDS" "$@"',
        ),
    ):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).write_text(f"#!/bin/sh\n{script}\n")
        (checkout / name).chmod(0o755)
    shutil.copytree(DEPLOY, checkout / "deploy")

    def run(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": path, "HOME": str(tmp_path)}
        command = [str(checkout / "deploy/worker.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)

    return run


def secrets(path: Path, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("PREFECT_API_URL='https://p.example/api'\nHF_TOKEN='hf_$not \"expanded\"'\n")
    path.chmod(mode)
    return path


def test_a_worker_starts_with_what_the_file_says(start: Start, tmp_path: Path) -> None:
    secrets(tmp_path / ".config/hft2ane/worker.env")
    done = start("control")
    assert done.returncode == 0, done.stderr
    checkout, token, url, looks, *arguments = done.stdout.splitlines()
    assert (checkout, token, url) == (str(tmp_path / "my checkout"), 'hf_$not "expanded"', "https://p.example/api")
    name = socket.gethostname().partition(".")[0]
    assert arguments == ["worker", "start", "--pool", "control", "--name", name, "--limit", "1"]
    assert looks == "2"
    assert start("control", str(secrets(tmp_path / "other file.env"))).stdout == done.stdout
    with (tmp_path / "other file.env").open("a") as file:
        file.write("PREFECT_WORKER_QUERY_SECONDS=20\n")
    assert start("control", str(tmp_path / "other file.env")).stdout.splitlines()[3] == "20"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_secrets_that_others_may_read_are_refused(start: Start, tmp_path: Path, mode: int) -> None:
    file = secrets(tmp_path / "real.env", mode)
    (tmp_path / "link.env").symlink_to(file)
    for each in (file, tmp_path / "link.env"):
        done = start("control", str(each))
        assert (done.returncode, done.stdout) == (78, "")
        assert f"chmod 600 {each}" in done.stderr


def test_what_is_missing_is_told(start: Start, tmp_path: Path) -> None:
    assert "docs/operate.md" in start("control").stderr
    assert "which pool?" in start().stderr


def test_a_mac_stays_awake_as_long_as_the_worker_runs(start: Start, tmp_path: Path) -> None:
    """By a caffeinate of ours: there is none here."""
    secrets(tmp_path / ".config/hft2ane/worker.env")
    fake = tmp_path / "bin/caffeinate"
    fake.parent.mkdir()
    fake.write_text(
        f'#!/bin/sh\necho "$PPID $@" > "{tmp_path}/said.new" && mv "{tmp_path}/said.new" "{tmp_path}/said"\n'
    )
    fake.chmod(0o755)
    prefect = tmp_path / "my checkout/.venv/bin/prefect"
    prefect.write_text(f'#!/bin/sh\nwhile ! [ -e "{tmp_path}/said" ]; do sleep 0.05; done\necho $$\n')
    done = start("control", path=f"{fake.parent}:{os.environ['PATH']}")
    number = done.stdout.strip()
    assert (tmp_path / "said").read_text() == f"{number} -i -m -s -w {number}\n"


# ---- systemd


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_is_right(unit: Path, tmp_path: Path) -> None:
    """By systemd itself, with what it starts where the unit says, below another root."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd here")
    text = unit.read_text()
    for program in ("/opt/hft2ane/.venv/bin/python", "/opt/hft2ane/deploy/worker.sh"):
        (tmp_path / program[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program[1:]).write_text("#!/bin/sh\n")
        (tmp_path / program[1:]).chmod(0o755)
        text = text.replace(f"={program}", f"={tmp_path}{program}")
    (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", str(tmp_path / unit.name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_unit_holds_a_secret() -> None:
    assert len(UNITS) == 2
    for unit in UNITS:
        for line in unit.read_text().splitlines():
            assert not line.startswith("Environment=") or "TOKEN" not in line
            assert "AUTH_STRING=" not in line
