"""What stands before MLflow's scoring server: sizes, clients that leave, crowds, and errors in one line."""

import asyncio
import base64
import contextlib
import http.client
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import uvicorn
from torture import LONG

from frostline.files import sha256_of
from frostline.serving import doorkeeper
from frostline.serving.doorkeeper import Doorkeeper
from frostline.serving.model import Card, save_model_folder

MAX_BYTES = 100_000
JSON = {"Content-Type": "application/json"}


class Inside:
    """An application behind the door: answers with the size of what it got, or misbehaves as the path says."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.now, self.most = 0, 0
        self.open = threading.Event()
        self.open.set()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return
        body = (await receive())["body"]
        self.bodies.append(body)
        self.now += 1
        self.most = max(self.most, self.now)
        while not self.open.is_set():
            await asyncio.sleep(0.01)
        self.now -= 1
        status, said = 200, str(len(body)).encode()
        match scope["path"]:
            case "/raises":
                raise ZeroDivisionError("a mistake\nof two lines")
            case "/nested":
                raise RecursionError
            case "/refuses":
                data = "x" * 50_000
                record = {"error_code": "INVALID_PARAMETER_VALUE", "message": f"Failed '{data}'. \nError: row 0\nmore"}
                status, said = 400, json.dumps({**record, "stack_trace": "Traceback"}).encode()
            case "/late":
                status, said = 504, b"exceeded"
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": said})


class Door:
    """A running server and the application behind it."""

    def __init__(self, port: int, inside: Inside) -> None:
        self.port, self.inside = port, inside

    def ask(self, body: object, path: str = "/", headers: dict[str, str] = JSON) -> tuple[int, str]:
        """Status and body of the answer; `body` may be an iterable, which is sent in parts."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def connect(self, head: str) -> socket.socket:
        """A connection that has sent this much."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(head.replace("\n", "\r\n").encode())
        return connection


@pytest.fixture
def door() -> Iterator[Door]:
    with opened(Inside()) as made:
        yield made


@contextlib.contextmanager
def opened(inside: Inside, body_seconds: float = 60.0) -> Iterator[Door]:
    app = Doorkeeper(inside, MAX_BYTES, body_seconds)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Door(server.servers[0].sockets[0].getsockname()[1], inside)
    finally:
        inside.open.set()
        server.should_exit = True
        thread.join(30)


def wait_until(is_so, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def said_in(answer: tuple[int, str], status: int) -> str:
    """The message of an error of this status, which is one line of JSON."""
    assert answer[0] == status, answer
    assert answer[1].count("\n") == 1 and answer[1].endswith("\n") and len(answer[1]) < 2500
    return str(json.loads(answer[1])["message"])


def test_what_is_small_enough_arrives_whole(door):
    body = np.random.default_rng(0).bytes(MAX_BYTES)
    assert door.ask(body) == (200, str(MAX_BYTES))
    assert door.ask(iter([body[:10], body[10:]])) == (200, str(MAX_BYTES))
    assert door.inside.bodies == [body, body]
    assert door.ask(b"") == (200, "0")


@pytest.mark.parametrize("factor", [1, 300])
def test_what_is_too_large_gets_413_also_from_a_client_that_sends_all_first(door, factor):
    body = bytes(MAX_BYTES * factor + 1)
    assert "at most 0.1 MB" in said_in(door.ask(body), 413)
    parts = (body[at : at + 50_000] for at in range(0, len(body), 50_000))
    assert "at most 0.1 MB" in said_in(door.ask(parts), 413)
    assert door.inside.bodies == []
    assert door.ask(b"next") == (200, "4")


def test_a_client_that_asks_before_it_sends_is_refused_before_it_sends(door):
    head = "POST / HTTP/1.1\nHost: x\nContent-Type: a/b\nContent-Length: 900000\nExpect: 100-continue\n\n"
    with door.connect(head) as connection:
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 413 ") and b"100 Continue" not in answer


def test_a_request_that_never_comes_in_whole_is_ended(door):
    with opened(Inside(), body_seconds=0.2) as door:
        with door.connect("POST / HTTP/1.1\nHost: x\nContent-Type: a/b\nContent-Length: 90\n\nhalf") as connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert door.inside.bodies == []


def test_a_request_without_a_type_is_refused_in_words(door):
    assert "Content-Type" in said_in(door.ask(b"x", headers={}), 415)


def test_clients_that_leave_are_not_news(door, caplog):
    caplog.set_level(logging.INFO)
    for size in (90, 90_000):  # in the middle of what they send
        door.connect(f"POST / HTTP/1.1\nHost: x\nContent-Type: a/b\nContent-Length: {size}\n\nhalf").close()
    door.inside.open.clear()  # while they wait
    waiting = door.connect("POST / HTTP/1.1\nHost: x\nContent-Type: a/b\nContent-Length: 4\n\ndone")
    wait_until(lambda: door.inside.bodies == [b"done"])
    waiting.close()
    door.inside.open.set()
    assert door.ask(b"next") == (200, "4")
    assert door.inside.bodies == [b"done", b"next"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info]


def test_errors_are_one_line_without_what_was_sent(door, caplog, capfd):
    assert said_in(door.ask(b"x", "/refuses"), 400) == "row 0"
    assert "nested too deeply" in said_in(door.ask(b"x", "/nested"), 400)
    assert said_in(door.ask(b"x", "/late"), 504) == "exceeded"
    assert "log" in said_in(door.ask(b"x", "/raises"), 500)
    assert capfd.readouterr().err == "frostline: POST /raises: ZeroDivisionError('a mistake\\nof two lines')\n"
    assert not [record for record in caplog.records if record.exc_info]


def test_of_many_large_requests_two_are_held_at_once_and_small_ones_pass(door):
    door.inside.open.clear()
    with ThreadPoolExecutor(8) as pool:
        large = [pool.submit(door.ask, bytes(MAX_BYTES - 10)) for _ in range(6)]
        wait_until(lambda: door.inside.now == 2)
        small = pool.submit(door.ask, b"x")  # while others wait
        wait_until(lambda: door.inside.now == 3)
        door.inside.open.set()
        assert small.result() == (200, "1")
        assert [answer.result() for answer in large] == [(200, str(MAX_BYTES - 10))] * 6
        assert door.inside.most == 3
        door.inside.open.clear()
        small = [pool.submit(door.ask, b"x") for _ in range(8)]
        wait_until(lambda: door.inside.now == 8)
        door.inside.open.set()
        assert [answer.result() for answer in small] == [(200, "1")] * 8


# --- the real server --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version's folder, whose own code says one sentence in other words."""
    folder = tmp_path_factory.mktemp("served") / "model"
    save_model_folder(folder, tiny_model, Card(("a", "b", "c"), 32, "squash", 16, 50.0, sha256_of(tiny_model)), None)
    code = folder / "code" / "frostline" / "serving" / "model.py"
    code.write_text(code.read_text(encoding="utf-8").replace("needs a column", "wants a column"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def served(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Door, subprocess.Popen, Path]]:
    """The real server on that folder: 2 MB, 4 images and 1 megapixel a request; its process and its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = {"FROSTLINE_SERVE_MAX_IMAGES": "4", "FROSTLINE_SERVE_MAX_MEGAPIXELS": "1", "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-P", doorkeeper.__file__, "--model", str(model_folder), "--host", "127.0.0.1"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--max-mb", "2"],
            cwd=log.parent,
            env={**os.environ, **limits},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            wait_until(lambda: process.poll() is not None or is_healthy(port), 400)
            assert process.poll() is None, log.read_text()
            yield Door(port, Inside()), process, log
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def is_healthy(port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).status == 200)
    return False


def body_of(*images: bytes) -> bytes:
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(data).decode()} for data in images]}).encode()


def png(side: int) -> bytes:
    return bytes(cv2.imencode(".png", np.full((side, side, 3), 90, np.uint8))[1])


def test_the_real_server_keeps_its_limits_and_says_each_in_one_line(served):
    door, process, log = served
    status, answer = door.ask(body_of(png(40)), "/invocations")
    assert status == 200 and json.loads(answer)["predictions"][0]["label"] in "abc"
    # The version's own code answers, not that of whoever started the server.
    assert said_in(door.ask(b'{"dataframe_records": []}', "/invocations"), 400).startswith("wants a column")
    for body, status, words in (
        (bytes(2_000_001), 413, "at most 2 MB"),
        (body_of(*[png(40)] * 5), 400, "5 images in one request, at most 4"),
        (body_of(png(40), png(1100)), 400, "at most 1 are taken"),
        (body_of(png(40), b"no image"), 400, "row 1: "),
        (b"{", 400, "valid JSON"),
        (b"\xff\xfe{", 400, "valid JSON"),
        (b'{"dataframe_records": ' + b"[" * 900_000, 400, ""),
        (b'{"dataframe_split": {"columns": ["image"], "data": 3}}', 400, ""),
        (b'{"inputs": {"other": [1]}}', 400, ""),
        (b"[]", 400, ""),
    ):
        assert words in said_in(door.ask(body, "/invocations"), status)
    assert "text/plain" in said_in(door.ask(b"x", "/invocations", {"Content-Type": "text/plain"}), 415)
    said_in(door.ask(b"x", "/elsewhere"), 404)
    for _ in range(20):  # these leave while they send, and while they wait
        head = "POST /invocations HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: "
        door.connect(f"{head}1000\n\n{{").close()
        body = body_of(png(40)).decode()
        door.connect(f"{head}{len(body)}\n\n{body}").close()
    assert door.ask(body_of(png(40)), "/invocations")[0] == 200
    assert process.poll() is None and "Traceback" not in log.read_text(), log.read_text()


def test_two_hundred_at_once_are_all_answered(served):
    door, _, log = served
    body = body_of(png(40))
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: door.ask(body, "/invocations"), range(200)))
    assert {status for status, _ in answers} == {200}
    assert len({answer for _, answer in answers}) == 1
    assert "Traceback" not in log.read_text()


@pytest.mark.skipif(not LONG, reason="the long form, by `make torture`")
def test_a_thousand_requests_leave_the_memory_as_it_was(served):
    door, process, _ = served
    bodies = [body_of(png(40 + side)) for side in range(10)]

    def ask_many(number: int) -> int:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda index: door.ask(bodies[index % 10], "/invocations"), range(number)))
        return psutil.Process(process.pid).memory_info().rss

    before, after = ask_many(300), ask_many(1000)
    assert after - before < 20e6, f"{before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after"


def test_the_doorkeeper_imports_nothing_of_ours(tmp_path):
    copy = shutil.copy(doorkeeper.__file__, tmp_path / "alone.py")
    program = "import runpy, sys; runpy.run_path(sys.argv[1]); assert 'frostline' not in sys.modules"
    subprocess.run([sys.executable, "-c", program, copy], check=True)
