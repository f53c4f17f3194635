"""Room on the disk that has the folders of jobs: what was fetched stays for the next night, while there is room."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
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

    NoSpace: all of them would not be enough, so none is."""
    work.mkdir(parents=True, exist_ok=True)
    # What the folder has now is either used by the job or cleared away when it begins.
    need = max(0, TIMES * sum(file.size for file in job.files) - size(large(folder)))
    need += int(min(LEAST, LEAST_SHARE * shutil.disk_usage(work).total))
    others = [other for other in oldest(work) if other != folder]
    if shutil.disk_usage(work).free + sum(map(spare, others)) >= need:
        for other in others:
            if shutil.disk_usage(work).free >= need:
                break
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
        for each in large(folder) if free else ():
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each, ignore_errors=True)
            else:
                each.unlink(missing_ok=True)


def spare(folder: Path) -> int:
    """The bytes that `empty` would free."""
    with alone(folder, wait=False) as free:
        return size(large(folder)) if free else 0


def large(folder: Path) -> list[Path]:
    """What is in a job's folder beside its records and logs."""
    there = folder.iterdir() if folder.is_dir() else ()
    return [each for each in there if each.suffix not in SMALL or (each.is_dir() and not each.is_symlink())]


def size(paths: Iterable[Path]) -> int:
    """Bytes of files, and of those below folders. Another process may take some of them away meanwhile."""
    total = 0
    for path in paths:
        below = (Path(top, name) for top, _, names in os.walk(path) for name in names)
        for each in below if path.is_dir() and not path.is_symlink() else (path,):
            with contextlib.suppress(FileNotFoundError):
                total += each.lstat().st_size
    return total
