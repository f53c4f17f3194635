"""What the card has to know of the original's tokenizer besides its `runtime.settings`."""

import json
from pathlib import Path


def joins_as_bert(release: Path) -> bool:
    """Whether two texts have one closing token between them, and token type 1 after it. RoBERTa's have two, and 0."""
    path = release / "tokenizer.json"
    processor = json.loads(path.read_bytes()).get("post_processor") if path.is_file() else {"type": "BertProcessing"}
    match processor:
        case {"type": "BertProcessing"}:
            return True
        case {"type": "TemplateProcessing", "pair": [_, {"Sequence": _}, _, {"Sequence": {"type_id": 1}}, _]}:
            return True
    return False
