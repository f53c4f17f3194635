"""A connection to the Hub: its time-outs, what is tried again, and its refusals as errors of ours."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from hft2ane.errors import (
    AccessDenied,
    BadInput,
    Hft2aneError,
    HubUnavailable,
    ModelNotFound,
    PublishError,
    RevisionNotFound,
    SourceError,
    TokenRefused,
)

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

LOOK_SECONDS = 10.0  # for one answer about a repo
WRITE_SECONDS = 90.0  # the Hub itself gives up a commit after 60


class Connection:
    """To one Hub, with one token; None: what the environment says (HF_ENDPOINT; HF_TOKEN or `hf auth login`).

    `waits` are the seconds between tries, so there is one try more than there are waits. A server that asks for more
    time gets it, up to `patience` seconds (the Hub counts requests over windows of 300).
    """

    waits: tuple[float, ...] = (1.0, 2.0, 4.0)
    patience: float = 300.0

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"{self.endpoint!r} is no Hub's address: HF_ENDPOINT must look like https://huggingface.co")
        self.host = parts.netloc.rpartition("@")[2]
        self.page = f"{parts.scheme}://{self.host}{parts.path}"  # the endpoint without a password: to be shown
        self._token = token or None
        _prepare_client()

    def retry(self, attempt: Callable[[], T]) -> T:
        """`attempt`, again after failures that may pass: 408, 409, 412, 429, 5xx, lost connections. HubUnavailable."""
        for wait in self.waits:
            try:
                return attempt()
            except _Passing as err:
                if err.asked > self.patience:
                    raise HubUnavailable(f"{err} (it asks to wait {err.asked:.0f} s)") from err
                time.sleep(max(wait, err.asked))
        try:
            return attempt()
        except _Passing as err:
            raise HubUnavailable(f"{err}") from err

    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self._token, library_name="hft2ane")

    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils._headers import build_hf_headers

        return build_hf_headers(token=self._token, library_name="hft2ane")

    def _get(self, path: str, what: str, method: Literal["GET", "HEAD"] = "GET") -> httpx2.Response:
        from huggingface_hub import get_session, hf_raise_for_status

        def get() -> httpx2.Response:
            # no-cache: what is published is read back to plan by, so a CDN's copy will not do.
            headers = {**self._headers(), "Cache-Control": "no-cache"}
            answer = get_session().request(method, self.endpoint + path, headers=headers, timeout=LOOK_SECONDS)
            hf_raise_for_status(answer)
            return answer

        return self.retry(lambda: self._once(what, get, SourceError))

    def _write(self, what: str, call: Callable[[], T]) -> T:
        """For calls that may be repeated without harm."""
        return self.retry(lambda: self._once(what, call, PublishError))

    def _once(self, what: str, call: Callable[[], T], refused: type[Hft2aneError]) -> T:
        """`call`, its failures as ours: _Passing when another try makes sense, `refused` when the Hub says no."""
        import httpx2
        from huggingface_hub.errors import OIDCError

        try:
            return call()
        except (httpx2.HTTPError, ConnectionError, TimeoutError, RuntimeError, OIDCError, ValueError, KeyError) as err:
            raise self._explained(err, what, refused) from err

    def _explained(self, err: BaseException, what: str, refused: type[Hft2aneError]) -> Hft2aneError:
        import httpx2
        from huggingface_hub import errors

        from hft2ane import pace

        if isinstance(err, RuntimeError) and isinstance(
            err.__cause__, httpx2.HTTPError
        ):  # so the client wraps LFS errors
            err = err.__cause__
        where = f"cannot {what}: {self.host}"
        match err:
            case errors.GatedRepoError():
                return AccessDenied(f"{where} has it gated: accept its terms there, with the account of HF_TOKEN")
            case errors.DisabledRepoError():
                return AccessDenied(f"{where} has disabled it")
            case errors.RevisionNotFoundError():
                return RevisionNotFound(f"{where} has no such revision of it")
            case errors.EntryNotFoundError():
                return ModelNotFound(f"{where} has no such file")
            case errors.RepositoryNotFoundError():
                return ModelNotFound(f"{where} has no such repo, or it is private and HF_TOKEN may not see it")
            case errors.OfflineModeIsEnabled():
                return HubUnavailable(f"{where} may not be asked: HF_HUB_OFFLINE is set, unset it")
            case errors.OIDCError():
                return TokenRefused(f"{where} gave no token for HF_OIDC_RESOURCE: {self._said(err)}")
            case errors.HfHubHTTPError():
                return self._refusal(err, where, refused)
            case pace.TooSlow():
                return _Passing(f"{where} is too slow ({err}); try later")
            case httpx2.TimeoutException():
                return _Passing(f"{where} did not answer in time; try later")
            case httpx2.ConnectError():
                return _Passing(
                    f"{where} cannot be reached ({self._said(err)}); is HF_ENDPOINT right? If so, try later"
                )
            case httpx2.HTTPError() | ConnectionError() | TimeoutError() | RuntimeError():
                return _Passing(f"{where} broke off ({self._said(err.__cause__ or err)}); try later")
            case json.JSONDecodeError() | KeyError():
                return _Passing(f"{where} answered with something unexpected; try later")
            case _:
                return refused(f"{where}: {self._said(err)}")

    def _refusal(self, err: HfHubHTTPError, where: str, refused: type[Hft2aneError]) -> Hft2aneError:
        status = err.response.status_code
        said = f"{status} {self._said(err.server_message or err.response.reason_phrase)}"
        if status == 401:
            return TokenRefused(f"{where} does not accept the token: renew HF_TOKEN")
        # 403 "too many concurrent pushes" is a rate limit too.
        if status in (408, 409, 412, 429) or status >= 500 or (status == 403 and "concurrent" in said):
            return _Passing(f"{where} answers {said}; try later", _asked(err.response.headers))
        if status == 403:
            kind = TokenRefused if refused is PublishError else AccessDenied
            return kind(f"{where} answers {said}; HF_TOKEN must be a token that may do this")
        return refused(f"{where} answers {said}")

    def _said(self, text: object) -> str:
        """In one line, without tokens."""
        line = re.sub(r"hf_\w+", "hf_***", " ".join(str(text).split()))
        return (line.replace(self._token, "***") if self._token else line)[:300]


class _Passing(HubUnavailable):
    """May be over soon; `asked`: the seconds that the server wants to be left alone."""

    def __init__(self, message: str, asked: float = 0.0) -> None:
        super().__init__(message)
        self.asked = asked


def _asked(headers: Mapping[str, str]) -> float:
    """Seconds, from `ratelimit: "api";r=0;t=55` or `Retry-After: 55`."""
    if limit := re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", "")):
        return float(limit[1]) + 1.0
    after = headers.get("retry-after", "").strip()
    return float(after) if after.isdigit() else 0.0


@functools.cache
def _prepare_client() -> None:
    """Quiet, and with time-outs, which the client lacks; once, and not where the process has set its own."""
    import httpx2
    from huggingface_hub import constants, get_session, set_client_factory
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from hft2ane import pace

    def client_with_timeouts() -> httpx2.Client:
        client = default_client_factory()
        client.timeout = httpx2.Timeout(WRITE_SECONDS, connect=LOOK_SECONDS)
        pace.watch(client)
        return client

    # Else a Xet store that fails is tried for three minutes, before LFS gets its turn.
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "3")
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if get_session().timeout == httpx2.Timeout(None):
        set_client_factory(client_with_timeouts)
