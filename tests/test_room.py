"""Room on the disk that has the folders of jobs."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hft2ane import records, room
from hft2ane.errors import NoSpace
from hft2ane.records.job import Job
from hft2ane.records.source import RemoteFile

JOB = Job("create", "new", "me/a", "ane/a", files=(RemoteFile("model.safetensors", 400, "0", True),))


def folder(work: Path, name: str, age: int) -> Path:
    """A job's folder with 1000 bytes of files, last begun `age` seconds ago."""
    made = work / name
    (made / "source").mkdir(parents=True)
    (made / "source/model.safetensors").write_bytes(b"x" * 1000)
    records.write(made / "job.json", JOB)
    (made / "build.log").write_text("words")
    os.utime(made / "job.json", (1e9 - age, 1e9 - age))
    return made


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A disk of that many bytes, of which the files in `tmp_path` take theirs."""
    size = [5000]

    def usage(_: Path) -> object:
        used = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
        return SimpleNamespace(total=size[0], free=size[0] - used)

    monkeypatch.setattr("shutil.disk_usage", usage)
    return size


def test_the_longest_unused_go_first_and_no_more_than_needed(tmp_path: Path, disk: list[int]) -> None:
    old, older, mine = folder(tmp_path, "old", 10), folder(tmp_path, "older", 20), folder(tmp_path, "mine", 30)
    room.make(tmp_path, mine, JOB)
    assert (older / "source").exists()
    disk[0] = 3100
    room.make(tmp_path, mine, JOB)
    assert not (older / "source").exists()
    assert {path.name for path in older.iterdir()} == {"job.json", "build.log"}
    assert (old / "source").exists()
    assert (mine / "source").exists()


def test_what_another_process_works_on_stays(tmp_path: Path, disk: list[int]) -> None:
    """As a run does that outlived its worker."""
    old, older, mine = folder(tmp_path, "old", 10), folder(tmp_path, "older", 20), folder(tmp_path, "mine", 30)
    disk[0] = 3100
    with room.alone(older):
        room.make(tmp_path, mine, JOB)
    assert (older / "source").exists()
    assert not (old / "source").exists()


def test_a_disk_that_is_too_small_is_said(tmp_path: Path, disk: list[int]) -> None:
    mine = folder(tmp_path, "mine", 0)
    disk[0] = 1300
    with pytest.raises(NoSpace, match="me/a needs"):
        room.make(tmp_path, mine, JOB)


def test_nothing_is_emptied_where_all_of_it_is_not_enough(tmp_path: Path, disk: list[int]) -> None:
    """Nor where it would be, and another process works on some of it."""
    old, older, mine = folder(tmp_path, "old", 10), folder(tmp_path, "older", 20), tmp_path / "mine"
    disk[0] = 2200
    large = replace(JOB, files=(RemoteFile("model.safetensors", 600, "0", True),))
    with pytest.raises(NoSpace, match="me/a needs"):
        room.make(tmp_path, mine, large)
    with room.alone(old), pytest.raises(NoSpace):
        room.make(tmp_path, mine, JOB)
    assert (old / "source").exists()
    assert (older / "source").exists()
    room.make(tmp_path, mine, JOB)
    assert not (older / "source").exists()
    assert not (old / "source").exists()


def test_what_a_job_has_already_needs_no_room(tmp_path: Path, disk: list[int]) -> None:
    """Its folder as an earlier try left it, on a disk that has just enough for the rest."""
    old, mine = folder(tmp_path, "old", 10), folder(tmp_path, "mine", 0)
    disk[0] = 2700
    room.make(tmp_path, mine, JOB)
    assert (old / "source").exists()
