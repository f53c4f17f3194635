"""The catalogue: a static site of what an organisation has published, of its last runs, and of what is not possible."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hft2ane import records
from hft2ane.card.folder import whole
from hft2ane.errors import BadInput
from hft2ane.hub import Hub
from hft2ane.records.recipe import Wanted
from hft2ane.records.repo import Repo
from hft2ane.site.collect import THREADS, Collected, Release, collect
from hft2ane.site.pages import pages, picture

CATALOGUE = "catalogue.json"


def build(hub: Hub, organization: str, models: Sequence[Wanted], out: Path, nights: int, images: bool) -> Collected:
    """The site in `out`, in place of an older one, which also tells what has not changed since. `models`: what the
    manifests want; `nights`: so many runs are shown; `images`: with copies of the plots, instead of links to them.

    BadInput: `out` is something else than a site. Otherwise it is all there, or as it was before."""
    out = out.resolve()
    check(out)
    found = collect(hub, organization, models, nights, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as site:
        for path, content in pages(found, images).items():
            put(site / path, content)
        for release, listed in zip(found.releases, found.catalogue.models, strict=True):
            put(site / listed.record, records.dump(release))
        if images:
            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(lambda release: copy_plots(hub, release, site, out), found.releases))
        put(site / CATALOGUE, records.dump(found.catalogue))
    return found


def check(out: Path) -> None:
    """BadInput: what is there would be lost."""
    ours = (out / CATALOGUE).is_file() and (out / "index.html").is_file()
    if out.exists() and not ours and (out.is_file() or any(out.iterdir())):
        raise BadInput(f"{out} is there, and is no site made here: name another folder with --out")


def copy_plots(hub: Hub, release: Release, site: Path, earlier: Path) -> None:
    """From an earlier site, where it has them of the same commit, else from the Hub."""
    at = Repo(release.repo, release.commit, (), private=False)
    for plot in release.plots:
        path = f"models/{picture(release, plot)}"
        old = earlier / path
        put(site / path, old.read_bytes() if old.is_file() else hub.read(at, plot.path))


def put(path: Path, content: bytes) -> None:
    """Without waiting for the disk, which takes longer than all the rest: what a crash loses is made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
