"""A pair of encoder and decoder from its checkpoint to two packages, to a text written with both, and to its card."""

import json
import runpy
import shutil
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hft2ane import card, export, gate, greedy, keys, package, protocol, records, source, verify
from hft2ane.ane import Attention, attention
from hft2ane.audit import calibration, measure
from hft2ane.condition import condition
from hft2ane.errors import GateFailed, Hft2aneError, MissingWeights, UnsafeFormat, UnsupportedConfig, UnsupportedModel
from hft2ane.families import FAMILIES, _heads, bert, family
from hft2ane.mil import open_package
from hft2ane.mil.compare import sample_inputs
from hft2ane.psnr import psnr
from hft2ane.records.job import Job
from hft2ane.records.package import Exported, Generation, bars
from hft2ane.records.recipe import Recipe
from hft2ane.records.release import Conversion, Report
from hft2ane.reference import Tokenizer, load
from hft2ane.release import read_release
from hft2ane.rewrite import rewrite
from tests import pairs
from tests.families import ROWS
from tests.test_card import fence, section, text_of
from tests.test_families import BAR, EXACT, SINGLE, batches, edit, exact, fidelity, loud, run

pytestmark = [
    # `MLModel` leaves the removal of its temporary folders to the interpreter.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]

Array = np.ndarray[Any, Any]
LENGTHS = (16, 32)


def job(folder: Path, checkpoint: Path, lengths: tuple[int, ...] = LENGTHS, **recipe: Any) -> Path:
    folder.mkdir()
    files = Job("create", "a test", "someone/tiny", "me/tiny-ane", recipe=Recipe(lengths=lengths, **recipe))
    records.write(folder / "job.json", files)
    source.take(folder, checkpoint, "someone/tiny")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a decoder that is wider than the encoder."""
    model = pairs.build(pairs.bert(), pairs.decoder(hidden_size=32), seed=0)
    return pairs.save(model, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def built(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder with everything in it, its release too."""
    folder = job(tmp_path_factory.mktemp("built") / "job", checkpoint)
    export.export(folder)
    verify.verify(folder)
    card.write(folder)
    return folder


@pytest.fixture
def done(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "done")


# ---- the function


def no_causal_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bert, "causal_mask", lambda tokens: torch.zeros(1, tokens, 1, tokens))


def one_token_further(patch: pytest.MonkeyPatch) -> None:
    whole = attention.causal_mask
    patch.setattr(bert, "causal_mask", lambda tokens: whole(tokens + 1)[:, :-1, :, 1:])


def no_mask_of_the_encoder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_heads, "additive_mask", lambda mask: torch.zeros(*mask.shape, 1, 1))


def blind(patch: pytest.MonkeyPatch) -> None:
    """Attends to itself where it should attend to the encoder."""
    forward = Attention.forward
    patch.setattr(Attention, "forward", lambda self, x, mask, memory=None: forward(self, x, mask))


def swapped(patch: pytest.MonkeyPatch) -> None:
    table = dict(bert.CausalLM.WEIGHTS)
    one, other = "blocks.{i}.cross.q", "blocks.{i}.cross.k"
    patch.setattr(bert.CausalLM, "WEIGHTS", table | {one: table[other], other: table[one]})


def norm_of_another(patch: pytest.MonkeyPatch) -> None:
    table = dict(bert.CausalLM.WEIGHTS)
    one, other = "blocks.{i}.norm1", "blocks.{i}.norm_cross"
    patch.setattr(bert.CausalLM, "WEIGHTS", table | {one: table[other], other: table[one]})


MISTAKES = (no_causal_mask, one_token_further, no_mask_of_the_encoder, blind, swapped, norm_of_another)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_falls_under_the_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    model = loud("encoder-decoder", "text2text-generation", {})
    model.save_pretrained(tmp_path)
    asked = batches(model, "text2text-generation")
    mistake(monkeypatch)
    assert exact(model, load(tmp_path, None), asked) < BAR


ENCODERS = [name for name in FAMILIES if "feature-extraction" in family(name).tasks]
DECODERS = [name for name in FAMILIES if "text-generation" in family(name).tasks]


@pytest.mark.parametrize(
    ("encoder", "decoder"), [*((name, "bert") for name in ENCODERS), *(("bert", name) for name in DECODERS)]
)
def test_every_encoder_and_every_decoder_in_a_pair(tmp_path: Path, encoder: str, decoder: str) -> None:
    says = {"is_decoder": True, "add_cross_attention": True, "bos_token_id": 2, "eos_token_id": 3}
    parts = {
        "encoder": {**ROWS[encoder].tiny, "model_type": encoder},
        "decoder": {**ROWS[decoder].tiny, **says, "model_type": decoder},
    }
    model = loud("encoder-decoder", "text2text-generation", parts)
    model.save_pretrained(tmp_path)
    original = load(tmp_path, None)
    assert original.name == f"encoder-decoder/{encoder}/{decoder}"
    assert exact(model, original, batches(model, "text2text-generation")) >= EXACT


def test_decoders() -> None:
    assert DECODERS == ["bert", "camembert", "electra", "roberta", "xlm-roberta"]


def test_the_parts_have_the_answers_of_the_whole(checkpoint: Path) -> None:
    """The decoder is asked with the states of the original's encoder, so what the encoder loses is not its own."""
    original = load(checkpoint, None)
    module = rewrite(original)
    (inputs, *_) = batches(original.model, "text2text-generation")
    for part, (given, answers) in original.ask(inputs).items():
        its = module.parts[part]
        got = dict(zip(its.OUTPUTS, its(*(given[name] for name in its.inputs)), strict=True))
        assert got.keys() == answers.keys()
        for name, answer in answers.items():
            assert psnr(answer.numpy(), got[name].numpy()) >= SINGLE


# ---- the checkpoint


def test_what_old_checkpoints_lack_and_have(checkpoint: Path, tmp_path: Path) -> None:
    """No pooler for the encoder, one for the decoder, and the positions as a buffer."""
    folder = shutil.copytree(checkpoint, tmp_path / "old")
    tensors = load_file(folder / "model.safetensors")
    pooler = {name: t for name, t in tensors.items() if name.startswith("encoder.pooler.")}
    assert pooler
    others = {name.replace("encoder.", "decoder.bert.", 1): t for name, t in pooler.items()}
    positions = {
        f"{part}.embeddings.position_ids": torch.arange(64)[None].clone() for part in ("encoder", "decoder.bert")
    }
    kept = {name: t for name, t in tensors.items() if name not in pooler} | others | positions
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    asked = batches(load(checkpoint, None).model, "text2text-generation")
    one, other = (run(load(each, None), *asked) for each in (checkpoint, folder))
    assert fidelity(asked, one, other) >= SINGLE


def test_other_missing_or_further_tensors_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    name = "decoder.bert.encoder.layer.1.crossattention.self.key.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MissingWeights, match=r"decoder\.encoder\.layer\.1\.crossattention\.self\.key\.weight"):
        load(folder, None)
    save_file(tensors | {"decoder.bert.extra": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"decoder\.extra"):
        load(folder, None)


def test_a_text_cannot_begin_with_what_has_no_position(tmp_path: Path) -> None:
    """RoBERTa's positions are counted over the ids that are not padding."""
    roberta = transformers.RobertaConfig(**{**pairs.SIZES, "is_decoder": True, "add_cross_attention": True})
    model = pairs.build(pairs.bert(), roberta, decoder_start_token_id=roberta.pad_token_id)
    with pytest.raises(UnsupportedConfig, match="decoder_start_token_id = 1 is the decoder's padding"):
        load(pairs.save(model, tmp_path), None)


def part(name: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config[name].update(changes)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (part("decoder", model_type="gpt2"), UnsupportedConfig, "decoder.model_type = 'gpt2'"),
        (part("decoder", model_type="distilbert"), UnsupportedConfig, "decoder.model_type = 'distilbert'"),
        (part("encoder", model_type="t5"), UnsupportedConfig, "encoder.model_type = 't5'"),
        (part("encoder", hidden_act="mish"), UnsupportedConfig, "encoder: hidden_act = 'mish'"),
        (part("encoder", is_decoder=True), UnsupportedConfig, "encoder: is_decoder = True"),
        (part("decoder", is_decoder=False), UnsupportedConfig, "decoder: is_decoder = False"),
        (part("decoder", is_causal=False), UnsupportedConfig, "decoder: is_causal = False"),
        (part("decoder", add_cross_attention=False), UnsupportedConfig, "decoder: add_cross_attention = False"),
        (part("decoder", cross_attention_hidden_size=24), UnsupportedConfig, "decoder: cross_attention_hidden_size"),
        (part("decoder", position_embedding_type="relative_key"), UnsupportedConfig, "decoder: position_embedding_t"),
        (part("decoder", quantization_config={"bits": 4}), UnsupportedConfig, "quantization_config"),
        (part("encoder", auto_map={"AutoModel": "x.Y"}), UnsafeFormat, "auto_map"),
        (lambda config: config.update(encoder=None), UnsupportedConfig, "encoder = None is no config"),
        (lambda config: config.update(tie_encoder_decoder=True), UnsupportedConfig, "tie_encoder_decoder = True"),
        (lambda config: config.pop("decoder_start_token_id"), UnsupportedConfig, "no decoder_start_token_id"),
        (lambda config: config.pop("eos_token_id"), UnsupportedConfig, "no eos_token_id"),
    ],
)
def test_what_is_not_reproduced_is_refused_by_its_name(
    checkpoint: Path, tmp_path: Path, change: Callable[[Any], Any], error: type[Hft2aneError], words: str
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "refused", ignore=shutil.ignore_patterns("generation_config.json"))
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error) as caught:
        load(folder, None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_generation_config_says_how_a_text_begins_and_ends(checkpoint: Path, tmp_path: Path) -> None:
    """It goes before config.json, is part of the job's files, and goes along with the release."""
    folder = shutil.copytree(checkpoint, tmp_path / "said")
    (folder / "generation_config.json").write_text(
        '{"decoder_start_token_id": 5, "eos_token_id": [6, 7], "num_beams": 4}'
    )
    assert load(folder, None).generation == Generation(5, (6, 7), 0)
    assert load(checkpoint, None).generation == Generation(pairs.START, (pairs.END,), pairs.PAD)
    made = job(tmp_path / "job", folder)
    assert (made / "source/generation_config.json").is_file()


# ---- the packages


def test_two_packages(built: Path) -> None:
    exported = records.read(built / "export.json", Exported)
    assert (exported.task, exported.family) == ("text2text-generation", "encoder-decoder/bert/bert")
    assert exported.generation == Generation(2, (3,), 0)
    found = {each.part: each for each in exported.packages}
    assert {each.file for each in exported.packages} == {
        "tinyEncoder.float16.mlpackage",
        "tinyDecoder.float16.mlpackage",
    }
    assert [each.what for each in exported.packages] == ["float16 encoder", "float16 decoder"]
    for each, inputs, outputs in (
        (
            found["encoder"],
            {"input_ids": (), "attention_mask": (), "token_type_ids": ()},
            {"last_hidden_state": (24,)},
        ),
        (
            found["decoder"],
            {"input_ids": (), "attention_mask": (), "encoder_hidden_states": (24,), "encoder_attention_mask": ()},
            {"logits": (36,)},
        ),
    ):
        for function, length in zip(each.functions, LENGTHS, strict=True):
            assert {t.name: t.shape for t in function.inputs} == {n: (1, length, *s) for n, s in inputs.items()}
            assert {t.name: t.shape for t in function.outputs} == {n: (1, length, *s) for n, s in outputs.items()}
            assert {t.name: t.dtype for t in function.inputs if t.dtype != "int32"} == (
                {"encoder_hidden_states": "float16"} if each.part == "decoder" else {}
            )
        metadata = open_package(built / each.file).metadata
        assert metadata["com.github.hft2ane.part"] == each.part
        assert metadata["com.github.hft2ane.family"] == exported.family


def test_the_same_job_gives_the_same_bytes(built: Path, checkpoint: Path, tmp_path: Path) -> None:
    again = export.export(job(tmp_path / "again", checkpoint))
    assert [each.digest for each in again.packages] == [
        each.digest for each in records.read(built / "export.json", Exported).packages
    ]


def test_layers_are_not_chosen_for_a_text_that_is_written(checkpoint: Path, tmp_path: Path) -> None:
    made = job(tmp_path / "job", checkpoint, variants=("float16", "mixed-6"))
    with pytest.raises(
        UnsupportedConfig, match=r"there is no mixed-6 for text2text-generation; ask for one of float16"
    ):
        export.export(made)


def test_later_tokens_change_nothing_before_them(built: Path) -> None:
    program = open_package(built / "tinyDecoder.float16.mlpackage")
    full, _ = sample_inputs(program.function("tokens_16"))
    other = {name: value.copy() for name, value in full.items()}
    other["input_ids"][0, 9:] = 35 - other["input_ids"][0, 9:]
    one, two = (program.evaluate(each, "tokens_16")["logits"] for each in (full, other))
    assert np.array_equal(one[0, :9], two[0, :9])
    assert not np.array_equal(one[0, 9], two[0, 9])


def test_masks_add_up_to_numbers_of_fp16(built: Path) -> None:
    """Where both say no, at padding and later tokens: also in a row of padding only."""
    program = open_package(built / "tinyDecoder.float16.mlpackage")
    inputs, _ = sample_inputs(program.function("tokens_16"))
    for name in ("attention_mask", "encoder_attention_mask"):
        inputs[name][:] = 0
    assert np.isfinite(program.evaluate(inputs, "tokens_16", mode="half")["logits"]).all()


def test_the_keys_are_of_both_families(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = keys.CODE
    copied = shutil.copytree(code, tmp_path / "hft2ane", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(keys, "CODE", copied)
    pair, alone = keys.code_digest("encoder-decoder/electra/bert"), keys.code_digest("bert")
    (copied / "families/electra.py").write_text("# changed")
    assert keys.code_digest("encoder-decoder/electra/bert") != pair
    assert keys.code_digest("bert") == alone
    (copied / "families/encoder_decoder.py").write_text("# changed")
    assert keys.code_digest("bert") == alone


# ---- the figures


def test_report(built: Path) -> None:
    report = records.read(built / "report.json", Report)
    assert report.failures == ()
    assert [(bar.what, bar.backend, bar.gate) for bar in report.fidelity] == [
        ("rewrite encoder", "torch-float32", 90),
        ("rewrite decoder", "torch-float32", 90),
        ("float16 encoder", "mil-declared", 50),
        ("float16 decoder", "mil-declared", 50),
    ]
    for bar in report.fidelity:
        output = "last_hidden_state" if bar.what.endswith("encoder") else "logits"
        assert {(m.output, m.length) for m in bar.measures} == {(output, length) for length in LENGTHS}
        assert {m.inputs for m in bar.measures} == {
            *("sentences, padded", "pairs, padded", "one token"),
            *("full length, random ids", "padded, random ids"),
        }
        assert (bar.top1 is None) == (output == "last_hidden_state")
        assert bar.psnr_min > (110 if bar.is_rewrite else 50)
    assert len(report.lint) == 2
    for each in report.lint:
        assert {finding.severity for finding in each.findings} <= {"info"}
    exported = records.read(built / "export.json", Exported)
    digests = {each.what: each.digest for each in exported.packages}
    assert report.verify_key == keys.verify_key(digests, keys.PROTOCOL, keys.BACKEND)


def test_the_decoder_reads_another_text_than_it_writes(checkpoint: Path) -> None:
    original = load(checkpoint, None)
    tokenizer = Tokenizer(checkpoint, original.vocabulary)
    for kind in protocol.rows(tokenizer, original, 16, rewrite(original).inputs):
        ids, mask = kind.tensors["decoder_input_ids"], kind.tensors["decoder_attention_mask"]
        assert torch.equal(ids, kind.tensors["input_ids"].roll(1, 0))
        assert torch.equal(mask, kind.tensors["attention_mask"].roll(1, 0))


def test_a_decoder_with_a_vocabulary_of_its_own_gets_ids_of_it(tmp_path: Path) -> None:
    model = pairs.build(pairs.bert(), pairs.decoder(vocab_size=20))
    original = load(pairs.save(model, tmp_path), None)
    kinds = list(protocol.rows(Tokenizer(tmp_path, original.vocabulary), original, 16, rewrite(original).inputs))
    for kind in kinds:
        ids, mask = kind.tensors["decoder_input_ids"], kind.tensors["decoder_attention_mask"]
        assert int(ids.max()) < 20
        assert torch.equal(ids != 0, mask.bool())  # no padding inside


def test_one_part_alone_does_not_pass(done: Path) -> None:
    """Neither the card nor the door takes a report that has no figure of the other."""
    report, conversion = records.read(done / "report.json", Report), done / "release/conversion.json"
    assert bars(records.read(conversion, Conversion).packages) == (
        *("rewrite encoder", "rewrite decoder", "float16 encoder", "float16 decoder"),
    )
    for missing in ("rewrite decoder", "float16 encoder"):
        left = tuple(bar for bar in report.fidelity if bar.what != missing)
        records.write(done / "report.json", replace(report, fidelity=left))
        with pytest.raises(GateFailed, match=f"no figures for {missing}"):
            card.write(done)
        with pytest.raises(GateFailed, match=f"no figure for {missing}"):
            gate.check(done, records.read(done / "job.json", Job))


def test_a_bad_decoder_fails_in_its_own_name(done: Path) -> None:
    weights = done / "tinyDecoder.float16.mlpackage" / package.WEIGHTS
    name = "decoder.bert.encoder.layer.1.crossattention.output.dense.weight"
    tensor = load_file(done / "source/model.safetensors")[name].half().numpy()
    stored = weights.read_bytes()
    assert stored.count(tensor.tobytes()) == 1
    weights.write_bytes(stored.replace(tensor.tobytes(), tensor[::-1].tobytes()))
    with pytest.raises(GateFailed):
        verify.verify(done)
    failures = [text for text in records.read(done / "report.json", Report).failures if "dB" in text]
    assert failures
    assert all(text.startswith("float16 decoder (mil-declared): logits") for text in failures)


# ---- what is written


TIE = 0.02  # between the best two of logits up to 6: less than a package in fp16 can be asked to tell


@torch.no_grad()
def narrowest(model: Any, read: Mapping[str, Any], written: list[int]) -> float:
    """By how much the best token is above the second best, at least, all along a text."""
    ids = torch.tensor([written[:-1]])
    best = model(**read, decoder_input_ids=ids).logits[0].topk(2, -1).values
    return float((best[:, 0] - best[:, 1]).min())


@pytest.mark.parametrize(
    ("encoder", "decoder", "seed"),
    [({}, {}, 6), ({}, {"hidden_size": 32}, 0), ({"num_hidden_layers": 1}, {"hidden_size": 16}, 0)],
    ids=["equal widths", "wider", "narrower"],
)
def test_greedy_decoding_gives_the_tokens_of_generate(
    tmp_path: Path, encoder: dict[str, Any], decoder: dict[str, Any], seed: int
) -> None:
    """With both packages in the evaluator, against transformers asked by a plain call."""
    model = pairs.build(pairs.bert(**encoder), pairs.decoder(**decoder), seed)
    folder = job(tmp_path / "job", pairs.save(model, tmp_path / "checkpoint"), (32,))
    exported = export.export(folder)
    runs = {each.part: open_package(folder / each.file).evaluate for each in exported.packages}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "source")
    how = exported.generation
    assert how is not None
    written = []
    for text in protocol.SENTENCES[:8]:
        read = tokenizer(text, padding="max_length", truncation=True, max_length=32, return_tensors="pt")
        expected = model.generate(**read, max_length=32, do_sample=False)[0].tolist()
        if narrowest(model, read, expected) > TIE:
            given = {name: value.int().numpy() for name, value in read.items()}
            task = greedy.Task(given, [expected[0]], 31, expected[1:])
            written.append(greedy.write(task, how, 32, runs["decoder"], runs["encoder"], given))
            assert written[-1] == expected[1:]
    assert len({tuple(each) for each in written}) > 4  # what is written depends on what is read
    assert any(len(set(each)) > 2 for each in written)  # and changes on the way
    assert {each[-1] == pairs.END for each in written} == {True, False}  # some texts end, some are cut off


def test_the_report_says_what_was_written(built: Path) -> None:
    (found,) = records.read(built / "report.json", Report).greedy
    assert (found.what, found.backend, found.length, found.texts) == ("float16", "mil-declared", 16, greedy.TEXTS)
    assert found.same == found.texts
    assert found.equal == found.tokens > found.texts


@pytest.mark.parametrize(
    ("expected", "got", "equal"),
    [
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 9, 3], 1),
        ([1, 2, 3], [1, 2], 2),
        ([1, 2], [1, 2, 3], 2),
        ([5], [], 0),
    ],
)
def test_tokens_count_up_to_the_first_that_differs(expected: list[int], got: list[int], equal: int) -> None:
    found = greedy.compare("float16", "a test", 8, [expected, [7]], [got, [7]])
    assert (found.equal, found.tokens, found.texts) == (equal + 1, len(expected) + 1, 2)
    assert found.same == 1 + (expected == got)


def test_a_wrong_decoder_writes_another_text(built: Path, checkpoint: Path) -> None:
    original = load(checkpoint, None)
    (task, *_) = greedy.tasks(original, Tokenizer(checkpoint, original.vocabulary), 16)
    runs = {n: open_package(built / f"tiny{n}.float16.mlpackage") for n in ("Encoder", "Decoder")}
    how = original.generation
    assert how is not None

    def blind(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        zeros = {"encoder_hidden_states": inputs["encoder_hidden_states"] * 0}
        return runs["Decoder"].evaluate({**inputs, **zeros}, "tokens_16")

    def encoder(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return runs["Encoder"].evaluate(inputs, "tokens_16")

    assert greedy.write(task, how, 16, blind, encoder, task.source) != task.expected


# ---- ranges


def test_the_causal_mask_is_no_value(checkpoint: Path) -> None:
    """−1e4 and −2e4 are the same for every text."""
    original = load(checkpoint, None)
    module = rewrite(original)
    measured = measure(module, calibration(checkpoint, original, module.inputs, LENGTHS))
    scores = [r for r in measured.ranges if r.path.endswith((".attend", ".cross")) and r.kind in ("sum", "scores")]
    assert len(scores) == 2 * 3 * 2
    assert max(r.max for r in scores) < 1e3
    branches = {norm.branch for path, norm in measured.norms.items() if path.startswith("decoder.blocks")}
    assert branches == {f"decoder.blocks.{i}.{n}" for i in (0, 1) for n in ("attend.out", "cross.out", "down")}


def test_an_overflowing_cross_attention_is_conditioned(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "loud")
    tensors = load_file(folder / "model.safetensors")
    louder = {n: t * 2.0**15 for n, t in tensors.items() if "crossattention.output.dense" in n}
    save_file({**tensors, **louder}, folder / "model.safetensors", {"format": "pt"})
    original = load(folder, None)
    module = rewrite(original)
    audit = condition(module, calibration(folder, original, module.inputs, (16,)))
    assert audit.failures == ()
    assert {c.path for c in audit.conditioned} == {f"decoder.blocks.{i}.norm_cross" for i in (0, 1)}
    made = job(tmp_path / "job", folder, (16,))
    assert export.export(made).audit == audit
    assert min(bar.psnr_min for bar in verify.verify(made).fidelity) >= 50


# ---- the card


class MLModel:
    """Stands in for Core ML's: computes the package with our evaluator."""

    def __init__(self, path: str, compute_units: object, function_name: str | None = None) -> None:
        self.program, self.function = open_package(Path(path)), function_name

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        return dict(self.program.evaluate(inputs, self.function))


def run_example(release: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the card's Python example has in its variables when it is done."""
    coremltools, models = types.ModuleType("coremltools"), types.ModuleType("coremltools.models")
    vars(coremltools)["ComputeUnit"] = types.SimpleNamespace(CPU_AND_NE="CPU_AND_NE")
    vars(models)["MLModel"] = MLModel
    patch.setitem(sys.modules, "coremltools", coremltools)
    patch.setitem(sys.modules, "coremltools.models", models)
    patch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(release))
    example = release.parent / "example.py"
    example.write_text(fence(text_of(release), "python"))
    return runpy.run_path(str(example))


def test_the_card_s_loop_writes_what_transformers_writes(
    built: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_example(built / "release", monkeypatch)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model: Any = transformers.EncoderDecoderModel.from_pretrained(checkpoint)
    read = tokenizer(
        "She opened the window. Fresh air filled the room.", truncation=True, max_length=32, return_tensors="pt"
    )
    expected = model.generate(**read, max_length=32, do_sample=False)[0].tolist()
    assert [*found["ids"], pairs.END][: len(expected) - 1] == expected[1:]
    assert len(found["ids"]) > 2


def test_the_card_says_how_to_run_the_pair(built: Path) -> None:
    text = text_of(built / "release")
    for words in ("begins with token 2", "row *n* − 1 of the decoder's `logits`", "until token 3 is written"):
        assert words in section(text, "### Writing a text")
    contract = section(text, "## Inputs and outputs")
    assert "The encoder, `tinyEncoder.float16.mlpackage`:" in contract
    assert "| in | `encoder_hidden_states` | 1×L×24 | float16 | – |" in contract
    fidelity = section(text, "## Fidelity")
    (found,) = records.read(built / "report.json", Report).greedy
    assert (
        f"{found.same} are the same to the end; of the original's {found.tokens} tokens {found.equal} come" in fidelity
    )
    assert (built / "release/assets/psnr.png").is_file()
    assert not (built / "release/assets/sizes.png").exists()  # two packages are one variant
    swift = fence(text, "swift")
    for opening, closing in ("()", "[]", "{}"):
        assert swift.count(opening) == swift.count(closing)
    for name in ("input_ids", "attention_mask", "token_type_ids", "encoder_hidden_states", "encoder_attention_mask"):
        assert f'"{name}": ' in swift
    assert max(map(len, swift.splitlines())) <= 90


def test_the_release_may_be_published(built: Path) -> None:
    conversion = gate.check(built, records.read(built / "job.json", Job).__class__("create", "", "someone/tiny", ""))
    assert read_release(built / "release", conversion).here.keys() > {"generation_config.json", "README.md"}
    assert conversion.psnr.keys() == set(bars(conversion.packages))
    assert conversion.generation == Generation(2, (3,), 0)


# ---- a decoder for itself


def alone(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(3)
    model: Any = transformers.BertLMHeadModel
    odd = {"hidden_act": "tanh", "tie_word_embeddings": False, "is_decoder": True}
    return pairs.save(pairs.loud(model(pairs.bert(**odd, **changes)).eval()), folder)


def test_a_decoder_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = alone(tmp_path / "checkpoint")
    made = job(tmp_path / "job", checkpoint, (32,))
    export.export(made)
    (found,) = verify.verify(made).greedy
    assert (found.same, found.equal) == (found.texts, found.tokens)
    release = card.write(made)
    assert "the original names no token that ends a text" in section(text_of(release), "### Writing a text")
    ids = run_example(release, monkeypatch)["ids"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer("She opened the window.", add_special_tokens=False, return_tensors="pt")
    model: Any = transformers.BertLMHeadModel.from_pretrained(checkpoint)
    allowed = {name: prompt[name] for name in ("input_ids", "attention_mask")}
    assert ids == model.generate(**allowed, max_length=32, do_sample=False, pad_token_id=0)[0].tolist()
    assert len(set(ids)) > 6


def test_a_decoder_of_an_unknown_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured on states from a normal distribution; nothing is written, since there is nothing to be read."""
    made = job(tmp_path / "job", alone(tmp_path / "checkpoint", add_cross_attention=True), (16,))
    (each,) = export.export(made).packages
    assert [t.name for t in each.functions[0].inputs] == [
        *("input_ids", "attention_mask", "encoder_hidden_states", "encoder_attention_mask"),
    ]
    report = verify.verify(made)
    assert report.greedy == ()
    assert report.fidelity[1].psnr_min > 50
    assert len(run_example(card.write(made), monkeypatch)["ids"]) == 16


def test_a_decoder_without_is_decoder_is_refused(tmp_path: Path) -> None:
    """transformers would let each token look at those after it."""
    folder = alone(tmp_path)
    with pytest.raises(UnsupportedConfig, match="is_decoder = False"):
        load(edit(folder, is_decoder=False), None)
    with pytest.raises(UnsupportedConfig, match="is_decoder = True"):
        load(edit(folder, is_decoder=True), "fill-mask")
