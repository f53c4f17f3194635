"""Texts as tokens, by a release's own tokenizer.json and settings, as transformers and sentence-transformers do it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hft2ane.errors import BadInput, CorruptFile
from hft2ane.runtime.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Encoding

Text = str | tuple[str, str]  # one text, or two that go in together


@dataclass(frozen=True)
class Row:
    """A text as tokens that fit; `cut`: how many did not."""

    tokens: "Encoding"
    cut: int = 0


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
