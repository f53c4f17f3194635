from tests.families import IRRELEVANT, REFUSED, TINY, Row

ENCODER = {"model_type": "bert", **TINY}
DECODER = {**ENCODER, "is_decoder": True, "add_cross_attention": True}
OF_A_MODEL = ("is_encoder_decoder", "chunk_size_feed_forward")  # of the whole, which has no layer of its own

ROW = Row(
    tiny={"encoder": ENCODER, "decoder": DECODER, "decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0},
    variants={
        "plain": {},
        "wider decoder": {"decoder": {**DECODER, "hidden_size": 32, "num_attention_heads": 4}},
        "narrower decoder": {"decoder": {**DECODER, "hidden_size": 16, "num_attention_heads": 2}},
        "deeper encoder": {"encoder": {**ENCODER, "num_hidden_layers": 3}},
        "one layer": {"encoder": ENCODER | {"num_hidden_layers": 1}, "decoder": DECODER | {"num_hidden_layers": 1}},
        "other vocabulary": {"decoder": {**DECODER, "vocab_size": 40}},
        "one token type": {"encoder": ENCODER | {"type_vocab_size": 1}, "decoder": DECODER | {"type_vocab_size": 1}},
        "fewer positions": {"decoder": {**DECODER, "max_position_embeddings": 13}},
        "untied": {"decoder": {**DECODER, "tie_word_embeddings": False}},
        "relu": {"decoder": {**DECODER, "hidden_act": "relu", "layer_norm_eps": 1e-5}},
    },
    activations=(),  # each part has its own
    shaping=frozenset(
        {
            *("architectures", "model_type", "encoder", "decoder", "auto_map", "quantization_config"),
            *("decoder_start_token_id", "eos_token_id", "pad_token_id"),
        }
    ),
    irrelevant={
        **{key: value for key, value in IRRELEVANT.items() if key not in ("eos_token_id", *OF_A_MODEL)},
        "is_encoder_decoder": (True, "a pair always is one"),
        "chunk_size_feed_forward": (4, "each part has its own"),
        "id2label": ({"0": "a"}, "nothing is classified"),
        "label2id": ({"a": 0}, "nothing is classified"),
        "tie_word_embeddings": (True, "each part has its own"),
        "init_std": (9.0, "training"),
        "initializer_factor": (9.0, "training"),
        "use_cache": (False, "keys and values are computed anew, or kept"),
    },
    refused=(
        ("tie_encoder_decoder", True),
        *(pair for pair in REFUSED if pair[0] in ("per_layer_config", "quantization_config")),
    ),
)
