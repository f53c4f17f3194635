"""Transfers that do not get on are broken off: a client's time-outs are for one piece, and whoever sends a byte now and
then never meets them."""

import time
from collections.abc import Iterator

import httpx2

SECONDS = 120.0  # that a transfer may take whatever its size,
RATE = 100_000.0  # and one more for so many bytes that got through


class TooSlow(httpx2.TimeoutException): ...


def watch(client: httpx2.Client) -> None:
    """From now on what `client` sends and receives keeps that pace: TooSlow, also out of others' calls of it."""
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], _watch_request],
        "response": [*hooks["response"], _watch_response],
    }


def _watch_request(request: httpx2.Request) -> None:
    assert isinstance(request.stream, httpx2.SyncByteStream)
    request.stream = _Sent(request.stream)


def _watch_response(response: httpx2.Response) -> None:
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _Received(response.stream)


class _Sent(httpx2.SyncByteStream):
    """A piece is sent before the next one is asked for, so all time counts."""

    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[bytes]:
        began, got = time.monotonic(), 0
        for piece in self.stream:
            yield piece
            got += len(piece)
            _check("took", got, time.monotonic() - began)

    def close(self) -> None:
        self.stream.close()


class _Received(_Sent):
    """What is done with a piece is not the sender's time."""

    def __iter__(self) -> Iterator[bytes]:
        got, waited, pieces = 0, 0.0, iter(self.stream)
        while True:
            began = time.monotonic()
            piece = next(pieces, None)
            waited += time.monotonic() - began
            if piece is None:
                return
            got += len(piece)
            _check("sent", got, waited)
            yield piece


def _check(did: str, got: int, seconds: float) -> None:
    if seconds > SECONDS + got / RATE:
        raise TooSlow(f"it {did} {got / 1e6:.3f} MB in {seconds:.0f} s")
