from typing import Any

from hypothesis import strategies as st

from tests.families import IRRELEVANT, LABELS, REFUSED, REFUSED_SIZES, SHAPING, TINY, Row

# As in v3. Of 8 buckets to one side, 4 are for one distance each; the others share those up to 16.
V3 = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "legacy": False,
}
ALONE = {"relative_attention": False, "pos_att_type": None, "norm_rel_ebd": "none"}


def settle(config: dict[str, Any]) -> None:
    """What depends on something else in a config that is drawn key by key."""
    if not config["relative_attention"]:
        config |= ALONE
    reach = config["max_relative_positions"]
    if config["position_buckets"] > 2 * (reach if reach > 0 else config["max_position_embeddings"]) - 3:
        config["position_buckets"] = -1
    if not config.get("legacy", True):
        config["embedding_size"] = config["hidden_size"]
    config["pooler_hidden_size"] = config["hidden_size"]
    config["attention_head_size"] = config["hidden_size"] // config["num_attention_heads"]


ROW = Row(
    tiny={**TINY, **V3, "intermediate_size": 41},  # with 40 the scores of an answer's end are 0.03 by chance
    variants={
        "plain": {},
        "v2": {"conv_kernel_size": 3, "conv_act": "gelu", "attention_head_size": 8, "legacy": True},
        "keys of positions apart": {"share_att_key": False},
        "content to position": {"pos_att_type": ["c2p"], "share_att_key": False},
        "position to content": {"pos_att_type": ["p2c"], "share_att_key": False},
        "one kind, shared": {"pos_att_type": "c2p"},
        "no buckets": {"position_buckets": -1},
        "near positions only": {"position_buckets": -1, "max_relative_positions": 5},
        "odd buckets": {"position_buckets": 5, "max_relative_positions": 9},
        "embeddings of positions not normed": {"norm_rel_ebd": "none"},
        "positions of the input": {"position_biased_input": True},
        "no relative positions": {**ALONE, "position_biased_input": True},
        "no positions": ALONE,
        "wide convolution": {"conv_kernel_size": 7, "num_hidden_layers": 1},
        "one token type": {"type_vocab_size": 1},
        "two token types": {"type_vocab_size": 2, "position_biased_input": True},
        "three token types": {"type_vocab_size": 3},
        "three token types and positions": {"type_vocab_size": 3, "position_biased_input": True},
        "narrow embeddings": {"embedding_size": 10, "legacy": True, "position_biased_input": True},
        "odd head size": {"hidden_size": 21},
        "one head": {"num_attention_heads": 1},
        "one layer": {"num_hidden_layers": 1},
        "larger eps": {"layer_norm_eps": 1e-5},
        "untied": {"tie_word_embeddings": False, "legacy": True},
        **{f"convolution and pooler {name}": {"conv_kernel_size": 3, "conv_act": name, "pooler_hidden_act": name}
           for name in ("relu", "tanh", "gelu_new")},
    },
    labels=LABELS,
    shaping=SHAPING,
    irrelevant={
        **IRRELEVANT,
        "attn_implementation": ("eager", "there is no other"),
        "attention_probs_dropout_prob": (0.5, "training"),
        "hidden_dropout_prob": (0.5, "training"),
        "pooler_dropout": (0.5, "training"),
        "cls_dropout": (0.5, "training"),
    },
    drawn={
        "type_vocab_size": st.integers(0, 3),
        "embedding_size": st.integers(4, 24),
        "attention_head_size": st.none(),
        "pos_att_type": st.sampled_from([["c2p", "p2c"], ["c2p"], ["p2c"]]),
        "share_att_key": st.booleans(),
        "max_relative_positions": st.sampled_from([-1, 3, 9, 30]),
        "position_buckets": st.sampled_from([-1, 0, 2, 5, 8, 13]),
        "norm_rel_ebd": st.sampled_from(["none", "layer_norm"]),
        "conv_kernel_size": st.sampled_from([0, 1, 3, 5]),
        "conv_act": st.sampled_from(["gelu", "tanh", "silu"]),
        "pooler_hidden_size": st.none(),
    },
    settle=settle,
    refused_for=(
        ("fill-mask", "embedding_size", 10),
        ("text-classification", "pooler_hidden_act", "mish"),
        ("text-classification", "pooler_hidden_size", 30),
    ),
    refused=(
        *REFUSED,
        *REFUSED_SIZES,
        ("type_vocab_size", -1),
        ("embedding_size", 0),
        ("embedding_size", 10.5),
        ("attention_head_size", 4),
        ("pos_att_type", ["c2p", "p2p"]),
        ("pos_att_type", []),
        ("share_att_key", None),
        ("max_relative_positions", -2),
        ("position_buckets", 1),
        ("position_buckets", 30),
        ("position_buckets", 8.5),
        ("norm_rel_ebd", "batch_norm"),
        ("conv_kernel_size", 4),
        ("conv_groups", 3),
        ("conv_act", "sigmoid"),
    ),
)  # fmt: skip
