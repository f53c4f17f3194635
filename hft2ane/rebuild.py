"""A published release again, from its conversion.json: the pinned files, the same recipe, and other bytes or not."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hft2ane import export, keys, layout, records, source
from hft2ane.errors import BadInput, ModelNotFound
from hft2ane.hub import Hub
from hft2ane.progress import Progress, silent
from hft2ane.provenance import made
from hft2ane.records.job import Job
from hft2ane.records.package import Made
from hft2ane.records.release import Conversion
from hft2ane.survey import begin


@dataclass(frozen=True)
class Rebuilt:
    """`packages`: file, published digest, digest now. `differences`: between what made them then and what does now."""

    release: str
    packages: tuple[tuple[str, str, str | None], ...]
    differences: tuple[str, ...]

    @property
    def same(self) -> bool:
        return all(published == now for _, published, now in self.packages)


def rebuild(folder: Path, repo: str, revision: str, hub: Hub, progress: Progress = silent) -> Rebuilt:
    """The packages of `repo` at `revision` are made in `folder`, and compared with the published ones by digest.

    BadInput: its record is not readable, or names no commit of the Hub. ModelNotFound: no such repo or revision.
    ToolchainMismatch: what is installed is not the toolchain of this hft2ane."""
    conversion = _record(repo, revision, hub)
    origin = conversion.source
    if origin.commit == "local":
        raise BadInput(f"{repo}@{revision} was made from a folder of somebody's machine: it cannot be made again here")
    files = layout.shaping(origin.files)  # the card and the licence may have been renewed since
    begin(folder, Job("convert", "rebuild", origin.id, repo, origin.commit, files, conversion.recipe))
    source.fetch(folder, hub, lambda what, share: progress(what, 0.5 * share))
    exported = export.export(folder, lambda what, share: progress(what, 0.5 + 0.5 * share))
    now = {package.file: package.digest for package in exported.packages}
    packages = tuple((each.file, each.digest, now.get(each.file)) for each in conversion.packages)
    differences = tuple(_differences(conversion, exported.convert_key, made()))
    return Rebuilt(f"{repo}@{revision}", packages, differences)


def _record(repo: str, revision: str, hub: Hub) -> Conversion:
    there = hub.repo(repo, revision)
    if there is None:
        raise ModelNotFound(f"there is no {repo} on {hub.host}, or it is private: check the name")
    return records.parse(hub.read(there, "conversion.json"), Conversion, f"conversion.json of {repo}@{revision}")


def _differences(then: Conversion, convert_key: str, now: Made) -> Iterator[str]:
    """e.g. `toolchain: torch 2.12.0 then, 2.13.0 now`"""
    versions = keys.toolchain()
    for name in sorted(then.toolchain.keys() | versions.keys()):
        if then.toolchain.get(name) != versions.get(name):
            yield f"toolchain: {name} {then.toolchain.get(name)} then, {versions.get(name)} now"
    files = layout.shaping(then.source.files)
    if keys.convert_key(files, then.recipe, then.family, versions=then.toolchain) != then.convert_key:
        yield "code: that which shapes the packages is another"
    if then.made is None:
        return
    before, after = asdict(then.made), asdict(now)
    for field in ("hft2ane", "commit", "changed", "lock", "system", "machine", "python"):
        if before[field] != after[field]:
            yield f"{field}: {before[field]} then, {after[field]} now"
    for name in sorted(before["tools"].keys() | after["tools"].keys() - versions.keys()):
        if name not in versions and before["tools"].get(name) != after["tools"].get(name):
            yield f"tools: {name} {before['tools'].get(name)} then, {after['tools'].get(name)} now"
