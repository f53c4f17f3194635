"""What several machines bring to a night, and what dispatching costs: small models on a real Prefect server.

    .venv/bin/python -m bench.nightly [--models 12] [--workers 3] [--database postgres]

A Hub, the server, a controller and the workers are all on this machine, each worker with a work folder of its own. The
same night is done twice: by one worker, and by all. Figures are medians over models, and ratios within this run: the
machine's cores are shared by everything.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging

from flows.server import Database
from hft2ane import records
from hft2ane.records.night import Run
from tests.conftest import tiny
from tests.island import CONTROL, MACS, Island, until


@dataclass(frozen=True)
class Night:
    """`whole`: seconds from its request to its end; `own`: of each model's own work."""

    workers: int
    whole: float
    own: tuple[float, ...]
    published: int
    runs: int


def measure(folder: Path, models: int, workers: int, database: Database) -> Night:
    folder.mkdir()
    folder.chmod(0o755)
    with Island(folder, database).living() as island:
        island.worker("control", CONTROL)
        for number in range(workers):
            island.worker(f"mac-{number}")
        until(lambda: island.online(MACS) == workers and island.online(CONTROL) == 1, 120, "workers are missing")
        names = [f"model-{number}" for number in range(models)]
        manifest = island.models(names, lambda number: tiny(folder / f"original-{number}", seed=number))
        began = time.monotonic()
        night = island.ended(island.night(manifest), 3600)
        whole = time.monotonic() - began
        if not (night.state and night.state.is_completed()):
            raise RuntimeError(f"the night ended as {night.state}")
        run = records.read(island.folder / "control/work/run.json", Run)
        runs = sum(len(island.conversions(f"ane/{name}-ane")) for name in names)
        published = sum(len(island.hub.tags(f"ane/{name}-ane")) for name in names)
        return Night(workers, whole, tuple(o.seconds for o in run.outcomes), published, runs)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", type=int, default=12)
    options.add_argument("--workers", type=int, default=3)
    options.add_argument("--database", choices=("sqlite", "postgres"), default="postgres")
    given = options.parse_args()
    logging.disable_progress_bar()
    print("workers  models  published  runs  whole s  own s a model, median  beyond it, s a model and worker")
    nights = []
    with tempfile.TemporaryDirectory(prefix="hft2ane-", ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o755)  # so that the database's user may enter
        for workers in (1, given.workers):
            night = measure(Path(place) / f"by-{workers}", given.models, workers, given.database)
            own = statistics.median(night.own)
            beyond = night.whole * workers / given.models - statistics.fmean(night.own)
            figures = f"{night.published:9}  {night.runs:4}  {night.whole:7.0f}  {own:21.1f}  {beyond:33.1f}"
            print(f"{workers:7}  {given.models:6}  {figures}", flush=True)
            nights.append(night)
    one, several = nights
    print(f"{several.workers} workers take {several.whole / one.whole:.0%} of the time of one")


if __name__ == "__main__":
    main()
