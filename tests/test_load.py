"""Where a model may be loaded from, what is downloaded and checked, and with what little it runs."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools
import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from huggingface_hub import constants
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hft2ane import load
from hft2ane.errors import (
    AccessDenied,
    BadInput,
    CorruptFile,
    Hft2aneError,
    HubUnavailable,
    ModelNotFound,
    PackageError,
    RevisionNotFound,
    SourceError,
)
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.runtime import contract, engine
from hft2ane.runtime.contract import RECORD
from tests.conftest import Checkpoint
from tests.exported import release
from tests.peer import converted

pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")

ROOT = Path(__file__).parent.parent
REPO, PACKAGE = "org/tiny-ane", "tiny.float16.mlpackage"


@pytest.fixture(scope="module")
def made(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's release, in two variants."""
    folder = checkpoint("BertForSequenceClassification", seed=1, id2label={0: "no", 1: "yes"})
    return release(folder, tmp_path_factory.mktemp("made") / "tiny", variants=("float16", "int8"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return shutil.copytree(made, tmp_path / "release")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def local(hub: LocalHub, made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """A Hub with the release, tagged v1."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    Hub(hub.url, hub.token).tag(REPO, "v1", hub.add(REPO, made))
    return hub


def edit(folder: Path, **changes: Any) -> Path:
    """Another record, and sums that know it."""
    record = json.loads((folder / RECORD).read_text()) | changes
    (folder / RECORD).write_text(json.dumps(record))
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(line for line in lines if RECORD not in line))
    return folder


# ---- from the Hub


def test_only_what_is_needed_is_downloaded(local: LocalHub, cache: Path) -> None:
    model = load(REPO)
    got = {call.split("/resolve/")[1].split(" ")[0].partition("/")[2] for call in local.calls("^GET .*/resolve/")}
    assert {name for name in got if ".mlpackage" not in name} == {
        RECORD, "SHA256SUMS", "config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert {name.partition("/")[0] for name in got if ".mlpackage" in name} == {PACKAGE}
    assert model.commit == local.tags(REPO)["v1"]
    assert repr(model).endswith(f"text-classification, float16 at {model.commit[:12]}>")
    assert [each["label"] for each in model.classify("a b", top_k=1)] in (["no"], ["yes"])


def test_a_variant_may_be_chosen(local: LocalHub) -> None:
    model = load(REPO, variant="int8")
    assert model.variant == "int8"
    assert not local.calls("GET .*float16.mlpackage")
    with pytest.raises(BadInput, match="org/tiny-ane has no variant 'palettized-4'; there are float16, int8"):
        load(REPO, variant="palettized-4")


@pytest.mark.parametrize(
    ("psnr", "expected"),
    [({"int8": 41.0, "mixed-6": 31.0}, "int8"), ({"mixed-6": 31.0, "int8": 30.0}, "mixed-6"), ({}, "mixed-6")],
)
def test_without_float16_the_best_is_taken(psnr: dict[str, float], expected: str) -> None:
    packages = [{"variant": name, "file": f"a.{name}.mlpackage", "functions": []} for name in ("mixed-6", "int8")]
    text = json.dumps({"schema": 1, "task": "fill-mask", "source": {"id": "a"}, "packages": packages, "psnr": psnr})
    chosen = contract.choose(contract.parse(text.encode(), "here"), None, "here")
    assert chosen.variants == (expected,)


@pytest.mark.parametrize("how", [{"source": f"{REPO}@v1"}, {"source": REPO, "revision": "v1"}])
def test_a_revision_is_kept(local: LocalHub, folder: Path, how: dict[str, str]) -> None:
    first = local.tags(REPO)["v1"]
    second = local.add(REPO, edit(folder, labels=["nein", "ja"]))
    assert load(**how).commit == first
    assert (load(REPO).commit, load(REPO).labels) == (second, ("nein", "ja"))
    with pytest.raises(BadInput, match="name two revisions"):
        load(f"{REPO}@v1", revision="v2")


def test_what_is_cached_needs_no_hub(local: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(REPO).classify("a b")
    load(f"{REPO}@v1")
    asked = len(local.calls())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in (REPO, f"{REPO}@v1", f"{REPO}@{local.tags(REPO)['v1']}"):
        assert load(source).classify("a b") == before
    assert len(local.calls()) == asked
    with pytest.raises(
        HubUnavailable, match="int8.*is not in the cache, and HF_HUB_OFFLINE is set: load it once online"
    ):
        load(REPO, variant="int8")


def test_a_hub_that_is_down_is_no_hindrance_once_it_is_cached(local: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(REPO).classify("a b")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    assert load(REPO).classify("a b") == before
    with pytest.raises(
        HubUnavailable, match="other-ane/conversion.json at main is not in the cache, and the Hub cannot"
    ):
        load("org/other-ane")


@pytest.mark.parametrize("name", ["weight.bin", "tokenizer.json", RECORD])
def test_a_damaged_file_of_the_cache_is_named(local: LocalHub, cache: Path, name: str) -> None:
    load(REPO)
    (path,) = cache.rglob(f"snapshots/**/{name}")
    blob, data = path.resolve(), bytearray(path.read_bytes())
    data[-2] ^= 1
    blob.write_bytes(data)
    with pytest.raises((CorruptFile, BadInput), match=f"{blob}|{RECORD}") as seen:
        load(REPO)
    assert name in str(seen.value)
    if name != RECORD:
        assert "has not the digest in SHA256SUMS: remove it, so that it is downloaded again" in str(seen.value)
    blob.unlink()
    path.unlink()
    load(REPO)


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("org/none-ane", ModelNotFound, "org/none-ane: the Hub has no such repo, .* there is no such folder"),
        ("org/tiny-ane@v9", RevisionNotFound, "org/tiny-ane has no revision 'v9': give one of its tags, like v1"),
        ("org/original", SourceError, "org/original has no conversion.json, so it is no release of hft2ane"),
        ("org/gated-ane", AccessDenied, "org/gated-ane is gated: accept its terms"),
        ("or g/tiny", ModelNotFound, "'or g/tiny' is no name of a repo"),
        ("./nowhere", BadInput, "'./nowhere' is no folder here"),
        ("tiny", BadInput, "'tiny' is no folder here, and no repo of the Hub: give org/name"),
        ("org/a.mlpackage", BadInput, "is no folder here"),
        ("https://huggingface.co/org/tiny-ane", BadInput, "is an address: give the repo's name alone"),
        (__file__, BadInput, "is a file: give the release's folder"),
        ("", BadInput, "load\\(''\\): give org/name"),
        (None, BadInput, "load\\(None\\): give org/name"),
    ],
)
def test_what_cannot_be_had_is_one_clear_error(
    local: LocalHub, made: Path, tmp_path: Path, source: Any, error: type[Hft2aneError], says: str
) -> None:
    (tmp_path / "original").mkdir()
    (tmp_path / "original/config.json").write_text("{}")
    local.add("org/original", tmp_path / "original")
    local.add("org/gated-ane", made, gated=True)
    with pytest.raises(error, match=says):
        load(source)


# ---- from a folder


def test_a_release_s_folder_and_its_package(made: Path) -> None:
    model = load(made)
    (package,) = made.glob("*.float16.mlpackage")
    assert model.commit is None
    assert load(str(package)).classify("a b") == model.classify("a b")
    with pytest.raises(BadInput, match="is a folder, which has no revision 'v1'"):
        load(made, revision="v1")
    with pytest.raises(BadInput, match="is one package, so there is no variant to choose"):
        load(package, variant="int8")


def test_a_download_without_the_variant_that_is_taken_by_itself(folder: Path) -> None:
    (package,) = folder.glob("*.float16.mlpackage")
    shutil.rmtree(package)
    with pytest.raises(BadInput, match="has no float16 package, only int8: say variant='int8'"):
        load(folder)
    assert load(folder, variant="int8").variant == "int8"
    with pytest.raises(CorruptFile, match="float16.mlpackage is not there"):
        load(folder, variant="float16")


def test_a_package_by_itself(folder: Path, tmp_path: Path) -> None:
    """It knows its task, not its labels; with a tokenizer beside it there is its method, else arrays only."""
    (package,) = folder.glob("*.float16.mlpackage")
    inputs, expected = load(folder).tokenize("a b"), load(folder).classify("a b")
    alone = shutil.copytree(package, tmp_path / "alone" / "Renamed.mlpackage")
    model = load(alone)
    assert np.array_equal(model(**inputs)["logits"], load(folder)(**inputs)["logits"])
    with pytest.raises(BadInput, match="/alone/tokenizer.json is not there"):
        model.classify("a b")
    given = load(alone, tokenizer=folder / "tokenizer.json").classify("a b")
    assert [each["score"] for each in given] == [each["score"] for each in expected]
    assert {each["label"] for each in given} == {"LABEL_0", "LABEL_1"}


def test_a_package_of_another_converter(tmp_path: Path) -> None:
    """Nothing says what it is for: arrays go in, and the error for all else says which."""

    @mb.program(input_specs=[mb.TensorSpec((1, 3), types.fp32)], opset_version=coremltools.target.iOS16)
    def program(x: Any) -> Any:
        return mb.add(x=x, y=1.0, name="y")

    model = load(converted(tmp_path / "other.mlpackage", program, 7))
    assert np.allclose(model(x=[[1.0, 2.0, 3.0]])["y"], [[2, 3, 4]])
    with pytest.raises(BadInput, match=r"does not say what it is for, so there is no embed: .* takes x \(1, 3\)"):
        model.embed("a")


def test_what_a_later_version_adds_is_passed_over(folder: Path) -> None:
    """An app with an older hft2ane goes on running when a release is renewed by a newer one."""
    record = json.loads((folder / RECORD).read_text())
    record["packages"][0]["functions"][0]["speed"] = record["packages"][0]["colour"] = record["added"] = {"x": [1]}
    record["packages"][1]["variant"] = "ternary"
    assert load(edit(folder, **record)).classify("a b")
    with pytest.raises(BadInput, match="has schema 2, this hft2ane reads 1: pip install --upgrade hft2ane"):
        load(edit(folder, schema=2))


def test_an_unknown_task_has_arrays(folder: Path) -> None:
    inputs = load(folder).tokenize("a b")
    model = load(edit(folder, task="mind-reading"))
    assert model(**inputs)["logits"].shape == (1, 2)
    with pytest.raises(BadInput, match="is for mind-reading, so there is no classify: .* a newer hft2ane may know it"):
        model.classify("a b")


def test_that_a_model_is_retired_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(edit(folder, retired="there is a better one"))
    assert "tiny/tiny gets no new versions: there is a better one" in caplog.messages


def test_a_package_that_was_changed_is_refused(folder: Path) -> None:
    """With sums or without: the record has the package's digest."""
    (path,) = folder.glob("*.float16.mlpackage/Data/com.apple.CoreML/weights/weight.bin")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        CorruptFile, match="weight.bin.* has not the digest in SHA256SUMS: download or convert it again"
    ):
        load(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CorruptFile, match="float16.mlpackage has not the digest in conversion.json"):
        load(folder)
    load(folder, variant="int8")


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda f: (f / RECORD).unlink(), BadInput, f"has no {RECORD}, so it is no release"),
        (lambda f: (f / RECORD).write_text("[]"), BadInput, "is no record of a release"),
        (lambda f: edit(f, packages=[]), BadInput, "names no package"),
        (lambda f: edit(f, packages=[{"file": "../x"}]), BadInput, "packages.0.variant"),
        (
            lambda f: edit(f, packages=[{"file": "../x", "variant": "int8", "functions": []}]),
            BadInput,
            "is no name of a pa",
        ),
        (lambda f: (f / "SHA256SUMS").write_text("x"), CorruptFile, "is not a list of digests"),
        (lambda f: (f / "SHA256SUMS").write_text(f"{'0' * 64}  ../../x\n"), CorruptFile, "no path inside a release"),
        (lambda f: (f / "config.json").write_text("{"), CorruptFile, "config.json"),
        (lambda f: [shutil.rmtree(each) for each in f.glob("*.mlpackage")], CorruptFile, "is not there"),
    ],
)
def test_a_folder_that_is_no_release_is_one_clear_error(
    folder: Path, spoil: Any, error: type[Hft2aneError], says: str
) -> None:
    spoil(folder)
    with pytest.raises(error, match=says):
        load(folder)


def test_a_tokenizer_that_is_none_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CorruptFile, match="tokenizer.json is not readable as a tokenizer"):
        load(folder).classify("a")


def test_half_of_a_pair_is_not_a_model(made: Path, folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    record["packages"][0]["part"] = "encoder"
    edit(folder, **record)
    with pytest.raises(BadInput, match="alone is not all of the model: load the folder"):
        load(folder / record["packages"][0]["file"])


def test_a_folder_that_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(PackageError, match="this is not an .mlpackage"):
        load(tmp_path / "empty.mlpackage")


# ---- what it runs with


def missing(extra: str, platform: str) -> tuple[str, ...]:
    """The modules of this environment that somebody does not have who installs hft2ane with this extra, there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    left = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    has = {"hft2ane"}
    while left:
        asked = Requirement(left.pop())
        name = canonicalize_name(asked.name)
        if name in has or (asked.marker and not asked.marker.evaluate({"sys_platform": platform, "extra": ""})):
            continue
        has.add(name)
        with contextlib.suppress(PackageNotFoundError):  # for the other platform
            left += [each for each in requires(name) or () if "extra ==" not in each]
    found = packages_distributions()
    return tuple(sorted(top for top, owners in found.items() if not has & {canonicalize_name(o) for o in owners}))


def in_a_process(code: str, without: tuple[str, ...], **environment: str) -> str:
    """What `code` prints in a process in which these modules cannot be imported."""
    lines = f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n{textwrap.dedent(code)}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", lines],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_loads_and_answers_without_the_heavy_libraries(local: LocalHub, tmp_path: Path) -> None:
    """As somebody who has installed `hft2ane[evaluate]`, from the Hub into HF_HOME and then offline."""
    code = f"""
        import hft2ane
        assert not {{"numpy", "torch"}} & sys.modules.keys()
        print(hft2ane.load({REPO!r}).classify(["a b", "c"], top_k=1))
        """
    without = (*missing("evaluate", sys.platform), "hft2ane.card", "hft2ane.hub")
    assert {"transformers", "prefect", "matplotlib", "safetensors"} <= set(without)
    assert not {"torch", "numpy"} & set(without)
    home = str(tmp_path / "home")
    first = in_a_process(code, without, HF_HOME=home, HF_ENDPOINT=local.url)
    assert first.count("'label'") == 2
    asked = len(local.calls())
    assert in_a_process(code, without, HF_HOME=home, HF_ENDPOINT=local.url, HF_HUB_OFFLINE="1") == first
    assert len(local.calls()) == asked
    assert list((tmp_path / "home/hub").glob("models--org--tiny-ane/snapshots/*/conversion.json"))


@pytest.mark.slow
def test_on_a_mac_torch_is_not_needed_either(local: LocalHub, tmp_path: Path) -> None:
    """Core ML is stood in for by something that gives zeros: only what is imported is tested here, and that it gets
    the files of the package rather than the cache's links to them."""
    code = f"""
        from pathlib import Path
        from types import SimpleNamespace
        import numpy as np
        from hft2ane import coreml
        def keep(package, place):
            files = [path for path in Path(package).rglob("*") if path.is_file()]
            assert len(files) == 3 and not any(path.is_symlink() for path in files), files
            place.mkdir(parents=True)
            print(package)
        class Model:
            def __init__(self, compiled, function, unit, of):
                assert compiled.is_dir()
            def __call__(self, inputs):
                return {{"logits": np.zeros((1, 2), np.float16)}}
        coreml.available, coreml.keep, coreml.Model = (lambda: True), keep, Model
        from hft2ane.runtime import loading
        loading.sys = SimpleNamespace(platform="darwin")
        from hft2ane import load
        print(load({REPO!r}).classify("a b"))
        """
    without = missing("", "darwin")
    assert {"torch", "transformers", "prefect"} <= set(without)
    assert not {"numpy", "coremltools", "tokenizers"} & set(without)
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "home")}
    package, said = in_a_process(code, without, **home, HF_ENDPOINT=local.url).splitlines()
    assert "'score': 0.5" in said
    assert not Path(package).exists()  # the copy is for the compiler alone
    assert in_a_process(code, without, **home, HF_ENDPOINT=local.url).splitlines() == [said]  # what it made is there


def test_what_is_not_installed_is_said(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hft2ane.runtime import loading

    monkeypatch.setattr(loading, "find_spec", lambda name: None if name in ("torch", "tokenizers") else 1)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(BadInput, match=r"takes tokenizers, torch too: pip install 'hft2ane\[evaluate\]'"):
        load(made)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BadInput, match="takes tokenizers too"):
        load(made)


def test_a_package_of_plain_files_is_not_copied(made: Path) -> None:
    (package,) = made.glob("*.float16.mlpackage")
    with engine.plain(package) as path:
        assert path == package


@pytest.mark.mac
@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML is on macOS only")
def test_core_ml_answers_from_the_cache(
    local: LocalHub, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Out of the Hub's cache, by Core ML, as the evaluator answers; a second time by what was compiled."""
    monkeypatch.setattr("hft2ane.coreml.model.KEPT", str(tmp_path))
    texts = ["a b c", "zebra", " ".join("a" * 28)]
    got = load(REPO).classify(texts)
    assert load(REPO).classify(texts) == got
    assert len(list(tmp_path.glob("*.mlmodelc"))) == 1
    monkeypatch.setattr("hft2ane.coreml.available", lambda: False)
    for one, other in zip(got, load(made).classify(texts), strict=True):
        assert [each["label"] for each in one] == [each["label"] for each in other]
        assert [each["score"] for each in one] == pytest.approx([each["score"] for each in other], abs=5e-3)
