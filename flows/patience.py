"""A server of Prefect may be away for a while: it is asked again, and what was going on goes on."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx
from prefect.exceptions import PrefectHTTPStatusError

T = TypeVar("T")

AWAY = 900.0  # seconds that a server may be away
LONGEST = 15.0  # seconds between two tries


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
