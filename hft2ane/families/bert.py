"""BERT (Devlin et al. 2018), absolute positions, encoder only, with every head that transformers has for it."""

from collections.abc import Collection, Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hft2ane.ane import (
    ACTIVATIONS,
    Attention,
    ChannelNorm,
    Embedding,
    Linear,
    additive_mask,
    to_channels,
    to_tokens,
)
from hft2ane.families import EPSILON, LAYERS, SIZE

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
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
HEADS = (r"(pooler|cls|classifier|qa_outputs)\..*",)

ENCODER = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "blocks.{i}.attend.q": "encoder.layer.{i}.attention.self.query",
    "blocks.{i}.attend.k": "encoder.layer.{i}.attention.self.key",
    "blocks.{i}.attend.v": "encoder.layer.{i}.attention.self.value",
    "blocks.{i}.attend.out": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.norm1": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks.{i}.up": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.down": "encoder.layer.{i}.output.dense",
    "blocks.{i}.norm2": "encoder.layer.{i}.output.LayerNorm",
}
POOLER = {"pooler": "pooler.dense"}


class Block(nn.Module):
    """Post-norm: (B, C, 1, S) -> (B, C, 1, S)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attend = Attention(config.hidden_size, config.num_attention_heads)
        self.norm1 = ChannelNorm(config.hidden_size, config.layer_norm_eps)
        self.up = Linear(config.hidden_size, config.intermediate_size)
        self.act = ACTIVATIONS[config.hidden_act]
        self.down = Linear(config.intermediate_size, config.hidden_size)
        self.norm2 = ChannelNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x, self.attend(x, mask))
        x = self.norm2(x, self.down(self.act(self.up(x))))
        return x


class Encoder(nn.Module):
    """The network up to the last hidden state. `absent`: parts that the checkpoint has no weights for."""

    UNWANTED: tuple[str, ...] = ()
    CONFIG: Mapping[str, Container[Any]] = {}

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__()
        self.words = Embedding(config.vocab_size, config.hidden_size)
        self.positions = Embedding(config.max_position_embeddings, config.hidden_size)
        self.types = Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = ChannelNorm(config.hidden_size, config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.inputs = ("input_ids", "attention_mask", "token_type_ids")[: 3 if config.type_vocab_size > 1 else 2]

    def encode(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """All (B, S) -> (B, C, 1, S)."""
        fixed = self.positions.weight[: input_ids.shape[1]]
        x: Tensor = self.words(input_ids)
        x = x + (fixed + self.types.weight[0] if token_type_ids is None else self.types(token_type_ids) + fixed)
        x = self.norm(to_channels(x))
        mask = additive_mask(attention_mask)
        for block in self.blocks:
            x = block(x, mask)
        return x


class Pooled(Encoder):
    """An encoder with BERT's pooler: tanh of a linear layer on the first token."""

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config)
        self.pooler = None if "pooler" in absent else Linear(config.hidden_size, config.hidden_size)

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, 1, S) -> (B, C, 1, 1)."""
        assert self.pooler is not None
        return torch.tanh(self.pooler(x[:, :, :, :1]))


class FeatureExtractor(Pooled):
    ORIGINAL = "BertModel"
    WEIGHTS = {**ENCODER, **POOLER}
    OPTIONAL = ("pooler",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.OUTPUTS = ("last_hidden_state", *(("pooler_output",) if self.pooler else ()))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = self.encode(*inputs)
        hidden = to_tokens(x)
        return (hidden, torch.flatten(self.pool(x), 1)) if self.pooler else (hidden,)


class MaskedLM(Encoder):
    ORIGINAL = "BertForMaskedLM"
    WEIGHTS = {
        **ENCODER,
        "transform": "cls.predictions.transform.dense",
        "transform_norm": "cls.predictions.transform.LayerNorm",
        "decoder": "cls.predictions.decoder",
    }
    UNWANTED = (r"cls\.predictions\.bias",)  # the same values as cls.predictions.decoder.bias
    OUTPUTS = ("logits",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config)
        self.transform = Linear(config.hidden_size, config.hidden_size)
        self.act = ACTIVATIONS[config.hidden_act]
        self.transform_norm = ChannelNorm(config.hidden_size, config.layer_norm_eps)
        self.decoder = Linear(config.hidden_size, config.vocab_size)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = self.transform_norm(self.act(self.transform(self.encode(*inputs))))
        return (to_tokens(self.decoder(x)),)


class SequenceClassifier(Pooled):
    """Single label, multi label and regression differ in their loss only: all give `logits` (B, num_labels)."""

    ORIGINAL = "BertForSequenceClassification"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "classifier"}
    CONFIG = {
        "num_labels": SIZE,
        "problem_type": (None, "single_label_classification", "multi_label_classification", "regression"),
    }
    OUTPUTS = ("logits",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config)
        self.classify = Linear(config.hidden_size, config.num_labels)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (torch.flatten(self.classify(self.pool(self.encode(*inputs))), 1),)


class NextSentencePredictor(Pooled):
    ORIGINAL = "BertForNextSentencePrediction"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "cls.seq_relationship"}
    OUTPUTS = ("logits",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config)
        self.classify = Linear(config.hidden_size, 2)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (torch.flatten(self.classify(self.pool(self.encode(*inputs))), 1),)


class MultipleChoice(Pooled):
    """Inputs are (B, choices, S), one row a question with a choice; `logits` (B, choices)."""

    ORIGINAL = "BertForMultipleChoice"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "classifier"}
    OUTPUTS = ("logits",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config)
        self.classify = Linear(config.hidden_size, 1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        batch, choices, tokens = inputs[0].shape
        rows = [torch.reshape(x, (batch * choices, tokens)) for x in inputs]
        return (torch.reshape(self.classify(self.pool(self.encode(*rows))), (batch, choices)),)


class TokenClassifier(Encoder):
    ORIGINAL = "BertForTokenClassification"
    WEIGHTS = {**ENCODER, "classify": "classifier"}
    CONFIG: Mapping[str, Container[Any]] = {"num_labels": SIZE}
    OUTPUTS: tuple[str, ...] = ("logits",)

    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config)
        self.classify = Linear(config.hidden_size, config.num_labels)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return (to_tokens(self.classify(self.encode(*inputs))),)


class QuestionAnswerer(TokenClassifier):
    ORIGINAL = "BertForQuestionAnswering"
    WEIGHTS = {**ENCODER, "classify": "qa_outputs"}
    CONFIG = {"num_labels": (2,)}
    OUTPUTS = ("start_logits", "end_logits")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        start, end = torch.split(self.classify(self.encode(*inputs)), 1, 1)
        return torch.flatten(start, 1), torch.flatten(end, 1)


TASKS = {
    "feature-extraction": FeatureExtractor,
    "fill-mask": MaskedLM,
    "text-classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswerer,
    "next-sentence-prediction": NextSentencePredictor,
    "multiple-choice": MultipleChoice,
}
