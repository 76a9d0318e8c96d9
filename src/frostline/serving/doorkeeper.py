"""MLflow's scoring server behind a doorkeeper, which bounds what comes in and says every refusal in one line.

`frostline serve` starts this file, not the module: the `frostline` that travels with a version must be the first that the
server imports, so nothing of ours is imported here.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HELD_REQUESTS = 2  # as many of the largest requests are held in memory at once; decoding takes five times their size
BODY_SECONDS = 60.0  # for a request to come in whole
DRAIN_SECONDS = 5.0  # a refused request is read on for so long: its sender looks for an answer when it has sent all
LONGEST_REASON = 2000  # characters


class RefusedRequest(Exception):
    """A request that gets no result: the status it is answered with, why, and MLflow's name for that."""

    def __init__(self, status: int, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.code = code or ("INTERNAL_ERROR" if status >= 500 else "BAD_REQUEST")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class Doorkeeper:
    """An ASGI application that hands on whole requests of at most `max_bytes`.

    A larger one gets 413, one that does not come in whole within `body_seconds` 408. Small requests are let in at once;
    large ones wait until those inside leave room. Every answer of 400 and above is one line of JSON
    without what was sent; what the inner application raises is one line of the log.
    """

    def __init__(self, app: App, max_bytes: int, body_seconds: float = BODY_SECONDS) -> None:
        self.app, self.max_bytes, self.body_seconds = app, max_bytes, body_seconds
        self._room, self._held = HELD_REQUESTS * max_bytes, 0
        self._left = asyncio.Condition()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with self._holding(self._size_of(scope)):
                body = await self._read(receive)
                await self._hand_on(scope, body, receive, send)
        except RefusedRequest as refused:
            await _refuse(scope, receive, send, refused)
        except ClientLeft:
            return

    def _size_of(self, scope: Scope) -> int:
        """The bytes that the request announces; of one that comes in parts, the most that it may have."""
        headers = dict(scope["headers"])
        if scope["method"] == "POST" and b"content-type" not in headers:
            raise RefusedRequest(415, "the request has no Content-Type; send application/json")
        if b"transfer-encoding" in headers:
            return self.max_bytes
        size = int(headers.get(b"content-length", b"0"))
        if size > self.max_bytes:
            raise self._too_large(f"{size / 1e6:.1f} MB")
        return size

    def _too_large(self, given: str) -> RefusedRequest:
        allowed = f"{self.max_bytes / 1e6:g} MB"
        return RefusedRequest(413, f"the request has {given}, at most {allowed} are taken; send fewer images at once")

    @asynccontextmanager
    async def _holding(self, size: int) -> AsyncIterator[None]:
        """Waits for room for so many bytes, and gives it back at the end of the block."""
        async with self._left:
            await self._left.wait_for(lambda: not self._held or self._held + size <= self._room)
            self._held += size
        try:
            yield
        finally:
            async with self._left:
                self._held -= size
                self._left.notify_all()

    async def _read(self, receive: Receive) -> bytes:
        """The whole body."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_seconds):
                async for part in _parts_of(receive):
                    body += part
                    if len(body) > self.max_bytes:
                        raise self._too_large(f"over {self.max_bytes / 1e6:g} MB")
        except TimeoutError:
            raise RefusedRequest(408, f"the request did not come in whole within {self.body_seconds:g} s") from None
        return bytes(body)

    async def _hand_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_whole() -> Message:
            return waiting.pop() if waiting else await receive()

        answer = _Answer(send)
        try:
            await self.app(scope, receive_whole, answer.send)
        except RecursionError:
            raise RefusedRequest(400, "the request is nested too deeply") from None
        except Exception as error:
            print(
                f"frostline: {scope['method']} {scope['path']}: {_in_one_line(repr(error))}",
                file=sys.stderr,
                flush=True,
            )
            if not answer.is_begun:
                raise RefusedRequest(500, "the model failed on this request; the server's log says how") from None
        if answer.status >= 400:
            raise _as_refusal(answer)


@dataclass
class _Answer:
    """What the inner application answers: handed on as it comes, but for errors, which are held and said in one line."""

    hand_on: Send
    status: int = 0
    parts: list[bytes] = field(default_factory=list)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif self.status >= 400:
            self.parts.append(message.get("body", b""))
        if self.status < 400:
            await self.hand_on(message)

    @property
    def is_begun(self) -> bool:
        """Was some of it handed on already?"""
        return 0 < self.status < 400


async def _parts_of(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it comes in; raises ClientLeft where its sender is gone."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _refuse(scope: Scope, receive: Receive, send: Send, refused: RefusedRequest) -> None:
    """Answers in one line, and reads on for a while what still comes in."""
    body = json.dumps({"error_code": refused.code, "message": str(refused)}).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    # Who asks before sending is answered, and sends nothing.
    if refused.status == 413 and b"expect" not in dict(scope["headers"]):
        with suppress(ClientLeft, TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in _parts_of(receive):
                    pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _as_refusal(answer: _Answer) -> RefusedRequest:
    """An error of MLflow's, without the data that it repeats, and without a traceback."""
    text, code = b"".join(answer.parts).decode("utf-8", errors="replace"), ""
    with suppress(ValueError):
        record = json.loads(text)
        if isinstance(record, dict):
            text, code = str(record.get("message", record.get("detail", text))), str(record.get("error_code", ""))
    return RefusedRequest(answer.status, _in_one_line(text.rpartition("\nError: ")[2]), code)


def _in_one_line(text: str) -> str:
    line = (text.strip().splitlines() or ["no reason was given"])[0].strip()
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."


def main(arguments: Iterable[str] | None = None) -> None:
    """Serves the MLflow model in a folder until it is told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-mb", type=float, required=True)
    given = parser.parse_args(None if arguments is None else list(arguments))

    import uvicorn
    from mlflow.pyfunc.scoring_server import init, load_model_with_mlflow_config

    app = init(load_model_with_mlflow_config(given.model))
    uvicorn.run(Doorkeeper(app, int(given.max_mb * 1e6)), host=given.host, port=given.port)


if __name__ == "__main__":
    main()
