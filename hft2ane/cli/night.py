"""Commands for all that the manifests want: plan, run, nights, audit."""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from hft2ane import waves
from hft2ane.cli.options import Commands, paths
from hft2ane.errors import BadInput, HubUnavailable, ManifestError
from hft2ane.progress import Progress


def add(commands: Commands) -> None:
    for name, command, about in (
        ("plan", plan, "Show what would be done, and why; write nothing."),
        ("run", run, "Do it: convert, verify and publish what the plan says."),
    ):
        sub = commands.add(name, command, about, needs=("convert", "flows") if name == "run" else ())
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
            form = sub.add_mutually_exclusive_group()
            form.add_argument("--json", action="store_true", help="the plan as JSON")
            form.add_argument("--markdown", action="store_true", help="as a page for a pull request, with estimates")
            sub.add_argument(
                "--base", metavar="REF", help="with --markdown: a commit or a folder; only what is otherwise than there"
            )
            sub.add_argument("--jobs", type=Path, metavar="DIR", help="also write a job folder for each thing to do")
        else:
            sub.add_argument("--hours", type=float, help="begin no model later than that; what is left waits")
            sub.add_argument("--work", type=Path, default=Path("work"), help="where the job folders go (default: work)")

    sub = commands.add("nights", nights, "Show the last nights, from what is kept on the Hub.")
    sub.add_argument("--manifests", nargs="+", default=["manifests"], metavar="PATH", help="files or folders of *.yaml")
    sub.add_argument("--organization", help="look there instead of where the manifests say")
    sub.add_argument("--last", type=int, default=7, metavar="N", help="so many of each organisation (default: 7)")
    sub.add_argument(
        "--within", type=float, metavar="HOURS", help="exit with 1 when none has come to its end since then"
    )
    sub.add_argument("--markdown", action="store_true", help="the newest one as a page")

    sub = commands.add("audit", audit, "Check and measure again what is published.")
    sub.add_argument("--manifests", nargs="+", default=["manifests"], metavar="PATH", help="files or folders of *.yaml")
    sub.add_argument("--organization", help="look there instead of where the manifests say")
    sub.add_argument("--only", nargs="+", metavar="ID", help="these models only")
    sub.add_argument("--sample", type=int, metavar="N", help="so many repos, others each day (default: all)")
    sub.add_argument("--digests", action="store_true", help="compute nothing: files and digests only")
    sub.add_argument("--json", action="store_true")


def plan(options: argparse.Namespace) -> int:
    from hft2ane.hub import Hub
    from hft2ane.survey import begin, folder_of, survey, wanted

    if options.markdown:
        if options.jobs:
            raise BadInput("--markdown writes no job folders: leave out --jobs")
        return show_preview(options)
    if options.base is not None:
        raise BadInput("--base is for --markdown: add that")
    models = wanted(paths(options), options.organization, options.only)
    found = survey(models, Hub(), complete=not options.only, limit=options.wave)
    jobs = found.jobs
    for warning in found.warnings:
        print(f"hft2ane: {warning}", file=sys.stderr)
    for job in jobs:
        if options.jobs and job.to_do:
            begin(folder_of(options.jobs, job), job)
    if options.json:
        print(json.dumps([asdict(job) for job in jobs], indent=2))
    else:
        from hft2ane.terminal.night import show_plan

        show_plan(jobs)
    return 0


def show_preview(options: argparse.Namespace) -> int:
    """The page to standard output, whatever happens; on GitHub what is wrong also beside its line. Exit code 1: what
    is changed will not do as it is."""
    from hft2ane import preview
    from hft2ane.asked import read
    from hft2ane.hub import Hub

    def tell(annotations: Iterable[str]) -> None:
        if os.environ.get("GITHUB_ACTIONS") == "true":
            print(*annotations, preview.quiet(), sep="\n", file=sys.stderr)

    try:
        asked = read(paths(options), options.organization, options.only, options.base)
    except ManifestError as err:
        print(preview.problems(err))
        tell(preview.annotate("error", where, text) for where, text in err.problems)
        raise
    hub = Hub()
    hub.patience = preview.PATIENCE
    try:
        found = preview.look(asked, hub, options.wave)
    except HubUnavailable as err:
        print(preview.unavailable(err, asked))
        tell(())
        raise
    print(preview.markdown(found))
    tell(preview.annotations(found))
    if found.faulty:
        count = "1 entry" if len(found.faulty) == 1 else f"{len(found.faulty)} entries"
        print(f"hft2ane: {count} of those changed will not do, see what needs attention", file=sys.stderr)
    return 1 if found.faulty else 0


def run(options: argparse.Namespace) -> int:
    from flows.local import night
    from hft2ane.survey import wanted
    from hft2ane.terminal.night import show_run

    wanted(paths(options), options.organization, options.only)  # so that a mistake is told before Prefect starts
    outcome = night(
        options.manifests, options.organization, options.work, options.only, wave=options.wave, hours=options.hours
    )
    show_run(outcome, f"Done in {outcome.seconds:.0f} s; everything else is in {options.work / 'run.log'}")
    return 1 if outcome.failed else 0


def nights(options: argparse.Namespace) -> int:
    """Exit code 1: an organisation had no night `--within` so many hours that came to its end, with all models."""
    from datetime import UTC, datetime

    from hft2ane import nights as told
    from hft2ane import state
    from hft2ane.hub import Hub
    from hft2ane.survey import owners, wanted
    from hft2ane.terminal.night import show_nights

    hub, dead = Hub(), False
    for owner in owners(wanted(paths(options), options.organization, None)):
        found = state.runs(hub, owner, options.last)
        if options.markdown:
            sys.stdout.write(told.markdown(found[0]) if found else f"# {owner}: no night yet\n")
        else:
            show_nights(owner, found)
        if options.within is not None and (why := told.missing(found, owner, options.within, datetime.now(UTC))):
            hint = "" if found else f" And may HF_TOKEN read {owner}/{state.REPO}?"
            print(f"hft2ane: {why}{hint}", file=sys.stderr)
            dead = True
    return int(dead)


def audit(options: argparse.Namespace) -> int:
    """Exit code 1: something is not what it says. What was found is remembered for the plan, where a token allows."""
    from datetime import UTC, datetime

    from flows import child
    from hft2ane import recheck
    from hft2ane.hub import Hub
    from hft2ane.survey import wanted
    from hft2ane.terminal.bars import bar
    from hft2ane.terminal.night import show_audit

    models = wanted(paths(options), options.organization, options.only)
    if not options.digests and not find_spec("coremltools"):
        raise BadInput("to measure packages takes the other half: pip install 'hft2ane[convert]', or say --digests")

    def build(job: Path, progress: Progress) -> None:
        child.build(job, child.Limits(), progress)

    repos = recheck.choose([model.repo for model in models], options.sample, datetime.now(UTC))
    done = recheck.audit(repos, Hub(), None if options.digests else build, bar)
    for warning in done.warnings:
        print(f"hft2ane: {warning}", file=sys.stderr)
    if options.json:
        print(json.dumps([asdict(each) for each in done.found], indent=2))
    elif done.found or not done.away:
        show_audit(done.found)
    if done.away:
        raise done.away
    return int(bool(done.untrue))
