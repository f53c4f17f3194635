"""A text written with the packages, the best token each time: what an app does, and what `verify` measures.

The encoder reads once, then the decoder has all of the text so far for every token, and its scores at the last one
count. Keys and values are not kept from one call to the next.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

STATES, STATES_MASK = "encoder_hidden_states", "encoder_attention_mask"


def write(
    decoder: Run,
    begun: Sequence[int],
    length: int,
    most: int,
    end: Collection[int],
    pad: int,
    read: Mapping[str, Array],
) -> list[int]:
    """The ids after those `begun`, `most` or fewer, with the one that ends the text. `read`: what an encoder gives, by
    the decoder's input names."""
    ids, mask = np.full((1, length), pad, np.int32), np.zeros((1, length), np.int32)
    tokens = list(begun)
    while len(tokens) < min(length, len(begun) + most) and (len(tokens) == len(begun) or tokens[-1] not in end):
        ids[0, : len(tokens)], mask[0, : len(tokens)] = tokens, 1
        logits = decoder({"input_ids": ids, "attention_mask": mask, **read})["logits"]
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    return tokens[len(begun) :]
