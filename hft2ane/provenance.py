"""Where and with what a package was made: what one needs besides the original to make it again."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hft2ane import keys
from hft2ane.records import Made

ROOT = keys.CODE.parent  # of a checkout; of an installed package, site-packages
LOCK = "constraints.txt"
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
