"""Room on the disk that has the folders of jobs: what was fetched stays for the next night, while there is room."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hft2ane import disk
from hft2ane.records.job import Job

WORK = "~/.cache/hft2ane/work"
TIMES = 4  # a job takes up to so many times the size of what it fetches, its packages among it
LEAST = 1e9  # bytes more than that stay free, or
LEAST_SHARE = 0.02  # of a small disk
SMALL = (".json", ".log")


def work_folder(named: Path | str | None = None) -> Path:
    """Where the folders of jobs go: the one that is named, else HFT2ANE_WORK, else one below ~/.cache."""
    return Path(named or os.environ.get("HFT2ANE_WORK") or WORK).expanduser()


def make(work: Path, folder: Path, job: Job) -> None:
    """Room for a job in `folder`: the other folders in `work` are emptied, the longest unused first, until there is.

    NoSpace: that was not enough."""
    work.mkdir(parents=True, exist_ok=True)
    need = TIMES * sum(file.size for file in job.files)
    need += int(min(LEAST, LEAST_SHARE * shutil.disk_usage(work).total))
    for other in oldest(work):
        if shutil.disk_usage(work).free >= need:
            break
        if other != folder:
            empty(other)
    disk.need_room(work, need, job.id)


@contextlib.contextmanager
def alone(folder: Path, wait: bool = True) -> Iterator[bool]:
    """One process at a time works on a job's folder on this machine: another waits until the first is done, or gone.
    Not `wait`: it is given False."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def oldest(work: Path) -> Iterator[Path]:
    """The folders of jobs, the longest unused first."""
    found = []
    for record in work.glob("*/job.json"):
        with contextlib.suppress(FileNotFoundError):  # another process may be about to begin there
            found.append((record.stat().st_mtime, record.parent))
    return (folder for _, folder in sorted(found))


def empty(folder: Path) -> None:
    """Leaves the records and logs of a job, for people; and all of it while another process works on it."""
    with alone(folder, wait=False) as free:
        for each in folder.iterdir() if free and folder.is_dir() else ():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each, ignore_errors=True)
            elif each.suffix not in SMALL:
                each.unlink(missing_ok=True)
