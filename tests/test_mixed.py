"""Mixed variants: the aim is reached with as few bits as needed, and what was measured is what the package has."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hft2ane import demo, export, mixed, package, records, source, verify
from hft2ane.ane import Decoder, Embedding, Linear, TokenConvolution
from hft2ane.audit import Batch, calibration
from hft2ane.compress import MIXED, PALETTES, about, compress
from hft2ane.errors import GateFailed, UnsupportedConfig
from hft2ane.export import check_variants
from hft2ane.families import FAMILIES, family
from hft2ane.mil import open_package
from hft2ane.mixed import AIMS, Row, Trial, mix, ordered
from hft2ane.psnr import psnr
from hft2ane.records.job import Job
from hft2ane.records.package import Exported, Mixture, Raised
from hft2ane.records.recipe import Form, Gates, Recipe, Task, Variant
from hft2ane.reference import describe, load
from hft2ane.rewrite import rewrite
from tests.conftest import Checkpoint
from tests.test_compress import inputs
from tests.test_families import loud, tokens

FORMS: tuple[Form, ...] = ("palettized-4", "palettized-6", "palettized-8", "float16")
SIZES = {"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 2}
TASK: Task = "feature-extraction"
Case = tuple[Any, list[Row], Batch]


@pytest.fixture(scope="module")
def tiny(checkpoint: Checkpoint) -> Path:
    return checkpoint(**SIZES)


def case(folder: Path, lengths: Sequence[int] = (8, 16)) -> Case:
    original = load(folder, None)
    module = rewrite(original)
    rows = mixed.rows(folder, original, module.inputs, lengths)
    return module, rows, calibration(folder, original, module.inputs, lengths)[0]


@pytest.fixture(scope="module")
def ready(tiny: Path) -> Case:
    return case(tiny)


def forms_of(mixture: Mixture, trial: Trial) -> dict[str, Form]:
    return dict.fromkeys(trial.layers, mixture.form) | {each.path: each.form for each in mixture.raised}


# --- the choice ---


def test_aims_are_the_gates_and_one_more() -> None:
    assert {variant: Gates().of(variant) + 1 for variant in MIXED} == AIMS
    assert all(Gates().of(variant) == Gates().of(form) for variant, form in MIXED.items())


@pytest.mark.parametrize("variant", MIXED)
def test_no_step_can_be_left_out(variant: Variant, ready: Case) -> None:
    """With the last of the steps undone the module is below its aim."""
    module, rows, batch = ready
    mixture = mix(module, TASK, variant, rows, batch)
    forms = FORMS[FORMS.index(MIXED[variant]) :]
    trial = Trial(module, TASK, rows, forms)
    chosen = forms_of(mixture, trial)
    assert mixture.before < mixture.aim <= mixture.after
    assert trial.least(chosen, torch.double) == pytest.approx(mixture.after, abs=0.01)
    steps = ordered(trial.layers, trial.energies(tuple(each[:: mixed.EVERY] for each in batch)), forms)
    done = [step for step in steps if forms.index(chosen[step[0]]) >= forms.index(step[1])]
    assert done == steps[: len(done)]
    one_less = dict.fromkeys(trial.layers, forms[0]) | dict(done[:-1])
    assert trial.least(one_less, torch.double) < mixture.aim


def test_a_layer_s_steps_are_in_their_order(ready: Case) -> None:
    module, rows, batch = ready
    trial = Trial(module, TASK, rows, FORMS)
    steps = ordered(trial.layers, trial.energies(batch), FORMS)
    assert len(steps) == 3 * len(trial.layers)
    for path in trial.layers:
        assert [form for each, form in steps if each == path] == list(FORMS[1:])


def test_energies_are_what_small_errors_do(ready: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each layer alone, against running the module with that layer's weights."""
    monkeypatch.setattr(mixed, "PROBES", 100)
    module, rows, _ = ready
    trial = Trial(module, TASK, [row for row in rows if row.tensors[0].shape[-1] == 16], ("palettized-8", "float16"))
    batch = tuple(torch.cat(each) for each in zip(*(row.tensors for row in trial.rows), strict=True))
    reference, _ = trial.reference(torch.double)
    peaks = [max(float(answer[j].abs().max()) for answer in reference) for j in range(len(module.OUTPUTS))]
    exact = {}
    for path, each in trial.layers.items():
        error = each.weight("palettized-8").double() - each.weight("float16")
        (group,) = trial.groups
        outputs = trial.run(group, {id(each.parameter): each.parameter.double() + error}, torch.double).values()
        exact[path] = sum(
            float((a - b).square().mean()) / peak**2
            for got, answer in zip(outputs, reference, strict=True)
            for a, b, peak in zip(got, answer, peaks, strict=True)
        )
    estimated = trial.energies(batch)
    assert estimated.keys() == exact.keys()
    for path in exact:
        assert estimated[path] == pytest.approx(exact[path], rel=0.25), path


def test_a_vocabulary_that_is_decoded_in_parts(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    module, rows, batch = case(checkpoint("BertForMaskedLM", vocab_size=70, **SIZES))
    trial = Trial(module, "fill-mask", rows, FORMS)
    usual = dict.fromkeys(trial.layers, FORMS[0])
    whole, least = trial.energies(batch), trial.least(usual, torch.double)
    monkeypatch.setattr(Decoder, "MOST", 64)
    assert whole["decoder"] > 0
    assert trial.energies(batch) == pytest.approx(whole)
    assert trial.least(usual, torch.double) == pytest.approx(least)


def test_near_the_aim_double_precision_decides(ready: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """An aim so near to a candidate's PSNR that single precision cannot tell is met, or not, as it should."""
    module, rows, batch = ready
    mixture = mix(module, TASK, "mixed-4", rows, batch)
    trial = Trial(module, TASK, rows, FORMS)
    exact = trial.least(forms_of(mixture, trial), torch.double)
    monkeypatch.setitem(AIMS, "mixed-4", exact - 1e-9)
    assert mix(module, TASK, "mixed-4", rows, batch).raised == mixture.raised
    monkeypatch.setitem(AIMS, "mixed-4", exact + 1e-9)
    more = mix(module, TASK, "mixed-4", rows, batch).raised
    assert {each.path for each in more} >= {each.path for each in mixture.raised}
    assert more != mixture.raised


def test_where_the_plain_variant_is_good_enough_nothing_is_raised(ready: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    module, rows, batch = ready
    monkeypatch.setitem(AIMS, "mixed-6", 5.0)
    mixture = mix(module, TASK, "mixed-6", rows, batch)
    assert mixture.raised == ()
    assert mixture.before == mixture.after > 5
    assert about("mixed-6", mixture) == about("palettized-6", None)


def test_an_aim_that_is_out_of_reach(ready: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    module, rows, batch = ready
    monkeypatch.setitem(AIMS, "mixed-6", 150.0)
    with pytest.raises(GateFailed, match=r"mixed-6: \d+\.\d dB with all linear layers in fp16, its aim is 150 dB"):
        mix(module, TASK, "mixed-6", rows, batch)


def test_the_choice_is_the_same_with_other_threads(ready: Case) -> None:
    """Which add up in another order."""
    module, rows, batch = ready
    found = [mix(module, TASK, "mixed-4", rows, batch).raised]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        found.append(mix(module, TASK, "mixed-4", list(reversed(rows)), batch).raised)
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", [name for name in FAMILIES if "fill-mask" in family(name).tasks])
def test_every_family_is_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own weights it computes what it does without us, more exactly in double; and every linear counts."""
    for place in ("hft2ane.mixed", "hft2ane.compress"):
        monkeypatch.setattr(f"{place}.LEAST_NUMBERS", 1)
    model = loud(name, "fill-mask", {})
    model.save_pretrained(tmp_path)
    module: Any = rewrite(load(tmp_path, None))
    batch = [tokens(model, (8, 5), 8)[key].int() for key in module.inputs]
    rows = [
        Row(tuple(tensor[i : i + 1] for tensor in batch), torch.arange(8) < count, {(8, "ids")})
        for i, count in enumerate((8, 5))
    ]
    trial = Trial(module, "fill-mask", rows, FORMS)
    linears = [path for path, part in module.named_modules() if isinstance(part, Linear | TokenConvolution)]
    assert list(trial.layers) == linears
    (expected,) = module(*batch)
    for dtype in (torch.float, torch.double):
        outputs, _ = trial.reference(dtype)
        for (got,), answer, row in zip(outputs, expected, rows, strict=True):
            assert got.dtype == dtype
            assert psnr(answer[row.tokens].numpy(), got.numpy()) > 130
    assert all(energy > 0 for energy in trial.energies(tuple(batch)).values())


# --- rows ---


def test_each_different_row_is_measured_once(tiny: Path) -> None:
    rows = case(tiny, (32, 64))[1]
    places = {place for row in rows for place in row.places}
    assert {length for length, _ in places} == {32, 64}
    short = [row for row in rows if len(row.tokens) == 16]
    assert any(len(row.places) == 2 for row in short)
    assert all(int(row.tokens.sum()) > len(row.tokens) - mixed.FINE for row in rows)


# --- packages ---


def job(folder: Path, checkpoint: Path, lengths: tuple[int, ...], variants: tuple[Variant, ...]) -> Exported:
    folder.mkdir(parents=True)
    recipe = Recipe(None, lengths, variants)
    records.write(folder / "job.json", Job("create", "", "a/tiny", "me/tiny-ane", recipe=recipe, gates=Gates(bits4=1)))
    source.take(folder, checkpoint, "a/tiny")
    return export.export(folder)


@pytest.mark.parametrize("original", ["BertModel", "BertForMaskedLM", "BertForQuestionAnswering"])
@pytest.mark.parametrize("lengths", [(16,), (16, 40)], ids=str)
def test_what_was_measured_is_what_the_package_has(
    original: str, lengths: tuple[int, ...], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """By the protocol, on the saved packages: the plain variant as `before`, and the mixed one as `after`.

    Within 1 dB: these weights are loud, so that fp16 between the operations adds what it does not in real models."""
    made = job(tmp_path / "job", checkpoint(original, **SIZES), lengths, ("palettized-4", "mixed-4"))
    bars = {bar.what: bar.psnr_min for bar in verify.verify(tmp_path / "job").fidelity}
    mixture = made.packages[1].mixture
    assert mixture is not None
    assert made.packages[0].mixture is None
    assert bars["palettized-4"] == pytest.approx(mixture.before, abs=1)
    assert bars["mixed-4"] == pytest.approx(mixture.after, abs=1)
    assert bars["mixed-4"] > 25
    assert (made.packages[0].size < made.packages[1].size) == bool(mixture.raised) == (mixture.before < 26)


def test_multiple_choice(checkpoint: Checkpoint) -> None:
    module, rows, batch = case(checkpoint("BertForMultipleChoice", **SIZES))
    assert rows[0].tensors[0].dim() == 3
    assert mix(module, "multiple-choice", "mixed-4", rows, batch).after >= AIMS["mixed-4"]


def with_forms(module: Any, mixture: Mixture) -> None:
    """Puts into the module, in fp32, what its compressed weights stand for."""
    raised = {each.path: each.form for each in mixture.raised}
    for path, part in module.named_modules():
        if isinstance(part, Linear | Embedding) and path != "positions":
            half = part.weight.detach().half().numpy()
            if made := compress(half, raised.get(path, mixture.form), isinstance(part, Embedding)):
                part.weight = nn.Parameter(part.weight.new_tensor(made.dense.astype(np.float32)), requires_grad=False)


@pytest.mark.parametrize("lengths", [(16,), (8, 16)], ids=str)
def test_packages_compute_with_the_weights_that_are_meant(tiny: Path, lengths: tuple[int, ...], tmp_path: Path) -> None:
    """In every function as a package in fp16 of the decompressed weights does, bit by bit."""
    original = load(tiny, None)
    module = rewrite(original)
    paths = [path for path, part in module.named_modules() if isinstance(part, Linear)]  # type: ignore[attr-defined]
    raised = tuple(Raised(path, form, 0.1) for path, form in zip(paths, itertools.cycle(FORMS), strict=False))
    mixture = Mixture("palettized-4", 26, 20, 27, raised)
    metadata = {"author": "", "co.huggingface.exporters.name": "test"}
    path, dense = tmp_path / "mixed.mlpackage", tmp_path / "dense.mlpackage"
    export.write(path, module, lengths, "mixed-4", original, metadata, mixture)
    with_forms(module, mixture)
    export.write(dense, module, lengths, "float16", original, metadata)
    for length in lengths:
        name = "main" if len(lengths) == 1 else f"tokens_{length}"
        expected = open_package(dense).evaluate(inputs(length), name)
        got = open_package(path).evaluate(inputs(length), name)
        for output in expected:
            np.testing.assert_array_equal(got[output], expected[output])


def test_a_package_says_which_layers_have_more_bits(tiny: Path, tmp_path: Path) -> None:
    made = job(tmp_path / "job", tiny, (8, 16), ("mixed-4",)).packages[0]
    saved = (tmp_path / "job" / made.file / package.SPEC).read_bytes()
    assert made.mixture is not None
    raised = ", ".join(f"{each.path} {each.form}" for each in made.mixture.raised)
    assert raised.encode() in saved
    assert made.weights.encode() in saved
    counts = {form: sum(each.form == form for each in made.mixture.raised) for form in PALETTES}
    assert made.weights.startswith(
        f"a palette of 16 fp16 values a linear layer, but one of 64 in {counts['palettized-6']}"
    )
    assert 0 < sum(each.share for each in made.mixture.raised) <= 1.01
    again = job(tmp_path / "again", tiny, (8, 16), ("mixed-4",)).packages[0]
    assert again == made


# --- real weights ---


@pytest.mark.weights
@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    """Shown with `-s`. The plain 4-bit package would not pass the gate that it has by default."""
    carried = demo.MODELS[0]
    recipe = Recipe(lengths=(64,), variants=("palettized-6", "palettized-4", "mixed-6", "mixed-4"))
    job = Job("create", "", carried.id, "me/minilm-ane", recipe=recipe, gates=Gates(bits4=20))
    records.write(tmp_path / "job.json", job)
    source.take(tmp_path, demo.obtain(carried), carried.id)
    made = {each.variant: each for each in export.export(tmp_path).packages}
    bars = {bar.what: bar for bar in verify.verify(tmp_path).fidelity}
    for variant, each in made.items():
        bar = bars[variant]
        print(f"{variant:13} {each.size / 1e6:5.1f} MB {bar.psnr:6.2f} dB, worst row {bar.psnr_min:6.2f} dB")
    six, four = made["mixed-6"].mixture, made["mixed-4"].mixture
    assert six is not None
    assert four is not None
    assert six.raised == ()
    assert made["palettized-4"].size < made["mixed-4"].size <= 19.3e6 < made["palettized-6"].size
    assert bars["palettized-4"].psnr_min < 25 < 25.9 <= bars["mixed-4"].psnr_min
    assert bars["palettized-4"].psnr_min == pytest.approx(four.before, abs=0.1)
    assert bars["mixed-4"].psnr_min == pytest.approx(four.after, abs=0.1)


def test_none_is_made_for_a_text_that_is_written(tmp_path: Path) -> None:
    loud("bert", "text-generation", {}).save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedConfig, match=r"^a/b: there is no mixed-4 for text-generation; ask for one of float16"
    ):
        check_variants(describe(tmp_path, None), ("float16", "mixed-4"), "a/b")
