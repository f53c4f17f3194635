"""The bricks: small torch modules in the form that suits the Neural Engine. Every rule of the engine lives here, once.

Inside the network all is (batch, channels, 1, tokens): the channel axis takes linear layers as 1×1 convolutions and
norms, the last axis stays long and aligned. Masks are finite, attention goes one head at a time (Apple, "Deploying
Transformers on the Apple Neural Engine", 2022). The same modules are the fp32 rewrite and, run on symbols, the export.
"""

from hft2ane.ane.attention import Attention, additive_mask, causal_mask
from hft2ane.ane.block import Block
from hft2ane.ane.disentangled import DisentangledAttention
from hft2ane.ane.layers import (
    ACTIVATIONS,
    EPS_LEAST,
    Activation,
    ChannelNorm,
    Decoder,
    Embedding,
    Linear,
    TokenConvolution,
    channel_norm,
    to_channels,
    to_tokens,
    token_types,
)
from hft2ane.ane.pooling import POOLING, Normalize, Pool
from hft2ane.ane.rotary import RotaryAttention, near, rotary_tables
from hft2ane.ane.stream import Gated, Layer, Stream, Value
from hft2ane.ane.weights import fill

__all__ = [
    "ACTIVATIONS",
    "EPS_LEAST",
    "POOLING",
    "Activation",
    "Attention",
    "Block",
    "ChannelNorm",
    "Decoder",
    "DisentangledAttention",
    "Embedding",
    "Gated",
    "Layer",
    "Linear",
    "Normalize",
    "Pool",
    "RotaryAttention",
    "Stream",
    "Value",
    "TokenConvolution",
    "additive_mask",
    "causal_mask",
    "channel_norm",
    "fill",
    "near",
    "rotary_tables",
    "to_channels",
    "to_tokens",
    "token_types",
]
