"""A night that is ended in the middle: what it had done by then is told, and counts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from flows import child
from flows.local import night
from hft2ane import records, state
from hft2ane.cli import main
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.night import Run
from tests.conftest import Checkpoint
from tests.island import CONTROL, Island, until

pytestmark = pytest.mark.slow

# Taken in by the Python of each conversion: one model cannot be converted, another never ends.
TROUBLE = """\
import os, sys, time
if "build" in sys.orig_argv:
    (folder,) = (word for word in sys.orig_argv if "--" in word and "/" in word)
    if "crashes" in folder:
        os.kill(os.getpid(), 11)
    open(os.path.join(folder, "hangs"), "w").close()
    time.sleep(600)
"""


def test_what_was_done_before_counts(
    hub: LocalHub,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest, work = tmp_path / "models.yaml", tmp_path / "work"
    manifest.write_text(
        "defaults: {publish: {organization: ane}, lengths: [16]}\nmodels:\n  - me/crashes\n  - me/hangs\n"
        "  - {id: me/paused, status: paused, reason: for a test}\n"
    )
    for name in ("crashes", "hangs"):
        hub.add(f"me/{name}", checkpoint(seed=7))
    (tmp_path / "sitecustomize.py").write_text(TROUBLE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(child.__file__).parent.parent}")
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    command = [sys.executable, "-m", "hft2ane.cli", "run", "--manifests", str(manifest), "--work", str(work)]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if list(work.glob("*hangs*/hangs")):
            break
        assert process.poll() is None, (work / "run.log").read_text()[-3000:]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143

    run = records.read(work / "run.json", Run)
    assert {o.id: o.status for o in run.outcomes} == {
        "me/crashes": "failed",
        "me/hangs": "held",
        "me/paused": "blocked",
    }
    assert run.broken == "TerminationSignal: it was ended from outside"
    assert run.failed == ("me/crashes",)
    (there,) = state.runs(Hub(), "ane", 7)
    assert (there.outcomes, there.broken) == (run.outcomes, run.broken)
    remembered, _ = state.read(Hub(), ["ane"])
    assert remembered.attempts["ane/crashes-ane"].count == 1.0

    capsys.readouterr()
    assert main(["nights", "--manifests", str(manifest), "--within", "26"]) == 1
    out, err = capsys.readouterr()
    assert "broke off: TerminationSignal: it was ended from outside · 1 of 3 models newly fails" in " ".join(
        out.split()
    )
    assert "no night of ane in the last 26 hours has come to its end" in err

    again = night([str(manifest)], None, work, only=["me/crashes"])
    assert {o.id: o.status for o in again.outcomes} == {"me/crashes": "held"}, "it waits for its next try"
    assert (again.failed, again.broken, again.only) == ((), None, ("me/crashes",))
    assert main(["nights", "--manifests", str(manifest), "--within", "26"]) == 1, "that was no whole night"


def test_a_server_s_night_that_is_cancelled_leaves_its_report_too(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """Within the time that a worker gives it, and its runs go with it: here one that no machine has taken up."""
    with Island(tmp_path, "sqlite").living() as island:
        island.worker("control", CONTROL)
        night = island.night(island.models(["one"], lambda _: checkpoint(seed=7)))
        (run,) = until(lambda: island.conversions("ane/one-ane"), 240, "nothing is dispatched")
        with island.client() as client:
            client.set_flow_run_state(night, Cancelling())
        assert island.ended(night, 120).state_type == StateType.CANCELLED
        until(
            lambda: state_type(island, run.id) in (StateType.CANCELLED, StateType.CANCELLING),
            60,
            "it is not called back",
        )
        left = records.read(tmp_path / "control/work/run.json", Run)
        (there,) = state.runs(Hub(island.hub.url, island.hub.token), "ane", 7)
        for found in (left, there):
            assert found.broken == "TerminationSignal: it was ended from outside"
            assert [(o.id, o.status) for o in found.outcomes] == [("me/one", "held")]
        assert not island.chat.messages, "whoever cancelled it knows"


def state_type(island: Island, run: UUID) -> StateType | None:
    return island.run(run).state_type
