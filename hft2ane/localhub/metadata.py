"""Endpoints about repos, not about bytes: account, creation, settings, listings, refs."""

import hashlib
from typing import Any

from hft2ane.localhub import frontmatter
from hft2ane.localhub.lfs import GITATTRIBUTES, pointer
from hft2ane.localhub.messages import Refusal, Request, Response
from hft2ane.localhub.routing import API, Routes
from hft2ane.localhub.store import Commit, Entry, Repo

routes = Routes()
PAGE = 1000
DONE = Response(b"OK")


@routes.add("GET", "/api/whoami-v2")
def whoami(request: Request) -> Response:
    user = request.user
    if not user:
        raise Refusal(401, "Invalid username or password.")
    names = (key.split("/")[1] for key in request.store.all_keys() if key.count("/") == 2)
    orgs = [{"type": "org", "name": name} for name in sorted({*names} - {user.name})]
    auth = {"type": "access_token", "accessToken": {"displayName": user.role, "role": user.role}}
    return Response.json({"type": "user", "id": user.name, "name": user.name, "orgs": orgs, "auth": auth})


@routes.add("GET", "/api/agent-harnesses")
def agent_harnesses(request: Request) -> Response:
    return Response.json({"harnesses": {}})


@routes.add("POST", "/api/validate-yaml")
def validate_yaml(request: Request) -> Response:
    errors, warnings = frontmatter.judge(str(request.json().get("content", "")))
    found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Response.json(found, 400 if errors else 200)


@routes.add("POST", "/api/repos/create", write=True)
def create_repo(request: Request) -> Response:
    assert request.user, "a write"
    asked = request.json()
    kind = asked.get("type") or "model"
    if kind not in ("model", "dataset"):
        raise Refusal(400, f"This hub has no repos of type {kind}")
    key = f"{kind}s/{asked.get('organization') or request.user.name}/{asked.get('name')}"
    url = f"{request.origin}/{key.removeprefix('models/')}"
    store, name = request.store, request.user.name
    attributes = {".gitattributes": store.keep_regular(GITATTRIBUTES)}
    try:
        with store.create(key, name) as repo:
            repo.private = asked.get("visibility") == "private"
            store.add_commit(repo, attributes, branch="main", title="initial commit", message="", author=name)
    except Refusal as refusal:
        refusal.body["url"] = url  # what `exist_ok=True` goes on with
        raise
    return Response.json({"url": url, "name": repo.id, "id": repo.id})


@routes.add("PUT", API + "/settings", write=True)
def settings(request: Request, repo: Repo) -> Response:
    asked = request.json()
    with request.store.change(repo.key) as changed:
        if "visibility" in asked:
            changed.private = asked["visibility"] == "private"
        if "gated" in asked:
            changed.gated = asked["gated"]
    return Response.json({"private": changed.private, "gated": changed.gated})


@routes.add("GET", API + r"(?:/revision/(?P<revision>[^/]+))?")
def repo_info(request: Request, repo: Repo, revision: str | None) -> Response:
    commit = request.store.commit(repo, revision or "main")
    siblings = [sibling(path, entry, "blobs" in request.query) for path, entry in commit.files.items()]
    return Response.json({**describe(request, repo, commit), "siblings": siblings})


@routes.add("GET", "/api/(?P<kind>models|datasets)")
def list_repos(request: Request, kind: str) -> Response:
    store, author, search = request.store, request.query.get("author"), request.query.get("search", "")
    found = []
    for key in store.all_keys():
        repo = store.repo(key)
        visible = request.user or not repo.private
        wanted = author in (None, repo.id.split("/")[0]) and search.lower() in repo.id.lower()
        if key.startswith(f"{kind}/") and visible and wanted:
            found.append(describe(request, repo, store.commit(repo, "main")))
    return request.page(found, PAGE)


def describe(request: Request, repo: Repo, commit: Commit) -> dict[str, Any]:
    card = card_data(request, commit)
    tags = card.get("tags")
    return {
        "_id": hashlib.sha256(repo.key.encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.oid,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "downloads": 0,
        "likes": 0,
        "tags": tags if isinstance(tags, list) else [],
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card,
    }


def card_data(request: Request, commit: Commit) -> dict[str, Any]:
    """The front matter of the commit's README; {} if there is none, or none that can be read."""
    entry = commit.files.get("README.md")
    if not entry:
        return {}
    try:
        return frontmatter.read(request.store.blob(entry.blob).read_text(errors="replace")) or {}
    except frontmatter.BadFrontMatter:
        return {}


def sibling(path: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    known = {"rfilename": path, "size": entry.size, "blobId": entry.oid}
    if not entry.sha256:
        return known
    size = len(pointer(entry.sha256, entry.size))
    return {**known, "lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": size}}


@routes.add("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(request: Request, repo: Repo, revision: str, folder: str | None) -> Response:
    commit = request.store.commit(repo, revision)
    base = f"{folder.strip('/')}/" if folder else ""
    below = {path: entry for path, entry in commit.files.items() if path.startswith(base)}
    if base and not below:
        raise Refusal(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
    everything = request.query.get("recursive", "").lower() == "true"
    items: dict[str, dict[str, Any]] = {}
    for path, entry in below.items():
        depth = path.count("/") - base.count("/")
        for level in range(1, (depth if everything else min(depth, 1)) + 1):
            parent = "/".join(path.split("/")[: base.count("/") + level])
            items[parent] = folder_item(parent, commit)
        if everything or not depth:
            items[path] = file_item(path, entry)
    return request.page(list(items.values()), PAGE)


@routes.add("POST", API + r"/paths-info/(?P<revision>[^/]+)")
def paths_info(request: Request, repo: Repo, revision: str) -> Response:
    commit, found = request.store.commit(repo, revision), []
    for path in request.form().get("paths", []):
        if path in commit.files:
            found.append(file_item(path, commit.files[path]))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            found.append(folder_item(path, commit))
    return Response.json(found)


def file_item(path: str, entry: Entry) -> dict[str, Any]:
    item = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
    if not entry.sha256:
        return item
    size = len(pointer(entry.sha256, entry.size))
    return {**item, "lfs": {"oid": entry.sha256, "size": entry.size, "pointerSize": size}}


def folder_item(path: str, commit: Commit) -> dict[str, Any]:
    below = [f"{name} {entry.oid}" for name, entry in commit.files.items() if name.startswith(f"{path}/")]
    oid = hashlib.sha1("\n".join(below).encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


@routes.add("GET", API + r"/commits/(?P<revision>[^/]+)")
def commits(request: Request, repo: Repo, revision: str) -> Response:
    found = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "date": commit.date,
            "authors": [{"user": commit.author}],
        }
        for commit in request.store.history(repo, revision)
    ]
    return request.page(found, PAGE)


@routes.add("GET", API + "/refs")
def refs(request: Request, repo: Repo) -> Response:
    def listed(prefix: str, found: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in found.items()]

    branches, tags = listed("refs/heads/", repo.heads), listed("refs/tags/", repo.tags)
    return Response.json({"branches": branches, "tags": tags, "converts": []})


@routes.add("POST", API + r"/tag/(?P<revision>[^/]+)", write=True)
def create_tag(request: Request, repo: Repo, revision: str) -> Response:
    asked = request.json()
    with request.store.change(repo.key) as changed:
        put_ref(changed.tags, asked["tag"], request.store.commit(changed, revision))
    return DONE


@routes.add("POST", API + r"/branch/(?P<name>[^/]+)", write=True)
def create_branch(request: Request, repo: Repo, name: str) -> Response:
    asked = request.json()
    with request.store.change(repo.key) as changed:
        put_ref(changed.heads, name, request.store.commit(changed, asked.get("startingPoint", "main")))
    return DONE


def put_ref(refs: dict[str, str], name: str, commit: Commit) -> None:
    if name in refs:
        raise Refusal(409, f"Reference already exists: {name}")
    refs[name] = commit.oid


@routes.add("DELETE", API + r"/tag/(?P<name>[^/]+)", write=True)
def delete_tag(request: Request, repo: Repo, name: str) -> Response:
    with request.store.change(repo.key) as changed:
        take_ref(changed.tags, name)
    return DONE


@routes.add("DELETE", API + r"/branch/(?P<name>[^/]+)", write=True)
def delete_branch(request: Request, repo: Repo, name: str) -> Response:
    if name == "main":
        raise Refusal(403, "The branch main cannot be deleted")
    with request.store.change(repo.key) as changed:
        take_ref(changed.heads, name)
    return DONE


def take_ref(refs: dict[str, str], name: str) -> None:
    if refs.pop(name, None) is None:
        raise Refusal(404, f"Reference does not exist: {name}", "RevisionNotFound")
