"""What is to be done: how what is published differs from what the manifests want, with a reason for each line.

Pure: the caller asks the Hub and hands in the answers, errors among them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, cached_property

from hft2ane import keys, layout, licenses
from hft2ane.errors import Hft2aneError, LicenseError, SourceError
from hft2ane.hub import Redo
from hft2ane.records import Action, Conversion, Gates, Job, RemoteFile, Upstream, Wanted

ORDER: tuple[Action, ...] = ("create", "convert", "card", "blocked", "skip")


def plan(
    wanted: Sequence[Wanted],
    upstream: Mapping[str, Upstream | Hft2aneError],
    published: Mapping[str, Conversion | Redo | Hft2aneError | None],
    protocol: str = keys.PROTOCOL,
) -> list[Job]:
    """One job for each wanted model: new ones first, what needs nothing last, then by id.

    `upstream` has an answer for each id, `published` for each repo (None: nothing is there); paused models need none.
    `protocol`: how figures are taken now. ToolchainMismatch: hft2ane is not installed."""
    now = _Now(protocol)
    jobs = [
        _blocked(one, f"paused: {one.paused}")
        if one.paused is not None
        else _compare(one, upstream[one.id], published[one.repo], now)
        for one in wanted
    ]
    return sorted(jobs, key=lambda job: (ORDER.index(job.action), job.id.lower()))


class _Now:
    """What keys are made of today, each worked out once."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.code = cache(keys.code_digest)

    @cached_property
    def versions(self) -> dict[str, str]:
        return keys.toolchain()

    @cached_property
    def presentation(self) -> str:
        return keys.presentation_digest()


def _compare(
    one: Wanted, found: Upstream | Hft2aneError, released: Conversion | Redo | Hft2aneError | None, now: _Now
) -> Job:
    if isinstance(found, Hft2aneError):
        return _blocked(one, str(found))
    if found.id != one.id:
        return _blocked(one, f"the original is now called {found.id}: write that at {one.where}")
    try:
        files = layout.select(found.files)
        license = licenses.check(found.card.license, one.license, one.id, layout.legal(files))
    except (SourceError, LicenseError) as err:
        return _blocked(one, str(err))
    if isinstance(released, Hft2aneError):
        return _blocked(one, f"the record published at {one.repo} cannot be read: {released}")
    if isinstance(released, Conversion) and released.source.id != one.id:
        made = f"what is published at {one.repo} was made from {released.source.id}"
        return _blocked(one, f"{made}: delete that repo, or name another with publish.name at {one.where}")
    action, why = _decide(one, found, files, released, now)
    return Job(action, why, one.id, one.repo, found.commit, files, one.recipe, one.gates, license)


def _blocked(one: Wanted, why: str) -> Job:
    return Job("blocked", " ".join(why.split()), one.id, one.repo, recipe=one.recipe, gates=one.gates)


def _decide(
    one: Wanted, found: Upstream, files: Sequence[RemoteFile], released: Conversion | Redo | None, now: _Now
) -> tuple[Action, str]:
    if released is None:
        return "create", "nothing is published yet"
    if isinstance(released, Redo):
        return "convert", " ".join(released.why.split())
    if why := [*_outdated(one, files, released, now), *_unmeasured(released, now), *_below(one.gates, released)]:
        return "convert", "; ".join(why)
    if why := list(_misdescribed(found, files, released, now)):
        return "card", "; ".join(why)
    commit = released.source.commit[:12]
    if found.commit == released.source.commit:
        return "skip", f"nothing has changed since commit {commit}"
    return "skip", f"what has changed since commit {commit} is not part of the release"


def _outdated(one: Wanted, files: Sequence[RemoteFile], released: Conversion, now: _Now) -> Iterator[str]:
    """Why the packages would not be the same today."""
    family, code = released.family, now.code(released.family)
    if keys.convert_key(files, one.recipe, family, code=code, versions=now.versions) == released.convert_key:
        return
    old = released.source.files
    yield from _changed_files(layout.shaping(old), layout.shaping(files))
    yield from _changes(asdict(released.recipe), asdict(one.recipe))
    yield from _changes(released.toolchain, now.versions)
    if keys.convert_key(old, released.recipe, family, code=code, versions=released.toolchain) != released.convert_key:
        yield "the code that shapes the packages has changed"


def _unmeasured(released: Conversion, now: _Now) -> Iterator[str]:
    """Why the published figures are not those that would be taken today."""
    if released.protocol != now.protocol:
        yield f"verification protocol changed: {released.protocol} → {now.protocol}"
        return
    packages: dict[str, str] = {package.variant: package.digest for package in released.packages}
    if keys.verify_key(packages, now.protocol, keys.BACKEND) != released.verify_key:
        yield "the published figures are of other packages, or were taken by another backend"


def _below(gates: Gates, released: Conversion) -> Iterator[str]:
    """Which published figures would not pass the gates as they are now."""
    for what, figure in released.psnr.items():
        gate = gates.of(what)
        if figure < gate:
            yield f"{what}: published {figure:.1f} dB, the gate is now {gate:g}"


def _misdescribed(found: Upstream, files: Sequence[RemoteFile], released: Conversion, now: _Now) -> Iterator[str]:
    """Why the card, or the licence files with it, would not be the same today."""
    old, new = layout.legal(released.source.files), layout.legal(files)
    if keys.card_key(found.card, new, released.verify_key, now.presentation) == released.card_key:
        return
    yield from _changes(asdict(released.source.card), asdict(found.card))
    yield from _changed_files(old, new)
    if keys.card_key(released.source.card, old, released.verify_key, now.presentation) != released.card_key:
        yield "the card's template has changed"


def _changed_files(old: Iterable[RemoteFile], new: Iterable[RemoteFile]) -> Iterator[str]:
    """e.g. `changed: config.json, vocab.txt; new: model.safetensors`"""
    before, after = ({file.path: file.oid for file in files} for files in (old, new))
    kinds = {
        "changed": {path for path in before.keys() & after.keys() if before[path] != after[path]},
        "new": after.keys() - before.keys(),
        "gone": before.keys() - after.keys(),
    }
    for kind, paths in kinds.items():
        if paths:
            yield f"{kind}: {', '.join(sorted(paths))}"


def _changes(old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[str]:
    """e.g. `lengths 128 → 64, 128`"""
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} {_shown(old.get(name))} → {_shown(new.get(name))}"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
