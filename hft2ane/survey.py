"""The plan for the world as it is: read the manifests, ask the Hub, decide. What `plan` shows and the night does."""

from collections.abc import Sequence
from pathlib import Path

from hft2ane import records
from hft2ane.errors import BadInput, HubUnavailable, Unavailable
from hft2ane.hub import Hub
from hft2ane.manifest import read_manifests
from hft2ane.plan import World, plan
from hft2ane.records import Conversion, Job, Wanted

MARK = "apple-neural-engine"  # a tag of every card of ours


def wanted(manifests: Sequence[Path], organization: str | None, only: Sequence[str] | None) -> list[Wanted]:
    """What the manifests want, or `only` these of it. ManifestError; BadInput: no manifest names one of `only`."""
    found = read_manifests(manifests, organization)
    if missing := sorted(set(only or ()) - {each.id for each in found}):
        raise BadInput(f"no manifest names {', '.join(missing)}")
    return [each for each in found if not only or each.id in only]


def survey(models: Sequence[Wanted], hub: Hub, complete: bool = True) -> list[Job]:
    """The plan. `complete`: these are all models that the manifests want, so what else is published is orphaned.

    HubUnavailable: no question about any model was answered."""
    active = [each for each in models if not each.paused]
    upstream = hub.look_all((each.id, each.revision) for each in active)
    silent = [answer for answer in upstream.values() if isinstance(answer, Unavailable)]
    if active and len(silent) == len(upstream):
        raise HubUnavailable(str(silent[0]))
    published = hub.conversions(each.repo for each in active)
    return plan(models, World(upstream, published, unwanted(models, hub) if complete else {}))


def unwanted(models: Sequence[Wanted], hub: Hub) -> dict[str, str]:
    """Repos in the organisations of the manifests that were published from here, with the originals' ids."""
    repos = {each.repo.lower() for each in models}
    listed = [repo for owner in owners(models) for repo, head in hub.repos(owner).items() if MARK in head.tags]
    records = hub.conversions(repo for repo in listed if repo.lower() not in repos)
    return {repo: found.source.id for repo, found in records.items() if isinstance(found, Conversion)}


def owners(models: Sequence[Wanted]) -> list[str]:
    return sorted({each.repo.partition("/")[0] for each in models})


def begin(folder: Path, job: Job) -> None:
    """A job's folder with its job.json. Of an earlier job only source/ stays: its right files need no download."""
    records.clear(folder, keep="source")
    records.write(folder / "job.json", job)
