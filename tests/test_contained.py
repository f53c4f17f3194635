"""Models that misbehave in their own process: contained and told of, and the others are published all the same."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import child
from flows.local import night
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.night import Outcome, Run
from tests.conftest import Checkpoint

pytestmark = pytest.mark.slow

MB = 1e6
Contained = tuple[Run, LocalHub]
# Taken in by the Python of each conversion: what a model does, by its name.
TROUBLE = """\
import os, sys, time
if "build" in sys.orig_argv:
    (folder,) = (word for word in sys.orig_argv if "--" in word and "/" in word)
    if "hangs" in folder:
        time.sleep(600)
    if "eats" in folder:
        eaten = [bytearray(b"x" * 2**20) for _ in range(1200)]
        time.sleep(600)
    if "fills" in folder:
        with open(os.path.join(os.environ["TMPDIR"], "filling"), "wb") as file:
            while True:
                file.write(bytes(2**20))
                file.flush()
    if "crashes" in folder:
        os.kill(os.getpid(), 11)
"""
NAMES = ("hangs", "eats", "fills", "crashes", "works")


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A small disk of its own, in memory."""
    with tempfile.TemporaryDirectory(prefix="hft2ane-") as place:
        if os.geteuid() or not sys.platform.startswith("linux"):
            pytest.skip("only root on Linux may mount a small disk")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def contained(
    disk: Path, tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint, temporary_server: None
) -> Iterator[tuple[Run, LocalHub]]:
    folder = tmp_path_factory.mktemp("trouble")
    (folder / "sitecustomize.py").write_text(TROUBLE)
    lines = [
        "defaults: {publish: {organization: ane}, lengths: [16]}",
        "models:",
        *(f"  - me/{name}" for name in NAMES),
    ]
    (folder / "models.yaml").write_text("\n".join(lines) + "\n")
    with LocalHub(folder / "hub") as local, pytest.MonkeyPatch.context() as patch:
        for number, name in enumerate(NAMES):
            local.add(f"me/{name}", checkpoint(seed=number))
        patch.setenv("PYTHONPATH", f"{folder}:{Path(child.__file__).parent.parent}")
        patch.setattr(child.Limits, "of", classmethod(lambda cls, job: cls(start=20.0, memory=900 * MB, disk=50 * MB)))
        yield night([str(folder / "models.yaml")], None, disk / "work", hub=Hub(local.url, local.token)), local


def of(run: Run, name: str) -> Outcome:
    return next(outcome for outcome in run.outcomes if outcome.id == f"me/{name}")


def test_the_others_are_published(contained: Contained) -> None:
    run, local = contained
    assert {o.id.removeprefix("me/"): o.status for o in run.outcomes} == {
        **dict.fromkeys(NAMES, "failed"), "works": "published"
    }  # fmt: skip
    assert local.tags("ane/works-ane").keys() == {"v1"}
    assert len(run.failed) == 4


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("hangs", "OverLimit", "it did not start within 20 s"),
        ("eats", "OverLimit", r"it took [\d.]+ GB of memory, and may take 0.9"),
        ("fills", "NoSpace", "GB have to stay so"),
        ("crashes", "Hft2aneError", "signal 11"),
    ],
)
def test_it_is_told_what_each_did(contained: Contained, name: str, kind: str, said: str) -> None:
    outcome = of(contained[0], name)
    assert outcome.kind == kind
    assert re.search(said, outcome.error or "")
    assert outcome.next is not None


def test_what_filled_the_disk_is_cleared_away(contained: Contained, disk: Path) -> None:
    left = sum(path.stat().st_size for path in (disk / "work/ane--fills-ane").rglob("*") if path.is_file())
    assert left < MB


def test_no_process_is_left(contained: Contained, disk: Path) -> None:
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(disk) in " ".join(p.info["cmdline"] or [])]
