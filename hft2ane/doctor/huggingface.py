"""The Hub: whether it answers, its clock, and what the token may do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime

from hft2ane.doctor.check import Check, ok, problem, warning
from hft2ane.errors import Hft2aneError
from hft2ane.hub import Hub

SKEW = 60.0


def checks(hub: Hub, owners: Sequence[str]) -> list[Check]:
    before = datetime.now(UTC)
    try:
        theirs = hub.clock()
    except Hft2aneError as err:
        return [problem("Hub", str(err), "see whether the network or the Hub is down: nothing is lost by waiting")]
    return [ok("Hub", f"{hub.page} answers"), clock(before, theirs, datetime.now(UTC)), token(hub, owners)]


def clock(before: datetime, theirs: datetime, after: datetime) -> Check:
    """By the Hub's, which was read between two times of ours."""
    away = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    if away > SKEW:
        todo = "set the clock by the network: what failed waits by this clock"
        return warning("clock", f"{away:.0f} s from the Hub's", todo)
    return ok("clock", f"within {SKEW:.0f} s of the Hub's")


def token(hub: Hub, owners: Sequence[str]) -> Check:
    renew = "make a token that may write to them, and put it as HF_TOKEN into the worker's environment file"
    try:
        account = hub.account()
    except Hft2aneError as err:
        return problem("token", str(err), renew)
    whose = f"{account.name}'s"
    if account.writes is None:
        return warning("token", f"{whose}; the Hub does not say where it may write", "see that it may: " + renew)
    if lacking := [owner for owner in owners if owner not in account.writes]:
        return problem("token", f"{whose} may not write to {', '.join(lacking)}", renew)
    if not os.environ.get("HF_TOKEN"):
        todo = "put one as HF_TOKEN into the worker's environment file: another user or a reboot has not this one"
        return warning("token", f"{whose}, of `hf auth login`, not HF_TOKEN", todo)
    return ok("token", f"{whose} may write to {', '.join(owners) or 'nothing that a manifest asks for'}")
