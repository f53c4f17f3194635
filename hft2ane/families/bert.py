"""BERT (Devlin et al. 2018), absolute positions, as an encoder and as a decoder, with every head of transformers'."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from hft2ane.ane import (
    ACTIVATIONS,
    Attention,
    Block,
    ChannelNorm,
    Embedding,
    Linear,
    additive_mask,
    causal_mask,
    to_channels,
    token_types,
)
from hft2ane.families import EPSILON, LAYERS, SIZE, _heads

CONFIG = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "intermediate_size": SIZE,
    "max_position_embeddings": SIZE,
    "type_vocab_size": SIZE,
    "layer_norm_eps": EPSILON,
    "hidden_act": tuple(ACTIVATIONS),
    # Gone from transformers 5, which would ignore them.
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
    "is_causal": (False, None),
    # But for the tasks of a decoder.
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
HEADS = (r"(pooler|cls|classifier|qa_outputs)\..*",)

EMBEDDINGS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
BLOCKS = {
    "blocks.{i}.attend.q": "encoder.layer.{i}.attention.self.query",
    "blocks.{i}.attend.k": "encoder.layer.{i}.attention.self.key",
    "blocks.{i}.attend.v": "encoder.layer.{i}.attention.self.value",
    "blocks.{i}.attend.out": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.norm1": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks.{i}.up": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.down": "encoder.layer.{i}.output.dense",
    "blocks.{i}.norm2": "encoder.layer.{i}.output.LayerNorm",
}
CROSS = {
    "blocks.{i}.cross.q": "encoder.layer.{i}.crossattention.self.query",
    "blocks.{i}.cross.k": "encoder.layer.{i}.crossattention.self.key",
    "blocks.{i}.cross.v": "encoder.layer.{i}.crossattention.self.value",
    "blocks.{i}.cross.out": "encoder.layer.{i}.crossattention.output.dense",
    "blocks.{i}.norm_cross": "encoder.layer.{i}.crossattention.output.LayerNorm",
}
ENCODER = {**EMBEDDINGS, **BLOCKS}
POOLER = {"pooler": "pooler.dense"}


class Encoder(_heads.Encoder):
    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        channels, width = config.hidden_size, self.width(config)
        self.words = Embedding(config.vocab_size, width)
        self.positions = Embedding(config.max_position_embeddings, width)
        self.types = Embedding(config.type_vocab_size, width)
        self.norm = ChannelNorm(width, config.layer_norm_eps)
        self.project = None if width == channels else Linear(width, channels)
        self.blocks = self.stack(config)
        self.causal = getattr(config, "is_decoder", False)
        self.inputs = ("input_ids", "attention_mask", "token_type_ids")[: 3 if config.type_vocab_size > 1 else 2]
        self.first = self.first_position(config)

    def stack(self, config: Any) -> Iterable[nn.Module]:
        """The layers in the order of their use."""
        return nn.ModuleList(self.block(config) for _ in range(config.num_hidden_layers))

    @staticmethod
    def block(config: Any) -> Block:
        channels, heads = config.hidden_size, config.num_attention_heads
        cross = Attention(channels, heads) if getattr(config, "add_cross_attention", False) else None
        attend = Attention(channels, heads)
        return Block(attend, channels, config.intermediate_size, config.hidden_act, config.layer_norm_eps, cross)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        memory: Sequence[Tensor] = (),
    ) -> Tensor:
        """`memory`: what the cross-attention of a decoder takes, a mask and states (B, C, 1, S)."""
        x: Tensor = self.norm(to_channels(self.embed(input_ids, token_type_ids)))
        x = x if self.project is None else self.project(x)
        mask = additive_mask(attention_mask)
        if self.causal:
            mask = mask + causal_mask(input_ids.shape[1])
        for block in self.blocks:
            x = block(x, mask, memory=memory)
        return x

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """(B, S) -> (B, S, C), before the norm."""
        x: Tensor = self.words(input_ids)
        fixed = self.positions.weight[self.first : self.first + input_ids.shape[1]]
        return x + token_types(self.types, token_type_ids, fixed)


class FeatureExtractor(_heads.PooledFeatureExtractor, Encoder):
    ORIGINAL = "BertModel"
    WEIGHTS = {**ENCODER, **POOLER}


class MaskedLM(_heads.MaskedLM, Encoder):
    ORIGINAL = "BertForMaskedLM"
    WEIGHTS = {
        **ENCODER,
        "transform": "cls.predictions.transform.dense",
        "transform_norm": "cls.predictions.transform.LayerNorm",
        "decoder": "cls.predictions.decoder",
    }
    UNWANTED = (r"cls\.predictions\.bias",)  # the same values as cls.predictions.decoder.bias


class CausalLM(_heads.Causal, MaskedLM):
    ORIGINAL = "BertLMHeadModel"
    WEIGHTS = {**MaskedLM.WEIGHTS, **CROSS}


class SequenceClassifier(_heads.SequenceClassifier, Encoder):
    ORIGINAL = "BertForSequenceClassification"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "classifier"}


class NextSentencePredictor(_heads.NextSentencePredictor, Encoder):
    ORIGINAL = "BertForNextSentencePrediction"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "cls.seq_relationship"}


class MultipleChoice(_heads.MultipleChoice, Encoder):
    ORIGINAL = "BertForMultipleChoice"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "classifier"}


class TokenClassifier(_heads.TokenClassifier, Encoder):
    ORIGINAL = "BertForTokenClassification"
    WEIGHTS = {**ENCODER, "classify": "classifier"}


class QuestionAnswerer(_heads.QuestionAnswerer, Encoder):
    ORIGINAL = "BertForQuestionAnswering"
    WEIGHTS = {**ENCODER, "classify": "qa_outputs"}


TASKS = {
    "feature-extraction": FeatureExtractor,
    "fill-mask": MaskedLM,
    "text-generation": CausalLM,
    "text-classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswerer,
    "next-sentence-prediction": NextSentencePredictor,
    "multiple-choice": MultipleChoice,
}
