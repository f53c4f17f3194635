"""ModernBERT (Warner et al. 2024): pre-norm, rotary positions, gated feed-forwards, and attention that in most layers
reaches near tokens only."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from hft2ane.ane import (
    ACTIVATIONS,
    Activation,
    ChannelNorm,
    Embedding,
    Gated,
    Layer,
    Linear,
    Pool,
    RotaryAttention,
    Stream,
    additive_mask,
    near,
    rotary_tables,
    to_channels,
)
from hft2ane.families import EPSILON, LAYERS, SIZE, Between, Such, _heads

GLOBAL, LOCAL = "full_attention", "sliding_attention"
THETA = Between(1, 1e12)


def plain_rope(value: Any) -> bool:
    return isinstance(value, dict) and all(
        kind in (GLOBAL, LOCAL)
        and isinstance(rope, dict)
        and set(rope) == {"rope_type", "rope_theta"}
        and rope["rope_type"] == "default"
        and rope["rope_theta"] in THETA
        for kind, rope in value.items()
    )


SWITCH = (True, False)
CONFIG = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "intermediate_size": SIZE,
    "max_position_embeddings": SIZE,
    "local_attention": SIZE,
    "global_attn_every_n_layers": SIZE,  # older than layer_types, which transformers makes of it
    "layer_types": Such(
        f"lists of {GLOBAL} and {LOCAL}",
        lambda value: isinstance(value, list) and all(kind in (GLOBAL, LOCAL) for kind in value),
    ),
    "rope_parameters": Such(f"rope_type default with a rope_theta, for {GLOBAL} and {LOCAL}", plain_rope),
    "norm_eps": EPSILON,
    "hidden_activation": tuple(ACTIVATIONS),
    "classifier_activation": tuple(ACTIVATIONS),
    "classifier_pooling": ("cls", "mean"),
    **dict.fromkeys(("attention_bias", "classifier_bias", "decoder_bias", "mlp_bias", "norm_bias"), SWITCH),
    "head_dim": (None,),  # transformers would take it for the angles only
    "pruned_heads": ({}, None),
    "is_causal": (False, None),
    "causal_mask": (False, None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
HEADS = (r"(head|decoder|classifier)\..*",)

ENCODER = {
    "words": "embeddings.tok_embeddings",
    "stream.start": "embeddings.norm",
    "stream.layers.{i}.norm1": "layers.{i}.attn_norm",
    "stream.layers.{i}.attend.qk": "layers.{i}.attn.Wqkv",
    "stream.layers.{i}.attend.v": "layers.{i}.attn.Wqkv",
    "stream.layers.{i}.attend.out": "layers.{i}.attn.Wo",
    "stream.layers.{i}.norm2": "layers.{i}.mlp_norm",
    "stream.layers.{i}.feed.up": "layers.{i}.mlp.Wi",
    "stream.layers.{i}.feed.gate": "layers.{i}.mlp.Wi",
    "stream.layers.{i}.feed.down": "layers.{i}.mlp.Wo",
    "stream.end": "final_norm",
}
POOLED = {**ENCODER, "pooler": "head.dense", "pool_norm": "head.norm", "classify": "classifier"}
TRANSFORMED = {**ENCODER, "transform": "head.dense", "transform_norm": "head.norm"}


class Encoder(_heads.Encoder):
    inputs = ("input_ids", "attention_mask")

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        channels, heads = config.hidden_size, config.num_attention_heads
        self.words = Embedding(config.vocab_size, channels)
        self.stream = Stream(
            norm(config),
            [
                Layer(
                    norm(config) if i else None,  # the first comes straight from a norm
                    RotaryAttention(channels, heads, config.attention_bias),
                    norm(config),
                    Gated(channels, config.intermediate_size, config.hidden_activation, config.mlp_bias),
                )
                for i in range(config.num_hidden_layers)
            ],
            norm(config),
        )
        self.size, self.reach, self.kinds = channels // heads, config.local_attention // 2, config.layer_types
        self.thetas = {kind: rope["rope_theta"] for kind, rope in config.rope_parameters.items()}

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        table, mask = self.words.weight, additive_mask(attention_mask)
        around = {
            kind: (
                near(mask, self.reach) if kind == LOCAL else mask,
                *rotary_tables(self.thetas[kind], self.size, input_ids.shape[1], table.dtype),
            )
            for kind in sorted(set(self.kinds))
        }
        x: Tensor = self.stream(to_channels(self.words(input_ids)), [around[kind] for kind in self.kinds])
        return x

    @staticmethod
    def activation(config: Any) -> Activation:
        return ACTIVATIONS[config.classifier_activation]

    pool_activation = activation

    @staticmethod
    def eps(config: Any) -> float:
        return float(config.norm_eps)

    @staticmethod
    def has_bias(config: Any, part: str) -> bool:
        return bool(getattr(config, {"dense": "classifier_bias"}.get(part, f"{part}_bias")))


def norm(config: Any) -> ChannelNorm:
    return ChannelNorm(config.hidden_size, config.norm_eps, config.norm_bias)


class Pooled(_heads.Pooled):
    """The first token, or the mean of all, through a dense layer, an activation and a norm."""

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.pooling = config.classifier_pooling
        self.pool_norm = norm(config)

    def encode(self, *inputs: Tensor) -> Tensor:
        x: Tensor = super().encode(*inputs)
        if self.pooling == "mean":
            keep = torch.reshape(inputs[1].to(self.pool_norm.weight.dtype), (*inputs[1].shape, 1, 1))
            x = Pool.mean(x, keep)
        else:
            x = x[:, :, :, :1]
        return x

    def pool(self, x: Tensor) -> Tensor:
        assert self.pooler is not None
        x = self.pool_norm(self.pool_act(self.pooler(x)))
        return x


class Transformed(_heads.Encoder):
    """Each token through a dense layer, an activation and a norm."""

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.transform = Linear(config.hidden_size, config.hidden_size, config.classifier_bias)
        self.act = self.activation(config)
        self.transform_norm = norm(config)

    def encode(self, *inputs: Tensor) -> Tensor:
        x: Tensor = self.transform_norm(self.act(self.transform(super().encode(*inputs))))
        return x


class FeatureExtractor(_heads.FeatureExtractor, Encoder):
    ORIGINAL = "ModernBertModel"
    WEIGHTS = ENCODER


class MaskedLM(_heads.MaskedLM, Encoder):
    ORIGINAL = "ModernBertForMaskedLM"
    WEIGHTS = {**TRANSFORMED, "decoder": "decoder"}


class SequenceClassifier(Pooled, _heads.SequenceClassifier, Encoder):
    ORIGINAL = "ModernBertForSequenceClassification"
    WEIGHTS = POOLED


class MultipleChoice(Pooled, _heads.MultipleChoice, Encoder):
    ORIGINAL = "ModernBertForMultipleChoice"
    WEIGHTS = POOLED


class TokenClassifier(Transformed, _heads.TokenClassifier, Encoder):
    ORIGINAL = "ModernBertForTokenClassification"
    WEIGHTS = {**TRANSFORMED, "classify": "classifier"}


class QuestionAnswerer(Transformed, _heads.QuestionAnswerer, Encoder):
    ORIGINAL = "ModernBertForQuestionAnswering"
    WEIGHTS = {**TRANSFORMED, "classify": "classifier"}


TASKS = {
    "feature-extraction": FeatureExtractor,
    "fill-mask": MaskedLM,
    "text-classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswerer,
    "multiple-choice": MultipleChoice,
}
