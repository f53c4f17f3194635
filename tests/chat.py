"""Where people are told of nights: a webhook on this machine, and Prefect's block for it."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

from prefect.blocks.notifications import CustomWebhookNotificationBlock

from flows import automations


class Chat(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Told)
        self.messages: list[tuple[datetime, bytes]] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator["Chat"]:
        """With the block on the server that is set."""
        with self:
            threading.Thread(target=self.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{self.server_port}/"
            said = {"text": "{{subject}}", "body": "{{body}}"}
            CustomWebhookNotificationBlock(name="chat", url=address, json_data=said).save(automations.BLOCK)
            try:
                yield self
            finally:
                self.shutdown()


class Told(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Chat)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.messages.append((datetime.now(UTC), content))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...
