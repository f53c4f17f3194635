"""How long planning takes, what it asks the Hub, and how much memory it needs, for many models of which none changed.

    .venv/bin/python bench/plan.py [--entries 100 1000]

The Hub is one on this machine, in the parent process. A child plans twice, each time in a process of its own and with
its start counted: the first reads every published record, the second only what the first did not settle. Records
are as those of real releases; the originals' weights are a few bytes, since planning never reads them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def fill(local: Any, folder: Path, entries: int) -> Path:
    """Originals, and what is published of them; the manifest."""
    from hft2ane import keys, layout, records
    from hft2ane.hub import Hub
    from hft2ane.records.package import Function, Package, Tensor
    from hft2ane.records.recipe import Recipe
    from hft2ane.records.release import Conversion
    from hft2ane.records.source import Source

    card = "---\nlicense: mit\nlanguage: en\n---\n"
    original = {"config.json": "{}", "README.md": card, "tokenizer.json": "{}", "vocab.txt": "a", "modules.json": "[]"}
    ours = "---\nlicense: mit\ntags: [coreml, apple-neural-engine]\n---\n"
    hub, code, presentation = Hub(local.url, local.token), keys.code_digest("bert"), keys.presentation_digest()
    shape = Tensor("input_ids", (1, 128), "int32", "Token ids from the model's tokenizer, padded on the right.")
    function = Function("main", 128, (shape, shape, shape), (shape,))
    lines = ["defaults: {publish: {organization: org}}", "models:"]
    place = folder / "files"
    for n in range(entries):
        model, repo = f"up/m{n}", f"org/m{n}-ane"
        write(place / "up", {**original, "model.safetensors": f"weights {n}"})
        local.add(model, place / "up")
        found = hub.look(model)
        files = layout.select(found.files)
        package = Package("float16", "m.float16.mlpackage", "0" * 64, 1, "iOS 16 / macOS 13", (function,), "main")
        verify_key = keys.verify_key({"float16": package.digest}, keys.PROTOCOL, keys.BACKEND)
        recipe = Recipe()
        record = Conversion(
            source=Source(model, found.commit, files, found.card),
            recipe=recipe,
            family="bert",
            task="fill-mask",
            original="BertForMaskedLM",
            license="mit",
            packages=(package,),
            labels=(),
            problem=None,
            convert_key=keys.convert_key(files, recipe, "bert", code=code, versions=keys.toolchain()),
            verify_key=verify_key,
            card_key=keys.card_key(found.card, layout.legal(files), verify_key, presentation),
            protocol=keys.PROTOCOL,
            psnr={"rewrite": 120.0, "float16": 70.0},
            toolchain=keys.toolchain(),
            hft2ane="0",
        )
        write(place / "ours", {"README.md": ours, "conversion.json": records.dump(record).decode()})
        hub.tag(repo, "v1", local.add(repo, place / "ours"))
        lines.append(f"  - {model}")
    write(folder, {"models.yaml": "\n".join(lines) + "\n"})
    return folder / "models.yaml"


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def child(manifest: Path) -> None:
    """One run that finds nothing to do and remembers it; prints its figures."""
    from hft2ane import state
    from hft2ane.hub import Hub
    from hft2ane.records.night import Outcome
    from hft2ane.survey import owners, remember, survey, wanted

    hub, models = Hub(), wanted([manifest], None, None)
    found = survey(models, hub)
    if changed := [job for job in found.jobs if job.action != "skip"]:
        raise SystemExit(f"nothing should be to do, but: {changed[0]}")
    outcomes = [Outcome(job.id, job.repo, "skip", job.why, "skip") for job in found.jobs]
    after = remember(found, outcomes, datetime.now(UTC))
    state.write(hub, found.world.state, after, owners(models))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak": peak}))


def run(manifest: Path, local: Any) -> tuple[float, int, float]:
    """(seconds from start to end, requests, peak memory in MB)"""
    before, started = len(local.calls()), time.monotonic()
    environment = {**os.environ, "HF_ENDPOINT": local.url, "HF_TOKEN": local.token}
    command = [sys.executable, __file__, "--child", str(manifest)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    seconds = time.monotonic() - started
    return seconds, len(local.calls()) - before, json.loads(done.stdout.splitlines()[-1])["peak"] / 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--entries", type=int, nargs="+", default=[100, 1000])
    options.add_argument("--child", type=Path, metavar="MANIFEST", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child:
        return child(chosen.child)
    from hft2ane.localhub import LocalHub

    print(f"{'entries':>8} {'run':>7} {'s':>7} {'requests':>9} {'a model':>8} {'peak MB':>8}")
    for entries in chosen.entries:
        with tempfile.TemporaryDirectory() as place, LocalHub(Path(place) / "hub") as local:
            manifest = fill(local, Path(place), entries)
            for which in ("first", "second"):
                seconds, requests, peak = run(manifest, local)
                share = requests / entries
                print(f"{entries:>8} {which:>7} {seconds:>7.1f} {requests:>9} {share:>8.2f} {peak:>8.0f}", flush=True)
    return None


if __name__ == "__main__":
    main()
