"""What the small files of a release say of its texts. The card says the same: see `keys.presentation_digest`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hft2ane.errors import CorruptFile

# Written by transformers where a tokenizer has no limit of its own.
NO_LIMIT = 10**6


@dataclass(frozen=True)
class Settings:
    """What the release's small files say of its texts. `most`: tokens that the original keeps, None: no such word.

    `prompts`: what sentence-transformers puts before a text, by name; `similarity`: by which vectors are compared;
    `activation`: what a reranker's score goes through; `own_vocabulary`: a pair's decoder writes other ids than the
    encoder reads. `ids`: how many there are, by part of the model ("" where it is one) and input."""

    most: int | None
    pad: int
    mask: str
    unknown: str | None
    side: Literal["left", "right"]
    tidy: bool
    prompts: dict[str, str]
    similarity: str
    activation: str | None
    own_vocabulary: bool
    ids: dict[str, dict[str, int]]


def read_settings(folder: Path, embeds: bool) -> Settings:
    """`embeds`: as sentence-transformers reads the folder. CorruptFile: a file is no JSON object."""
    model, tokenizer = _object(folder / "config.json"), _object(folder / "tokenizer_config.json")
    special = _object(folder / "special_tokens_map.json")
    general = _object(folder / "config_sentence_transformers.json")
    limits = [tokenizer.get("model_max_length")]
    if embeds:
        limits += [_object(path).get("max_seq_length") for path in sorted(folder.glob("sentence_*_config.json"))]
    ours = model.get("sentence_transformers")
    parts = {name: model[name] for name in ("encoder", "decoder") if isinstance(model.get(name), dict)}
    older = model.get("sbert_ce_default_activation_function")
    return Settings(
        most=min((n for n in limits if isinstance(n, int) and 0 < n < NO_LIMIT), default=None),
        pad=pad if isinstance(pad := model.get("pad_token_id"), int) else 0,
        mask=_token(tokenizer, special, "mask_token") or "[MASK]",
        unknown=_token(tokenizer, special, "unk_token"),
        side="left" if tokenizer.get("truncation_side") == "left" else "right",
        tidy=tokenizer.get("clean_up_tokenization_spaces") is True,
        prompts={name: text for name, text in (general.get("prompts") or {}).items() if isinstance(text, str)},
        similarity=str(general.get("similarity_fn_name") or "cosine"),
        activation=ours.get("activation_fn") if isinstance(ours, dict) else older,
        own_vocabulary=len({part.get("vocab_size") for part in parts.values()}) > 1,
        ids={name: _ids(part) for name, part in {"": model, **parts}.items()},
    )


def _ids(config: dict[str, Any]) -> dict[str, int]:
    sizes = {"input_ids": config.get("vocab_size"), "token_type_ids": config.get("type_vocab_size")}
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as err:
        raise CorruptFile(f"{path} is not JSON: {err}") from err
    if not isinstance(found, dict):
        raise CorruptFile(f"{path} is no JSON object")
    return found


def _token(tokenizer: dict[str, Any], special: dict[str, Any], key: str) -> str | None:
    for source in (tokenizer, special):
        named = source.get(key)
        token = named.get("content") if isinstance(named, dict) else named
        if isinstance(token, str):
            return token
    return None
