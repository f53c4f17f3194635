"""What evaluating a saved package costs beside running the module that it was exported from.

    python bench/evaluate.py [--layers 12] [--width 768] [--tokens 128] [--rounds 15]

A BERT of this size with random weights is exported as it would be published, read back, and both are run in turn, so
that a busy machine slows both. Printed: medians, the ratio of the medians, and the least of each.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it says at import what is not on this system

import torch  # noqa: E402 - after its logger is set
from transformers import BertConfig  # noqa: E402

from hft2ane import export, package  # noqa: E402
from hft2ane.families.bert import FeatureExtractor  # noqa: E402
from hft2ane.mil import Program, open_package  # noqa: E402
from hft2ane.psnr import psnr  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 12), ("width", 768), ("tokens", 128), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    module = FeatureExtractor(
        BertConfig(
            num_hidden_layers=options.layers,
            hidden_size=options.width,
            num_attention_heads=options.width // 64,
            intermediate_size=4 * options.width,
        )
    ).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.mlpackage"
        about = export.INPUTS | export.OUTPUTS
        program, _ = export.build(module, [options.tokens], export.SINGLE)
        package.write(path, program, "bench", about, {"author": ""})
        began = time.perf_counter()
        saved = open_package(path)
        opened = time.perf_counter() - began
        measure(module, saved, options.tokens, options.rounds, opened)


def measure(module: Any, saved: Program, tokens: int, rounds: int, opened: float) -> None:
    inputs = {name: torch.randint(0, 2, (1, tokens), dtype=torch.int32) for name in module.inputs}
    inputs["input_ids"] = torch.randint(0, 30000, (1, tokens), dtype=torch.int32)
    inputs["attention_mask"] = torch.ones(1, tokens, dtype=torch.int32)
    arrays = {name: each.numpy() for name, each in inputs.items()}

    def eager() -> Any:
        with torch.inference_mode():
            return module(*inputs.values())

    def evaluated() -> Any:
        return saved.evaluate(arrays)

    began = time.perf_counter()
    first = evaluated()
    warm = time.perf_counter() - began
    reference = eager()
    took: dict[Callable[[], Any], list[float]] = {eager: [], evaluated: []}
    for _ in range(rounds):
        for call, seconds in took.items():
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
    medians = {call: statistics.median(seconds) for call, seconds in took.items()}
    for call, seconds in took.items():
        print(f"{call.__name__:10} median {medians[call] * 1e3:7.1f} ms, least {min(seconds) * 1e3:7.1f} ms")
    ratio, least = medians[evaluated] / medians[eager], min(took[evaluated]) / min(took[eager])
    print(f"ratio      median {ratio:.2f}, least {least:.2f}   ({torch.get_num_threads()} threads, {rounds} rounds)")
    print(f"once       open {opened:.2f} s, first call {warm:.2f} s")
    close = psnr(reference[0].double().numpy(), first[next(iter(first))].astype("float64"))
    print(f"PSNR       {close:.1f} dB")


if __name__ == "__main__":
    main()
