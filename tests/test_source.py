"""Fetching: what is taken, what is refused, and that nothing else is touched."""

import json
import shutil
import struct
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hft2ane import layout, records, source
from hft2ane.errors import BadInput, CorruptFile, Hft2aneError, HubUnavailable, ModelNotFound, NoSpace, UnsafeFormat
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.job import Job
from hft2ane.records.source import CardFields, Source

MODEL = "org/model"
CONFIG = b'{"model_type": "bert"}\n'


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = safetensors({"a": tensor(), "b": tensor("BF16", [4], [24, 32]), "__metadata__": {"format": "pt"}}, bytes(32))
FILES = {
    "config.json": CONFIG,
    "model.safetensors": GOOD,
    "tokenizer.json": b'{"model": {}}',
    "README.md": b"---\nlicense: mit\n---\n# A model\n",
    "LICENSE": b"MIT",
    "pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"onnx",
    "training/notes.txt": b"notes",
}


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def hub(local: LocalHub) -> Hub:
    hub = Hub(local.url, local.token)
    hub.waits = (0.0, 0.0)
    return hub


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job"
    path.mkdir()
    return path


def folder(path: Path, files: dict[str, bytes]) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def plan(hub: Hub, local: LocalHub, job: Path, files: dict[str, bytes]) -> Job:
    """The model on the Hub, and the job to take it."""
    local.add(MODEL, folder(job.parent / "model", files))
    seen = hub.look(MODEL)
    record = Job("create", "new", MODEL, "org/model-ane", seen.commit, layout.select(seen.files), license="mit")
    records.write(job / "job.json", record)
    return record


def taken(job: Path) -> dict[str, bytes]:
    top = job / "source"
    return {file.relative_to(top).as_posix(): file.read_bytes() for file in top.rglob("*") if file.is_file()}


# ---- from the Hub


def test_fetch(hub: Hub, local: LocalHub, job: Path) -> None:
    planned = plan(hub, local, job, FILES)
    got = source.fetch(job, hub)
    assert got == Source(MODEL, planned.commit or "", planned.files, CardFields(license="mit"))
    assert records.read(job / "source.json", Source) == got
    needed = ("config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE")
    assert taken(job) == {name: FILES[name] for name in needed}
    assert not local.calls("pytorch_model|onnx|notes")


def test_fetch_takes_the_commit_of_the_plan(hub: Hub, local: LocalHub, job: Path) -> None:
    plan(hub, local, job, FILES)
    local.add(MODEL, folder(job.parent / "newer", {**FILES, "config.json": b'{"model_type": "roberta"}'}))
    source.fetch(job, hub)
    assert taken(job)["config.json"] == CONFIG


def test_fetch_again_fetches_nothing_and_tidies_up(hub: Hub, local: LocalHub, job: Path) -> None:
    plan(hub, local, job, FILES)
    source.fetch(job, hub)
    (job / "source" / "model-00001-of-00002.safetensors").write_bytes(b"of an older commit")
    before = len(local.calls("resolve"))
    source.fetch(job, hub)
    assert len(local.calls("resolve")) == before
    assert "model-00001-of-00002.safetensors" not in taken(job)


def test_a_fetch_that_broke_off_goes_on(hub: Hub, local: LocalHub, job: Path) -> None:
    plan(hub, local, job, FILES)
    local.fail("GET .*tokenizer.json", times=3, status=503)
    with pytest.raises(HubUnavailable):
        source.fetch(job, hub)
    assert not (job / "source.json").exists()
    source.fetch(job, hub)
    assert len(local.calls("GET .*config.json")) == 1


def test_a_new_card_needs_no_weights(hub: Hub, local: LocalHub, job: Path) -> None:
    planned = plan(hub, local, job, FILES)
    records.write(job / "job.json", replace(planned, action="card"))
    published = {"README.md": b"old", "reports/report.json": b"{}", "SHA256SUMS": b"", "LICENSE": b"old"}
    package = {"Model.float16.mlpackage/Manifest.json": b"{}", "Model.float16.mlpackage/Data/x.bin": b"x"}
    local.add(planned.repo, folder(job.parent / "published", {**published, **package, ".gitattributes": b""}))
    got = source.fetch(job, hub)
    assert [file.path for file in got.files] == ["LICENSE", "README.md"]
    assert records.read(job / "source.json", Source) == got
    assert taken(job) == {"LICENSE": b"MIT", "README.md": FILES["README.md"]}
    assert {name: (job / "previous" / name).read_bytes() for name in published} == published
    assert sum(path.is_file() for path in (job / "previous").rglob("*")) == len(published)
    assert not local.calls("resolve.*(safetensors|mlpackage)")


def test_no_room(hub: Hub, local: LocalHub, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(hub, local, job, FILES)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 10))
    with pytest.raises(NoSpace, match=r"org/model .* needs 0\.0 GB of free disk, .* has 0\.0 GB"):
        source.fetch(job, hub)
    assert not local.calls("resolve")


def test_room_is_counted_once_for_the_files_and_three_times_to_export(
    hub: Hub, local: LocalHub, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(hub, local, job, FILES)
    size = sum(file.size for file in planned.files)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 4 * size - 1))
    with pytest.raises(NoSpace):
        source.fetch(job, hub)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 4 * size))
    source.fetch(job, hub)


def test_a_job_without_files(hub: Hub, job: Path) -> None:
    records.write(job / "job.json", Job("blocked", "why", MODEL, "org/out"))
    with pytest.raises(BadInput, match="plan this job again"):
        source.fetch(job, hub)


SHARDS = {
    "model-00001-of-00002.safetensors": safetensors({"a": tensor()}, bytes(24)),
    "model-00002-of-00002.safetensors": safetensors({"b": tensor()}, bytes(24)),
}
MAP = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


def sharded(weight_map: object) -> dict[str, bytes]:
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return {"config.json": CONFIG, **SHARDS, "model.safetensors.index.json": index}


def test_shards(hub: Hub, local: LocalHub, job: Path) -> None:
    plan(hub, local, job, sharded(MAP))
    source.fetch(job, hub)
    assert taken(job) == sharded(MAP)


@pytest.mark.parametrize(
    ("weight_map", "says"),
    [
        ({"a": MAP["a"]}, "exactly the shards"),
        ({**MAP, "c": "../elsewhere.safetensors"}, "exactly the shards"),
        ({"a": MAP["b"], "b": MAP["a"]}, "is in model-00002-of-00002.safetensors, but it is not"),
        ([], "no weight_map"),
        ({"a": 1}, "no weight_map"),
    ],
)
def test_an_index_that_lies(hub: Hub, local: LocalHub, job: Path, weight_map: object, says: str) -> None:
    plan(hub, local, job, sharded(weight_map))
    with pytest.raises(CorruptFile, match=says):
        source.fetch(job, hub)
    assert not (job / "source.json").exists()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"config.json": b"{"}, CorruptFile, "config.json is not JSON"),
        ({"config.json": b"[]"}, CorruptFile, "no JSON object"),
        ({"config.json": b'{"a": 1, "a": 2}'}, CorruptFile, "twice"),
        ({"config.json": b"[" * 100_000}, CorruptFile, "is not JSON"),
        ({"tokenizer.json": b"\xff"}, CorruptFile, "tokenizer.json is not JSON"),
        ({"config.json": b'{"model_type": "x", "auto_map": {"AutoModel": "m.M"}}'}, UnsafeFormat, "its own repo"),
        ({"model.safetensors": GOOD[:-1]}, CorruptFile, "model.safetensors is truncated"),
    ],
)
def test_files_that_are_not_what_they_seem(
    hub: Hub, local: LocalHub, job: Path, change: dict[str, bytes], error: type[Hft2aneError], says: str
) -> None:
    plan(hub, local, job, {**FILES, **change})
    with pytest.raises(error, match=says) as caught:
        source.fetch(job, hub)
    assert "\n" not in str(caught.value)
    assert not (job / "source.json").exists()


def test_pickle_only(hub: Hub, local: LocalHub, job: Path) -> None:
    local.add(MODEL, folder(job.parent / "model", {"config.json": CONFIG, "pytorch_model.bin": b"pickle"}))
    seen = hub.look(MODEL)
    records.write(job / "job.json", Job("create", "new", MODEL, "org/out", seen.commit, seen.files))
    with pytest.raises(UnsafeFormat, match="pytorch_model.bin"):
        source.fetch(job, hub)
    assert not local.calls("resolve")


# ---- safetensors headers


def test_a_good_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    assert source.read_header(path) == {
        "a": source.Stored("F32", (2, 3), 0, 24),
        "b": source.Stored("BF16", (4,), 24, 32),
    }


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = {
        "none": tensor("F32", [0, 3], [0, 0]),
        "one": tensor("I64", [], [0, 8]),
        "half": tensor("F4", [2], [8, 9]),
    }
    path.write_bytes(safetensors(header, bytes(9)))
    assert source.read_header(path).keys() == header.keys()


HUGE = 2**63


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        (GOOD[:20], "truncated: a header"),
        (GOOD[:-1], "truncated: its header promises 32 bytes of data, there are 31"),
        (GOOD + b"x", "bytes too many"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header would be"),
        (struct.pack("<Q", HUGE) + b"{}", "header would be"),
        (safetensors(b"pickle!!"), "is not JSON"),
        (safetensors([1]), "no JSON object"),
        (safetensors(b'{"a": {}, "a": {}}'), "twice"),
        (safetensors({"a": 1}), "not described"),
        (safetensors({"a": {**tensor(), "code": "x"}}, bytes(24)), "not described"),
        (safetensors({"a": tensor("PICKLE")}, bytes(24)), "unknown dtype 'PICKLE'"),
        (safetensors({"a": tensor(["F32"])}, bytes(24)), "unknown dtype"),
        (safetensors({"a": tensor(shape=[2, 4])}, bytes(24)), "is not the 24 bytes"),
        (safetensors({"a": tensor(shape=[-2, -3])}, bytes(24)), "impossible shape"),
        (safetensors({"a": tensor(shape=[2.0, 3])}, bytes(24)), "impossible shape"),
        (safetensors({"a": tensor(shape=[True, 6])}, bytes(24)), "impossible shape"),
        (safetensors({"a": tensor(shape=[HUGE, HUGE])}, bytes(24)), "impossible shape"),
        (safetensors({"a": tensor(shape=[2**62, 4])}, bytes(24)), "is not the 24 bytes"),
        (safetensors({"a": tensor(shape=[1] * 65)}, bytes(4)), "impossible shape"),
        (safetensors({"a": tensor(offsets=[24, 0])}, bytes(24)), "impossible shape"),
        (safetensors({"a": tensor(offsets=[0])}, bytes(24)), "impossible shape"),
        (safetensors({"a": tensor(offsets=[HUGE, HUGE + 24])}, bytes(24)), "impossible shape"),
        (safetensors({"a": tensor(offsets=[8, 32])}, bytes(32)), "begins at byte 8"),
        (safetensors({"a": tensor(), "b": tensor()}, bytes(24)), "begins at byte 0 of the data instead of 24"),
        (safetensors({"a": tensor(), "b": tensor(offsets=[12, 36])}, bytes(36)), "instead of 24"),
        (safetensors({"a": tensor("F4", [3], [0, 1])}, bytes(1)), "is not the 1 bytes"),
    ],
)
def test_headers_that_lie(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=says) as error:
        source.read_header(path)
    assert "x.safetensors" in str(error.value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255), cut=st.integers(0, len(GOOD)))
def test_no_damage_ends_in_another_error(tmp_path: Path, place: int, byte: int, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((GOOD[:place] + bytes([byte]) + GOOD[place + 1 :])[:cut])
    try:
        source.read_header(path)
    except CorruptFile:
        return
    assert cut == len(GOOD)


# ---- from a folder


def test_take(job: Path, tmp_path: Path) -> None:
    original = folder(tmp_path / "mine", {**FILES, ".git/config": b"", ".hidden.json": b"{"})
    got = source.take(job, original, "me/mine")
    assert (got.id, got.commit, got.card) == ("me/mine", "local", CardFields(license="mit"))
    assert records.read(job / "source.json", Source) == got
    assert taken(job).keys() == {"config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE"}
    assert {file.path: file.size for file in got.files} == {name: len(FILES[name]) for name in taken(job)}
    assert all(file.lfs and len(file.oid) == 64 for file in got.files)


def test_take_again_after_a_change(job: Path, tmp_path: Path) -> None:
    source.take(job, folder(tmp_path / "mine", FILES), "me/mine")
    changed = {**FILES, "config.json": b'{"model_type": "roberta"}'}
    source.take(job, folder(tmp_path / "mine", changed), "me/mine")
    assert taken(job)["config.json"] == changed["config.json"]


def test_take_copies_where_it_cannot_link(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", across)
    source.take(job, folder(tmp_path / "mine", FILES), "me/mine")
    assert taken(job)["model.safetensors"] == GOOD


def test_links_inside_are_followed_and_outside_refused(job: Path, tmp_path: Path) -> None:
    mine = folder(tmp_path / "mine", {**FILES, "blobs/1": GOOD})
    (mine / "model.safetensors").unlink()
    (mine / "model.safetensors").symlink_to("blobs/1")
    source.take(job, mine, "me/mine")
    assert taken(job)["model.safetensors"] == GOOD
    assert not (job / "source" / "model.safetensors").is_symlink()
    secret = tmp_path / "secret"
    secret.write_bytes(GOOD)
    (mine / "model.safetensors").unlink()
    (mine / "model.safetensors").symlink_to(secret)
    with pytest.raises(UnsafeFormat, match="outside the folder"):
        source.take(job, mine, "me/mine")


@pytest.mark.parametrize(
    ("files", "error"),
    [
        (None, ModelNotFound),
        ({"config.json": CONFIG, "pytorch_model.bin": b"x"}, UnsafeFormat),
        ({"config.json": CONFIG, "model.safetensors": GOOD[:-3]}, CorruptFile),
    ],
)
def test_folders_that_cannot_be_taken(
    job: Path, tmp_path: Path, files: dict[str, bytes] | None, error: type[Hft2aneError]
) -> None:
    if files is not None:
        folder(tmp_path / "mine", files)
    with pytest.raises(error):
        source.take(job, tmp_path / "mine", "me/mine")
    assert not (job / "source.json").exists()


@pytest.mark.parametrize(
    "readme",
    [
        b"",
        b"# no front matter\n",
        b"---\nlicense: [\n---\n",
        b"---\n- a\n---\n",
        b"---\n2024-99-99\n---\n",
        b"\xff---\n---\n",
    ]
    + [b"---\nlicense: !!python/object/apply:os.getcwd []\n---\n", b"---\n" + b"[" * 50_000 + b"\n---\n"],
)
def test_a_card_that_cannot_be_read_counts_as_none(job: Path, tmp_path: Path, readme: bytes) -> None:
    got = source.take(job, folder(tmp_path / "mine", {**FILES, "README.md": readme}), "me/mine")
    assert got.card == CardFields()
