"""Bricks that do the same in another way where something is too large for the engine."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hft2ane.ane import Attention, Decoder, additive_mask, attention, to_channels
from hft2ane.ane.attention import SCORES, chunk

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
