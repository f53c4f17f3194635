"""What people do to a published repo by hand: take it out of service. Nothing of it is deleted, its tags stay."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from hft2ane import card, layout, publish, records, source
from hft2ane.errors import BadInput
from hft2ane.hub import Hub
from hft2ane.progress import Progress, silent
from hft2ane.records.job import Job
from hft2ane.records.recipe import UNGATED
from hft2ane.records.release import Conversion, Published
from hft2ane.records.source import Source


def retire(repo: str, reason: str, hub: Hub, progress: Progress = silent) -> Published:
    """A new version of the release whose card and record say that it is retired, and why. Does nothing the second time.

    The original is not needed, since it may be gone. ModelNotFound; BadInput: the repo has no record of ours."""
    with tempfile.TemporaryDirectory(prefix="hft2ane-") as place:
        folder = Path(place)
        source.take_published(folder, hub, repo, progress)
        if not (folder / "previous" / "conversion.json").is_file():
            raise BadInput(f"{repo} has no conversion.json, so it was not published from here: name another")
        old = records.read(folder / "previous" / "conversion.json", Conversion)
        job = Job(
            "card", f"retired: {reason}", old.source.id, repo, old.source.commit, recipe=old.recipe, gates=UNGATED
        )
        job = replace(job, license=old.license, major=old.major, retired=reason)
        shaping = layout.shaping(old.source.files)
        kept = tuple(file for file in old.source.files if file not in shaping)
        for file in layout.legal(kept):
            (folder / "source").mkdir(exist_ok=True)
            shutil.copyfile(folder / "previous" / file.path, folder / "source" / file.path)
        records.write(folder / "job.json", job)
        records.write(folder / "source.json", Source(old.source.id, old.source.commit, kept, old.source.card))
        card.refresh(folder, progress)
        return publish.publish(folder, hub, progress)
