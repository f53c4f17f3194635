"""Commands for a job's folder: one a step, and build, which is those without a token in one process."""

import argparse
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from hft2ane import records
from hft2ane.cli.options import Commands, quieten
from hft2ane.progress import Progress
from hft2ane.records.job import Job
from hft2ane.records.release import Report


def add(commands: Commands) -> None:
    for name, command, about in (
        ("fetch", fetch, "Step 1: take the pinned files."),
        ("ranges", ranges, "After step 1, optional: how large its numbers get."),
        ("export", export, "Step 2: write the packages."),
        ("verify", verify, "Step 3: measure them against the original."),
        ("card", card, "Step 4: write the card and the release folder."),
        ("publish", publish, "Step 5: put the release on the Hub."),
        ("build", build, "Steps 2 to 4 in one process."),
    ):
        sub = commands.add(name, command, about, needs=() if name in ("fetch", "publish") else ("convert",))
        sub.add_argument("folder", type=Path, metavar="FOLDER", help="a job folder (see plan --jobs)")
        if name == "build":
            sub.add_argument(
                "--json", action="store_true", help="progress and error as JSON lines; end when stdin ends"
            )


def fetch(options: argparse.Namespace) -> int:
    from hft2ane import source
    from hft2ane.hub import Hub
    from hft2ane.terminal.bars import bar

    with bar(options.folder.name) as progress:
        source.fetch(options.folder, Hub(), progress)
    return 0


def ranges(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane import condition
    from hft2ane.terminal.bars import bar
    from hft2ane.terminal.report import show_ranges

    with bar(options.folder.name) as progress:
        progress("audit the ranges", 0.1)
        audit = condition.ranges(options.folder)
    show_ranges(audit)
    condition.check(audit, options.folder.name)
    return 0


def export(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane import export as step
    from hft2ane.terminal.bars import bar

    with bar(options.folder.name) as progress:
        step.export(options.folder, progress)
    return 0


def verify(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane import verify as step
    from hft2ane.terminal.bars import bar
    from hft2ane.terminal.report import show_report

    with bar(options.folder.name) as progress:
        report = step.verify(options.folder, lambda what, share: progress(what, 0.7 * share))
        report = on_a_mac(options.folder, lambda what, share: progress(what, 0.7 + 0.3 * share)) or report
    show_report(report)
    return 0


def card(options: argparse.Namespace) -> int:
    from hft2ane import card as step
    from hft2ane.terminal.bars import bar

    with bar(options.folder.name) as progress:
        release = step.make(options.folder, progress)
    print(release)
    return 0


def publish(options: argparse.Namespace) -> int:
    from hft2ane import publish as step
    from hft2ane.hub import Hub
    from hft2ane.terminal.bars import bar

    with bar(options.folder.name) as progress:
        published = step.publish(options.folder, Hub(), progress)
    print(
        f"{published.repo}@{published.tag} {'published' if published.changed else 'was there already'}: {published.url}"
    )
    return 0


def build(options: argparse.Namespace) -> int:
    quieten()
    if options.json:
        threading.Thread(target=end_with_stdin, daemon=True).start()
        steps(options.folder, tell_json, tell_stage)
    else:
        from hft2ane.terminal.bars import bar

        with bar(options.folder.name) as progress:
            steps(options.folder, progress)
    return 0


def steps(folder: Path, progress: Progress, enter: Callable[[str], None] = lambda stage: None) -> None:
    """Export, verify, on a Mac with what Core ML says, and card, as shares of one whole; `enter` is told when each
    begins. What is only to be measured again is there already."""
    from hft2ane import card, export, verify

    if records.read(folder / "job.json", Job).action != "verify":
        enter("export")
        export.export(folder, lambda what, share: progress(what, 0.3 * share))
    enter("verify")
    verify.verify(folder, lambda what, share: progress(what, 0.3 + 0.4 * share))
    enter("measure")
    on_a_mac(folder, lambda what, share: progress(what, 0.7 + 0.2 * share))
    enter("card")
    card.make(folder, lambda what, share: progress(what, 0.9 + 0.1 * share))


def on_a_mac(folder: Path, progress: Progress) -> Report | None:
    """The report of a verified folder with this Mac's measurement. None: this is no Mac. GateFailed."""
    from hft2ane import coreml, measure

    return measure.into(folder, progress) if coreml.available() else None


def tell_stage(stage: str) -> None:
    print(json.dumps({"stage": stage}), flush=True)


def tell_json(what: str, share: float) -> None:
    print(json.dumps({"what": what, "share": round(share, 3)}), flush=True)


def end_with_stdin() -> None:
    """Whoever started us holds the other end; when it closes they are gone, and so are we."""
    os.read(0, 1)
    os._exit(75)
