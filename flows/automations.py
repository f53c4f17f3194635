"""What the server does by itself: give up runs whose machine is lost, and say so when that is a night, or none ends.

A run that nobody gives up stays RUNNING for ever (its worker was stopped, its machine lost power), keeps the next
night from beginning, and is not dispatched again. All of it is about our deployments by their ids: a shared server
may have other people's runs, with slower heartbeats, and of a heartbeat's deployment the event has no name.
"""

from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from prefect.automations import AutomationCore, DoNothing, EventTrigger, Posture, SendNotification
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import BlockDocument, StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState
from prefect.events.schemas.automations import Automation
from prefect.events.schemas.events import ResourceSpecification

from flows.patience import SILENCE

HEARTBEAT = 30  # seconds: Prefect's least; the deployments ask their runs for it
LOST = timedelta(seconds=3 * HEARTBEAT)
RETURN = timedelta(minutes=2)  # for a run that was given up and is not lost: see patience.going_on
STUCK = timedelta(minutes=10)  # to fetch the code and start Python
NIGHT = timedelta(hours=26)  # one is due every 24
BLOCK = "hft2ane-night"

# The last two are no states: code is fetched between pick-up and start.
BEGUN = {
    "prefect.flow-run.Pending",
    "prefect.flow-run.Submitting",
    "prefect.flow-run.InfrastructurePending",
    "prefect.flow-run.pull-step.executed",
    "prefect.flow-run.pull-step.failed",
}
# Not Cancelled: that is also a night that found another one in its place.
ENDED = {"prefect.flow-run.Completed", "prefect.flow-run.Failed", "prefect.flow-run.Crashed"}


def wanted(deployments: Mapping[str, UUID], block: UUID | None) -> list[AutomationCore]:
    """`deployments`: ids by `flow/deployment`; `block`: the notification block that is told of a missing night."""
    return [
        crash("crash-lost-runs", {"prefect.flow-run.heartbeat"}, LOST, deployments, "worker or machine lost"),
        crash("crash-stuck-pending", BEGUN, STUCK, deployments, "worker lost between pick-up and start"),
        no_night(NIGHT, deployments["nightly/nightly"], block),
        lost_night(RETURN, deployments["nightly/nightly"], block),
    ]


def crash(name: str, after: set[str], within: timedelta, of: Mapping[str, UUID], why: str) -> AutomationCore:
    """A run of which there was one of `after`, and then nothing, is CRASHED."""
    text = f"{SILENCE} {within.total_seconds():g} s: {why}."
    return AutomationCore(
        name=name,
        description=text,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=related(*of.values()),
            for_each={"prefect.resource.id"},
            after=after,
            expect={"prefect.flow-run.*"},
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name=None, message=text, force=False)],
    )


def no_night(within: timedelta, deployment: UUID, block: UUID | None) -> AutomationCore:
    """The dead man's handle. `after` is what is expected, so the time runs from the last end of a night: with `expect`
    alone Prefect counts in windows that follow one another, and would tell a day or two late. Without `for_each` it
    runs from the beginning too, should there never be a first night."""
    hours = f"{within.total_seconds() / 3600:g} hours"
    text = f"No run of nightly/nightly has ended for {hours}: look at the control pool's worker and at the server."
    return AutomationCore(
        name="no-night",
        description=text,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=related(deployment),
            for_each=set(),
            after=ENDED,
            expect=ENDED,
            threshold=1,
            within=within,
        ),
        actions=[tell(block, f"hft2ane: no night for {hours}", text)],
    )


def lost_night(within: timedelta, deployment: UUID, block: UUID | None) -> AutomationCore:
    """Other nights tell how they ended; one that is lost cannot, and for `no_night` it has ended. Nor is there a sign
    of it any more."""
    text = (
        "The run of nightly/nightly was lost with its process or its machine: look at the control pool's worker. What "
        "it had begun is published all the same, and the next night plans again."
    )
    return AutomationCore(
        name="lost-night",
        description=text,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=related(deployment),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.Crashed"},
            expect={"prefect.flow-run.*"},
            threshold=1,
            within=within,
        ),
        actions=[tell(block, "hft2ane: a night was lost", text)],
    )


def tell(block: UUID | None, subject: str, text: str) -> ActionTypes:
    return SendNotification(block_document_id=block, subject=subject, body=text) if block else DoNothing()


def related(*deployments: UUID) -> ResourceSpecification:
    ids = [f"prefect.deployment.{id}" for id in sorted(deployments)]
    return ResourceSpecification({"prefect.resource.role": ["deployment"], "prefect.resource.id": ids})


def ensure(client: SyncPrefectClient, deployments: Mapping[str, UUID]) -> list[str]:
    """The server has each of `wanted` once. What was done, a line each. One that is as it should be is left alone, and
    so is whether it is enabled, which is the operator's business."""
    block = notification_block(client)
    lines = []
    for each in wanted(deployments, block.id if block else None):
        there = client.read_automations_by_name(each.name)
        if not there:
            client.create_automation(each)
            lines.append(f"automation {each.name}: created")
        elif same(there[0], each):
            lines.append(f"automation {each.name}: as before")
        else:
            client.update_automation(there[0].id, each.model_copy(update={"enabled": there[0].enabled}))
            lines.append(f"automation {each.name}: updated")
        for twin in there[1:]:
            client.delete_automation(twin.id)
            lines.append(f"automation {each.name}: a second one of that name is deleted")
    if not block:
        how = f"SlackWebhook(url='https://hooks.slack.com/...').save('{BLOCK}')"
        lines.append(
            f"Nobody will be told of nights, nor of missing ones: there is no notification block {BLOCK}. Make it: "
            f'python -c "from prefect.blocks.notifications import SlackWebhook; {how}", and deploy again.'
        )
    return lines


def same(there: Automation, wanted: AutomationCore) -> bool:
    def said(one: AutomationCore) -> object:
        return one.model_dump(include={"description", "trigger", "actions"})

    return said(there) == said(wanted)


def notification_block(client: SyncPrefectClient) -> BlockDocument | None:
    """By name alone: of whichever type it is, as long as it can notify."""
    answer = client.request(
        "POST",
        "/block_documents/filter",
        json={
            "block_documents": {"name": {"any_": [BLOCK]}},
            "block_schemas": {"block_capabilities": {"all_": ["notify"]}},
        },
    )
    found = answer.json()
    return BlockDocument.model_validate(found[0]) if found else None
