"""A deployment and its runs, as the server knows them."""

from collections.abc import Sequence
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from flows.patience import patiently
from hft2ane.errors import BadInput

# A run that goes on by itself, the furthest first. One that is being cancelled does not, and nobody may be there to end
# it.
GOING = (StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED)


def deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    """By `flow/deployment`. BadInput: there is none."""
    try:
        return patiently(lambda: client.read_deployment_by_name(name))
    except ObjectNotFound as err:
        raise BadInput(f"the server has no deployment {name}: `make deploy` makes it") from err


def runs(
    client: SyncPrefectClient,
    deployment: UUID,
    types: Sequence[StateType],
    expected: FlowRunFilterExpectedStartTime | None = None,
) -> list[FlowRun]:
    """Those in a state of these types, due when `expected` says, the latest due first; the server gives 200 at most."""
    states = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
    return patiently(
        lambda: client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
            flow_run_filter=FlowRunFilter(state=states, expected_start_time=expected),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
    )
