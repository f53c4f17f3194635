"""A server that is away for a while."""

from collections.abc import Callable

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from flows.patience import forgiven, patiently


def refused() -> Exception:
    return httpx.ConnectError("refused")


def status(code: int) -> Exception:
    request = httpx.Request("GET", "http://server/api")
    return PrefectHTTPStatusError("said", request=request, response=httpx.Response(code, request=request))


class Server:
    def __init__(self, *answers: Exception | str) -> None:
        self.answers = list(answers)

    def __call__(self) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_it_is_asked_until_it_is_back() -> None:
    assert patiently(Server(refused(), status(503), "here")) == "here"


@pytest.mark.parametrize("error", [lambda: status(404), lambda: ValueError("ours")])
def test_what_is_no_outage_is_not_asked_again(error: Callable[[], Exception]) -> None:
    with pytest.raises((PrefectHTTPStatusError, ValueError)):
        patiently(Server(error(), "here"))


def test_patience_ends() -> None:
    with pytest.raises(httpx.ConnectError):
        patiently(Server(refused(), refused(), refused()), away=0.0)


def test_only_an_outage_is_forgiven() -> None:
    """And what is not there any more: somebody deleted it, or the server is another one."""
    for lost in (refused(), status(404)):
        with forgiven():
            Server(lost)()
    with pytest.raises(PrefectHTTPStatusError), forgiven():
        Server(status(422))()
