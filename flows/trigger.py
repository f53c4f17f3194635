"""The night by a Prefect server, asked for from elsewhere: the one that is going, else a new one; waits for its end.

PREFECT_API_URL=https://prefect.example.org/api python -m flows.trigger --since 12
"""

import argparse
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilterExpectedStartTime
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for

from flows.deploy import exit_code, reach
from flows.deployments import GOING, deployment, runs
from flows.patience import patiently
from hft2ane.errors import BadInput

DEPLOYMENT = "nightly/nightly"
POLL = 5.0  # seconds between looks at the run
# Not one that was lost, nor one that found another in its place.
DONE = (StateType.COMPLETED, StateType.FAILED)


def trigger(client: SyncPrefectClient, since: float | None, tell: Callable[[str], object] = print) -> FlowRun:
    """A night, at its end. `since`: hours; one that the server's schedule began since then will do, also when it has
    ended. BadInput: there is no such deployment."""
    night = deployment(client, DEPLOYMENT).id
    seen: set[UUID] = set()
    if run := going(client, night) or (since and scheduled(client, night, since)) or None:
        tell(f"{DEPLOYMENT}: there is one already, {named(run)}")
    else:
        # Not `patiently`: a lost answer would make two.
        run = client.create_flow_run_from_deployment(night)
        tell(f"{DEPLOYMENT}: {named(run)}")
    while True:
        seen.add(run.id)
        ended = wait(client, run.id, tell)
        # Two may begin at once: the later one ends as Cancelled.
        other = going(client, night) if ended.state and ended.state.is_cancelled() else None
        if other is None or other.id in seen:
            return ended
        run = other
        tell(f"{DEPLOYMENT}: another one is going, {named(run)}")


def going(client: SyncPrefectClient, night: UUID) -> FlowRun | None:
    """The run that is under way, or should be by now."""
    due = FlowRunFilterExpectedStartTime(before_=datetime.now(UTC))
    found = runs(client, night, GOING, due)
    return min(found, key=lambda run: GOING.index(run.state_type), default=None)


def scheduled(client: SyncPrefectClient, night: UUID, since: float) -> FlowRun | None:
    """The last run that the server's own schedule made, and that came to its end, well or not."""
    late = FlowRunFilterExpectedStartTime(after_=datetime.now(UTC) - timedelta(hours=since))
    return next((run for run in runs(client, night, DONE, late) if run.auto_scheduled), None)


def wait(client: SyncPrefectClient, id: UUID, tell: Callable[[str], object]) -> FlowRun:
    """The run when it has ended; tells of each state."""
    told = ""
    while True:
        run = patiently(lambda: client.read_flow_run(id))
        if (now := state_of(run)) != told:
            told = now
            tell(f"{datetime.now(UTC):%H:%M:%S} {now}")
        if run.state and run.state.is_final():
            return run
        time.sleep(POLL)


def state_of(run: FlowRun) -> str:
    state = run.state
    return ": ".join(filter(None, (state.name, state.message))) if state else "unknown"


def named(run: FlowRun) -> str:
    return f"{run.name}: {url_for('flow-run', obj_id=run.id)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1: the night failed, was lost, or was cancelled."""
    parser = argparse.ArgumentParser(prog="flows.trigger", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--since",
        type=float,
        metavar="HOURS",
        help="no new night when the server's own schedule has begun one since then",
    )
    options = parser.parse_args(arguments)

    def ask() -> int:
        url = get_current_settings().api.url
        if not url:
            raise BadInput("set PREFECT_API_URL to the server's, e.g. https://prefect.example.org/api")
        with get_client(sync_client=True) as client:
            reach(client, url)
            ended = trigger(client, options.since)
        return 0 if ended.state and ended.state.is_completed() else 1

    return exit_code(ask)


if __name__ == "__main__":
    raise SystemExit(main())
