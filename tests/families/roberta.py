from dataclasses import replace

from hypothesis import strategies as st

from tests.families.bert import ROW as BERT

TINY = {**BERT.tiny, "max_position_embeddings": 18, "pad_token_id": 1}

ROW = replace(
    BERT,
    tiny=TINY,
    variants={
        **BERT.variants,
        "padding is the first id": {"pad_token_id": 0},
        "padding is a late id": {"pad_token_id": 5, "max_position_embeddings": 24},
    },
    labels={task: configs for task, configs in BERT.labels.items() if task != "next-sentence-prediction"},
    refused=(
        *BERT.refused,
        ("pad_token_id", None),
        ("pad_token_id", -1),
        ("pad_token_id", 17),  # no position is left
        ("pad_token_id", 18),
    ),
    drawn={"pad_token_id": st.integers(0, 3)},
    seed=1,
)
