from hypothesis import strategies as st

from tests.families import IRRELEVANT, LABELS, REFUSED, REFUSED_SIZES, SHAPING, TINY, Row

ROW = Row(
    tiny={**TINY, "max_position_embeddings": 18, "pad_token_id": 1},
    variants={
        "plain": {},
        "odd head size": {"hidden_size": 21},
        "one head": {"num_attention_heads": 1},
        "one layer": {"num_hidden_layers": 1},
        "larger eps": {"layer_norm_eps": 1e-5},
        "untied": {"tie_word_embeddings": False},
        "every distance": {"max_position_embeddings": 202},
        "more buckets than are used": {"relative_attention_num_buckets": 40},
    },
    labels={task: configs for task, configs in LABELS.items() if task != "next-sentence-prediction"},
    shaping=SHAPING,
    irrelevant={
        **IRRELEVANT,
        "attn_implementation": ("eager", "there is no other"),
        "attention_probs_dropout_prob": (0.5, "training"),
        "hidden_dropout_prob": (0.5, "training"),
    },
    refused=(
        *REFUSED,
        *REFUSED_SIZES,
        ("relative_attention_num_buckets", 16),
        ("pad_token_id", None),
        ("pad_token_id", 0),
        ("max_position_embeddings", 2),
    ),
    drawn={"relative_attention_num_buckets": st.integers(32, 40)},
    seed=1,
)
