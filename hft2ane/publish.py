"""A release folder -> the Hub, all of it or nothing: one commit, checked digest by digest, tagged.

The gate stands here at the door: nothing is sent for a folder without a passing report, a licence, and a SHA256SUMS
that is true. The Hub is converged, not commanded: each try looks at the head first, so a commit whose answer was lost
is found instead of repeated, and a crash anywhere is mended by running again. The tag that a release gets is put into
the code of its card here, since nothing before can know it; a release is new if more than that tag differs.
"""

import json
import math
import os
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hft2ane import checksums, disk, interface, keys, layout, licenses, measurements, records
from hft2ane.checksums import SUMS
from hft2ane.errors import BadInput, CorruptFile, GateFailed, HubUnavailable, LicenseError, PublishError
from hft2ane.hub import VERSION, Hub, Repo, digest
from hft2ane.pin import pin, pinned
from hft2ane.progress import Progress, silent
from hft2ane.records.job import Job
from hft2ane.records.package import bars, named
from hft2ane.records.release import Conversion, Published, Report
from hft2ane.records.source import RemoteFile
from hft2ane.signature import SIGNATURE, sign

RECORD = "conversion.json"
CARD = "README.md"
REPORT = "report.json"
CHECKED = ".checked"
PINNED = ".pinned"
LARGEST = 50_000_000_000  # bytes: the Hub takes no larger file
THE_HUBS_OWN = {".gitattributes"}
NAME = r"\w[\w.-]*"
OURS = re.compile(rf"{CARD}|{RECORD}|{SUMS}|{re.escape(SIGNATURE)}|reports/{NAME}\.json|assets/{NAME}\.png")
PACKAGED = re.compile(rf"{NAME}\.mlpackage/(Manifest\.json|Data/com\.apple\.CoreML/({NAME}/)*{NAME}\.(mlmodel|bin))")
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")
MACHINE_PATH = re.compile(rb"(?<![\w.])/(Users|home|root|tmp|private/var)/[\w.-]+")
HOST_NAME = re.compile(r"(?=.*[\d.-]).{8,}")  # any other one, like python or runner, is also a word of the text


@dataclass(frozen=True)
class Release:
    """What shall be on the Hub: SHA-256 by path (SHA256SUMS included), and the files that are on this disk.

    `number`: of the tag that its card names, None where it names none."""

    sums: Mapping[str, str]
    here: Mapping[str, Path]
    number: int | None

    @property
    def id(self) -> str:
        return self.sums[SUMS]


class Versions:
    """A release as each of the versions that it may become, made in the folder `into`, and signed with `key`."""

    def __init__(self, release: Release, into: Path, key: str | None) -> None:
        self.release, self.into, self.key = release, into, key
        self._signed: dict[int, Release] = {}
        shutil.rmtree(into, ignore_errors=True)

    def unsigned(self, number: int) -> Release:
        """With this number in the card, and the card's new digest in SHA256SUMS. As it is, if its card names none."""
        release = self.release
        if release.number in (number, None):
            return release
        card, sums = (self.into / f"v{number}" / name for name in (CARD, SUMS))
        disk.write_bytes(card, pin(release.here[CARD].read_bytes().decode(), number).encode())
        listed = {name: sum for name, sum in release.sums.items() if name not in (SUMS, SIGNATURE)}
        listed[CARD] = digest(card, lfs=True)
        disk.write_bytes(sums, checksums.dump(listed))
        listed[SUMS] = digest(sums, lfs=True)
        here = {name: path for name, path in release.here.items() if name != SIGNATURE}
        return Release(listed, {**here, CARD: card, SUMS: sums}, number)

    def signed(self, number: int) -> Release:
        """BadInput: there is no such key, or no library to sign with; HubUnavailable: Sigstore does not answer."""
        if number not in self._signed:
            release = self.unsigned(number)
            if self.key:
                sign(release.here[SUMS], self.key)
                path = release.here[SUMS].with_name(SIGNATURE)
                signature = digest(path, lfs=True)
                release = replace(
                    release,
                    sums={**release.sums, SIGNATURE: signature},
                    here={**release.here, SIGNATURE: path},
                )
            self._signed[number] = release
        return self._signed[number]


@dataclass(frozen=True)
class Changes:
    """What has to happen to a repo's head to make it the release."""

    add: Mapping[str, Path]
    delete: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.add or self.delete)


def publish(folder: Path, hub: Hub, progress: Progress = silent) -> Published:
    """folder/release/ -> the repo that job.json names; published.json. Does nothing where nothing is to be done.

    With HFT2ANE_SIGNING_KEY, SHA256SUMS is signed first (see signature.sign).
    `changed` in published.json: this call finished a publication, even if an earlier one sent its commit.
    GateFailed, LicenseError, PublishError: refused before anything is sent (also for a repo with other things in it,
    and for figures that fell since its last version); AccessDenied: the token may not write; HubUnavailable: run again,
    it goes on where it was."""
    job = records.read(folder / "job.json", Job)
    progress("check the release", 0.0)
    conversion = _pass_gate(folder, job)
    release = read_release(folder / "release", conversion)
    _match(folder, job, conversion, release)
    versions = Versions(release, folder / PINNED, os.environ.get("HFT2ANE_SIGNING_KEY"))
    progress(f"look at {job.repo}", 0.2)
    if hub.repo(job.repo) is None:
        versions.signed(1)  # what fails, fails before there is anything on the Hub
        hub.create(job.repo)
    else:
        _claim(hub, job)
        _keep_up(hub, job, conversion)
    for _ in range(3):  # another publisher may take a number first, and then the card has to name the next
        progress(f"upload to {job.repo}", 0.3)
        repo, sent = _converge(hub, job, versions)
        progress(f"check {job.repo}", 0.7)
        _verify(hub, repo, sent, job.repo)
        tags = _versions(hub, job.repo)
        changed = repo.commit not in tags.values()
        if changed:
            _download(hub, repo, sent, folder / CHECKED, progress)
        progress(f"tag {job.repo}", 0.9)
        # A private repo that has a tag was public before, and someone has taken it down: it stays down.
        if repo.private and not tags:
            hub.make_public(job.repo)
        if tag := _tag(hub, job.repo, repo.commit, tags, sent.number):
            break
    else:
        raise _taken(job.repo, repo.commit)
    shutil.rmtree(folder / PINNED, ignore_errors=True)
    published = Published(job.repo, repo.commit, tag, f"{hub.page}/{job.repo}", changed)
    records.write(folder / "published.json", published)
    progress(f"{job.repo} {tag}", 1.0)
    return published


def read_release(folder: Path, conversion: Conversion) -> Release:
    """The release in this folder, every digest of SHA256SUMS computed again. PublishError: it is not what was built, or
    holds something that must not be published."""
    if not folder.is_dir():
        raise PublishError(f"{folder} is missing: make the card first")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    here = {path.relative_to(folder).as_posix(): path for path in paths}
    for name, path in here.items():
        if path.is_symlink() or not path.is_file():
            raise PublishError(f"{path} is not a plain file: make the release again")
        if path.stat().st_size > LARGEST:
            raise PublishError(f"{path} has {path.stat().st_size / 1e9:.1f} GB, the Hub takes files of at most 50 GB")
        if not _allowed(name):
            raise PublishError(f"{path} is nothing that is published: delete it, or make the release again")
    if absent := {CARD, RECORD, SUMS} - here.keys():
        raise PublishError(f"{folder} has no {', '.join(sorted(absent))}: make the release again")
    sums = checksums.read(here[SUMS], PublishError, "make the release again")
    if strange := [name for name in sums if not _allowed(name) or name in (SUMS, SIGNATURE)]:
        raise PublishError(f"{here[SUMS]} has {strange[0]}, which is not published: make the release again")
    for name, path in here.items():
        if name not in (SUMS, SIGNATURE) and name not in sums:
            raise PublishError(f"{path} is not in {SUMS}: make the release again")
        if name not in (SUMS, SIGNATURE) and digest(path, lfs=True) != sums[name]:
            raise PublishError(f"{path} has been changed since {SUMS} was written: make the release again")
        _scan(name, path)
    packages = {name.split("/")[0] for name in sums if PACKAGED.fullmatch(name)}
    if packages != {package.file for package in conversion.packages}:
        raise PublishError(f"{folder / SUMS} and {RECORD} do not name the same packages: make the release again")
    unlisted = {name: digest(here[name], lfs=True) for name in (SUMS, SIGNATURE) if name in here}
    return Release({**sums, **unlisted}, here, pinned(here[CARD].read_bytes().decode(errors="replace")))


def _pass_gate(folder: Path, job: Job) -> Conversion:
    if not (folder / REPORT).is_file():
        raise GateFailed(f"{folder} has no {REPORT}: verify it before it is published")
    report = records.read(folder / REPORT, Report)
    conversion = records.read(folder / "release" / RECORD, Conversion)
    if report.failures:
        raise GateFailed(f"{job.id} is not published: {'; '.join(report.failures)}")
    if report.verify_key != conversion.verify_key:
        raise GateFailed(f"{folder}: report.json is about another build than {RECORD}: verify and make the card again")
    figures = {bar.what for bar in report.fidelity}
    for what in bars(conversion.packages):
        if what not in figures:
            raise GateFailed(f"{job.id} is not published: report.json has no figure for {what}")
    for bar in report.fidelity:
        gate = max(bar.gate, job.gates.of(bar.what))
        if not bar.psnr_min >= gate:  # NaN is below every gate
            raise GateFailed(f"{job.id} is not published: {bar.what} has {bar.psnr_min} dB, the gate is {gate}")
    source = conversion.source
    if licenses.check(source.card.license, job.license, source.id, layout.legal(source.files)) != conversion.license:
        raise LicenseError(f"{job.id}: {RECORD} says {conversion.license!r}, its source another: make the card again")
    return conversion


def _match(folder: Path, job: Job, conversion: Conversion, release: Release) -> None:
    """PublishError: the release is not what job.json asks for, or shows another report than the one that was judged."""
    source = conversion.source
    commit = source.commit if job.action in ("card", "verify") else job.commit or "local"  # of the packages, which stay
    same = {
        "the original's id": source.id == job.id,
        "its commit": source.commit == commit,
        "the recipe": conversion.recipe == job.recipe,
        "the major version": conversion.major == job.major,
        f"reports/{REPORT}": release.sums.get(f"reports/{REPORT}") == digest(folder / REPORT, lfs=True),
    }
    if differ := [what for what, is_same in same.items() if not is_same]:
        raise PublishError(f"{folder}: {', '.join(differ)} in release/ not as in this folder: run card again")


def _allowed(name: str) -> bool:
    """Ours, a package's, or one of the original's small files at the place where it has it."""
    folder, _, last = name.rpartition("/")
    patterns = (layout.LEGAL, layout.SENTENCE, layout.SENTENCEPIECE)
    return (
        OURS.fullmatch(name) is not None
        or PACKAGED.fullmatch(name) is not None
        or (layout.MODULE.fullmatch(folder) is not None and last == layout.CONFIG)
        or (not folder and name in layout.TOKENIZER | {layout.CONFIG, layout.GENERATION})
        or (not folder and any(pattern.fullmatch(name) for pattern in patterns))
    )


def _scan(name: str, path: Path) -> None:
    """No token in any file that is read as text, and nothing about this machine in those that are ours. The original's
    own files are public with whatever paths they have."""
    if path.suffix in (".bin", ".png"):
        return
    secrets = {"a token": TOKEN}
    if OURS.fullmatch(name) or PACKAGED.fullmatch(name):
        secrets["a path of a machine"] = MACHINE_PATH
        if HOST_NAME.fullmatch(host := socket.gethostname()):
            secrets["this machine's name"] = re.compile(rb"(?<![\w-])" + re.escape(host.encode()) + rb"(?![\w-])")
    content = path.read_bytes()
    for what, pattern in secrets.items():
        if found := pattern.search(content):
            line = content.count(b"\n", 0, found.start()) + 1
            masked = found[0][:4].decode(errors="replace")
            raise PublishError(f"{path}:{line} has {what} ({masked}***): it must not be published")


def _claim(hub: Hub, job: Job) -> None:
    """PublishError: the repo holds something, and neither its head nor its last version was made from this model."""
    repo = _there(hub, job.repo)
    if all(file.path in THE_HUBS_OWN for file in repo.files) or _origin(hub, repo) == job.id:
        return
    versions = _versions(hub, job.repo)
    if versions and _origin(hub, _there(hub, job.repo, versions[max(versions)])) == job.id:
        return
    raise PublishError(
        f"{job.repo} is not ours: it has files, but no {RECORD} that says {job.id}; name another with publish.name"
    )


def _keep_up(hub: Hub, job: Job, conversion: Conversion) -> None:
    """The release is no step back from the last version. PublishError, GateFailed."""
    versions = _versions(hub, job.repo)
    if not versions:
        return
    last = max(versions)
    repo = _there(hub, job.repo, versions[last])
    if any(file.path == RECORD for file in repo.files):
        record = hub.read(repo, RECORD)
        _keep_interface(f"{job.repo} v{last}", record, conversion)
        _keep_figures(f"{job.repo} v{last}", record, conversion, job)


def _keep_interface(version: str, record: bytes, conversion: Conversion) -> None:
    """PublishError: apps that use the last version would break, and the major version is the same."""
    old = interface.read(record)
    if old is None or conversion.major == old.major + 1:
        return
    if conversion.major != old.major:
        raise PublishError(f"{version} has major version {old.major}, this release {conversion.major}: plan again")
    if broken := interface.breaks(old, interface.of(conversion)):
        raise PublishError(
            f"apps that use {version} would break ({'; '.join(broken)}): "
            f"write `major: {old.major + 1}` in the manifest if that must be"
        )


def _keep_figures(version: str, record: bytes, conversion: Conversion, job: Job) -> None:
    """GateFailed: a figure of the worst row fell by more than it may since the last version, whose record this is."""
    try:
        old = records.parse(record, Conversion, version)
    except BadInput:
        return  # of another schema: its figures may mean something else
    figures = {what: (old.psnr[what], conversion.psnr[what]) for what in _comparable(old, conversion)}
    falls = {what: (was, now) for what, (was, now) in figures.items() if was - now > job.gates.fall}
    if not falls:
        return
    told = "; ".join(f"{what} has {now:.1f} dB and had {was:.1f}" for what, (was, now) in falls.items())
    enough = min(200, math.ceil(max(was - now for was, now in falls.values()) + 1))  # dB: another machine may be lower
    raise GateFailed(
        f"{job.id} is not published, it fell by more than {job.gates.fall:g} dB since {version}: {told}; "
        "`hft2ane compare OLD NEW --where` says in which layer, and if it must be, "
        f"write `gates: {{fall: {enough}}}` in the manifest"
    )


def _comparable(old: Conversion, new: Conversion) -> list[str]:
    """Of what the figures of both mean the same, and are of something that has changed.

    The same package has the same figures: if others are measured of it, those that are published were wrong."""
    if _meaning(old) != _meaning(new) or not (_evaluated(old) and _evaluated(new)):
        return []
    before = {package.what: package.digest for package in old.packages}
    changed = [package for package in new.packages if before.get(package.what, package.digest) != package.digest]
    whats = [what for package in changed for what in (named("rewrite", package.part), package.what)]
    return [what for what in dict.fromkeys(whats) if what in old.psnr and what in new.psnr]


def _meaning(record: Conversion) -> tuple[object, ...]:
    """Of what, and how, its figures were taken: those of other weights are others by some dB, and it is no fault."""
    files = {file.path: file.oid for file in layout.shaping(record.source.files)}
    return record.protocol, record.task, {*record.recipe.lengths}, files


def _evaluated(record: Conversion) -> bool:
    """Whether its figures are by the evaluator of today, which is a part of its verify key."""
    packages = measurements.digests(record.packages)
    return keys.verify_key(packages, record.protocol, keys.BACKEND, record.macs) == record.verify_key


def _origin(hub: Hub, repo: Repo) -> object:
    """The id that its record says it was made from, in a record of any schema; None where there is none."""
    if all(file.path != RECORD for file in repo.files):
        return None
    try:
        return json.loads(hub.read(repo, RECORD))["source"]["id"]
    except (ValueError, LookupError, TypeError):
        return None


def _converge(hub: Hub, job: Job, versions: Versions) -> tuple[Repo, Release]:
    """The head of the repo, once it is the release, and which version of it. PublishError: another publisher was
    faster, with another one."""
    seen: list[Repo] = []

    def attempt() -> tuple[Repo, Release]:
        repo = _there(hub, job.repo)
        tags = _versions(hub, job.repo)
        if found := _found(hub, repo, tags, versions):
            return repo, found
        release = versions.signed(max(tags, default=0) + 1)
        changes = _changes(hub, repo, release)
        if seen and _published_between(hub, seen[0], repo, job.id):
            raise PublishError(
                f"another publisher has put another release of {job.id} in {job.repo} meanwhile "
                f"({repo.commit[:12]}), which stays: plan again"
            )
        seen.append(repo)
        commit = hub.commit(
            repo.id,
            changes.add,
            changes.delete,
            parent=repo.commit,
            title=f"Convert {job.id}" + (f" at {job.commit[:12]}" if job.commit else ""),
            about=f"{job.why}\n\nPublish-Id: {release.id}",
        )
        return _there(hub, job.repo, commit), release

    try:
        return hub.retry(attempt)
    except HubUnavailable:
        repo = _there(hub, job.repo)  # the last try may have landed as well
        if found := _found(hub, repo, _versions(hub, job.repo), versions):
            return repo, found
        raise


def _found(hub: Hub, repo: Repo, tags: Mapping[int, str], versions: Versions) -> Release | None:
    """The version of the release that the head is. None: it is none, or names a tag of other files than its own."""
    number = following = max(tags, default=0) + 1
    if versions.release.number and any(file.path == CARD for file in repo.files):
        number = pinned(hub.read(repo, CARD).decode(errors="replace")) or following
    release = versions.unsigned(number)
    if _changes(hub, repo, release):
        return None
    if versions.key and all(file.path != SIGNATURE for file in repo.files):
        return None
    tagged = tags.get(number, repo.commit if number == following else None)
    if release.number is None or tagged == repo.commit:
        return release
    # Another commit with the same files is what `rollback` makes.
    return release if tagged and not any(_beside(_there(hub, repo.id, tagged), repo)) else None


def _published_between(hub: Hub, first: Repo, now: Repo, id: str) -> bool:
    """Whether the head has moved to another release of the same model; what others commit by hand is no release."""
    sums = [next((file.oid for file in repo.files if file.path == SUMS), None) for repo in (first, now)]
    return sums[0] != sums[1] and _origin(hub, now) == id


def _there(hub: Hub, name: str, revision: str = "main") -> Repo:
    repo = hub.repo(name, revision)
    if repo is None:
        raise PublishError(f"{name} was just there and is not any more: look at {hub.page}/{name}, and run again")
    if repo.id != name:
        raise PublishError(f"{name} is called {repo.id} now: say so in the manifest (publish.name), and run again")
    return repo


def _changes(hub: Hub, repo: Repo, release: Release) -> Changes:
    """PublishError: a file of the release is neither here nor, as it should be, at the head.

    A signature of the same SHA256SUMS that is at the head stays: each one made has other bytes, and says the same."""
    remote = {file.path: file for file in repo.files}
    for name in release.sums.keys() - release.here.keys():
        if name not in remote or hub.sha256(repo, remote[name]) != release.sums[name]:
            raise PublishError(f"{name} is in {SUMS}, but neither here nor in {repo.id}: convert this model again")
    add = {name: path for name, path in release.here.items() if not _is(path, remote.get(name), release.sums[name])}
    kept = THE_HUBS_OWN
    if SUMS not in add and SIGNATURE in remote:
        kept = THE_HUBS_OWN | {SIGNATURE}
        add.pop(SIGNATURE, None)
    delete = tuple(name for name in remote if name not in release.sums and name not in kept)
    return Changes(add, delete)


def _is(path: Path, remote: RemoteFile | None, sha256: str) -> bool:
    if remote is None or remote.size != path.stat().st_size:
        return False
    return remote.oid == (sha256 if remote.lfs else digest(path, lfs=False))


def _verify(hub: Hub, repo: Repo, release: Release, name: str) -> None:
    """Every file at the commit, by the digests that the Hub lists there."""
    if changes := _changes(hub, repo, release):
        differ = ", ".join(sorted([*changes.add, *changes.delete])[:5])
        raise PublishError(
            f"{name} at {repo.commit[:12]} is not what was sent ({differ}): nothing was tagged, run again"
        )


def _download(hub: Hub, repo: Repo, release: Release, into: Path, progress: Progress) -> None:
    """What was sent, as anybody gets it: the Hub's list of digests says what we sent, not what its storage gives.

    One file at a time, into an empty folder that is gone afterwards. NoSpace; PublishError: another file came."""
    sent = [file for file in repo.files if file.path in release.here]
    shutil.rmtree(into, ignore_errors=True)  # of a run that was killed
    into.mkdir()
    try:
        disk.need_room(into, max(file.size for file in sent), f"checking {repo.id}")
        for number, file in enumerate(sent):
            progress(f"read {file.path} back", 0.7 + 0.2 * number / len(sent))
            hub.download(repo.id, repo.commit, [file], into)
            (into / file.path).unlink()
    except CorruptFile as err:
        raise PublishError(f"{repo.id} at {repo.commit[:12]}: {err}; nothing was tagged, run again") from err
    finally:
        shutil.rmtree(into)


def _tag(hub: Hub, name: str, commit: str, versions: Mapping[int, str], number: int | None = None) -> str | None:
    """The tag vN of this commit: the one that it has, or a new one, `number` or the next after `versions`. None: it was
    taken by others meanwhile."""
    if commit not in versions.values():
        hub.tag(name, f"v{number or max(versions, default=0) + 1}", commit)
        versions = _versions(hub, name)
    return next((f"v{each}" for each in sorted(versions, reverse=True) if versions[each] == commit), None)


def _taken(name: str, commit: str) -> PublishError:
    return PublishError(f"{name} is at {commit[:12]}, but its tag was taken by others three times: run again")


def _versions(hub: Hub, name: str) -> dict[int, str]:
    return {int(found[1]): commit for tag, commit in hub.tags(name).items() if (found := VERSION.fullmatch(tag))}


def rollback(name: str, tag: str, hub: Hub, progress: Progress = silent) -> Published:
    """The files of the version `tag` are the head of the repo, under the next tag. Does nothing the second time.

    BadInput: there is no such version; HubUnavailable: run again, it goes on where it was."""
    progress(f"look at {name}", 0.0)
    found = VERSION.fullmatch(tag)
    versions = _versions(hub, name)
    if found is None or int(found[1]) not in versions:
        there = ", ".join(f"v{number}" for number in sorted(versions)) or "none"
        raise BadInput(f"{name} has no version {tag}; there are {there}")
    old = _there(hub, name, versions[int(found[1])])

    def attempt() -> Repo:
        repo = _there(hub, name)
        wrong, gone = _beside(old, repo)
        if not wrong and not gone:
            return repo
        about = f"The files of {tag}, at {old.commit}."
        commit = hub.restore(name, old.commit, wrong, gone, parent=repo.commit, title=f"Go back to {tag}", about=about)
        return _there(hub, name, commit)

    progress(f"go back to {tag}", 0.3)
    try:
        repo = hub.retry(attempt)
    except HubUnavailable:
        repo = _there(hub, name)  # the last try may have landed as well
        if any(_beside(old, repo)):
            raise
    if differ := sorted([name for names in _beside(old, repo) for name in names]):
        raise PublishError(f"{name} at {repo.commit[:12]} is not {tag} ({', '.join(differ[:5])}): run again")
    changed = repo.commit not in versions.values()
    for _ in range(3):
        if now := _tag(hub, name, repo.commit, versions):
            break
        versions = _versions(hub, name)
    else:
        raise _taken(name, repo.commit)
    progress(f"{name} {now}", 1.0)
    return Published(name, repo.commit, now, f"{hub.page}/{name}", changed)


def _beside(old: Repo, repo: Repo) -> tuple[list[str], list[str]]:
    """The files of `old` that `repo` has not, or others in their place; and those that it has too many."""
    before, now = ({file.path: file.oid for file in each.files} for each in (old, repo))
    return [path for path in before if now.get(path) != before[path]], [path for path in now if path not in before]
