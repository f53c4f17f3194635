"""What a package will weigh, known before its weights are: the written one's, and refused where it is too much."""

import json
from pathlib import Path

import pytest
import transformers

from hft2ane import export, layout, package, records, source
from hft2ane.ane import Embedding
from hft2ane.errors import TooLarge
from hft2ane.families import FAMILIES, family
from hft2ane.limits import beyond, constant_bytes, looked_up
from hft2ane.mil import open_package
from hft2ane.mil.lint.graph import Graph
from hft2ane.mil.lint.rules import weight_bytes
from hft2ane.records.job import Job
from hft2ane.records.lint import CONSTANT_MOST, WEIGHTS_MOST, LintSettings
from hft2ane.records.recipe import FORMS, Form, Recipe, Variant
from hft2ane.records.source import CardFields, Source
from hft2ane.reference import describe
from hft2ane.rewrite import blank
from tests.conftest import Checkpoint
from tests.test_families import loud


@pytest.fixture(scope="module", params=[(16,), (8, 16)], ids=["single", "several"])
def made(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    records.write(
        folder / "job.json", Job("create", "", "a/tiny", "me/tiny", recipe=Recipe(None, request.param, FORMS))
    )
    source.take(folder, checkpoint(hidden_size=256, intermediate_size=512, num_attention_heads=4), "a/tiny")
    export.export(folder)
    return folder


@pytest.mark.parametrize("linear", FORMS)
def test_the_predicted_size_is_the_written_one(made: Path, linear: Form) -> None:
    """Of each function but for the parameters of its operations, and of the file, where all share one copy, to 3 %."""
    path = made / f"tiny.{linear}.mlpackage"
    program = open_package(path)
    module = blank(describe(made / "source", None), ())
    for function in program.functions.values():
        shape = function.inputs[0].shape
        predicted = sum(constant_bytes(module, shape)[linear].values())
        assert predicted == pytest.approx(weight_bytes(Graph(program, function)), abs=2000)
    assert predicted == pytest.approx((path / package.WEIGHTS).stat().st_size, rel=0.03)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_known_by_its_shapes(name: str, tmp_path: Path) -> None:
    """Its table of words is looked up, and in fp16 all that it has takes two bytes a number, but unused positions."""
    loud(name, next(iter(family(name).tasks)), {}).save_pretrained(tmp_path)
    length = 8
    for module in blank(describe(tmp_path, None), ()).parts.values():
        numbers = sum(parameter.numel() for parameter in module.parameters())
        tables = looked_up(module, (1, 1))
        assert module.words in tables
        unused = sum(
            max(len(part.weight) - length, 0) * part.weight.shape[1]
            for part in module.modules()
            if isinstance(part, Embedding) and part not in tables
        )
        assert sum(constant_bytes(module, (1, length))["float16"].values()) == 2 * (numbers - unused)


def too_large(folder: Path, variants: tuple[Variant, ...], **sizes: int) -> None:
    """Exports a job of a model of which there are only the configuration and the names of its tensors."""
    config = transformers.BertConfig(architectures=["BertModel"], **sizes).to_dict()
    (folder / "source").mkdir(parents=True)
    (folder / "source" / "config.json").write_text(json.dumps(config))
    index = {"weight_map": {"embeddings.word_embeddings.weight": "model-00001-of-00001.safetensors"}}
    (folder / "source" / layout.INDEX).write_text(json.dumps(index))
    job = Job("create", "", "a/giant", "me/giant", recipe=Recipe(None, (128,), variants))
    records.write(folder / "job.json", job)
    records.write(folder / "source.json", Source(job.id, "local", (), CardFields()))
    export.export(folder)


GIANT = {"hidden_size": 1600, "intermediate_size": 6400, "num_hidden_layers": 24, "num_attention_heads": 16}


def test_a_model_beyond_the_limit_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    """24 · 12 · 1600² numbers and the tables: 1.47 GiB in fp16, the half in int8."""
    with pytest.raises(
        TooLarge, match=r"a/giant as float16: 1\.47 GiB of weights in one function, macOS 27 takes 1 GiB"
    ):
        too_large(tmp_path / "half", ("int8", "float16"), **GIANT)
    with pytest.raises(TooLarge, match=r"one of the variants int8, palettized-8, palettized-6, palettized-4, or take"):
        too_large(tmp_path / "again", ("float16",), **GIANT)


def test_where_no_variant_is_small_enough(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="as mixed-4: .* GiB .*; no variant is small enough, take a smaller model"):
        too_large(tmp_path, ("mixed-4",), **GIANT | {"num_hidden_layers": 96})


def test_a_single_constant_is_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hft2ane.limits.WEIGHTS_MOST", {LintSettings().system: 1 << 40})
    assert beyond({"a": 1, "words.weight": CONSTANT_MOST - 1}) is None
    assert "words.weight is one constant of 2.00 GiB" in (beyond({"a": 1, "words.weight": CONSTANT_MOST}) or "")


def test_the_limit_is_the_linter_s() -> None:
    most = WEIGHTS_MOST[LintSettings().system]
    assert beyond({"a": most}) is None
    assert beyond({"a": most, "b": 1}) is not None
