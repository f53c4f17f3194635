"""MPNet (Song et al. 2020): BERT without token types, with relative positions besides the absolute ones.

What a head adds to the score of a key for a query depends on their distance, and is the same in all layers: constants,
one table a head and length. Positions are counted as in RoBERTa: padding on the right, and none inside a text.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from hft2ane.ane import Attention, Block, ChannelNorm, Embedding, additive_mask, to_channels
from hft2ane.families import Between, _heads, bert, roberta

BUCKETS = 32  # transformers uses as many, whatever the config says
DISTANCE = 128  # from here on all distances are in the last bucket
PADDING = 1  # the id whose positions are not counted: the same

CONFIG = {key: values for key, values in bert.CONFIG.items() if key != "type_vocab_size"} | {
    "relative_attention_num_buckets": Between(BUCKETS, 1 << 22),
    "pad_token_id": (PADDING,),
}
HEADS = roberta.HEADS
ENCODER = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
    "distances": "encoder.relative_attention_bias",
    "blocks.{i}.attend.q": "encoder.layer.{i}.attention.attn.q",
    "blocks.{i}.attend.k": "encoder.layer.{i}.attention.attn.k",
    "blocks.{i}.attend.v": "encoder.layer.{i}.attention.attn.v",
    "blocks.{i}.attend.out": "encoder.layer.{i}.attention.attn.o",
    "blocks.{i}.norm1": "encoder.layer.{i}.attention.LayerNorm",
    "blocks.{i}.up": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.down": "encoder.layer.{i}.output.dense",
    "blocks.{i}.norm2": "encoder.layer.{i}.output.LayerNorm",
}


class Encoder(_heads.Encoder):
    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        channels, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
        self.words = Embedding(config.vocab_size, channels)
        self.positions = Embedding(config.max_position_embeddings, channels)
        self.norm = ChannelNorm(channels, eps)
        self.distances = Embedding(config.relative_attention_num_buckets, heads)
        self.blocks = nn.ModuleList(
            Block(Attention(channels, heads), channels, config.intermediate_size, config.hidden_act, eps)
            for _ in range(config.num_hidden_layers)
        )
        self.inputs = ("input_ids", "attention_mask")

    @staticmethod
    def limit(config: Any) -> int:
        return int(config.max_position_embeddings) - PADDING - 1

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens, first = input_ids.shape[1], PADDING + 1
        x: Tensor = self.norm(to_channels(self.words(input_ids) + self.positions.weight[first : first + tokens]))
        mask = additive_mask(attention_mask)
        masks = [mask + its for its in torch.split(self.biases(tokens), 1)]
        for block in self.blocks:
            x = block(x, masks)
        return x

    def biases(self, tokens: int) -> Tensor:
        """What is added to the scores: (heads, keys, 1, queries)."""
        at = torch.arange(tokens)
        return self.distances.weight[bucket(at[:, None] - at)].permute(2, 0, 1)[:, :, None]


def bucket(distances: Tensor) -> Tensor:
    """The row of the table for key minus query: half of the rows are for keys that come later. Of each half, half are
    for one distance each, the rest for ever longer ranges."""
    half, few = BUCKETS // 2, BUCKETS // 4
    far = distances.abs()
    ranges = few + (torch.log(far.clamp(min=few).float() / few) / math.log(DISTANCE / few) * (half - few)).long()
    return torch.where(far < few, far, ranges.clamp(max=half - 1)) + half * (distances > 0)


class FeatureExtractor(_heads.PooledFeatureExtractor, Encoder):
    ORIGINAL = "MPNetModel"
    WEIGHTS = {**ENCODER, **bert.POOLER}


class MaskedLM(_heads.GeluMaskedLM, Encoder):
    ORIGINAL = "MPNetForMaskedLM"
    WEIGHTS = {**ENCODER, **roberta.LM_HEAD}
    UNWANTED = (r"lm_head\.bias",)


class SequenceClassifier(_heads.SequenceClassifier, Encoder):
    ORIGINAL = "MPNetForSequenceClassification"
    WEIGHTS = {**ENCODER, **roberta.CLASSIFIER}


class MultipleChoice(_heads.MultipleChoice, Encoder):
    ORIGINAL = "MPNetForMultipleChoice"
    WEIGHTS = {**ENCODER, **bert.POOLER, "classify": "classifier"}


class TokenClassifier(_heads.TokenClassifier, Encoder):
    ORIGINAL = "MPNetForTokenClassification"
    WEIGHTS = {**ENCODER, "classify": "classifier"}


class QuestionAnswerer(_heads.QuestionAnswerer, Encoder):
    ORIGINAL = "MPNetForQuestionAnswering"
    WEIGHTS = {**ENCODER, "classify": "qa_outputs"}


TASKS = {
    "feature-extraction": FeatureExtractor,
    "fill-mask": MaskedLM,
    "text-classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswerer,
    "multiple-choice": MultipleChoice,
}
