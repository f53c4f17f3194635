from typing import Any

from hypothesis import strategies as st

from tests.families import IRRELEVANT, LABELS, REFUSED, SHAPING, Row

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def rope(full: Any, sliding: Any, kind: str = "default", **more: Any) -> dict[str, Any]:
    return {
        "rope_parameters": {
            name: {"rope_theta": theta, "rope_type": kind, **more} for name, theta in ((GLOBAL, full), (LOCAL, sliding))
        }
    }


def settle(config: dict[str, Any]) -> None:
    """An even head size, and a type for each layer."""
    if config["hidden_size"] // config["num_attention_heads"] % 2:
        config["hidden_size"] *= 2
    config["layer_types"] = config["layer_types"][: config["num_hidden_layers"]]


ROW = Row(
    tiny={
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "pad_token_id": 3,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "cls_token_id": 0,
        "sep_token_id": 1,
    },
    variants={
        "plain": {},
        "biases": dict.fromkeys(("attention_bias", "classifier_bias", "mlp_bias", "norm_bias"), True),
        "attention biases": {"attention_bias": True},
        "feed-forward biases": {"mlp_bias": True},
        "norm biases": {"norm_bias": True},
        "head biases": {"classifier_bias": True, "decoder_bias": False},
        "head size not a power of two": {"hidden_size": 30},
        "head size of two": {"hidden_size": 6},
        "one head": {"num_attention_heads": 1},
        "one layer": {"num_hidden_layers": 1},
        "every third layer global": {"global_attn_every_n_layers": 3, "num_hidden_layers": 4},
        "layers as listed": {"layer_types": [LOCAL, LOCAL, GLOBAL]},
        "local only": {"layer_types": [LOCAL] * 3},
        "global only": {"global_attn_every_n_layers": 1},
        "themselves only": {"local_attention": 1},
        "an odd window": {"local_attention": 5},
        "a window of all": {"local_attention": 30},
        "other angles": rope(80_000.0, 100.0),
        "other angles, old keys": {"global_rope_theta": 500, "local_rope_theta": 20.0},
        "mean": {"classifier_pooling": "mean"},
        "smaller eps": {"norm_eps": 1e-12},
        "untied": {"tie_word_embeddings": False},
    },
    activations=("hidden_activation", "classifier_activation"),
    labels=LABELS,
    # Other spellings of rope_parameters and local_attention.
    shaping=SHAPING | {"global_rope_theta", "local_rope_theta", "sliding_window"},
    irrelevant={
        **IRRELEVANT,
        **dict.fromkeys(
            (
                "attention_dropout",
                "classifier_dropout",
                "embedding_dropout",
                "mlp_dropout",
                "initializer_cutoff_factor",
            ),
            (0.5, "training"),
        ),
        "cls_token_id": (7, "for a tokenizer"),
        "sep_token_id": (7, "for a tokenizer"),
        "use_cache": (False, "text generation"),
        "sparse_prediction": (True, "training"),
        "sparse_pred_ignore_index": (7, "training"),
        "repad_logits_with_grad": (True, "training"),
        "deterministic_flash_attn": (True, "the same sums in another order"),
        "reference_compile": (False, "how it is computed"),
        # In config.json files of the Hub; no version of transformers' ModernBERT read them.
        "layer_norm_eps": (0.05, "norm_eps is read"),
        "position_embedding_type": ("sans_pos", "positions are rotary"),
        "rope_theta": (7.0, "rope_parameters are read"),
    },
    refused=(
        *REFUSED,
        ("hidden_activation", "mish"),
        ("classifier_activation", "no such function"),
        ("classifier_pooling", "max"),
        ("num_attention_heads", 5),
        ("num_attention_heads", 0),
        ("num_attention_heads", 8),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 10**6),
        ("hidden_size", -24),
        ("hidden_size", 10**9),
        ("hidden_size", "24"),
        ("hidden_size", 24.5),
        ("intermediate_size", 0),
        ("local_attention", 0),
        ("global_attn_every_n_layers", 0),
        ("head_dim", 4),
        ("causal_mask", True),
        ("norm_bias", "yes"),
        ("norm_eps", 0.0),
        ("norm_eps", -1e-5),
        ("norm_eps", 1e9),
        ("norm_eps", float("nan")),
        ("norm_eps", "1e-5"),
        ("layer_types", ["full_attention", "chunked_attention", "full_attention"]),
        *rope(160_000.0, 10_000.0, "linear", factor=2.0).items(),
        *rope(160_000.0, 10_000.0, partial_rotary_factor=0.5).items(),
        *rope(0.0, 10_000.0).items(),
        *rope(160_000.0, "10000").items(),
        ("rope_parameters", 3),
    ),
    drawn={
        "layer_types": st.lists(st.sampled_from([GLOBAL, LOCAL]), min_size=3, max_size=3),
        "rope_parameters": st.builds(rope, *[st.floats(2, 1e6)] * 2).map(lambda config: config["rope_parameters"]),
        "pad_token_id": st.just(3),
    },
    settle=settle,
)
