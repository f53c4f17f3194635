"""This machine: what is installed, and what it has of disk, memory and open files."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hft2ane import keys, provenance
from hft2ane.doctor.check import Check, ok, problem, warning

MAC = "apple-silicon"  # the pool of the machines that measure with Core ML
PYTHON = (3, 11), (3, 14)  # from, and below: requires-python of pyproject.toml
MACOS = (15, 0)  # packages of several lengths need it
GB = 1e9
DISK = 10 * GB, 30 * GB  # below these: problem, warning
MEMORY = 8 * 2**30, 16 * 2**30  # original and rewrite in fp32, and the package beside them
FILES = 1024  # launchd gives 256


def python() -> Check:
    found = f"{platform.python_version()} on {platform.machine()}"
    if not PYTHON[0] <= sys.version_info < PYTHON[1]:
        return problem("Python", found, "make .venv again with Python 3.11, 3.12 or 3.13: make .venv PYTHON=python3.13")
    if sys.platform == "darwin" and platform.machine() != "arm64":
        return problem(
            "Python",
            f"{found}: not for Apple silicon, or under Rosetta",
            "install an arm64 Python, and make .venv again with it",
        )
    if sys.prefix == sys.base_prefix:
        return warning("Python", f"{found}, not a virtual environment", "use that of the lock: make .venv")
    return ok("Python", found)


def system(pool: str) -> Check:
    if sys.platform != "darwin":
        found = f"{platform.system()}, not a Mac: conversion and evaluation only, nothing is measured with Core ML"
        return warning("system", found, f"give the pool {MAC} Macs only") if pool == MAC else ok("system", found)
    found = f"macOS {platform.mac_ver()[0]}"
    if tuple(int(part) for part in platform.mac_ver()[0].split(".")[:2]) < MACOS:
        return problem("system", found, f"update macOS: packages of several lengths need {MACOS[0]}")
    return ok("system", found)


def packages() -> Check:
    if missing := [name for name in ("prefect", "coremltools", "torch") if not installed_version(name)]:
        return problem("packages", f"{', '.join(missing)} not installed", "make .venv")
    if provenance.lock() is None:
        todo = "work in a checkout of the project, not in an installed copy"
        return problem("packages", f"there is no {provenance.ROOT / provenance.LOCK}", todo)
    if strays := provenance.strays():
        more = f", and {len(strays) - 5} more" if len(strays) > 5 else ""
        found = f"not those of the lock: {', '.join(strays[:5])}{more}"
        return problem("packages", found, "rm -r .venv, and make .venv")
    return ok("packages", "those of the lock")


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def checkout() -> Check:
    made = provenance.made()
    if made.commit is None:
        todo = "work in a git checkout: packages are to say which commit made them"
        return problem("checkout", f"{provenance.ROOT} is none", todo)
    if made.changed:
        return warning(
            "checkout",
            f"{made.commit[:12]}, and {keys.CODE.name}/ has changed since",
            "git stash, or commit: else every package made here says that its code is nowhere to be found",
        )
    return ok("checkout", f"{made.commit[:12]}, nothing changed")


def disk(work: Path) -> Check:
    """Where job folders are kept."""
    place = next(folder for folder in (work.resolve(), *work.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    found = f"{free / GB:.0f} GB free for {work.resolve()}"
    if not os.access(place, os.W_OK):
        return problem("disk", f"{place} cannot be written to", "let HFT2ANE_WORK name a folder of the worker's own")
    if free < DISK[0]:
        return problem("disk", found, f"make room: a large model needs {DISK[0] / GB:.0f} GB")
    if free < DISK[1]:
        return warning("disk", found, f"make room: below {DISK[0] / GB:.0f} GB models fail")
    return ok("disk", found)


def memory() -> Check:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{size / 2**30:.0f} GB"
    if size < MEMORY[0]:
        return problem("memory", found, f"use a machine with {MEMORY[1] / 2**30:.0f} GB")
    if size < MEMORY[1]:
        return warning("memory", found, "the largest models may be killed for it: keep the worker's --limit at 1")
    return ok("memory", found)


def open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:  # below zero: no limit
        return warning(
            "open files", f"at most {soft}", f"ulimit -n {FILES}; what `hft2ane worker plist` writes does so"
        )
    return ok("open files", "no limit" if soft < 0 else f"at most {soft}")
