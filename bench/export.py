"""How long the export takes, and how much memory: against the physical floor, and against the stock conversion.

    .venv/bin/python bench/export.py [--runs 3]

The floor is to read the safetensors, round to fp16, and write: no exporter can be quicker. Stock is torch.jit.trace and
coremltools.convert of the same module. The three run in turn, each in a process of its own that has read the file once
before, and figures are CPU seconds without imports and the process's peak memory, all of which is allowed 1.5 times the
checkpoint and 0.5 GB; medians of the runs, and of the ratios in each.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# layers × channels: MiniLM's shape, BERT base, BERT large
SIZES = ((6, 384), (12, 768), (24, 1024))
LENGTH = 128


def floor(folder: Path, out: Path) -> None:
    """Read, round, write."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as weights, (out / "floor.bin").open("wb") as file:
        for name in weights.keys():  # noqa: SIM118 - safe_open is no mapping
            file.write(weights.get_tensor(name).half().numpy().data)


def ours(folder: Path, out: Path) -> None:
    """The product's path: load the original, rewrite, export one package."""
    from hft2ane import export
    from hft2ane.reference import load
    from hft2ane.rewrite import rewrite

    original = load(folder, "feature-extraction")
    metadata = {"author": "", "co.huggingface.exporters.name": "bench"}
    export.write(out / "ours.mlpackage", rewrite(original), [LENGTH], "float16", original, metadata)


def stock(folder: Path, out: Path) -> None:
    """The same module by torch.jit.trace and coremltools.convert."""
    import coremltools
    import numpy as np
    import torch

    from hft2ane.reference import load
    from hft2ane.rewrite import rewrite

    mend_cast()
    module: Any = rewrite(load(folder, "feature-extraction"))
    example = [torch.zeros(1, LENGTH, dtype=torch.int32) for _ in module.inputs]
    traced = torch.jit.trace(module, example, check_trace=False)
    inputs = [coremltools.TensorType(name, (1, LENGTH), np.int32) for name in module.inputs]
    model = coremltools.convert(
        traced, inputs=inputs, minimum_deployment_target=coremltools.target.iOS16, skip_model_load=True
    )
    model.save(str(out / "stock.mlpackage"))


def mend_cast() -> None:
    """coremltools 9.0 cannot fold int() of a constant with numpy 2.4 (apple/coremltools#2633)."""
    import numpy as np
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.mil import Builder as mb

    shipped = ops._cast

    def cast(context: Any, node: Any, dtype: type, name: str) -> None:
        value = ops._get_inputs(context, node, expected=1)[0]
        if value.can_be_folded_to_const():
            context.add(mb.const(val=dtype(np.asarray(value.val).item()), name=node.name), node.name)
        else:
            shipped(context, node, dtype, name)

    ops._cast = cast


WAYS = {"floor": floor, "ours": ours, "stock": stock}


def child(way: str, folder: Path) -> None:
    """One run in this process; prints its figures."""
    import torch

    torch.set_num_threads(1)
    # Imports are not counted.
    if way == "stock":
        import coremltools  # noqa: F401
    if way == "floor":
        import safetensors  # noqa: F401
    else:
        import transformers

        transformers.BertModel  # noqa: B018 - imported when asked for
        import hft2ane.export  # noqa: F401
    with (folder / "model.safetensors").open("rb") as file:
        while file.read(1 << 20):
            pass
    with tempfile.TemporaryDirectory() as out:
        started, wall = time.process_time(), time.monotonic()
        WAYS[way](folder, Path(out))
        seconds, wall = time.process_time() - started, time.monotonic() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"cpu": seconds, "wall": wall, "peak": peak}))


def run(way: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", way, str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def checkpoint(folder: Path, layers: int, channels: int) -> Path:
    """A BERT of this size with random weights, no two norms alike."""
    import torch
    import transformers

    sizes = {"num_hidden_layers": layers, "hidden_size": channels, "intermediate_size": 4 * channels}
    heads = 12 if channels == 384 else channels // 64
    model = transformers.BertModel(transformers.BertConfig(num_attention_heads=heads, **sizes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--child", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child:
        return child(chosen.child[0], Path(chosen.child[1]))
    heads = ("floor s", "ours s", "stock s", "ours/floor", "stock/ours", "peak GB", "allowed GB")
    print(f"{'':10}" + "".join(f"{head:>12}" for head in heads))
    for layers, channels in SIZES:
        with tempfile.TemporaryDirectory() as place:
            folder = checkpoint(Path(place) / "model", layers, channels)
            size = (folder / "model.safetensors").stat().st_size
            rounds = [{way: run(way, folder) for way in WAYS} for _ in range(chosen.runs)]
        cpu = {way: statistics.median(r[way]["cpu"] for r in rounds) for way in WAYS}
        to_floor = statistics.median(r["ours"]["cpu"] / r["floor"]["cpu"] for r in rounds)
        to_stock = statistics.median(r["stock"]["cpu"] / r["ours"]["cpu"] for r in rounds)
        peak, allowed = max(r["ours"]["peak"] for r in rounds) / 1e9, 1.5 * size / 1e9 + 0.5
        figures = (*cpu.values(), to_floor, to_stock, peak, allowed)
        print(
            f"{layers:>2} × {channels:<5}" + "".join(f"{figure:12.2f}" for figure in figures),
            flush=True,
        )
    return None


if __name__ == "__main__":
    main()
