"""The Hub as a thing to start, to fill, to break and to look at; and its HTTP, one thread a connection."""

import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from hft2ane.localhub import metadata, transfer
from hft2ane.localhub.faults import Drop, Fault, Faults
from hft2ane.localhub.messages import Body, Refusal, Request, Response, User
from hft2ane.localhub.routing import dispatch
from hft2ane.localhub.store import Commit, Store

ROUTES = [*metadata.routes.table, *transfer.routes.table]


@dataclass
class Call:
    """A request as it came in. `host` is the origin it was sent to; status 0: no answer yet, or none at all.

    `ended`: nothing more will come of it."""

    method: str
    path: str
    host: str
    auth: str | None
    status: int = 0
    ended: bool = False


class LocalHub:
    """A Hub whose whole state is in the folder `root`; a later LocalHub on the same folder goes on with it.

    Used in a `with` statement, it listens on 127.0.0.1; big files are at the other origin http://localhost, so that a
    token which is sent along with a redirect shows. Re-entered, it takes the same port again. Repo ids are those of
    models; those of datasets begin with `datasets/`.
    """

    token = "hf_localhub_write"
    read_token = "hf_localhub_read"

    def __init__(self, root: Path, *, port: int = 0) -> None:
        self.store = Store(root)
        self.log: list[Call] = []
        self.faults = Faults()
        self.users = {self.token: User("localhub", "write"), self.read_token: User("reader", "read")}
        self.port = port
        self.stopping = threading.Event()

    @property
    def url(self) -> str:
        """HF_ENDPOINT; known once the Hub listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.port}/_cdn"

    def __enter__(self) -> Self:
        self.stopping.clear()
        self._server = Server(self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.hang_up()
        self.store.close()

    def add(
        self,
        repo_id: str,
        folder: Path,
        *,
        private: bool = False,
        gated: bool = False,
        message: str = "initial upload",
    ) -> str:
        """Commit exactly the folder's files to main, making the repo if there is none. Returns the commit id.

        The repo becomes private and gated as said here. Gated means: nobody has been let in, whatever the token."""
        files = self.store.keep_folder(folder)
        with self.store.change_or_create(key(repo_id)) as repo:
            repo.private, repo.gated = private, "manual" if gated else False
            author = repo.id.split("/")[0]
            return self.store.add_commit(repo, files, branch="main", title=message, message="", author=author).oid

    def rename(self, old: str, new: str) -> None:
        """The old name redirects to the new one from now on."""
        self.store.rename(key(old), key(new))

    def delete(self, repo_id: str) -> None:
        self.store.delete(key(repo_id))

    def fail(
        self,
        pattern: str,
        *,
        times: int = 1,
        skip: int = 0,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0,
        drip: float = 0,
        drop: Drop | None = None,
        says: str = "injected fault",
    ) -> None:
        """Let the next `times` requests fail in whose "METHOD /path?query" the pattern is found, after `skip` others.

        status, headers  answer so, and do nothing; the error's text is what it `says`
        delay            seconds to wait before doing anything
        drip             seconds between one byte of the answer's body and the next
        drop             break the connection: "before" or "after" carrying the request out, by a reset and without an
                         answer; or half-way through the answer's body, by a reset ("mid") or a plain end ("cut")
        """
        self.faults.plan(Fault(re.compile(pattern), times, skip, status, headers or {}, delay, drip, drop, says))

    def calls(self, pattern: str = "") -> list[str]:
        """ "METHOD /path?query STATUS" of the requests so far in which the pattern is found."""
        lines = [f"{call.method} {call.path} {call.status}" for call in list(self.log)]
        return [line for line in lines if re.search(pattern, line)]

    def settle(self) -> None:
        """Wait until all requests so far have ended, those too whose sender has given up."""
        while not all(call.ended for call in list(self.log)):
            time.sleep(0.01)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        commit = self.store.commit(self.store.repo(key(repo_id)), revision)
        return {path: self.store.blob(entry.blob).read_bytes() for path, entry in commit.files.items()}

    def commits(self, repo_id: str) -> list[Commit]:
        """Those of main, newest first."""
        return self.store.history(self.store.repo(key(repo_id)), "main")

    def tags(self, repo_id: str) -> dict[str, str]:
        """Tag -> commit id."""
        return dict(self.store.repo(key(repo_id)).tags)


def key(repo_id: str) -> str:
    return repo_id if repo_id.startswith("datasets/") else f"models/{repo_id}"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: LocalHub) -> None:
        self.hub = hub
        self.connections: dict[socket.socket, threading.Thread] = {}
        super().__init__(("127.0.0.1", hub.port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        args = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=args, daemon=True)
        self.connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        self.connections.pop(request, None)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that clients keep open (the Hub would go on answering), and wait for the last acts."""
        for connection, thread in list(self.connections.items()):
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass  # LocalHub.log has it

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def finish(self) -> None:
        with suppress(ConnectionError):
            super().finish()

    def answer(self) -> None:
        call = Call(self.command, self.path, self.headers.get("Host", ""), self.headers.get("Authorization"))
        self.server.hub.log.append(call)
        try:
            self.act(call)
        finally:
            call.ended = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def act(self, call: Call) -> None:
        hub = self.server.hub
        fault = hub.faults.take(f"{self.command} {self.path}") or Fault(re.compile(""))
        body = Body(cast(BinaryIO, self.rfile), int(self.headers.get("Content-Length") or 0))
        hub.stopping.wait(fault.delay)
        if fault.drop == "before":
            body.drain()
            return self.reset()
        if fault.status:
            response = Response.json({"error": fault.says}, fault.status, fault.headers)
        else:
            response = self.response(body).ranged(self.headers.get("Range") or "")
        body.drain()
        call.status = response.status
        if fault.drop == "after":
            return self.reset()
        self.send(response, fault.drop, fault.drip)

    def response(self, body: Body) -> Response:
        hub = self.server.hub
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        user = hub.users.get(token)
        request = Request(hub.store, hub.url, hub.cdn, self.command, self.path, self.headers, body, user)
        try:
            if token and not user:
                raise Refusal(401, "Invalid credentials in Authorization header")
            return dispatch(request, ROUTES)
        except Refusal as refusal:
            return refusal.response()

    def send(self, response: Response, drop: Drop | None, drip: float) -> None:
        size = response.size
        self.send_response_only(response.status)
        for name, value in {
            "Date": self.date_time_string(),
            **response.headers,
            "Content-Length": str(size),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for block in response.blocks(size // 2 if drop else size):
            for byte in block if drip else ():
                self.wfile.write(bytes((byte,)))
                self.wfile.flush()
                self.server.hub.stopping.wait(drip)
            if not drip:
                self.wfile.write(block)
        if drop:
            self.wfile.flush()
            self.close_connection = True
        if drop == "mid":
            time.sleep(0.05)  # a reset takes back what the client has not read yet
            self.reset()

    def reset(self) -> None:
        """End the connection by a TCP reset, as soon as this handler's last file on it is closed."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
