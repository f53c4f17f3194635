"""Commands for the machines that do the night's work: worker doctor, worker plist."""

import argparse
import getpass
import sys
from pathlib import Path

from hft2ane import doctor, room
from hft2ane.cli.options import Commands, paths
from hft2ane.doctor import machine


def add(commands: Commands) -> None:
    group = commands.group("worker", "Whether this machine is fit for the night's work.")

    sub = group.add("doctor", examine, "Check this machine; ends with 1 when there is a problem.")
    sub.add_argument("--pool", default=machine.MAC, help=f"the work pool that it is for (default: {machine.MAC})")
    sub.add_argument("--work", type=Path, metavar="DIR", help=f"of job folders (default: HFT2ANE_WORK, or {room.WORK})")
    sub.add_argument("--manifests", nargs="+", default=["manifests"], metavar="PATH", help="files or folders of *.yaml")
    sub.add_argument("--organization", help="publish there instead of where the manifests say")
    sub.add_argument("--json", action="store_true")

    sub = group.add("plist", plist, "Print what launchd needs to keep a worker running.")
    sub.add_argument("--pool", default=machine.MAC, help=f"the work pool (default: {machine.MAC})")
    sub.add_argument("--user", default=getpass.getuser(), help="who runs it (default: you)")
    sub.add_argument(
        "--environment",
        type=Path,
        metavar="FILE",
        help="lines NAME='value', read by that user alone (default: their .config/hft2ane/worker.env)",
    )


def examine(options: argparse.Namespace) -> int:
    from hft2ane.hub import Hub
    from hft2ane.survey import owners, wanted
    from hft2ane.terminal.night import show_checks

    work = room.work_folder(options.work)
    models = wanted(paths(options), options.organization, None)
    checks = doctor.examine(owners(models), options.pool, work, Hub())
    if options.json:
        print(doctor.dumped(checks))
    else:
        show_checks(checks)
    return int(any(each.verdict == "problem" for each in checks))


def plist(options: argparse.Namespace) -> int:
    import pwd

    from hft2ane.errors import BadInput
    from hft2ane.launchd import Worker
    from hft2ane.launchd import plist as described

    try:
        home = Path(pwd.getpwnam(options.user).pw_dir)
    except KeyError as err:
        raise BadInput(f"this machine has no user {options.user}") from err
    environment = (options.environment or home / ".config" / "hft2ane" / "worker.env").resolve()
    sys.stdout.buffer.write(described(Worker(options.user, home, options.pool, environment)))
    return 0
