"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler, with names of its own for nearly everything."""

from collections.abc import Collection
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hft2ane.ane import ACTIVATIONS, Activation, Attention, Block, ChannelNorm, Embedding, additive_mask, to_channels
from hft2ane.families import LAYERS, SIZE, _heads

CONFIG = {
    "vocab_size": SIZE,
    "dim": SIZE,
    "n_layers": LAYERS,
    "n_heads": SIZE,
    "hidden_dim": SIZE,
    "max_position_embeddings": SIZE,
    "activation": tuple(ACTIVATIONS),
    # transformers ignores them here.
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
    "is_causal": (False, None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
HEADS = (r"(pre_classifier|classifier|qa_outputs|vocab_transform|vocab_layer_norm|vocab_projector)\..*",)
EPS = 1e-12  # no key of the config

ENCODER = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
    "blocks.{i}.attend.q": "transformer.layer.{i}.attention.q_lin",
    "blocks.{i}.attend.k": "transformer.layer.{i}.attention.k_lin",
    "blocks.{i}.attend.v": "transformer.layer.{i}.attention.v_lin",
    "blocks.{i}.attend.out": "transformer.layer.{i}.attention.out_lin",
    "blocks.{i}.norm1": "transformer.layer.{i}.sa_layer_norm",
    "blocks.{i}.up": "transformer.layer.{i}.ffn.lin1",
    "blocks.{i}.down": "transformer.layer.{i}.ffn.lin2",
    "blocks.{i}.norm2": "transformer.layer.{i}.output_layer_norm",
}
VOCABULARY = {"transform": "vocab_transform", "transform_norm": "vocab_layer_norm", "decoder": "vocab_projector"}
POOLED = {**ENCODER, "pooler": "pre_classifier", "classify": "classifier"}


class Encoder(_heads.Encoder):
    inputs = ("input_ids", "attention_mask")

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.words = Embedding(config.vocab_size, config.dim)
        self.positions = Embedding(config.max_position_embeddings, config.dim)
        self.norm = ChannelNorm(config.dim, EPS)
        self.blocks = nn.ModuleList(
            Block(Attention(config.dim, config.n_heads), config.dim, config.hidden_dim, config.activation, EPS)
            for _ in range(config.n_layers)
        )

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x: Tensor = self.norm(to_channels(self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]))
        mask = additive_mask(attention_mask)
        for block in self.blocks:
            x = block(x, mask)
        return x

    @staticmethod
    def pool_activation(config: Any) -> Activation:
        return F.relu

    @staticmethod
    def activation(config: Any) -> Activation:
        return ACTIVATIONS[config.activation]

    @staticmethod
    def eps(config: Any) -> float:
        return EPS


class FeatureExtractor(_heads.FeatureExtractor, Encoder):
    ORIGINAL = "DistilBertModel"
    WEIGHTS = ENCODER


class MaskedLM(_heads.MaskedLM, Encoder):
    ORIGINAL = "DistilBertForMaskedLM"
    WEIGHTS = {**ENCODER, **VOCABULARY}


class SequenceClassifier(_heads.SequenceClassifier, Encoder):
    ORIGINAL = "DistilBertForSequenceClassification"
    WEIGHTS = POOLED


class MultipleChoice(_heads.MultipleChoice, Encoder):
    ORIGINAL = "DistilBertForMultipleChoice"
    WEIGHTS = POOLED


class TokenClassifier(_heads.TokenClassifier, Encoder):
    ORIGINAL = "DistilBertForTokenClassification"
    WEIGHTS = {**ENCODER, "classify": "classifier"}


class QuestionAnswerer(_heads.QuestionAnswerer, Encoder):
    ORIGINAL = "DistilBertForQuestionAnswering"
    WEIGHTS = {**ENCODER, "classify": "qa_outputs"}


TASKS = {
    "feature-extraction": FeatureExtractor,
    "fill-mask": MaskedLM,
    "text-classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswerer,
    "multiple-choice": MultipleChoice,
}
