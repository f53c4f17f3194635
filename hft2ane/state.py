"""Where runs remember: one JSON file, and a report of each, in one small dataset repo of each organisation.

Reading never fails: what cannot be read is told, and the run goes on as if there were nothing to remember.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC
from typing import Any

from hft2ane import records
from hft2ane.attempts import REMEMBERED, State, rebase
from hft2ane.errors import BadInput, Hft2aneError
from hft2ane.hub import Hub
from hft2ane.records.night import Run
from hft2ane.records.repo import owner_of

REPO = "hft2ane-state"
FILE = "state.json"
RUNS = "runs"


def read(hub: Hub, owners: Iterable[str]) -> tuple[State, list[str]]:
    """What is remembered of these organisations' repos, and warnings."""
    state, warnings = State(), []
    for owner in owners:
        try:
            state = rebase(State(), _parsed(hub.read_data(f"{owner}/{REPO}", FILE)[1]), state)
        except Hft2aneError as err:
            warnings.append(f"{owner}/{REPO} cannot be read, so failures of earlier runs are forgotten: {err}")
    return state, warnings


def write(hub: Hub, before: State, after: State, owners: Iterable[str], run: Run | None = None) -> list[str]:
    """Remember what changed from `before` to `after`, and the report of a `run`: one commit an organisation, none where
    there is neither. Warnings."""
    warnings = []
    for owner in owners:
        old, new = _of(before, owner), _of(after, owner)
        if run is None and old == new:
            continue
        try:
            _write(hub, f"{owner}/{REPO}", old, new, {path_of(run): records.dump(_part(run, owner))} if run else {})
        except Hft2aneError as err:
            warnings.append(f"{owner}/{REPO} cannot be written, so the next run will not know of this one: {err}")
    return warnings


def runs(hub: Hub, owner: str, last: int) -> list[Run]:
    """The reports of the `last` runs, the newest first. Those of other versions of hft2ane are left out."""
    found = []
    paths = (path for path in hub.list_data(f"{owner}/{REPO}") if path.startswith(f"{RUNS}/"))
    for path in sorted(paths, reverse=True)[:last]:
        with contextlib.suppress(BadInput):
            found.append(records.parse(hub.read_data(f"{owner}/{REPO}", path)[1], Run, path))
    return found


def path_of(run: Run) -> str:
    """`runs/2026-11-28T030000Z.json`"""
    return f"{RUNS}/{run.started.astimezone(UTC):%Y-%m-%dT%H%M%SZ}.json"


def _part(run: Run, owner: str) -> Run:
    """What is told of one organisation's repos: all but what needed nothing."""
    mine = [outcome for outcome in run.outcomes if owner_of(outcome.repo) == owner]
    told = tuple(outcome for outcome in mine if outcome.status != "skip")
    failed = tuple(id for id in run.failed if id in {outcome.id for outcome in told})
    return replace(run, outcomes=told, failed=failed, skipped=len(mine) - len(told))


def _write(hub: Hub, repo: str, old: State, new: State, more: Mapping[str, bytes]) -> None:
    def attempt() -> None:
        head, content = hub.read_data(repo, FILE)
        try:
            there = _parsed(content)
        except Hft2aneError:  # told when it was read; nobody can go on with it
            there = State()
        remembered = records.dump(rebase(old, new, there))
        changed = {FILE: remembered} if remembered != content else {}
        # A commit whose answer was lost may have landed.
        if changed or any(hub.read_data(repo, path)[1] != written for path, written in more.items()):
            hub.write_data(repo, {**changed, **more}, parent=head, title="What the run remembers")

    hub.retry(attempt)


def _parsed(content: bytes) -> State:
    return records.parse(content, State, FILE) if content else State()


def _of(state: State, owner: str) -> State:
    """The part about this organisation's repos."""
    parts: dict[str, Any] = {
        name: {repo: value for repo, value in getattr(state, name).items() if owner_of(repo) == owner}
        for name in REMEMBERED
    }
    return State(**parts)
