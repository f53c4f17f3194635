from tests.families import IRRELEVANT, LABELS, REFUSED, REFUSED_SIZES, SHAPING, TINY, Row

SPELLING = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}


def spelled(key: str) -> str:
    return SPELLING.get(key, key)


ROW = Row(
    tiny={spelled(key): value for key, value in TINY.items() if key != "layer_norm_eps"},
    variants={
        "plain": {},
        "odd head size": {"dim": 21},
        "one head": {"n_heads": 1},
        "one layer": {"n_layers": 1},
        "sines as positions": {"sinusoidal_pos_embds": True},
        "untied": {"tie_word_embeddings": False},
    },
    activations=("activation",),
    labels=LABELS,
    shaping=SHAPING,
    irrelevant={
        **IRRELEVANT,
        "sinusoidal_pos_embds": (True, "what positions begin with, before training"),
        "layer_norm_eps": (1e-3, "is 1e-12 whatever the config says"),
        "tie_weights_": (False, "of the first version, never asked for"),
        "dropout": (0.5, "training"),
        "attention_dropout": (0.5, "training"),
        "qa_dropout": (0.5, "training"),
        "seq_classif_dropout": (0.5, "training"),
        "use_cache": (False, "text generation"),
    },
    refused=(
        *REFUSED,
        *((spelled(key), value) for key, value in REFUSED_SIZES if key != "layer_norm_eps"),
        ("position_embedding_type", "relative_key"),
    ),
)
