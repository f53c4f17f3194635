"""How long it takes to compress the weights of a BERT base (12 × 768, random), by variant.

.venv/bin/python bench/compress.py
"""

import time

import numpy as np

from hft2ane.compress import Array, Palettized, compress
from hft2ane.records import VARIANTS

LAYERS, CHANNELS, WORDS, POSITIONS = 12, 768, 30522, 512


def main() -> None:
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        return (rng.standard_normal(shape, dtype=np.float32) * 0.04).astype(np.float16)

    attention = [weight(CHANNELS, CHANNELS, 1, 1) for _ in range(4)]
    layer = [*attention, weight(4 * CHANNELS, CHANNELS, 1, 1), weight(CHANNELS, 4 * CHANNELS, 1, 1)]
    tables = [weight(WORDS, CHANNELS), weight(POSITIONS, CHANNELS)]
    for variant in VARIANTS[1:]:
        started, busy = time.perf_counter(), time.process_time()
        for tensor, table in [*((each, False) for each in layer * LAYERS), *((each, True) for each in tables)]:
            made = compress(tensor, variant, table)
            if isinstance(made, Palettized):
                made.packed  # noqa: B018 - for the time that it takes
        print(f"{variant:13} {time.perf_counter() - started:5.2f} s, {time.process_time() - busy:5.2f} s CPU")


if __name__ == "__main__":
    main()
