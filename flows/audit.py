"""The weekly audit: whether what is published is what it says; the night mends what is not.

It measures in a child process without a token, as a conversion does, so it belongs on a machine that converts.
"""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup
from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact

from flows import child
from flows.convert_model import check_lock, turn
from flows.patience import going_on, patiently
from hft2ane import recheck, room
from hft2ane.card.markdown import escape, row
from hft2ane.errors import Hft2aneError
from hft2ane.hub import Hub
from hft2ane.progress import Progress, silent
from hft2ane.recheck import Audited, Checked
from hft2ane.survey import wanted

ARTIFACT = "audit"


class AuditFailed(Hft2aneError):
    """Something published is not what it says; the artifact and the plan say what."""


@flow(name="audit")
def audit(
    manifests: list[str] = ["manifests"],  # noqa: B006 - never changed; as a default it is in the deployment's schema
    organization: str | None = None,
    sample: int | None = None,
    lock: str | None = None,
) -> None:
    """What the manifests want and the Hub has, or `sample` of it, others each day. AuditFailed; Unavailable: the
    surroundings failed on the way. Either way the artifact has what was found, and the plan knows of it.

    `lock`: digest of the lock that is deployed, None: any will do. WorkerMismatch: other versions measure otherwise."""
    check_lock(lock)
    log = get_run_logger()
    models = wanted([Path(path) for path in manifests], organization, None)
    repos = recheck.choose([model.repo for model in models], sample, datetime.now(UTC))

    @contextlib.contextmanager
    def watch(repo: str) -> Iterator[Progress]:
        log.info("checking %s", repo)
        yield silent

    with going_on(str(runtime.flow_run.id)):
        done = recheck.audit(repos, Hub(), build, watch)
        page, about = markdown(done, len(repos)), summary(done, len(repos))
        patiently(lambda: create_markdown_artifact(page, ARTIFACT, description=about))
    for warning in done.warnings:
        log.warning(warning)
    if done.away:
        raise done.away
    if done.untrue:
        raise AuditFailed(summary(done, len(repos)) + ": " + ", ".join(each.repo for each in done.untrue))


def build(folder: Path, progress: Progress) -> None:
    with turn(room.work_folder(), progress):
        child.build(folder, child.Limits(), progress)


def summary(done: Audited, of: int) -> str:
    looked = f"{len(done.found)} of {of} repos looked at" if done.away else f"{of} repos looked at"
    return f"{looked}, {len(done.untrue)} not what they say"


def markdown(done: Audited, of: int) -> str:
    """What is not true first."""
    lines = [
        f"{summary(done, of)}.",
        "",
        "| | repo | commit | PSNR of the worst row, dB: published, now | |",
        "|:--|:--|:--|:--|:--|",
        *(line(each) for each in sorted(done.found, key=lambda each: (not each.problems, each.repo))),
    ]
    if done.away:
        lines += ["", str(escape(done.away))]
    return "\n".join(lines) + "\n"


def line(each: Checked) -> str:
    word = "**untrue**" if each.problems else "true" if each.commit else "nothing there"
    figures = ", ".join(f"{variant} {old:.1f}, {now:.1f}" for variant, old, now in each.measured)
    said = "; ".join((*each.problems, *each.notes))
    return str(row([Markup(word), each.repo, (each.commit or "")[:12], figures, said]))
