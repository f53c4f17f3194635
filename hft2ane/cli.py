"""The command line: one command a step, and those for models, packages and the night."""

import argparse
import errno
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from hft2ane import records, waves
from hft2ane.errors import BadInput, Hft2aneError, NoSpace
from hft2ane.records import Gates, Job, Progress, Recipe, Variant

EXAMPLES = """\
examples:
  hft2ane plan                                               what tonight would do, and why
  hft2ane families                                           what can be converted
  hft2ane convert sentence-transformers/all-MiniLM-L6-v2 --out minilm
  hft2ane convert ./my-finetuned-bert --out mine --lengths 64,256
  hft2ane inspect minilm/release/all-MiniLM-L6-v2.float16.mlpackage
  hft2ane lint other.mlpackage                               will it live on the Neural Engine?
  hft2ane eval some.mlpackage --inputs x.npz --out y.npz     compute its outputs, on any machine
  hft2ane compare some.mlpackage other.mlpackage --where     PSNR between two packages, and where they part
  hft2ane run --organization my-org                          plan, convert, verify, publish

A Hub other than huggingface.co: HF_ENDPOINT. The token to publish with: HF_TOKEN.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: done; 1: a model or a gate failed; 2: bad input; 75: the surroundings failed, try again."""
    options = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        check_installed(command)
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


def check_installed(command: Callable[[argparse.Namespace], int]) -> None:
    """BadInput when the command needs a half of hft2ane that is not installed."""
    extras = {
        "convert": {
            convert,
            rebuild,
            families,
            ranges,
            export,
            verify,
            card,
            build,
            inspect,
            lint,
            evaluate,
            compare,
            retire,
            run,
            demo,
        },
        "flows": {run, demo},
    }
    library = {"convert": "coremltools", "flows": "prefect"}
    if missing := [extra for extra, users in extras.items() if command in users and not find_spec(library[extra])]:
        raise BadInput(f"this command needs more than the light half: pip install 'hft2ane[{','.join(missing)}]'")


def tell_error(err: Hft2aneError, options: argparse.Namespace) -> int:
    if getattr(options, "json", False) and options.command is build:
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
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.set_defaults(command=command)
        return sub

    for name, command, about in (
        ("plan", plan, "Show what would be done, and why; write nothing."),
        ("run", run, "Plan and do it: convert, verify and publish what is new or changed."),
    ):
        sub = add(name, command, about)
        sub.add_argument(
            "--manifests", nargs="+", default=["manifests"], metavar="PATH", help="files or folders of *.yaml"
        )
        sub.add_argument("--organization", help="publish there instead of where the manifests say")
        sub.add_argument("--only", nargs="+", metavar="ID", help="these models only")
        sub.add_argument(
            "--wave",
            type=int,
            default=waves.LIMIT,
            metavar="N",
            help=f"models a night, of those that our own changes are to remake (default: {waves.LIMIT})",
        )
        if name == "plan":
            sub.add_argument("--json", action="store_true", help="the plan as JSON")
            sub.add_argument("--jobs", type=Path, metavar="DIR", help="also write a job folder for each thing to do")
        else:
            sub.add_argument("--work", type=Path, default=Path("work"), help="where the job folders go (default: work)")

    sub = add("convert", convert, "Convert one model, Hub id or local folder, up to its card; publish nothing.")
    sub.add_argument("source", metavar="SOURCE", help="a Hub id, or a folder with config.json and model.safetensors")
    sub.add_argument("--out", type=Path, required=True, help="the folder to make; the result is in OUT/release")
    sub.add_argument("--revision", default="main", help="branch, tag or commit on the Hub (default: main)")
    sub.add_argument("--task", choices=sorted(records.TASKS), help="default: what the checkpoint names")
    sub.add_argument("--lengths", type=lengths, default=(128,), help="token lengths, e.g. 32,64 (default: 128)")
    sub.add_argument(
        "--variants", type=variants, default=("float16",), help=f"of {', '.join(records.VARIANTS)} (default: float16)"
    )
    sub.add_argument("--license", help="the licence of a local folder that does not name one")

    sub = add("rebuild", rebuild, "Make a published release's packages again, and compare their digests.")
    sub.add_argument("release", metavar="REPO[@TAG]", help="a repo with a conversion.json (default: at main)")
    sub.add_argument("--out", type=Path, required=True, help="the folder to make")

    sub = add("verify-signature", verify_signature, "Check that a release is signed, and is what was signed.")
    sub.add_argument("release", metavar="REPO[@TAG]|FOLDER", help="a repo on the Hub, or a downloaded release")
    by = sub.add_mutually_exclusive_group(required=True)
    by.add_argument("--key", type=Path, metavar="PEM", help="the publisher's public key")
    by.add_argument("--identity", help="whom the CI vouched for, e.g. a workflow's address; needs --issuer")
    sub.add_argument("--issuer", metavar="URL", help="the CI that vouched")

    sub = add("families", families, "Which architectures (model_type) can be converted, for which tasks.")
    sub.add_argument("--markdown", action="store_true", help="as the table of the README")

    for name, command, about in (
        ("fetch", fetch, "Step 1 on a job folder: take the pinned files."),
        ("ranges", ranges, "How large the numbers get in fp16, layer by layer, after step 1; writes ranges.json."),
        ("export", export, "Step 2: write the packages."),
        ("verify", verify, "Step 3: measure them against the original."),
        ("card", card, "Step 4: write the card and the release folder."),
        ("publish", publish, "Step 5: put the release on the Hub."),
        ("build", build, "Steps 2 to 4 in one process."),
    ):
        sub = add(name, command, about)
        sub.add_argument("folder", type=Path, metavar="FOLDER", help="a job folder (see plan --jobs)")
        if name == "build":
            sub.add_argument(
                "--json", action="store_true", help="progress and error as JSON lines; end when stdin ends"
            )

    sub = add("audit", audit, "Download what is published, and check that it is what it says; measure it again.")
    sub.add_argument("--manifests", nargs="+", default=["manifests"], metavar="PATH", help="files or folders of *.yaml")
    sub.add_argument("--organization", help="look there instead of where the manifests say")
    sub.add_argument("--only", nargs="+", metavar="ID", help="these models only")
    sub.add_argument("--sample", type=int, metavar="N", help="so many repos, others each day (default: all)")
    sub.add_argument("--digests", action="store_true", help="compute nothing: files and digests only")
    sub.add_argument("--json", action="store_true")

    sub = add("rollback", rollback, "Put the files of an earlier version back, as the next version.")
    sub.add_argument("repo", metavar="REPO", help="the published repo, as `plan` shows it")
    sub.add_argument("version", metavar="VERSION", help="one of its tags, e.g. v3")

    sub = add("retire", retire, "Say in a published repo that it gets no new versions; nothing of it is deleted.")
    sub.add_argument("repo", metavar="REPO", help="the published repo, as `plan` shows it")
    sub.add_argument("--reason", type=reason, required=True, metavar="TEXT", help="why, for those who use it")

    sub = add("inspect", inspect, "Show what an .mlpackage contains: functions, inputs, outputs, operations, digest.")
    sub.add_argument("package", type=Path, metavar="PACKAGE")
    sub.add_argument("--json", action="store_true")

    sub = add("lint", lint, "Say where an .mlpackage will run, and what keeps it off the Neural Engine. No Mac needed.")
    sub.add_argument("package", type=Path, metavar="PACKAGE")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="findings and a verdict for every operation")
    form.add_argument("--sarif", action="store_true", help="findings as SARIF 2.1.0, for pull requests")
    sub.add_argument(
        "--fail-on", choices=("error", "warning"), default="error", help="exit with 1 from there on (default: error)"
    )

    sub = add("eval", evaluate, "Compute a package's outputs on any machine, as it declares them to be rounded.")
    sub.add_argument("package", type=Path, metavar="PACKAGE")
    sub.add_argument("--inputs", type=Path, required=True, metavar="NPZ", help="one array an input (numpy.savez)")
    sub.add_argument("--function", metavar="NAME", help="default: the package's default function")
    sub.add_argument("--out", type=Path, metavar="NPZ", help="write the outputs there")
    sub.add_argument("--keep", nargs="+", default=[], metavar="NAME", help="values in the middle to give as well")
    sub.add_argument("--time", action="store_true", help="show what each type of operation took")
    add_mode(sub)

    sub = add("compare", compare, "PSNR between two packages, output by output, the reference computed in float32.")
    sub.add_argument("package", type=Path, metavar="PACKAGE")
    sub.add_argument("reference", type=Path, metavar="REFERENCE", help="an .mlpackage, or an .npz of outputs")
    sub.add_argument("--inputs", type=Path, metavar="NPZ", help="default: random ids, all valid and half padded")
    sub.add_argument("--function", metavar="NAME", help="default: the package's default function")
    sub.add_argument("--where", action="store_true", help="also layer by layer; REFERENCE may be PACKAGE itself")
    sub.add_argument("--gate", type=float, metavar="DB", help="exit with 1 when an output is below")
    add_mode(sub)

    sub = add("demo", demo, "The whole pipeline on real models and a Hub on this machine.")
    sub.add_argument("--out", type=Path, default=Path("demo"), help="the folder to make (default: demo)")
    return top


def add_mode(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--mode",
        choices=("declared", "float32", "half"),
        default="declared",
        help="declared (default): float32 inside an operation, its result rounded to its type; float32: no rounding; "
        "half: half precision inside operations too",
    )


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
    if not found or found[0] < records.LEAST_LENGTH:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of token lengths of at least {records.LEAST_LENGTH}, e.g. 32,64"
        )
    return found


def variants(text: str) -> tuple[Variant, ...]:
    names = dict.fromkeys(text.split(","))
    if unknown := [name for name in names if name not in records.VARIANTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(records.VARIANTS)}")
    return tuple(variant for variant in records.VARIANTS if variant in names)


# ---- the plan and the night


def plan(options: argparse.Namespace) -> int:
    from hft2ane.hub import Hub
    from hft2ane.survey import begin, survey, wanted

    models = wanted(paths(options), options.organization, options.only)
    found = survey(models, Hub(), complete=not options.only, limit=options.wave)
    jobs = found.jobs
    for warning in found.warnings:
        print(f"hft2ane: {warning}", file=sys.stderr)
    for job in jobs:
        if options.jobs and job.to_do:
            begin(options.jobs / job.repo.replace("/", "--"), job)
    if options.json:
        print(json.dumps([asdict(job) for job in jobs], indent=2))
    else:
        from hft2ane.terminal import show_plan

        show_plan(jobs)
    return 0


def paths(options: argparse.Namespace) -> list[Path]:
    return [Path(path) for path in options.manifests]


def run(options: argparse.Namespace) -> int:
    from flows.local import night
    from hft2ane.survey import wanted
    from hft2ane.terminal import show_run

    wanted(paths(options), options.organization, options.only)  # so that a mistake is told before Prefect starts
    outcome = night(options.manifests, options.organization, options.work, options.only, wave=options.wave)
    show_run(outcome, f"Done in {outcome.seconds:.0f} s; everything else is in {options.work / 'run.log'}")
    return 1 if outcome.failed else 0


def demo(options: argparse.Namespace) -> int:
    from hft2ane.demo import demo as show

    return show(options.out)


# ---- one model


def convert(options: argparse.Namespace) -> int:
    from hft2ane.terminal import bar, show_release

    quieten()
    with bar(options.source) as progress:
        take_source(options, lambda what, share: progress(what, 0.1 * share))
        steps(options.out, lambda what, share: progress(what, 0.1 + 0.9 * share))
    show_release(options.out, options.out / "release")
    return 0


def take_source(options: argparse.Namespace, progress: Progress) -> None:
    """job.json, source/ and source.json for a Hub id or a local folder, in a new or an earlier job's folder."""
    from hft2ane import source
    from hft2ane.layout import select
    from hft2ane.survey import begin

    out: Path = options.out
    check_out(out)
    recipe = Recipe(task=options.task, lengths=options.lengths, variants=options.variants)
    local = Path(options.source)
    job = Job("create", "asked for on the command line", options.source, "", None, (), recipe, Gates(), options.license)
    if local.is_dir():
        name = f"local/{local.resolve().name}"
        begin(out, replace(job, id=name, repo=f"{name}-ane"))
        taken = source.take(out, local, name)
        if options.license and not taken.card.license:
            records.write(out / "source.json", replace(taken, card=replace(taken.card, license=options.license)))
        return
    from hft2ane.hub import Hub

    hub = Hub()
    upstream = hub.look(options.source, options.revision)
    repo = f"your-organization/{upstream.id.rpartition('/')[2]}-ane"
    begin(out, replace(job, id=upstream.id, repo=repo, commit=upstream.commit, files=select(upstream.files)))
    source.fetch(out, hub, progress)


def rebuild(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane.hub import Hub
    from hft2ane.rebuild import rebuild as again
    from hft2ane.terminal import bar, show_rebuilt

    check_out(options.out)
    repo, _, revision = options.release.partition("@")
    with bar(options.release) as progress:
        rebuilt = again(options.out, repo, revision or "main", Hub(), progress)
    show_rebuilt(rebuilt)
    return 0 if rebuilt.same else 1


def verify_signature(options: argparse.Namespace) -> int:
    from hft2ane import signature

    if bool(options.identity) != bool(options.issuer):
        raise BadInput("--identity and --issuer go together: say who signed, and which CI vouched for that")
    by = {"key": options.key, "identity": options.identity, "issuer": options.issuer}
    if (folder := Path(options.release)).is_dir():
        files = signature.verify(folder, **by)
    else:
        from hft2ane.hub import Hub

        repo, _, revision = options.release.partition("@")
        files = signature.verify_repo(Hub(), repo, revision or "main", **by)
    print(f"{options.release}: signed, and all {files} files are as they were signed")
    return 0


def check_out(out: Path) -> None:
    if out.exists() and not ((out / "job.json").is_file() or (out.is_dir() and not any(out.iterdir()))):
        raise BadInput(f"{out} exists and is not a folder of an earlier conversion; name another with --out")


def families(options: argparse.Namespace) -> int:
    from hft2ane.families import catalogue
    from hft2ane.terminal import markdown_families, show_families

    if options.markdown:
        print(markdown_families(catalogue()))
    else:
        show_families(catalogue())
    return 0


def fetch(options: argparse.Namespace) -> int:
    from hft2ane import source
    from hft2ane.hub import Hub
    from hft2ane.terminal import bar

    with bar(options.folder.name) as progress:
        source.fetch(options.folder, Hub(), progress)
    return 0


def ranges(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane import condition
    from hft2ane.terminal import bar, show_ranges

    with bar(options.folder.name) as progress:
        progress("audit the ranges", 0.1)
        audit = condition.ranges(options.folder)
    show_ranges(audit)
    condition.check(audit, options.folder.name)
    return 0


def export(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane import export as step
    from hft2ane.terminal import bar

    with bar(options.folder.name) as progress:
        step.export(options.folder, progress)
    return 0


def verify(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane import verify as step
    from hft2ane.terminal import bar, show_report

    with bar(options.folder.name) as progress:
        report = step.verify(options.folder, progress)
    show_report(report)
    return 0


def card(options: argparse.Namespace) -> int:
    from hft2ane import card as step
    from hft2ane.terminal import bar

    with bar(options.folder.name) as progress:
        release = step.make(options.folder, progress)
    print(release)
    return 0


def publish(options: argparse.Namespace) -> int:
    from hft2ane import publish as step
    from hft2ane.hub import Hub
    from hft2ane.terminal import bar

    with bar(options.folder.name) as progress:
        published = step.publish(options.folder, Hub(), progress)
    print(
        f"{published.repo}@{published.tag} {'published' if published.changed else 'was there already'}: {published.url}"
    )
    return 0


def audit(options: argparse.Namespace) -> int:
    """Exit code 1: something is not what it says. What was found is remembered for the plan, where a token allows."""
    import tempfile
    from datetime import UTC, datetime

    from flows import child
    from hft2ane import recheck, state
    from hft2ane.hub import Hub
    from hft2ane.survey import owners, wanted
    from hft2ane.terminal import bar, show_audit

    models, hub = wanted(paths(options), options.organization, options.only), Hub()
    if not options.digests and not find_spec("coremltools"):
        raise BadInput("to measure packages takes the other half: pip install 'hft2ane[convert]', or say --digests")
    found = []
    for repo in recheck.choose([model.repo for model in models], options.sample, datetime.now(UTC)):
        with tempfile.TemporaryDirectory(prefix="hft2ane-") as place, bar(repo) as progress:
            folder, log = Path(place) / "job", Path(place) / "log"
            folder.mkdir()

            def measure(job: Path, log: Path = log, progress: Progress = progress) -> None:
                child.build(job, log, 3600.0, progress)

            found.append(recheck.check(repo, hub, folder, None if options.digests else measure))
    before, warnings = state.read(hub, owners(models))
    warnings += state.write(hub, before, recheck.remember(before, found), owners(models))
    for warning in warnings:
        print(f"hft2ane: {warning}", file=sys.stderr)
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    else:
        show_audit(found)
    return int(any(each.problems for each in found))


def rollback(options: argparse.Namespace) -> int:
    from hft2ane import publish as step
    from hft2ane.hub import Hub
    from hft2ane.terminal import bar

    with bar(options.repo) as progress:
        done = step.rollback(options.repo, options.version, Hub(), progress)
    print(
        f"{done.repo}@{done.tag} has the files of {options.version}{'' if done.changed else ', as before'}: {done.url}"
    )
    print("The next run makes it anew where manifest, original or code ask for it: pause its entry to keep it.")
    return 0


def retire(options: argparse.Namespace) -> int:
    from hft2ane.hub import Hub
    from hft2ane.maintain import retire as take_down
    from hft2ane.terminal import bar

    with bar(options.repo) as progress:
        done = take_down(options.repo, options.reason, Hub(), progress)
    print(f"{done.repo}@{done.tag} {'is retired' if done.changed else 'was retired already'}: {done.url}")
    return 0


def build(options: argparse.Namespace) -> int:
    quieten()
    if options.json:
        threading.Thread(target=end_with_stdin, daemon=True).start()
        steps(options.folder, tell_json)
    else:
        from hft2ane.terminal import bar

        with bar(options.folder.name) as progress:
            steps(options.folder, progress)
    return 0


def steps(folder: Path, progress: Progress) -> None:
    """Export, verify and card, as shares of one whole. What is only to be measured again is there already."""
    from hft2ane import card, export, verify

    if records.read(folder / "job.json", Job).action != "verify":
        export.export(folder, lambda what, share: progress(what, 0.3 * share))
    verify.verify(folder, lambda what, share: progress(what, 0.3 + 0.6 * share))
    card.make(folder, lambda what, share: progress(what, 0.9 + 0.1 * share))


def tell_json(what: str, share: float) -> None:
    print(json.dumps({"what": what, "share": round(share, 3)}), flush=True)


def end_with_stdin() -> None:
    """Whoever started us holds the other end; when it closes they are gone, and so are we."""
    os.read(0, 1)
    os._exit(75)


def quieten() -> None:
    """coremltools logs at import which of its macOS libraries are not there."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)


def inspect(options: argparse.Namespace) -> int:
    from hft2ane.mil.inspect import inspect as look
    from hft2ane.package import digest
    from hft2ane.terminal import show_package

    summary, identity = look(options.package), digest(options.package)
    if options.json:
        print(json.dumps({**asdict(summary), "digest": identity}, indent=2, default=dict))
    else:
        show_package(options.package, summary, identity)
    return 0


def lint(options: argparse.Namespace) -> int:
    from hft2ane.mil.lint import lint as ask
    from hft2ane.mil.lint import sarif
    from hft2ane.terminal import show_lint

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
    from hft2ane.terminal import show_arrays, show_times

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
    from hft2ane.terminal import show_compared, show_layers

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


if __name__ == "__main__":
    raise SystemExit(main())
