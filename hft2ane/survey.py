"""The plan for the world as it is: read the manifests, ask the Hub, decide. What `plan` shows and the night does."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hft2ane import attempts, disk, keys, measurements, records, state, waves
from hft2ane.attempts import State
from hft2ane.errors import BadInput, Hft2aneError, HubUnavailable, ModelNotFound, TokenRefused, Unavailable
from hft2ane.hub import Hub
from hft2ane.manifest.read import read_manifests
from hft2ane.plan import Now, Released, Settled, World, plan, subject, wave
from hft2ane.records.job import Job
from hft2ane.records.night import Outcome
from hft2ane.records.recipe import Wanted
from hft2ane.records.release import Conversion
from hft2ane.records.repo import Listed, owner_of
from hft2ane.records.source import Upstream
from hft2ane.waves import Wave, belongs

MARK = "apple-neural-engine"  # a tag of every card of ours


@dataclass(frozen=True)
class Survey:
    """A plan, and what it was made of. `complete`: of all models that the manifests want.

    `settled`: digests for the next run, by repo, of what those are that it says skip to."""

    jobs: list[Job]
    world: World
    models: Sequence[Wanted]
    complete: bool
    settled: Mapping[str, str]
    wave: Wave
    warnings: tuple[str, ...]


def wanted(manifests: Sequence[Path], organization: str | None, only: Sequence[str] | None) -> list[Wanted]:
    """What the manifests want, or `only` these of it. ManifestError; BadInput: no manifest names one of `only`."""
    found = read_manifests(manifests, organization)
    if missing := sorted(set(only or ()) - {each.id for each in found}):
        raise BadInput(f"no manifest names {', '.join(missing)}")
    return [each for each in found if not only or each.id in only]


def survey(models: Sequence[Wanted], hub: Hub, complete: bool = True, limit: int = waves.LIMIT) -> Survey:
    """The plan. `complete`: these are all models that the manifests want, so what else is published is orphaned;
    `limit`: models of a wave.

    HubUnavailable: no question about any model was answered. TokenRefused: with this token none is."""
    active = [each for each in models if not each.paused]
    upstream = hub.look_all((each.id, each.revision) for each in active)
    if refused := next((answer for answer in upstream.values() if isinstance(answer, TokenRefused)), None):
        raise refused
    silent = [answer for answer in upstream.values() if isinstance(answer, Unavailable)]
    if active and len(silent) == len(upstream):
        raise HubUnavailable(str(silent[0]))
    remembered, warnings = state.read(hub, owners(models))
    heads: dict[str, Listed] = {}
    for owner in owners(models):
        try:
            heads |= hub.repos(owner)
        except Hft2aneError as err:
            warnings.append(f"the repos of {owner} cannot be listed, so each is looked at, and none for orphans: {err}")
    today = keys.today()
    measured, wrong = measurements.by_repo(measurements.FOLDER)
    warnings += wrong
    settled = {
        each.repo: keys.settled(
            each, found, heads[each.repo].commit, today, measurements.named_all(measured.get(each.repo, ()))
        )
        for each in active
        if isinstance(found := upstream[each.id], Upstream) and each.repo in heads
    }
    same = {
        repo for repo, digest in settled.items() if remembered.settled.get(repo) == digest
    } - remembered.untrue.keys()
    published: dict[str, Released] = dict.fromkeys(same, Settled())
    published |= hub.conversions(each.repo for each in active if each.repo not in same)
    others = unwanted(models, heads, hub) if complete else {}
    commits = {repo: head.commit for repo, head in heads.items()}
    world = World(upstream, published, others, commits, remembered, datetime.now(UTC), measured)
    jobs = plan(models, world, limit=limit)
    return Survey(jobs, world, models, complete, settled, wave(jobs, world), tuple(warnings))


def unwanted(models: Sequence[Wanted], heads: Mapping[str, Listed], hub: Hub) -> dict[str, str]:
    """Repos that were published from here and are not retired, with the originals' ids."""
    repos = {each.repo.lower() for each in models}
    ours = (repo for repo, head in heads.items() if MARK in head.tags and repo.lower() not in repos)
    found = hub.conversions(ours)
    return {
        repo: record.source.id
        for repo, record in found.items()
        if isinstance(record, Conversion) and not record.retired
    }


def owners(models: Sequence[Wanted]) -> list[str]:
    return sorted({owner_of(each.repo) for each in models})


def remember(found: Survey, outcomes: Sequence[Outcome], now: datetime) -> State:
    """What the next run should know of this one."""
    before, jobs, code = found.world.state, {job.repo: job for job in found.jobs}, Now()
    kept = {repo for each in (before.attempts, before.blocked) for repo in each if repo in jobs or not found.complete}
    failures = {repo: value for repo, value in before.attempts.items() if repo in kept}
    blocked = {repo: why for repo, why in before.blocked.items() if repo in kept and repo not in jobs}
    paused = {model.repo for model in found.models if model.paused}
    for outcome in outcomes:
        repo = outcome.repo
        if outcome.status == "failed":
            tried, error = subject(jobs[repo], outcome.family, code), outcome.error or ""
            failures[repo] = attempts.failed(failures.get(repo), tried, outcome.family, outcome.kind or "", error, now)
        elif outcome.status == "blocked" and repo not in paused:
            blocked[repo] = attempts.signature("blocked", outcome.why)
        elif outcome.status in ("published", "unchanged", "skip"):
            failures.pop(repo, None)
    skipped = {outcome.repo for outcome in outcomes if outcome.status == "skip"}
    settled = {repo: digest for repo, digest in found.settled.items() if repo in skipped}
    if not found.complete:
        settled = {**{repo: digest for repo, digest in before.settled.items() if repo not in jobs}, **settled}
    done = {outcome.repo for outcome in outcomes if outcome.status in ("published", "unchanged")}
    renewed = {repo: digest for repo, digest in before.renewed.items() if digest == code.today}
    renewed |= {repo: code.today for repo in done if belongs(jobs[repo])}
    untrue = {repo: value for repo, value in before.untrue.items() if repo not in done}
    return State(failures, blocked, gone(found), settled, renewed, untrue)


def gone(found: Survey) -> dict[str, datetime]:
    """Since when the originals of published models are not found."""
    world, asked = found.world, {model.repo for model in found.models}
    lost = {
        model.repo: world.state.gone.get(model.repo, world.now)
        for model in found.models
        if isinstance(world.upstream.get(model.id), ModelNotFound) and world.published[model.repo] is not None
    }
    others = {repo: since for repo, since in world.state.gone.items() if repo not in asked and not found.complete}
    return others | lost


def model_type(folder: Path) -> str:
    """Of the original in a job's folder, of a pair with those of its parts: `encoder-decoder/bert/bert`; "" where none
    can be read."""
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((folder / "source" / "config.json").read_bytes())
        if isinstance(config, dict):
            parts = (config, config.get("encoder"), config.get("decoder"))
            found = (part.get("model_type") for part in parts if isinstance(part, dict))
            return "/".join(name for name in found if isinstance(name, str))
    return ""


def folder_of(work: Path, job: Job) -> Path:
    """Where a job is done: `work/ane--all-MiniLM-L6-v2-ane`."""
    return work / job.repo.replace("/", "--")


def begin(folder: Path, job: Job) -> None:
    """A job's folder with its job.json. Of an earlier job only source/ stays: its right files need no download."""
    disk.clear(folder, keep="source")
    records.write(folder / "job.json", job)
