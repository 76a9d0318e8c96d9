"""A server on the loopback, for tests of whoever downloads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves `data`, or by path what `files` has, misbehaving as `behaviour` says; remembers what was asked, and the ranges."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.data, self.behaviour = b"", ""
        self.asked: list[str] = []
        self.ranges: list[str | None] = []
        self.files: dict[str, bytes] = {}
        self.stop = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[Server]:
    """A server that answers until the block ends."""
    with running(Server(handler)) as server:
        try:
            yield server
        finally:
            server.stop.set()


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """Any server of the standard library's kind, in a thread of its own until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
