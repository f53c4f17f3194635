"""Every family and task as a saved package, at one length and at several: right at tokens in fp16, and linted."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from hft2ane import package
from hft2ane.export import CHOICES, INPUTS, MULTIFUNCTION, OUTPUTS, SINGLE, build
from hft2ane.families import family
from hft2ane.mil import open_package
from hft2ane.mil.lint import lint
from hft2ane.records.package import Function, Part
from hft2ane.reference import Original, load
from hft2ane.rewrite import rewrite
from tests.families import ROWS
from tests.test_families import EXACT, LENGTH, Inputs, exact, fidelity, loud, tokens

ARTEFACT = 40.0  # dB, over all rows of a length


def saved(module: Any, lengths: list[int], choices: int | None, path: Path) -> tuple[Function, ...]:
    """Writes the package; its functions, from the shortest on."""
    deployment = SINGLE if len(lengths) == 1 else MULTIFUNCTION
    program, functions = build(module, lengths, deployment, choices)
    package.write(path, program, "a test", INPUTS | OUTPUTS, {"author": "a test"})
    return functions


def single_rows(model: Any, length: int, choices: int) -> Iterator[Inputs]:
    """A full row, a padded one, and one of a single token, each for itself, since a package takes one at a time."""
    several = tokens(model, (length, length // 2 + 1, 1), length, choices)
    for n in range(3):
        yield {key: value[n : n + 1] for key, value in several.items()}


def as_taken(value: Tensor) -> np.ndarray[Any, Any]:
    return (value.half() if value.is_floating_point() else value.int()).numpy()


@pytest.mark.parametrize("several", [False, True], ids=["one length", "several"])
@pytest.mark.parametrize(("name", "task"), [(name, task) for name in ROWS for task in family(name).tasks])
def test_package(tmp_path: Path, name: str, task: str, several: bool) -> None:
    model = loud(name, task, {})
    model.save_pretrained(tmp_path)
    original = load(tmp_path, None)
    lengths = [8, family(name).tasks[task].limit(model.config)] if several else [LENGTH]
    choices = CHOICES if task == "multiple-choice" else 0
    for part, module in rewrite(original).parts.items():
        path = tmp_path / f"tiny{part}.mlpackage"
        functions = saved(module, lengths, choices or None, path)
        assert [finding for finding in lint(path).findings if finding.severity == "error"] == []
        for function in functions:
            assert artefact(original, module, path, function, choices, part) >= ARTEFACT


def artefact(
    original: Original, module: Any, path: Path, function: Function, choices: int = 0, part: Part = ""
) -> float:
    """The least PSNR in dB of one function of the package at `path` against transformers."""
    program = open_package(path)
    asked, expected, got = [], [], []
    for row in single_rows(original.model, function.length, choices):
        inputs, answers = original.ask(row)[part]
        asked.append(inputs)
        expected.append({key: value.numpy() for key, value in answers.items()})
        outputs = program.evaluate({key: as_taken(inputs[key]) for key in module.inputs}, function.name)
        got.append({key: value.astype(np.float32) for key, value in outputs.items()})
    return fidelity(asked, expected, got)


def test_a_vocabulary_beyond_the_channels_of_the_engine(tmp_path: Path) -> None:
    """XLM-RoBERTa's: its decoder is four convolutions."""
    model = loud("xlm-roberta", "fill-mask", {"vocab_size": 250002, "hidden_size": 6})
    model.save_pretrained(tmp_path)
    original = load(tmp_path, None)
    module = rewrite(original)
    path = tmp_path / "tiny.mlpackage"
    (function,) = saved(module, [LENGTH], None, path)
    assert [finding for finding in lint(path).findings if finding.severity == "error"] == []
    decoders = [op for op in open_package(path).function("main").ops if op.type == "conv" and "decoder" in op.name]
    assert [op.outputs[0].shape[1] for op in decoders] == [62528, 62528, 62528, 62418]
    assert artefact(original, module, path, function) >= ARTEFACT


def test_albert_stores_a_layer_once(tmp_path: Path) -> None:
    """Six uses of a layer weigh what one does; a second group of layers weighs a layer more."""
    large = {"hidden_size": 96, "intermediate_size": 200}
    stored = []
    for n, more in enumerate(({"num_hidden_layers": 1}, {"num_hidden_layers": 6}, {"num_hidden_groups": 2})):
        folder = tmp_path / str(n)
        loud("albert", "token-classification", {**large, **more}).save_pretrained(folder)
        saved(rewrite(load(folder, None)), [LENGTH], None, folder / "tiny.mlpackage")
        stored.append((folder / "tiny.mlpackage" / package.WEIGHTS).read_bytes())
    once, six, groups = stored
    layer = 2 * (4 * 96 * 96 + 2 * 96 * 200)
    assert once == six
    assert layer < len(once) < len(groups) - layer


def test_modernbert_looks_at_near_tokens_in_windows(tmp_path: Path) -> None:
    """Beyond 512 tokens: no mask of all tokens for all, and no scores of keys out of reach."""
    length, reach = 640, 32
    model = loud(
        "modernbert", "token-classification", {"max_position_embeddings": length, "local_attention": 2 * reach}
    )
    model.save_pretrained(tmp_path)
    original = load(tmp_path, None)
    module = rewrite(original)
    path = tmp_path / "tiny.mlpackage"
    (function,) = saved(module, [length], None, path)
    assert [finding for finding in lint(path).findings if finding.severity == "error"] == []
    soft = [op.outputs[0].shape for op in open_package(path).function("main").ops if op.type == "softmax"]
    heads, first, second = model.config.num_attention_heads, 512 + reach, 128 + reach
    local = {(1, first, 1, 512): heads, (1, second, 1, 128): heads}
    assert Counter(soft) == {(1, length, 1, 512): 2 * heads, (1, length, 1, 128): 2 * heads, **local}
    assert artefact(original, module, path, function) >= ARTEFACT
    inputs = tokens(model, (length, 300), length)
    assert exact(model, original, [inputs]) >= EXACT
