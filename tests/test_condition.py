"""Conditioning: the same function of smaller numbers, only where it is needed, and what it cannot do."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hft2ane import package
from hft2ane.ane import Attention, ChannelNorm, Linear
from hft2ane.audit import Batch, calibration, measure
from hft2ane.condition import EPS_ERROR, check, condition, eps_error
from hft2ane.demo import MODELS, obtain
from hft2ane.errors import ExportError, GateFailed
from hft2ane.export import INPUTS, OUTPUTS, SINGLE, build
from hft2ane.families import family
from hft2ane.mil import Program, open_package
from hft2ane.psnr import psnr
from hft2ane.records import dump, parse
from hft2ane.records.package import Audit
from hft2ane.reference import Original, load
from hft2ane.rewrite import rewrite
from tests.conftest import Checkpoint
from tests.test_families import loud, tokens

LENGTH = 16
GATE = 50.0  # dB: that of a float16 package

Alter = Callable[[str, Tensor], Tensor]


def altered(folder: Path, into: Path, alter: Alter) -> Path:
    """The checkpoint with other weights."""
    into.mkdir()
    for file in folder.rglob("*"):
        if file.is_file() and file.name != "model.safetensors":
            (into / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (into / file.relative_to(folder)).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    save_file({k: alter(k, t).contiguous() for k, t in tensors.items()}, into / "model.safetensors", {"format": "pt"})
    return into


def louder(exponent: int, *parts: str) -> Alter:
    """The linears of these names, weights and biases, times a power of two."""
    return lambda name, t: t * 2.0**exponent if any(f"{part}." in name for part in parts) else t


# Families whose sums go into norms.
POST_NORM = ("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
BRANCHES = ("attention.output.dense", "output.dense")


def stretched(exponent: int, layers: int) -> Alter:
    """The same function with a residual stream times a power of two: norms give it, branches add to it, and what reads
    it has smaller weights."""

    def alter(name: str, t: Tensor) -> Tensor:
        if name.startswith(("pooler", f"encoder.layer.{layers - 1}.output.LayerNorm")):
            return t
        if "LayerNorm" in name or any(f"{part}." in name for part in BRANCHES):
            return t * 2.0**exponent
        reads = ("query.weight", "key.weight", "value.weight", "intermediate.dense.weight")
        return t * 2.0**-exponent if name.endswith(reads) else t

    return alter


def batches(folder: Path, original: Original) -> list[Batch]:
    return calibration(folder, original, rewrite(original).inputs, (LENGTH,))


def saved(module: Any, folder: Path, name: str) -> tuple[str, Program]:
    program, _ = build(module, (LENGTH,), SINGLE)
    path = folder / f"{name}.mlpackage"
    package.write(path, program, "a test", INPUTS | OUTPUTS, {"author": "a test", "license": "-"})
    return package.digest(path), open_package(path)


def fidelity(original: Original, module: Any, program: Program, rows: Batch) -> float:
    """The least PSNR in dB of the saved program against the original, at tokens; -inf when anything is not finite."""
    least = math.inf
    for n in range(len(rows[0])):
        inputs = {name: tensor[n : n + 1] for name, tensor in zip(module.inputs, rows, strict=True)}
        answers = original.answer(inputs)
        got = program.evaluate({name: t.int().numpy() for name, t in inputs.items()})
        keep = inputs["attention_mask"][0].bool().numpy()
        for name in module.OUTPUTS:
            expected, value = answers[name].numpy(), got[name].astype(np.float32)
            if expected.ndim == 3:
                expected, value = expected[:, keep], value[:, keep]
            least = min(least, psnr(expected, value) if np.isfinite(value).all() else -math.inf)
    return least


def tried(folder: Path, into: Path) -> tuple[Audit, float, float]:
    """The audit, and the package's PSNR without and with conditioning."""
    original = load(folder, None)
    rows = batches(folder, original)
    few = tuple(tensor[:2] for tensor in rows[0])
    plain, module = rewrite(original), rewrite(original)
    audit = condition(module, rows)
    without = fidelity(original, plain, saved(plain, into, "without")[1], few)
    return audit, without, fidelity(original, module, saved(module, into, "with")[1], few)


# ---- what it is for


def test_an_overflowing_residual_of_a_tiny_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = altered(checkpoint(num_hidden_layers=2), tmp_path / "loud", louder(15, *BRANCHES))
    audit, without, within = tried(folder, tmp_path)
    assert without < 0
    assert within >= GATE
    assert {c.path for c in audit.conditioned} == {f"blocks.{i}.norm{n}" for i in (0, 1) for n in (1, 2)}
    assert {c.scaled for c in audit.conditioned} == {
        (f"blocks.{i}.{part}",) for i in (0, 1) for part in ("attend.out", "down")
    }
    assert all(c.headroom_bits_before < 0 < c.exponent and c.eps_error <= EPS_ERROR for c in audit.conditioned)
    assert audit.failures == ()
    assert parse(dump(audit), Audit, "ranges.json") == audit


@pytest.mark.parametrize("name", POST_NORM)
def test_an_overflowing_residual_of_every_family(name: str, tmp_path: Path) -> None:
    model = loud(name, "feature-extraction", {})
    table = family(name).tasks["feature-extraction"].WEIGHTS
    rows = "|".join(
        re.sub(r"\\{\w\\}", r"\\d+", re.escape(theirs))
        for ours, theirs in table.items()
        if ours.endswith((".attend.out", ".down"))
    )
    for key, parameter in model.named_parameters():
        if re.fullmatch(rf"({rows})\.(weight|bias)", key):
            parameter.data *= 2.0**15
    model.save_pretrained(tmp_path)
    original = load(tmp_path, None)
    module: Any = rewrite(original)
    asked = tokens(model, (LENGTH, 9), LENGTH)
    batch = tuple(asked[key].int() for key in module.inputs)
    audit = condition(module, [batch])
    sums = {path for path, _ in module.named_modules() if re.search(r"norm\d$", path)}
    assert {c.path for c in audit.conditioned} == sums
    assert min(c.headroom_bits_before for c in audit.conditioned) < 0
    assert audit.failures == ()
    assert fidelity(original, module, saved(module, tmp_path, "with")[1], batch) >= GATE


@pytest.mark.weights
@pytest.mark.slow
def test_an_overflowing_residual_of_a_real_model(tmp_path: Path) -> None:
    """It is the model that we know, so it has that model's answers."""
    folder = altered(obtain(MODELS[0]), tmp_path / "loud", stretched(9, 6))
    audit, without, within = tried(folder, tmp_path)
    assert without < 0
    assert within >= GATE
    assert {f"encoder.blocks.{i}.norm2" for i in range(6)} <= {c.path for c in audit.conditioned}
    assert not audit.failures
    known, same = load(obtain(MODELS[0]), None), load(folder, None)
    rows = dict(zip(("input_ids", "attention_mask"), batches(folder, same)[0], strict=True))
    name = "sentence_embedding"
    assert psnr(known.answer(rows)[name].numpy(), same.answer(rows)[name].numpy()) > 100


@pytest.mark.weights
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.id)
def test_nothing_is_done_where_nothing_is_needed(model: Any, tmp_path: Path) -> None:
    folder = obtain(model)
    original = load(folder, None)
    plain, module = rewrite(original), rewrite(original)
    audit = condition(module, batches(folder, original))
    assert audit.conditioned == audit.failures == ()
    assert saved(plain, tmp_path, "without")[0] == saved(module, tmp_path, "with")[0]


# ---- residual streams of pre-norm layers


def streaming(folder: Path, alter: Alter, **config: Any) -> tuple[Original, Batch]:
    """A tiny ModernBERT with other weights, and a batch for it."""
    model = loud("modernbert", "feature-extraction", config)
    for name, parameter in model.named_parameters():
        parameter.data = alter(name, parameter.data)
    model.save_pretrained(folder)
    asked = tokens(model, (LENGTH, 9), LENGTH)
    return load(folder, None), tuple(asked[key].int() for key in ("input_ids", "attention_mask"))


def both(original: Original, batch: Batch, folder: Path) -> tuple[Audit, Any, float, float]:
    """The audit, the conditioned module, and the package's PSNR without and with conditioning."""
    plain, module = rewrite(original), rewrite(original)
    audit = condition(module, [batch])
    without = fidelity(original, plain, saved(plain, folder, "without")[1], batch)
    return audit, module, without, fidelity(original, module, saved(module, folder, "with")[1], batch)


STREAM = ("Wo.", "embeddings.norm.")


@pytest.mark.parametrize("bias", [False, True])
def test_an_overflowing_stream(tmp_path: Path, bias: bool) -> None:
    """All of it times a power of two, and what reads it smaller by as much: the function of the model before."""
    config = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias"), bias) | {"norm_eps": 1e-12}
    known, _ = streaming(tmp_path / "known", lambda name, t: t, **config)

    def alter(name: str, t: Tensor) -> Tensor:
        if name.startswith("layers.0.attn.Wqkv.weight"):  # no norm before it
            return t * 2.0**-15
        return t * 2.0**15 if any(part in name for part in STREAM) else t

    original, batch = streaming(tmp_path / "loud", alter, **config)
    audit, module, without, within = both(original, batch, tmp_path)
    assert without < 0
    assert within >= GATE
    assert [step.path.removeprefix("stream.") for step in audit.conditioned] == [
        "start", "layers.0.norm2", *(f"layers.{i}.norm{n}" for i in (1, 2) for n in (1, 2)), "end"
    ]  # fmt: skip
    assert audit.conditioned[0].scaled == ("stream.start", "stream.layers.0.attend.qk", "stream.layers.0.attend.v")
    assert all(step.exponent > 0 and step.eps_error <= EPS_ERROR for step in audit.conditioned)
    scales = [scale for layer in module.stream.layers for scale in layer.scales]
    assert len([scale for scale in scales if scale != 1]) <= 2  # so many operations more
    assert audit.failures == ()
    asked = dict(zip(("input_ids", "attention_mask"), batch, strict=True))
    (expected,), (same,) = (each.answer(asked).values() for each in (known, original))
    assert psnr(expected.numpy(), same.numpy()) > 100


def test_a_stream_that_only_ends_large(tmp_path: Path) -> None:
    """It is made smaller from there on: before, its numbers would be subnormal and no eps would survive."""

    def alter(name: str, t: Tensor) -> Tensor:
        if name.startswith("embeddings.norm") or (name.endswith("Wo.weight") and not name.startswith("layers.2")):
            return t * 2.0**-6
        return t * {"layers.2.mlp.Wi.weight": 2.0**3, "layers.2.mlp.Wo.weight": 2.0**14}.get(name, 1.0)

    audit, module, without, within = both(*streaming(tmp_path / "loud", alter), tmp_path)
    assert without < 0
    assert within >= GATE
    (done,) = audit.conditioned
    assert (done.path, done.scaled) == ("stream.end", ("stream.layers.2.feed.down",))
    assert [layer.scales for layer in module.stream.layers] == [[1, 1], [1, 1], [1, 2.0**-done.exponent]]
    assert audit.failures == ()


def test_a_stream_that_gets_small_again(tmp_path: Path) -> None:
    """Biases add much to it, and the next ones take it away: then no eps would survive, and there is no need."""

    def alter(name: str, t: Tensor) -> Tensor:
        if name in ("layers.0.mlp.Wo.bias", "layers.1.attn.Wo.bias"):
            return torch.full_like(t, 2.0**11) * torch.tensor([1.0, -1.0] * 12) * (1 if "mlp" in name else -1)
        return t * 2.0**-6 if name.startswith("embeddings.norm") or "Wo." in name else t

    original, batch = streaming(tmp_path, alter, mlp_bias=True, attention_bias=True)
    module = rewrite(original)
    audit = condition(module, [batch])
    (done,) = audit.conditioned
    assert (done.path, done.scaled) == ("stream.layers.1.norm1", ("stream.layers.0.feed.down",))
    up = 2.0**done.exponent
    assert [layer.scales for layer in module.stream.layers] == [[1, 1 / up], [up, 1], [1, 1]]  # type: ignore[attr-defined]
    assert audit.failures == ()


def test_an_eps_of_a_stream_that_matters_and_does_not_survive_fails(tmp_path: Path) -> None:
    """Some tokens make large numbers, and others, which eps keeps small from the beginning on, do not."""

    def alter(name: str, t: Tensor) -> Tensor:
        if name.startswith("embeddings.tok"):
            return torch.cat([t[:25] * 2.0**6, t[25:] * 2.0**-8])
        if "attn.Wo" in name:  # each token for itself
            return t * 0
        return t * {"layers.1.mlp.Wi.weight": 2.0**3, "layers.1.mlp.Wo.weight": 2.0**15}.get(name, 1.0)

    original, batch = streaming(tmp_path, alter, norm_eps=0.1)
    audit = condition(rewrite(original), [batch])
    assert audit.conditioned == ()
    with pytest.raises(GateFailed, match=r"tiny: stream\."):
        check(audit, "tiny")
    (text,) = (text for text in audit.failures if text.startswith("stream.layers.1: sum"))
    assert "the eps of stream.layers.2.norm1 would not survive" in text


def test_a_gate_that_is_too_large(tmp_path: Path) -> None:
    def alter(name: str, t: Tensor) -> Tensor:
        if name == "layers.1.mlp.Wi.weight":
            return torch.cat([t[: len(t) // 2], t[len(t) // 2 :] * 2.0**15])
        return t * 2.0**-15 if name == "layers.1.mlp.Wo.weight" else t

    audit, _, without, within = both(*streaming(tmp_path / "loud", alter), tmp_path)
    assert [c.scaled for c in audit.conditioned] == [("stream.layers.1.feed.gate", "stream.layers.1.feed.down")]
    assert without < 0
    assert within >= GATE
    assert audit.failures == ()


def test_queries_and_keys_of_one_linear_are_not_balanced(tmp_path: Path) -> None:
    def alter(name: str, t: Tensor) -> Tensor:
        return t * 2.0**15 if name.startswith("layers.1.attn.Wqkv") else t

    original, batch = streaming(tmp_path, alter)
    with pytest.raises(GateFailed, match=r"tiny: stream\.layers\.1\.attend\.qk: linear up to"):
        check(condition(rewrite(original), [batch]), "tiny")


# ---- that it is the same function


def test_in_fp32_the_function_is_the_same_but_for_eps(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = altered(checkpoint(), tmp_path / "loud", louder(15, *BRANCHES))
    original = load(folder, None)
    before = {name: tensor.clone() for name, tensor in original.tensors.items()}
    plain, module = rewrite(original), rewrite(original)
    rows = batches(folder, original)
    assert condition(module, rows).conditioned
    for old, new in zip(measure(plain, rows).outputs, measure(module, rows).outputs, strict=True):
        for a, b in zip(old, new, strict=True):
            assert psnr(a.numpy(), b.numpy()) > 130
    assert all(torch.equal(before[name], tensor) for name, tensor in original.tensors.items())


class Sum(nn.Module):
    """A stream and a branch of `Linear`, into a norm; `twice` uses the branch once more, outside of the norm."""

    inputs = ("x", "attention_mask")
    OUTPUTS = ("logits",)

    def __init__(self, size: float, eps: float = 1e-12, twice: bool = False, linear: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.twice, self.linear = twice, linear
        self.down, self.norm = Linear(8, 8), ChannelNorm(8, eps)
        for parameter in self.parameters():
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator))
        self.down.weight *= size

    def forward(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        y = self.down(x)
        normal = self.norm(x, y if self.linear else torch.relu(y))
        return (normal + y if self.twice else normal,)


def one_batch(scale: float = 1.0) -> list[Batch]:
    x = torch.randn(2, 8, 1, 5, generator=torch.Generator().manual_seed(2))
    return [(x * scale, torch.ones(2, 5))]


@pytest.mark.parametrize("exponent", [4, 9, 14])
def test_a_power_of_two_is_exact_where_eps_is_nothing(exponent: int) -> None:
    plain, module = Sum(2.0**exponent, eps=0.0), Sum(2.0**exponent, eps=0.0)
    audit = condition(module, one_batch())
    assert (len(audit.conditioned) == 1) == (exponent > 4)
    assert torch.equal(plain(*one_batch()[0])[0], module(*one_batch()[0])[0])


def test_it_leaves_the_aimed_headroom() -> None:
    audit = condition(Sum(2.0**14), one_batch())
    tightest = min(audit.layers, key=lambda r: r.headroom_bits)
    assert tightest.kind == "squares"
    assert 2 <= tightest.headroom_bits < 4


# ---- what it cannot do


def test_a_linear_that_is_used_elsewhere_too_is_not_scaled_in_silence() -> None:
    with pytest.raises(ExportError, match="changed the function"):
        condition(Sum(2.0**11, twice=True), one_batch())


def test_a_branch_that_is_no_linear_fails_with_the_layers_name() -> None:
    audit = condition(Sum(2.0**14, linear=False), one_batch())
    assert audit.conditioned == ()
    with pytest.raises(GateFailed, match=r"org/model: norm: .*not the output of a linear|org/model: down: linear"):
        check(audit, "org/model")
    assert any("not the output of a linear" in text for text in audit.failures)


def test_an_eps_that_matters_and_does_not_survive_fails() -> None:
    """One huge token makes the others' variance small beside the eps that fp16 can still hold."""
    x, mask = one_batch()[0]
    x[:, :, :, 0] *= 2.0**10
    x[:, :, :, 1:] *= 2.0**-8
    audit = condition(Sum(2.0**8), [(x, mask)])
    assert audit.conditioned == ()
    assert any(text.startswith("norm: ") and "eps would not survive" in text for text in audit.failures)


@pytest.mark.parametrize(("eps", "exponent", "variance"), [(1e-12, 1, 1e-3), (1e-12, 8, 10.0), (1e-5, 6, 0.01)])
def test_the_bound_of_eps_holds(eps: float, exponent: int, variance: float) -> None:
    raised = max(eps * 4.0**-exponent, 2.0**-24)
    exact = 1 / math.sqrt(variance + eps)
    got = 2.0**-exponent / math.sqrt(variance * 4.0**-exponent + raised)
    assert abs(got / exact - 1) <= eps_error(eps, exponent, variance) * (1 + 1e-9) + 1e-12


def test_a_gelu_input_that_is_too_large_fails(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = altered(checkpoint(), tmp_path / "loud", louder(16, "intermediate.dense"))
    original = load(folder, None)
    with pytest.raises(GateFailed, match=r"tiny: blocks\.0\.up: linear up to"):
        check(condition(rewrite(original), batches(folder, original)), "tiny")


# ---- attention


@pytest.mark.parametrize(
    ("part", "small", "large"), [("query", "q", "k"), ("key", "k", "q"), ("value", "v", "out")], ids=str
)
def test_attention_is_balanced(checkpoint: Checkpoint, tmp_path: Path, part: str, small: str, large: str) -> None:
    """A part too large for fp16 beside one that makes up for it."""
    pair = {"query": "self.key", "key": "self.query", "value": "attention.output.dense"}[part]

    def alter(name: str, t: Tensor) -> Tensor:
        if f"self.{part}." in name:
            return t * 2.0**16
        return t * 2.0**-14 if f"{pair}." in name and not (part == "value" and name.endswith("bias")) else t

    folder = altered(checkpoint(), tmp_path / "loud", alter)
    audit, without, within = tried(folder, tmp_path)
    assert [c.scaled for c in audit.conditioned] == [(f"blocks.0.attend.{small}", f"blocks.0.attend.{large}")]
    assert without < 0
    assert within >= GATE


def test_scores_that_are_too_large_fail() -> None:
    class Scores(nn.Module):
        inputs = ("x", "attention_mask")
        OUTPUTS = ("logits",)

        def __init__(self) -> None:
            super().__init__()
            self.attend = Attention(8, 2)
            for parameter in self.parameters():
                nn.init.normal_(parameter.requires_grad_(False), std=200.0)

        def forward(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
            return (self.attend(x, torch.zeros(2, 5, 1, 1)),)

    torch.manual_seed(0)
    audit = condition(Scores(), one_batch())
    assert any(text.startswith("attend: scores up to") for text in audit.failures)


def test_the_message_counts_the_rest() -> None:
    audit = condition(Sum(2.0**14), one_batch())
    check(audit, "org/model")
    with pytest.raises(GateFailed, match=r"org/model: one \(and 1 more: hft2ane ranges\)"):
        check(replace(audit, failures=("one", "two")), "org/model")
