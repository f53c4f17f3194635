"""Endpoints that move bytes: deciding how, large files in one piece or in parts, the commit, and downloads."""

import base64
import binascii
import json
import math
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hft2ane.localhub import xet
from hft2ane.localhub.lfs import REGULAR_LIMIT, is_large
from hft2ane.localhub.messages import Refusal, Request, Response, read_blocks
from hft2ane.localhub.routing import API, WEB, Routes
from hft2ane.localhub.store import Commit, Entry, Repo, Store, large

routes = Routes()

# Files above this size are uploaded in parts of it: small enough that real weights take this way.
PART = 16 * 1024 * 1024
Change = tuple[str, str, Entry | None]


@routes.add("POST", API + r"/preupload/(?P<revision>[^/]+)", write=True)
def preupload(request: Request, repo: Repo, revision: str) -> Response:
    commit, asked = request.store.commit(repo, revision), request.json()
    found = commit.files.get(".gitattributes")
    attributes = request.store.blob(found.blob).read_bytes() if found else b""
    return Response.json({"files": [upload_mode(commit, file, attributes) for file in asked["files"]]})


def upload_mode(commit: Commit, file: dict[str, Any], attributes: bytes) -> dict[str, Any]:
    """The id of what is there now lets the client leave out what has not changed."""
    to_lfs = is_large(file["path"], file["size"], base64.b64decode(file["sample"]), attributes)
    mode = {"path": file["path"], "uploadMode": "lfs" if to_lfs else "regular", "shouldIgnore": False}
    there = commit.files.get(file["path"])
    return {**mode, "oid": there.blob} if there else mode


# Xet: the client's Rust half gets a folder in place of a storage server, and writes there


@routes.add("GET", API + r"/xet-write-token/(?P<revision>[^/]+)", write=True)
def xet_write_token(request: Request, repo: Repo, revision: str) -> Response:
    url, expires = storage_url(request.store, repo.key), int(time.time()) + 3600
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "local", "X-Xet-Token-Expiration": str(expires)}
    return Response.json({"casUrl": url, "accessToken": "local", "exp": expires}, headers=headers)


def storage_url(store: Store, key: str) -> str:
    return f"local://{xet.new_storage(store, key)}"


# LFS


@routes.add("POST", WEB + r"\.git/info/lfs/objects/batch", write=True)
def lfs_batch(request: Request, repo: Repo) -> Response:
    objects = [lfs_object(request, repo, item["oid"], item["size"]) for item in request.json()["objects"]]
    return Response.json({"transfer": "basic", "objects": objects})


def lfs_object(request: Request, repo: Repo, oid: str, size: int) -> dict[str, Any]:
    """Where to upload a file; an object without actions is here already."""
    known = {"oid": oid, "size": size, "authenticated": True}
    if request.store.blob(oid).exists():
        return known
    verify = {"href": f"{request.origin}/{repo.web}.git/info/lfs/objects/verify"}
    if size <= PART:
        return {**known, "actions": {"upload": {"href": f"{request.cdn}/{oid}"}, "verify": verify}}
    upload = f"{request.cdn}/parts/{uuid.uuid4().hex}"
    parts = {f"{number:05d}": f"{upload}/{number}" for number in range(1, math.ceil(size / PART) + 1)}
    header = {"chunk_size": str(PART), **parts}
    return {**known, "actions": {"upload": {"href": f"{upload}/complete", "header": header}, "verify": verify}}


@routes.add("PUT", r"/_cdn/(?P<sha256>[0-9a-f]{64})")
def put_object(request: Request, sha256: str) -> Response:
    refuse_tokens(request)
    request.store.keep_large(request.body.blocks(), sha256)
    return Response(headers={"ETag": f'"{sha256}"'})


@routes.add("PUT", r"/_cdn/parts/(?P<upload>[0-9a-f]{32})/(?P<number>\d+)")
def put_part(request: Request, upload: str, number: str) -> Response:
    refuse_tokens(request)
    with request.store.incoming(request.body.blocks()) as (path, sha256):
        part = part_path(request.store, upload, int(number))
        part.parent.mkdir(exist_ok=True)
        path.replace(part)
    return Response(headers={"ETag": f'"{sha256}"'})


@routes.add("POST", r"/_cdn/parts/(?P<upload>[0-9a-f]{32})/complete")
def complete_upload(request: Request, upload: str) -> Response:
    refuse_tokens(request)
    asked, store = request.json(), request.store
    parts = [part_path(store, upload, int(part["partNumber"])) for part in asked["parts"]]
    # A repeated request, after a lost answer, finds the file made and the parts gone.
    if not store.blob(asked["oid"]).exists():
        if not all(part.exists() for part in parts):
            raise Refusal(400, "some parts were never uploaded")
        store.keep_large(joined(parts), asked["oid"])
    for part in parts:
        part.unlink(missing_ok=True)
    return Response.json({"success": True})


def part_path(store: Store, upload: str, number: int) -> Path:
    return store.tmp / f"parts-{upload}" / str(number)


def joined(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            yield from read_blocks(file)


@routes.add("POST", WEB + r"\.git/info/lfs/objects/verify", write=True)
def lfs_verify(request: Request, repo: Repo) -> Response:
    asked = request.json()
    find_large(request.store, asked["oid"], asked["size"], "the object")
    return Response.json({})


def find_large(store: Store, oid: str, size: int | None, what: str) -> Entry:
    path = store.blob(oid)
    if not path.exists() or size not in (None, path.stat().st_size):
        raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {what}")
    return large(oid, path.stat().st_size)


# Commits


@routes.add("POST", API + r"/commit/(?P<branch>[^/]+)", write=True)
def commit(request: Request, repo: Repo, branch: str) -> Response:
    assert request.user, "a write"
    store = request.store
    header, *operations = [json.loads(line) for line in request.body.lines() if line.strip()]
    asked = header["value"]
    title, _, message = f"{asked['summary']}\n\n{asked.get('description') or ''}".partition("\n")
    wanted = {op["value"]["oid"] for op in operations if op["key"] == "lfsFile"}
    xet.collect(store, repo.key, {oid for oid in wanted if not store.blob(oid).exists()})
    changes = [read_change(store, operation["key"], operation["value"]) for operation in operations]
    with store.change(repo.key) as changed:
        if branch not in changed.heads:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = store.commit(changed, branch)
        if asked.get("parentCommit") not in (None, head.oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        made = store.add_commit(
            changed,
            apply(changes, head),
            branch=branch,
            title=title,
            message=message.strip(),
            author=request.user.name,
        )
    url = f"{request.origin}/{repo.web}/commit/{made.oid}"
    return Response.json({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def read_change(store: Store, key: str, value: dict[str, Any]) -> Change:
    """An operation as (key, path, the file it puts there), its content stored."""
    path = value["path"]
    if key == "file":
        try:
            data = base64.b64decode(value["content"], validate=True)
        except binascii.Error as err:
            raise Refusal(400, f"{path} is not base64: {err}") from err
        if len(data) > REGULAR_LIMIT:
            raise Refusal(413, f"{path} is larger than {REGULAR_LIMIT} bytes: upload it as a large file")
        return key, path, store.keep_regular(data)
    if key == "lfsFile":
        return key, path, find_large(store, value["oid"], value.get("size"), path)
    if key in ("deletedFile", "deletedFolder"):
        return key, path, None
    raise Refusal(400, f"This hub does not know the operation {key}")


def apply(changes: list[Change], head: Commit) -> dict[str, Entry]:
    """The head's files after the changes, in their order. Refusal: something to delete is not there."""
    files = dict(head.files)
    for key, path, entry in changes:
        if entry:
            files[path] = entry
            continue
        folder = f"{path.rstrip('/')}/"
        gone = [name for name in files if (name == path if key == "deletedFile" else name.startswith(folder))]
        if not gone:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    return files


# Downloads


@routes.add("HEAD", WEB + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
@routes.add("GET", WEB + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(request: Request, repo: Repo, revision: str, path: str) -> Response:
    check_gate(request, repo)
    commit = request.store.commit(repo, revision)
    entry, headers = commit.files.get(path), {"X-Repo-Commit": commit.oid}
    if not entry:
        raise Refusal(404, "Entry not found", "EntryNotFound", headers=headers)
    if entry.sha256:
        linked = {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.sha256}"'}
        return Response(b"", 302, {**headers, **linked, "Location": f"{request.cdn}/{entry.sha256}"})
    name = quote(path.rpartition("/")[2])
    headers |= {"ETag": f'"{entry.oid}"', "Content-Disposition": f'inline; filename="{name}"', "Accept-Ranges": "bytes"}
    return Response(request.store.blob(entry.blob), 200, headers)


def check_gate(request: Request, repo: Repo) -> None:
    """A gated repo's files are for its owner: nobody else has been let in here."""
    if not repo.gated or (request.user and request.user.name == repo.owner):
        return
    message = f"Access to {repo.id} is restricted and you are not in the authorized list."
    raise Refusal(403 if request.user else 401, message, "GatedRepo")


@routes.add("HEAD", r"/_cdn/(?P<sha256>[0-9a-f]{64})")
@routes.add("GET", r"/_cdn/(?P<sha256>[0-9a-f]{64})")
def get_object(request: Request, sha256: str) -> Response:
    refuse_tokens(request)
    path = request.store.blob(sha256)
    if not path.exists():
        raise Refusal(404, "No such object")
    return Response(path, 200, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def refuse_tokens(request: Request) -> None:
    """The real storage refuses requests with two kinds of credentials, too: its URLs are signed."""
    if "Authorization" in request.headers:
        raise Refusal(400, "a token was sent to the file storage, which is not the Hub")
