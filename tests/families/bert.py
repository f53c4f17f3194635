from tests.families import ACTIVATIONS, IRRELEVANT, LABELS, REFUSED, REFUSED_SIZES, SHAPING, TINY, Row

ROW = Row(
    tiny=TINY,
    variants={
        "plain": {},
        "odd head size": {"hidden_size": 21},
        "one head": {"num_attention_heads": 1},
        "one layer": {"num_hidden_layers": 1},
        "one token type": {"type_vocab_size": 1},
        "three token types": {"type_vocab_size": 3},
        "larger eps": {"layer_norm_eps": 1e-5},
        "untied": {"tie_word_embeddings": False},
        **ACTIVATIONS,
    },
    labels=LABELS,
    shaping=SHAPING,
    irrelevant={
        **IRRELEVANT,
        "attention_probs_dropout_prob": (0.5, "training"),
        "hidden_dropout_prob": (0.5, "training"),
        "classifier_dropout": (0.5, "training"),
        "use_cache": (False, "text generation"),
        "output_cross_attentions": (True, "further outputs"),
    },
    refused=(
        *REFUSED,
        *REFUSED_SIZES,
        ("position_embedding_type", "relative_key"),
        ("position_embedding_type", "relative_key_query"),
        ("type_vocab_size", 0),
    ),
)
