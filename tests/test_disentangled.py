"""DeBERTa's attention: distances without a look-up, by parts, and with numbers that are too large for fp16."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from hft2ane.ane import DisentangledAttention, additive_mask, attention
from hft2ane.ane.disentangled import aligned
from hft2ane.audit import Batch, measure
from hft2ane.condition import condition
from hft2ane.errors import MissingWeights
from hft2ane.families.deberta_v2 import places
from hft2ane.mil import open_package
from hft2ane.reference import load
from hft2ane.rewrite import rewrite
from tests.families import ROWS, Config
from tests.test_ane import loud as drawn
from tests.test_families import EXACT, LENGTH, ask, edit, exact, fidelity, loud, tokens
from tests.test_family_exports import ARTEFACT, saved, single_rows

CHANNELS, HEADS = 12, 3


@pytest.mark.parametrize(("rows", "others"), [(5, 5), (1, 1), (3, 8), (4, 1)])
def test_rows_begin_where_they_should(rows: int, others: int) -> None:
    x = torch.randn(2, rows, 1, rows + others)
    got = aligned(x)
    assert got.shape == (2, rows, 1, others)
    for row in range(rows):
        assert torch.equal(got[:, row], x[:, row, :, rows - row : rows - row + others])


@pytest.mark.parametrize(
    ("tokens", "reach", "buckets"), [(512, -1, 256), (512, 512, 256), (1024, 600, 320), (200, 64, -1), (77, 40, 9)]
)
def test_distances_share_embeddings_as_in_transformers(tokens: int, reach: int, buckets: int) -> None:
    config = transformers.DebertaV2Config(
        max_position_embeddings=tokens, max_relative_positions=reach, position_buckets=buckets
    )
    reach = reach if reach > 0 else tokens
    span = buckets if buckets > 0 else reach
    each = torch.empty(1, tokens, 1)
    theirs = (build_relative_position(each, each, buckets, reach)[0] + span).clamp(0, 2 * span - 1)
    behind = torch.arange(tokens)[:, None] - torch.arange(tokens)
    assert torch.equal(places(config)[behind + tokens], theirs)


BESIDES = {
    "deberta.embeddings.position_ids": torch.arange(16)[None],
    "deberta.embeddings.position_embeddings.weight": torch.ones(16, 24),  # of a model that was trained on from another
    "mask_predictions.dense.weight": torch.ones(24, 24),  # the discriminator of v3
    "mask_predictions.LayerNorm.weight": torch.ones(24),
    "mask_predictions.classifier.bias": torch.ones(1),
}


@pytest.mark.parametrize("task", ["feature-extraction", "fill-mask"])
def test_what_checkpoints_hold_besides_is_left(tmp_path: Path, task: str) -> None:
    """As Microsoft's: both heads that they were trained with, and a buffer. The task is then what the config names."""
    model = loud("deberta-v2", "fill-mask", {})
    model.save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors") | BESIDES, tmp_path / "model.safetensors", {"format": "pt"})
    original = load(tmp_path, task)
    asked = tokens(model, (LENGTH, 7), LENGTH)
    bare = model if task == "fill-mask" else model.deberta
    assert load(tmp_path, None).task == "fill-mask"
    assert exact(bare, original, [asked]) >= EXACT


def test_the_head_of_the_other_kind_is_not_taken(tmp_path: Path) -> None:
    """`legacy` is what transformers takes for granted, and Microsoft's config.json does not say otherwise."""
    loud("deberta-v2", "fill-mask", {}).save_pretrained(tmp_path)
    edit(tmp_path, legacy=True)
    assert load(tmp_path, None).task == "feature-extraction"
    with pytest.raises(MissingWeights, match=r"cls\.predictions\.\w+.* would be random"):
        load(tmp_path, "fill-mask")


def attend(tokens: int, kinds: tuple[str, ...], shared: bool) -> Tensor:
    module = drawn(DisentangledAttention(CHANNELS, HEADS, kinds, shared))
    x = torch.randn(2, CHANNELS, 1, tokens, generator=torch.Generator().manual_seed(1)).double()
    table = torch.randn(1, CHANNELS, 1, 2 * tokens + 1, generator=torch.Generator().manual_seed(2)).double()
    keep = (torch.arange(tokens) < torch.tensor([[tokens], [20]])).int()
    distances = (table[:, :, :, :-1], table.flip(3)[:, :, :, :-1]) if kinds else ()
    result: Tensor = module(x, additive_mask(keep), *distances)
    return result


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kinds", [("c2p", "p2c"), ("c2p",), ("p2c",), ()])
def test_tokens_in_chunks(kinds: tuple[str, ...], shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attend(70, kinds, shared)
    monkeypatch.setattr(attention, "QUERIES", 32)
    monkeypatch.setattr(attention, "SCORES", 33 * 140)
    torch.testing.assert_close(attend(70, kinds, shared), whole)


def test_nothing_is_looked_up_but_words(tmp_path: Path) -> None:
    """And the number of operations does not depend on that of heads."""
    counts = []
    for heads in (3, 6):
        folder = tmp_path / str(heads)
        module, _ = tiny(folder, {"num_attention_heads": heads})
        saved(module, [LENGTH], None, folder / "tiny.mlpackage")
        operations = [op.type for op in open_package(folder / "tiny.mlpackage").functions["main"].ops]
        assert operations.count("gather") == 1
        counts.append(len(operations))
    assert counts[0] == counts[1]


def tiny(folder: Path, config: Config) -> tuple[Any, list[Batch]]:
    """A module of ours and some texts."""
    model = loud("deberta-v2", "feature-extraction", config)
    model.save_pretrained(folder)
    module: Any = rewrite(load(folder, None))
    inputs = tokens(model, (LENGTH, 7, 1), LENGTH)
    return module, [tuple(inputs[name] for name in module.inputs)]


@pytest.mark.parametrize(
    "variant", ["v2", "keys of positions apart", "no relative positions", "two token types", "narrow embeddings"]
)
def test_a_package(tmp_path: Path, variant: str) -> None:
    """The plain one is tried with every family's."""
    model = loud("deberta-v2", "feature-extraction", ROWS["deberta-v2"].variants[variant])
    model.save_pretrained(tmp_path)
    module: Any = rewrite(load(tmp_path, None))
    saved(module, [LENGTH], None, tmp_path / "tiny.mlpackage")
    program = open_package(tmp_path / "tiny.mlpackage")
    asked = list(single_rows(model, LENGTH, 0))
    got = [program.evaluate({name: inputs[name].int().numpy() for name in module.inputs}) for inputs in asked]
    answers = [{name: output.astype(np.float32) for name, output in outputs.items()} for outputs in got]
    assert fidelity(asked, [ask(model, inputs) for inputs in asked], answers) >= ARTEFACT


def louder(module: Any, part: str, exponent: int) -> None:
    for path, linear in module.named_modules():
        if path.endswith(part):
            linear.weight, linear.bias = (nn.Parameter(p * 2.0**exponent, False) for p in (linear.weight, linear.bias))


def test_an_overflowing_residual_is_made_smaller(tmp_path: Path) -> None:
    module, texts = tiny(tmp_path, {"conv_kernel_size": 3})
    for part in ("attend.out", "down"):
        louder(module, part, 15)
    audit = condition(module, texts)
    assert {c.path for c in audit.conditioned} == {f"blocks.{i}.norm{n}" for i in (0, 1) for n in (1, 2)}
    assert audit.failures == ()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("attend.v", "blocks.0.attend.v: linear up to"),
        ("attend.k", "blocks.0.attend.p2c: scores up to"),
        ("convolve.linear", "convolve.norm: sum up to"),
    ],
)
def test_what_cannot_be_made_smaller_fails_with_its_name(tmp_path: Path, part: str, message: str) -> None:
    module, texts = tiny(tmp_path, {"conv_kernel_size": 3, "conv_act": "relu"})
    louder(module, part, 20)
    audit = condition(module, texts)
    assert not [c for c in audit.conditioned if "attend" in c.path]
    assert any(text.startswith(message) for text in audit.failures)


def test_ranges_of_scores_are_told_apart_by_kind(tmp_path: Path) -> None:
    """And a masked score counts in none of them."""
    found = {r.path: r.max for r in measure(*tiny(tmp_path, {})).ranges if r.kind in ("scores", "sum")}
    assert {"blocks.0.attend", "blocks.0.attend.c2p", "blocks.0.attend.p2c"} <= set(found)
    assert all(np.isfinite(largest) and largest < 1000 for largest in found.values())
