"""Commands for one model: demo, convert, families."""

import argparse
from dataclasses import replace
from pathlib import Path

from hft2ane import records
from hft2ane.cli.options import Commands, lengths, quieten, variants
from hft2ane.cli.steps import steps
from hft2ane.errors import BadInput
from hft2ane.progress import Progress
from hft2ane.records.job import Job
from hft2ane.records.recipe import TASKS, VARIANTS, Gates, Recipe


def add(commands: Commands) -> None:
    sub = commands.add("demo", demo, "All of it, on real models and a Hub on this machine.", needs=("convert", "flows"))
    sub.add_argument("--out", type=Path, default=Path("demo"), help="the folder to make (default: demo)")

    sub = commands.add(
        "convert",
        convert,
        "Convert a Hub id or a folder; publish nothing.",
        needs=("convert",),
    )
    sub.add_argument("source", metavar="SOURCE", help="a Hub id, or a folder with config.json and model.safetensors")
    sub.add_argument("--out", type=Path, required=True, help="the folder to make; the result is in OUT/release")
    sub.add_argument("--revision", default="main", help="branch, tag or commit on the Hub (default: main)")
    sub.add_argument("--task", choices=sorted(TASKS), help="default: what the checkpoint names")
    sub.add_argument("--lengths", type=lengths, default=(128,), help="token lengths, e.g. 32,64 (default: 128)")
    sub.add_argument(
        "--variants", type=variants, default=("float16",), help=f"of {', '.join(VARIANTS)} (default: float16)"
    )
    sub.add_argument("--license", help="the licence of a local folder that does not name one")

    sub = commands.add(
        "families", families, "Show which families can be converted, for which tasks.", needs=("convert",)
    )
    sub.add_argument("--markdown", action="store_true", help="as the table of the README")


def convert(options: argparse.Namespace) -> int:
    from hft2ane.terminal.bars import bar
    from hft2ane.terminal.report import show_release

    quieten()
    with bar(options.source) as progress:
        take_source(options, lambda what, share: progress(what, 0.1 * share))
        steps(options.out, lambda what, share: progress(what, 0.1 + 0.9 * share))
    show_release(options.out, options.out / "release")
    return 0


def take_source(options: argparse.Namespace, progress: Progress) -> None:
    """job.json, source/ and source.json for a Hub id or a local folder, in a new or an earlier job's folder."""
    from hft2ane import source
    from hft2ane.layout import NOBODY, select
    from hft2ane.survey import begin

    out: Path = options.out
    check_out(out)
    recipe = Recipe(task=options.task, lengths=options.lengths, variants=options.variants)
    local = Path(options.source)
    job = Job("create", "asked for on the command line", options.source, "", None, (), recipe, Gates(), options.license)
    if local.is_dir():
        name = f"local/{local.resolve().name}"
        begin(out, replace(job, id=name, repo=f"{NOBODY}/{local.resolve().name}-ane"))
        taken = source.take(out, local, name)
        if options.license and not taken.card.license:
            records.write(out / "source.json", replace(taken, card=replace(taken.card, license=options.license)))
        return
    from hft2ane.hub import Hub

    hub = Hub()
    upstream = hub.look(options.source, options.revision)
    repo = f"{NOBODY}/{upstream.id.rpartition('/')[2]}-ane"
    begin(out, replace(job, id=upstream.id, repo=repo, commit=upstream.commit, files=select(upstream.files)))
    source.fetch(out, hub, progress)


def check_out(out: Path) -> None:
    if out.exists() and not ((out / "job.json").is_file() or (out.is_dir() and not any(out.iterdir()))):
        raise BadInput(f"{out} exists and is not a folder of an earlier conversion; name another with --out")


def families(options: argparse.Namespace) -> int:
    from hft2ane.families import catalogue
    from hft2ane.terminal.families import markdown_families, show_families

    if options.markdown:
        print(markdown_families(catalogue()))
    else:
        show_families(catalogue())
    return 0


def demo(options: argparse.Namespace) -> int:
    from hft2ane.demo import demo as show

    return show(options.out)
