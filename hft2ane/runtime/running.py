"""The packages of a release with its tokenizer: texts in, for each the network's outputs.

A text goes to the function with the least length that it fits. Functions take one text a call.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hft2ane.errors import BadInput, Truncated
from hft2ane.runtime.contract import Function, Package
from hft2ane.runtime.engine import Array, Engine, fitting
from hft2ane.runtime.fetch import Release
from hft2ane.runtime.settings import read_settings
from hft2ane.runtime.texts import Row, Text, Texts

R = TypeVar("R")

BATCH = 32
SHOWN = 64  # texts from which on a terminal gets a progress bar
OURS = Path(__file__).parent.parent


class Running:
    """`main`: the package that texts go into; `limit`: tokens that are kept of a text."""

    def __init__(self, release: Release, tokenizer: Path | None) -> None:
        if tokenizer is not None and not tokenizer.is_file():
            raise BadInput(f"tokenizer={str(tokenizer)!r}: there is no such file")
        self.contract, self.main = release.contract, release.contract.main
        self.engines = [Engine(release.folder / package.file, package) for package in release.contract.packages]
        self.settings = read_settings(release.folder, self.contract.task == "sentence-embedding")
        longest = max(self.main.lengths)
        self.limit = min(longest, self.settings.most or longest)
        self._tokenizer = tokenizer or release.folder / "tokenizer.json"
        self._texts: Texts | None = None

    @property
    def texts(self) -> Texts:
        """BadInput: the release has no tokenizer that is read here."""
        if self._texts is None:
            if not self._tokenizer.is_file():
                raise BadInput(
                    f"{self._tokenizer.resolve()} is not there: make one with "
                    "`transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)` and give it as "
                    "load(…, tokenizer=…), --tokenizer at the shell, or tokenise yourself and call model(**inputs)"
                )
            self._texts = Texts(self._tokenizer, self.settings)
        return self._texts

    def each(
        self,
        texts: Sequence[Text],
        answer: Callable[[Row, Text, Mapping[str, Array]], R],
        progress: bool | None,
        batch: int = BATCH,
    ) -> list[R]:
        """`answer` of every text. Warns of what was cut. `batch`: texts that are tokenised at a time."""
        cuts, found = [], []
        for row, text in bar(self.rows(texts, batch), len(texts), progress):
            found.append(answer(row, text, self.run(*self.padded(row.tokens))))
            cuts.append(row.cut)
        self.warn(cuts)
        return found

    def rows(self, texts: Sequence[Text], batch: int = BATCH) -> Iterator[tuple[Row, Text]]:
        left = iter(texts)
        while chunk := list(islice(left, max(1, batch))):
            yield from zip(self.texts.rows(chunk, self.limit), chunk, strict=True)

    def function(self, tokens: int) -> Function:
        """The shortest that takes so many."""
        return min((f for f in self.main.functions if f.length >= tokens), key=lambda f: f.length)

    def padded(self, tokens: Any) -> tuple[Function, dict[str, Array]]:
        """For an Encoding that fits."""
        function = self.function(len(tokens))
        return function, self.arrays(tokens, function)

    def arrays(self, tokens: Any, function: Function) -> dict[str, Array]:
        """An Encoding by input name, (1, length)."""
        room, how = function.length - len(tokens), self.contract.generation
        known = {
            "input_ids": [*tokens.ids, *[how.pad if how else self.settings.pad] * room],
            "attention_mask": [*tokens.attention_mask, *[0] * room],
            "token_type_ids": [*tokens.type_ids, *[0] * room],
        }
        wanted = [port.name for port in function.inputs]
        if unknown := [name for name in wanted if name not in known]:
            raise BadInput(f"the model takes {', '.join(unknown)} besides a text: call model(**inputs)")
        return {name: np.array([known[name]], np.int32) for name in wanted}

    def run(self, function: Function, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """A function of `main`."""
        return self.engine(self.main)(function.name, inputs)

    def engine(self, package: Package) -> Engine:
        return next(engine for engine in self.engines if engine.package is package)

    def raw(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """By whichever function takes these inputs. BadInput: none does."""
        inputs = {name: array(f"input {name}", value) for name, value in given.items()}
        for engine in self.engines:
            for function in engine.package.functions:
                if (fit := fitting(function, inputs)) is not None:
                    self.known(engine.package, fit)
                    return engine(function.name, fit)
        shown = ", ".join(f"{name} {array.shape}" for name, array in inputs.items()) or "nothing"
        made = "; model.tokenize(text) makes them" if self.contract.task and not self.main.part else ""
        raise BadInput(f"{self.contract.source.id} takes {self.takes()}; given is {shown}{made}")

    def known(self, package: Package, inputs: Mapping[str, Array]) -> None:
        """BadInput: an id that the model does not have, which a package need not refuse itself."""
        sizes = self.settings.ids.get(package.part, self.settings.ids[""])
        for name in sizes.keys() & inputs.keys():
            least, most = inputs[name].min(), inputs[name].max()
            if least < 0 or most >= sizes[name]:
                odd = least if least < 0 else most
                raise BadInput(f"{name} has {odd}, and {self.contract.source.id} knows 0 … {sizes[name] - 1}")

    def takes(self) -> str:
        ways = [
            ", ".join(f"{port.name} {port.shape}".replace("-1", "any") for port in function.inputs)
            for engine in self.engines
            for function in engine.package.functions
        ]
        return " or ".join(dict.fromkeys(ways))

    def warn(self, cuts: Sequence[int]) -> None:
        """Truncated, at the line that called hft2ane. `cuts`: tokens, by text."""
        if not any(cuts):
            return
        longer = sum(cut > 0 for cut in cuts)
        which = "the text is" if len(cuts) == 1 else f"{longer} of {len(cuts)} texts {'is' if longer == 1 else 'are'}"
        lost = ("1 token was cut" if sum(cuts) == 1 else f"{sum(cuts)} tokens were cut") + (
            f", {max(cuts)} of one" if longer > 1 else ""
        )
        text = f"{which} longer than the {self.limit} tokens that {self.contract.source.id} takes here: {lost}"
        warnings.warn(text, Truncated, stacklevel=depth())


def listed(texts: Iterable[Any], pairs: bool = False) -> list[Any]:
    """BadInput: something is no text, nor with `pairs` a tuple of two."""
    if isinstance(texts, Mapping):
        raise BadInput("a dict is no text: arrays go in by name, as model(**inputs)")
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise BadInput(f"{repr(texts)[:60]} is no text: give a str, or a list of them")
    found = list(texts)
    for n, each in enumerate(found):
        parts = each if pairs and isinstance(each, tuple) and len(each) == 2 else (each,)
        if not all(isinstance(part, str) for part in parts):
            raise BadInput(f"text {n} is {repr(each)[:60]}: it must be a str{', or a tuple of two' * pairs}")
        if not all(map(whole, parts)):
            raise BadInput(f"text {n} has half a character (a lone surrogate): {ascii(each)[:60]}")
    return found


def whole(text: str) -> bool:
    """Whether it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def array(name: str, value: Any) -> Array:
    """`name`: how an error calls it. BadInput: rows of different lengths, or no numbers."""
    try:
        found = np.asarray(value)
    except ValueError as err:
        raise BadInput(f"{name} is no array, its rows have different lengths") from err
    if found.dtype.kind not in "iufb":
        raise BadInput(f"{name} is {repr(value)[:60]}, no array of numbers")
    return found


def bar(rows: Iterator[R], count: int, progress: bool | None) -> Iterator[R]:
    """The same, with a progress bar on the error stream."""
    if progress is None:
        progress = count >= SHOWN and sys.stderr.isatty()
    if not progress:
        yield from rows
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(rows, "texts", total=count, console=Console(stderr=True), transient=True)


def depth() -> int:
    """The stack level, as warnings count it for our caller, of the nearest line outside of hft2ane."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(OURS):
        frame, level = frame.f_back, level + 1
    return level
