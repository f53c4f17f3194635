"""What the card has to know of the original's own files, which are in the release."""

import json
from pathlib import Path

from hft2ane import layout
from hft2ane.records.package import Part


def tokens_kept(release: Path, longest: int) -> int | None:
    """Tokens of a text that sentence-transformers keeps, where the package takes more of them."""
    for settings in sorted(release.glob("sentence_*_config.json")):
        kept = json.loads(settings.read_text()).get("max_seq_length")
        if isinstance(kept, int) and kept < longest:
            return kept
    return None


def pad_token(release: Path) -> int:
    """The id at padding. Without one in config.json any will do, because attention_mask is 0 there."""
    pad = json.loads((release / layout.CONFIG).read_bytes()).get("pad_token_id")
    return pad if isinstance(pad, int) else 0


def ranges(release: Path, part: Part) -> dict[str, str]:
    """What ids may be, by the input's name, as far as config.json says it."""
    config = json.loads((release / layout.CONFIG).read_bytes())
    own = config.get(part) if part and isinstance(config.get(part), dict) else config
    sizes = {"input_ids": own.get("vocab_size"), "token_type_ids": own.get("type_vocab_size")}
    found = {name: f"0 … {size - 1}" for name, size in sizes.items() if isinstance(size, int) and size > 1}
    return {"attention_mask": "0, 1", "encoder_attention_mask": "0, 1", **found}


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


def mask_token(release: Path) -> str:
    """What stands for a masked word: as the tokenizer's files name it, else BERT's."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (release / name).is_file():
            named = json.loads((release / name).read_bytes()).get("mask_token")
            token = named.get("content") if isinstance(named, dict) else named
            if isinstance(token, str):
                return token
    return "[MASK]"


def own_vocabulary(release: Path) -> bool:
    """Whether the decoder of a pair writes ids of another vocabulary than the encoder reads."""
    config = json.loads((release / layout.CONFIG).read_bytes())
    sizes = {
        part.get("vocab_size") for part in (config.get("encoder"), config.get("decoder")) if isinstance(part, dict)
    }
    return len(sizes) > 1
