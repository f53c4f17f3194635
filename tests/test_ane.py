"""Bricks that do the same in another way where something is too large for the engine."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hft2ane.ane import (
    Attention,
    Decoder,
    Linear,
    RotaryAttention,
    additive_mask,
    attention,
    fill,
    near,
    rotary,
    rotary_tables,
    to_channels,
)
from hft2ane.ane.attention import MASKED, SCORES, chunk
from hft2ane.errors import MissingWeights

TOKENS, CHANNELS, HEADS = 70, 12, 3


def loud(module: Any) -> Any:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter.requires_grad_(False), std=0.5)
    return module.double()


def stream() -> Tensor:
    return torch.randn(2, CHANNELS, 1, TOKENS, generator=torch.Generator().manual_seed(1)).double()


def mask(kind: str) -> Any:
    keep = (torch.arange(TOKENS) < torch.tensor([[TOKENS], [20]])).int()
    causal = torch.where(torch.arange(TOKENS)[:, None] <= torch.arange(TOKENS), 0.0, -1e4)[None, :, None]
    bias = [torch.randn(1, TOKENS, 1, TOKENS, generator=torch.Generator().manual_seed(n)) for n in range(HEADS)]
    return {"of keys": additive_mask(keep), "of queries too": additive_mask(keep) + causal, "a head": bias}[kind]


@pytest.mark.parametrize("kind", ["of keys", "of queries too", "a head"])
def test_queries_in_chunks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = loud(Attention(CHANNELS, HEADS)), stream()
    whole = module(x, mask(kind))
    monkeypatch.setattr(attention, "QUERIES", 32)
    assert chunk(TOKENS, TOKENS) == 32
    torch.testing.assert_close(module(x, mask(kind)), whole)


@pytest.mark.parametrize(("tokens", "at_once"), [(128, 128), (512, 512), (1024, 512), (2048, 480), (8192, 96)])
def test_the_scores_of_a_head_stay_below_the_limit(tokens: int, at_once: int) -> None:
    assert chunk(tokens, tokens) == at_once
    assert at_once * tokens < SCORES


@pytest.mark.parametrize("most", [1000, 700, 300, 99])
@pytest.mark.parametrize("bias", [True, False])
def test_a_decoder_in_parts(most: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = loud(Decoder(CHANNELS, 1000, bias))
    monkeypatch.setattr(Decoder, "MOST", most)
    x = torch.randn(2, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(decoder(to_channels(x)), F.linear(x, decoder.weight[:, :, 0, 0], decoder.bias))


@pytest.mark.parametrize("reach", [0, 5, 20, 40])
def test_windows_of_near_keys(reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few queries at a time, with the keys that they reach, as all of them at once."""
    module, x = loud(RotaryAttention(CHANNELS, HEADS, True)), stream()
    padding, (cos, sin) = mask("of keys"), rotary_tables(100.0, CHANNELS // HEADS, TOKENS, torch.float64)
    whole = module(x, near(padding, reach), cos, sin)
    monkeypatch.setattr(attention, "QUERIES", 32)
    monkeypatch.setattr(rotary, "QUERIES", 32)
    windows = near(padding, reach)
    assert isinstance(windows, list)
    assert [(w.queries.start, w.queries.stop) for w in windows] == [(0, 32), (32, 64), (64, 70)]
    assert [(w.keys.start, w.keys.stop) for w in windows] == [
        (0, min(32 + reach, 70)), (32 - min(reach, 32), min(64 + reach, 70)), (64 - reach, 70)
    ]  # fmt: skip
    rows = torch.tensor([[TOKENS], [20]]) > torch.arange(TOKENS)  # what padding attends to is anything
    got = module(x, windows, cos, sin)
    torch.testing.assert_close(*(each[:, :, 0].transpose(1, 2)[rows] for each in (got, whole)))


def test_all_keys_are_near() -> None:
    padding = mask("of keys")
    assert near(padding, TOKENS - 1) is padding
    (corner,) = near(padding, TOKENS - 2)[:1, -1:, :, :1].flatten().tolist()
    assert corner == MASKED


@pytest.mark.parametrize("theta", [10_000.0, 160_000.0])
def test_angles_far_from_the_beginning(theta: float) -> None:
    """As transformers has them, to the last bits of fp32."""
    size, tokens = 64, 8192
    cos, sin = rotary_tables(theta, size, tokens, torch.float32)
    rates = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float) / size))
    angles = torch.arange(tokens)[:, None].float() * rates
    for got, expected in ((cos, angles.cos()), (sin, angles.sin())):
        assert got.shape == (1, size, 1, tokens)
        torch.testing.assert_close(got[0, size // 2 :, 0].T, expected * size**-0.25, rtol=0, atol=1e-7)


@pytest.mark.parametrize("bias", [True, False])
def test_linears_that_the_checkpoint_has_as_one(bias: bool) -> None:
    module: Any = nn.ModuleDict({"one": Linear(3, 2, bias, part=(0, 2)), "other": Linear(3, 2, bias, part=(1, 2))})
    tensors = {"both.weight": torch.randn(4, 3), **({"both.bias": torch.randn(4)} if bias else {})}
    fill(module, {"one": "both", "other": "both"}, tensors)
    x = torch.randn(1, 3, 1, 5)
    expected = F.linear(x[0, :, 0].T, tensors["both.weight"], tensors.get("both.bias"))
    got = torch.cat([module[name](x) for name in ("one", "other")], 1)
    torch.testing.assert_close(got[0, :, 0].T, expected)
    with pytest.raises(MissingWeights, match=r"'both.weight' has shape \(5, 3, 1, 1\), not \(2, 3, 1, 1\)"):
        fill(module, {"one": "both", "other": "both"}, {"both.weight": torch.randn(5, 3)})
