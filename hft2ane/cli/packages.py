"""Commands for an .mlpackage, of ours or not: inspect, lint, eval, compare."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from hft2ane import records
from hft2ane.cli.options import Commands
from hft2ane.errors import BadInput


def add(commands: Commands) -> None:
    sub = commands.add(
        "inspect",
        inspect,
        "Show what a package has: functions, inputs, operations.",
        needs=("read",),
    )
    sub.add_argument("package", type=Path, metavar="PACKAGE")
    sub.add_argument("--json", action="store_true")

    sub = commands.add(
        "lint",
        lint,
        "Predict what of a package the Neural Engine will run.",
        needs=("evaluate",),
    )
    sub.add_argument("package", type=Path, metavar="PACKAGE")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="findings and a verdict for every operation")
    form.add_argument("--sarif", action="store_true", help="findings as SARIF 2.1.0, for pull requests")
    sub.add_argument(
        "--fail-on", choices=("error", "warning"), default="error", help="exit with 1 from there on (default: error)"
    )

    sub = commands.add(
        "eval",
        evaluate,
        "Compute a package's outputs, rounded as it declares them.",
        needs=("evaluate",),
    )
    sub.add_argument("package", type=Path, metavar="PACKAGE")
    sub.add_argument("--inputs", type=Path, required=True, metavar="NPZ", help="one array an input (numpy.savez)")
    sub.add_argument("--function", metavar="NAME", help="default: the package's default function")
    sub.add_argument("--out", type=Path, metavar="NPZ", help="write the outputs there")
    sub.add_argument("--keep", nargs="+", default=[], metavar="NAME", help="values in the middle to give as well")
    sub.add_argument("--time", action="store_true", help="show what each type of operation took")
    add_mode(sub)

    sub = commands.add(
        "compare",
        compare,
        "PSNR between two packages, by output and by layer.",
        needs=("evaluate",),
    )
    sub.add_argument("package", type=Path, metavar="PACKAGE")
    sub.add_argument("reference", type=Path, metavar="REFERENCE", help="an .mlpackage, or an .npz of outputs")
    sub.add_argument("--inputs", type=Path, metavar="NPZ", help="default: random ids, all valid and half padded")
    sub.add_argument("--function", metavar="NAME", help="default: the package's default function")
    sub.add_argument("--where", action="store_true", help="also layer by layer; REFERENCE may be PACKAGE itself")
    sub.add_argument("--gate", type=float, metavar="DB", help="exit with 1 when an output is below")
    add_mode(sub)


def add_mode(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--mode",
        choices=("declared", "float32", "half"),
        default="declared",
        help="declared (default): float32 inside an operation, its result rounded to its type; float32: no rounding; "
        "half: half precision inside operations too",
    )


def inspect(options: argparse.Namespace) -> int:
    from hft2ane.mil.inspect import inspect as look
    from hft2ane.package import digest
    from hft2ane.terminal.package import show_package

    summary, identity = look(options.package), digest(options.package)
    if options.json:
        print(json.dumps({**asdict(summary), "digest": identity}, indent=2, default=dict))
    else:
        show_package(options.package, summary, identity)
    return 0


def lint(options: argparse.Namespace) -> int:
    from hft2ane.mil.lint import lint as ask
    from hft2ane.mil.lint import sarif
    from hft2ane.terminal.lint import show_lint

    found = ask(options.package)
    if options.json:
        sys.stdout.write(records.dump(found).decode())
    elif options.sarif:
        print(json.dumps(sarif(found), indent=2))
    else:
        show_lint(found)
    failing = ("error",) if options.fail_on == "error" else ("error", "warning")
    return 1 if any(finding.severity in failing for finding in found.findings) else 0


def evaluate(options: argparse.Namespace) -> int:
    from hft2ane.mil import open_package
    from hft2ane.mil.compare import read_inputs, write_arrays
    from hft2ane.terminal.package import show_arrays, show_times

    program = open_package(options.package)
    inputs = read_inputs(options.inputs, program, options.function)
    times: dict[str, list[float]] = {}
    arrays = program.evaluate(
        inputs,
        options.function,
        mode=options.mode,
        keep=options.keep,
        watch=(lambda op, seconds: times.setdefault(op.type, []).append(seconds)) if options.time else None,
    )
    if options.out:
        write_arrays(options.out, arrays)
    show_arrays(arrays)
    if options.time:
        show_times(times)
    return 0


def compare(options: argparse.Namespace) -> int:
    from hft2ane.mil import Program, open_package
    from hft2ane.mil import compare as beside
    from hft2ane.terminal.package import show_compared, show_layers

    only_outputs = options.reference.suffix == ".npz"
    if only_outputs and (options.where or not options.inputs):
        raise BadInput(f"{options.reference} has outputs only: give --inputs, and no --where")
    program = open_package(options.package)
    reference = beside.read_arrays(options.reference) if only_outputs else open_package(options.reference)
    if isinstance(reference, Program):
        beside.check_alike(program, reference, options.function)
    if options.inputs:
        samples = [beside.read_inputs(options.inputs, program, options.function)]
    else:
        samples = beside.sample_inputs(program.function(options.function))
    found = beside.outputs(program, reference, samples, options.function, options.mode)
    show_compared(found, options.gate)
    if options.where and isinstance(reference, Program):
        layers = beside.where(program, reference, samples, options.function, options.mode)
        show_layers(layers, beside.PARTED if options.gate is None else options.gate)
    return 0 if options.gate is None else int(any(each.below(options.gate) for each in found))
