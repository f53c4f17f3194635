"""Where runs remember: one JSON file in one small dataset repo of each organisation, one commit a run.

Reading never fails: what cannot be read is told, and the run goes on as if there were nothing to remember.
"""

from collections.abc import Iterable
from typing import Any

from hft2ane import records
from hft2ane.attempts import REMEMBERED, State, rebase
from hft2ane.errors import Hft2aneError
from hft2ane.hub import Hub

REPO = "hft2ane-state"
FILE = "state.json"


def read(hub: Hub, owners: Iterable[str]) -> tuple[State, list[str]]:
    """What is remembered of these organisations' repos, and warnings."""
    state, warnings = State(), []
    for owner in owners:
        try:
            state = rebase(State(), _parsed(hub.read_data(f"{owner}/{REPO}", FILE)[1]), state)
        except Hft2aneError as err:
            warnings.append(f"{owner}/{REPO} cannot be read, so failures of earlier runs are forgotten: {err}")
    return state, warnings


def write(hub: Hub, before: State, after: State, owners: Iterable[str]) -> list[str]:
    """Remember what changed from `before` to `after`: a commit an organisation where something did. Warnings."""
    warnings = []
    for owner in owners:
        old, new = _of(before, owner), _of(after, owner)
        if old == new:
            continue
        try:
            _write(hub, f"{owner}/{REPO}", old, new)
        except Hft2aneError as err:
            warnings.append(f"{owner}/{REPO} cannot be written, so the next run will not know of this one: {err}")
    return warnings


def _write(hub: Hub, repo: str, old: State, new: State) -> None:
    def attempt() -> None:
        head, content = hub.read_data(repo, FILE)
        try:
            there = _parsed(content)
        except Hft2aneError:  # told when it was read; nobody can go on with it
            there = State()
        wanted = records.dump(rebase(old, new, there))
        if wanted != content:
            hub.write_data(repo, FILE, wanted, parent=head, title="What the run remembers")

    hub.retry(attempt)


def _parsed(content: bytes) -> State:
    return records.parse(content, State, FILE) if content else State()


def _of(state: State, owner: str) -> State:
    """The part about this organisation's repos."""
    parts: dict[str, Any] = {
        name: {repo: value for repo, value in getattr(state, name).items() if repo.partition("/")[0] == owner}
        for name in REMEMBERED
    }
    return State(**parts)
