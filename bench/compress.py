"""How long it takes to compress the weights of a BERT base (12 × 768, random), by variant, and to choose mixed ones.

.venv/bin/python bench/compress.py
"""

import time

import numpy as np
import torch
import transformers

from hft2ane.compress import Array, Palettized, compress
from hft2ane.families.bert import TASKS
from hft2ane.mixed import FINE, Row, mix
from hft2ane.records.recipe import FORMS

LAYERS, CHANNELS, WORDS, POSITIONS = 12, 768, 30522, 512


def main() -> None:
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        return (rng.standard_normal(shape, dtype=np.float32) * 0.04).astype(np.float16)

    attention = [weight(CHANNELS, CHANNELS, 1, 1) for _ in range(4)]
    layer = [*attention, weight(4 * CHANNELS, CHANNELS, 1, 1), weight(CHANNELS, 4 * CHANNELS, 1, 1)]
    tables = [weight(WORDS, CHANNELS), weight(POSITIONS, CHANNELS)]
    for variant in FORMS[1:]:
        started, busy = time.perf_counter(), time.process_time()
        for tensor, table in [*((each, False) for each in layer * LAYERS), *((each, True) for each in tables)]:
            made = compress(tensor, variant, table)
            if isinstance(made, Palettized):
                made.packed  # noqa: B018 - for the time that it takes
        print(f"{variant:13} {time.perf_counter() - started:5.2f} s, {time.process_time() - busy:5.2f} s CPU")
    choose()


def choose() -> None:
    """mixed-4, from rows as the protocol has them for 128 tokens: 21 short texts and 8 of random ids."""
    torch.manual_seed(0)
    module = TASKS["feature-extraction"](transformers.BertConfig()).eval().requires_grad_(False)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    counts = [FINE] * 14 + [2 * FINE] * 6 + [5 * FINE] + [128] * 4 + [112, 80, 48, 16]
    rows = []
    for i, count in enumerate(counts):
        ids = torch.randint(0, WORDS, (1, count), dtype=torch.int32)
        tensors = (ids, torch.ones_like(ids), torch.zeros_like(ids))
        rows.append(Row(tensors, torch.ones(count, dtype=torch.bool), {(128, "texts" if i < 21 else "random ids")}))
    batch = tuple(torch.cat([row.tensors[i][:, :FINE] for row in rows]) for i in range(3))
    started, busy = time.perf_counter(), time.process_time()
    found = mix(module, "feature-extraction", "mixed-4", rows, batch)
    print(
        f"choosing mixed-4: {time.perf_counter() - started:.1f} s, {time.process_time() - busy:.1f} s CPU; "
        f"{found.before} dB, with more bits for {len(found.raised)} layers {found.after} dB"
    )


if __name__ == "__main__":
    main()
