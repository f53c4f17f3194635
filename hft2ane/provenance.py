"""Where and with what a package was made: what one needs besides the original to make it again."""

import hashlib
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hft2ane import keys
from hft2ane.records.package import Made

ROOT = keys.CODE.parent  # of a checkout; of an installed package, site-packages
LOCK = "constraints.txt"
PIN = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)
# Beyond those that keys.toolchain pins: what reads the original and measures the result.
TOOLS = ("huggingface_hub", "protobuf", "safetensors", "tokenizers")


def made() -> Made:
    """Of this process. Names nobody's machine: a kind of system, not a host."""
    tools = {name: installed for name in (*keys.TOOLS, *TOOLS) if (installed := _version(name))}
    checkout = git("rev-parse", "--show-toplevel") == str(ROOT.resolve())
    return Made(
        hft2ane=version("hft2ane"),
        commit=git("rev-parse", "HEAD") if checkout else None,
        changed=checkout and bool(git("status", "--porcelain", "--", keys.CODE.name)),
        lock=lock() if checkout else None,
        tools=dict(sorted(tools.items())),
        system=f"macOS {platform.mac_ver()[0]}" if platform.system() == "Darwin" else platform.system(),
        machine=platform.machine(),
        python=platform.python_version(),
    )


def lock() -> str | None:
    """SHA-256 of the constraints.txt beside this code; None: there is none, as in an installed wheel."""
    return _digest(ROOT / LOCK)


def strays() -> list[str]:
    """What is installed otherwise than the lock beside this code has it: `torch 2.12.0, not 2.13.0`. The lock is for
    other systems too, so what is not installed is no matter."""
    path = ROOT / LOCK
    pins = PIN.findall(path.read_text()) if path.is_file() else []
    found = ((name, _version(name), pin) for name, pin in pins)
    # The lock has no local part such as +cpu.
    return [f"{name} {here}, not {pin}" for name, here, pin in found if here and here.partition("+")[0] != pin]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    """What git says about our folder; None where there is no git, or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
