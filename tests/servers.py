"""Servers on the loopback: one for tests of whoever downloads, and the services of deploy/cluster.py."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest


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


class Cluster:
    """The services of deploy/cluster.py, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {}

    def up(self, *names: str) -> None:
        """Starts these; the test is skipped where a program is missing, and fails where `.ci/run` says that all are there."""
        done = self._call("up", *names)
        if done.returncode == 2 and "FROSTLINE_SERVICES" not in os.environ:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        exported = re.findall(r"^export (\w+)=(.+)$", done.stdout, re.MULTILINE)
        self.environment = dict(exported)

    def down(self, *names: str) -> None:
        done = self._call("down", *names)
        assert done.returncode == 0, done.stderr

    def kill(self, name: str) -> None:
        """Ends one, not PostgreSQL, as if its machine had lost its power."""
        number = json.loads((self.folder / "cluster.json").read_text())["processes"][name][0]
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            os.killpg(number, signal.SIGKILL)
            psutil.Process(number).wait(10)

    def _call(self, *words: str) -> "subprocess.CompletedProcess[str]":
        script = Path(__file__).parents[1] / "deploy" / "cluster.py"
        command = [sys.executable, str(script), "--folder", str(self.folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@contextmanager
def cluster(*names: str) -> Iterator[Cluster]:
    """These services until the block ends."""
    # Not below pytest's folders, which PostgreSQL's user may not enter.
    with tempfile.TemporaryDirectory(prefix="frostline-cluster-", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        try:
            made.up(*names)
            yield made
        finally:
            made.down()
