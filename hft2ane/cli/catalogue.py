"""The command for the catalogue: site."""

import argparse
import sys
from pathlib import Path

from hft2ane.cli.options import Commands, number, paths
from hft2ane.errors import BadInput

NIGHTS = 14


def add(commands: Commands) -> None:
    sub = commands.add("site", site, "Build a static site: what is published, runs, requests.")
    sub.add_argument("--manifests", nargs="+", default=["manifests"], metavar="PATH", help="files or folders of *.yaml")
    sub.add_argument("--organization", help="whose releases; default: where the manifests say")
    sub.add_argument("--out", type=Path, default=Path("site"), help="the folder to make, or make anew (default: site)")
    sub.add_argument(
        "--nights", type=number, default=NIGHTS, metavar="N", help=f"so many runs are shown (default: {NIGHTS})"
    )
    sub.add_argument("--images", action="store_true", help="copy the plots too, instead of showing them from the Hub")


def site(options: argparse.Namespace) -> int:
    from hft2ane.hub import Hub
    from hft2ane.site import build
    from hft2ane.survey import owners, wanted

    models = wanted(paths(options), options.organization, None)
    found = [options.organization] if options.organization else owners(models)
    if len(found) != 1:
        raise BadInput(
            f"the manifests publish to {', '.join(found) or 'nobody'}: say whose site it is with --organization"
        )
    made = build(Hub(), found[0], models, options.out, options.nights, options.images)
    for warning in made.warnings:
        print(f"hft2ane: {warning}", file=sys.stderr)
    if not made.runs:
        print("hft2ane: no run has left a report; where the state is private, HF_TOKEN has to read it", file=sys.stderr)
    catalogue = made.catalogue
    print(
        f"{len(catalogue.models)} models, {len(made.runs)} runs, {len(catalogue.requested)} requests: "
        f"{options.out / 'index.html'}"
    )
    return 0
