"""What passes between client and server: a request, a response, and a refusal (an error response, raised)."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qs, urlencode, urlsplit

if TYPE_CHECKING:
    from hft2ane.localhub.store import Store

BLOCK = 1 << 20
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def read_blocks(file: BinaryIO) -> Iterator[bytes]:
    """What is left in the file, in pieces that fit in memory."""
    while block := file.read(BLOCK):
        yield block


class Refusal(Exception):
    """An error answer. `code` becomes X-Error-Code, which chooses the client's exception; `more` joins the JSON."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.body = {"error": message, **(more or {})}

    def response(self) -> "Response":
        return Response.json(self.body, self.status, self.headers)


class Moved(Refusal):
    """The repo has another name now: `models/old/name` -> `models/new/name`."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__(307, f"Repository {old.partition('/')[2]} has been renamed to {new.partition('/')[2]}")
        self.old, self.new = old.partition("/")[2], new.partition("/")[2]


@dataclass(frozen=True)
class Response:
    """`body` is sent as it is, a path is streamed from disk; of both, only the bytes start..stop."""

    body: bytes | Path = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    start: int = 0
    stop: int | None = None

    @staticmethod
    def json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
        kind = {"Content-Type": "application/json; charset=utf-8"}
        return Response(json.dumps(value).encode(), status, {**kind, **(headers or {})})

    def ranged(self, asked: str) -> "Response":
        """The answer to a request with this Range header: a part of this one, where that is allowed."""
        found = RANGE.fullmatch(asked)
        if not found or self.status != 200 or "Accept-Ranges" not in self.headers:
            return self
        size, (first, last) = self.size, found.groups()
        start = int(first) if first else max(size - int(last or 0), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= stop:
            return Response(b"", 416, {"Content-Range": f"bytes */{size}"})
        headers = {**self.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        return Response(self.body, 206, headers, start, stop)

    @property
    def size(self) -> int:
        if self.stop is not None:
            return self.stop - self.start
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)

    def blocks(self, size: int) -> Iterator[bytes]:
        """The first `size` of the bytes to send."""
        if isinstance(self.body, bytes):
            yield self.body[self.start : self.start + size]
            return
        with self.body.open("rb") as file:
            file.seek(self.start)
            while block := file.read(min(BLOCK, size)):
                size -= len(block)
                yield block


class Body:
    """A request's body, read as late and in as small pieces as its reader likes."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self.source, self.left = source, size

    def _took(self, data: bytes) -> bytes:
        if not data:
            raise ConnectionResetError("the client went away in the middle of its request")
        self.left -= len(data)
        return data

    def blocks(self) -> Iterator[bytes]:
        while self.left:
            yield self._took(self.source.read(min(BLOCK, self.left)))

    def lines(self) -> Iterator[bytes]:
        while self.left:
            yield self._took(self.source.readline(self.left))

    def drain(self) -> None:
        for _ in self.blocks():
            pass


@dataclass(frozen=True)
class User:
    name: str
    role: str


@dataclass(frozen=True)
class Request:
    """`origin` is the Hub's own URL, `cdn` the other origin, which has the big files and must never see a token."""

    store: "Store"
    origin: str
    cdn: str
    method: str
    target: str
    headers: Message
    body: Body
    user: User | None

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    def form(self) -> dict[str, list[str]]:
        return parse_qs(b"".join(self.body.blocks()).decode())

    def json(self) -> Any:
        """The JSON object in the body, {} for none."""
        try:
            value = json.loads(b"".join(self.body.blocks()) or b"{}")
        except ValueError as err:
            raise Refusal(400, f"the body is not JSON: {err}") from err
        if not isinstance(value, dict):
            raise Refusal(400, "the body is not a JSON object")
        return value

    def page(self, items: list[Any], most: int) -> Response:
        """A page of at most `most` items, and a link to the next one."""
        query = self.query
        start, count = int(query.get("cursor", 0)), min(int(query.get("limit", most)), most)
        more = urlencode({**query, "cursor": start + count})
        link = {"Link": f'<{self.origin}{self.path}?{more}>; rel="next"'} if start + count < len(items) else {}
        return Response.json(items[start : start + count], headers=link)
