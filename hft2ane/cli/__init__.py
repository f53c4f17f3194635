"""The command line: one command a step, and those for models, packages and the night."""

import argparse
import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec

from hft2ane.cli import catalogue, macs, models, night, packages, releases, steps, use, worker
from hft2ane.cli.options import Command, Commands
from hft2ane.errors import BadInput, Hft2aneError, NoSpace

GROUPS = {
    "use a published model": (use,),
    "convert one model": (models,),
    "look into any .mlpackage": (packages,),
    "keep what the manifests want published": (night, catalogue),
    "look after what is published": (releases,),
    "on a Mac": (macs, worker),
    "the steps of one job, in their order": (steps,),
}
EXAMPLES = """\
examples:
  hft2ane try my-org/all-MiniLM-L6-v2-ane "How do I reset my password?"
  hft2ane convert sentence-transformers/all-MiniLM-L6-v2 --out minilm
  hft2ane convert ./my-finetuned-bert --out mine --lengths 64,256
  hft2ane lint minilm/release/all-MiniLM-L6-v2.float16.mlpackage
  hft2ane eval some.mlpackage --inputs x.npz --out y.npz
  hft2ane compare some.mlpackage other.mlpackage --where
  hft2ane plan --manifests ours.yaml
  hft2ane run --manifests ours.yaml --organization my-org
  hft2ane measure my-org/all-MiniLM-L6-v2-ane

A Hub other than huggingface.co: HF_ENDPOINT. A token to publish with: HF_TOKEN.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: done; 1: a model or a gate failed; 2: bad input; 75: the surroundings failed, try again."""
    options = parser().parse_args(arguments)
    command: Command = options.command
    try:
        check_installed(options.needs)
        return command(options)
    except Hft2aneError as err:
        return tell_error(err, options)
    except KeyboardInterrupt:
        print("hft2ane: interrupted", file=sys.stderr)
        return 130
    except OSError as err:
        if isinstance(err, BrokenPipeError):
            return reader_gone()
        text = f"{err.filename}: {err.strerror}" if err.filename else str(err)
        failure = NoSpace(f"the disk is full: {text}") if err.errno == errno.ENOSPC else BadInput(text)
        failure.__cause__ = err
        return tell_error(failure, options)


def reader_gone() -> int:
    """The reader of our output, `head` perhaps, has gone: nobody is to be told anything."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# What a command may need -> a library that it is known by, and the extra of pyproject.toml that brings it.
NEEDS = {
    "convert": ("transformers", "convert"),
    "evaluate": ("torch", "evaluate"),
    "flows": ("prefect", "flows"),
    "read": ("coremltools", "evaluate"),
}


def check_installed(needs: Sequence[str]) -> None:
    """BadInput when a command needs a part of hft2ane that is not installed."""
    if missing := [extra for library, extra in map(NEEDS.__getitem__, needs) if not find_spec(library)]:
        raise BadInput(f"this command needs more than the light half: pip install 'hft2ane[{','.join(missing)}]'")


def tell_error(err: Hft2aneError, options: argparse.Namespace) -> int:
    if getattr(options, "json", False) and options.command is steps.build:
        print(json.dumps({"error": {"kind": type(err).__name__, "text": str(err)}}), flush=True)
    if options.debug:
        traceback.print_exception(err)
    else:
        print(f"hft2ane: {err}", file=sys.stderr)
    return err.exit_code


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="hft2ane",
        description="Hugging Face Transformers, ready-made for the Apple Neural Engine.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = Commands(top)
    for title, groups in GROUPS.items():
        commands.title(title)
        for group in groups:
            group.add(commands)
    top.epilog = f"{top.epilog}\n{EXAMPLES}"
    return top
