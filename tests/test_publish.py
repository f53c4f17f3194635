"""Publishing by the real client to a Hub on this machine: what lands, what is refused, what survives."""

import hashlib
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from hft2ane import keys, records
from hft2ane.errors import (
    BadInput,
    GateFailed,
    Hft2aneError,
    HubUnavailable,
    LicenseError,
    NoSpace,
    PublishError,
    TokenRefused,
)
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.publish import publish, rollback
from hft2ane.records.fidelity import Fidelity
from hft2ane.records.job import Job
from hft2ane.records.package import Function, Package, Part
from hft2ane.records.recipe import Gates, Recipe
from hft2ane.records.release import Conversion, Published, Report
from hft2ane.records.repo import Redo
from hft2ane.records.source import CardFields, RemoteFile, Source

# The client's own, in its LFS upload.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPO = "org/tiny-ane"
PACKAGE = "Tiny.float16.mlpackage"
INNER = f"{PACKAGE}/Data/com.apple.CoreML"
COMMIT = "POST .*/commit/main"
README = "---\nlicense: mit\nlibrary_name: coreml\n---\n# Tiny\n"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def hub(local: LocalHub) -> Hub:
    return patient(local, local.token)


@pytest.fixture(params=["xet", "lfs"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return str(request.param)


@pytest.fixture
def lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the transport does not matter: the faster one."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def patient(local: LocalHub, token: str) -> Hub:
    hub = Hub(local.url, token)
    hub.waits = (0.0, 0.0, 0.0)
    return hub


def conversion() -> Conversion:
    function = Function("main", 128, (), ())
    return Conversion(
        source=Source("up/tiny", "a" * 40, (), CardFields(license="mit")),
        recipe=Recipe(),
        family="bert",
        task="fill-mask",
        original="BertForMaskedLM",
        license="mit",
        packages=(Package("float16", PACKAGE, "0" * 64, 1, "iOS16 / macOS13", (function,), "main"),),
        labels=(),
        problem=None,
        convert_key="c1",
        verify_key="v1",
        card_key="k1",
        protocol="p1",
        psnr={"float16": 70.0},
        toolchain={"torch": "2.13.0"},
        hft2ane="0.1.0",
    )


def report() -> Report:
    bars = [
        Fidelity("rewrite", "torch", 90.0, 130.0, 120.0, 125.0, None, ()),
        Fidelity("float16", "reference", 50.0, 80.0, 70.0, 75.0, None, ()),
    ]
    return Report("p1", "v1", tuple(bars), (), (), 1.0)


FILES = {
    "README.md": README.encode(),
    "config.json": b'{"model_type": "bert", "_name_or_path": "/home/them/checkpoints/3"}\n',
    "tokenizer.json": b"{}\n",
    "1_Pooling/config.json": b"{}\n",
    "LICENSE": b"MIT\n",
    "reports/report.json": records.dump(report()),
    "assets/psnr.png": b"\x89PNG\0",
    f"{PACKAGE}/Manifest.json": b"{}\n",
    f"{INNER}/model.mlmodel": b"\x08\x07graph",
    f"{INNER}/weights/weight.bin": bytes(range(256)) * 500,
}


def release(job: Path, files: dict[str, bytes] = FILES, record: Conversion | None = None) -> Path:
    """A job's folder as the card step leaves it."""
    shutil.rmtree(job, ignore_errors=True)
    for name, content in {**files, "conversion.json": records.dump(record or conversion())}.items():
        path = job / "release" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    records.write(job / "job.json", Job("create", "not published yet", "up/tiny", REPO, "a" * 40, license="mit"))
    records.write(job / "report.json", report())
    sum_up(job)
    return job


def sum_up(job: Path, carried: dict[str, str] | None = None) -> None:
    top = job / "release"
    sums = {**(carried or {})}
    for file in top.rglob("*"):
        if file.is_file() and file.name != "SHA256SUMS":
            sums[file.relative_to(top).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    (top / "SHA256SUMS").write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def on_disk(job: Path) -> dict[str, bytes]:
    top = job / "release"
    return {file.relative_to(top).as_posix(): file.read_bytes() for file in top.rglob("*") if file.is_file()}


def on_hub(local: LocalHub, revision: str = "main") -> dict[str, bytes]:
    files = local.files(REPO, revision)
    files.pop(".gitattributes", None)
    return files


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return release(tmp_path / "job")


# ---- what lands


def test_first_publication(local: LocalHub, hub: Hub, job: Path, transport: str) -> None:
    told: list[tuple[str, float]] = []
    done = publish(job, hub, lambda what, share: told.append((what, share)))
    assert done == Published(REPO, local.tags(REPO)["v1"], "v1", f"{local.url}/{REPO}", True)
    assert records.read(job / "published.json", Published) == done
    assert on_hub(local, done.commit) == on_hub(local) == on_disk(job)
    assert len(local.calls(COMMIT)) == 1
    assert bool(local.calls("xet-write-token")) == (transport == "xet")
    assert bool(local.calls("info/lfs/objects/batch")) == (transport == "lfs")
    assert hub.repo(REPO) is not None
    assert patient(local, local.read_token).look(REPO).commit == done.commit  # public
    assert told[-1] == (f"{REPO} v1", 1.0)
    assert [share for _, share in told] == sorted(share for _, share in told)


def test_it_is_private_until_all_is_there(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    publish(job, hub)
    steps = [call.split()[0:2] for call in local.calls("POST|PUT /api/models")]
    order = [path.rpartition("/")[2] for _, path in steps if path.endswith(("create", "commit/main", "settings"))]
    assert order == ["create", "main", "settings"]
    assert len(local.calls("settings")) == 1


def test_the_commit_tells_its_release(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    publish(job, hub)
    id = hashlib.sha256((job / "release" / "SHA256SUMS").read_bytes()).hexdigest()
    assert f"Publish-Id: {id}" in str(local.commits(REPO)[0])


def test_the_second_time_nothing_is_done(local: LocalHub, hub: Hub, job: Path, transport: str) -> None:
    first = publish(job, hub)
    before = len(local.calls("POST|PUT|DELETE"))
    again = publish(job, hub)
    assert again == replace(first, changed=False)
    assert len(local.calls("POST|PUT|DELETE")) == before


def test_a_change_is_one_more_commit_and_tag(local: LocalHub, hub: Hub, job: Path, transport: str) -> None:
    first = publish(job, hub)
    files = {**FILES, "README.md": README.encode() + b"More.\n"}
    del files["tokenizer.json"]
    second = publish(release(job, files), hub)
    assert (second.tag, second.changed) == ("v2", True)
    assert local.tags(REPO) == {"v1": first.commit, "v2": second.commit}
    assert on_hub(local) == on_disk(job)
    assert "tokenizer.json" not in on_hub(local)
    assert "tokenizer.json" in on_hub(local, "v1")
    assert ".gitattributes" in local.files(REPO)
    assert len(local.calls(COMMIT)) == 2
    assert len(local.calls("settings")) == 1  # made public once


def test_a_card_alone_carries_the_packages_over(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    publish(job, hub)
    packages = {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items() if name.startswith(PACKAGE)
    }
    rest = {name: content for name, content in FILES.items() if name not in packages}
    release(job, {**rest, "README.md": README.encode() + b"A new template.\n"})
    sum_up(job, packages)
    done = publish(job, hub)
    assert done.tag == "v2"
    assert on_hub(local) == {**on_disk(job), **{name: FILES[name] for name in packages}}


@pytest.mark.parametrize("name", [f"{PACKAGE}/Manifest.json", f"{INNER}/weights/weight.bin"])
def test_but_not_another_package(local: LocalHub, hub: Hub, job: Path, lfs: None, name: str) -> None:
    publish(job, hub)
    rest = {other: content for other, content in FILES.items() if other != name}
    release(job, rest)
    sum_up(job, {name: "0" * 64})
    with pytest.raises(PublishError, match="neither here nor in org/tiny-ane: convert this model again"):
        publish(job, hub)
    assert len(local.calls(COMMIT)) == 1


LABELS = replace(conversion(), labels=("a", "b"))
WIDER = replace(
    conversion(), packages=(replace(conversion().packages[0], functions=(Function("tokens_128", 128, (), ()),)),)
)


@pytest.mark.parametrize(("record", "says"), [(LABELS, "the labels are others"), (WIDER, "has no function main")])
def test_what_would_break_apps_is_refused(
    local: LocalHub, hub: Hub, job: Path, lfs: None, record: Conversion, says: str
) -> None:
    publish(job, hub)
    before = len(local.calls("POST|PUT|DELETE"))
    release(job, record=record)
    with pytest.raises(PublishError, match=rf"org/tiny-ane v1 would break \(.*{says}.*write `major: 2`"):
        publish(job, hub)
    assert len(local.calls("POST|PUT|DELETE")) == before


def test_but_not_with_the_next_major_version(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    first = publish(job, hub)
    release(job, record=replace(LABELS, major=2))
    records.write(job / "job.json", replace(records.read(job / "job.json", Job), major=2))
    assert publish(job, hub).tag == "v2"
    assert local.tags(REPO)["v1"] == first.commit
    release(job, record=replace(LABELS, major=4))
    records.write(job / "job.json", replace(records.read(job / "job.json", Job), major=4))
    with pytest.raises(PublishError, match="major version 2, this release 4"):
        publish(job, hub)


def test_what_others_did_to_the_repo_is_undone_by_one_commit(
    local: LocalHub, hub: Hub, job: Path, tmp_path: Path, lfs: None
) -> None:
    publish(job, hub)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "README.md").write_text("hello")
    local.add(REPO, tmp_path / "odd")
    assert publish(job, hub).tag == "v2"
    assert on_hub(local) == on_disk(job)


def test_a_repo_that_was_taken_down_stays_down(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    publish(job, hub)
    hub._api().update_repo_settings(REPO, private=True)
    release(job, {**FILES, "README.md": README.encode() + b"More.\n"})
    publish(job, hub)
    state = hub.repo(REPO)
    assert state is not None
    assert state.private


def occupy(local: LocalHub, folder: Path, files: dict[str, bytes], private: bool) -> str:
    """The repo as someone made it by hand."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return local.add(REPO, folder, private=private)


STRANGE = [
    {"thesis.tex": b"years of work"},
    {"README.md": b"hello", "conversion.json": b"not ours"},
    {"conversion.json": b'["source"]'},
    {"conversion.json": b'{"source": {"id": "up/other"}}'},
]


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("files", STRANGE)
def test_a_repo_of_someone_else_is_left_alone(
    local: LocalHub, hub: Hub, job: Path, tmp_path: Path, lfs: None, files: dict[str, bytes], private: bool
) -> None:
    commit = occupy(local, tmp_path / "theirs", files, private)
    hub.tag(REPO, "v1", commit)
    before = len(local.calls("POST|PUT|DELETE"))
    with pytest.raises(PublishError, match=r"org/tiny-ane is not ours.*name another with publish\.name") as error:
        publish(job, hub)
    assert "\n" not in str(error.value)
    assert len(local.calls("POST|PUT|DELETE")) == before
    state = hub.repo(REPO)
    assert state is not None
    assert (state.commit, state.private) == (commit, private)


def test_an_empty_repo_is_taken(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    hub.create(REPO)
    assert publish(job, hub).tag == "v1"
    assert patient(local, local.read_token).look(REPO)


def test_a_release_of_another_schema_is_replaced(
    local: LocalHub, hub: Hub, job: Path, tmp_path: Path, lfs: None
) -> None:
    old = b'{"schema": 0, "source": {"id": "up/tiny", "what": "was"}}'
    hub.tag(REPO, "v1", occupy(local, tmp_path / "old", {"conversion.json": old}, False))
    assert publish(job, hub).tag == "v2"
    assert on_hub(local) == on_disk(job)


def test_the_url_has_no_password(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    hub.page = "https://hub.example"
    assert publish(job, hub).url == f"https://hub.example/{REPO}"


def test_a_renamed_repo_is_said(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    publish(job, hub)
    local.rename(REPO, "org/other")
    with pytest.raises(PublishError, match="is called org/other now"):
        publish(job, hub)


# ---- back to an earlier version

OTHER = {**FILES, "README.md": README.encode() + b"More.\n", f"{INNER}/weights/weight.bin": bytes(500_000)}


@pytest.fixture
def twice(local: LocalHub, hub: Hub, job: Path, lfs: None) -> dict[str, bytes]:
    """v1 and v2 are published, v2 with another README, weights, a file more and a file less; v1's files."""
    publish(job, hub)
    first = on_hub(local)
    publish(release(job, {**{k: v for k, v in OTHER.items() if k != "tokenizer.json"}, "NOTICE": b"x\n"}), hub)
    return first


def test_rollback(local: LocalHub, hub: Hub, twice: dict[str, bytes]) -> None:
    uploads = len(local.calls("info/lfs|xet-write"))
    before = local.tags(REPO)
    done = rollback(REPO, "v1", hub)
    assert (done.tag, done.changed) == ("v3", True)
    assert on_hub(local) == on_hub(local, "v3") == twice
    assert local.tags(REPO) == {**before, "v3": done.commit}
    assert len(local.calls("info/lfs|xet-write")) == uploads  # large files are not sent again
    assert isinstance(hub.conversion(REPO), Conversion)
    assert rollback(REPO, "v1", hub) == replace(done, changed=False)
    assert len(local.commits(REPO)) == 4
    assert rollback(REPO, "v2", hub).tag == "v4"


@pytest.mark.parametrize("fault", [{"drop": "before"}, {"drop": "after"}, {"status": 412}, {"status": 500}], ids=str)
def test_rollback_is_one_commit_whatever_happens_to_it(
    local: LocalHub, hub: Hub, twice: dict[str, bytes], fault: dict[str, Any]
) -> None:
    local.fail(COMMIT, times=1, **fault)
    assert rollback(REPO, "v1", hub).tag == "v3"
    assert on_hub(local, "v3") == twice
    assert len(local.commits(REPO)) == 4


def test_rollback_goes_on_where_it_was(local: LocalHub, hub: Hub, twice: dict[str, bytes]) -> None:
    local.fail("POST .*/tag/", times=9, status=500)
    with pytest.raises(HubUnavailable):
        rollback(REPO, "v1", hub)
    local.faults = type(local.faults)()
    assert rollback(REPO, "v1", hub).tag == "v3"
    assert len(local.commits(REPO)) == 4


@pytest.mark.parametrize("version", ["v3", "v0", "main", "3"])
def test_rollback_to_no_version(local: LocalHub, hub: Hub, twice: dict[str, bytes], version: str) -> None:
    with pytest.raises(BadInput, match=f"has no version {version}; there are v1, v2"):
        rollback(REPO, version, hub)


# ---- what survives


@pytest.mark.parametrize(
    "fault", [{"drop": "before"}, {"drop": "after"}, *({"status": s} for s in (408, 409, 412, 429, 500, 502))], ids=str
)
def test_one_commit_whatever_happens_to_it(
    local: LocalHub, hub: Hub, job: Path, transport: str, fault: dict[str, Any]
) -> None:
    local.fail(COMMIT, times=1, **fault)
    done = publish(job, hub)
    assert (done.tag, done.changed) == ("v1", True)
    assert on_hub(local, "v1") == on_disk(job)
    assert len(local.commits(REPO)) == 2  # the Hub's own, and ours
    assert len(local.calls(COMMIT)) == (1 if fault.get("drop") == "after" else 2)


def test_even_the_last_try_may_have_landed(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    hub.waits = ()
    local.fail(COMMIT, times=1, drop="after")
    assert publish(job, hub).tag == "v1"
    assert len(local.calls(COMMIT)) == 1


def test_another_commit_in_between_is_seen(
    local: LocalHub, hub: Hub, job: Path, tmp_path: Path, lfs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "odd.txt").write_text("hello")
    commit = hub.commit

    def late(*args: object, **more: object) -> str:
        if not local.calls(COMMIT):
            local.add(REPO, tmp_path / "odd")  # the head moves after it was looked at
        return commit(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "commit", late)
    assert publish(job, hub).tag == "v1"
    assert [call[-3:] for call in local.calls(COMMIT)] == ["412", "200"]
    assert on_hub(local) == on_disk(job)


@pytest.mark.parametrize(
    "where", ["POST .*repos/create", "POST .*/tag/", "PUT .*settings", "GET .*refs", "POST .*validate-yaml"]
)
@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": "before"}, {"drop": "after"}], ids=str)
def test_every_other_step_is_tried_again(
    local: LocalHub, hub: Hub, job: Path, lfs: None, where: str, fault: dict[str, Any]
) -> None:
    local.fail(where, times=1, **fault)
    assert publish(job, hub).tag == "v1"
    assert len(local.commits(REPO)) == 2
    assert list(local.tags(REPO)) == ["v1"]
    assert patient(local, local.read_token).look(REPO)


@pytest.mark.parametrize("where", ["POST .*/tag/", "PUT .*settings"])
def test_a_crash_after_the_commit_is_mended_by_the_next_run(
    local: LocalHub, hub: Hub, job: Path, lfs: None, where: str
) -> None:
    local.fail(where, times=4, status=503)
    with pytest.raises(HubUnavailable, match=REPO):
        publish(job, hub)
    assert not (job / "published.json").exists()
    assert isinstance(hub.conversion(REPO), Redo)  # the plan sees it
    landed = local.commits(REPO)
    done = publish(job, hub)
    assert done.changed  # by the two calls, that is
    assert hub.conversion(REPO) == conversion()
    assert local.commits(REPO) == landed
    assert local.tags(REPO) == {"v1": done.commit}
    assert patient(local, local.read_token).look(REPO).commit == done.commit


def test_xet_that_fails_is_replaced_by_lfs(
    local: LocalHub, hub: Hub, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    local.fail("xet-write-token", times=99, status=404)
    publish(job, hub)
    assert on_hub(local) == on_disk(job)
    assert local.calls("xet-write-token.* 404")
    assert local.calls("info/lfs/objects/batch")


def test_a_tag_that_is_taken_is_passed_over(
    local: LocalHub, hub: Hub, job: Path, lfs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(job, hub)
    release(job, {**FILES, "README.md": README.encode() + b"More.\n"})
    tag = hub.tag

    def late(repo: str, name: str, commit: str) -> None:
        if name == "v2":
            tag(repo, name, local.tags(REPO)["v1"])  # someone was faster, for another commit
        tag(repo, name, commit)

    monkeypatch.setattr(hub, "tag", late)
    assert publish(job, hub).tag == "v3"


# ---- the tag that the card names

CARD = (
    README + 'hf download org/tiny-ane --revision v1 --local-dir tiny-ane\nlet revision = "v1"  // and v1 stays here\n'
)


def naming(card: str, number: int) -> bytes:
    return card.replace("--revision v1", f"--revision v{number}").replace('= "v1"', f'= "v{number}"').encode()


def test_a_card_names_the_tag_that_it_gets(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    for number, card in enumerate((CARD, CARD + "More.\n", CARD + "Again.\n"), 1):
        release(job, {**FILES, "README.md": card.encode()})
        done = publish(job, hub)
        assert (done.tag, done.changed) == (f"v{number}", True)
        there = on_hub(local, done.tag)
        assert there["README.md"] == naming(card, number)
        sums = dict(line.split("  ")[::-1] for line in there.pop("SHA256SUMS").decode().splitlines())
        assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in there.items()}
        assert on_disk(job)["README.md"] == card.encode()
    assert not (job / ".pinned").exists()


def test_a_release_that_differs_in_its_tag_alone_is_unchanged(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    for card in (CARD, CARD + "More.\n"):
        publish(release(job, {**FILES, "README.md": card.encode()}), hub)
    before = len(local.calls("POST|PUT|DELETE"))
    done = publish(job, hub)
    assert (done.tag, done.changed) == ("v2", False)
    assert len(local.calls("POST|PUT|DELETE")) == before
    # v1's card once more is no older version: it is the third.
    done = publish(release(job, {**FILES, "README.md": CARD.encode()}), hub)
    assert (done.tag, done.changed) == ("v3", True)
    assert on_hub(local)["README.md"] == naming(CARD, 3)


def test_a_crash_before_the_tag_does_not_take_two_numbers(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    publish(release(job, {**FILES, "README.md": CARD.encode()}), hub)
    release(job, {**FILES, "README.md": CARD.encode() + b"More.\n"})
    local.fail("POST .*/tag/", times=9, status=500)
    with pytest.raises(HubUnavailable):
        publish(job, hub)
    local.faults = type(local.faults)()
    done = publish(job, hub)
    assert (done.tag, done.changed) == ("v2", True)
    assert on_hub(local, "v2")["README.md"] == naming(CARD, 2) + b"More.\n"
    assert len(local.commits(REPO)) == 3


def test_a_number_that_is_taken_is_not_named(
    local: LocalHub, hub: Hub, job: Path, lfs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(release(job, {**FILES, "README.md": CARD.encode()}), hub)
    release(job, {**FILES, "README.md": CARD.encode() + b"More.\n"})
    tag = hub.tag

    def late(repo: str, name: str, commit: str) -> None:
        if name == "v2":
            tag(repo, name, local.tags(REPO)["v1"])  # someone was faster, for another commit
        tag(repo, name, commit)

    monkeypatch.setattr(hub, "tag", late)
    assert publish(job, hub).tag == "v3"
    assert on_hub(local, "v3")["README.md"] == naming(CARD, 3) + b"More.\n"
    assert not publish(job, hub).changed


def test_what_was_rolled_back_to_names_the_tag_of_the_same_files(
    local: LocalHub, hub: Hub, job: Path, lfs: None
) -> None:
    for card in (CARD, CARD + "More.\n"):
        publish(release(job, {**FILES, "README.md": card.encode()}), hub)
    assert rollback(REPO, "v1", hub).tag == "v3"
    assert on_hub(local)["README.md"] == naming(CARD, 1)
    done = publish(release(job, {**FILES, "README.md": CARD.encode()}), hub)
    assert (done.tag, done.changed) == ("v3", False)


def test_what_landed_is_checked(
    local: LocalHub, hub: Hub, job: Path, lfs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.commit

    def damaged(repo: str, add: dict[str, Path], delete: object, **more: str) -> str:
        return commit(repo, {name: path for name, path in add.items() if name != "config.json"}, (), **more)

    monkeypatch.setattr(hub, "commit", damaged)
    with pytest.raises(PublishError, match=r"is not what was sent \(config.json\)"):
        publish(job, hub)
    assert local.tags(REPO) == {}
    assert not local.calls("settings")


def test_what_was_sent_is_read_back(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    """The list of digests is right, and the storage gives something else."""
    commit = publish(job, hub).commit
    path = local.store.blob(hashlib.sha256(FILES[f"{INNER}/weights/weight.bin"]).hexdigest())
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    (job / ".checked").mkdir()  # of a run that was killed
    hub._api().delete_tag(REPO, tag="v1")
    with pytest.raises(PublishError, match=f"{commit[:12]}: cannot download .*weight.bin.*size and digest.*run again"):
        publish(job, hub)
    assert local.tags(REPO) == {}
    assert not (job / ".checked").exists()


def test_a_file_that_the_hub_would_not_take(job: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hft2ane.release.LARGEST", 100_000)
    with pytest.raises(PublishError, match="weight.bin has .* the Hub takes files of at most"):
        publish(job, hub)


def test_no_room_to_read_it_back(local: LocalHub, hub: Hub, job: Path, lfs: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(NoSpace, match="checking org/tiny-ane needs"):
        publish(job, hub)
    assert local.tags(REPO) == {}


def test_a_hub_that_is_down(local: LocalHub, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalHub(tmp_path / "gone") as gone:
        hub = Hub(gone.url, gone.token)
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(HubUnavailable, match="cannot look up org/tiny-ane .* cannot be reached") as error:
        publish(job, hub)
    assert "\n" not in str(error.value)
    assert sum(slept) < 30


def test_a_token_that_may_not_write(local: LocalHub, hub: Hub, job: Path, transport: str) -> None:
    reader = patient(local, local.read_token)
    with pytest.raises(TokenRefused, match="cannot create org/tiny-ane: .* HF_TOKEN") as error:
        publish(job, reader)
    assert local.read_token not in str(error.value)
    publish(job, hub)
    release(job, {**FILES, f"{INNER}/weights/weight.bin": b"\0" * 1000})
    with pytest.raises(TokenRefused, match="cannot commit to org/tiny-ane: .* HF_TOKEN"):
        publish(job, reader)
    assert len(local.commits(REPO)) == 2


def test_a_card_that_the_hub_refuses(
    local: LocalHub, hub: Hub, job: Path, lfs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError('Invalid metadata in README.md.\n- "license" must be one of [...]')

    monkeypatch.setattr("huggingface_hub.HfApi._validate_yaml", refuse)
    with pytest.raises(PublishError, match="cannot commit to org/tiny-ane: .*Invalid metadata in README.md") as error:
        publish(job, hub)
    assert "\n" not in str(error.value)


# ---- the gate


def rewrite_report(**change: object) -> Callable[[Path], None]:
    return lambda job: records.write(job / "report.json", replace(report(), **change))  # type: ignore[arg-type]


def bars(psnr: float) -> tuple[Fidelity, ...]:
    first, second = report().fidelity
    return (first, replace(second, psnr_min=psnr))


def replan(**change: object) -> Callable[[Path], None]:
    def edit(job: Path) -> None:
        planned = records.read(job / "job.json", Job)
        records.write(job / "job.json", replace(planned, **change))  # type: ignore[arg-type]

    return edit


def relicense(upstream: str | None, manifest: str | None, record: str = "mit") -> Callable[[Path], None]:
    def change(job: Path) -> None:
        old = conversion()
        source = replace(old.source, card=CardFields(license=upstream))
        release(job, FILES, replace(old, source=source, license=record))
        planned = records.read(job / "job.json", Job)
        records.write(job / "job.json", replace(planned, license=manifest))

    return change


def put(name: str, content: bytes, listed: bool = True) -> Callable[[Path], None]:
    def change(job: Path) -> None:
        path = job / "release" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if listed:
            sum_up(job)

    return change


def drop(name: str, listed: bool = True) -> Callable[[Path], None]:
    def change(job: Path) -> None:
        (job / "release" / name).unlink()
        if listed:
            sum_up(job)

    return change


def link(job: Path) -> None:
    (job / "release" / "NOTICE").symlink_to(job / "release" / "LICENSE")


def sums(change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(job: Path) -> None:
        path = job / "release" / "SHA256SUMS"
        path.write_text(change(path.read_text()))

    return edit


NO_PACKAGES = [name for name in FILES if name.startswith(PACKAGE)]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda job: (job / "report.json").unlink(), GateFailed, "no report.json"),
        (rewrite_report(failures=("float16: 12 dB",)), GateFailed, "float16: 12 dB"),
        (rewrite_report(verify_key="v2"), GateFailed, "another build"),
        (rewrite_report(fidelity=()), GateFailed, "no figure for rewrite"),
        (rewrite_report(fidelity=report().fidelity[:1]), GateFailed, "no figure for float16"),
        (rewrite_report(fidelity=bars(49.9)), GateFailed, "49.9 dB, the gate is 50"),
        (rewrite_report(fidelity=bars(float("nan"))), BadInput, "report.json"),
        (rewrite_report(seconds=2.0), PublishError, "reports/report.json in release/ not as .* run card again"),
        (drop("reports/report.json"), PublishError, "reports/report.json in release/ not as"),
        (replan(gates=Gates(float16=70.5)), GateFailed, "float16 has 70.0 dB, the gate is 70.5"),
        (replan(gates=Gates(rewrite=120.5)), GateFailed, "rewrite has 120.0 dB, the gate is 120.5"),
        (replan(id="up/other"), PublishError, "the original's id in release/ not as"),
        (replan(action="card", id="up/other"), PublishError, "the original's id in release/ not as"),
        (replan(commit="b" * 40), PublishError, "its commit in release/ not as"),
        (replan(commit=None), PublishError, "its commit in release/ not as"),
        (replan(recipe=Recipe(lengths=(64,))), PublishError, "the recipe in release/ not as"),
        (relicense(None, None), LicenseError, "names no licence"),
        (relicense("cc-by-nc-4.0", None, "cc-by-nc-4.0"), LicenseError, "non-commercial"),
        (relicense("mit", "apache-2.0"), LicenseError, "the manifest expects"),
        (relicense("apache-2.0", None, "mit"), LicenseError, "make the card again"),
        (lambda job: shutil.rmtree(job / "release"), BadInput, "missing"),
        (lambda job: (job / "job.json").unlink(), BadInput, "missing"),
        (put("README.md", b"tampered", listed=False), PublishError, "README.md has been changed since SHA256SUMS"),
        (put(f"{INNER}/weights/weight.bin", b"tampered", listed=False), PublishError, "weight.bin has been changed"),
        (put("NOTICE", b"new", listed=False), PublishError, "NOTICE is not in SHA256SUMS"),
        (drop("config.json", listed=False), PublishError, "config.json is in SHA256SUMS, but neither here"),
        (drop("README.md"), PublishError, "no README.md"),
        (drop("SHA256SUMS", listed=False), PublishError, "no SHA256SUMS"),
        (put("model.safetensors", b"x"), PublishError, "nothing that is published"),
        (put("2_Dense/model.safetensors", b"x"), PublishError, "nothing that is published"),
        (put(".DS_Store", b"x"), PublishError, "nothing that is published"),
        (put("reports/run.log", b"x"), PublishError, "nothing that is published"),
        (put(f"{PACKAGE}/Data/other/x.bin", b"x"), PublishError, "nothing that is published"),
        (put("Other.mlpackage/Manifest.json", b"{}"), PublishError, "same packages"),
        (lambda job: [drop(name)(job) for name in NO_PACKAGES], PublishError, "same packages"),
        (link, PublishError, "not a plain file"),
        (sums(lambda text: text.upper()), PublishError, "sorted"),
        (sums(lambda text: "".join(sorted(text.splitlines(True)))), PublishError, "sorted"),
        (sums(lambda text: text + text), PublishError, "sorted"),
        (sums(lambda text: f"{'0' * 64}  ../out\n{text}"), PublishError, "sorted"),
        (
            sums(lambda text: f"{'0' * 64}  .git/config\n{text}"),
            PublishError,
            "has .git/config, which is not published",
        ),
        (sums(lambda text: text.rstrip("\n")), PublishError, "is cut off in line 11"),
        (put("README.md", README.encode() + b"hf_" + b"aB3" * 12), PublishError, r"README.md:6 has a token \(hf_a\*"),
        (put("tokenizer.json", b'{"x": "hf_' + b"aB3" * 12 + b'"}'), PublishError, "tokenizer.json:1"),
        (
            put("README.md", README.encode() + b"see /Users/me/x"),
            PublishError,
            r"README.md:6 has a path of a machine \(/Use\*",
        ),
        (put("reports/report.json", b'{"at": "/home/me/x"}'), PublishError, "report.json:1"),
        (put(f"{INNER}/model.mlmodel", b"\x01built in /home/me/x"), PublishError, "model.mlmodel:1"),
        (
            put("README.md", README.encode() + b"on buildmac-17.local"),
            PublishError,
            r"README.md:6 has this .* \(buil\*",
        ),
    ],
)
def test_refused_at_the_door(
    local: LocalHub,
    hub: Hub,
    job: Path,
    lfs: None,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    error: type[Hft2aneError],
    says: str,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "buildmac-17")
    change(job)
    with pytest.raises(error, match=says) as caught:
        publish(job, hub)
    assert "\n" not in str(caught.value)
    assert not local.calls(COMMIT)
    assert not local.calls("lfs")
    assert not (job / "published.json").exists()


# ---- figures that fell since the last version


def figured(
    job: Path,
    figures: dict[str, float],
    *,
    build: int = 0,
    backend: str = keys.BACKEND,
    gates: Gates | None = None,
    part: Part = "",
    **more: Any,
) -> Path:
    """A release with these figures of the worst row, by what they are of; another `build` has another package."""
    package = replace(conversion().packages[0], digest=str(build) * 64, part=part)
    record = replace(conversion(), **{"packages": (package,), "psnr": figures, **more})
    verify_key = keys.verify_key({package.what: package.digest}, record.protocol, backend)
    record = replace(record, verify_key=verify_key)
    bars = [
        Fidelity(what, "torch-float32" if what.startswith("rewrite") else backend, 0, psnr, psnr, psnr, None, ())
        for what, psnr in figures.items()
    ]
    measured = replace(report(), protocol=record.protocol, verify_key=verify_key, fidelity=tuple(bars))
    files = {**FILES, "reports/report.json": records.dump(measured), f"{INNER}/model.mlmodel": b"graph %d" % build}
    release(job, files, record)
    records.write(job / "report.json", measured)
    replan(recipe=record.recipe, major=record.major, gates=gates or Gates())(job)
    return job


BEFORE = {"rewrite": 120.0, "float16": 70.0}


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"float16": 66.9}, "float16 has 66.9 dB and had 70.0; .*fall: 5}"),
        ({"rewrite": 110.0}, "rewrite has 110.0 dB and had 120.0; .*fall: 11}"),
        ({"rewrite": 110.0, "float16": 50.0}, "rewrite has .* had 120.0; float16 has .* had 70.0; .*fall: 21}"),
    ],
)
def test_what_fell_is_refused(
    local: LocalHub, hub: Hub, job: Path, lfs: None, now: dict[str, float], told: str
) -> None:
    publish(figured(job, {"rewrite": 100.0, "float16": 80.0}), hub)
    publish(figured(job, BEFORE, build=1, gates=Gates(fall=10)), hub)  # with the last version it is compared
    before = len(local.calls())
    figured(job, BEFORE | now, build=2)
    with pytest.raises(GateFailed, match=f"up/tiny is not .* more than 3 dB since org/tiny-ane v2: {told}") as caught:
        publish(job, hub)
    assert "\n" not in str(caught.value)
    calls = local.calls()[before:]
    assert all(call.startswith(("GET", "HEAD")) for call in calls)
    assert sum("conversion.json" in call for call in calls) == 2  # whose repo it is; what its last version is
    assert not any("reports/" in call for call in calls)
    assert list(local.tags(REPO)) == ["v1", "v2"]


def test_what_the_refusal_says_to_write_is_enough(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    publish(figured(job, BEFORE), hub)
    figured(job, BEFORE | {"float16": 61.2}, build=1)
    with pytest.raises(GateFailed) as caught:
        publish(job, hub)
    (enough,) = re.findall(r"write `gates: \{fall: (\d+)\}` in the manifest", str(caught.value))
    assert publish(figured(job, BEFORE | {"float16": 60.3}, build=2, gates=Gates(fall=float(enough))), hub).tag == "v2"
    # It is compared with what is published now, and the entry may lose its key again.
    assert not publish(figured(job, BEFORE | {"float16": 60.3}, build=2), hub).changed
    assert publish(figured(job, BEFORE | {"float16": 57.5}, build=3), hub).tag == "v3"


SEVERAL = Recipe(lengths=(64, 128))
TRAINED = replace(conversion().source, files=(RemoteFile("model.safetensors", 1, "0" * 64, True),))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"figures": BEFORE | {"float16": 67.1}}),  # within the tolerance
        ({}, {"figures": {"rewrite": 140.0, "float16": 90.0}}),  # better
        ({}, {"build": 0}),  # the same package: what was published of it was wrong
        ({}, {"protocol": "p2"}),
        ({}, {"recipe": SEVERAL}),
        ({"recipe": SEVERAL}, {}),
        ({}, {"task": "feature-extraction"}),
        ({}, {"source": TRAINED}),
        ({}, {"backend": "another"}),
        ({"backend": "another"}, {}),
        ({}, {"part": "decoder", "figures": {"rewrite decoder": 100.0, "float16 decoder": 60.0}}),
    ],
    ids=str,
)
def test_what_is_not_comparable_is_no_fall(
    local: LocalHub, hub: Hub, job: Path, lfs: None, old: dict[str, Any], new: dict[str, Any]
) -> None:
    publish(figured(job, BEFORE, **old), hub)
    new = {"figures": BEFORE | {"float16": 60.0}, "build": 1, **new}
    assert publish(figured(job, **new), hub).tag == "v2"


def test_a_part_is_compared_with_itself(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    publish(figured(job, {"rewrite encoder": 120.0, "float16 encoder": 70.0}, part="encoder"), hub)
    figured(job, {"rewrite encoder": 110.0, "float16 encoder": 60.0}, part="encoder", build=1)
    with pytest.raises(GateFailed, match="rewrite encoder has 110.0 .*; float16 encoder has 60.0 dB and had 70.0"):
        publish(job, hub)


def test_the_major_version_allows_no_fall(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    """It is of what apps hold on to, and says nothing of how near the numbers are."""
    publish(figured(job, BEFORE), hub)
    figured(job, BEFORE | {"float16": 60.0}, build=1, major=2)
    with pytest.raises(GateFailed, match="fell by more than 3 dB"):
        publish(job, hub)


@pytest.mark.parametrize("host", ["Tiny", "runner", "localhost", "mac-1"])
def test_a_host_name_may_be_a_word_like_others(
    local: LocalHub, hub: Hub, job: Path, lfs: None, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    release(job, {**FILES, "README.md": README.encode() + f"on {host}\n".encode()})
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    publish(job, hub)


def test_a_new_card_is_of_the_commit_that_was_converted(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    replan(action="card", commit="b" * 40)(job)
    assert publish(job, hub).tag == "v1"


def test_a_folder_of_this_machine_has_no_commit(local: LocalHub, hub: Hub, job: Path, lfs: None) -> None:
    old = conversion()
    release(job, FILES, replace(old, source=replace(old.source, commit="local")))
    replan(commit=None)(job)
    assert publish(job, hub).tag == "v1"
