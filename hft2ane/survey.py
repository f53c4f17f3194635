"""The plan for the world as it is: read the manifests, ask the Hub, decide. What `plan` shows and the night does."""

from collections.abc import Sequence
from pathlib import Path

from hft2ane import records
from hft2ane.errors import BadInput, HubUnavailable, Unavailable
from hft2ane.hub import Hub
from hft2ane.manifest import read_manifests
from hft2ane.plan import plan
from hft2ane.records import Job, Wanted


def wanted(manifests: Sequence[Path], organization: str | None, only: Sequence[str] | None) -> list[Wanted]:
    """What the manifests want, or `only` these of it. ManifestError; BadInput: no manifest names one of `only`."""
    found = read_manifests(manifests, organization)
    if missing := sorted(set(only or ()) - {each.id for each in found}):
        raise BadInput(f"no manifest names {', '.join(missing)}")
    return [each for each in found if not only or each.id in only]


def survey(models: Sequence[Wanted], hub: Hub) -> list[Job]:
    """The plan. HubUnavailable: no question about any model was answered."""
    active = [each for each in models if not each.paused]
    upstream = hub.look_all((each.id, each.revision) for each in active)
    silent = [answer for answer in upstream.values() if isinstance(answer, Unavailable)]
    if active and len(silent) == len(upstream):
        raise HubUnavailable(str(silent[0]))
    published = hub.conversions(each.repo for each in active)
    return plan(models, upstream, published)


def begin(folder: Path, job: Job) -> None:
    """A job's folder with its job.json. Of an earlier job only source/ stays: its right files need no download."""
    records.clear(folder, keep="source")
    records.write(folder / "job.json", job)
