"""DeBERTa v2 and v3, and mDeBERTa (He et al. 2021): disentangled attention, with every head that transformers has.

The original sets padding to zero once more after its convolution; that is left out, since only padding reads it.
"""

from collections.abc import Collection, Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hft2ane.ane import (
    ACTIVATIONS,
    Activation,
    Block,
    ChannelNorm,
    DisentangledAttention,
    Embedding,
    Linear,
    TokenConvolution,
    additive_mask,
    to_channels,
    token_types,
)
from hft2ane.families import EPSILON, LAYERS, SIZE, Allowed, Between, Such, _heads


def reach(config: Any) -> int:
    """How many distances to one side are told apart, but for buckets."""
    return int(config.max_relative_positions if config.max_relative_positions > 0 else config.max_position_embeddings)


def kinds(config: Any) -> Container[Any]:
    return (["c2p", "p2c"], ["p2c", "c2p"], ["c2p"], ["p2c"]) if config.relative_attention else ([], None)


def buckets(config: Any) -> Container[Any]:
    """With 1, or so many that no logarithm is left to take, transformers divides by zero."""
    several = Between(2, 2 * reach(config) - 3)
    return Such(f"-1, 0 or {several}", lambda count: count in several or count in Between(-1, 0))


CONFIG: Mapping[str, Allowed] = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "intermediate_size": SIZE,
    "max_position_embeddings": SIZE,
    "type_vocab_size": Between(0, SIZE.most),
    "layer_norm_eps": EPSILON,
    "hidden_act": tuple(ACTIVATIONS),
    "embedding_size": SIZE,
    "attention_head_size": lambda config: (config.hidden_size // config.num_attention_heads,),
    "position_biased_input": (True, False),
    "relative_attention": (True, False),
    "pos_att_type": kinds,
    "share_att_key": (True, False),
    "max_relative_positions": Between(-1, SIZE.most),
    "position_buckets": buckets,
    "norm_rel_ebd": lambda config: ("none", "layer_norm") if config.relative_attention else ("none",),
    "conv_kernel_size": (0, *range(1, 16, 2)),
    "conv_groups": (1,),
    "conv_act": tuple(ACTIVATIONS),
    # Never asked for by transformers, whose network would not be the one that was trained.
    "pruned_heads": ({}, None),
    "is_causal": (False, None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
POOLING: Mapping[str, Allowed] = {
    "pooler_hidden_act": tuple(ACTIVATIONS),
    "pooler_hidden_size": lambda config: (config.hidden_size,),
}
HEADS = (r"(pooler|cls|classifier|qa_outputs|lm_predictions|mask_predictions)\..*",)

ENCODER = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "project": "embeddings.embed_proj",
    "norm": "embeddings.LayerNorm",
    "distances": "encoder.rel_embeddings",
    "distances_norm": "encoder.LayerNorm",
    "blocks.{i}.attend.q": "encoder.layer.{i}.attention.self.query_proj",
    "blocks.{i}.attend.k": "encoder.layer.{i}.attention.self.key_proj",
    "blocks.{i}.attend.v": "encoder.layer.{i}.attention.self.value_proj",
    "blocks.{i}.attend.position_q": "encoder.layer.{i}.attention.self.pos_query_proj",
    "blocks.{i}.attend.position_k": "encoder.layer.{i}.attention.self.pos_key_proj",
    "blocks.{i}.attend.out": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.norm1": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks.{i}.up": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.down": "encoder.layer.{i}.output.dense",
    "blocks.{i}.norm2": "encoder.layer.{i}.output.LayerNorm",
    "convolve.linear": "encoder.conv.conv",
    "convolve.norm": "encoder.conv.LayerNorm",
}
POOLER = {"pooler": "pooler.dense"}
LEGACY_HEAD = {
    "transform": "cls.predictions.transform.dense",
    "transform_norm": "cls.predictions.transform.LayerNorm",
    "decoder": "cls.predictions.decoder",
}
HEAD = {
    "transform": "lm_predictions.lm_head.dense",
    "transform_norm": "lm_predictions.lm_head.LayerNorm",
    "decoder.weight": "embeddings.word_embeddings.weight",
    "decoder.bias": "lm_predictions.lm_head.bias",
}


def span(config: Any) -> int:
    """The embeddings of distances to one side."""
    count: int = getattr(config, "position_buckets", -1)
    return count if count > 0 else reach(config)


def places(config: Any) -> Tensor:
    """Where the embeddings of the distances -n to n are, n being the most tokens.

    Beyond half of the buckets they share them, the more the further they are: rounded as transformers does it."""
    most, half = config.max_position_embeddings, span(config) // 2
    place = distance = torch.arange(-most, most + 1, device="cpu")
    if getattr(config, "position_buckets", -1) > 0:
        furthest = torch.tensor((reach(config) - 1) / half, device="cpu")
        steps = torch.log(distance.abs().clamp(min=half) / half) / torch.log(furthest) * (half - 1)
        shared = ((torch.ceil(steps) + half) * distance.sign()).long()
        place = torch.where(distance.abs() <= half, distance, shared)
    return torch.clamp(place + span(config), 0, 2 * span(config) - 1)


def attention(config: Any) -> nn.Module:
    shared = getattr(config, "share_att_key", False)
    return DisentangledAttention(config.hidden_size, config.num_attention_heads, config.pos_att_type or (), shared)


class Convolve(nn.Module):
    """What follows the first layer in some: (B, C, 1, S) with embeddings of the same shape -> (B, C, 1, S)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.linear = TokenConvolution(config.hidden_size, config.hidden_size, config.conv_kernel_size)
        self.act = ACTIVATIONS[getattr(config, "conv_act", "tanh")]
        self.norm = ChannelNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        x = self.norm(x, self.act(self.linear(embedded)))
        return x


class Encoder(_heads.Encoder):
    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        channels, width, eps = config.hidden_size, self.width(config), config.layer_norm_eps
        self.words = Embedding(config.vocab_size, width)
        self.positions = Embedding(config.max_position_embeddings, width) if config.position_biased_input else None
        self.types = Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.project = None if width == channels else Linear(width, channels, bias=False)
        self.norm = ChannelNorm(channels, eps)
        self.places = places(config)
        self.distances = Embedding(2 * span(config), channels) if config.relative_attention else None
        self.distances_norm = ChannelNorm(channels, eps) if getattr(config, "norm_rel_ebd", "none") != "none" else None
        self.blocks = nn.ModuleList(
            Block(attention(config), channels, config.intermediate_size, config.hidden_act, eps)
            for _ in range(config.num_hidden_layers)
        )
        self.convolve = Convolve(config) if getattr(config, "conv_kernel_size", 0) else None
        self.inputs = ("input_ids", "attention_mask", "token_type_ids")[: 3 if config.type_vocab_size > 1 else 2]

    @staticmethod
    def width(config: Any) -> int:
        return int(getattr(config, "embedding_size", config.hidden_size))

    @staticmethod
    def pool_activation(config: Any) -> Activation:
        return ACTIVATIONS[config.pooler_hidden_act]

    def encode(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        x: Tensor = to_channels(self.embed(input_ids, token_type_ids))
        batch, length = attention_mask.shape
        keep = torch.reshape(attention_mask.to(torch.float32), (batch, 1, 1, length))
        x = embedded = self.norm(x if self.project is None else self.project(x)) * keep
        around = (additive_mask(attention_mask), *self.tables(length))
        for i, block in enumerate(self.blocks):
            x = block(x, *around)
            if i == 0 and self.convolve is not None:
                x = self.convolve(x, embedded)
        return x

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """(B, S) -> (B, S, C), before the norm."""
        x: Tensor = self.words(input_ids)
        fixed = None if self.positions is None else self.positions.weight[: input_ids.shape[1]]
        if self.types is not None:
            return x + token_types(self.types, token_type_ids, fixed)
        return x if fixed is None else x + fixed

    def tables(self, length: int) -> tuple[Tensor, ...]:
        """What attention takes of distances, constants: see DisentangledAttention."""
        if self.distances is None:
            return ()
        x = to_channels(self.distances.weight[None])
        if self.distances_norm is not None:
            x = self.distances_norm(x)
        most = len(self.places) // 2
        seen = slice(most - length, most + length)
        return x[:, :, :, self.places[seen]], x[:, :, :, self.places.flip(0)[seen]]


class FeatureExtractor(_heads.FeatureExtractor, Encoder):
    ORIGINAL = "DebertaV2Model"
    WEIGHTS = ENCODER


class MaskedLM(_heads.MaskedLM, Encoder):
    """With `legacy` transformers' own head, without it that of the models' makers."""

    ORIGINAL = "DebertaV2ForMaskedLM"
    WEIGHTS = ENCODER
    UNWANTED = (r"cls\.predictions\.bias",)  # the same values as cls.predictions.decoder.bias
    CONFIG = {
        "legacy": (True, False),
        "embedding_size": lambda config: SIZE if config.legacy else (config.hidden_size,),
    }

    @classmethod
    def weights(cls, config: Any) -> Mapping[str, str]:
        return {**ENCODER, **(LEGACY_HEAD if config.legacy else HEAD)}


class SequenceClassifier(_heads.SequenceClassifier, Encoder):
    ORIGINAL = "DebertaV2ForSequenceClassification"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "classifier"}
    CONFIG = {**_heads.SequenceClassifier.CONFIG, **POOLING}


class MultipleChoice(_heads.MultipleChoice, Encoder):
    ORIGINAL = "DebertaV2ForMultipleChoice"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "classifier"}
    CONFIG = {**POOLING}


class TokenClassifier(_heads.TokenClassifier, Encoder):
    ORIGINAL = "DebertaV2ForTokenClassification"
    WEIGHTS = {**ENCODER, "classify": "classifier"}


class QuestionAnswerer(_heads.QuestionAnswerer, Encoder):
    ORIGINAL = "DebertaV2ForQuestionAnswering"
    WEIGHTS = {**ENCODER, "classify": "qa_outputs"}


TASKS = {
    "feature-extraction": FeatureExtractor,
    "fill-mask": MaskedLM,
    "text-classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswerer,
    "multiple-choice": MultipleChoice,
}
