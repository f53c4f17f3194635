"""What a stranger may put into a repo or onto the command line: refused in one line, before memory or disk is spent."""

import io
import json
import pickle
import resource
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hft2ane import cli, layout, package, records, source
from hft2ane.blobs import digest
from hft2ane.errors import CorruptFile, Hft2aneError, PackageError, UnsafeFormat
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.mil import open_package
from hft2ane.records.job import Job
from hft2ane.records.recipe import Recipe
from hft2ane.records.source import RemoteFile
from hft2ane.survey import begin
from tests.conftest import Checkpoint

ROOM = 3 << 30  # bytes: loading libraries maps some, but no terabytes


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What is allocated beyond ROOM from now on is an error, of Python's, torch's or the system's. macOS holds nobody
    to such a limit."""
    if sys.platform == "darwin":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The command's one line of error."""
    started = time.monotonic()
    code = cli.main(list(arguments))
    told = capsys.readouterr().err.strip().splitlines()[-1:]
    assert code in (1, 2), (code, told)
    assert told[0].startswith("hft2ane: ")
    assert time.monotonic() - started < 30
    return told[0]


# ---- names

NAMES = [
    "../../etc/passwd",
    "org/../x",
    "..",
    "org/..",
    "a/b/c",
    "/etc/passwd",
    "org/x\n",
    "org/x?y=1",
    "org/%2e%2e",
    "-rf",
]


def answer(call: Callable[[str], Any], name: str) -> Any:
    """What the call gives, or how many lines its error has."""
    try:
        return call(name)
    except Hft2aneError as error:
        return len(str(error).splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere(hub: LocalHub, tmp_path: Path, name: str) -> None:
    client = Hub(hub.url, hub.token)
    for call in (client.look, client.repo, client.create, client.conversion):
        assert answer(call, name) in (None, 1)
    assert not [path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "hub")]
    for call in hub.log:
        assert ".." not in call.path
        assert call.path.count("?") <= 1


# ---- files


def bomb() -> bytes:
    """Runs code when it is unpickled."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.write_text, (Path("/nowhere/hft2ane-was-here"), "x"))

    return pickle.dumps(Bomb())


def torch_zip() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, file)
    return file.getvalue()


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", bomb())
    return file.getvalue()


@pytest.mark.parametrize("content", [bomb(), torch_zip(), zip_file(), b"\x93NUMPY\x01\x00", b"\x89HDF\r\n\x1a\n"])
def test_other_formats_by_the_name_of_safetensors(checkpoint: Checkpoint, tmp_path: Path, content: bytes) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").write_bytes(content)
    begin(tmp_path / "job", Job("create", "new", "me/x", "org/x"))
    with pytest.raises(CorruptFile, match="safetensors"):
        source.take(tmp_path / "job", folder, "me/x")
    assert not (tmp_path / "job" / "source.json").exists()


def test_links_in_a_snapshot(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As in the Hub client's cache, where files are links, but these lead out of it."""
    secret = tmp_path / "id_rsa"
    secret.write_text("{}")
    for name in ("tokenizer_config.json", "LICENSE"):
        folder = checkpoint()
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        begin(tmp_path / "job", Job("create", "new", "me/x", "org/x"))
        with pytest.raises(UnsafeFormat, match="a link to a file outside the folder"):
            source.take(tmp_path / "job", folder, "me/x")


@pytest.mark.parametrize("link", ["model.safetensors", ".model.safetensors.part"])
def test_a_link_in_the_jobs_folder_is_not_written_through(
    hub: LocalHub, checkpoint: Checkpoint, tmp_path: Path, link: str
) -> None:
    """What the Hub sends lands in the folder or nowhere."""
    commit, client = hub.add("up/tiny", checkpoint()), Hub(hub.url, hub.token)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    begin(tmp_path / "job", Job("create", "new", "up/tiny", "o/x", commit, layout.select(client.look("up/tiny").files)))
    (tmp_path / "job" / "source").mkdir()
    (tmp_path / "job" / "source" / link).symlink_to(victim)
    with pytest.raises(CorruptFile, match="by a symbolic link"):
        source.fetch(tmp_path / "job", client)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("path", ["tokenizer.json", "vocab.txt", "LICENSE", "README.md", "config.json", "spiece.model"])
def test_small_files_that_are_not(hub: LocalHub, checkpoint: Checkpoint, path: str, tmp_path: Path) -> None:
    """Nothing is read, let alone loaded: by what the Hub lists, and on this disk by its size."""
    hub.add("up/tiny", checkpoint())
    listed = Hub(hub.url, hub.token).look("up/tiny").files
    huge = [file for file in listed if file.path != path] + [RemoteFile(path, 3_000_000_000, "0" * 40, False)]
    with pytest.raises(CorruptFile, match=f"{path} has 3000 MB"):
        layout.select(huge)
    folder = checkpoint()
    with (folder / path).open("wb") as sparse:
        sparse.truncate(3_000_000_000)
    begin(tmp_path / "job", Job("create", "new", "me/x", "org/x"))
    with pytest.raises(CorruptFile, match=f"{path} has 3000 MB"):
        source.take(tmp_path / "job", folder, "me/x")


# ---- configurations

ABSURD = [
    *({key: 10**12} for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_labels")),
    *({key: 10**12} for key in ("max_position_embeddings", "type_vocab_size")),
    {"num_hidden_layers": 10**6},
    {"num_hidden_layers": 10**12},
    {"hidden_size": 2**63},
    {"vocab_size": 10**4000},
    # Each by itself might be.
    {"vocab_size": 4_000_000, "hidden_size": 4_000_000, "num_attention_heads": 4},
    {"hidden_size": 1_000_000, "num_attention_heads": 4, "num_hidden_layers": 200},
    {"intermediate_size": 4_000_000, "hidden_size": 1_000_000, "num_attention_heads": 4},
    {"num_labels": 100_000, "hidden_size": 1_000_000},
    {"max_position_embeddings": 4_000_000, "hidden_size": 1_000_000, "num_attention_heads": 4},
]


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("how", ["convert", "build"])
@pytest.mark.parametrize("change", ABSURD, ids=lambda change: ",".join(f"{k}={str(v)[:9]}" for k, v in change.items()))
def test_sizes_that_would_fill_the_memory(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, int], how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    original = "BertForSequenceClassification" if "num_labels" in change else "BertModel"
    folder = checkpoint(original)
    config = json.loads((folder / "config.json").read_text()) | change
    if how == "convert":
        (folder / "config.json").write_text(json.dumps(config))
        told = refused(capsys, "convert", str(folder), "--out", str(tmp_path / "out"))
    else:  # a job's folder that was fetched by somebody else
        job = tmp_path / "job"
        begin(job, Job("create", "new", "me/x", "org/x", recipe=Recipe(lengths=(8,))))
        taken = source.take(job, folder, "me/x")
        (job / "source" / "config.json").unlink()
        (job / "source" / "config.json").write_text(json.dumps(config))
        files = [replace(f, oid=digest(job / "source" / f.path, lfs=True)) for f in taken.files]
        records.write(job / "source.json", replace(taken, files=tuple(files)))
        told = refused(capsys, "build", str(job))
    assert len(told) < 600
    assert not list(tmp_path.rglob("*.mlpackage"))


# ---- packages


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@settings(max_examples=150, deadline=None)
@given(
    manifest=st.one_of(st.binary(max_size=200), st.just(package.manifest().encode())),
    model=st.binary(max_size=300),
    weights=st.binary(max_size=300),
)  # fmt: skip
def test_any_bytes_are_a_package_or_one_error(scratch: Path, manifest: bytes, model: bytes, weights: bytes) -> None:
    for path, content in (("Manifest.json", manifest), (package.SPEC, model), (package.WEIGHTS, weights)):
        (scratch / path).parent.mkdir(parents=True, exist_ok=True)
        (scratch / path).write_bytes(content)
    with pytest.raises(PackageError) as error:
        open_package(scratch)
    assert len(str(error.value).splitlines()) == 1
