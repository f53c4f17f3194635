"""What several test files need: an isolated environment, a Hub on this machine, and a tiny checkpoint."""

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpcore2
import pytest

# Read when the libraries are imported, so before anything else.
os.environ |= {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The models are tiny: threads would only wait for one another, and for whatever else runs on the machine.
    "OMP_NUM_THREADS": "1",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "300",
    # What a server says when it stops, at the very end, where nobody listens any more.
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    # Whichever test imports Prefect first: its settings are read then, and hold for the whole process.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_HOME": tempfile.mkdtemp(prefix="hft2ane-tests-"),
}
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)
for name in ("HF_TOKEN", "HF_ENDPOINT", "PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(name, None)

from hft2ane.localhub import LocalHub  # noqa: E402 - after the environment is set

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "aeiou")]

Checkpoint = Callable[..., Path]
REPORTS = pytest.StashKey[dict[str, object]]()  # what tests found, by title: shown as text at the end


# Each of minutes, in which it waits for processes and clocks: begun first, so that others fill the pauses, and none of
# them is alone at the end. `make test` hands out whole files, in this order.
FIRST = ("test_drills.py", "test_faults.py", "test_flows.py", "test_families.py", "test_demo.py", "test_contained.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORTS] = {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    """To the process that shows it: `make test` has several."""
    told = {title: str(found) for title, found in session.config.stash[REPORTS].items()}
    getattr(session.config, "workeroutput", {})["reports"] = told


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[REPORTS] |= getattr(node, "workeroutput", {}).get("reports", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, found in config.stash[REPORTS].items():
        terminalreporter.section(title)
        terminalreporter.write_line(str(found))


@pytest.fixture(autouse=True, scope="session")
def one_trust() -> Iterator[None]:
    """Every client reads whom it would trust, 35 ms of CPU. Hubs and servers here speak no TLS, so once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpcore2, "default_ssl_context", functools.cache(httpcore2.default_ssl_context))
        yield


@pytest.fixture(autouse=True)
def no_core_ml(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac too, what a test measures is measured by our evaluator, unless the test is about Core ML itself."""
    if sys.platform == "darwin" and not request.node.get_closest_marker("mac"):
        monkeypatch.setattr("hft2ane.coreml.available", lambda: False)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as local:
        yield local


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SQLite file that a Prefect server makes when it first starts, in 10 s of CPU: made once, for all processes of
    `make test`. To be copied."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made, home = shared / "prefect.db", shared / "prefect"
    with (shared / "prefect.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_file():
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            address = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
            settings = {"PREFECT_HOME": str(home), "PREFECT_SERVER_DATABASE_CONNECTION_URL": address}
            subprocess.run(command, env=os.environ | settings, check=True, capture_output=True)
            with contextlib.closing(sqlite3.connect(home / "prefect.db")) as connection:
                connection.execute("VACUUM INTO ?", [str(home / "whole.db")])  # what is in its log, too
            (home / "whole.db").rename(made)
    return made


@pytest.fixture(scope="session")
def temporary_server(database: Path) -> None:
    """The server that Prefect starts in this process, when it has no other, finds its database."""
    if not (here := Path(os.environ["PREFECT_HOME"], "prefect.db")).exists():
        shutil.copy(database, here)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """`tiny` in a folder of its own."""
    return lambda *arguments, **more: tiny(tmp_path_factory.mktemp("checkpoint"), *arguments, **more)


def tiny(folder: Path, original: str = "BertModel", license: str | None = "mit", seed: int = 0, **changes: Any) -> Path:
    """Writes a folder as on the Hub: a tiny model with loud weights, its tokenizer, and a card that names a licence."""
    import torch
    import transformers

    folder.mkdir(exist_ok=True)
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(seed)
    kind = getattr(transformers, original)
    model = kind(kind.config_class(**sizes | changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    if license:
        (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n\n# Tiny\n")
    return folder
