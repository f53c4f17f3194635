"""How long the catalogue of a thousand models takes, and what it asks the Hub: at first, again, and after one change.

    .venv/bin/python -m bench.site [--models 1000]

The releases are made from records (tests/releases.py), with two variants each, on a Hub on this machine.
"""

import argparse
import tempfile
import time
from pathlib import Path

from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.site import build
from tests.releases import publish, release


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--models", type=int, default=1000)
    models = options.parse_args().models
    with tempfile.TemporaryDirectory() as folder, LocalHub(Path(folder) / "hub") as local:
        hub, out = Hub(local.url, local.token), Path(folder) / "site"
        for n in range(models):
            publish(local, hub, release(f"owner/some-model-{n}-base", variants=("float16", "int8")), Path(folder))
        for what in ("first", "again", "one changed"):
            if what == "one changed":
                publish(local, hub, release("owner/some-model-0-base", license="mit"), Path(folder))
            before, clock, cpu = len(local.calls()), time.monotonic(), time.process_time()
            build(hub, "org", [], out, 14, images=False)
            wall, spent, asked = time.monotonic() - clock, time.process_time() - cpu, len(local.calls()) - before
            print(f"{what}: {wall:.1f} s, {spent:.1f} s of CPU with the Hub's, {asked} requests")
        size = sum((out / name).stat().st_size for name in ("index.html", "site.css", "site.js"))
        whole = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        print(f"index.html with style and script: {size / 1e3:.0f} kB; the whole site: {whole / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
