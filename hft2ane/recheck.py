"""Whether a published repo is what it says it is: its files, its packages, and what they compute.

Everything is downloaded anew and held against the repo's own record, sums and report.
"""

import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from hft2ane import checksums, keys, package, records, source, state
from hft2ane.attempts import State, Untrue
from hft2ane.blobs import digest
from hft2ane.checksums import SUMS
from hft2ane.errors import Hft2aneError, OverLimit, SourceError, ToolchainMismatch, Unavailable, WorkerLost
from hft2ane.hub import VERSION, Hub
from hft2ane.progress import Progress, silent
from hft2ane.records.job import Job
from hft2ane.records.recipe import UNGATED
from hft2ane.records.release import Conversion, Report
from hft2ane.records.repo import owner_of
from hft2ane.records.source import RemoteFile
from hft2ane.signature import SIGNATURE

RECORD = "conversion.json"
TOLERANCE = 1.0  # dB: machines differ by some tenths
PRESENTED = re.compile(r"README\.md|assets/.*")  # what a new card makes anew

# Measures a job's folder in a process of its own, which has no token: it loads foreign files.
Measure = Callable[[Path], None]
# The same, and tells how far it is.
Build = Callable[[Path, Progress], None]
# Told when a repo's turn begins and ends; gives what shows the progress between.
Watch = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Checked:
    """`problems`: what is not as it says; `notes`: what could not be looked at. `commit` None: nothing is there.

    `measured`: PSNR of the worst row by variant, in dB: as published, and now, at the shortest length."""

    repo: str
    commit: str | None
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    measured: tuple[tuple[str, float, float], ...] = ()
    mend: Literal["convert", "verify", "card"] = "convert"  # what would make it true again


@dataclass(frozen=True)
class Audited:
    """`away`: the surroundings failed on the way, so that `found` is not all that was asked for."""

    found: tuple[Checked, ...]
    warnings: tuple[str, ...] = ()
    away: Unavailable | None = None

    @property
    def untrue(self) -> tuple[Checked, ...]:
        return tuple(each for each in self.found if each.problems)


def audit(repos: Sequence[str], hub: Hub, build: Build | None, watch: Watch) -> Audited:
    """Checks each, and remembers at once what the plan should know of it, where the token allows: the Hub may be gone
    before the last one's turn. `build` None: nothing is computed."""
    owners = sorted(set(map(owner_of, repos)))
    known, unread = state.read(hub, owners)
    found: list[Checked] = []
    unwritten: list[str] = []
    away = None
    for number, repo in enumerate(repos):
        try:
            with tempfile.TemporaryDirectory(prefix="hft2ane-") as place, watch(repo) as progress:
                found.append(check(repo, hub, _folder(place), _measuring(build, progress)))
        except Unavailable as err:
            away = type(err)(f"{err}. Not looked at: {len(repos) - number} of {len(repos)} repos, from {repo} on")
            break
        after = remember(known, found)
        unwritten = state.write(hub, known, after, owners)  # what could not be written is tried again with the next
        if not unwritten:
            known = after
    return Audited(tuple(found), (*unread, *unwritten), away)


def _folder(place: str) -> Path:
    made = Path(place) / "job"
    made.mkdir()
    return made


def _measuring(build: Build | None, progress: Progress) -> Measure | None:
    return build and (lambda folder: build(folder, progress))


def choose(repos: Sequence[str], count: int | None, day: datetime) -> list[str]:
    """`count` of the repos, others each day; None: all."""
    found = sorted(repos)
    return found if count is None else sorted(random.Random(f"{day:%Y-%m-%d}").sample(found, min(count, len(found))))


def check(repo: str, hub: Hub, folder: Path, measure: Measure | None) -> Checked:
    """`folder`: an empty one, to download to. `measure` None: nothing is computed. Unavailable."""
    now = hub.repo(repo)
    if now is None or all(file.path != RECORD for file in now.files):
        return Checked(repo, None, (), ("nothing is published",))
    problems: list[str] = []
    if now.commit not in {commit for tag, commit in hub.tags(repo).items() if VERSION.fullmatch(tag)}:
        problems.append("the head has no version tag")
    try:
        source.take_published(folder, hub, repo)
        record = records.read(folder / "previous" / RECORD, Conversion)
        source.take_packages(folder, hub, repo)
    except Unavailable:
        raise
    except Hft2aneError as err:
        return Checked(repo, now.commit, (*problems, str(err)))
    wrong = dict(_files(folder, record, now.files))
    broken = [f"{name} {why}" for name, why in wrong.items()]
    broken += [
        f"{each.file} has not the digest that {RECORD} says"
        for each in record.packages
        if (folder / each.file).is_dir() and package.digest(folder / each.file) != each.digest
    ]
    presented = bool(broken) and all(PRESENTED.fullmatch(name) for name in wrong) and len(wrong) == len(broken)
    problems += broken
    if broken or measure is None:
        return Checked(repo, now.commit, tuple(problems), mend="card" if presented else "convert")
    found = _measure(repo, hub, folder, record, measure)
    return replace(found, commit=now.commit, problems=(*problems, *found.problems))


def _files(folder: Path, record: Conversion, listed: Sequence[RemoteFile]) -> Iterator[tuple[str, str]]:
    """(file, what is wrong with it), by SHA256SUMS; its signature is for `verify-signature` to judge."""
    previous = folder / "previous"
    try:
        sums = checksums.parse((previous / SUMS).read_bytes() if (previous / SUMS).is_file() else b"")
    except ValueError as err:
        yield SUMS, str(err)
        return  # by what should the others be judged?
    packages = {each.file for each in record.packages}
    names = {file.path for file in listed} - {SUMS, SIGNATURE, ".gitattributes"}
    for name in sorted(names | sums.keys()):
        path = (folder if name.partition("/")[0] in packages else previous) / name
        if name not in sums:
            yield name, f"is not in {SUMS}"
        elif name not in names:
            yield name, "is not there"
        elif digest(path, lfs=True) != sums[name]:
            yield name, f"has not the digest that {SUMS} says"


def _measure(repo: str, hub: Hub, folder: Path, record: Conversion, measure: Measure) -> Checked:
    """The packages on the protocol's inputs of the shortest length, against the published report."""
    published = records.read(folder / "previous" / "reports" / "report.json", Report)
    if published.protocol != keys.PROTOCOL:
        return Checked(repo, None, (), (f"its figures are of {published.protocol}: not measured again",))
    recipe = replace(record.recipe, lengths=(min(record.recipe.lengths),))
    job = Job("verify", "audit", record.source.id, repo, record.source.commit, record.source.files, recipe, UNGATED)
    records.write(folder / "job.json", replace(job, license=record.license, major=record.major))
    try:
        source.fetch(folder, hub, silent)
        measure(folder)
    except (SourceError, OverLimit, ToolchainMismatch, WorkerLost) as err:  # says nothing of what is published
        return Checked(repo, None, (), (f"not measured again: {err}",))
    except Unavailable:
        raise
    except Hft2aneError as err:
        return Checked(repo, None, (f"it cannot be measured again: {err}",), mend="verify")
    return compared(repo, published, records.read(folder / "report.json", Report))


def compared(repo: str, published: Report, now: Report) -> Checked:
    """Every figure of `now` with the published one."""
    old = {
        (bar.what, m.output, m.length, m.inputs): m.psnr_min
        for bar in published.fidelity
        if bar.backend == keys.BACKEND
        for m in bar.measures
    }
    problems, measured = [], []
    for bar in now.fidelity:
        if bar.backend != keys.BACKEND:
            continue
        pairs = [(m, old.get((bar.what, m.output, m.length, m.inputs))) for m in bar.measures]
        for m, before in pairs:
            if before is None or not abs(m.psnr_min - before) <= TOLERANCE:
                said = "nothing" if before is None else f"{before:.1f} dB"
                where = f"{bar.what}: {m.output} at {m.length} tokens on {m.inputs}"
                problems.append(f"{where} has {m.psnr_min:.1f} dB, the report says {said}")
        known = [before for _, before in pairs if before is not None]
        measured.append((bar.what, min(known, default=0.0), min(m.psnr_min for m in bar.measures)))
    return Checked(repo, None, tuple(problems), (), tuple(measured), mend="verify")


def remember(known: State, found: Sequence[Checked]) -> State:
    """What the plan should know of it."""
    untrue = {
        each.repo: Untrue(each.commit, each.mend, each.problems[0]) for each in found if each.problems and each.commit
    }
    looked_at = {each.repo for each in found}
    kept = {repo: value for repo, value in known.untrue.items() if repo not in looked_at}
    return replace(known, untrue={**kept, **untrue})
