"""The package on disk: its canonical form, its digest by the definition, and what is no package."""

import hashlib
import json
import resource
import shutil
import uuid
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import pytest
from coremltools import libmodelpackage

from hft2ane import package
from hft2ane.errors import NoSpace, PackageError
from hft2ane.mil import open_package
from hft2ane.mil.proto import Model
from hft2ane.mil.signatures import Type
from hft2ane.mil.write import Function, Program, Weights

ABOUT = {"input_ids": "What goes in.", "logits": "What comes out."}
METADATA = {"author": "a test", "com.github.hft2ane.b": "2", "com.github.hft2ane.a": "1"}


def program(values: int = 64) -> Program:
    """A look-up in a table that is large enough for the weight file."""
    made = Program(7, Weights(7))
    function = Function(7, {"input_ids": Type((1, 8), "int32")}, made.weights)
    table = np.random.default_rng(1).standard_normal((values, 4)).astype(np.float16)
    inputs = {"x": table, "indices": function.inputs["input_ids"], "axis": 0}
    function.outputs = function.op("gather", "logits", inputs)
    made.functions["main"] = function
    return made


def write(path: Path, **changes: Any) -> Path:
    package.write(path, changes.get("program") or program(), "A table.", ABOUT, METADATA)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("made") / "made.mlpackage")


def test_files_and_size(made: Path) -> None:
    assert list(map(str, package.files(made))) == [
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
        "Manifest.json",
    ]
    assert package.size(made) == sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    assert package.size(made) > 64 * 4 * 2


def test_the_digest_is_that_of_sha256sum(made: Path, tmp_path: Path) -> None:
    """`cd made.mlpackage; find . -type f | sort | xargs sha256sum`, with `./` taken off, through sha256sum again."""
    names = ("Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin", "Manifest.json")
    lines = [f"{hashlib.sha256((made / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    assert package.digest(made) == hashlib.sha256("".join(lines).encode()).hexdigest()
    copy = shutil.copytree(made, tmp_path / "another name.mlpackage")
    assert package.digest(copy) == package.digest(made)


@pytest.mark.parametrize("name", ["Manifest.json", str(package.SPEC), str(package.WEIGHTS)])
def test_the_digest_covers_every_byte_and_name(made: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(made, tmp_path / "copy.mlpackage")
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    changed = package.digest(copy)
    (copy / name).write_bytes((made / name).read_bytes())
    assert package.digest(copy) == package.digest(made) != changed
    (copy / "more").write_bytes(b"")
    assert package.digest(copy) not in (package.digest(made), changed)


def test_the_same_program_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again.mlpackage")
    for name in package.files(made):
        assert (again / name).read_bytes() == (made / name).read_bytes(), name
    assert package.digest(write(tmp_path / "other.mlpackage", program=program(65))) != package.digest(made)


def test_the_manifest_is_canonical(made: Path) -> None:
    text = (made / "Manifest.json").read_text()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, indent=4, sort_keys=True) + "\n"
    assert manifest["fileFormatVersion"] == "1.0.0"
    items = manifest["itemInfoEntries"]
    assert {item["path"] for item in items.values()} == {"com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"}
    assert items[manifest["rootModelIdentifier"]]["path"] == "com.apple.CoreML/model.mlmodel"
    for key, item in items.items():
        assert uuid.UUID(key).version == 5
        assert key == key.upper()
        assert item["author"] == package.AUTHOR
        assert (made / "Data" / item["path"]).exists()


def test_coremltools_reads_it(made: Path) -> None:
    assert libmodelpackage.ModelPackage.isValid(str(made))
    root = libmodelpackage.ModelPackage(str(made)).getRootModel()
    assert Path(root.path()).samefile(made / package.SPEC)
    model = coremltools.models.MLModel(str(made), skip_model_load=True)
    assert model.short_description == "A table."
    assert (model.author, model.license) == ("a test", "")
    assert dict(model.user_defined_metadata) == {"com.github.hft2ane.a": "1", "com.github.hft2ane.b": "2"}
    assert model.input_description["input_ids"] == ABOUT["input_ids"]
    assert model.output_description["logits"] == ABOUT["logits"]
    assert model.get_spec().specificationVersion == 7
    assert Path(model.weights_dir, "weight.bin").read_bytes() == (made / package.WEIGHTS).read_bytes()


def test_protobuf_is_in_its_deterministic_form(made: Path) -> None:
    data = (made / package.SPEC).read_bytes()
    assert Model.FromString(data).SerializeToString(deterministic=True) == data


def test_what_was_there_before_is_replaced(made: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.mlpackage", program=program(65))
    (path / "left over").write_text("from another writer")
    (tmp_path / ".x.mlpackage.building").mkdir()
    (tmp_path / ".x.mlpackage.building" / "half").write_text("of a process that was killed")
    assert package.digest(write(path)) == package.digest(made)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.mlpackage"]


@pytest.mark.parametrize(
    ("stop", "told"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "full"), NoSpace), (OSError(5, "Input/output"), OSError)],
)
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, told: type[BaseException]
) -> None:
    """Neither half a package, nor the one before under the name of the new, nor the folder it is built in."""
    path = write(tmp_path / "x.mlpackage")

    def interrupted() -> str:
        assert not path.exists()
        assert (tmp_path / ".x.mlpackage.building" / package.SPEC).exists()
        raise stop

    monkeypatch.setattr(package, "manifest", interrupted)
    with pytest.raises(told):
        write(path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_on_the_disk(tmp_path: Path) -> None:
    """Writing fails for real, in the midst of the weights."""
    large, before = program(200_000), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(NoSpace, match=r"x\.mlpackage cannot be written \(.*\): make room on its disk"):
            write(tmp_path / "x.mlpackage", program=large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_description_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="logits"):
        package.write(tmp_path / "x.mlpackage", program(), "", {"input_ids": "in"}, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_package(tmp_path: Path, made: Path) -> None:
    (tmp_path / "file.mlpackage").write_text("a file")
    (tmp_path / "folder.mlpackage").mkdir()
    torn = shutil.copytree(made, tmp_path / "torn.mlpackage")
    (torn / "Manifest.json").unlink()
    for path in (tmp_path / "none", tmp_path / "file.mlpackage", tmp_path / "folder.mlpackage", torn):
        for ask in (package.files, package.digest, package.size):
            with pytest.raises(PackageError, match=rf"{path.name} is not an \.mlpackage: it has no Manifest\.json"):
                ask(path)


def test_it_computes(made: Path) -> None:
    ids = np.arange(8, dtype=np.int32)[None]
    table = np.random.default_rng(1).standard_normal((64, 4)).astype(np.float16)
    assert np.array_equal(open_package(made).evaluate({"input_ids": ids})["logits"], table[ids])
