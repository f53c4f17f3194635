"""ELECTRA (Clark et al. 2020): BERT's encoder on embeddings of another width, heads of its own, and no pooler.

The discriminator tells replaced tokens from original ones; the generator, of the same class, fills masks."""

from typing import Any

import torch.nn.functional as F

from hft2ane.ane import ACTIVATIONS, Activation
from hft2ane.families import SIZE, _heads, bert

CONFIG = {**bert.CONFIG, "embedding_size": SIZE}
HEADS = (
    r"(discriminator_predictions|generator_predictions|generator_lm_head|sequence_summary|classifier|qa_outputs)\..*",
)

ENCODER = {**bert.ENCODER, "project": "embeddings_project"}


class Encoder(bert.Encoder):
    @staticmethod
    def width(config: Any) -> int:
        return int(config.embedding_size)


class FeatureExtractor(_heads.FeatureExtractor, Encoder):
    ORIGINAL = "ElectraModel"
    WEIGHTS = ENCODER


class MaskedLM(_heads.GeluMaskedLM, Encoder):
    ORIGINAL = "ElectraForMaskedLM"
    WEIGHTS = {
        **ENCODER,
        "transform": "generator_predictions.dense",
        "transform_norm": "generator_predictions.LayerNorm",
        "decoder": "generator_lm_head",
    }


class CausalLM(_heads.Causal, MaskedLM):
    ORIGINAL = "ElectraForCausalLM"
    WEIGHTS = {**MaskedLM.WEIGHTS, **bert.CROSS}


class ReplacedTokenDetector(_heads.ReplacedTokenDetector, Encoder):
    ORIGINAL = "ElectraForPreTraining"
    WEIGHTS = {
        **ENCODER,
        "transform": "discriminator_predictions.dense",
        "classify": "discriminator_predictions.dense_prediction",
    }


class SequenceClassifier(_heads.SequenceClassifier, Encoder):
    ORIGINAL = "ElectraForSequenceClassification"
    WEIGHTS = {**ENCODER, "pooler": "classifier.dense", "classify": "classifier.out_proj"}

    @staticmethod
    def pool_activation(config: Any) -> Activation:
        return F.gelu


class MultipleChoice(_heads.MultipleChoice, Encoder):
    ORIGINAL = "ElectraForMultipleChoice"
    WEIGHTS = {**ENCODER, "pooler": "sequence_summary.summary", "classify": "classifier"}
    CONFIG = {
        "summary_type": ("first",),
        "summary_use_proj": (True,),
        "summary_proj_to_labels": (False, None),
        "summary_activation": tuple(ACTIVATIONS),
    }

    @staticmethod
    def pool_activation(config: Any) -> Activation:
        return ACTIVATIONS[config.summary_activation]


class TokenClassifier(_heads.TokenClassifier, Encoder):
    ORIGINAL = "ElectraForTokenClassification"
    WEIGHTS = {**ENCODER, "classify": "classifier"}


class QuestionAnswerer(_heads.QuestionAnswerer, Encoder):
    ORIGINAL = "ElectraForQuestionAnswering"
    WEIGHTS = {**ENCODER, "classify": "qa_outputs"}


TASKS = {
    "feature-extraction": FeatureExtractor,
    "fill-mask": MaskedLM,
    "text-generation": CausalLM,
    "text-classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswerer,
    "multiple-choice": MultipleChoice,
    "replaced-token-detection": ReplacedTokenDetector,
}
