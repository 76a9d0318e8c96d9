"""A tracking server that goes away, and comes back or does not."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from frostline.errors import Refused
from frostline.params import Tracking
from frostline.tracking import patience
from frostline.tracking.patience import PatientClient
from frostline.tracking.store import open_store


class Handler(BaseHTTPRequestHandler):
    """Knows the experiment 1 and no other."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        found = self.path.endswith("experiment_id=1")
        said = {"experiment": {"experiment_id": "1", "name": "frostline", "lifecycle_stage": "active"}}
        missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "there is none"}
        body = json.dumps(said if found else missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_S", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def late(port: int) -> Iterator[None]:
    """A server that comes back after a while."""
    servers: list[ThreadingHTTPServer] = []

    def serve() -> None:
        servers.append(ThreadingHTTPServer(("127.0.0.1", port), Handler))
        servers[0].serve_forever(poll_interval=0.02)

    timer = threading.Timer(0.7, serve)
    timer.start()
    yield
    for server in servers:
        server.shutdown()
        server.server_close()
    timer.join()


def test_a_server_that_is_away_is_waited_for_with_a_word(
    port: int, late: None, capsys: pytest.CaptureFixture[str]
) -> None:
    client = PatientClient(f"http://me:hunter2@127.0.0.1:{port}", 60.0)
    assert client.get_experiment("1").name == "frostline"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"tracking: http://127.0.0.1:{port} does not answer") and "up to 60 s" in lines[0]
    assert "is back after" in lines[1] and "hunter2" not in "".join(lines)
    with pytest.raises(MlflowException, match="there is none"):  # an answer, though no good one
        client.get_experiment("2")


def test_a_server_that_stays_away_ends_in_one_line(port: int) -> None:
    client = PatientClient(f"http://127.0.0.1:{port}", 0.3)
    with pytest.raises(Refused, match=r"more than 0\.3 s \(tracking\.patience_s\)") as refusal:
        client.get_experiment("1")
    assert "\n" not in str(refusal.value)


def test_a_server_that_is_silent_at_the_start_is_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(Refused, match="cannot be used"):
            open_store(Tracking(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"), tmp_path)
    assert time.monotonic() - began < 3
