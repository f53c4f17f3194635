"""What manifests mean, and what each mistake in one is answered with: all of them at once, by file and line."""

import importlib
import json
import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hft2ane.errors import BadInput, ManifestError
from hft2ane.licenses import REDISTRIBUTABLE
from hft2ane.manifest import schema
from hft2ane.manifest.read import read_manifests
from hft2ane.records.recipe import Gates, Recipe, Task, Wanted

ROOT = Path(__file__).parent.parent
HEAD = "defaults: {publish: {organization: org}}\nmodels:\n"  # two lines: entries begin at the third


def wanted(folder: Path, text: str | bytes, organization: str | None = None) -> list[Wanted]:
    path = folder / "m.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_manifests([path], organization)


def problems(folder: Path, text: str | bytes) -> list[tuple[int, str]]:
    """(line, text) of each problem."""
    with pytest.raises(ManifestError) as caught:
        wanted(folder, text)
    found = []
    for place, words in caught.value.problems:
        name, _, line = place.rpartition(":")
        assert name == (folder / "m.yaml").as_posix()
        assert "\n" not in words
        found.append((int(line), words))
    assert found == sorted(found)
    return found


def test_one_line_is_enough(tmp_path: Path) -> None:
    assert wanted(tmp_path, HEAD + "- sentence-transformers/all-MiniLM-L6-v2\n") == [
        Wanted(
            "sentence-transformers/all-MiniLM-L6-v2",
            "org/all-MiniLM-L6-v2-ane",
            f"{(tmp_path / 'm.yaml').as_posix()}:3",
        )
    ]


def test_every_key(tmp_path: Path) -> None:
    text = """
    schema: 1
    models:
    - id: a/b
      revision: "1234567"
      task: fill-mask
      lengths: [256, 64]
      variants: [float16, palettized-6]
      gates: {rewrite: 100, float16: 60.5, bits8: 40, bits6: 35.5, bits4: 28, fall: 4.5}
      license: apache-2.0
      publish: {organization: there, name: mine}
      target: coreml
      status: paused
      reason: >
        waits for
        the author
    """
    assert wanted(tmp_path, text) == [
        Wanted(
            id="a/b",
            repo="there/mine",
            where=f"{(tmp_path / 'm.yaml').as_posix()}:4",
            revision="1234567",
            recipe=Recipe(task="fill-mask", lengths=(64, 256), variants=("float16", "palettized-6"), target="coreml"),
            gates=Gates(100.0, 60.5, 40.0, 35.5, 28.0, 4.5),
            license="apache-2.0",
            paused="waits for the author",
        )
    ]


def test_defaults_hold_where_an_entry_does_not_say_otherwise(tmp_path: Path) -> None:
    text = """
    defaults:
      task: fill-mask
      lengths: [32]
      gates: {rewrite: 100}
      publish: {organization: org, name: "x-{name}"}
    models:
    - a/b
    - {id: a/c, task: sentence-embedding, lengths: [8], gates: {float16: 60}, publish: {name: own}, status: active}
    """
    first, second = wanted(tmp_path, text)
    assert (first.repo, second.repo) == ("org/x-b", "org/own")
    assert (first.recipe.task, second.recipe.task) == ("fill-mask", "sentence-embedding")
    assert (first.recipe.lengths, second.recipe.lengths) == ((32,), (8,))
    assert (first.gates, second.gates) == (Gates(100, 50), Gates(100, 60))
    assert (first.revision, first.license, second.paused) == ("main", None, None)


def test_another_organisation_takes_the_place_of_all(tmp_path: Path) -> None:
    text = HEAD + "- a/b\n- {id: a/c, publish: {organization: prod}}\n"
    assert [one.repo for one in wanted(tmp_path, text, "rehearsal")] == ["rehearsal/b-ane", "rehearsal/c-ane"]
    assert wanted(tmp_path, "models: [a/b]", "rehearsal")[0].repo == "rehearsal/b-ane"


@pytest.mark.parametrize("organization", ["", "a/b", "..", "a b", "-a"])
def test_an_organisation_that_cannot_be_one(tmp_path: Path, organization: str) -> None:
    with pytest.raises(BadInput, match="cannot be an organisation"):
        wanted(tmp_path, "models: [a/b]", organization)


def test_folders_and_files_each_once(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.yaml").write_text(HEAD + f"- x/{name}\n")
    (tmp_path / "notes.txt").write_text("not a manifest")
    both = read_manifests([tmp_path, tmp_path / "a.yaml"])
    assert [one.id for one in both] == ["x/a", "x/b"]
    assert [one.where for one in both] == [f"{(tmp_path / name).as_posix()}.yaml:3" for name in "ab"]


def test_the_demo_manifest() -> None:
    first, second = read_manifests([ROOT / "manifests/demo/demo.yaml"])
    assert (first.id, first.repo) == ("sentence-transformers/all-MiniLM-L6-v2", "ane-demo/all-MiniLM-L6-v2-ane")
    assert (second.repo, second.recipe.task, second.license) == ("ane-demo/splade-tiny-ane", "fill-mask", "apache-2.0")
    assert first.recipe == Recipe(lengths=(128,))
    opening = (ROOT / "manifests/demo/demo.yaml").read_text().splitlines()[0]
    assert (
        ROOT / "manifests/demo" / opening.partition("$schema=")[2]
    ).resolve() == ROOT / "hft2ane/manifest.schema.json"


LONG = "x" * 97
ENTRIES = [  # an entry, or several; how many lines below the first one the problem is; words of the message
    ("- {id: a/b, lenghts: [64]}", 0, "unknown key 'lenghts' in `models`, did you mean 'lengths'?"),
    ("- id: a/b\n  zzz: 1", 1, "unknown key 'zzz' in `models`; known: "),
    ("- id: a/b\n  gates:\n    float61: 60", 2, "unknown key 'float61' in `gates`, did you mean 'float16'?"),
    ("- id: a/b\n  publish:\n    organisation: x", 2, "did you mean 'organization'?"),
    ("- id: a/b\n  id: a/c", 1, "the key 'id' is there twice, first at line 3"),
    ("- id: a/b\n  ? [x]\n  : y", 1, "a list or mapping cannot be a key"),
    ('- id: a/b\n  "\\x1b": y', 1, "cannot be printed"),
    ("- {task: fill-mask}", 0, "`id` is missing"),
    ("- a/b\n- A/B", 1, "A/B is already asked for at {file}:3"),
    ("- a/b\n- id: a/b", 1, "a/b is already asked for at {file}:3"),
    ("- a/b\n- c/B", 1, "would be published as org/B-ane, like a/b at {file}:3"),
    ("- a/b\n- {id: c/d, publish: {name: B-ANE}}", 1, "would be published as org/B-ANE, like a/b at {file}:3"),
    ("- {id: a/b, publish: {organization: c, name: d}}\n- c/D", 0, "would be published over c/d, which is an original"),
    ("- a/" + "x" * 94, 0, "which cannot be a Hub id: set `publish: {name: …}`"),
    ("- b", 0, "'b' will not do; it takes a Hub id, owner/name"),
    ("- a/b/c", 0, "'a/b/c' will not do"),
    ("- ../b", 0, "'../b' will not do"),
    ("- a/..", 0, "'a/..' will not do"),
    ("- a/b..c", 0, "'..' and '--'"),
    ("- a/b--c", 0, "'..' and '--'"),
    ("- a/b.git", 0, "'.git' at the end"),
    ("- a/.hidden", 0, "will not do"),
    ("- /a/b", 0, "will not do"),
    ("- a\\b/c", 0, "will not do"),
    ("- a/ä", 0, "will not do"),
    ('- "a/b\\n"', 0, "'a/b\\n' will not do"),
    ('- "a/\\0"', 0, "'a/\\x00' will not do"),
    ('- "a/\\ud800"', 0, "'a/\\ud800' will not do"),
    (f"- a/{LONG}", 0, "at most 96 characters each"),
    (f"- {LONG}/a", 0, "at most 96 characters each"),
    ("- no", 0, "entry: no will not do; it takes a Hub id, or a mapping with `id:`"),
    ("- 5", 0, "entry: 5 will not do"),
    ("-", 0, "entry: an empty value will not do"),
    ("- [a/b]", 0, "entry: a list of 1 will not do"),
    ("- id: 12", 0, 'id: 12 is read as a number; put it in quotes: id: "12"'),
    (
        "- id: a/b\n  revision: 1234567",
        1,
        'revision: 1234567 is read as a number; put it in quotes: revision: "1234567"',
    ),
    ("- id: a/b\n  revision: 0123456", 1, "0123456 is read as a number; put it in quotes"),
    ("- id: a/b\n  revision: 2024-01-31", 1, "2024-01-31 is read as a date; put it in quotes"),
    ("- id: a/b\n  revision: 1.5", 1, "1.5 is read as a number; put it in quotes"),
    ("- id: a/b\n  revision: =", 1, "= is read as something else; put it in quotes"),
    ("- id: a/b\n  revision:", 1, "revision: an empty value will not do"),
    ("- id: a/b\n  revision: ../x", 1, "'../x' will not do"),
    ("- id: a/b\n  revision: a/../x", 1, "'..' is not allowed"),
    ("- id: a/b\n  license: 0", 1, 'license: 0 is read as a number; put it in quotes: license: "0"'),
    ("- id: a/b\n  license: no", 1, "license: no is read as true or false; put it in quotes"),
    (
        "- id: a/b\n  license: Apache-2.0",
        1,
        "'Apache-2.0' will not do, did you mean 'apache-2.0'?; it takes the licence",
    ),
    ("- id: a/b\n  license: CC BY 4.0", 1, "did you mean 'cc-by-4.0'?"),
    ("- id: a/b\n  license: ''", 1, "license: '' will not do; it takes the licence"),
    ("- https://huggingface.co/a/b/tree/main?x", 0, "did you mean 'a/b'?; it takes a Hub id"),
    ("- id: https://huggingface.co/models", 0, "'https://huggingface.co/models' will not do; it takes a Hub id"),
    ("- id: https://huggingface.co/a/..", 0, "'https://huggingface.co/a/..' will not do; it takes a Hub id"),
    ("- id: a/b\n  license: [mit]", 1, "license: a list of 1 will not do"),
    ("- id: a/b\n  task: fill_mask", 1, "task: 'fill_mask' is unknown, did you mean 'fill-mask'?"),
    ("- id: a/b\n  task: translation", 1, "'translation' is unknown; it takes 'feature-extraction', "),
    ("- id: a/b\n  task: yes", 1, "task: yes is unknown"),
    ("- id: a/b\n  target: coreai", 1, "target: 'coreai' is unknown"),
    ("- id: a/b\n  variants: [int4]", 1, "variants: 'int4' is unknown, did you mean 'int8'?"),
    ("- id: a/b\n  variants: [float16, float16]", 1, "variants: float16 is there more than once"),
    ("- id: a/b\n  variants: []", 1, "variants: a list of 0 will not do"),
    ("- id: a/b\n  variants: float16", 1, "variants: 'float16' will not do; it takes a list"),
    ("- id: a/b\n  lengths: 128", 1, "lengths: 128 will not do; it takes 1 to 8 different input lengths"),
    ("- id: a/b\n  lengths: []", 1, "lengths: a list of 0 will not do"),
    ("- id: a/b\n  lengths: [1, 2, 3, 4, 5, 6, 7, 8, 9]", 1, "lengths: a list of 9 will not do"),
    ("- id: a/b\n  lengths: [64, 64]", 1, "lengths: 64 is there more than once"),
    ("- id: a/b\n  lengths: [0]", 1, "lengths: 0 will not do"),
    ("- id: a/b\n  lengths:\n  - 64\n  - 8193", 3, "lengths: 8193 will not do"),
    ("- id: a/b\n  lengths: [-1]", 1, "lengths: -1 will not do"),
    ("- id: a/b\n  lengths: [64.0]", 1, "lengths: 64.0 will not do"),
    ("- id: a/b\n  lengths: ['64']", 1, "lengths: '64' will not do"),
    ("- id: a/b\n  lengths: [true]", 1, "lengths: true will not do"),
    ("- id: a/b\n  lengths: [0x40]", 1, "lengths: 0x40 will not do"),
    ("- id: a/b\n  lengths: [1:30]", 1, "lengths: 1:30 will not do"),
    ("- id: a/b\n  lengths: [0x_]", 1, "lengths: 0x_ will not do"),
    (f"- id: a/b\n  lengths: [{'9' * 5000}]", 1, "lengths: 999"),
    ("- id: a/b\n  gates: 50", 1, "gates: 50 will not do; it takes a mapping"),
    ("- id: a/b\n  gates: {rewrite: .nan}", 1, "gates.rewrite: .nan will not do; it takes a PSNR in dB"),
    ("- id: a/b\n  gates: {rewrite: .inf}", 1, "gates.rewrite: .inf will not do"),
    ("- id: a/b\n  gates: {float16: 0}", 1, "gates.float16: 0 will not do"),
    ("- id: a/b\n  gates: {float16: -5.5}", 1, "gates.float16: -5.5 will not do"),
    ("- id: a/b\n  gates: {float16: 1000}", 1, "gates.float16: 1000 will not do"),
    ("- id: a/b\n  gates: {fall: 0}", 1, "gates.fall: 0 will not do; it takes a number of dB above 0, at most 200, by"),
    ("- id: a/b\n  gates: {float16: '60'}", 1, "gates.float16: '60' will not do"),
    ("- id: a/b\n  publish: here", 1, "publish: 'here' will not do; it takes a mapping"),
    ("- id: a/b\n  publish: {name: x/y}", 1, "publish.name: 'x/y' will not do"),
    ("- id: a/b\n  publish: {name: '{name}-x'}", 1, "publish.name: '{name}-x' will not do"),
    (
        "- id: a/b\n  publish: {organization: no}",
        1,
        "publish.organization: no is read as true or false; put it in quotes",
    ),
    ("- id: a/b\n  publish: {organization: ..}", 1, "publish.organization: '..' will not do"),
    ("- id: a/b\n  status: paused", 1, "paused needs a `reason:`"),
    ("- id: a/b\n  status: retired\n  reason: x", 1, "status: 'retired' is unknown; it takes 'active' or 'paused'"),
    ("- id: a/b\n  status: off", 1, "status: off is unknown"),
    ("- id: a/b\n  reason: x", 1, "add `status: paused`, or remove it"),
    ("- id: a/b\n  reason: x\n  status: active", 1, "add `status: paused`, or remove it"),
    ("- id: a/b\n  status: paused\n  reason: ' '", 2, "reason: ' ' will not do; it takes why the model is paused"),
    ("- id: a/b\n  status: paused\n  reason:", 2, "reason: an empty value will not do"),
    ("- id: a/b\n  status: paused\n  reason: 5", 2, "reason: 5 is read as a number"),
    ('- id: a/b\n  status: paused\n  reason: "\\e[2J"', 2, "reason: control characters are not allowed"),
    (f"- id: a/b\n  status: paused\n  reason: {'x' * 501}", 2, "at most 500 characters"),
    ("- !!python/object/apply:os.system [ls]", 0, "the tag '!!python/object/apply:os.system' is not read"),
    ("- !x a/b", 0, "the tag '!x' is not read: write a plain value"),
    ("- !!str a/b", 0, "the tag '!!str' is not read"),
    ("- ! a/b", 0, "the tag '!' is not read"),
    ("- &x a/b", 0, "anchors and aliases (&x, *x) are not read"),
    ("- *x", 0, "anchors and aliases (&x, *x) are not read"),
    ("- {id: a/b, <<: {task: fill-mask}}", 0, "unknown key '<<'"),
    ("- a/b: c: d", 0, "not YAML that can be read: mapping values are not allowed here"),
    (
        "- a/b\n\t- c/d",
        1,
        "not YAML that can be read: found character '\\t' that cannot start any token: indent with spaces",
    ),
    (
        "- {a/b",
        0,
        "not YAML that can be read: expected ',' or '}', but got '<stream end>': close the bracket or quote of line 3",
    ),
    ("- {id: a/b, license: 'mit}\n- c/d", 1, "close the bracket or quote of line 3"),
    ("- '" + "[" * 50 + "'", 0, "will not do"),
    ("- " + "[" * 50, 0, "nested too deeply"),
    ("- " * 50, 0, "nested too deeply"),
    ("- " + "{a: " * 50, 0, "nested too deeply"),
    ("- a/b\n---\nmodels: []", 1, "a second document begins: a manifest is one, remove the `---`"),
    ('- "\\UFFFFFFFF"', 0, "a number or character code out of range"),
    ('- "\\U00110000"', 0, "a number or character code out of range"),
    ("- a/b\n- c/\0", 1, "the character '\\x00' is not allowed in YAML"),
    ("- a/b\n- c/\x1b", 1, "the character '\\x1b' is not allowed in YAML"),
]


@pytest.mark.parametrize(("entries", "below", "words"), ENTRIES, ids=[entry[0][:40] for entry in ENTRIES])
def test_bad_entries(tmp_path: Path, entries: str, below: int, words: str) -> None:
    words = words.replace("{file}", (tmp_path / "m.yaml").as_posix())
    assert [text for line, text in problems(tmp_path, HEAD + entries + "\n") if line == 3 + below and words in text]


FILES: list[tuple[str | bytes, int, str]] = [
    ("", 1, "empty: a manifest needs at least `models:`"),
    ("\n# nothing\n", 1, "empty"),
    ("---\n", 1, "a manifest is a mapping"),
    ("- a/b\n", 1, "a manifest is a mapping with `models:`"),
    ("\nfalse\n", 2, "a manifest is a mapping"),
    ("defaults: {}\n", 1, "`models` is missing"),
    ("models:\n", 1, "models: an empty value will not do; it takes a list"),
    ("models: a/b\n", 1, "models: 'a/b' will not do; it takes a list"),
    ("models: []\nmodel: []\n", 2, "unknown key 'model', did you mean 'models'?"),
    ("models: []\nlengths: [1]\n", 2, "unknown key 'lengths'; it belongs in `defaults`"),
    ("models: []\nid: a/b\n", 2, "unknown key 'id'; it belongs to an entry of `models`"),
    ("models: []\nmodels: []\n", 2, "the key 'models' is there twice, first at line 1"),
    ("schema: 2\nmodels: []\n", 1, "schema: 2 is unknown; it takes 1"),
    ("schema: '1'\nmodels: []\n", 1, "schema: '1' is unknown"),
    ("models: []\ndefaults: []\n", 2, "defaults: a list of 0 will not do; it takes a mapping"),
    ("models: []\ndefaults:\n  license: mit\n", 3, "unknown key 'license' in `defaults`; it belongs to an entry"),
    ("models: []\ndefaults:\n  status: paused\n", 3, "unknown key 'status' in `defaults`; it belongs to an entry"),
    ("models: []\ndefaults:\n  lengths: [0]\n", 3, "defaults.lengths: 0 will not do"),
    ("models: []\ndefaults:\n  publish:\n    name: x\n", 4, "defaults.publish.name: the template needs {name} in it"),
    ("models: []\ndefaults:\n  publish:\n    name: '{name}{id}'\n", 4, "the template needs {name} in it, once"),
    ("models: []\ndefaults:\n  publish:\n    name: '../{name}'\n", 4, "'../{name}' will not do"),
    ("models: []\ndefaults:\n  publish: {idd: x}\n", 3, "unknown key 'idd' in `publish`; known"),
    (
        "models: []\ndefaults:\n  publish: {lengths: [64]}\n",
        3,
        "'lengths' in `publish`; it belongs beside `publish`, not",
    ),
    ("models: [a/b]\n", 1, "no organisation to publish to: add `publish: {organization: …}` to `defaults:`"),
    ("models: [a/b]\ndefaults:\n  publish: {name: '{name}'}\n", 3, "no organisation to publish to"),
    ("models: [a/b]\ndefaults: {publish: {organization: a, name: '{name}'}}\n", 1, "published over a/b"),
    (b"models:\n- a/b\n- \xff\n", 3, "not UTF-8 text"),
    ("models: [a/b]\n".encode("utf-16"), 1, "not UTF-8 text"),
    (b"\0", 1, "'\\x00' is not allowed in YAML"),
    (b"#" * 1_000_001, 1, "larger than 1 MB"),
    (b"[" * 999_999, 1, "nested too deeply"),
    ("a: &a [x,x]\nb: &b [*a,*a]\nmodels: [*b,*b]\n", 1, "anchors and aliases"),
    ("%YAML 3.0\n---\nmodels: []\n", 1, "not YAML that can be read"),
    ("%YAML 1." + "9" * 5000 + "\n---\nmodels: []\n", 1, "out of range"),
]


@pytest.mark.parametrize(("text", "line", "words"), FILES, ids=[repr(file[0][:40]) for file in FILES])
def test_bad_files(tmp_path: Path, text: str | bytes, line: int, words: str) -> None:
    assert [found for at, found in problems(tmp_path, text) if at == line and words in found]


def test_all_problems_of_all_files_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HEAD + "- a/b\n- {id: c/d, lengths: [0], status: paused}\n- ../x\n- e/f\n")
    (tmp_path / "b.yaml").write_text(HEAD + "- A/b\n- {id: x/d, task: nope}\n- {id: E/F, revision: 5, zzz: 1}\n")
    (tmp_path / "c.yaml").write_text("models: [\n")
    (tmp_path / "d.yml").write_text("")
    with pytest.raises(ManifestError) as caught:
        read_manifests([tmp_path, tmp_path / "none.yaml"])
    folder = tmp_path.as_posix()
    expected = [
        ("a.yaml:4", "lengths: 0 will not do"),
        ("a.yaml:4", "paused needs a `reason:`"),
        ("a.yaml:5", "'../x' will not do"),
        ("b.yaml:3", f"A/b is already asked for at {folder}/a.yaml:3"),
        ("b.yaml:4", "task: 'nope' is unknown"),
        ("b.yaml:4", f"would be published as org/d-ane, like c/d at {folder}/a.yaml:4"),
        ("b.yaml:5", f"E/F is already asked for at {folder}/a.yaml:6"),
        ("b.yaml:5", "revision: 5 is read as a number"),
        ("b.yaml:5", "unknown key 'zzz'"),
        ("c.yaml:1", "not YAML that can be read"),
        ("d.yml:1", "a manifest's name ends in .yaml: rename it"),
        ("none.yaml:1", "cannot be read (No such file or directory)"),
    ]
    found = caught.value.problems
    assert [place for place, _ in found] == [f"{folder}/{place}" for place, _ in expected]
    assert all(words in text for (_, text), (_, words) in zip(found, expected, strict=True))
    assert str(caught.value).startswith("12 problems in the manifests:\n")


def test_a_faulty_name_is_not_also_called_a_clash(tmp_path: Path) -> None:
    found = problems(tmp_path, HEAD + "- a/b\n- {id: c/b, publish: {name: 'x/y'}}\n")
    assert [line for line, _ in found] == [4]


def test_links_stay_in_their_folder(tmp_path: Path) -> None:
    """A pull request may bring any link."""
    folder, secret = tmp_path / "manifests", tmp_path / "secret"
    (folder / "data").mkdir(parents=True)
    secret.write_text(HEAD + "- a/secret\n")
    (folder / "data/a.yaml").write_text(HEAD + "- a/b\n")
    (folder / "a.yaml").symlink_to("data/a.yaml")
    assert [one.id for one in read_manifests([folder])] == ["a/b"]
    (folder / "z.yaml").symlink_to("../secret")
    (folder / "zero.yaml").symlink_to("/dev/zero")
    (folder / "circle.yaml").symlink_to("circle.yaml")
    with pytest.raises(ManifestError) as caught:
        read_manifests([folder])
    text = "a link that leads out of its folder: put the file itself there"
    circle, *others = caught.value.problems
    assert circle[1].startswith("cannot be read (")
    assert others == [(f"{folder}/z.yaml:1", text), (f"{folder}/zero.yaml:1", text)]


def test_a_files_name_can_be_printed(tmp_path: Path) -> None:
    """Else it would put lines of its own into messages, which GitHub might take for commands."""
    (tmp_path / "a\n::error::b.yaml").write_text(HEAD + "- a/b\n")
    (tmp_path / "z\u202e.yaml").write_text(HEAD + "- zzz\n")
    with pytest.raises(ManifestError) as caught:
        read_manifests([tmp_path])
    (first, words), *others = caught.value.problems
    assert (first, words) == (
        f"{tmp_path}/a?::error::b.yaml:1",
        "its name has characters that cannot be printed: rename it",
    )
    assert [at for at, _ in others] == [f"{tmp_path}/z?.yaml:1", f"{tmp_path}/z?.yaml:3"]


def test_a_folder_without_manifests(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"a folder without \*\.yaml"):
        read_manifests([tmp_path])
    with pytest.raises(ManifestError, match=r"none:1: cannot be read \(No such file or directory\): give a manifest"):
        read_manifests([tmp_path / "none"])


def test_nothing_is_run_by_tags(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    problems(
        tmp_path, HEAD + f"- !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]\n"
    )
    assert not mark.exists()


def test_a_list_of_every_task_and_key_is_known() -> None:
    text = json.dumps(schema.json_schema())
    assert all(f'"{task}"' in text for task in get_args(Task))
    keys = {key for known in schema.KEYS.values() for key in known}
    assert keys | {"entry"} == set(schema.ABOUT)


def test_the_committed_schema_is_current() -> None:
    """If not: python -m hft2ane.manifest.schema > hft2ane/manifest.schema.json"""
    committed = (ROOT / "hft2ane" / "manifest.schema.json").read_text()
    assert json.loads(committed) == schema.json_schema()
    assert committed == json.dumps(schema.json_schema(), indent=2) + "\n"


# What only the reader sees: other entries, defaults applied, rules that are no pattern, how a value is written.
BEYOND_SCHEMA = (
    *("already asked", "would be published", "no organisation", "'..'", "control characters", "the template needs"),
    *("is there twice", "tag", "anchors", "cannot be printed", "a list or mapping cannot be a key"),
    *("64.0", "0x40", "1:30", "0x_", ".nan", "<<"),
)


def test_editors_see_what_the_reader_sees(tmp_path: Path) -> None:
    """The JSON Schema takes all of ours, and refuses every entry above whose mistake a schema can express."""
    jsonschema: Any = importlib.import_module("jsonschema")
    check = jsonschema.Draft202012Validator(schema.json_schema())
    check.check_schema(schema.json_schema())
    assert all(check.is_valid(yaml.safe_load(path.read_text())) for path in (ROOT / "manifests").rglob("*.yaml"))
    refused = 0
    for entries, _, words in ENTRIES:
        try:
            content = yaml.safe_load(HEAD + entries)
        except (yaml.YAMLError, ValueError, OverflowError):
            continue
        if not any(beyond in text for beyond in BEYOND_SCHEMA for _, text in problems(tmp_path, HEAD + entries)):
            assert not check.is_valid(content), words
            refused += 1
    assert refused > 50


IDS = st.from_regex(r"[A-Za-z0-9]{1,8}/[A-Za-z0-9._]{1,8}", fullmatch=True)
YAML_TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *"{}[]:-,&*!|>%@?#'\"\\ \n\t",
                "\n- ",
                "\n  ",
                "models:",
                "defaults:",
                "id: ",
                "a/b",
                "publish: ",
                "lengths: ",
            ]
        ),
        st.sampled_from(
            ["organization: o", "gates: {", "!!", "<<", "---", "\\u", "\\U", "0x", "1:1", ".inf", "~", "\0"]
        ),
        st.text(max_size=4),
    ),
    max_size=40,
).map("".join)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(deadline=None)
@given(st.one_of(st.binary(), st.text().map(str.encode), YAML_TEXT.map(lambda text: text.encode("utf-8", "replace"))))
def test_anything_is_read_or_refused(scratch: Path, data: bytes) -> None:
    for content in (data, HEAD.encode() + data, b"models:\n- " + data):
        try:
            wanted(scratch, content)
        except ManifestError as err:
            refused = err
        else:
            continue
        assert str(refused).encode()
        lines = [int(place.rpartition(":")[2]) for place, _ in refused.problems]
        assert all(1 <= line <= max(1, len(content.splitlines())) for line in lines)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), IDS, st.dates()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(schema.ABOUT)), inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["defaults", "models", "schema", "zzz"]), VALUES), st.lists(VALUES, max_size=4))
def test_any_structure_is_read_or_refused(scratch: Path, content: dict[str, Any], models: list[Any]) -> None:
    for whole in (content, {**content, "models": models}):
        try:
            found = wanted(scratch, yaml.safe_dump(whole, allow_unicode=True).encode("utf-8", "surrogatepass"), "org")
        except ManifestError:
            continue
        assert all(math.isfinite(one.gates.rewrite) and one.recipe.lengths for one in found)


@settings(deadline=None)
@given(
    st.lists(IDS, unique_by=lambda id: id.lower().split("/")[1], max_size=5),
    st.lists(st.integers(8, 8192), min_size=1, max_size=8, unique=True),
)
def test_good_manifests_are_read(scratch: Path, ids: list[str], lengths: list[int]) -> None:
    ids = [id for id in ids if ".." not in id and not id.endswith((".", ".git")) and "/." not in id]
    content = {"defaults": {"publish": {"organization": "org-x"}, "lengths": lengths}, "models": ids}
    found = wanted(scratch, yaml.safe_dump(content))
    assert [one.id for one in found] == ids
    assert [one.repo for one in found] == [f"org-x/{id.split('/')[1]}-ane" for id in ids]
    assert all(one.recipe.lengths == tuple(sorted(lengths)) for one in found)


def test_the_examples_of_the_docs(tmp_path: Path) -> None:
    """And between them they have every key."""
    pages = [(ROOT / name).read_text() for name in ("CONTRIBUTING.md", "docs/publish.md")]
    examples = [text for page in pages for text in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
    assert len(examples) == 3
    for text in examples:
        assert wanted(tmp_path, text if "models:" in text else HEAD + text)
    words = set(re.findall(r"(?:^|[ {])(\w+):", "".join(examples), re.MULTILINE))
    keys = {key for name in ("", "models", "publish") for key in schema.KEYS[name]}
    assert keys - words == {"target"}  # has one value only, so far


def test_our_own_manifests() -> None:
    """Together, as the night reads them; each says the licence that it expects, one that lets us pass on a copy."""
    found = read_manifests([ROOT / "manifests"])
    assert len(found) > 80
    assert {each.where.partition(":")[0].rpartition("/")[2] for each in found} == {
        f"{name}.yaml"
        for name in (
            "classifiers",
            "masked-lm",
            "question-answering",
            "rerankers",
            "text-embeddings",
            "token-classification",
        )
    }
    for each in found:
        assert each.license in REDISTRIBUTABLE, each.where
