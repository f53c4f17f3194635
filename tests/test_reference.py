"""Loading an original: what is taken as it is, what is refused and how it says so, and that it does nothing else."""

import json
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

from hft2ane.demo import MODELS, PICKLED, obtain
from hft2ane.errors import (
    Hft2aneError,
    MissingWeights,
    SourceError,
    UnknownFamily,
    UnknownTask,
    UnsafeFormat,
    UnsupportedConfig,
    UnsupportedModel,
)
from hft2ane.families import FAMILIES
from hft2ane.psnr import psnr
from hft2ane.reference import Tokenizer, load
from hft2ane.rewrite import rewrite
from tests.conftest import WORDS, Checkpoint
from tests.test_families import loud, run, tokens

Tensors = dict[str, Tensor]

IDS = torch.tensor([[2, 7, 9, 30, 3, 11], [2, 5, 3, 0, 0, 0]])
INPUTS = {
    "input_ids": IDS,
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
    "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]]),
}


def weights(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Other tensors in model.safetensors."""
    path = folder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)
    return folder


def config(folder: Path, **changes: Any) -> Path:
    """Other values in config.json; None takes a key out."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


@torch.no_grad()
def ours(folder: Path, task: str | None = None) -> dict[str, Tensor]:
    module: Any = rewrite(load(folder, task))
    return dict(zip(module.OUTPUTS, module(*(INPUTS[name] for name in module.inputs)), strict=True))


@torch.no_grad()
def theirs(folder: Path, original: str) -> Mapping[str, Any]:
    model = getattr(transformers, original).from_pretrained(folder, dtype=torch.float32)
    return model(**INPUTS)  # type: ignore[no-any-return]


def equal(expected: Tensor, got: Tensor) -> bool:
    return psnr(expected.numpy(), got.numpy()) > 115


# What is taken


def old_names(tensors: Tensors) -> Tensors:
    """As the first checkpoints were written, from TensorFlow's names."""
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {name.replace(key, new[key]) if (key := ".".join(name.split(".")[-2:])) in new else name: tensor
            for name, tensor in tensors.items()}  # fmt: skip


def with_positions(tensors: Tensors) -> Tensors:
    """A buffer that transformers wrote until version 4.31."""
    return tensors | {"bert.embeddings.position_ids": torch.arange(64)[None]}


def both_ends(tensors: Tensors) -> Tensors:
    """A decoder of its own in spite of `tie_word_embeddings`: transformers then uses it."""
    return tensors | {"cls.predictions.decoder.weight": torch.randn(len(WORDS), 24)}


@pytest.mark.parametrize("change", [old_names, with_positions, both_ends])
def test_tensors_are_taken_by_whatever_name(checkpoint: Checkpoint, change: Callable[[Tensors], Tensors]) -> None:
    plain = checkpoint("BertForMaskedLM")
    before = theirs(plain, "BertForMaskedLM")["logits"]
    folder = weights(plain, change)
    got = ours(folder)["logits"]
    assert equal(theirs(folder, "BertForMaskedLM")["logits"], got)
    assert equal(before, got) is (change is not both_ends)


@pytest.mark.parametrize("name", ["camembert", "mpnet", "roberta", "xlm-roberta"])
def test_a_masked_language_model_as_the_hub_has_it(tmp_path: Path, name: str) -> None:
    """RoBERTa's: the decoder's bias by its other name alone, its weight left out, positions in a buffer, a pooler."""
    model = loud(name, "fill-mask", {})
    model.save_pretrained(tmp_path)
    asked = tokens(model, (12, 5), 12)
    (expected,) = run(load(tmp_path, None), asked)

    def change(tensors: Tensors) -> Tensors:
        base = f"{model.base_model_prefix}."
        kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("lm_head.decoder.")}
        return kept | {
            "lm_head.bias": model.lm_head.decoder.bias.detach(),
            f"{base}embeddings.position_ids": torch.arange(18)[None],
            f"{base}pooler.dense.weight": torch.randn(24, 24),
            f"{base}pooler.dense.bias": torch.randn(24),
        }

    original = load(weights(tmp_path, change), None)
    assert original.task == "fill-mask"
    assert torch.equal(torch.tensor(run(original, asked)[0]["logits"]), torch.tensor(expected["logits"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_fp32(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    folder = config(checkpoint(), dtype=str(dtype).removeprefix("torch."))
    weights(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    original = load(folder, None)
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    for name, tensor in original.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    assert equal(theirs(folder, "BertModel")["last_hidden_state"], ours(folder)["last_hidden_state"])


def test_shards_are_one_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    whole = checkpoint("BertForMaskedLM")
    transformers.BertForMaskedLM.from_pretrained(whole).save_pretrained(tmp_path, max_shard_size="10kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(ours(whole)["logits"], ours(tmp_path)["logits"])
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(SourceError, match="model-00002"):
        load(tmp_path, None)


def test_without_a_pooler_there_is_no_pooled_output(checkpoint: Checkpoint) -> None:
    with_pooler = checkpoint()
    expected = theirs(with_pooler, "BertModel")
    assert list(ours(with_pooler)) == ["last_hidden_state", "pooler_output"]
    assert equal(expected["pooler_output"], ours(with_pooler)["pooler_output"])
    without = weights(with_pooler, lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    original = load(without, None)
    assert original.absent == {"pooler"}
    assert set(original.answer(INPUTS)) == set(ours(without)) == {"last_hidden_state"}
    assert equal(expected["last_hidden_state"], ours(without)["last_hidden_state"])


def test_an_encoder_is_taken_out_of_a_model_with_a_head(checkpoint: Checkpoint) -> None:
    folder = checkpoint("BertForMaskedLM")
    got = ours(folder, "feature-extraction")
    assert list(got) == ["last_hidden_state"]
    assert equal(theirs(folder, "BertModel")["last_hidden_state"], got["last_hidden_state"])


@pytest.mark.parametrize(
    ("original", "task", "output"),
    [
        ("BertForPreTraining", "fill-mask", "prediction_logits"),
        ("BertForPreTraining", "next-sentence-prediction", "seq_relationship_logits"),
        ("AlbertForPreTraining", "fill-mask", "prediction_logits"),
    ],
)
def test_a_pretraining_checkpoint_has_two_heads_and_must_be_told_which(
    checkpoint: Checkpoint, original: str, task: str, output: str
) -> None:
    folder = checkpoint(original)
    with pytest.raises(UnknownTask, match=rf"'{original}'.*say `task:` in the manifest, one of .*fill-mask"):
        load(folder, None)
    assert equal(theirs(folder, original)[output], ours(folder, task)["logits"])


def test_labels(checkpoint: Checkpoint) -> None:
    names = {"0": "bad", "1": "fair", "2": "good"}
    folder = config(checkpoint("BertForSequenceClassification", num_labels=3), id2label=names)
    assert load(folder, None).labels == ("bad", "fair", "good")
    config(folder, id2label={"0": "bad", "1": "good"}, num_labels=3)  # num_labels wins in transformers, without names
    assert load(folder, None).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert load(folder, "feature-extraction").labels == ()


# What is refused

ORIGINALS = {
    "fill-mask": "cls.predictions.bias",
    "text-classification": "classifier.bias, classifier.weight",
    "token-classification": "classifier.bias, classifier.weight",
    "question-answering": "qa_outputs.bias, qa_outputs.weight",
    "next-sentence-prediction": "cls.seq_relationship.bias, cls.seq_relationship.weight",
    "multiple-choice": "classifier.bias, classifier.weight",
}


@pytest.mark.parametrize("task", ORIGINALS)
def test_a_missing_head_is_never_random(checkpoint: Checkpoint, task: str) -> None:
    with pytest.raises(MissingWeights, match=rf"\({task}\): {ORIGINALS[task]}.* say another `task:`"):
        load(checkpoint(), task)


def test_architectures_may_name_a_head_that_is_not_there(checkpoint: Checkpoint) -> None:
    """As of all-mpnet-base-v2: what is left are features."""
    loaded = load(config(checkpoint(), architectures=["BertForMaskedLM"]), None)
    assert (loaded.task, type(loaded.model).__name__) == ("feature-extraction", "BertModel")


@pytest.mark.parametrize(
    ("original", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertForNextSentencePrediction", "next-sentence-prediction"),
    ],
)
def test_without_an_architecture_the_tensors_say_the_task(checkpoint: Checkpoint, original: str, task: str) -> None:
    assert load(config(checkpoint(original), architectures=None), None).task == task


def test_without_an_architecture_a_classifier_may_be_of_several_tasks(checkpoint: Checkpoint) -> None:
    folder = config(checkpoint("BertForTokenClassification"), architectures=None)
    with pytest.raises(UnknownTask, match="one of text-classification, token-classification, multiple-choice$"):
        load(folder, None)
    assert load(folder, "token-classification").task == "token-classification"


@pytest.mark.parametrize("task", ["text-classification", "next-sentence-prediction", "multiple-choice"])
def test_a_missing_pooler_is_never_random(checkpoint: Checkpoint, task: str) -> None:
    original = {"text-classification": "BertForSequenceClassification", "multiple-choice": "BertForMultipleChoice"}
    folder = checkpoint(original.get(task, "BertForNextSentencePrediction"))
    weights(folder, lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    with pytest.raises(MissingWeights, match="pooler.dense.bias, pooler.dense.weight would be random"):
        load(folder, None)


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def plus(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.ones(shape)}


TENSORS: dict[str, tuple[Callable[[Tensors], Tensors], type[Hft2aneError], str]] = {
    "half a pooler": (without("pooler.dense.bias"), MissingWeights, "pooler.dense.bias would be random"),
    "no position table": (
        without("embeddings.position_embeddings.weight"),
        MissingWeights,
        "embeddings.position_embeddings.weight would be random",
    ),
    "another prefix": (
        lambda t: {f"model.{k}": v for k, v in t.items()},
        MissingWeights,
        "embeddings.LayerNorm.bias, ",
    ),
    "another shape": (
        plus("embeddings.word_embeddings.weight", 99, 24),
        MissingWeights,
        r"1 tensors .* embeddings.word_embeddings.weight has \(99, 24\) instead of \(36, 24\)",
    ),
    "a layer more": (
        plus("encoder.layer.1.output.dense.weight", 24, 40),
        UnsupportedModel,
        "1 tensors of the checkpoint are no part of BertModel: encoder.layer.1.output.dense.weight",
    ),
    "a part of its own": (plus("crf.transitions", 3, 3), UnsupportedModel, "no part of BertModel: crf.transitions"),
    "an adapter": (
        plus("encoder.layer.0.attention.self.query.lora_A.weight", 2, 24),
        UnsupportedModel,
        "query.lora_A.weight",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit(
    checkpoint: Checkpoint, change: Callable[[Tensors], Tensors], error: type[Hft2aneError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load(weights(checkpoint(), change), None)
    assert "\n" not in str(caught.value)


CONFIGS: dict[str, tuple[Callable[[Path], object], type[Hft2aneError], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), SourceError, "config.json is not readable"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), SourceError, "config.json is not readable as JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), SourceError, "config.json is no JSON object"),
    "no model_type": (lambda f: config(f, model_type=None), UnsupportedModel, "names no model_type"),
    "model_type of a wrong kind": (lambda f: config(f, model_type=["bert"]), UnsupportedModel, "names no model_type"),
    "unknown model_type": (
        lambda f: config(f, model_type="zebra-x"),
        UnknownFamily,
        rf"'zebra-x'; there are: {', '.join(FAMILIES)}\. To add it: hft2ane/families/zebra_x\.py and a row in "
        r"tests/families/zebra_x\.py",
    ),
    "a model_type that is a path": (lambda f: config(f, model_type="../bert"), UnknownFamily, "no family for"),
    "code of its own": (lambda f: config(f, auto_map={"AutoModel": "x.Y"}), UnsafeFormat, "auto_map"),
    "another architecture": (lambda f: config(f, architectures=["BertModelOfOurs"]), UnknownTask, "BertModelOfOurs"),
    "architectures of a wrong kind": (
        lambda f: config(f, architectures="BertModel"),
        UnsupportedConfig,
        "architectures = 'BertModel' is no list",
    ),
    "a value of a wrong kind": (
        lambda f: config(f, initializer_range="wide"),
        UnsupportedConfig,
        "wrong kind: .*'initializer_range'.* got str .value: 'wide'",
    ),
    "an unknown dtype": (lambda f: config(f, dtype="float7"), UnsupportedConfig, "float7"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), SourceError, "finds no weights: .*model.safetensors"),
    "pickle only": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        SourceError,
        "finds no weights: .*model.safetensors",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), CONFIGS.values(), ids=CONFIGS)
def test_folders_that_are_no_checkpoint(
    checkpoint: Checkpoint, change: Callable[[Path], object], error: type[Hft2aneError], message: str
) -> None:
    folder = checkpoint()
    change(folder)
    with pytest.raises(error, match=message) as caught:
        load(folder, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ({"0": "a", "2": "c"}, UnsupportedConfig, r"id2label names \[0, 2\], not all from 0 on"),
        ({"0": "a", "1": "b", "2": "c"}, MissingWeights, r"classifier.bias has \(2,\) instead of \(3,\)"),
        ({}, UnsupportedConfig, "num_labels = 0"),
        ({"zero": "a", "1": "b"}, UnsupportedConfig, "zero"),
    ],
)
@pytest.mark.parametrize("original", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_labels_that_do_not_fit(
    checkpoint: Checkpoint, original: str, names: dict[str, str], error: type[Hft2aneError], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(config(checkpoint(original), id2label=names), None)


def test_a_task_that_the_family_has_not(checkpoint: Checkpoint) -> None:
    with pytest.raises(UnknownTask, match="no task 'translation'; it has feature-extraction, fill-mask, "):
        load(checkpoint(), "translation")
    with pytest.raises(UnknownTask, match=r"has no modules\.json, .* say another `task:`"):
        load(checkpoint(), "sentence-embedding")


# What it does besides: nothing


def test_loading_is_silent_and_stays_on_this_machine(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even of a checkpoint that transformers has much to say of: heads left over, no pooler, odd labels, old keys."""
    folder = config(
        checkpoint("BertForMaskedLM"), num_labels=7, id2label={"0": "a"}, eos_token_id=999, use_bfloat16=True
    )
    weights(folder, both_ends)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    level = transformers.utils.logging.get_verbosity()
    capfd.readouterr()

    def refuse(*_: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for task in (None, "feature-extraction"):
            original = load(folder, task)
            original.answer(INPUTS)
            rewrite(original)
        Tokenizer(folder, len(WORDS))([("a b c",)], 8)
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert (transformers.utils.logging.is_progress_bar_enabled(), transformers.utils.logging.get_verbosity()) == (
        bars,
        level,
    )


def test_loading_is_silent_in_a_process_of_its_own(checkpoint: Checkpoint) -> None:
    """From the first import on, with a Hub that does not answer and nobody having said that there is none."""
    folder = checkpoint("BertForMaskedLM")
    code = (
        "import sys, pathlib\n"
        "from hft2ane.reference import Tokenizer, load\n"
        "from hft2ane.rewrite import rewrite\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        f"rewrite(load(folder, 'feature-extraction')), Tokenizer(folder, {len(WORDS)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_ENDPOINT": "http://127.0.0.1:9", "PATH": ""},
        cwd=Path(__file__).parent.parent,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Tokenizers


def test_tokenizer_pads_on_the_right_and_cuts(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left", "model_max_length": 4}))
    tokenizer = Tokenizer(folder, len(WORDS))
    out = tokenizer([("a b",), ("a b c d e f g h i j",)], 8)
    assert out["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1] * 8]
    assert out["input_ids"][0].tolist() == [WORDS.index(w) for w in ("[CLS]", "a", "b", "[SEP]", *["[PAD]"] * 4)]
    pair = tokenizer([("a", "b")], 8)
    assert pair["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]
    assert all(tensor.dtype == torch.int64 and tensor.shape == (1, 8) for tensor in pair.values())


def no_files(folder: Path) -> None:
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


def not_text(folder: Path) -> None:
    no_files(folder)
    (folder / "vocab.txt").write_bytes(b"\xff\xfe")


def no_pad(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    no_files(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"padding": None}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


TOKENIZERS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "missing": (no_files, len(WORDS), r"has 5 entries for a vocabulary of 36; its files are missing"),
    "cut off": (lambda f: (f / "tokenizer.json").write_text('{"version'), len(WORDS), "files are not usable"),
    "of another kind": (lambda f: (f / "tokenizer.json").write_text("{}"), len(WORDS), "files are not usable"),
    "not text": (not_text, len(WORDS), "valid UTF-8"),
    "of a larger model": (lambda _: None, len(WORDS) - 3, "ids up to 35, the model has 33 embeddings"),
    "without padding": (no_pad, len(WORDS), "no token to pad with"),
}


@pytest.mark.parametrize(("change", "vocabulary", "message"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_tokenizers_that_are_none(
    checkpoint: Checkpoint, change: Callable[[Path], object], vocabulary: int, message: str
) -> None:
    folder = checkpoint()
    change(folder)
    with pytest.raises(SourceError, match=message) as caught:
        Tokenizer(folder, vocabulary)
    assert "\n" not in str(caught.value)


# Real models


@pytest.mark.weights
def test_a_real_masked_language_model_with_old_names() -> None:
    folder = obtain(MODELS[1])
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert any(name.endswith("LayerNorm.gamma") for name in file.keys())  # noqa: SIM118 - no mapping
    original = load(folder, None)
    assert original.task == "fill-mask"
    texts = [("The capital of France is [MASK].",), ("Die Hauptstadt von Deutschland ist [MASK].",)]
    tokenizer = Tokenizer(folder, original.config.vocab_size)
    inputs = tokenizer(texts, 16)
    module: Any = rewrite(original)
    with torch.no_grad():
        (logits,) = module(*(inputs[name] for name in module.inputs))
    keep = inputs["attention_mask"].bool()
    expected = original.answer(inputs)["logits"]
    assert psnr(expected[keep].numpy(), logits[keep].numpy()) > 115
    masked = inputs["input_ids"] == tokenizer.inner.mask_token_id
    assert masked.sum() == 2
    assert torch.equal(expected[masked].argmax(-1), logits[masked].argmax(-1))


@pytest.mark.weights
def test_a_real_checkpoint_in_pickle_and_with_a_wrong_tokenizer(tmp_path: Path) -> None:
    folder = obtain(PICKLED)
    with pytest.raises(SourceError, match=r"finds no weights: there is no model\.safetensors"):
        load(folder, None)
    shutil.copytree(folder, tmp_path / "model")
    with pytest.raises(SourceError, match="has 5 entries for a vocabulary of 591"):
        Tokenizer(tmp_path / "model", 591)
