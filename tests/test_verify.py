"""What is measured, on which inputs, and that nothing bad passes: spoilt results, spoilt packages."""

import hashlib
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from hft2ane import demo, export, keys, package, protocol, records, source, verify
from hft2ane.errors import GateFailed, PackageError
from hft2ane.mil import open_package
from hft2ane.protocol import CLOZE, PAIRS, SENTENCES
from hft2ane.records.fidelity import Fidelity
from hft2ane.records.job import Job
from hft2ane.records.package import Exported
from hft2ane.records.recipe import Gates, Recipe, Task
from hft2ane.records.release import Report
from hft2ane.reference import Tokenizer
from hft2ane.verify import CAP, Bar, Row, counted, shorten
from tests.conftest import WORDS, Checkpoint
from tests.test_export import CONTRACTS, IDS, SINGLE_TEXT, make, prepare

Array = np.ndarray[Any, Any]
Outputs = dict[str, Array]

SINGLE_TEXTS = {"sentences, padded": 17, "one token": 1, "full length, random ids": 4, "padded, random ids": 4}


def change(folder: Path, **changes: Any) -> None:
    records.write(folder / "job.json", replace(records.read(folder / "job.json", Job), **changes))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder with packages of two lengths."""
    folder = prepare(tmp_path_factory.mktemp("verify") / "job", checkpoint(), lengths=(8, 64))
    export.export(folder)
    return folder


@pytest.fixture
def job(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "job")


def refused(folder: Path) -> Report:
    """The report that is written although, and before, the gate refuses."""
    with pytest.raises(GateFailed):
        verify.verify(folder)
    text = (folder / "report.json").read_bytes()
    json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    return records.parse(text, Report, "report.json")


# --- the report ---


def test_report(job: Path) -> None:
    told: list[float] = []
    report = verify.verify(job, lambda what, share: told.append(share))
    assert report == records.read(job / "report.json", Report)
    assert told == sorted(told)
    assert told[-1] == 1
    (made,) = records.read(job / "export.json", Exported).packages
    assert report.protocol == keys.PROTOCOL
    assert report.verify_key == keys.verify_key({"float16": made.digest}, keys.PROTOCOL, keys.BACKEND)
    assert report.failures == ()
    assert [(bar.what, bar.backend, bar.gate) for bar in report.fidelity] == [
        ("rewrite", "torch-float32", 90),
        ("float16", "mil-declared", 50),
    ]
    for bar in report.fidelity:
        found = {(m.output, m.length, m.inputs): m.rows for m in bar.measures}
        assert len(found) == len(bar.measures)
        assert found == {
            (output, length, kind): rows
            for output in ("last_hidden_state", "pooler_output")
            for length in (8, 64)
            for kind, rows in (SINGLE_TEXTS | {"pairs, padded": 4}).items()
        }
        for m in bar.measures:
            assert m.psnr_min <= m.psnr_median <= CAP
            assert m.psnr_min <= m.psnr
            assert 0.999 < m.cosine_min <= 1
            assert m.top1 is None
        assert bar.psnr == min(m.psnr for m in bar.measures)
        assert bar.psnr_min == min(m.psnr_min for m in bar.measures)
        assert bar.psnr_median == pytest.approx(statistics.median(m.psnr_median for m in bar.measures), abs=0.01)
        assert bar.top1 is None
    rewrite, artefact = report.fidelity
    assert rewrite.psnr_min > 100
    assert 100 > artefact.psnr_min > 50
    sentences = {m.worst for m in artefact.measures if m.inputs == "sentences, padded"}
    assert sentences <= {shorten(text) for text in SENTENCES}


def test_what_is_not_measured_here_is_said(job: Path) -> None:
    report = verify.verify(job)
    assert not [bar for bar in report.fidelity if "coreml" in bar.backend]
    (text,) = report.not_measured
    for each in ("Core ML on a Mac", "Neural Engine", "latency", "memory"):
        assert each in text


def test_two_runs_give_the_same_figures(job: Path) -> None:
    first, state = verify.verify(job), torch.get_rng_state()
    assert replace(verify.verify(job), seconds=0) == replace(first, seconds=0)
    assert torch.equal(torch.get_rng_state(), state)  # its random ids are its own


def test_the_figures_are_those_of_the_definition(job: Path) -> None:
    """Worked out again from the package, transformers and the sentences, without the step's own code."""
    report = verify.verify(job)
    model: Any = transformers.BertModel.from_pretrained(job / "source")
    tokenizer = transformers.AutoTokenizer.from_pretrained(job / "source")
    program = open_package(job / "tiny.float16.mlpackage")
    vocabulary, peaks = model.config.vocab_size, []
    for kind in protocol.inputs(Tokenizer(job / "source", vocabulary), vocabulary, 64, "feature-extraction", IDS):
        with torch.no_grad():
            answers = model(**kind.tensors).last_hidden_state[kind.tensors["attention_mask"].bool()]
        peaks.append(float(answers.abs().max()))
    peak = max(peaks[0], statistics.median(peaks))  # the first kind are the sentences
    errors = []
    for text in SENTENCES:
        batch = tokenizer(text, padding="max_length", truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            reference = model(**batch).last_hidden_state.numpy()
        inputs = {name: batch[name].int().numpy() for name in ("input_ids", "attention_mask", "token_type_ids")}
        got = program.evaluate(inputs, "tokens_64")["last_hidden_state"].astype(np.float32)
        tokens = int(batch["attention_mask"].sum())
        errors.append(reference[0, :tokens] - got[0, :tokens])
    single = [20 * np.log10(peak / np.sqrt(np.mean(np.square(error)))) for error in errors]
    together = 20 * np.log10(peak / np.sqrt(np.mean(np.square(np.concatenate(errors)))))
    m = next(m for m in report.fidelity[1].measures if (m.output, m.length) == ("last_hidden_state", 64))
    assert m.inputs == "sentences, padded"
    assert m.psnr == pytest.approx(together, abs=0.006)
    assert m.psnr_min == pytest.approx(min(single), abs=0.006)
    assert m.psnr_median == pytest.approx(statistics.median(single), abs=0.006)
    assert m.worst == shorten(SENTENCES[int(np.argmin(single))])
    assert m.peak == pytest.approx(peaks[0], rel=1e-3)


@pytest.mark.parametrize("task", CONTRACTS)
def test_every_task(task: Task, checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", make(checkpoint, task), task)
    export.export(folder)
    change(folder, gates=Gates(rewrite=90, float16=25))  # a row of two scores may have a small peak by chance
    report = verify.verify(folder)
    assert all(m.psnr > 40 for m in report.fidelity[1].measures)
    kinds = dict(SINGLE_TEXTS)
    if task not in SINGLE_TEXT:
        kinds["pairs, padded"] = 4
    if task == "fill-mask":
        kinds["masked sentences"] = 16
    if task == "multiple-choice":
        kinds = {"sentences, padded": 4, "pairs, padded": 1, "full length, random ids": 1, "padded, random ids": 1}
    for bar in report.fidelity:
        assert {(m.output, m.inputs): m.rows for m in bar.measures} == {
            (output, kind): rows for output in CONTRACTS[task] for kind, rows in kinds.items()
        }
        assert all((m.top1 is not None) == ("logits" in m.output) for m in bar.measures)
        assert bar.top1 == min((m.top1 for m in bar.measures if m.top1 is not None), default=None)
    assert report.fidelity[0].top1 in (None, 1)


# --- the protocol ---


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint(), len(WORDS))


@pytest.mark.parametrize("length", [8, 128, 512])
def test_inputs(tokenizer: Tokenizer, length: int) -> None:
    kinds = {rows.kind: rows for rows in protocol.inputs(tokenizer, len(WORDS), length, "fill-mask", IDS)}
    assert {kind: len(rows.names) for kind, rows in kinds.items()} == SINGLE_TEXTS | {
        "pairs, padded": 4,
        "masked sentences": 16,
    }
    for rows in kinds.values():
        ids, mask, types = (rows.tensors[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        assert len(rows.tensors) == 3
        assert rows.length == length
        assert ids.shape == mask.shape == types.shape == (len(rows.names), length)
        assert {ids.dtype, mask.dtype, types.dtype} == {torch.int64}
        assert int(ids.min()) >= 0
        assert int(ids.max()) < len(WORDS)
        assert bool((mask.sort(1, descending=True).values == mask).all())  # tokens first, then padding
        assert int(mask.sum(1).min()) >= 1
        assert bool(types.any()) == (rows.kind == "pairs, padded")
    padding = {kind: rows.tensors["attention_mask"].sum(1) for kind, rows in kinds.items()}
    assert padding["one token"].tolist() == [1]
    assert padding["full length, random ids"].tolist() == [length] * 4
    assert len(set(padding["padded, random ids"].tolist())) > 1
    assert int(padding["sentences, padded"].min()) < length
    ids = kinds["full length, random ids"].tensors["input_ids"]
    assert len(torch.unique(ids, dim=0)) == 4
    masked = kinds["masked sentences"].masked
    assert masked is not None
    assert torch.equal(masked, kinds["masked sentences"].tensors["input_ids"] == WORDS.index("[MASK]"))
    if length > 8:
        assert masked.sum(1).tolist() == [1] * 16


def test_kinds_that_the_model_has_no_use_for(tokenizer: Tokenizer) -> None:
    def kinds(task: Task, names: Sequence[str]) -> set[str]:
        return {rows.kind for rows in protocol.inputs(tokenizer, len(WORDS), 16, task, names)}

    assert kinds("sentence-embedding", IDS[:2]) == set(SINGLE_TEXTS)
    assert kinds("feature-extraction", IDS) == {*SINGLE_TEXTS, "pairs, padded"}
    assert kinds("text-classification", IDS[:2]) == {*SINGLE_TEXTS, "pairs, padded"}
    assert kinds("fill-mask", IDS[:2]) == {*SINGLE_TEXTS, "masked sentences"}


@pytest.mark.parametrize("pad", [0, 7, 49])
def test_random_ids_hold_any_word_but_padding(pad: int) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = protocol.random_ids("some", torch.tensor([200, 3]), 50, pad, generator, 200)
    full, short = rows.tensors["input_ids"]
    assert set(full.tolist()) == set(range(50)) - {pad}
    assert (short == pad).tolist() == [n >= 3 for n in range(200)]


def test_a_tokenizer_without_a_mask_token(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its masked sentences would hold the word None."""
    folder = make(checkpoint, "fill-mask")
    without: Any = transformers.BertTokenizer
    without(str(folder / "vocab.txt"), mask_token=None).save_pretrained(folder)
    job = prepare(tmp_path / "job", folder)
    export.export(job)
    kinds = {m.inputs for bar in verify.verify(job).fidelity for m in bar.measures}
    assert kinds == {*SINGLE_TEXTS, "pairs, padded"}


class Letters:
    """Stands in for a tokenizer that never changes: a token is a byte."""

    pad = 0
    inner = SimpleNamespace(mask_token="#", mask_token_id=ord("#"))

    def __call__(self, texts: Sequence[tuple[str, ...]], length: int) -> dict[str, Tensor]:
        encoded = ["/".join(text).encode()[:length] for text in texts]
        ids = torch.tensor([[*each, *[0] * (length - len(each))] for each in encoded])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": torch.zeros_like(ids)}


def test_inputs_are_the_same_for_ever() -> None:
    """They are what the protocol's number stands for: where this digest changes, that number must."""
    letters: Any = Letters()
    digest = hashlib.sha256()
    for length in (8, 128):
        for rows in protocol.inputs(letters, 30522, length, "fill-mask", IDS):
            for name, tensor in rows.tensors.items():
                digest.update(f"{rows.kind} {rows.names} {name}".encode() + tensor.numpy().tobytes())
    assert (keys.PROTOCOL, digest.hexdigest()) == (
        "hft2ane-psnr-2",
        "beb8c43e408b7d55b519c3da4bf7c04c9c1f55554788915ec60544bef1ec8ea5",
    )


def test_texts() -> None:
    assert len({*SENTENCES, *CLOZE, *PAIRS}) == len(SENTENCES) + len(CLOZE) + len(PAIRS)
    assert all(text.count("{mask}") == 1 for text in CLOZE)
    assert "" in SENTENCES
    assert any(not text.isascii() for text in SENTENCES)


def test_choices(tokenizer: Tokenizer) -> None:
    """Rows become candidates in their order; no question has the same candidate twice, since no answer is best then."""
    kinds = list(protocol.inputs(tokenizer, len(WORDS), 16, "multiple-choice", IDS))
    grouped = {rows.kind: rows for rows in verify.choices(kinds, 4)}
    assert "one token" not in grouped
    for rows in kinds:
        if rows.kind in grouped:
            ids = grouped[rows.kind].tensors["input_ids"]
            assert ids.shape == (len(rows.names) // 4, 4, 16)
            assert torch.equal(ids.reshape(-1, 16), rows.tensors["input_ids"][: 4 * len(ids)])
            assert len(grouped[rows.kind].names) == len(ids)
    candidates = grouped["full length, random ids"].tensors["input_ids"]
    assert all(len(torch.unique(question, dim=0)) == 4 for question in candidates)


# --- what counts of an output ---


def row(valid: int, length: int = 8, masked: Array | None = None, task: Task = "fill-mask") -> Row:
    mask = (torch.arange(length) < valid).long()[None]
    tensors = {"input_ids": torch.ones_like(mask), "attention_mask": mask}
    return Row("sentences, padded", length, "a row", tensors, masked, task)


def test_padding_does_not_count() -> None:
    tokens = np.arange(8 * 3.0).reshape(1, 8, 3)
    for output in ("last_hidden_state", "token_embeddings", "logits"):
        assert np.array_equal(counted(row(5), output, tokens), tokens[0, :5])
    for output in ("start_logits", "end_logits"):
        assert np.array_equal(counted(row(5), output, tokens[..., 0]), tokens[0, :5, 0])
    detector = row(5, task="replaced-token-detection")
    assert np.array_equal(counted(detector, "logits", tokens[..., 0]), tokens[0, :5, 0])


def test_as_many_channels_as_tokens() -> None:
    """A vector for the whole text is not taken for one with an entry a token, whatever its length."""
    vector = np.arange(8.0).reshape(1, 8)
    for output in ("sentence_embedding", "pooler_output", "logits"):
        assert np.array_equal(counted(row(5), output, vector), vector[0])


def test_an_embedding_as_wide_as_the_text_is_long(checkpoint: Checkpoint, tmp_path: Path, spoil: Any) -> None:
    """A fault in its last entry is seen, although the texts end before."""
    folder = prepare(tmp_path / "job", make(checkpoint, "sentence-embedding"), "sentence-embedding", lengths=(24,))
    export.export(folder)
    verify.verify(folder)

    def last_entry(out: Outputs) -> Outputs:
        out["sentence_embedding"][:, -1] += 1
        return out

    spoil(last_entry)
    failures = refused(folder).failures
    assert any("sentence_embedding at 24 tokens on sentences, padded" in text for text in failures)
    assert not any("token_embeddings" in text for text in failures)


def compared(answers: Outputs, got: Outputs, *rows_: Row) -> Fidelity:
    bar = Bar("float16", "a test", 50, lambda length: lambda inputs: got)
    for each in rows_:
        bar.compare(each, answers)
    fidelity = bar.fidelity()
    assert fidelity is not None
    return fidelity


def test_top1() -> None:
    answer = np.zeros((1, 8, 3), np.float32)
    answer[0, :, 1] = 1
    got = answer.copy()
    got[0, 2, 0] = 2  # another class at token 2
    got[0, 7, 0] = 2  # and at padding
    assert compared({"logits": answer}, {"logits": got}, row(5)).top1 == 0.8
    assert compared({"logits": answer}, {"logits": got}, row(5), row(4)).top1 == 0.775  # mean over rows
    at = np.arange(8)
    assert compared({"logits": answer}, {"logits": got}, row(5, masked=at == 1)).top1 == 1
    assert compared({"logits": answer}, {"logits": got}, row(5, masked=at == 2)).top1 == 0
    assert compared({"logits": answer}, {"logits": got}, row(5, masked=at == 9)).top1 == 0.8  # cut off
    spans = {"start_logits": np.array([[0.0, 3.0, 1.0, 9.0]])}
    assert compared(spans, {"start_logits": np.array([[0.0, 2.0, 2.5, 9.0]])}, row(3, 4)).top1 == 0
    assert compared(spans, {"start_logits": np.array([[0.0, 2.0, 1.5, -9.0]])}, row(3, 4)).top1 == 1
    assert compared({"logits": np.array([[0.3]])}, {"logits": np.array([[0.2]])}, row(3)).top1 is None  # regression
    assert compared({"pooler_output": answer[0]}, {"pooler_output": got[0]}, row(3)).top1 is None
    detector = row(4, 5, task="replaced-token-detection")
    replaced, seen = np.array([[0.1, -0.2, 3.0, 1.0, 2.0]]), np.array([[0.2, 0.1, 2.0, 4.0, -2.0]])
    assert compared({"logits": replaced}, {"logits": seen}, detector).top1 == 0.75


def test_a_backend_is_opened_once_a_length() -> None:
    """On a Mac that compiles the model."""
    opened: list[int] = []

    def runner(length: int) -> verify.Run:
        opened.append(length)
        return lambda inputs: {"logits": inputs["input_ids"] * np.float32(1.5)}

    bar = Bar("float16", "a test", 50, runner)
    for length in (8, 8, 16, 8, 16):
        bar.compare(row(3, length), {"logits": np.ones((1, length), np.float32)})
    assert opened == [8, 16]


# --- what does not pass ---


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Outputs], Any]], None]:
    """What the saved package gives goes through a function first."""

    def through(fault: Callable[[Outputs], Any]) -> None:
        backends = verify.backends

        def spoilt(folder: Path, of: Any) -> Any:
            ((name, runner),) = backends(folder, of)
            return [(name, lambda length: lambda inputs: fault(dict(runner(length)(inputs))))]

        monkeypatch.setattr(verify, "backends", spoilt)

    return through


def put(value: float, *place: Any) -> Callable[[Outputs], Outputs]:
    def fault(out: Outputs) -> Outputs:
        out["last_hidden_state"][place] = value
        return out

    return fault


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (put(np.nan, 0, 0, 3), "the result has 1 values that are not finite"),
        (put(np.inf, 0, 0, slice(0, 2)), "the result has 2 values that are not finite"),
        (put(-np.inf, 0, 0), "the result has 24 values that are not finite"),
        (lambda out: out | {"last_hidden_state": out["last_hidden_state"][:, :-1]}, "shape (1, 7, 24), expected (1, 8"),
        (lambda out: out | {"last_hidden_state": out["last_hidden_state"][0]}, "shape (8, 24), expected (1, 8, 24)"),
        (lambda out: {"pooler_output": out["pooler_output"]}, "it gives only pooler_output"),
    ],
)
def test_what_must_not_be_compared(job: Path, spoil: Any, fault: Any, words: str) -> None:
    """Fails before any PSNR is taken of it: no figure says anything then."""
    spoil(fault)
    report = refused(job)
    told = [text for text in report.failures if words in text]
    assert (
        "float16 (mil-declared): last_hidden_state at 8 tokens on sentences, padded (The committee approved" in told[0]
    )
    artefact = report.fidelity[1]
    assert {m.output for m in artefact.measures} == {"pooler_output"}
    assert report.fidelity[0].psnr_min > 100  # the rewrite has no part in it


def test_nan_where_padding_stands_does_not_matter(job: Path, spoil: Any) -> None:
    def at_the_end(out: Outputs) -> Outputs:
        out["last_hidden_state"][:, -1] = np.nan
        return out

    spoil(at_the_end)
    failures = refused(job).failures
    assert {text.partition("last_hidden_state at ")[2] for text in failures if "at 64 tokens on sentences" in text} == {
        f"64 tokens on sentences, padded ({shorten(SENTENCES[-1])}): the result has 24 values that are not finite"
    }  # the only one that is so long
    assert any("full length" in text for text in failures)


def test_nothing_at_all_can_be_compared(job: Path, spoil: Any) -> None:
    spoil(lambda out: {name: np.full_like(value, np.nan) for name, value in out.items()})
    report = refused(job)
    assert [bar.what for bar in report.fidelity] == ["rewrite"]
    assert report.failures


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_output(job: Path, spoil: Any, value: float) -> None:
    """Also where each row's part without padding has another size."""
    spoil(put(value))
    failures = refused(job).failures
    for length in (8, 64):
        text = f"float16 (mil-declared): last_hidden_state at {length} tokens: the same result for every input"
        assert text in failures


def test_a_score_near_zero_is_measured_by_the_output_s_peak() -> None:
    """One logit of 0.05 that is 0.005 off, among others up to 10: 66 dB, not 20."""
    got = iter([0.055, 10.0])
    bar = Bar("float16", "a test", 50, lambda length: lambda inputs: {"logits": np.array([[next(got)]])})
    ids = torch.zeros(1, 8, dtype=torch.long)
    row = Row("sentences", 8, "a", {"input_ids": ids, "attention_mask": ids + 1}, None, "text-classification")
    for answer in (0.05, 10.0):
        bar.compare(row, {"logits": np.array([[answer]], np.float32)})
    assert bar.measures()[0].psnr_min == pytest.approx(66.02, abs=0.01)
    assert bar.failures() == []


def test_the_package_is_linted_and_an_error_fails(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = verify.verify(job).lint
    assert found.package == "tiny.float16.mlpackage"
    assert {each.severity for each in found.findings} == {"info"}
    assert {each.predicted for each in found.verdicts} <= {"cpu", "unknown"}
    wrong = replace(found, findings=(replace(found.findings[0], severity="error", rule="rank", layer="blocks.0"),))
    monkeypatch.setattr(verify, "lint", lambda path: wrong)
    with pytest.raises(GateFailed, match=r"^tiny\.float16\.mlpackage: rank at blocks\.0: "):
        verify.verify(job)


def test_below_the_gate(job: Path) -> None:
    """The gate stands on the worst row, not on all rows together or the median."""
    artefact = verify.verify(job).fidelity[1]
    worst = min(artefact.measures, key=lambda m: m.psnr_min)
    assert artefact.psnr > artefact.psnr_min
    change(job, gates=Gates(float16=artefact.psnr_min))
    verify.verify(job)
    change(job, gates=Gates(float16=artefact.psnr_min + 0.01))
    (job / "report.json").unlink()
    with pytest.raises(GateFailed) as caught:
        verify.verify(job)
    text = f"float16 (mil-declared): {worst.output} at {worst.length} tokens on {worst.inputs}: {worst.psnr_min:.1f} dB"
    assert str(caught.value).startswith(f"{text}, the gate is ")
    assert "\n" not in str(caught.value)
    assert records.read(job / "report.json", Report).failures == (str(caught.value),)
    change(job, gates=Gates(rewrite=CAP + 1, float16=50))
    with pytest.raises(GateFailed, match=r"rewrite \(torch-float32\): .*\(and \d+ more in .*report\.json\)$"):
        verify.verify(job)


def tamper(folder: Path, name: str, values: Callable[[Array], Array]) -> None:
    """Other values for one of the original's tensors in the saved weight file."""
    tensor = load_file(folder / "source/model.safetensors")[name].half().numpy()
    weights = folder / "tiny.float16.mlpackage" / package.WEIGHTS
    stored = weights.read_bytes()
    assert stored.count(tensor.tobytes()) == 1
    changed = values(tensor.copy()).astype(np.float16)
    assert changed.shape == tensor.shape
    weights.write_bytes(stored.replace(tensor.tobytes(), changed.tobytes()))


def described_as_it_is(folder: Path) -> None:
    """export.json made to agree with what lies there."""
    exported = records.read(folder / "export.json", Exported)
    (made,) = exported.packages
    digest = package.digest(folder / made.file)
    assert digest != made.digest
    records.write(folder / "export.json", replace(exported, packages=(replace(made, digest=digest),)))


TENSOR = "encoder.layer.0.intermediate.dense.weight"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (lambda t: t[::-1], "dB, the gate is 50 dB"),
        (lambda t: t * 1.1, "dB, the gate is 50 dB"),
        (lambda t: t * np.float16(np.nan), "not finite"),
        (lambda t: np.full_like(t, 65504), "not finite"),
    ],
)
def test_weights_changed_after_the_export(job: Path, values: Any, words: str) -> None:
    """By its figures alone: nobody says that they were changed."""
    tamper(job, TENSOR, values)
    described_as_it_is(job)
    report = refused(job)
    assert any("float16" in text and words in text for text in report.failures)
    assert not any("export it again" in text for text in report.failures)


def test_a_package_that_is_not_the_exported_one(job: Path) -> None:
    """A change that no figure shows; and the report is about what was measured."""
    tamper(job, TENSOR, lambda t: np.nextafter(t, np.float16(9)))
    exported = records.read(job / "export.json", Exported)
    report = refused(job)
    (text,) = report.failures
    assert text == "tiny.float16.mlpackage is not the package that export.json describes: export it again"
    for digest in (exported.packages[0].digest, package.digest(job / "tiny.float16.mlpackage")):
        expected = keys.verify_key({"float16": digest}, keys.PROTOCOL, keys.BACKEND)
        assert (report.verify_key == expected) == (digest != exported.packages[0].digest)


def test_no_report_of_an_earlier_package_stays(job: Path) -> None:
    verify.verify(job)
    (job / "tiny.float16.mlpackage" / package.WEIGHTS).write_bytes(b"")
    with pytest.raises(PackageError):
        verify.verify(job)
    assert not (job / "report.json").exists()


# --- real weights ---


def measured(carried: demo.Carried, length: int, folder: Path) -> Report:
    folder.mkdir()
    job = Job("create", "a test", carried.id, f"me/{folder.name}", recipe=Recipe(lengths=(length,)))
    records.write(folder / "job.json", job)
    source.take(folder, demo.obtain(carried), carried.id)
    export.export(folder)
    return verify.verify(folder)


@pytest.mark.weights
@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    report = measured(demo.MODELS[0], 128, tmp_path / "minilm")
    rewrite, artefact = report.fidelity
    kinds = {(m.output, m.inputs) for m in rewrite.measures}
    assert kinds == {(output, kind) for output in ("token_embeddings", "sentence_embedding") for kind in SINGLE_TEXTS}
    assert all(m.psnr_min >= 100 for m in rewrite.measures)
    sentences = {m.output: m for m in artefact.measures if m.inputs == "sentences, padded"}
    assert sentences["sentence_embedding"].psnr >= 65
    assert sentences["token_embeddings"].psnr >= 75
    assert sentences["sentence_embedding"].psnr_min >= 65
    assert sentences["token_embeddings"].psnr_min >= 75
    assert all(m.cosine_min > 0.99999 for m in artefact.measures)


@pytest.mark.weights
@pytest.mark.slow
def test_mpnet(tmp_path: Path) -> None:
    """All of all-mpnet-base-v2, at 64 tokens: 12 layers of 768 channels, a bias by distance in every score."""
    report = measured(demo.MPNET, 64, tmp_path / "mpnet")
    rewrite, artefact, *_ = report.fidelity
    assert {m.output for m in rewrite.measures} == {"token_embeddings", "sentence_embedding"}
    assert rewrite.psnr_min >= 110
    assert artefact.psnr_min >= 60
    assert all(m.psnr_min >= 66 and m.cosine_min > 0.99999 for m in artefact.measures if "sentences" in m.inputs)


@pytest.mark.weights
@pytest.mark.slow
def test_splade(tmp_path: Path) -> None:
    report = measured(demo.MODELS[1], 64, tmp_path / "splade")
    rewrite, artefact = report.fidelity
    assert rewrite.psnr_min >= 100
    assert artefact.psnr_min >= 65
    for bar in report.fidelity:
        (masked,) = (m for m in bar.measures if m.inputs == "masked sentences")
        assert (masked.rows, masked.top1) == (16, 1)
