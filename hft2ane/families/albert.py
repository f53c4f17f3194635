"""ALBERT (Lan et al. 2020): BERT with narrow embeddings, and one layer, or a few, used again and again."""

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from hft2ane.ane import Linear
from hft2ane.families import LAYERS, SIZE, _heads, bert

CONFIG = {
    **bert.CONFIG,
    "embedding_size": SIZE,
    "num_hidden_groups": LAYERS,
    "inner_group_num": LAYERS,
    # In the config files of the first release. No version of transformers reads them.
    "net_structure_type": (0,),
    "num_memory_blocks": (0,),
    "gap_size": (0,),
    "down_scale_factor": (1,),
    "layers_to_keep": ([],),
}
HEADS = (r"(pooler|predictions|sop_classifier|classifier|qa_outputs)\..*",)

LAYER = "encoder.albert_layer_groups.{g}.albert_layers.{i}"
ENCODER = {
    **bert.EMBEDDINGS,
    "project": "encoder.embedding_hidden_mapping_in",
    "groups.{g}.{i}.attend.q": f"{LAYER}.attention.query",
    "groups.{g}.{i}.attend.k": f"{LAYER}.attention.key",
    "groups.{g}.{i}.attend.v": f"{LAYER}.attention.value",
    "groups.{g}.{i}.attend.out": f"{LAYER}.attention.dense",
    "groups.{g}.{i}.norm1": f"{LAYER}.attention.LayerNorm",
    "groups.{g}.{i}.up": f"{LAYER}.ffn",
    "groups.{g}.{i}.down": f"{LAYER}.ffn_output",
    "groups.{g}.{i}.norm2": f"{LAYER}.full_layer_layer_norm",
}
POOLER = {"pooler": "pooler"}


class Encoder(bert.Encoder):
    def __init__(self, config: Any, absent: Collection[str] = ()) -> None:
        super().__init__(config, absent)
        self.project = Linear(self.width(config), config.hidden_size)  # also where both are the same

    @staticmethod
    def width(config: Any) -> int:
        return int(config.embedding_size)

    def stack(self, config: Any) -> Iterable[nn.Module]:
        """The layers of each group as often as it comes; one set of weights serves them all."""
        layers, groups = config.num_hidden_layers, config.num_hidden_groups
        made = [nn.ModuleList(self.block(config) for _ in range(config.inner_group_num)) for _ in range(groups)]
        self.groups = nn.ModuleList(made)
        return [block for i in range(layers) for block in made[int(i / (layers / groups))]]


class FeatureExtractor(_heads.PooledFeatureExtractor, Encoder):
    ORIGINAL = "AlbertModel"
    WEIGHTS = {**ENCODER, **POOLER}


class MaskedLM(_heads.MaskedLM, Encoder):
    ORIGINAL = "AlbertForMaskedLM"
    WEIGHTS = {
        **ENCODER,
        "transform": "predictions.dense",
        "transform_norm": "predictions.LayerNorm",
        "decoder": "predictions.decoder",
    }
    UNWANTED = (r"predictions\.bias",)  # the same values as predictions.decoder.bias


class SequenceClassifier(_heads.SequenceClassifier, Encoder):
    ORIGINAL = "AlbertForSequenceClassification"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "classifier"}


class MultipleChoice(_heads.MultipleChoice, Encoder):
    ORIGINAL = "AlbertForMultipleChoice"
    WEIGHTS = {**ENCODER, **POOLER, "classify": "classifier"}


class TokenClassifier(_heads.TokenClassifier, Encoder):
    ORIGINAL = "AlbertForTokenClassification"
    WEIGHTS = {**ENCODER, "classify": "classifier"}


class QuestionAnswerer(_heads.QuestionAnswerer, Encoder):
    ORIGINAL = "AlbertForQuestionAnswering"
    WEIGHTS = {**ENCODER, "classify": "qa_outputs"}


TASKS = {
    "feature-extraction": FeatureExtractor,
    "fill-mask": MaskedLM,
    "text-classification": SequenceClassifier,
    "token-classification": TokenClassifier,
    "question-answering": QuestionAnswerer,
    "multiple-choice": MultipleChoice,
}
