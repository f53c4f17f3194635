"""What is tried of each family: one file a family, of its name, with a ROW."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hft2ane.families import FAMILIES

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """What is tried of a family. Every key of its config is reproduced (`CONFIG` and `shaping`), or irrelevant."""

    tiny: Config
    variants: Mapping[str, Config]  # configurations that every task is tried with
    refused: tuple[tuple[str, Any], ...]
    labels: Mapping[str, tuple[Config, ...]] = field(default_factory=dict)  # more of them, by task
    activations: tuple[str, ...] = ("hidden_act",)  # keys of which each names an activation
    needs: Mapping[str, Config] = field(default_factory=dict)  # what a task asks for in a config, against the defaults
    shaping: frozenset[str] = frozenset()  # keys that any value is reproduced of, or that another part answers for
    irrelevant: Mapping[str, tuple[Any, str]] = field(default_factory=dict)  # key -> a value that changes nothing, why
    drawn: Config = field(default_factory=dict)  # key -> a strategy, where CONFIG does not say which small values fit
    settle: Callable[[dict[str, Any]], None] = lambda _: None  # makes values that are drawn one by one fit together
    refused_for: tuple[tuple[str, str, Any], ...] = ()  # task, key, and a value that this task does not take
    seed: int = 0  # of the weights: one with which no score is near 0 by chance, where rounding alone is -115 dB


TINY = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
    "layer_norm_eps": 1e-12,
}
LABELS: Mapping[str, tuple[Config, ...]] = {
    "text-classification": (
        {"num_labels": 1, "problem_type": "regression"},
        {"num_labels": 1},
        {"num_labels": 5, "problem_type": "multi_label_classification"},
        {"num_labels": 5, "problem_type": "single_label_classification"},
    ),
    "token-classification": ({"num_labels": 1}, {"num_labels": 5}),
    "multiple-choice": ({"num_labels": 5},),
    "next-sentence-prediction": ({"num_labels": 5},),
}
DECODER: Mapping[str, tuple[Config, ...]] = {"text-generation": ({"add_cross_attention": True},)}
NEEDS: Mapping[str, Config] = {"text-generation": {"is_decoder": True}}
REFUSED_DECODER: tuple[tuple[str, str, Any], ...] = (
    ("text-generation", "is_decoder", False),
    ("text-generation", "is_causal", False),
    ("text-generation", "cross_attention_hidden_size", 12),
    ("text-generation", "sliding_window", 4),
    ("text-generation", "attention_chunk_size", 4),
)
SHAPING = frozenset(
    {
        *("architectures", "model_type", "id2label", "label2id", "tie_word_embeddings", "pad_token_id"),
        "quantization_config",  # `reference` refuses it
    }
)
# Of every config of transformers.
IRRELEVANT: Mapping[str, tuple[Any, str]] = {
    "bos_token_id": (7, "text generation"),
    "eos_token_id": (7, "text generation"),
    "is_encoder_decoder": (True, "only the cache of a decoder asks for it"),
    "chunk_size_feed_forward": (4, "the same sums in pieces"),
    "attn_implementation": ("sdpa", "the same sums in another order"),
    "return_dict": (False, "the form of the answer"),
    "output_attentions": (True, "further outputs"),
    "output_hidden_states": (True, "further outputs"),
    "dtype": ("float16", "everything is computed in fp32"),
    "vision_aspect_ratio": (2, "image models"),
    "vision_feature_layer": (2, "image models"),
    "vision_feature_select_strategy": ("full", "image models"),
    "gradient_checkpointing": (True, "training"),
    "initializer_range": (9.0, "training"),
    "transformers_version": ("3.0.0", "a note"),
    "_name_or_path": ("elsewhere/model", "a note"),
}
# Values of keys that all families read, which none takes.
REFUSED: tuple[tuple[str, Any], ...] = (
    ("pruned_heads", {"0": [1]}),
    ("per_layer_config", {"1": {"intermediate_size": 8}}),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ("is_causal", True),
    ("is_decoder", True),
    ("add_cross_attention", True),
    ("vocab_size", 0),
    ("vocab_size", True),
    ("max_position_embeddings", 0),
    ("pad_token_id", 50),
)
# The same for the spelling of sizes that BERT has.
REFUSED_SIZES: tuple[tuple[str, Any], ...] = (
    ("hidden_act", "mish"),
    ("hidden_act", "no such function"),
    ("num_attention_heads", 5),
    ("num_attention_heads", 0),
    ("num_hidden_layers", 0),
    ("num_hidden_layers", 10**6),
    ("hidden_size", -24),
    ("hidden_size", 10**9),
    ("hidden_size", "24"),
    ("hidden_size", 24.5),
    ("intermediate_size", 0),
    ("layer_norm_eps", 0.0),
    ("layer_norm_eps", -1e-5),
    ("layer_norm_eps", 1e9),
    ("layer_norm_eps", float("nan")),
    ("layer_norm_eps", "1e-5"),
)
# Beside gelu, which all but one have as it is.
ACTIVATIONS = (
    "relu",
    "tanh",
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_accurate",
    "gelu_python",
    "gelu_python_tanh",
    "silu",
    "swish",
)

ROWS: dict[str, Row] = {name: importlib.import_module(f"{__name__}.{name.replace('-', '_')}").ROW for name in FAMILIES}
