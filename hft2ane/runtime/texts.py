"""Texts as tokens, by a release's own tokenizer.json and settings, as transformers and sentence-transformers do it."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hft2ane.errors import BadInput, CorruptFile

if TYPE_CHECKING:
    from tokenizers import Encoding

Text = str | tuple[str, str]  # one text, or two that go in together
# Written by transformers where a tokenizer has no limit of its own.
NO_LIMIT = 10**6


@dataclass(frozen=True)
class Settings:
    """What the release's small files say of its texts. `most`: tokens that the original keeps, None: no such word.

    `prompts`: what sentence-transformers puts before a text, by name; `similarity`: by which vectors are compared;
    `activation`: what a reranker's score goes through; `own_vocabulary`: a pair's decoder writes other ids than the
    encoder reads."""

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


@dataclass(frozen=True)
class Row:
    """A text as tokens that fit; `cut`: how many did not."""

    tokens: "Encoding"
    cut: int = 0


def read_settings(folder: Path, embeds: bool) -> Settings:
    """`embeds`: as sentence-transformers reads the folder. CorruptFile: a file is no JSON object."""
    model, tokenizer = _object(folder / "config.json"), _object(folder / "tokenizer_config.json")
    special = _object(folder / "special_tokens_map.json")
    general = _object(folder / "config_sentence_transformers.json")
    limits = [tokenizer.get("model_max_length")]
    if embeds:
        limits += [_object(path).get("max_seq_length") for path in sorted(folder.glob("sentence_*_config.json"))]
    ours = model.get("sentence_transformers")
    parts = (model.get("encoder"), model.get("decoder"))
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
        own_vocabulary=len({part.get("vocab_size") for part in parts if isinstance(part, dict)}) > 1,
    )


class Texts:
    """Turns texts into rows of tokens and back."""

    def __init__(self, file: Path, settings: Settings) -> None:
        from tokenizers import Tokenizer

        try:
            self.inner = Tokenizer.from_file(str(file))
        except Exception as err:
            # The library has no class of its own for what is wrong in the file.
            raise CorruptFile(f"{file} is not readable as a tokenizer: {' '.join(str(err).split())}") from err
        self.settings = settings
        if self.inner.truncation is not None and self.inner.truncation.get("direction") == "left":
            self.side: Literal["left", "right"] = "left"
        else:
            self.side = settings.side
        self.inner.no_padding()
        self.inner.no_truncation()
        self._lock = threading.Lock()  # truncation is a state of the tokenizer

    def rows(self, texts: Sequence[Text], limit: int) -> list[Row]:
        """Cut to `limit` tokens where they are longer: of a pair the longer text first."""
        whole = self.inner.encode_batch(list(texts))
        return [self._row(text, tokens, limit) for text, tokens in zip(texts, whole, strict=True)]

    def _row(self, text: Text, tokens: "Encoding", limit: int) -> Row:
        if len(tokens) <= limit:
            return Row(tokens)
        with self._cutting(limit, "longest_first"):
            kept = self._encoded(text)
        return Row(kept, len(tokens) - len(kept))

    def windows(self, question: str, context: str, limit: int) -> list["Encoding"]:
        """The question with all of the context, in as many pieces as that takes, each with the end of the one before.

        BadInput: the question leaves no room."""
        least = len(self.inner.encode(question)) + 2  # of the context, and what closes it
        if least > limit:
            raise BadInput(f"the question has {least - 2} tokens, the model takes {limit} with the context: shorten it")
        # As many tokens twice as transformers' pipeline had, as far as there is room.
        stride = max(0, min(limit // 2, 128, limit - least - 2))
        with self._cutting(limit, "only_second", stride):
            first = self.inner.encode(question, context)
        return [first, *first.overflowing]

    def ids(self, text: str) -> list[int]:
        """Without special tokens, and not cut."""
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._tidied(self.inner.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def join(self, tokens: Sequence[str]) -> str:
        """Tokens as text: `["hu", "##gging"]` -> `hugging`."""
        decoder = self.inner.decoder
        return str(decoder.decode(list(tokens))) if decoder is not None else " ".join(tokens)

    def _tidied(self, text: str) -> str:
        """As transformers does where tokenizer_config.json asks for it."""
        if not self.settings.tidy or type(self.inner.model).__name__ == "BPE":
            return text
        for mark in (".", "?", "!", ","):
            text = text.replace(f" {mark}", mark)
        text = text.replace(" ' ", "'")
        for ending in ("n't", "'m", "'s", "'ve", "'re"):
            text = text.replace(f" {ending}", ending)
        return text

    def _encoded(self, text: Text) -> "Encoding":
        return self.inner.encode(text) if isinstance(text, str) else self.inner.encode(*text)

    @contextmanager
    def _cutting(self, limit: int, strategy: str, stride: int = 0) -> Iterator[None]:
        with self._lock:
            self.inner.enable_truncation(limit, stride=stride, strategy=strategy, direction=self.side)
            try:
                yield
            finally:
                self.inner.no_truncation()


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
