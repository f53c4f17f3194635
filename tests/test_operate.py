"""docs/operate.md: what it names is there, and what it says was tried is tried here, in its order."""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import prefect.settings
import pytest

from hft2ane import errors, provenance
from hft2ane.cli import parser
from hft2ane.localhub import LocalHub

ROOT = provenance.ROOT
MANUAL = (ROOT / "docs/operate.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", MANUAL, re.MULTILINE | re.DOTALL)
BASH = [text for language, text in BLOCKS if language == "bash"]
INI = [text for language, text in BLOCKS if language == "ini"]
UNTRIED = re.compile(r"# not tried here: .+\n")
TRIED = [text for text in BASH if not UNTRIED.match(text)]
SHORT = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", MANUAL, flags=re.MULTILINE | re.DOTALL))

# Blocks that go on until they are ended, and those that rightly end otherwise than with 0.
LASTING = ("make server", "deploy/worker.sh")
CODES = {".venv/bin/hft2ane nights --within 26\n": 1}  # there was no night yet


def commands(program: str) -> list[list[str]]:
    """The arguments that the manual gives to a program, in blocks and in the text."""
    lines = [line for text in [*BASH, *SHORT] for line in text.splitlines()]
    pattern = re.compile(rf"(?:^|[;&] *|\bsudo )(?:\S*/)?{program} ([^;&>#|]*)")
    return [shlex.split(found) for line in lines for found in pattern.findall(line)]


def test_every_command_is_tried_or_said_not_to_be() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "ini", "text"}
    assert len(TRIED) > 8
    for text in BASH:
        assert text in TRIED or UNTRIED.match(text)
        assert text.count("not tried") == (text not in TRIED)
        subprocess.run(["bash", "-n", "-c", text], check=True)
    assert not [text for text in TRIED if "sudo" in text or "launchctl" in text or "systemctl" in text]


def test_the_commands_exist() -> None:
    found = commands("hft2ane")
    assert len(found) > 8
    for words in found:
        options = {word for word in words if word.startswith("--")}
        here = parser()
        for word in words:
            if not (menu := next((a for a in here._actions if isinstance(a, argparse._SubParsersAction)), None)):
                break
            assert word in menu.choices, f"hft2ane {' '.join(words)}"
            here = menu.choices[word]
        assert options <= set(here._option_string_actions), f"hft2ane {' '.join(words)}"


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {word for words in commands("make") for word in words if "=" not in word}
    assert {"server", "deploy", ".venv", "server.postgres"} <= targets
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def test_the_variables_exist() -> None:
    sources = [*ROOT.glob("hft2ane/**/*.py"), *ROOT.glob("flows/*.py"), *ROOT.glob("deploy/*"), ROOT / "Makefile"]
    ours = "\n".join(path.read_text() for path in sources)
    named = set(re.findall(r"\b(?:PREFECT|HFT2ANE|HF)_[A-Z_]+\b", MANUAL))
    assert len(named) > 7
    for name in named:
        if name.startswith("PREFECT_"):
            assert getattr(prefect.settings, name) is not None  # AttributeError: there is no such setting
        else:
            assert name in ours, name


def test_the_errors_exist_and_each_has_its_line() -> None:
    table = MANUAL.split("| `kind` |", 1)[1].split("\n\n")[0]
    named = set(re.findall(r"`([A-Z]\w+)`", "\n".join(line.split(" | ")[0] for line in table.splitlines())))
    kinds = {name: each for name, each in vars(errors).items() if isinstance(each, type)}
    known = {name for name, each in kinds.items() if not issubclass(each, Warning)}  # no night fails of a warning
    assert named <= known
    covered = {name for name in known if {each.__name__ for each in getattr(errors, name).__mro__} & named}
    above = {"Hft2aneError", "SourceError", "Unavailable"}
    not_of_a_night = {"BadInput", "ManifestError"}
    assert known - covered == above | not_of_a_night


def test_its_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", MANUAL, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", MANUAL):
        assert target.startswith("https://") or target in anchors or (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`((?:deploy|tests|hft2ane)/[\w./-]+)`", MANUAL):
        assert (ROOT / path).exists(), path


# ---- tried


class Bench:
    """A checkout with an environment, a user's home, and a Hub: what the manual's reader has."""

    def __init__(self, folder: Path, hub: LocalHub) -> None:
        self.home, self.checkout, self.hub = folder / "home", folder / "hft2ane", hub
        self.lasting: list[subprocess.Popen[bytes]] = []
        (self.home / ".config/hft2ane").mkdir(parents=True)
        self.copy()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        server, worker = (text for text in INI if "API_AUTH_STRING" in text and "PREFECT_FLOWS" not in text)
        self.write("server.env", server, PREFECT_SERVER_API_PORT=str(self.port), PREFECT_UI_API_URL=self.url)
        work = str(folder / "work")
        self.write("worker.env", worker, PREFECT_API_URL=self.url, HF_TOKEN=hub.token, HFT2ANE_WORK=work)
        # What stays from one block to the next, as in one terminal.
        self.state = folder / "state"
        path = os.environ["PATH"]
        self.state.write_text(f"export HOME='{self.home}' PATH='{path}' HF_ENDPOINT='{hub.url}' DO_NOT_TRACK=1\n")
        self.log = folder / "log"

    def copy(self) -> None:
        """What git would have, committed; with a small manifest, and this environment for that of the lock."""
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file() and not name.startswith(("manifests/", "tests/")):
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.checkout / name)
        (self.checkout / "manifests").mkdir()
        (self.checkout / "manifests/m.yaml").write_text(
            "defaults: {publish: {organization: ane}}\n"
            "models:\n  - {id: me/paused, status: paused, reason: for a test}\n"
        )
        for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "all")):
            who = ("-c", "user.name=me", "-c", "user.email=me@example.org")
            subprocess.run(["git", *who, *command], cwd=self.checkout, check=True)
        venv = self.checkout / ".venv"
        venv.mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (venv / name).symlink_to(Path(sys.prefix) / name)
        (venv / "installed").touch()

    def write(self, name: str, text: str, **changes: str) -> None:
        for variable, value in changes.items():
            text, count = re.subn(rf"^{variable}=.*", f"{variable}='{value}'", text, flags=re.MULTILINE)
            text += "" if count else f"{variable}='{value}'\n"
        path = self.home / ".config/hft2ane" / name
        path.write_text(text)
        path.chmod(0o600)

    def run(self, block: str) -> None:
        script = f"set -e\n. {self.state}\n{block}\nexport -p > {self.state}\n"
        environment = {"PYTHONPATH": str(self.checkout), "HFT2ANE_REPOSITORY": f"file://{self.checkout}"}
        with self.log.open("ab") as log:
            log.write(f"\n--- {block}".encode())
            log.flush()
            process = subprocess.Popen(
                ["bash", "-c", script], cwd=self.checkout, env=environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        if block.strip().splitlines()[-1].startswith(LASTING):
            self.lasting.append(process)
            self.wait_for_server()
        else:
            assert process.wait(300) == CODES.get(block, 0), self.log.read_text()[-6000:]

    def wait_for_server(self) -> None:
        for _ in range(1500):
            assert self.lasting[-1].poll() is None, self.log.read_text()[-6000:]
            if self.answers():
                return
            time.sleep(0.2)
        pytest.fail(self.log.read_text()[-6000:])

    def answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health", verify=False).is_success
        except httpx2.TransportError:
            return False

    def lose_the_server(self) -> None:
        self.end(self.lasting[0])
        assert not self.answers()
        shutil.rmtree(self.checkout / ".prefect/server")

    def end(self, process: "subprocess.Popen[bytes]") -> None:
        """As Ctrl-C in its terminal does: so that it ends what it has started elsewhere too."""
        with contextlib.suppress(ProcessLookupError):  # there is none left of its group
            os.killpg(process.pid, signal.SIGTERM)
            for _ in range(600):
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)
            pytest.fail(f"{process.args} does not end")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/README.md").write_text("# Something\n")
    with LocalHub(tmp_path / "hub") as hub:
        hub.add("ane/something", tmp_path / "repo")
        made = Bench(tmp_path, hub)
        yield made
        for process in made.lasting:
            made.end(process)


@pytest.mark.slow
@pytest.mark.skipif(provenance.made().commit is None, reason="a copy of the files is no checkout")
def test_what_is_said_to_be_tried_is(bench: Bench) -> None:
    *before, last = TRIED
    for block in before:
        bench.run(block)
    assert [call for call in bench.hub.calls("POST") if "hft2ane-state" in call], "there was a night"
    bench.lose_the_server()
    bench.run(next(block for block in TRIED if "make server" in block))
    bench.run(last)
    bench.run(next(block for block in TRIED if "--watch" in block))  # by the worker of before
