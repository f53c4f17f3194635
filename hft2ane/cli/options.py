"""What the groups of commands share: how a command is added, and the types of its options."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from hft2ane.records.mac import UNITS, Unit
from hft2ane.records.recipe import LEAST_LENGTH, VARIANTS, Variant

Command = Callable[[argparse.Namespace], int]
WIDE = len("verify-signature")


class Commands:
    """The commands of hft2ane, or those of a command that has some of its own (`worker`).

    `help`: titles, and below each its commands with what they do; hft2ane has too many of them for one list."""

    def __init__(self, top: argparse.ArgumentParser) -> None:
        top.usage = f"{top.prog} [OPTIONS] COMMAND ..."
        self.top, self.help = top, ""
        # argparse would list all of them under one title.
        self.parsers = top.add_subparsers(prog=top.prog, metavar="COMMAND", required=True, help=argparse.SUPPRESS)

    def title(self, text: str) -> None:
        """What is added from here on is listed below it."""
        self.help += f"\n{text}:\n"

    def add(self, name: str, command: Command, about: str, needs: tuple[str, ...] = ()) -> argparse.ArgumentParser:
        """`needs`: see `cli.NEEDS`, what it cannot run without."""
        sub = self.parser(name, about)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.set_defaults(command=command, needs=needs)
        return sub

    def group(self, name: str, about: str) -> Commands:
        """A command that is nothing without one of its own."""
        commands = Commands(self.parser(name, about))
        commands.title("commands")
        return commands

    def parser(self, name: str, about: str) -> argparse.ArgumentParser:
        self.help += f"  {name:{WIDE}}  {about.rstrip('.')}\n"
        self.top.epilog = self.help.lstrip("\n")
        made: argparse.ArgumentParser = self.parsers.add_parser(
            name, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        return made


def reason(text: str) -> str:
    """One line, without the full stop that the card adds."""
    line = " ".join(text.split()).rstrip(".")
    if not line or not line.isprintable() or len(line) > 500:
        raise argparse.ArgumentTypeError("a reason is a text of at most 500 characters")
    return line


def lengths(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < LEAST_LENGTH:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of token lengths of at least {LEAST_LENGTH}, e.g. 32,64"
        )
    return found


def variants(text: str) -> tuple[Variant, ...]:
    names = dict.fromkeys(text.split(","))
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(VARIANTS)}")
    return tuple(variant for variant in VARIANTS if variant in names)


def number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 1000")
    return int(text)


def units(text: str) -> tuple[Unit, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in UNITS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(UNITS)}")
    return tuple(unit for unit in UNITS if unit in names)


def paths(options: argparse.Namespace) -> list[Path]:
    return [Path(path) for path in options.manifests]


def quieten() -> None:
    """coremltools logs at import which of its macOS libraries are not there."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
