"""Repos on disk: their commits, refs and settings, and one heap of blobs, named by their content, for all of them.

    repos/models--org--name/repo.json           settings and refs; a commit counts once it is replaced
    repos/models--org--name/commits/<oid>.json  a commit with its complete list of files; never changed
    blobs/<SHA-256 | git blob SHA-1>            contents of large | regular files; never changed
    renamed.json                                old key -> new key
    tmp/  xet/                                  uploads on their way; nothing in them counts

A repo's key is `models/org/name` or `datasets/org/name`. Every file appears under its name complete or not at all, so a
server killed at any point leaves a state that was true at some point.
"""

import hashlib
import json
import re
import shutil
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hft2ane.disk import write_bytes
from hft2ane.localhub.lfs import GITATTRIBUTES, git_oid, is_large, pointer
from hft2ane.localhub.messages import Moved, Refusal, read_blocks

NAME = re.compile(r"(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?", re.ASCII)
SKIPPED = {".git", ".cache"}


@dataclass(frozen=True)
class Entry:
    """A file of a commit. `oid`: git's blob SHA-1 (of the pointer, if large); `sha256`: of the content, if large."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def blob(self) -> str:
        return self.sha256 or self.oid


def large(sha256: str, size: int) -> Entry:
    return Entry(git_oid(pointer(sha256, size)), size, sha256)


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, Entry]


@dataclass
class Repo:
    """`owner` made the repo over HTTP; it is None for one that was put here, which is then somebody else's."""

    key: str
    created: str
    owner: str | None = None
    private: bool = False
    gated: str | bool = False
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.key.partition("/")[2]

    @property
    def web(self) -> str:
        """Its path in the web pages' URLs."""
        return self.key.removeprefix("models/")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_name(key: str) -> bool:
    """Whether the key is one that the Hub would allow, and so safe as a folder's name."""
    kind, *names = key.split("/")
    return kind in ("models", "datasets") and 1 <= len(names) <= 2 and all(NAME.fullmatch(name) for name in names)


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.tmp = self.root / "tmp"
        for folder in ("repos", "blobs", "tmp", "xet"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._renaming = threading.Lock()

    def close(self) -> None:
        """Throw away what never became part of a commit."""
        for folder in ("tmp", "xet"):
            shutil.rmtree(self.root / folder, ignore_errors=True)

    # Blobs

    def blob(self, name: str) -> Path:
        return self.root / "blobs" / name

    @contextmanager
    def incoming(self, blocks: Iterable[bytes]) -> Iterator[tuple[Path, str]]:
        """The blocks in a temporary file, and their SHA-256. What the caller does not move away is deleted."""
        self.tmp.mkdir(exist_ok=True)
        path, digest = self.tmp / uuid.uuid4().hex, hashlib.sha256()
        try:
            with path.open("wb") as file:
                for block in blocks:
                    digest.update(block)
                    file.write(block)
            yield path, digest.hexdigest()
        finally:
            path.unlink(missing_ok=True)

    def keep_large(self, blocks: Iterable[bytes], sha256: str | None = None) -> Entry:
        """Store a large file's content. Refusal: it is not the content with that SHA-256."""
        with self.incoming(blocks) as (path, found):
            if sha256 not in (None, found):
                raise Refusal(400, f"the SHA-256 of the content is {found}, not {sha256}")
            size = path.stat().st_size
            path.replace(self.blob(found))
        return large(found, size)

    def keep_regular(self, data: bytes) -> Entry:
        entry = Entry(git_oid(data), len(data))
        with self.incoming([data]) as (path, _):
            path.replace(self.blob(entry.blob))
        return entry

    def keep_folder(self, folder: Path) -> dict[str, Entry]:
        """Store copies of all files of a folder (a link would change with its original)."""
        paths = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not SKIPPED.intersection(path.relative_to(folder).parts)
        }
        attributes = paths[".gitattributes"].read_bytes() if ".gitattributes" in paths else GITATTRIBUTES
        return {name: self._keep_file(name, path, attributes) for name, path in paths.items()}

    def _keep_file(self, name: str, path: Path, attributes: bytes) -> Entry:
        with path.open("rb") as file:
            sample = file.read(512)
            if not is_large(name, path.stat().st_size, sample, attributes):
                return self.keep_regular(sample + file.read())
            file.seek(0)
            return self.keep_large(read_blocks(file))

    # Repos

    def _folder(self, key: str) -> Path:
        return self.root / "repos" / key.replace("/", "--")

    def all_keys(self) -> list[str]:
        return sorted(path.parent.name.replace("--", "/") for path in self.root.glob("repos/*/repo.json"))

    def repo(self, key: str) -> Repo:
        """The repo as it is now. Refusal: there is none; Moved: it has another name."""
        if not is_name(key):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        try:
            return Repo(key=key, **json.loads((self._folder(key) / "repo.json").read_bytes()))
        except FileNotFoundError:
            if new := self._renamed().get(key):
                raise Moved(key, new) from None
            raise Refusal(404, "Repository not found", "RepoNotFound") from None

    def _save(self, repo: Repo) -> None:
        state = asdict(repo)
        del state["key"]
        write_bytes(self._folder(repo.key) / "repo.json", json.dumps(state, indent=1).encode())

    @contextmanager
    def change(self, key: str) -> Iterator[Repo]:
        """The repo, for this caller alone; what has been changed counts when the block ends without an error."""
        with self._locks[key]:
            repo = self.repo(key)
            yield repo
            self._save(repo)

    @contextmanager
    def create(self, key: str, owner: str | None) -> Iterator[Repo]:
        """A new repo, which is there when the block ends. Refusal 409: it is there already; 400: no such name."""
        if not is_name(key):
            raise Refusal(400, f"Invalid repo name: {key.partition('/')[2]}")
        with self._locks[key]:
            if (self._folder(key) / "repo.json").exists():
                raise Refusal(409, "You already created this repo")
            repo = Repo(key, now(), owner)
            yield repo
            self._save(repo)

    @contextmanager
    def change_or_create(self, key: str) -> Iterator[Repo]:
        with self._locks[key]:
            exists = (self._folder(key) / "repo.json").exists()
            with self.change(key) if exists else self.create(key, owner=None) as repo:
                yield repo

    def delete(self, key: str) -> None:
        with self._locks[key]:
            self.repo(key)
            self.tmp.mkdir(exist_ok=True)
            trash = self.tmp / uuid.uuid4().hex
            self._folder(key).rename(trash)
            shutil.rmtree(trash)

    def rename(self, old: str, new: str) -> None:
        if not is_name(new):
            raise Refusal(400, f"Invalid repo name: {new.partition('/')[2]}")
        with self._renaming, self._locks[old], self._locks[new]:
            self.repo(old)
            if (self._folder(new) / "repo.json").exists():
                raise Refusal(409, f"{new} already exists")
            # First the sign to the new place: it is not looked at as long as the repo is in the old one.
            signs = {name: new if target == old else target for name, target in self._renamed().items() if name != new}
            write_bytes(self.root / "renamed.json", json.dumps(signs | {old: new}, indent=1).encode())
            self._folder(old).rename(self._folder(new))

    def _renamed(self) -> dict[str, str]:
        try:
            signs: dict[str, str] = json.loads((self.root / "renamed.json").read_bytes())
        except FileNotFoundError:
            return {}
        return signs

    # Commits and refs

    def commit(self, repo: Repo, revision: str) -> Commit:
        """The commit that a branch, a tag or a full commit id names. Refusal: none."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = repo.heads.get(name) or repo.tags.get(name) or revision
        path = self._folder(repo.key) / "commits" / f"{oid}.json"
        if not re.fullmatch("[0-9a-f]{40}", oid) or not path.exists():
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        data = json.loads(path.read_bytes())
        files = {name: Entry(**entry) for name, entry in data.pop("files").items()}
        return Commit(oid=oid, files=files, **data)

    def history(self, repo: Repo, revision: str) -> list[Commit]:
        """The commit and its ancestors, newest first."""
        found = [self.commit(repo, revision)]
        while found[-1].parent:
            found.append(self.commit(repo, found[-1].parent))
        return found

    def add_commit(
        self, repo: Repo, files: Mapping[str, Entry], *, branch: str, title: str, message: str, author: str
    ) -> Commit:
        """A new commit holding exactly `files`, at the head of the branch. To be called inside `change` or `create`."""
        check_paths(files)
        data = {
            "parent": repo.heads.get(branch),
            "title": title,
            "message": message,
            "author": author,
            "date": now(),
            "files": {name: asdict(entry) for name, entry in sorted(files.items())},
        }
        text = json.dumps(data).encode()
        oid = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        write_bytes(self._folder(repo.key) / "commits" / f"{oid}.json", text)
        repo.heads[branch] = oid
        return self.commit(repo, oid)


def check_paths(paths: Iterable[str]) -> None:
    """Refusal: a path that git would not take, or one that is a file and a folder at the same time."""
    files = set(paths)
    for path in files:
        parts = path.split("/")
        if {"", ".", "..", ".git"}.intersection(parts) or "\\" in path or "\0" in path:
            raise Refusal(400, f"Invalid path in repo: {path!r}")
        if any("/".join(parts[:depth]) in files for depth in range(1, len(parts))):
            raise Refusal(400, f"A part of the path {path!r} is already a file")
