"""Texts written with the packages, the best token each time, beside those that transformers' `generate` writes.

What is done is what an app does, see `runtime.writing`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hft2ane.protocol import SENTENCES
from hft2ane.records.fidelity import Greedy
from hft2ane.records.package import Generation
from hft2ane.reference import Original, Tokenizer
from hft2ane.runtime import writing
from hft2ane.runtime.writing import STATES, STATES_MASK, Array, Run

TEXTS = 4  # of the protocol's sentences
TOKENS = 32  # that are written at most
PROMPT = 4  # tokens of a sentence that is to be continued


@dataclass(frozen=True)
class Task:
    """One text: what goes into the encoder (nothing for a text that is continued), what the decoder begins with, how
    many tokens it may write, and what the original writes."""

    source: Mapping[str, Array]
    begun: Sequence[int]
    most: int
    expected: Sequence[int]


def tasks(original: Original, tokenizer: Tokenizer, length: int) -> list[Task]:
    """None for a decoder that wants the states of an encoder which is not there."""
    how = original.generation
    if how is None or (not original.family.parts and original.config.add_cross_attention):
        return []
    found = []
    for text in SENTENCES[:TEXTS]:
        row = tokenizer([(text,)], length)
        if original.family.parts:
            assert how.start is not None
            source, begun = {name: tensor.int().numpy() for name, tensor in row.items()}, [how.start]
            asked = {name: row[name] for name in ("input_ids", "attention_mask")}
        else:
            source, begun = {}, row["input_ids"][0, : min(PROMPT, int(row["attention_mask"].sum()))].tolist()
            asked = {"input_ids": torch.tensor([begun]), "attention_mask": torch.ones(1, len(begun)).long()}
        most = min(TOKENS, length - len(begun))
        found.append(Task(source, begun, most, original.write(asked, most)))
    return found


def write(
    task: Task, how: Generation, length: int, decoder: Run, encoder: Run | None, names: Iterable[str]
) -> list[int]:
    """What the packages write. `names`: the encoder's inputs."""
    read: dict[str, Array] = {}
    if encoder is not None:
        states = encoder({name: task.source[name] for name in names})["last_hidden_state"]
        read = {STATES: states, STATES_MASK: task.source["attention_mask"]}
    return writing.write(decoder, task.begun, length, task.most, how.end, how.pad, read)


def compare(
    what: str, backend: str, length: int, expected: Sequence[Sequence[int]], got: Sequence[Sequence[int]]
) -> Greedy:
    pairs = list(zip(expected, got, strict=True))
    return Greedy(
        what,
        backend,
        length,
        texts=len(pairs),
        same=sum(a == b for a, b in pairs),
        tokens=sum(len(a) for a, _ in pairs),
        equal=sum(alike(a, b) for a, b in pairs),
    )


def alike(expected: Sequence[int], got: Sequence[int]) -> int:
    """Tokens before the first that differs."""
    ends = (n for n, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b)
    return next(ends, min(len(expected), len(got)))
