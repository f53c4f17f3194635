"""The command line as people use it: each way to go wrong ends in one line and the right exit code."""

import errno
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hft2ane.cli import main, parser
from hft2ane.demo import PICKLED, obtain
from hft2ane.localhub import LocalHub
from tests.conftest import Checkpoint


class Said(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, against the Hub on this machine, with no waiting between tries."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("hft2ane.hub.Hub.waits", (0.0, 0.0))

    def call(*arguments: object) -> Said:
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        return Said(code, *capfd.readouterr())

    return call


def refused(said: Said, code: int, *words: str) -> None:
    """One line on standard error, with these words."""
    lines = [line for line in said.err.splitlines() if "hft2ane:" in line]
    assert said.code == code, said
    assert len(lines) == 1, said.err
    assert "Traceback" not in said.err
    for word in words:
        assert word in lines[0]


def manifest(folder: Path, *entries: str) -> Path:
    path = folder / "models.yaml"
    text = "defaults:\n  publish: {organization: ane}\n  lengths: [16]\nmodels:\n"
    path.write_text(text + "".join(f"  - {entry}\n" for entry in entries))
    return path


# ---- converting one model


def test_convert_a_local_folder(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    said = run(
        "convert", checkpoint("BertForSequenceClassification", num_labels=3), "--out", tmp_path / "x", "--lengths", "16"
    )
    assert said.code == 0, said.err
    release = tmp_path / "x/release"
    assert {p.name for p in release.iterdir()} >= {
        "README.md",
        "SHA256SUMS",
        "conversion.json",
        "config.json",
        "vocab.txt",
    }
    assert str(release) in said.out
    assert f"try it     hft2ane try {release} TEXT" in said.out
    assert "not measured here: Core ML on a Mac" in said.out.replace("\n", " ")
    shown = run("inspect", next(release.glob("*.mlpackage")), "--json")
    assert json.loads(shown.out)["functions"][0]["outputs"][0]["shape"] == [1, 3]
    again = run("inspect", next(release.glob("*.mlpackage")))
    assert "logits" in again.out
    assert "conv" in again.out


def test_convert_from_the_hub_at_a_revision(checkpoint: Checkpoint, hub: LocalHub, run: Run, tmp_path: Path) -> None:
    first = hub.add("me/tiny", checkpoint(seed=1))
    hub.add("me/tiny", checkpoint(seed=2))
    said = run("convert", "me/tiny", "--revision", first, "--out", tmp_path / "x", "--lengths", "16")
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "x/source.json").read_text())["commit"] == first


def test_the_steps_one_by_one(checkpoint: Checkpoint, hub: LocalHub, run: Run, tmp_path: Path) -> None:
    hub.add("me/tiny", checkpoint())
    path = manifest(tmp_path, "me/tiny")
    assert run("plan", "--manifests", path, "--jobs", tmp_path / "jobs").code == 0
    folder = tmp_path / "jobs/ane--tiny-ane"
    refused(run("export", folder), 2, "source.json is missing")
    for step in ("fetch", "export", "verify", "card"):
        said = run(step, folder)
        assert said.code == 0, said.err
    refused(run("publish", folder), 1, "ane/tiny-ane")  # no token
    assert "ane/tiny-ane" not in str(hub.calls("commit"))


def test_a_local_model_without_a_licence_converts_and_says_so(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    said = run("convert", checkpoint(license=None), "--out", tmp_path / "x", "--lengths", "16")
    assert said.code == 0, said.err
    assert "names no licence" in (tmp_path / "x/release/README.md").read_text()
    said = run("convert", checkpoint(license=None), "--out", tmp_path / "y", "--lengths", "16", "--license", "mit")
    assert "`mit`" in (tmp_path / "y/release/README.md").read_text()


# ---- bad input


def test_unknown_model(run: Run, tmp_path: Path) -> None:
    refused(run("convert", "nobody/nothing", "--out", tmp_path / "x"), 1, "nobody/nothing")
    assert not (tmp_path / "x").exists()


def test_unknown_revision(checkpoint: Checkpoint, hub: LocalHub, run: Run, tmp_path: Path) -> None:
    hub.add("me/tiny", checkpoint())
    refused(run("convert", "me/tiny", "--revision", "v9", "--out", tmp_path / "x"), 1, "me/tiny", "v9")


def test_a_name_that_is_neither(run: Run, tmp_path: Path) -> None:
    refused(run("convert", "../no/such", "--out", tmp_path / "x"), 1, "../no/such")
    refused(run("convert", "./no-such-folder", "--out", tmp_path / "x"), 1, "no-such-folder")


def test_unknown_family(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    refused(run("convert", folder, "--out", tmp_path / "x"), 1, "gpt2", "hft2ane/families/gpt2.py")


def test_remote_code(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling_x.X"}}))
    refused(run("convert", folder, "--out", tmp_path / "x"), 1, "auto_map")


def test_missing_head(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    refused(
        run("convert", checkpoint(), "--task", "fill-mask", "--out", tmp_path / "x"), 1, "cls.predictions", "random"
    )
    assert not list((tmp_path / "x").glob("*.mlpackage"))


def test_lengths_beyond_the_model(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    refused(run("convert", checkpoint(), "--lengths", "16,128", "--out", tmp_path / "x"), 1, "128", "64 positions")


@pytest.mark.parametrize("variants", ["", "int4", "float16,", "float16;int8"])
def test_variants_that_are_none(variants: str, run: Run, tmp_path: Path) -> None:
    said = run("convert", "a/b", f"--variants={variants}", "--out", tmp_path / "x")
    assert said.code == 2
    assert "is none of float16, int8, palettized-8, palettized-6, palettized-4" in said.err


@pytest.mark.parametrize("lengths", ["", "x", "0", "16,,32", "-1"])
def test_lengths_that_are_none(lengths: str, run: Run, tmp_path: Path) -> None:
    said = run("convert", "a/b", f"--lengths={lengths}", "--out", tmp_path / "x")
    assert said.code == 2
    assert "is not a list of token lengths" in said.err


def test_truncated_weights(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    folder = checkpoint()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(run("convert", folder, "--out", tmp_path / "x"), 1, "model.safetensors")


@pytest.mark.weights
def test_pickle_only_repo(hub: LocalHub, run: Run, tmp_path: Path) -> None:
    hub.add(PICKLED.id, obtain(PICKLED))
    refused(run("convert", PICKLED.id, "--out", tmp_path / "x"), 1, "pytorch_model.bin", "safetensors")
    assert not hub.calls("pytorch_model.bin")


def test_a_folder_that_holds_something_else(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.txt").write_text("mine")
    refused(run("convert", checkpoint(), "--out", tmp_path / "x"), 2, "--out")
    assert (tmp_path / "x/thesis.txt").read_text() == "mine"


def test_no_disk_space(
    checkpoint: Checkpoint, hub: LocalHub, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/tiny", checkpoint())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    refused(run("convert", "me/tiny", "--out", tmp_path / "x"), 75, "GB")
    assert not hub.calls("model.safetensors")


def test_hub_down(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(run("convert", "me/tiny", "--out", tmp_path / "x"), 75, "127.0.0.1:9")


def test_not_a_package(run: Run, tmp_path: Path) -> None:
    refused(run("inspect", tmp_path), 1, str(tmp_path))
    refused(run("inspect", tmp_path / "none.mlpackage"), 1, "none.mlpackage")


def test_debug_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    assert "Traceback" in run("inspect", tmp_path, "--debug").err
    assert "Traceback" in run("--debug", "inspect", tmp_path).err


# ---- the plan


def test_plan_says_what_and_why(checkpoint: Checkpoint, hub: LocalHub, run: Run, tmp_path: Path) -> None:
    hub.add("me/tiny", checkpoint())
    hub.add("me/unlicensed", checkpoint(license=None))
    path = manifest(
        tmp_path, "me/tiny", "me/unlicensed", "nobody/nothing", "{id: me/old, status: paused, reason: broken}"
    )
    said = run("plan", "--manifests", path, "--json")
    lines = {job["id"]: job for job in json.loads(said.out)}
    assert said.code == 0
    assert {id: job["action"] for id, job in lines.items()} == {
        "me/tiny": "create",
        "me/unlicensed": "blocked",
        "nobody/nothing": "blocked",
        "me/old": "blocked",
    }
    assert "broken" in lines["me/old"]["why"]
    assert "licen" in lines["me/unlicensed"]["why"]
    table = run("plan", "--manifests", path).out
    assert "me/tiny" in table
    assert "create" in table


def test_plan_says_how_much_work(checkpoint: Checkpoint, hub: LocalHub, run: Run, tmp_path: Path) -> None:
    hub.add("me/tiny", checkpoint())
    path = manifest(tmp_path, "me/tiny")
    (job,) = json.loads(run("plan", "--manifests", path, "--json").out)
    size = next(file["size"] for file in job["files"] if file["path"] == "model.safetensors")
    assert job["cause"] == "request"
    assert job["work"] == round(2 * size / 4 * 16 * 30 * 3 / 1e12, 3)
    assert "TFLOP" in run("plan", "--manifests", path).out


def test_plan_with_a_manifest_full_of_mistakes(run: Run, tmp_path: Path) -> None:
    path = manifest(tmp_path, "me/tiny", "{id: me/x, taks: fill-mask}", "me/TINY")
    said = run("plan", "--manifests", path)
    assert said.code == 2
    assert f"{path}:6" in said.err
    assert "taks" in said.err
    assert f"{path}:7" in said.err


def test_plan_only_what_is_asked(checkpoint: Checkpoint, hub: LocalHub, run: Run, tmp_path: Path) -> None:
    hub.add("me/tiny", checkpoint())
    path = manifest(tmp_path, "me/tiny", "nobody/nothing")
    said = run("plan", "--manifests", path, "--only", "me/tiny", "--json")
    assert [job["id"] for job in json.loads(said.out)] == ["me/tiny"]
    refused(run("plan", "--manifests", path, "--only", "me/typo"), 2, "me/typo")


def test_rollback_and_retire_of_what_is_not_there(hub: LocalHub, run: Run, tmp_path: Path) -> None:
    refused(run("rollback", "ane/none", "v1"), 1, "no such repo")
    hub.add("ane/other", tmp_path)
    refused(run("rollback", "ane/other", "v1"), 2, "ane/other has no version v1; there are none")
    refused(run("retire", "ane/other", "--reason", "old"), 2, "ane/other has no conversion.json")
    assert run("retire", "ane/other", "--reason", " . ").code == 2


def test_audit_of_what_is_not_published(hub: LocalHub, run: Run, tmp_path: Path) -> None:
    said = run("audit", "--manifests", manifest(tmp_path, "me/tiny"), "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)[0]["notes"] == ["nothing is published"]
    assert "nothing is published" in run("audit", "--manifests", manifest(tmp_path, "me/tiny"), "--digests").out


def test_plan_with_the_hub_down(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    refused(run("plan", "--manifests", manifest(tmp_path, "me/tiny"), "--json"), 75, "127.0.0.1:9")


def test_a_file_in_the_place_of_a_folder(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    refused(run("convert", checkpoint(), "--out", tmp_path / "x"), 2, "--out")
    refused(run("fetch", tmp_path / "x"), 2, "job.json")


def test_a_full_disk(checkpoint: Checkpoint, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refused(run("convert", checkpoint(), "--out", tmp_path / "x"), 75, "full")
    assert not [path for path in (tmp_path / "x").rglob("*") if path.suffix == ".tmp"]


def test_the_demo_empties_no_folder_but_its_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    refused(run("demo", "--out", tmp_path), 2, "--out")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_help_has_an_example() -> None:
    done = subprocess.run([sys.executable, "-m", "hft2ane.cli", "--help"], capture_output=True, text=True, check=True)
    assert "hft2ane convert sentence-transformers/all-MiniLM-L6-v2" in done.stdout


def test_help_lists_each_command_once_below_a_title() -> None:
    """In lines that fit a terminal; so do the commands of a command."""
    (choices,) = (a.choices for a in parser()._actions if isinstance(a.choices, dict))
    text = parser().format_help()
    listed = re.findall(r"^  ([a-z-]+) {2,}\S", text.split("examples:")[0], re.MULTILINE)
    assert [name for name in listed if name in choices] == list(choices)
    assert len(re.findall(r"^[a-z].*:$", text, re.MULTILINE)) >= 8
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^  doctor {2,}\S", choices["worker"].format_help(), re.MULTILINE)


LIGHT_PLAN = """
import sys
sys.modules.update(dict.fromkeys(("torch", "coremltools", "transformers", "numpy", "matplotlib", "prefect")))
from hft2ane.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_what_is_not_installed_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hft2ane.cli.find_spec", lambda name: None)
    refused(run("convert", "me/tiny", "--out", tmp_path / "x"), 2, "pip install 'hft2ane[convert]'")
    refused(run("run"), 2, "pip install 'hft2ane[convert,flows]'")


def test_plan_and_publish_need_no_torch(checkpoint: Checkpoint, hub: LocalHub, tmp_path: Path, run: Run) -> None:
    """On a machine where the heavy half is not installed."""
    hub.add("me/tiny", checkpoint())
    path = manifest(tmp_path, "me/tiny")
    for command in (
        ["plan", "--manifests", path, "--jobs", tmp_path / "jobs"],
        ["fetch", tmp_path / "jobs/ane--tiny-ane"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", LIGHT_PLAN, *map(str, command)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "jobs/ane--tiny-ane"
    assert run("build", folder).code == 0
    environment: dict[str, Any] = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT_PLAN, "publish", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ane/tiny-ane@v1 published" in done.stdout
    with urllib.request.urlopen(f"{hub.url}/ane/tiny-ane/resolve/v1/README.md") as card:
        assert b"base_model: me/tiny" in card.read()
