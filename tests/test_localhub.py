"""The local Hub, seen through the real client over HTTP, by both of its ways to move large files."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hft2ane.localhub import LocalHub, frontmatter, lfs, metadata, transfer

# What huggingface_hub 2.4 does itself when it uploads by LFS.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPO = "org/model"
README = b"---\nlicense: mit\ntags: [ane]\n---\n# Model\n"
WEIGHTS = os.urandom(300_000) + bytes(200_000)
FILES = {"README.md": README, "config.json": b'{"a": 1}\n', "x.mlpackage/Data/weight.bin": WEIGHTS, "empty.bin": b""}


@pytest.fixture(params=["xet", "lfs"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return str(request.param)


@pytest.fixture
def lfs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's pauses between its attempts, in seconds, which are noted and left out."""
    waits: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "folder", FILES)


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def commit(api: HfApi, files: dict[str, bytes], parent: str | None = None, repo: str = REPO) -> CommitInfo:
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    return api.create_commit(
        repo, operations, commit_message="title", commit_description="a\n\nb", parent_commit=parent
    )


def download(hub: LocalHub, path: str, cache: Path, token: str | bool = False, repo: str = REPO) -> bytes:
    return Path(hf_hub_download(repo, path, endpoint=hub.url, token=token, cache_dir=cache)).read_bytes()


def snapshot(hub: LocalHub, cache: Path, revision: str = "main") -> dict[str, bytes]:
    root = Path(snapshot_download(REPO, endpoint=hub.url, token=hub.token, cache_dir=cache, revision=revision))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


# Publishing


def test_commit_and_read_back(transport: str, hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO)
    made = commit(api, FILES)

    assert re.fullmatch("[0-9a-f]{40}", made.oid)
    assert hub.files(REPO) == {**FILES, ".gitattributes": lfs.GITATTRIBUTES}
    assert snapshot(hub, tmp_path / "cache", made.oid) == hub.files(REPO)
    assert download(hub, "x.mlpackage/Data/weight.bin", tmp_path / "other") == WEIGHTS
    assert [(c.oid, c.title, c.message) for c in hub.commits(REPO)][0] == (made.oid, "title", "a\n\nb")
    assert [c.commit_id for c in api.list_repo_commits(REPO)] == [c.oid for c in hub.commits(REPO)]
    assert bool(hub.calls("xet-write-token")) == (transport == "xet")
    assert bool(hub.calls("PUT /_cdn")) == (transport == "lfs")


def test_ids_of_files_are_those_of_git_and_sha256(hub: LocalHub, api: HfApi, folder: Path) -> None:
    hub.add(REPO, folder)
    siblings = {s.rfilename: s for s in api.model_info(REPO, files_metadata=True).siblings or []}
    git = subprocess.run(["git", "hash-object", "config.json"], cwd=folder, capture_output=True, text=True, check=True)

    assert siblings.keys() == FILES.keys()
    assert siblings["config.json"].blob_id == git.stdout.strip()
    assert siblings["config.json"].lfs is None
    large = siblings["x.mlpackage/Data/weight.bin"]
    assert large.lfs
    assert large.lfs.sha256 == CommitOperationAdd("w", WEIGHTS).upload_info.sha256.hex()
    assert large.size == large.lfs.size == len(WEIGHTS)
    paths = api.get_paths_info(REPO, ["x.mlpackage", "config.json", "no"])
    assert sorted(item.path for item in paths) == ["config.json", "x.mlpackage"]


def test_unchanged_files_make_no_commit(transport: str, hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO)
    first = commit(api, FILES)
    assert commit(api, FILES).oid == first.oid
    assert len(hub.calls("POST .*/commit/main")) == 1


def test_stale_parent_is_refused(transport: str, hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    base = api.model_info(REPO).sha
    second = commit(api, {"a.bin": b"\0" * 1000}, parent=base)
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, {"b.bin": b"\0" * 2000}, parent=base)
    assert status_of(error) == 412
    assert hub.commits(REPO)[0].oid == second.oid
    commit(api, {"b.bin": b"\0" * 2000}, parent=second.oid)
    assert hub.files(REPO)["b.bin"] == b"\0" * 2000


def test_deletions(hub: LocalHub, api: HfApi, folder: Path) -> None:
    hub.add(REPO, folder)
    gone = [CommitOperationDelete("x.mlpackage/"), CommitOperationDelete("config.json")]
    api.create_commit(REPO, gone, commit_message="less")
    assert hub.files(REPO).keys() == {"README.md", "empty.bin"}

    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("config.json")], commit_message="again")
    added = CommitOperationAdd("new.txt", b"new")
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(REPO, [added, CommitOperationDelete("config.json")], commit_message="all or nothing")
    assert "new.txt" not in hub.files(REPO)


def test_a_file_cannot_be_a_folder(hub: LocalHub, api: HfApi, folder: Path) -> None:
    hub.add(REPO, folder)
    with pytest.raises(BadRequestError, match="already a file"):
        commit(api, {"config.json/inside": b"1"})


def test_twenty_commits_at_once(transport: str, hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    wanted = {f"{number}.{kind}": os.urandom(2000 + number) for number in range(10) for kind in ("bin", "txt")}
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda item: commit(api, dict([item])).oid, wanted.items()))
    assert {c.oid for c in hub.commits(REPO)[:-1]} == set(made)
    assert len(set(made)) == 20
    assert hub.files(REPO) == {**wanted, ".gitattributes": lfs.GITATTRIBUTES}


@pytest.mark.usefixtures("lfs_only")
def test_large_files_in_parts(
    hub: LocalHub, api: HfApi, monkeypatch: pytest.MonkeyPatch, waits: list[float], tmp_path: Path
) -> None:
    monkeypatch.setattr(transfer, "PART", 100_000)
    api.create_repo(REPO)
    hub.fail("PUT .*/2$", status=500)
    hub.fail("POST .*/complete", drop="after")  # the repeated request finds the parts gone
    commit(api, {"w.bin": WEIGHTS})
    assert len(hub.calls("PUT /_cdn/parts/.* 200")) == 5
    assert waits == [1, 1]
    assert download(hub, "w.bin", tmp_path) == WEIGHTS
    assert not any(hub.store.tmp.rglob("*/[0-9]*"))


def test_upload_folder(transport: str, hub: LocalHub, api: HfApi, folder: Path) -> None:
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.files(REPO) == {**FILES, ".gitattributes": lfs.GITATTRIBUTES}


def test_wrong_content_is_not_kept(hub: LocalHub) -> None:
    answer = httpx2.put(f"{hub.cdn}/{'0' * 64}", content=b"something else")
    assert answer.status_code == 400
    assert not hub.store.blob("0" * 64).exists()
    assert not any(hub.store.tmp.iterdir())


# Repos and refs


def test_create_repo(hub: LocalHub, api: HfApi) -> None:
    made = api.create_repo(REPO, private=True)
    assert (made.repo_id, made.endpoint) == (REPO, hub.url)
    assert api.create_repo(REPO, exist_ok=True) == made
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(REPO)
    assert status_of(error) == 409
    assert api.model_info(REPO).private
    api.update_repo_settings(REPO, visibility="public")
    assert not api.model_info(REPO).private
    assert api.whoami()["name"] == "localhub"


def test_names_stay_inside_the_folder(hub: LocalHub) -> None:
    headers = {"Authorization": f"Bearer {hub.token}"}
    for name in ("..", "a--b", "-a", "a/b", "a\\b", ".git"):
        body = {"name": name, "organization": "org"}
        assert httpx2.post(f"{hub.url}/api/repos/create", json=body, headers=headers).status_code == 400
    assert httpx2.get(f"{hub.url}/api/models/..%2F..%2Fx/y", headers=headers).status_code == 404
    assert hub.store.all_keys() == []


def test_tags_and_branches(hub: LocalHub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    first = hub.add(REPO, folder)
    api.create_tag(REPO, tag="v1", revision=first)
    api.create_branch(REPO, branch="dev/x")
    second = commit(api, {"config.json": b"2"}).oid
    api.create_tag(REPO, tag="v2", revision=second, tag_message="second")

    assert hub.tags(REPO) == {"v1": first, "v2": second}
    assert snapshot(hub, tmp_path / "cache", "v1") == FILES
    refs = api.list_repo_refs(REPO)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": second, "dev/x": first}
    assert {t.name: t.target_commit for t in refs.tags} == hub.tags(REPO)
    assert api.model_info(REPO, revision="dev/x").sha == first
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(REPO, tag="v1", revision=second)
    assert status_of(error) == 409
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(REPO, tag="v3", revision="0" * 40)
    api.delete_tag(REPO, tag="v1")
    api.delete_branch(REPO, branch="dev/x")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="v1")
    assert hub.tags(REPO) == {"v2": second}


def test_listings_come_in_pages(hub: LocalHub, api: HfApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "PAGE", 2)
    for number in range(5):
        hub.add(f"org/m{number}", folder, private=number == 0)
    hub.add("another/m", folder)
    for number in range(4):
        commit(api, {"n.txt": b"%d" % number}, repo="org/m1")

    assert {m.id for m in api.list_models(author="org")} == {f"org/m{number}" for number in range(5)}
    anyone = HfApi(endpoint=hub.url, token=False)
    assert {m.id for m in anyone.list_models(author="org")} == {f"org/m{number}" for number in range(1, 5)}
    assert len(list(api.list_models(author="org", limit=3))) == 3
    assert sorted(api.list_repo_files("org/m0")) == sorted(FILES)
    assert {i.path for i in api.list_repo_tree("org/m0")} == {"README.md", "config.json", "empty.bin", "x.mlpackage"}
    below = api.list_repo_tree("org/m0", "x.mlpackage", recursive=True)
    assert [i.path for i in below] == ["x.mlpackage/Data", "x.mlpackage/Data/weight.bin"]
    assert len(api.list_repo_commits("org/m1")) == 5
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("org/m0", "nothing"))


def test_add_holds_exactly_the_folder(hub: LocalHub, tmp_path: Path) -> None:
    noise = {".git/HEAD": b"x", ".cache/huggingface/y": b"y", "sub/.cache/z": b"z"}
    first = hub.add(REPO, write_folder(tmp_path / "1", {"a.bin": WEIGHTS, "b.txt": b"b", **noise}))
    (tmp_path / "1" / "a.bin").write_bytes(b"changed afterwards")
    second = hub.add(REPO, write_folder(tmp_path / "2", {"b.txt": b"B"}), message="second")
    assert hub.files(REPO, first) == {"a.bin": WEIGHTS, "b.txt": b"b"}
    assert hub.files(REPO) == {"b.txt": b"B"}
    assert [(c.oid, c.title, c.parent) for c in hub.commits(REPO)] == [
        (second, "second", first),
        (first, "initial upload", None),
    ]


def test_rename_and_delete(hub: LocalHub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    hub.add("tiny", folder)
    hub.rename("tiny", "org/tiny")
    hub.rename("org/tiny", REPO)
    for old in ("tiny", "org/tiny"):
        assert api.model_info(old).id == REPO
        assert download(hub, "config.json", tmp_path / "cache", repo=old) == FILES["config.json"]
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/never")
    hub.delete(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(REPO)


def test_datasets(transport: str, hub: LocalHub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    hub.add("org/data", folder)  # a model of the same name
    api.create_repo("org/data", repo_type="dataset")
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="d.parquet", repo_id="org/data", repo_type="dataset")
    path = hf_hub_download("org/data", "d.parquet", repo_type="dataset", endpoint=hub.url, cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    assert hub.files("datasets/org/data").keys() == {".gitattributes", "d.parquet"}
    assert [d.id for d in api.list_datasets(author="org")] == ["org/data"]
    assert hub.files("org/data") == FILES


# Who may do what


def test_private(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add(REPO, folder, private=True)
    anyone = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(RepositoryNotFoundError) as error:
        anyone.model_info(REPO)
    assert status_of(error) == 401
    with pytest.raises(RepositoryNotFoundError):
        download(hub, "config.json", tmp_path)
    assert download(hub, "config.json", tmp_path, hub.read_token) == FILES["config.json"]


def test_gated(hub: LocalHub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    hub.add(REPO, folder, gated=True)
    for token, status in ((False, 401), (hub.read_token, 403), (hub.token, 403)):
        assert HfApi(endpoint=hub.url, token=token).model_info(REPO).gated == "manual"
        with pytest.raises(GatedRepoError) as error:
            download(hub, "config.json", tmp_path, token)
        assert status_of(error) == status

    api.create_repo("org/own")
    commit(api, FILES, repo="org/own")
    api.update_repo_settings("org/own", gated="auto")
    with pytest.raises(GatedRepoError):
        download(hub, "config.json", tmp_path, hub.read_token, repo="org/own")
    assert download(hub, "config.json", tmp_path, hub.token, repo="org/own") == FILES["config.json"]


def test_tokens(hub: LocalHub, folder: Path) -> None:
    hub.add(REPO, folder)
    for token, status in (("hf_unknown", 401), (hub.read_token, 403), (False, 401)):
        with pytest.raises(HfHubHTTPError) as error:
            commit(HfApi(endpoint=hub.url, token=token), {"a.txt": b"a"})
        assert status_of(error) == status
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(endpoint=hub.url, token=token).create_repo("org/new")
        assert status_of(error) == status
    assert hub.files(REPO) == FILES


def test_no_token_goes_to_the_other_origin(hub: LocalHub, api: HfApi, lfs_only: None, tmp_path: Path) -> None:
    api.create_repo(REPO, private=True)
    commit(api, FILES)
    snapshot(hub, tmp_path / "cache")
    elsewhere = [call for call in hub.log if call.host.startswith("localhost:")]
    assert {call.method for call in elsewhere} == {"PUT", "GET"}
    assert {call.auth for call in elsewhere} == {None}
    assert {call.auth for call in hub.log if call not in elsewhere} == {f"Bearer {hub.token}"}

    answer = httpx2.get(f"{hub.url}{elsewhere[-1].path}", headers={"Authorization": f"Bearer {hub.token}"})
    assert answer.status_code == 400


# Trouble


def test_status_is_retried(hub: LocalHub, api: HfApi, waits: list[float], transport: str) -> None:
    api.create_repo(REPO)
    hub.fail("preupload", times=2, status=503)
    hub.fail("preupload", status=429, headers={"Retry-After": "6"})
    commit(api, FILES)
    assert waits == [1, 2, 7]
    assert [line[-3:] for line in hub.calls("preupload")] == ["503", "503", "429", "200"]


def test_skip_and_times(hub: LocalHub, api: HfApi, folder: Path) -> None:
    hub.add(REPO, folder)
    hub.fail(f"GET /api/models/{REPO}$", skip=1, times=2, status=500)
    seen = [httpx2.get(f"{hub.url}/api/models/{REPO}").status_code for _ in range(5)]
    assert seen == [200, 500, 500, 200, 200]


def test_dropped_before(transport: str, hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.fail("POST .*/commit/main", drop="before")
    with pytest.raises(httpx2.TransportError):
        commit(api, FILES)
    assert len(hub.commits(REPO)) == 1
    assert hub.calls("/commit/main") == [f"POST /api/models/{REPO}/commit/main 0"]


def test_answer_lost_after_the_commit(transport: str, hub: LocalHub, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.fail("POST .*/commit/main", drop="after")
    with pytest.raises(httpx2.TransportError):
        commit(api, FILES)
    landed = hub.commits(REPO)[0].oid
    assert len(hub.commits(REPO)) == 2
    assert commit(api, FILES).oid == landed


def test_cut_download_is_resumed(hub: LocalHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client keeps whole chunks only
    hub.add(REPO, folder)
    hub.fail("GET /_cdn", drop="cut")
    assert download(hub, "x.mlpackage/Data/weight.bin", tmp_path) == WEIGHTS
    assert [line[-3:] for line in hub.calls("GET /_cdn")] == ["200", "206"]


def test_reset_in_the_middle_of_a_download(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    hub.add(REPO, folder)
    hub.fail("GET /_cdn", drop="mid")
    with pytest.raises(httpx2.ReadError):
        download(hub, "x.mlpackage/Data/weight.bin", tmp_path)
    assert download(hub, "x.mlpackage/Data/weight.bin", tmp_path) == WEIGHTS


def test_delay(hub: LocalHub, api: HfApi, folder: Path) -> None:
    hub.add(REPO, folder)
    hub.fail("GET", delay=600)  # stopping the Hub does not wait for it
    with pytest.raises(httpx2.TimeoutException):
        api.model_info(REPO, timeout=0.1)


def test_ranges(hub: LocalHub, folder: Path) -> None:
    hub.add(REPO, folder)
    url, data = f"{hub.url}/{REPO}/resolve/main/config.json", FILES["config.json"]
    for asked, status, got in (
        ("bytes=2-4", 206, data[2:5]),
        ("bytes=3-", 206, data[3:]),
        ("bytes=-2", 206, data[-2:]),
        ("bytes=0-999", 206, data),
        ("bytes=999-", 416, b""),
        ("lines=1-2", 200, data),
    ):
        answer = httpx2.get(url, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (status, got)
    head = httpx2.head(url)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(data)))


# State on disk


def test_state_survives_a_restart(tmp_path: Path, folder: Path, transport: str) -> None:
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo(REPO, private=True)
        made = commit(api, FILES)
        api.create_tag(REPO, tag="v1", revision=made.oid)
        hub.add("org/old", folder)
        hub.rename("org/old", "org/new")
        before = hub.files(REPO), hub.commits(REPO), hub.tags(REPO)
    with pytest.raises(httpx2.ConnectError):
        api.model_info(REPO)
    with LocalHub(tmp_path / "hub", port=hub.port) as later:
        assert (later.files(REPO), later.commits(REPO), later.tags(REPO)) == before
        assert api.model_info(REPO).private
        assert api.model_info("org/old").id == "org/new"
        assert commit(api, FILES).oid == made.oid


def test_killed_server_leaves_whole_commits(tmp_path: Path, waits: list[float]) -> None:
    command = [sys.executable, "-m", "hft2ane.localhub", str(tmp_path / "hub")]
    acknowledged: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        found = re.match(r"export HF_ENDPOINT=(\S+) HF_TOKEN=(\S+)", server.stdout.readline())
        assert found
        api = HfApi(endpoint=found[1], token=found[2])
        api.create_repo(REPO)

        def commit_for_ever(worker: int) -> None:
            for number in range(10_000):
                operation = CommitOperationAdd(f"{worker}.txt", b"%d" % number)
                text = f"{worker}.txt={number}"
                acknowledged.append(api.create_commit(REPO, [operation], commit_message=text).oid)
                if len(acknowledged) >= 20:
                    server.kill()

        with ThreadPoolExecutor(3) as pool:
            workers = [pool.submit(commit_for_ever, worker) for worker in range(3)]
        assert all(isinstance(worker.exception(), httpx2.TransportError) for worker in workers)

    hub = LocalHub(tmp_path / "hub")
    history = hub.commits(REPO)
    assert set(acknowledged) <= {c.oid for c in history}
    for made in history[:-1]:
        name, _, number = made.title.partition("=")
        assert hub.files(REPO, made.oid)[name] == number.encode()


# Metadata of cards


@pytest.mark.parametrize(
    ("readme", "problem"),
    [
        ("---\nlicense: [mit]\n---\n", '"license" must be a string'),
        ("---\nlicense: no\n---\n", '"license" must be a string'),
        ("---\nlicense: 'mit\n---\n", "invalid YAML"),
        ("---\ntags: !!python/object:os.system x\n---\n", "invalid YAML"),
        ("---\na: &a [x, x]\nb: [*a, *a]\n---\n", "aliases"),
        ("---\n- mit\n---\n", "not a mapping"),
        (f"---\na: {'[' * 1000}\n---\n", "invalid YAML"),
        ("---\ndate: 2024-02-31\n---\n", "invalid YAML"),
        (f"---\na: {'a' * 300_000}\n---\n", "longer than"),
    ],
)
def test_bad_front_matter(readme: str, problem: str, hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO)
    with pytest.raises(ValueError, match=re.escape(problem)):
        commit(api, {"README.md": readme.encode()})
    assert len(hub.commits(REPO)) == 1
    hub.add("org/upstream", write_folder(tmp_path / "bad", {"README.md": readme.encode()}))
    assert api.model_info("org/upstream").id == "org/upstream"


def test_front_matter_reaches_the_client(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    readme = b"---\r\nlicense: other\r\nlicense_name: x\r\nwhen: 2024-02-03\r\ntags:\r\n- a\r\n---\r\n# \xff\r\n---\r\n"
    hub.add(REPO, write_folder(tmp_path / "new", {"README.md": readme}))
    info = api.model_info(REPO)
    assert info.card_data
    assert (info.card_data.license, info.card_data["when"], info.tags) == ("other", "2024-02-03", ["a"])
    assert frontmatter.judge("# no metadata") == ([], ["empty or missing yaml metadata in repo card"])


# Large or regular


@pytest.mark.parametrize(
    ("path", "size", "sample", "large"),
    [
        ("a/model.safetensors", 10, b"text", True),
        ("x.mlpackage/Data/com.apple.CoreML/model.mlmodel", 10, b"text", True),
        ("saved_model/x", 10, b"text", True),
        ("saved_model/a/b/x", 10, b"text", True),
        ("saved_models/x", 10, b"text", False),
        ("tokenizer.json", 10, b"text", False),
        ("tokenizer.json", 11 * 1024 * 1024, b"text", True),
        ("picture", 10, b"\0", True),
        ("model.safetensors", 0, b"", False),
    ],
)
def test_what_is_large(path: str, size: int, sample: bytes, large: bool) -> None:
    assert lfs.is_large(path, size, sample, lfs.GITATTRIBUTES) == large


def test_the_last_attribute_wins(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    attributes = b"# *.json filter=lfs\n*.bin filter=lfs\n\nkeep/*.bin -filter\n/top.txt filter=lfs\n"
    hub.add(REPO, write_folder(tmp_path / "new", {".gitattributes": attributes}))
    commit(api, dict.fromkeys(["a.bin", "keep/a.bin", "a.json", "top.txt", "sub/top.txt"], b"text"))
    siblings = api.model_info(REPO, files_metadata=True).siblings or []
    assert {s.rfilename for s in siblings if s.lfs} == {"a.bin", "top.txt"}


# transformers


TRANSFORMERS = """
import sys
import torch
from transformers import AutoModel, BertConfig, BertModel

cache = sys.argv[1]
shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100)
model = BertModel(BertConfig(**shape)).eval()
made = model.push_to_hub("org/tiny", private=True)
again = AutoModel.from_pretrained("org/tiny", revision=made.oid, cache_dir=cache)
ours, theirs = model.state_dict(), again.state_dict()
assert ours.keys() == theirs.keys()
assert all(torch.equal(ours[name], theirs[name]) for name in ours)
print("same", len(ours))
"""


@pytest.mark.slow
def test_transformers_pushes_and_loads(hub: LocalHub, tmp_path: Path) -> None:
    home = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", TRANSFORMERS, str(tmp_path / "cache")]
    done = subprocess.run(command, env={**os.environ, **home}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("same ")
    assert hub.files("org/tiny").keys() >= {"config.json", "model.safetensors", "README.md"}
