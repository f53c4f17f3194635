"""Where a model is taken from: a repo of the Hub, a release's folder, or a single package."""

import sys
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from hft2ane.errors import BadInput

if TYPE_CHECKING:
    from hft2ane.runtime.fetch import Release
    from hft2ane.runtime.model import Model


def load(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    tokenizer: str | PathLike[str] | None = None,
) -> "Model":
    """The model to run, of a repo `org/name` or `org/name@v2`, a release's folder, or an .mlpackage.

    `revision`: a tag, branch or commit (default: the repo's main branch; in production name a tag). `variant`: e.g.
    `int8`; default: float16, or else the one with the highest PSNR. `tokenizer`: a tokenizer.json, for a package that
    has none beside it. Only the files that are needed are downloaded, into the Hub's cache, and all are checked.
    Errors are those of hft2ane.errors: BadInput, SourceError, HubUnavailable, PackageError."""
    check_installed()
    from hft2ane.runtime.model import Model

    if not isinstance(source, str | PathLike) or not str(source):
        raise BadInput(f"load({source!r}): give org/name, a release's folder, or an .mlpackage")
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise BadInput(f"{path} is a folder, which has no revision {revision!r}")
        release = from_package(path, variant) if path.suffix == ".mlpackage" else from_folder(path, variant)
    else:
        release = from_repo(str(source), revision, variant)
    return Model(release, Path(tokenizer).expanduser() if tokenizer is not None else None)


def from_repo(name: str, revision: str | None, variant: str | None) -> "Release":
    from hft2ane.runtime import fetch

    repo, _, tag = name.partition("@")
    if repo.startswith(("http://", "https://")):
        raise BadInput(f"{name!r} is an address: give the repo's name alone, org/name or org/name@v2")
    if Path(name).is_file():
        raise BadInput(f"{name!r} is a file: give the release's folder, or an .mlpackage, which is a folder too")
    if repo.count("/") != 1 or repo[0] in "./~" or repo.endswith(".mlpackage"):
        raise BadInput(f"{name!r} is no folder here, and no repo of the Hub: give org/name, or a path that exists")
    if tag and revision not in (None, tag):
        raise BadInput(f"{name!r} and revision={revision!r} name two revisions: give one")
    return fetch.from_hub(repo, tag or revision or "main", variant)


def from_folder(folder: Path, variant: str | None) -> "Release":
    from hft2ane.runtime import fetch
    from hft2ane.runtime.contract import RECORD, choose, parse

    if not (folder / RECORD).is_file():
        raise BadInput(
            f"{folder} has no {RECORD}, so it is no release: give the folder release/ that `hft2ane convert` makes, "
            "or a download of a published repo"
        )
    found = parse((folder / RECORD).read_bytes(), str(folder / RECORD))
    chosen = choose(found, variant, str(folder))
    gone = {each.variant for each in found.packages if not (folder / each.file).is_dir()}
    there = [name for name in found.variants if name not in gone]
    if variant is None and there and chosen.main.variant not in there:  # a part of a release, downloaded as such
        raise BadInput(
            f"{folder} has no {chosen.main.variant} package, only {', '.join(there)}: say variant={there[0]!r}"
        )
    return fetch.from_folder(folder, chosen)


def from_package(path: Path, variant: str | None) -> "Release":
    """By the record of the release that it lies in, else by what it says itself."""
    from hft2ane.runtime import fetch
    from hft2ane.runtime.contract import RECORD, of_package, only, parse

    if variant is not None:
        raise BadInput(f"{path} is one package, so there is no variant to choose: give its folder, or no variant")
    record = path.parent / RECORD
    if record.is_file():
        found = parse(record.read_bytes(), str(record))
        if path.name in {each.file for each in found.packages}:
            return fetch.from_folder(path.parent, only(found, path.name))
    return fetch.Release(path.parent, of_package(path), None)


def check_installed() -> None:
    """BadInput: what a model is run with is not installed. Where Core ML is, the evaluator and its torch are not
    needed."""
    needed = ("coremltools", "numpy", "tokenizers", *(() if sys.platform == "darwin" else ("torch",)))
    if missing := [name for name in needed if find_spec(name) is None]:
        raise BadInput(f"to run a model takes {', '.join(missing)} too: pip install 'hft2ane[evaluate]'")
