"""RoBERTa (Liu et al. 2019): BERT whose positions begin after the padding's id, with heads of its own.

transformers counts positions over the ids that are not padding. Here they are constants, which is the same for what a
tokenizer gives: padding on the right, and none inside a text.
"""

from typing import Any

from hft2ane.families import Between, _heads, bert
from hft2ane.families.bert import ENCODER, POOLER

CONFIG = {**bert.CONFIG, "pad_token_id": Between(0, 1 << 22)}
HEADS = (r"(pooler|lm_head|classifier|qa_outputs)\..*",)

LM_HEAD = {"transform": "lm_head.dense", "transform_norm": "lm_head.layer_norm", "decoder": "lm_head.decoder"}
CLASSIFIER = {"pooler": "classifier.dense", "classify": "classifier.out_proj"}


class Encoder(bert.Encoder):
    @staticmethod
    def first_position(config: Any) -> int:
        return int(config.pad_token_id) + 1

    @staticmethod
    def limit(config: Any) -> int:
        return int(config.max_position_embeddings) - Encoder.first_position(config)


class FeatureExtractor(_heads.PooledFeatureExtractor, Encoder):
    ORIGINAL = "RobertaModel"
    WEIGHTS = {**ENCODER, **POOLER}


class MaskedLM(_heads.GeluMaskedLM, Encoder):
    ORIGINAL = "RobertaForMaskedLM"
    WEIGHTS = {**ENCODER, **LM_HEAD}
    UNWANTED = (r"lm_head\.bias",)  # the same values as lm_head.decoder.bias


class CausalLM(_heads.Causal, MaskedLM):
    ORIGINAL = "RobertaForCausalLM"
    WEIGHTS = {**MaskedLM.WEIGHTS, **bert.CROSS}


class SequenceClassifier(_heads.SequenceClassifier, Encoder):
    ORIGINAL = "RobertaForSequenceClassification"
    WEIGHTS = {**ENCODER, **CLASSIFIER}


class MultipleChoice(_heads.MultipleChoice, Encoder):
    ORIGINAL = "RobertaForMultipleChoice"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "classifier"}


class TokenClassifier(_heads.TokenClassifier, Encoder):
    ORIGINAL = "RobertaForTokenClassification"
    WEIGHTS = {**ENCODER, "classify": "classifier"}


class QuestionAnswerer(_heads.QuestionAnswerer, Encoder):
    ORIGINAL = "RobertaForQuestionAnswering"
    WEIGHTS = {**ENCODER, "classify": "qa_outputs"}


TASKS = {
    "feature-extraction": FeatureExtractor,
    "fill-mask": MaskedLM,
    "text-generation": CausalLM,
    "text-classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswerer,
    "multiple-choice": MultipleChoice,
}
