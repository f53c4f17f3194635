"""Talking to the Hub: look at repos, download files and check them, write releases.

Reading is plain HTTP over the Hub client's own session: `model_info` fails on cards with odd metadata, and
`hf_hub_download` answers from a stale cache when the Hub stumbles. Writing is the client's own code.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from hft2ane import connection
from hft2ane.blobs import PIECE, inside, same
from hft2ane.connection import Connection
from hft2ane.errors import (
    BadInput,
    CorruptFile,
    Hft2aneError,
    HubUnavailable,
    ModelNotFound,
    NoSpace,
    PublishError,
    RevisionNotFound,
    SourceError,
    TokenRefused,
)
from hft2ane.progress import Progress, silent
from hft2ane.records import SCHEMA, parse
from hft2ane.records.release import Conversion
from hft2ane.records.repo import Account, Listed, Redo, Repo, Vanished
from hft2ane.records.source import RemoteFile, Upstream, card_fields

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, GitRefs

S = TypeVar("S")
T = TypeVar("T")
SILENCE_SECONDS = 30.0  # a download that says nothing for so long is cut
# A download may take so long, and a second more for so many bytes; what it has by then is kept for the next one.
DOWNLOAD_SECONDS, DOWNLOAD_RATE = 600.0, 100_000.0
XET_SECONDS, XET_RATE = 120.0, 500_000.0  # an upload by Xet gets so long, and a second more for so many bytes
VERSION = re.compile(r"v([1-9]\d*)")  # the tag of a finished publication


class Hub(Connection):
    """One Hub with one token (see Connection): what we ask it, and what we write there."""

    commits_an_hour: int = 100  # the Hub has been seen to refuse more than 128

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        super().__init__(endpoint, token)
        self._xet = True
        self._sent: list[float] = []  # when the last commits were, or will be, sent
        self._turn = threading.Lock()

    # ---- reading

    def look(self, id: str, revision: str = "main") -> Upstream:
        """The repo at this revision. ModelNotFound, AccessDenied, HubUnavailable."""
        info = self._info(id, revision)
        files = self._files(info)
        if info.get("gated") and files:  # its listing is open to everyone, its weights are not
            largest = max(files, key=lambda file: file.size)
            self._get(f"/{info['id']}/resolve/{info['sha']}/{quote(largest.path)}", f"read {id}", method="HEAD")
        return Upstream(info["id"], info["sha"], files, card_fields(info.get("cardData")))

    def look_all(self, wanted: Iterable[tuple[str, str]]) -> dict[str, Upstream | Vanished | Hft2aneError]:
        """`look` at many (id, revision) pairs at once; by id, errors as values."""

        def seen(pair: tuple[str, str]) -> Upstream | Vanished:
            id, revision = pair
            try:
                return self.look(id, revision)
            except RevisionNotFound:
                if revision == "main":
                    raise
                return Vanished(revision, self.look(id))

        pairs = list(wanted)
        return dict(zip([id for id, _ in pairs], _together(seen, pairs), strict=True))

    def conversion(self, repo: str) -> Conversion | Redo | None:
        """conversion.json at the head of main, as the Hub has it now; None when the repo or the file is not there.

        Redo: this version cannot read it, or the head has no version tag, which `publish` sets last of all."""
        try:
            answer = self._get(f"/{_checked(repo)}/resolve/main/conversion.json", f"read {repo}/conversion.json")
        except ModelNotFound:
            return None
        record = _record(answer.content)
        if isinstance(record, Conversion):
            refs = self._refs(repo)
            tagged = {tag.target_commit for tag in refs.tags if VERSION.fullmatch(tag.name)}
            if not any(branch.name == "main" and branch.target_commit in tagged for branch in refs.branches):
                return Redo(f"the publication of {repo} was not finished: its head has no version tag")
        return record

    def conversions(self, repos: Iterable[str]) -> dict[str, Conversion | Redo | Hft2aneError | None]:
        """`conversion` of many repos at once, errors as values."""
        names = list(repos)
        return dict(zip(names, _together(self.conversion, names), strict=True))

    def repos(self, organization: str) -> dict[str, Listed]:
        """The model repos of an organisation at their heads, by name; private ones as far as the token may see them."""
        found: dict[str, Listed] = {}
        path = (
            f"/api/models?author={quote(organization, safe='')}&expand[]=sha&expand[]=tags&expand[]=private&limit=1000"
        )
        while path:
            answer = self._get(path, f"list the repos of {organization}")
            try:
                found |= {
                    each["id"]: Listed(each["sha"], tuple(each["tags"]), each["private"] is not False)
                    for each in json.loads(answer.content)
                }
            except (ValueError, KeyError, TypeError) as err:
                raise HubUnavailable(
                    f"{self.host} lists the repos of {organization} in another form: try later"
                ) from err
            following = urlsplit(answer.links.get("next", {}).get("url", ""))
            path = following.path.removeprefix(urlsplit(self.endpoint).path) + f"?{following.query}" * bool(
                following.query
            )
        return found

    def download(
        self, id: str, commit: str, files: Sequence[RemoteFile], into: Path, progress: Progress = silent
    ) -> None:
        """Exactly these files at this commit, each checked by size and digest (CorruptFile). What is there and right
        is not fetched again; what was cut is continued, also by a later run (`.<name>.part` until it is whole).
        HubUnavailable also where it goes on and on, and takes too long."""
        total = sum(file.size for file in files) or 1
        until = time.monotonic() + DOWNLOAD_SECONDS + total / DOWNLOAD_RATE
        done = 0
        for file in files:
            target = inside(into, file.path)
            if not same(target, file):
                url = f"{self.endpoint}/{_checked(id)}/resolve/{quote(commit, safe='')}/{quote(file.path)}"
                try:
                    self._fetch(
                        url,
                        file,
                        target,
                        _Share(progress, file.path, done, total),
                        f"download {id}/{file.path}",
                        until,
                    )
                except OSError as err:
                    if err.errno != errno.ENOSPC:
                        raise
                    raise NoSpace(f"the disk of {into} is full: make room, and run again to go on") from err
            done += file.size
            progress(file.path, done / total)

    # ---- writing

    def repo(self, id: str, revision: str = "main") -> Repo | None:
        """A repo of ours, or None."""
        try:
            info = self._info(id, revision)
        except ModelNotFound:
            return None
        return Repo(info["id"], info["sha"], self._files(info), info.get("private") is True)

    def sha256(self, repo: Repo, file: RemoteFile) -> str:
        """The SHA-256 of a file of the repo, whichever digest the Hub lists for it."""
        return file.oid if file.lfs else hashlib.sha256(self.read(repo, file.path)).hexdigest()

    def read(self, repo: Repo, path: str) -> bytes:
        """A small file of the repo."""
        return self._get(f"/{repo.id}/resolve/{repo.commit}/{quote(path)}", f"read {repo.id}/{path}").content

    def read_all(self, wanted: Iterable[tuple[Repo, str]]) -> list[bytes | Hft2aneError]:
        """`read` many files at once, errors as values."""
        return _together(lambda each: self.read(*each), list(wanted))

    def tags(self, repo: str) -> dict[str, str]:
        """Tag -> commit."""
        return {tag.name: tag.target_commit for tag in self._refs(repo).tags}

    def create(self, repo: str) -> None:
        """The repo exists after this; private, if it did not before."""
        from huggingface_hub import get_session, hf_raise_for_status

        organization, _, name = _checked(repo).rpartition("/")
        asked = {"name": name, "organization": organization or None, "visibility": "private"}

        def create() -> None:  # not the client's create_repo, which asks again without end or pause when told to wait
            answer = get_session().post(f"{self.endpoint}/api/repos/create", headers=self._headers(), json=asked)
            if answer.status_code != 409 or "url" not in answer.json():  # one with a url: it is there
                hf_raise_for_status(answer)

        self._write(f"create {repo}", create)

    def tag(self, repo: str, tag: str, commit: str) -> None:
        """Set a new tag. A tag of that name that exists stays where it is, without an error: look at `tags` again."""
        self._write(f"tag {repo}", lambda: self._api().create_tag(repo, tag=tag, revision=commit, exist_ok=True))

    def check_token(self) -> None:
        """TokenRefused: there is no token to publish with. Whether it may write, the Hub says at the first write."""
        from huggingface_hub import get_token

        if not (self._token or get_token()):
            raise TokenRefused(
                f"there is no token to publish to {self.host} with: set HF_TOKEN, or run `hf auth login`"
            )

    def account(self) -> Account:
        """Whose the token is, and where it may write. AccessDenied, HubUnavailable. Not for the night: the Hub counts
        these requests, and a refusal of them says nothing about the others."""
        self.check_token()
        answer = self._get("/api/whoami-v2", "ask whose HF_TOKEN is")
        try:
            return _account(json.loads(answer.content))
        except (ValueError, LookupError, TypeError, AttributeError) as err:
            raise HubUnavailable(f"{self.host} says nothing of the token that makes sense: try later") from err

    def clock(self) -> datetime:
        """The Hub's time, asked for without the token. HubUnavailable."""
        from huggingface_hub import get_session, hf_raise_for_status

        def ask() -> datetime:
            headers = {"Cache-Control": "no-cache"}
            answer = get_session().get(
                f"{self.endpoint}/api/models?limit=1", headers=headers, timeout=connection.LOOK_SECONDS
            )
            hf_raise_for_status(answer)
            return parsedate_to_datetime(answer.headers["Date"])

        return self.retry(lambda: self._once("ask for the time", ask, HubUnavailable))

    def make_public(self, repo: str) -> None:
        self._write(f"make {repo} public", lambda: self._api().update_repo_settings(repo, private=False))

    def commit(
        self, repo: str, add: Mapping[str, Path], delete: Iterable[str], *, parent: str, title: str, about: str
    ) -> str:
        """One commit on top of `parent`; its id. Sent once, and a failure does not mean that it has not landed: call
        this inside `retry`, in a function that looks at the head first."""

        def send() -> str:
            from huggingface_hub import CommitOperationDelete

            with ExitStack() as open_files:
                adds = self._upload(repo, add, open_files)
                self._await_turn()
                deletes = [CommitOperationDelete(path, is_folder=False) for path in delete]
                done = self._api().create_commit(
                    repo, [*adds, *deletes], commit_message=title, commit_description=about, parent_commit=parent
                )
            return str(done.oid)

        return self._once(f"commit to {repo}", send, PublishError)

    def restore(
        self,
        repo: str,
        revision: str,
        files: Iterable[str],
        delete: Iterable[str],
        *,
        parent: str,
        title: str,
        about: str,
    ) -> str:
        """Like `commit`, with files that the repo has at `revision`; large ones are not sent."""

        def send() -> str:
            from huggingface_hub import CommitOperationCopy, CommitOperationDelete

            copies = [CommitOperationCopy(path, path, src_revision=revision) for path in files]
            deletes = [CommitOperationDelete(path, is_folder=False) for path in delete]
            done = self._api().create_commit(
                repo, [*copies, *deletes], commit_message=title, commit_description=about, parent_commit=parent
            )
            return str(done.oid)

        return self._once(f"commit to {repo}", send, PublishError)

    def read_data(self, repo: str, path: str) -> tuple[str | None, bytes]:
        """The head of a dataset repo, and a small file there, b"" where there is none; (None, b""): no such repo."""
        found = self._dataset(repo)
        if found is None:
            return None, b""
        head = found[0]
        try:
            return head, self._get(f"/datasets/{repo}/resolve/{head}/{quote(path)}", f"read {repo}/{path}").content
        except ModelNotFound:
            return head, b""

    def list_data(self, repo: str) -> tuple[str, ...]:
        """The paths of a dataset repo's files; none where there is no such repo."""
        found = self._dataset(repo)
        return found[1] if found else ()

    def write_data(self, repo: str, files: Mapping[str, bytes], *, parent: str | None, title: str) -> None:
        """One commit on top of `parent`; None: the repo is made first, private. Like `commit`, sent once: call this
        inside `retry`, in a function that reads first."""
        if parent is None:
            make = functools.partial(self._api().create_repo, repo, repo_type="dataset", private=True, exist_ok=True)
            self._write(f"create {repo}", make)
            parent, _ = self.read_data(repo, next(iter(files)))

        def send() -> None:
            from huggingface_hub import CommitOperationAdd

            self._api().create_commit(
                repo,
                [CommitOperationAdd(path, content) for path, content in files.items()],
                repo_type="dataset",
                commit_message=title,
                parent_commit=parent,
            )

        self._once(f"commit to {repo}", send, PublishError)

    # ---- inside

    def _await_turn(self) -> None:
        """Returns when another commit may be sent without there being more in an hour than are allowed."""
        with self._turn:
            now = time.monotonic()
            recent = [at for at in self._sent if at > now - 3600]
            at = max(now, recent[-self.commits_an_hour] + 3600) if len(recent) >= self.commits_an_hour else now
            self._sent = [*recent, at]
        time.sleep(at - now)

    def _dataset(self, repo: str) -> tuple[str, tuple[str, ...]] | None:
        """The head of a dataset repo, and the paths of its files; None: no such repo."""
        try:
            answer = self._get(f"/api/datasets/{_checked(repo)}/revision/main", f"look up {repo}")
            found = json.loads(answer.content)
            return str(found["sha"]), tuple(str(each["rfilename"]) for each in found["siblings"])
        except ModelNotFound:
            return None
        except (ValueError, LookupError, TypeError) as err:
            raise HubUnavailable(f"{self.host} says nothing of {repo} that makes sense: try later") from err

    def _refs(self, repo: str) -> GitRefs:
        return self._write(f"list the tags of {repo}", lambda: self._api().list_repo_refs(repo))

    def _info(self, id: str, revision: str) -> dict[str, Any]:
        path = f"/api/models/{_checked(id)}/revision/{quote(revision, safe='')}?blobs=true"
        answer = self._get(path, f"look up {id} at {revision}")
        try:
            info = json.loads(answer.content)
        except ValueError as err:
            raise HubUnavailable(f"{self.host} answers about {id} in something else than JSON: try later") from err
        if not (isinstance(info, dict) and isinstance(info.get("id"), str) and isinstance(info.get("sha"), str)):
            raise HubUnavailable(f"{self.host} says of {id} neither its name nor its commit: try later")
        return info

    def _files(self, info: dict[str, Any]) -> tuple[RemoteFile, ...]:
        try:
            return tuple(
                RemoteFile(item["rfilename"], lfs["size"], lfs["sha256"], True)
                if (lfs := item.get("lfs"))
                else RemoteFile(item["rfilename"], item["size"], item["blobId"], False)
                for item in info["siblings"]
            )
        except (KeyError, TypeError, AttributeError) as err:
            raise HubUnavailable(f"{self.host} lists {info['id']} without sizes and digests: try later") from err

    def _fetch(self, url: str, file: RemoteFile, target: Path, share: _Share, what: str, until: float) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        if part.is_symlink():
            raise CorruptFile(f"{part} leads elsewhere by a symbolic link: delete the link")
        for _ in range(2):  # the second time from nothing: the part may have been another commit's
            while not self.retry(lambda: self._once(what, lambda: self._go_on(url, file, part, share), SourceError)):
                if time.monotonic() > until:
                    raise HubUnavailable(
                        f"cannot {what}: {self.host} cuts it again and again, and it takes too long; "
                        "try later, to go on where it is now"
                    )
            if same(part, file):
                part.replace(target)
                return
            part.unlink()
        raise CorruptFile(f"cannot {what}: twice, what {self.host} sent had not the size and digest that it lists")

    def _go_on(self, url: str, file: RemoteFile, part: Path, share: _Share) -> bool:
        """Add to the part; False when cut on the way, but with something gained."""
        import httpx2
        from huggingface_hub import get_session, hf_raise_for_status

        have = part.stat().st_size if part.exists() else 0
        if have == file.size > 0:
            return True
        headers = {**self._headers(), "Accept-Encoding": "identity"}
        if 0 < have < file.size:
            headers["Range"] = f"bytes={have}-"
        gained = 0
        try:
            with get_session().stream("GET", url, headers=headers, timeout=SILENCE_SECONDS) as answer:
                hf_raise_for_status(answer)
                goes_on = answer.status_code == httpx2.codes.PARTIAL_CONTENT
                with part.open("ab" if goes_on else "wb") as out:
                    for piece in answer.iter_bytes(PIECE):
                        out.write(piece)
                        gained += len(piece)
                        share(out.tell())
                        if out.tell() > file.size:
                            break
        except httpx2.TransportError:
            if gained < PIECE:
                raise
            return False
        return True

    def _upload(self, repo: str, add: Mapping[str, Path], open_files: ExitStack) -> list[CommitOperationAdd]:
        """The large files are on the Hub after this: by Xet, or by LFS when Xet fails (which says nothing about the
        Hub: its servers are others)."""
        import httpx2
        from huggingface_hub import CommitOperationAdd

        if self._xet:
            operations = [CommitOperationAdd(path, str(file)) for path, file in add.items()]
            try:
                with _xet_watched(sum(file.stat().st_size for file in add.values())):
                    self._api().preupload_lfs_files(repo, operations, free_memory=False)
            except httpx2.HTTPError:
                raise
            except (OSError, RuntimeError):
                self._xet = False
            else:
                return operations
        # The client sends open files by LFS, whatever its settings.
        operations = [CommitOperationAdd(path, open_files.enter_context(file.open("rb"))) for path, file in add.items()]
        self._api().preupload_lfs_files(repo, operations, free_memory=False)
        return operations


@dataclass(frozen=True)
class _Share:
    """Tells the progress of one file as a share of all."""

    progress: Progress
    path: str
    before: int
    total: int

    def __call__(self, got: int) -> None:
        self.progress(self.path, min(1.0, (self.before + got) / self.total))


def _account(told: dict[str, Any]) -> Account:
    """Of the Hub's answer to /api/whoami-v2."""
    name, token = str(told["name"]), told["auth"]["accessToken"]
    match token["role"]:
        case "read":
            return Account(name, frozenset())
        case "write":
            # A role that is not told is that of a Hub which knows none.
            member = {org["name"] for org in told["orgs"] if org.get("roleInOrg") not in ("read", "no_access")}
            return Account(name, frozenset({name} | member))
        case "fineGrained":
            scopes = token["fineGrained"]["scoped"]
            writable = {each["entity"].get("name") for each in scopes if "repo.write" in each["permissions"]}
            return Account(name, frozenset(str(owner) for owner in writable if owner and "/" not in owner))
        case _:
            return Account(name, None)


def _record(content: bytes) -> Conversion | Redo:
    try:
        found = json.loads(content)
        schema = found.get("schema", SCHEMA) if isinstance(found, dict) else SCHEMA
        if schema != SCHEMA:
            return Redo(f"the published record has schema {schema}, now it is {SCHEMA}", "toolchain")
        return parse(content, Conversion, "conversion.json")
    except (BadInput, ValueError):
        return Redo("the published record is not readable by this version", "toolchain")


def _checked(id: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(id)
    except HFValidationError as err:
        raise ModelNotFound(
            f"{id!r} is no name of a Hub model: it is like sentence-transformers/all-MiniLM-L6-v2"
        ) from err
    return id


def _together(call: Callable[[S], T], arguments: Sequence[S]) -> list[T | Hft2aneError]:
    def value(argument: S) -> T | Hft2aneError:
        try:
            return call(argument)
        except Hft2aneError as err:
            return err

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(value, arguments))


@contextmanager
def _xet_watched(size: int) -> Iterator[None]:
    """What uploads by Xet in this process is broken off (RuntimeError) when it takes too long: it waits for ever on a
    server that is silent."""
    from huggingface_hub.utils._xet import abort_xet_session

    timer = threading.Timer(XET_SECONDS + size / XET_RATE, abort_xet_session)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
