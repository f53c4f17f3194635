"""A published release, made again from what its own record says."""

import hashlib
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hft2ane import cli, export, keys, layout, provenance, records, source
from hft2ane.errors import BadInput, ModelNotFound
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.rebuild import rebuild
from hft2ane.records.job import Job
from hft2ane.records.package import Exported
from hft2ane.records.recipe import Recipe
from hft2ane.records.release import Conversion
from hft2ane.records.source import Source
from hft2ane.survey import begin
from tests.conftest import Checkpoint

REPO = "org/tiny-ane"


@pytest.fixture
def published(hub: LocalHub, checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., Conversion]:
    """Fetched, exported, and its record on the Hub; `change` lies about how."""

    def publish(**change: Any) -> Conversion:
        folder, client = tmp_path / "job", Hub(hub.url, hub.token)
        commit = hub.add("up/tiny", checkpoint())
        files = layout.select(client.look("up/tiny").files)
        recipe = Recipe(lengths=(8, 16), variants=("float16", "int8"))
        begin(folder, Job("create", "new", "up/tiny", REPO, commit, files, recipe))
        source.fetch(folder, client)
        made = export.export(folder)
        record = conversion(records.read(folder / "source.json", Source), recipe, made)
        changed = replace(record, **{name: value(record) for name, value in change.items()})
        records.write(tmp_path / "release" / "conversion.json", changed)
        hub.add(REPO, tmp_path / "release")
        return changed

    return publish


def conversion(origin: Source, recipe: Recipe, made: Exported) -> Conversion:
    return Conversion(
        source=origin,
        recipe=recipe,
        family=made.family,
        task=made.task,
        original=made.original,
        license="mit",
        packages=made.packages,
        labels=made.labels,
        problem=made.problem,
        convert_key=made.convert_key,
        verify_key="v",
        card_key="k",
        protocol="p",
        psnr={},
        toolchain=made.toolchain,
        hft2ane="0.1.0",
        made=made.made,
    )


def test_the_same_bytes(
    hub: LocalHub, published: Callable[..., Conversion], checkpoint: Checkpoint, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    record = published()
    hub.add("up/tiny", checkpoint(seed=1))  # the original has moved on: its commit is what counts
    again = rebuild(tmp_path / "again", REPO, "main", Hub(hub.url, hub.token))
    assert again.packages == tuple((each.file, each.digest, each.digest) for each in record.packages)
    assert len(again.packages) == 2
    assert (again.same, again.differences) == (True, ())
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert cli.main(["rebuild", f"{REPO}@main", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("the same bytes") == 2


def other_digest(record: Conversion) -> Any:
    return tuple(replace(each, digest="0" * 64) for each in record.packages)


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        ({}, []),
        ({"toolchain": lambda r: {**r.toolchain, "torch": "2.0.0"}}, ["toolchain: torch 2.0.0 then, .* now", "code: "]),
        ({"convert_key": lambda r: "0" * 64}, ["code: that which shapes the packages is another"]),
        ({"made": lambda r: replace(r.made, system="macOS 26.1")}, [f"system: macOS 26.1 then, {platform.system()}"]),
        ({"made": lambda r: replace(r.made, tools={"safetensors": "0"})}, ["tools: safetensors 0 then, .* now"]),
        ({"made": lambda r: replace(r.made, lock="0")}, ["lock: 0 then, [0-9a-f]{64} now"]),
    ],
)  # fmt: skip
def test_other_bytes(
    hub: LocalHub,
    published: Callable[..., Conversion],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    differences: list[str],
) -> None:
    published(packages=other_digest, **change)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["rebuild", REPO, "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().out
    assert f"not the same: published {'0' * 64}, now " in told
    if not differences:
        assert "only the bytes differ" in told
    for line in differences:
        assert re.search(line, told), told


def test_what_cannot_be_made_again(hub: LocalHub, published: Callable[..., Conversion], tmp_path: Path) -> None:
    client = Hub(hub.url, hub.token)
    with pytest.raises(ModelNotFound, match="there is no org/tiny-ane"):
        rebuild(tmp_path / "out", REPO, "main", client)
    published(source=lambda record: replace(record.source, commit="local"))
    with pytest.raises(BadInput, match="folder of somebody's machine"):
        rebuild(tmp_path / "out", REPO, "main", client)
    (tmp_path / "release" / "conversion.json").write_text('{"schema": 2}')
    hub.add(REPO, tmp_path / "release")
    with pytest.raises(BadInput, match=r"conversion.json of org/tiny-ane@main is not a Conversion record"):
        rebuild(tmp_path / "out", REPO, "main", client)


# ---- provenance


def test_a_checkout_is_known_by_its_commit() -> None:
    made = provenance.made()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=provenance.ROOT, capture_output=True, text=True, check=True
    )
    assert made.commit == commit.stdout.strip()
    assert made.lock == hashlib.sha256((provenance.ROOT / "constraints.txt").read_bytes()).hexdigest()
    assert made.tools.keys() >= {*keys.TOOLS, "safetensors"}


@pytest.mark.parametrize("inside", [True, False])
def test_what_is_installed_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    """Not even in somebody else's checkout, or without git."""
    if inside:
        subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    else:
        monkeypatch.setenv("PATH", "")
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "site-packages")
    made = provenance.made()
    assert (made.commit, made.changed, made.lock) == (None, False, None)
