"""Files on this disk: written whole or not at all, the room for them, and a folder made empty."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

from hft2ane.errors import NoSpace


def write_bytes(path: Path, data: bytes) -> None:
    """All of it or nothing: temporary name, fsync, rename. NoSpace."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as err:
        if err.errno == errno.ENOSPC:
            raise NoSpace(f"the disk of {path.parent} is full: free some of it, and run this again") from err
        raise
    finally:
        with contextlib.suppress(OSError):  # there may be none, nor a folder to have it
            temporary.unlink(missing_ok=True)


def need_room(folder: Path, need: int, what: str) -> None:
    """NoSpace: the disk of `folder` has not `need` bytes free; `what` is for the message."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise NoSpace(
            f"{what} needs {need / 1e9:.1f} GB of free disk, {folder} has {free / 1e9:.1f} GB: "
            "make room, or work on another disk"
        )


def clear(folder: Path, keep: str) -> None:
    """Empties a folder, if there is one, but for `keep`."""
    for old in folder.iterdir() if folder.is_dir() else ():
        if old.name != keep:
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
