"""From a checkpoint to packages through the job's folder; and proof that coremltools would write the same."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import pytest
import torch
from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction
from safetensors.torch import load_file, save_file

from hft2ane import export, keys, package, records, source
from hft2ane.errors import GateFailed, ToolchainMismatch, UnsupportedConfig
from hft2ane.export import MULTIFUNCTION, SINGLE, Deployment, build
from hft2ane.families import FAMILIES, family
from hft2ane.mil import open_package
from hft2ane.psnr import Deviation, deviation, psnr
from hft2ane.records.job import Job
from hft2ane.records.package import Exported
from hft2ane.records.recipe import FORMS, Form, Recipe, Task
from hft2ane.reference import Original, load
from hft2ane.rewrite import rewrite
from tests import test_families
from tests.conftest import Checkpoint
from tests.peer import TARGETS, assert_as_coremltools_writes_it, assert_same, converted, reread, spec_of, values

Array = np.ndarray[Any, Any]

pytestmark = [
    # `MLModel` leaves the removal of its temporary folders to the interpreter.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]

LENGTH, CHANNELS, LABELS, CHOICES = 16, 24, 3, 4
IDS = ("input_ids", "attention_mask", "token_type_ids")
SINGLE_TEXT: tuple[Task, ...] = ("sentence-embedding", "text-generation")  # of one text, so without token types
# Names and shapes of transformers' outputs, and whether they have a row for each token.
CONTRACTS: dict[Task, dict[str, tuple[int, ...]]] = {
    "feature-extraction": {"last_hidden_state": (1, LENGTH, CHANNELS), "pooler_output": (1, CHANNELS)},
    "sentence-embedding": {"token_embeddings": (1, LENGTH, CHANNELS), "sentence_embedding": (1, CHANNELS)},
    "fill-mask": {"logits": (1, LENGTH, 36)},
    "text-classification": {"logits": (1, LABELS)},
    "token-classification": {"logits": (1, LENGTH, LABELS)},
    "question-answering": {"start_logits": (1, LENGTH), "end_logits": (1, LENGTH)},
    "next-sentence-prediction": {"logits": (1, 2)},
    "multiple-choice": {"logits": (1, CHOICES)},
    "replaced-token-detection": {"logits": (1, LENGTH)},
    "text-generation": {"logits": (1, LENGTH, 36)},
}


def family_of(task: Task) -> str:
    return "electra" if task == "replaced-token-detection" else "bert"


def make(checkpoint: Checkpoint, task: Task, **changes: Any) -> Path:
    """A loud checkpoint for the task."""
    kind = family(family_of(task)).tasks["feature-extraction" if task == "sentence-embedding" else task]
    labels = LABELS if task in ("text-classification", "token-classification") else 2
    if task == "replaced-token-detection":  # with seed 0 the score of a first token is almost 0
        changes = {"seed": 1} | changes
    folder = checkpoint(kind.ORIGINAL, num_labels=labels, is_decoder=task == "text-generation", **changes)
    if task == "sentence-embedding":
        stages = [("", "models.Transformer"), ("1_Pooling", "models.Pooling"), ("2_Normalize", "models.Normalize")]
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{name}"}
            for i, (path, name) in enumerate(stages)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": CHANNELS, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


def prepare(folder: Path, checkpoint: Path, task: Task | None = None, lengths: Sequence[int] = (LENGTH,)) -> Path:
    """A job's folder up to source.json."""
    folder.mkdir(parents=True)
    job = Job("create", "a test", "someone/tiny", "me/tiny-ane", recipe=Recipe(task, tuple(lengths)))
    records.write(folder / "job.json", job)
    source.take(folder, checkpoint, job.id)
    return folder


def digests(path: Path) -> dict[str, str]:
    return {str(name): hashlib.sha256((path / name).read_bytes()).hexdigest() for name in package.files(path)}


def rows(shape: tuple[int, ...], types: int, words: int = 36) -> Iterator[dict[str, Array]]:
    """Random ids: all tokens, some padding, and one token only."""
    rng = np.random.default_rng(3)
    for valid in (shape[-1], shape[-1] // 2 + 1, 1):
        mask = np.broadcast_to(np.arange(shape[-1]) < valid, shape).astype(np.int32)
        ids = rng.integers(0, words, shape, dtype=np.int32)
        yield dict(zip(IDS, (ids, mask, rng.integers(0, types, shape, dtype=np.int32)), strict=True))


def answers(original: Original, inputs: dict[str, Array]) -> dict[str, Array]:
    out = original.answer({name: torch.from_numpy(each) for name, each in inputs.items()})
    return {name: each.numpy() for name, each in out.items()}


def at_tokens(value: Array, inputs: dict[str, Array]) -> Array:
    """Without what stands at padding."""
    kept: Array = value[inputs["attention_mask"].astype(bool)] if value.shape[1:2] == (LENGTH,) else value
    return kept


# --- every task ---


@pytest.mark.parametrize("task", CONTRACTS)
def test_task(task: Task, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", make(checkpoint, task), task)
    told: list[tuple[str, float]] = []
    exported = export.export(folder, lambda what, share: told.append((what, share)))
    assert exported == records.read(folder / "export.json", Exported)
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == 1
    assert (exported.task, exported.family) == (task, family_of(task))
    labelled = task in ("text-classification", "token-classification")
    assert exported.labels == (("LABEL_0", "LABEL_1", "LABEL_2") if labelled else ())
    (made,) = exported.packages
    path = folder / made.file
    assert made.file == "tiny.float16.mlpackage"
    assert (made.digest, made.size) == (package.digest(path), package.size(path))
    assert (made.minimum_os, made.default_function) == ("iOS 16 / macOS 13", "main")

    (function,) = made.functions
    shape = (1, CHOICES, LENGTH) if task == "multiple-choice" else (1, LENGTH)
    names = IDS[:2] if task in SINGLE_TEXT else IDS
    assert (function.name, function.length) == ("main", LENGTH)
    assert {t.name: (t.shape, t.dtype) for t in function.inputs} == dict.fromkeys(names, (shape, "int32"))
    assert {t.name: (t.shape, t.dtype) for t in function.outputs} == {
        name: (shape, "float16") for name, shape in CONTRACTS[task].items()
    }
    assert all(len(tensor.about) > 20 for tensor in (*function.inputs, *function.outputs))

    spec = spec_of(path)
    arrays = coremltools.proto.FeatureTypes_pb2.ArrayFeatureType
    for tensors, features in (
        (function.inputs, spec.description.input),
        (function.outputs, spec.description.output),
    ):
        for tensor, feature in zip(tensors, features, strict=True):
            array = feature.type.multiArrayType
            dtype = arrays.INT32 if tensor.dtype == "int32" else arrays.FLOAT16
            assert (feature.name, tuple(array.shape), array.dataType) == (tensor.name, tensor.shape, dtype)
            assert feature.shortDescription == tensor.about
            assert array.WhichOneof("ShapeFlexibility") is None
    assert spec.specificationVersion == 7

    program, original = open_package(path), load(folder / "source", task)
    for row in rows(shape, 2):
        inputs = {name: row[name] for name in names}
        reference, got = answers(original, inputs), program.evaluate(inputs)
        assert got.keys() == CONTRACTS[task].keys()
        for name, value in got.items():
            assert psnr(at_tokens(reference[name], inputs), at_tokens(value, inputs)) >= 40


def test_provenance(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The package says what it is, wherever it is copied to, and no machine or date."""
    folder = prepare(tmp_path / "job", make(checkpoint, "fill-mask"))
    exported = export.export(folder)
    metadata = spec_of(folder / exported.packages[0].file).description.metadata
    assert metadata.author == "Converted by hft2ane from someone/tiny"
    assert metadata.license == ""  # it may change without the package
    assert metadata.shortDescription == "fill-mask of someone/tiny, float16, for the Apple Neural Engine"
    assert dict(metadata.userDefined) == {
        "co.huggingface.exporters.name": "someone/tiny",
        "co.huggingface.exporters.task": "fill-mask",
        "com.github.hft2ane.source": "someone/tiny@local",
        "com.github.hft2ane.family": "bert",
        "com.github.hft2ane.convert_key": exported.convert_key,
        "com.github.hft2ane.variant": "float16",
        "com.github.hft2ane.weights": "fp16",
        **{f"com.github.hft2ane.{tool}": version for tool, version in exported.toolchain.items()},
    }
    assert exported.toolchain == keys.toolchain()
    assert exported.original == "BertForMaskedLM"
    assert str(tmp_path).encode() not in (folder / exported.packages[0].file / package.SPEC).read_bytes()


def test_problem_types_and_labels(checkpoint: Checkpoint, tmp_path: Path) -> None:
    of = checkpoint(
        "BertForSequenceClassification", id2label={0: "no", 1: "yes"}, problem_type="multi_label_classification"
    )
    exported = export.export(prepare(tmp_path / "job", of))
    assert (exported.labels, exported.problem) == (("no", "yes"), "multi_label_classification")


# --- several lengths ---

LENGTHS = (8, 32, LENGTH)


@pytest.fixture(scope="module")
def large(checkpoint: Checkpoint) -> Path:
    """Large enough that its weights are in the weight file."""
    return checkpoint(hidden_size=96, intermediate_size=200, num_hidden_layers=2)


@pytest.fixture(scope="module")
def single(large: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    folder = prepare(tmp_path_factory.mktemp("single") / "job", large)
    return folder, export.export(folder)


@pytest.fixture(scope="module")
def several(large: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    folder = prepare(tmp_path_factory.mktemp("several") / "job", large, lengths=LENGTHS)
    return folder, export.export(folder)


def test_a_function_a_length(several: tuple[Path, Exported]) -> None:
    folder, exported = several
    (made,) = exported.packages
    assert [(f.name, f.length) for f in made.functions] == [("tokens_8", 8), ("tokens_16", 16), ("tokens_32", 32)]
    assert made.default_function == "tokens_32"
    assert made.minimum_os == "iOS 18 / macOS 15"
    for function in made.functions:
        assert {tensor.shape for tensor in function.inputs} == {(1, function.length)}
        assert function.outputs[0].shape == (1, function.length, 96)
    spec = spec_of(folder / made.file)
    assert spec.specificationVersion == 9
    assert spec.description.defaultFunctionName == "tokens_32"
    assert not spec.description.input
    assert not spec.description.output
    assert [each.name for each in spec.description.functions] == ["tokens_8", "tokens_16", "tokens_32"]
    for each in spec.description.functions:
        assert all(feature.shortDescription for feature in (*each.input, *each.output))
    for name in ("tokens_8", "tokens_32"):
        coremltools.models.MLModel(str(folder / made.file), function_name=name, skip_model_load=True)


def test_each_function_is_right(several: tuple[Path, Exported]) -> None:
    folder, exported = several
    program, original = open_package(folder / exported.packages[0].file), load(folder / "source", None)
    for length in LENGTHS:
        for inputs in rows((1, length), 2):
            reference, got = answers(original, inputs), program.evaluate(inputs, f"tokens_{length}")
            assert psnr(reference["pooler_output"], got["pooler_output"]) >= 40
            kept = inputs["attention_mask"].astype(bool)
            assert psnr(reference["last_hidden_state"][kept], got["last_hidden_state"][kept]) >= 40


def test_weights_are_stored_once(single: tuple[Path, Exported], several: tuple[Path, Exported]) -> None:
    """Each length adds its slice of the position table only."""
    one, three = (
        (folder / exported.packages[0].file / package.WEIGHTS).stat().st_size for folder, exported in (single, several)
    )
    slices = 2 * 96 * (8 + 32)
    assert one > 2 * 2 * (4 * 96 * 96 + 2 * 96 * 200)
    assert one < three < one + slices + 64 * 8


def test_longest_as_default_whatever_the_order(large: Path) -> None:
    program, functions = build(rewrite(load(large, None)), [LENGTH, 8], MULTIFUNCTION)
    assert [f.length for f in functions] == [8, LENGTH]
    assert program.default_function_name == f"tokens_{LENGTH}"


# --- the same bytes ---


def test_the_same_job_in_other_folders_and_processes(
    large: Path, several: tuple[Path, Exported], tmp_path: Path
) -> None:
    """Whatever was exported before in the process, and in whatever order its hashes come."""
    script = "import sys, pathlib; from hft2ane import export; export.export(pathlib.Path(sys.argv[1]))"
    folders = [prepare(tmp_path / name, large, lengths=LENGTHS) for name in ("a", "another/place")]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
            env=os.environ | {"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        for seed, folder in enumerate(folders, start=1)
    ]
    again = prepare(tmp_path / "again", large, lengths=LENGTHS)
    export.export(again)
    assert [child.wait(timeout=300) for child in children] == [0, 0]
    first, exported = several
    expected = digests(first / "tiny.float16.mlpackage")
    for folder in (again, *folders):
        assert digests(folder / "tiny.float16.mlpackage") == expected
        other = records.read(folder / "export.json", Exported)
        assert replace(other, seconds=0) == replace(exported, seconds=0)


def test_other_weights_give_other_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = [export.export(prepare(tmp_path / str(seed), checkpoint(seed=seed))) for seed in (1, 2)]
    assert made[0].packages[0].digest != made[1].packages[0].digest
    assert made[0].convert_key != made[1].convert_key


# --- what is refused ---


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_lengths_beyond_the_positions(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", checkpoint(), lengths=(64, 65, 512))
    with pytest.raises(UnsupportedConfig, match=r"^someone/tiny: lengths 65, 512 are beyond its 64 positions"):
        export.export(folder)
    assert left(folder) == {"job.json", "source.json", "source"}
    records.write(folder / "job.json", replace(records.read(folder / "job.json", Job), recipe=Recipe(lengths=(64,))))
    assert export.export(folder).packages[0].functions[0].length == 64


@pytest.mark.parametrize("tool", keys.TOOLS)
def test_another_toolchain(tool: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = keys.toolchain()
    monkeypatch.setattr(keys, "toolchain", lambda: locked | {tool: "0.1"})
    folder = prepare(tmp_path / "job", checkpoint())
    with pytest.raises(
        ToolchainMismatch, match=rf"^{tool} .* is installed, but packages are made with 0\.1: pip install"
    ):
        export.export(folder)
    assert left(folder) == {"job.json", "source.json", "source"}


def test_a_failure_leaves_neither_packages_nor_a_record(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Not even those of an export before: they would be taken for this one's."""
    folder = prepare(tmp_path / "job", checkpoint())
    export.export(folder)
    assert left(folder) == {"job.json", "source.json", "source", "export.json", "tiny.float16.mlpackage"}
    weight = folder / "source/model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weight).items()}
    tensors["encoder.layer.0.intermediate.dense.weight"][1, 2] = 1e5
    weight.unlink()
    save_file(tensors, weight, {"format": "pt"})
    with pytest.raises(GateFailed, match=r"blocks\.0\.up"):
        export.export(folder)
    assert "export.json" not in left(folder)
    assert not any(name.startswith(".") for name in left(folder))


def test_an_interrupted_write_leaves_no_package(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(tmp_path / "job", checkpoint())
    monkeypatch.setattr(package, "manifest", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export(folder)
    assert left(folder) == {"job.json", "source.json", "source"}


# --- proof of the writer ---

IOS18 = Deployment(MULTIFUNCTION.specification, "")


def saved(path: Path, program: Any) -> Path:
    package.write(path, program, "", export.INPUTS | export.OUTPUTS, {"author": "a test"})
    return path


@pytest.mark.parametrize("deployment", [SINGLE, IOS18], ids=["iOS16", "iOS18"])
@pytest.mark.parametrize("task", CONTRACTS)
def test_coremltools_writes_the_same(
    task: Task, deployment: Deployment, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    module = rewrite(load(make(checkpoint, task, tie_word_embeddings=False), task))
    program, _ = build(module, [LENGTH], deployment, CHOICES if task == "multiple-choice" else None)
    mine = saved(tmp_path / "mine.mlpackage", program)
    theirs = converted(tmp_path / "theirs.mlpackage", reread(mine), deployment.specification)
    assert_same(mine, theirs)
    assert spec_of(theirs).mlProgram.attributes.keys() == {
        "buildInfo"
    }  # which converter made it: all that we leave out


@pytest.mark.parametrize(("name", "task"), [(name, task) for name in FAMILIES for task in family(name).tasks])
def test_coremltools_writes_the_same_of_each_family(name: str, task: Task, tmp_path: Path) -> None:
    """But for tied weights, which it has no way to store once: here each has its own."""
    test_families.loud(name, task, {}).save_pretrained(tmp_path / "source")
    module: Any = rewrite(load(tmp_path / "source", task))
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    for part, its_module in module.parts.items():
        program, _ = build(its_module, [4, 8], MULTIFUNCTION, CHOICES if task == "multiple-choice" else None)
        (tmp_path / f"as {part}").mkdir()
        assert_as_coremltools_writes_it(saved(tmp_path / f"{part}.mlpackage", program), tmp_path / f"as {part}")


@pytest.mark.parametrize("lengths", [(LENGTH,), LENGTHS], ids=["single", "several"])
@pytest.mark.parametrize("linear", FORMS)
def test_coremltools_writes_the_same_of_each_variant(
    linear: Form, lengths: tuple[int, ...], large: Path, tmp_path: Path
) -> None:
    deployment = SINGLE if len(lengths) == 1 else MULTIFUNCTION
    program, _ = build(rewrite(load(large, None)), lengths, deployment, linear=linear)
    mine = saved(tmp_path / "mine.mlpackage", program)
    assert ("constexpr" in str(spec_of(mine))) == (linear != "float16")
    assert_same(mine, converted(tmp_path / "theirs.mlpackage", reread(mine), deployment.specification))


def test_save_multifunction_writes_the_same(large: Path, several: tuple[Path, Exported], tmp_path: Path) -> None:
    """Packages of one length, merged by coremltools, are our package of several, with the weights shared."""
    module = rewrite(load(large, None))
    merged = MultiFunctionDescriptor()
    for length in sorted(LENGTHS):
        mine = saved(tmp_path / f"{length}-mine.mlpackage", build(module, [length], IOS18)[0])
        path = converted(tmp_path / f"{length}.mlpackage", reread(mine), IOS18.specification)
        merged.add_function(str(path), "main", f"tokens_{length}")
    merged.default_function_name = "tokens_32"
    save_multifunction(merged, str(tmp_path / "theirs.mlpackage"))
    folder, exported = several
    assert_same(folder / exported.packages[0].file, tmp_path / "theirs.mlpackage")


def test_an_export_does_without_coremltools(large: Path, tmp_path: Path) -> None:
    """But for its protobuf classes: its converters take seconds to import, and memory."""
    script = (
        "import sys, pathlib; from hft2ane import export; export.export(pathlib.Path(sys.argv[1]))\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'coremltools'])"
    )
    folder = prepare(tmp_path / "job", large, lengths=LENGTHS)
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert (folder / "export.json").exists()


# --- tied weights ---


@pytest.mark.parametrize("lengths", [(LENGTH,), LENGTHS], ids=["single", "several"])
@pytest.mark.parametrize("linear", FORMS)
def test_a_table_that_is_tied_to_a_linear_layer_is_stored_once(
    linear: Form, lengths: tuple[int, ...], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Where both are stored in one form. Nothing else differs from a package of a copy of the table."""
    module: Any = rewrite(load(checkpoint("BertForMaskedLM", hidden_size=96, intermediate_size=200), "fill-mask"))
    assert module.decoder.weight.data_ptr() == module.words.weight.data_ptr()
    deployment = SINGLE if len(lengths) == 1 else MULTIFUNCTION

    def made(name: str) -> Path:
        return saved(tmp_path / name, build(module, lengths, deployment, linear=linear)[0])

    tied = made("tied.mlpackage")
    module.decoder.weight = torch.nn.Parameter(module.decoder.weight.clone(), requires_grad=False)
    apart = made("apart.mlpackage")
    table = {"float16": 2 * 36 * 96, "int8": 36 * (96 + 1 + 2)}.get(linear, 0)
    saving = (apart / package.WEIGHTS).stat().st_size - (tied / package.WEIGHTS).stat().st_size
    assert table <= saving <= table + 3 * 2 * 64 * bool(table)  # with what aligns each part
    mine, other = open_package(tied).functions, open_package(apart).functions
    for name in mine:
        assert mine[name].ops == other[name].ops or linear != "float16"
        assert mine[name].constants.keys() == other[name].constants.keys()
        for key, constant in mine[name].constants.items():
            np.testing.assert_array_equal(constant.array, other[name].constants[key].array)
    assert without_offsets(spec_of(tied)) == without_offsets(spec_of(apart))
    inputs = next(rows((1, LENGTH), 2))
    function = "main" if len(lengths) == 1 else f"tokens_{LENGTH}"
    got, expected = (open_package(path).evaluate(inputs, function)["logits"] for path in (tied, apart))
    np.testing.assert_array_equal(got, expected)


def without_offsets(spec: Any) -> Any:
    for function in spec.mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            for _, value in values(operation):
                if value.WhichOneof("value") == "blobFileValue":
                    value.blobFileValue.offset = 0
    return spec


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # inside torch.export
@pytest.mark.filterwarnings("ignore:.*_TORCH_OPS_REGISTRY:DeprecationWarning")  # inside coremltools
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # inside coremltools' passes
def test_the_stock_path_gives_the_same_function(large: Path, single: tuple[Path, Exported], tmp_path: Path) -> None:
    """torch.export, coremltools' frontend and its hundred passes, from the same module; `torch.jit.trace` is closed
    to it because coremltools 9.0 does not take the length of an input with numpy 2.4."""
    original = load(large, None)
    module: Any = rewrite(original)
    example = next(rows((1, LENGTH), 2))
    graph = torch.export.export(module, tuple(map(torch.from_numpy, example.values()))).run_decompositions({})
    coremltools.convert(
        graph,
        inputs=[coremltools.TensorType(name, shape=(1, LENGTH), dtype=np.int32) for name in module.inputs],
        outputs=[coremltools.TensorType(name, dtype=np.float16) for name in module.OUTPUTS],
        minimum_deployment_target=TARGETS[SINGLE.specification],
        skip_model_load=True,
    ).save(str(tmp_path / "stock.mlpackage"))
    folder, exported = single
    mine, stock = open_package(folder / exported.packages[0].file), open_package(tmp_path / "stock.mlpackage")
    losses = {name: [Deviation(0, 0, 0), Deviation(0, 0, 0)] for name in module.OUTPUTS}
    for inputs in rows((1, LENGTH), 2):
        reference = answers(original, inputs)
        exact = [program.evaluate(inputs, mode="float32") for program in (mine, stock)]
        rounded = [program.evaluate(inputs) for program in (mine, stock)]
        for name, answer in reference.items():
            assert psnr(*(at_tokens(each[name], inputs) for each in exact)) > 90  # one function, before rounding
            for i, each in enumerate(rounded):
                losses[name][i] += deviation(at_tokens(answer, inputs), at_tokens(each[name], inputs))
    for of_mine, of_stock in losses.values():
        assert of_mine.psnr > 60
        assert abs(of_mine.psnr - of_stock.psnr) < 1
