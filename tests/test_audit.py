"""The audit sees what the graph computes, in the name of the layer that computes it, and counts it right."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hft2ane.ane import ChannelNorm, Linear, Normalize, Pool, additive_mask, near
from hft2ane.audit import Batch, Measured, calibration, headroom, measure
from hft2ane.cli import main
from hft2ane.errors import GateFailed
from hft2ane.export import SINGLE, build
from hft2ane.records import read, write
from hft2ane.records.job import Job
from hft2ane.records.package import Audit
from hft2ane.records.recipe import Recipe
from hft2ane.reference import load
from hft2ane.rewrite import rewrite
from tests.conftest import Checkpoint
from tests.test_condition import altered, louder
from tests.test_families import loud, tokens


class Small(nn.Module):
    """One function of x, under the names that the audit asks a module for."""

    inputs = ("x", "attention_mask")
    OUTPUTS = ("logits",)

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        for n, parameter in enumerate(self.parameters()):
            generator = torch.Generator().manual_seed(n)
            parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return (self.inner(x) if self.inner else x + 0.0,)


def batch(x: Tensor) -> list[Batch]:
    return [(x, torch.ones(1, x.shape[-1]))]


def noise(channels: int = 6, tokens: int = 5, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(1, channels, 1, tokens, generator=torch.Generator().manual_seed(3))


def kinds(measured: Measured) -> dict[tuple[str, str], float]:
    return {(r.path, r.kind): r.max for r in measured.ranges}


# ---- what is counted


@pytest.mark.parametrize(("largest", "bits"), [(65504.0, 0.0), (32752.0, 1.0), (131008.0, -1.0), (0.0, 40.0)])
def test_headroom_is_a_binary_logarithm(largest: float, bits: float) -> None:
    assert headroom(largest) == pytest.approx(bits, abs=0.01)


def test_the_largest_is_by_magnitude_over_all_batches() -> None:
    measured = measure(Small(), [*batch(torch.tensor([[[[1.0, -7.0]]]])), *batch(torch.tensor([[[[3.0, 2.0]]]]))])
    (only,) = measured.ranges
    assert (only.path, only.kind, only.max) == ("", "sum", 7.0)
    assert only.headroom_bits == round(math.log2(65504 / 7), 2)


def test_subnormals_are_a_share_of_what_is_not_zero() -> None:
    values = torch.tensor([0.0, 0.0, 1.0, -1.0, 2.0**-14, 2.0**-14 - 2.0**-26, -(2.0**-15), 1e-30])
    (only,) = measure(Small(), batch(values[None, None, None])).ranges
    assert only.subnormal == 0.5  # three of six, of which 1e-30 is lost


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_in_fp32_fails_with_its_layer(value: float) -> None:
    x = noise()
    x[0, 0, 0, 0] = value
    with pytest.raises(GateFailed, match="inner: linear is not finite"):
        measure(Small(Linear(6, 4)), batch(x))


# ---- what is seen


def test_a_linear() -> None:
    module, x = Small(Linear(6, 4)), noise()
    assert kinds(measure(module, batch(x))) == {
        ("inner", "linear"): pytest.approx(float(module(x, x)[0].abs().max()), rel=1e-3)
    }


def test_a_norm_shows_its_squares_and_its_least_variance() -> None:
    module, x = Small(ChannelNorm(6, 1e-12)), noise(scale=40.0) + 1000.0
    measured = measure(module, batch(x))
    centred = x - x.mean(1, keepdim=True)
    assert kinds(measured)["inner", "squares"] == pytest.approx(float(centred.square().max()), rel=1e-3)
    assert measured.norms["inner"].least_variance == pytest.approx(float(x.var(1, unbiased=False).min()), rel=1e-3)
    assert measured.norms["inner"].largest == float(x.abs().max())
    expected = F.layer_norm(x.transpose(1, -1), (6,), module.inner.weight, module.inner.bias, 1e-12)  # type: ignore
    assert kinds(measured)["inner", "norm"] == pytest.approx(float(expected.abs().max()), rel=1e-3)


def test_the_squares_of_a_length() -> None:
    x = noise(scale=300.0)
    largest = kinds(measure(Small(Normalize()), batch(x)))
    assert largest["inner", "squares"] == 1.0  # of what was divided by its largest entry
    assert largest["inner", "amax"] == pytest.approx(float(x.abs().max()), rel=1e-3)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_what_is_made_of_the_mask_is_no_value(mode: str) -> None:
    """−1e4 at padding is the same for every text."""

    class Pooled(Small):
        def forward(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
            return (Pool((mode,))(x, attention_mask),)

    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
    measured = measure(Pooled(), [(noise(), mask)])
    assert {r.max for r in measured.ranges} != set()
    assert max(r.max for r in measured.ranges) <= float(noise().abs().max()) + 1e-3


def test_a_mask_with_constants_is_a_mask() -> None:
    """What keys that are far away get is no value either, nor are the constants that it is made of."""

    class Masked(Small):
        def forward(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
            return (x + near(additive_mask(attention_mask), 1),)

    scores, mask = noise(channels=5), torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
    (only,) = measure(Masked(), [(scores, mask)]).ranges
    seen = [(key, query) for key in range(3) for query in range(5) if abs(key - query) <= 1]
    assert only.kind == "sum"
    assert only.max == pytest.approx(max(float(scores[0, key, 0, query].abs()) for key, query in seen), rel=1e-3)


def test_every_layer_of_a_model_and_every_operation_of_its_graph(checkpoint: Checkpoint) -> None:
    """By the paths from which the exported operations have their names."""
    folder = checkpoint(num_hidden_layers=2)
    original = load(folder, None)
    module = rewrite(original)
    measured = measure(module, calibration(folder, original, module.inputs, (16,)))
    seen = {r.path.replace(".", "_") or "model" for r in measured.ranges}
    program, _ = build(module, (16,), SINGLE)
    computing = {
        op.name: op.type
        for op in program.functions["main"].operations
        if op.type in ("conv", "layer_norm", "gather", "einsum", "softmax", "gelu", "tanh")
    }
    assert computing
    for name in computing:
        assert any(name.startswith(path) for path in seen), name
    for path in ("blocks_1_attend_q", "blocks_1_down", "blocks_1_norm2", "pooler", "words"):
        assert path in seen
    assert {norm.branch for path, norm in measured.norms.items() if "blocks" in path} == {
        f"blocks.{i}.{part}" for i in (0, 1) for part in ("attend.out", "down")
    }


def test_scores_are_those_before_the_mask(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    original = load(folder, None)
    module = rewrite(original)
    largest = kinds(measure(module, calibration(folder, original, module.inputs, (16,))))
    assert largest["blocks.0.attend", "sum"] <= largest["blocks.0.attend", "scores"] < 1e4


def test_constants_are_no_values_and_may_be_part_of_a_mask(tmp_path: Path) -> None:
    """MPNet's: what is added to a score by distance is computed at export, and joined with the mask once."""
    model = loud("mpnet", "feature-extraction", {})
    model.save_pretrained(tmp_path)
    module: Any = rewrite(load(tmp_path, None))
    rows = tokens(model, (12, 5), 12)
    largest = kinds(measure(module, [(rows["input_ids"], rows["attention_mask"])]))
    assert [kind for path, kind in largest if path == ""] == [
        "sum",
        "activation",
    ]  # of words and positions; the pooler's
    most = float(module.distances.weight.abs().max())
    assert largest["blocks.0.attend", "sum"] <= largest["blocks.0.attend", "scores"] + most


# ---- on what


@pytest.mark.parametrize(
    ("original", "rank", "inputs"),
    [("BertModel", 2, 3), ("BertForMultipleChoice", 3, 3), ("BertForMaskedLM", 2, 3)],
)
def test_calibration_has_what_the_module_takes(checkpoint: Checkpoint, original: str, rank: int, inputs: int) -> None:
    folder = checkpoint(original)
    loaded = load(folder, None)
    batches = calibration(folder, loaded, rewrite(loaded).inputs, (8, 40))
    assert {tensor.dim() for rows in batches for tensor in rows} == {rank}
    assert {len(rows) for rows in batches} == {inputs}
    assert max(rows[0].shape[-1] for rows in batches) == 40  # every position that the job uses
    assert measure(rewrite(loaded), batches).ranges == measure(rewrite(loaded), batches).ranges


# ---- the command


def job(folder: Path, source: Path) -> Path:
    folder.mkdir()
    (folder / "source").symlink_to(source, target_is_directory=True)
    write(folder / "job.json", Job("create", "a test", "org/tiny", "org/tiny-ane", recipe=Recipe(lengths=(16,))))
    return folder


def test_the_command_writes_ranges_json(checkpoint: Checkpoint, tmp_path: Path, capsys: Any) -> None:
    folder = job(tmp_path / "job", altered(checkpoint(), tmp_path / "loud", louder(15, "output.dense")))
    assert main(["ranges", str(folder)]) == 0
    audit = read(folder / "ranges.json", Audit)
    assert audit.conditioned
    assert json.loads((folder / "ranges.json").read_text())["schema"] == 1
    shown = capsys.readouterr().out
    assert "blocks.0.attend.q" in shown
    assert f"blocks.0.norm2 computes with 2^-{audit.conditioned[-1].exponent}" in shown


def test_the_command_fails_with_the_layers_name(checkpoint: Checkpoint, tmp_path: Path, capsys: Any) -> None:
    folder = job(tmp_path / "job", altered(checkpoint(), tmp_path / "loud", louder(16, "intermediate.dense")))
    assert main(["ranges", str(folder)]) == 1
    assert "blocks.0.up: linear up to" in capsys.readouterr().err
    assert read(folder / "ranges.json", Audit).failures
