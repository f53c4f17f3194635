"""What moves each key, and what must not."""

import importlib.metadata
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hft2ane import keys
from hft2ane.errors import ToolchainMismatch
from hft2ane.records.recipe import Recipe
from hft2ane.records.source import CardFields, RemoteFile

ROOT = Path(__file__).parent.parent
VERSIONS = {"torch": "1", "coremltools": "2", "transformers": "3", "numpy": "4"}
FILES = [
    RemoteFile("config.json", 10, "a" * 40, False),
    RemoteFile("model.safetensors", 20, "b" * 64, True),
    RemoteFile("README.md", 30, "c" * 40, False),
    RemoteFile("LICENSE", 40, "d" * 40, False),
]


def convert_key(files: list[RemoteFile] = FILES, recipe: Recipe | None = None, **more: str) -> str:
    family = more.get("family", "bert")
    versions = {**VERSIONS, **({"torch": more["torch"]} if "torch" in more else {})}
    return keys.convert_key(files, recipe or Recipe(), family, code=more.get("code", "code"), versions=versions)


def pins() -> dict[str, str]:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["convert"]
    return dict(line.split("==") for line in lines if "==" in line)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, requires: list[str]) -> None:
    """As if hft2ane were installed with these requirements."""
    info = folder / "hft2ane-0.1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: hft2ane", "Version: 0.1.0", *(f"Requires-Dist: {r}" for r in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder))


def test_toolchain_is_what_pyproject_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["convert"]
    # Pins of another extra, or for no extra, are not those that shape packages.
    noise = ['torch==9.9; extra == "dev"', "numpy==9.9", 'coremltools==9.9 ; extra == "converting"']
    install(tmp_path, monkeypatch, [*noise, *(f'{line}; extra == "convert"' for line in convert)])
    assert keys.toolchain() == {tool: pins()[tool] for tool in ("coremltools", "numpy", "torch", "transformers")}


def test_toolchain_with_a_pin_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, ['torch>=2.13; extra == "convert"', 'numpy==2.4.*; extra == "convert"'])
    with pytest.raises(ToolchainMismatch, match="no version of coremltools, numpy, torch, transformers"):
        keys.toolchain()


def test_toolchain_when_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    with pytest.raises(ToolchainMismatch, match="not installed"):
        keys.toolchain()


def test_keys_are_sha256_in_hex() -> None:
    card = keys.card_key(CardFields(), [], "v", "p")
    for key in (convert_key(), keys.verify_key({}, "p", "b"), card, keys.code_digest("bert")):
        assert len(key) == 64
        assert set(key) <= set("0123456789abcdef")


def test_the_convert_key_is_stable() -> None:
    """Another value here means that every published model is converted again: do that on purpose only."""
    assert convert_key() == "9d70a0b5ade962e01ddb90b2dc287f3b90576ed9dec8b928cbcb79492aacf4dc"


@settings(deadline=None)
@given(st.permutations(FILES))
def test_the_order_of_files_does_not_matter(files: list[RemoteFile]) -> None:
    assert convert_key(files) == convert_key()


@pytest.mark.parametrize("index", [2, 3])
def test_readme_and_licence_are_not_in_the_convert_key(index: int) -> None:
    edited = [replace(file, oid="e" * 40) if i == index else file for i, file in enumerate(FILES)]
    assert convert_key(edited) == convert_key()
    assert convert_key(FILES[:index]) == convert_key()


def test_each_thing_that_shapes_a_package_is_in_the_convert_key() -> None:
    renamed = [replace(FILES[0], path="tokenizer.json"), *FILES[1:]]
    edited = [replace(FILES[0], oid="e" * 40), *FILES[1:]]
    others = {
        convert_key(renamed),
        convert_key(edited),
        convert_key(FILES[1:]),
        convert_key(recipe=Recipe(task="fill-mask")),
        convert_key(recipe=Recipe(lengths=(64,))),
        convert_key(family="roberta"),
        convert_key(code="other"),
        convert_key(torch="1.1"),
    }
    assert len(others | {convert_key()}) == 9


def test_present_code_and_versions_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, [f'{tool}=={version}; extra == "convert"' for tool, version in VERSIONS.items()])
    code = keys.code_digest("bert")
    assert keys.convert_key(FILES, Recipe(), "bert") == convert_key(code=code)


def test_verify_key() -> None:
    key = keys.verify_key({"float16": "a"}, "p", "b")
    assert key == keys.verify_key({"float16": "a"}, "p", "b")
    others = {
        keys.verify_key({"float16": "x"}, "p", "b"),
        keys.verify_key({"other": "a"}, "p", "b"),
        keys.verify_key({"float16": "a"}, "x", "b"),
        keys.verify_key({"float16": "a"}, "p", "x"),
    }
    assert len(others | {key}) == 5


def test_card_key() -> None:
    legal = FILES[3:]
    key = keys.card_key(CardFields("mit"), legal, "v", "p")
    others = {
        keys.card_key(CardFields("apache-2.0"), legal, "v", "p"),
        keys.card_key(CardFields("mit", language=("en",)), legal, "v", "p"),
        keys.card_key(CardFields("mit"), [], "v", "p"),
        keys.card_key(CardFields("mit"), legal, "x", "p"),
        keys.card_key(CardFields("mit"), legal, "v", "x"),
    }
    assert len(others | {key}) == 6


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's source, which keys then reads."""
    copy = tmp_path / "hft2ane"
    shutil.copytree(keys.CODE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(keys, "CODE", copy)
    return copy


def test_the_place_of_the_code_does_not_matter(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, presented = keys.code_digest("bert"), keys.presentation_digest()
    monkeypatch.undo()
    assert (here, presented) == (keys.code_digest("bert"), keys.presentation_digest())


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("ane/new.py", True),
        ("families/__init__.py", True),
        ("families/bert.py", True),
        ("families/_heads.py", True),
        ("families/xlm_roberta.py", False),
        ("export.py", True),
        ("package.py", True),
        ("lower.py", True),
        ("mil/write.py", True),
        ("mil/signatures.py", True),
        ("mil/evaluate.py", False),
        ("rewrite.py", True),
        ("sentence.py", True),
        ("reference.py", True),
        ("plan.py", False),
        ("card/release.py", False),
        ("verify.py", False),
        ("ane/notes.txt", False),
    ],
)
def test_code_digest_moves_with_what_shapes_the_graph(code: Path, name: str, moves: bool) -> None:
    before = keys.code_digest("bert")
    with (code / name).open("a") as file:
        file.write("# changed\n")
    assert (keys.code_digest("bert") != before) == moves


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("card/readme.py", True),
        ("card/templates/swift.j2", True),
        ("runtime/settings.py", True),
        ("runtime/texts.py", False),
        ("verify.py", False),
    ],
)
def test_presentation_digest_moves_with_what_makes_the_card(code: Path, name: str, moves: bool) -> None:
    before = keys.presentation_digest()
    with (code / name).open("a") as file:
        file.write("# changed\n")
    assert (keys.presentation_digest() != before) == moves


def test_the_card_takes_nothing_else_of_the_runtime() -> None:
    taken = {
        found
        for path in (keys.CODE / "card").glob("*.py")
        for found in re.findall(r"hft2ane\.runtime[\w.]*", path.read_text())
    }
    assert taken == {"hft2ane.runtime.settings"}


@pytest.mark.parametrize("line", ["from hft2ane.families.base import x", "from hft2ane.families import SIZE, base"])
def test_code_digest_follows_a_family_to_what_it_is_made_on(code: Path, line: str) -> None:
    (code / "families" / "base.py").write_text("x = 1\n")
    (code / "families" / "made_on.py").write_text(f"{line}\n")
    before = keys.code_digest("made-on")
    (code / "families" / "base.py").write_text("x = 2\n")
    assert keys.code_digest("made-on") != before


def test_code_digest_finds_a_family_with_a_dash(code: Path) -> None:
    before = keys.code_digest("xlm-roberta")
    (code / "families" / "xlm_roberta.py").write_text("x = 1\n")
    assert keys.code_digest("xlm-roberta") != before


def test_line_ends_do_not_count(code: Path) -> None:
    before = keys.code_digest("bert")
    path = code / "families" / "bert.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert keys.code_digest("bert") == before


def test_presentation_moves_with_card_and_templates(code: Path) -> None:
    seen = {keys.presentation_digest()}
    names = ("card/readme.py", "card/new.py", "card/templates/card.md.j2", "card/templates/new.md")
    for name in names:
        with (code / name).open("a") as file:
            file.write("changed\n")
        seen.add(keys.presentation_digest())
    with (code / "export.py").open("a") as file:
        file.write("# changed\n")
    seen.add(keys.presentation_digest())
    assert len(seen) == 5
