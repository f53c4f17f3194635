"""A server of Prefect may be away for a while: it is asked again, and what was going on goes on."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Running

T = TypeVar("T")

AWAY = 900.0  # seconds that a server may be away
LONGEST = 15.0  # seconds between two tries
SILENCE = "No sign of it for"  # how the message begins with which the server gives a run up
LOOK = 10.0  # seconds between a run's looks at whether it is given up
GRACE = 45.0  # seconds that a run has to say so when it is not lost


def is_outage(err: Exception) -> bool:
    """Whether the server did not answer, or not as one that is well."""
    if isinstance(err, PrefectHTTPStatusError):
        return err.response.status_code >= 500
    return isinstance(err, httpx.TransportError)


def patiently(call: Callable[[], T], away: float = AWAY) -> T:
    """What `call` gives, when the server is back. It may be called again after it has been carried out."""
    until, wait = time.monotonic() + away, 0.5
    while True:
        try:
            return call()
        except Exception as err:
            if not is_outage(err) or time.monotonic() > until:
                raise
        time.sleep(wait)
        wait = min(2 * wait, LONGEST)


@contextlib.contextmanager
def forgiven() -> Iterator[None]:
    """For what is no great loss when the server is away, or is another one that does not know of it: how far something
    is."""
    try:
        yield
    except Exception as err:
        gone = isinstance(err, PrefectHTTPStatusError) and err.response.status_code == httpx.codes.NOT_FOUND
        if not gone and not is_outage(err):
            raise


def is_given_up(state: State[Any]) -> bool:
    """By the server, to which it gave no sign, which a server that was away may not have heard. It may be alive."""
    return state.is_crashed() and (state.message or "").startswith(SILENCE)


@contextlib.contextmanager
def going_on(run: UUID | str) -> Iterator[None]:
    """Whenever the server has given up the run that we are, it is told that we go on."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK):
            # A new client each time: one that was connected once waits for a minute when the server is away.
            with forgiven(), get_client(sync_client=True) as client:
                state = client.read_flow_run(UUID(str(run))).state
                if state and is_given_up(state) and not done.is_set():
                    client.set_flow_run_state(UUID(str(run)), Running(message="It was given up, and goes on."))

    looking = threading.Thread(target=copy_context().run, args=(look,), daemon=True)
    looking.start()
    try:
        yield
    finally:
        done.set()
        looking.join()
