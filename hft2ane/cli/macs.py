"""Commands for what Core ML does on Macs: measure, and the measurements that people contributed."""

import argparse
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hft2ane import measurements, records
from hft2ane.cli.options import Commands, quieten, units
from hft2ane.errors import BadInput, NotMeasured
from hft2ane.progress import Progress
from hft2ane.records.mac import Measurement, Unit

if TYPE_CHECKING:  # it brings numpy
    from hft2ane.coreml import Host

TARGET = "a published repo, the folder of a job, or an .mlpackage"


def add(commands: Commands) -> None:
    sub = commands.add("measure", measure, "Run packages with Core ML: results, latency, memory.", needs=("convert",))
    sub.add_argument("target", metavar="REPO[@TAG]|FOLDER|PACKAGE", help=TARGET)
    sub.add_argument("--units", type=units, default=(), metavar="UNITS", help="e.g. CPU_ONLY,CPU_AND_NE (default: all)")
    sub.add_argument("--timeout", type=float, metavar="S", help="seconds to wait for one answer (default: 600)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write there instead of to measurements/")
    sub.add_argument("--work", type=Path, metavar="DIR", help="keep what is downloaded of REPO there")

    sub = commands.add("measurements", show, "Check what Macs measured, and show it; on any machine.")
    sub.add_argument(
        "--from", type=Path, default=measurements.FOLDER, dest="folder", metavar="DIR", help="default: measurements"
    )
    sub.add_argument("--merge", type=Path, metavar="FOLDER", help="put those that fit into a job's report.json")


def measure(options: argparse.Namespace) -> int:
    quieten()
    from hft2ane import coreml
    from hft2ane.measure import look
    from hft2ane.terminal.bars import bar
    from hft2ane.terminal.report import show_measurement

    timeout = options.timeout or coreml.TIMEOUT
    host, chosen = look(options.units, timeout)
    with bar(options.target) as progress:
        found = run(options, progress, host, chosen, timeout)
    show_measurement(found)
    print(measurements.table([found]))
    if not found.latency and not found.fidelity:
        raise NotMeasured(f"nothing could be measured: {found.unfinished[0].why}")
    if not found.repo:
        if options.json:
            records.write(options.json, found)
        return 0
    path = options.json or measurements.FOLDER / measurements.place(found)
    records.write(path, found)
    print(f"\n{path}")
    if not options.json:
        print("To contribute it, in a checkout of hft2ane:")
        print("\n".join(f"  {line}" for line in contribution(found)))
    return 0


def run(
    options: argparse.Namespace, progress: Progress, host: "Host", chosen: tuple[Unit, ...], timeout: float
) -> Measurement:
    from hft2ane import measure as step

    target = Path(options.target)
    if target.suffix == ".mlpackage":
        return step.measure_package(target, host, chosen, progress, timeout)
    if (target / "job.json").is_file():
        return step.measure(target, host, chosen, progress, timeout)
    if target.is_dir():
        raise BadInput(f"{target} is neither a job's folder nor an .mlpackage: of a release give the repo")
    from hft2ane.hub import Hub

    repo, _, revision = options.target.partition("@")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)) / repo.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        step.take(folder, repo, revision or "main", Hub(), lambda what, share: progress(what, 0.3 * share))
        return step.measure(folder, host, chosen, lambda what, share: progress(what, 0.3 + 0.7 * share), timeout)


def contribution(m: Measurement) -> list[str]:
    """What opens the pull request."""
    path = measurements.FOLDER / measurements.place(m)
    branch = f"measure-{m.repo.rpartition('/')[2]}-{path.stem}"
    title = f"measurements: {m.repo} on {m.mac}"
    return [
        f"git switch --create {shlex.quote(branch)}",
        f"git add {shlex.quote(str(path))} && git commit --message {shlex.quote(title)}",
        "gh pr create --fill",
    ]


def show(options: argparse.Namespace) -> int:
    found = measurements.read_all(options.folder)
    if options.merge:
        from hft2ane.terminal.report import show_report

        show_report(measurements.merge_into(options.merge, found))
        return 0
    print(measurements.table(found) if found else f"There are no measurements in {options.folder} yet.")
    return 0
