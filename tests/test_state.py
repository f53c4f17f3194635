"""Where runs remember: a dataset repo, through the real client, on a Hub on this machine."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hft2ane import state
from hft2ane.attempts import State
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.night import Outcome, Run

ONE = State(blocked={"org/a": "x", "other/b": "y"})
REPO = "datasets/org/hft2ane-state"
COMMIT = "POST .*datasets.*/commit/main"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def hub(local: LocalHub) -> Hub:
    hub = Hub(local.url, local.token)
    hub.waits = (0.0, 0.0)
    return hub


def test_what_is_written_is_read(hub: Hub, local: LocalHub) -> None:
    assert state.read(hub, ["org", "other"]) == (State(), [])
    assert state.write(hub, State(), ONE, ["org", "other"]) == []
    assert state.read(hub, ["org", "other"]) == (ONE, [])
    assert state.read(hub, ["org"]) == (State(blocked={"org/a": "x"}), [])
    assert local.store.repo(REPO).private
    assert len(local.calls(COMMIT)) == 2  # one an organisation


def test_nothing_new_is_no_commit(hub: Hub, local: LocalHub) -> None:
    state.write(hub, State(), ONE, ["org", "other"])
    before = len(local.calls())
    assert state.write(hub, ONE, ONE, ["org", "other"]) == []
    assert len(local.calls()) == before
    assert state.write(hub, State(), ONE, ["org", "other"]) == []  # another run has remembered the same
    assert len(local.calls(COMMIT)) == 2


def test_what_another_run_wrote_meanwhile_stays(hub: Hub) -> None:
    state.write(hub, State(), ONE, ["org"])
    state.write(hub, State(), State(blocked={"org/c": "z"}), ["org"])
    assert state.read(hub, ["org"])[0].blocked == {"org/a": "x", "org/c": "z"}


@pytest.mark.parametrize("fault", [{"drop": "after"}, {"drop": "before"}, {"status": 412}, {"status": 503}], ids=str)
def test_one_commit_whatever_happens_to_it(hub: Hub, local: LocalHub, fault: dict[str, object]) -> None:
    local.fail(COMMIT, times=1, **fault)  # type: ignore[arg-type]
    assert state.write(hub, State(), ONE, ["org"]) == []
    assert len(local.commits(REPO)) == 2  # the Hub's own, and ours
    assert state.read(hub, ["org"])[0].blocked == {"org/a": "x"}


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"schema": 2}', b'{"blocked": {"org/a": 7}}', b"\xff"])
def test_a_broken_memory_costs_patience_only(hub: Hub, local: LocalHub, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    local.add(REPO, tmp_path)
    found, (warning,) = state.read(hub, ["org"])
    assert found == State()
    assert "org/hft2ane-state cannot be read" in warning
    assert state.write(hub, State(), ONE, ["org"]) == []
    assert state.read(hub, ["org"]) == (State(blocked={"org/a": "x"}), [])


def test_a_hub_that_fails_is_a_warning(hub: Hub, local: LocalHub) -> None:
    local.fail("datasets", times=99, status=500)
    assert state.read(hub, ["org"])[0] == State()
    (warning,) = state.write(hub, State(), ONE, ["org"])
    assert "cannot be written, so the next run will not know of this one" in warning


def test_a_token_that_may_not_write_is_a_warning(local: LocalHub) -> None:
    (warning,) = state.write(Hub(local.url, local.read_token), State(), ONE, ["org"])
    assert "cannot be written" in warning


def test_reports_of_runs_are_kept_beside(hub: Hub, local: LocalHub) -> None:
    """Each in the same commit as what is remembered, with an organisation's own repos only, the newest first."""
    assert state.runs(hub, "org", 3) == []
    outcomes = tuple(
        Outcome(f"me/{name}", repo, "create", "new", status)
        for name, repo, status in (("a", "org/a", "failed"), ("b", "other/b", "failed"), ("c", "org/c", "skip"))
    )
    days = [Run(datetime(2026, 11, day, 3, tzinfo=UTC), outcomes, ("me/a", "me/b"), 1.5) for day in (1, 2, 3, 4)]
    for run in days:
        assert state.write(hub, State(), ONE, ["org"], run) == []
    found = state.runs(hub, "org", 3)
    assert [run.started.day for run in found] == [4, 3, 2]
    assert found[0] == replace(days[3], outcomes=outcomes[:1], failed=("me/a",), skipped=1)
    assert len(local.commits(REPO)) == 5  # the Hub's own, and one a run
    assert "runs/2026-11-04T030000Z.json" in local.files(REPO)
