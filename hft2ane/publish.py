"""A release folder -> the Hub, all of it or nothing: one commit, checked digest by digest, tagged.

The gate stands here at the door: nothing is sent that `gate` and `release` do not let through. The Hub is converged,
not commanded: each try looks at the head first, so a commit whose answer was lost is found instead of repeated, and a
crash anywhere is mended by running again. The tag that a release gets is put into the code of its card here, since
nothing before can know it; a release is new if more than that tag differs.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hft2ane import disk, gate, records
from hft2ane.blobs import digest
from hft2ane.checksums import SUMS
from hft2ane.errors import BadInput, CorruptFile, HubUnavailable, PublishError
from hft2ane.hub import VERSION, Hub
from hft2ane.pin import pinned
from hft2ane.progress import Progress, silent
from hft2ane.records.job import Job
from hft2ane.records.release import Conversion, Published
from hft2ane.records.repo import Repo
from hft2ane.records.source import RemoteFile
from hft2ane.release import CARD, RECORD, Release, Versions, read_release
from hft2ane.signature import SIGNATURE

CHECKED = ".checked"
PINNED = ".pinned"
THE_HUBS_OWN = {".gitattributes"}


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
    conversion = gate.check(folder, job)
    release = read_release(folder / "release", conversion)
    gate.match(folder, job, conversion, release)
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
        gate.keep_interface(f"{job.repo} v{last}", record, conversion)
        gate.keep_figures(f"{job.repo} v{last}", record, conversion, job)


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
