"""The page on which a person decides about labels that look wrong: on the loopback, for whoever has its address."""

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.errors import Refused
from frostline.evidence.pages import render
from frostline.evidence.suspicion import Suspect
from frostline.images.decisions import DROP, FILE, KEEP, KINDS, RELABEL, Decision, add_decisions
from frostline.images.decoding import UnreadableImage, decode_image

SIZE = 448  # pixels a side of an image on the page
LONGEST = 10_000  # bytes of a request that decides
Images = Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True)
class Card:
    """An image to decide about. was: its class in the source; sha256: of its file; file: where that lies, if it is here."""

    suspect: Suspect
    was: str
    sha256: str
    path: Path | None


class Review:
    """The images of one review, and what was decided so far.

    classes: that an image may belong to; who: decides; prepared: the image of a row as it was prepared, for files that are
    not here; table: where decisions go.
    """

    def __init__(
        self, cards: Sequence[Card], classes: Sequence[str], who: str, prepared: Images, table: Path = FILE
    ) -> None:
        self.cards, self.classes, self.who, self.table = cards, classes, who, table
        self._prepared = prepared
        self.decided: dict[int, dict[str, str]] = {}  # what was chosen on the page, by row

    def page(self, intro: str) -> str:
        """The page; its images and its decisions go to addresses below its own."""
        shown = [
            {
                **vars(card.suspect),
                "others": [name for name in self.classes if name not in (card.suspect.label, card.suspect.suggested)],
            }
            for card in self.cards
        ]
        return render(
            "review.html",
            title="Labels that look wrong",
            images="'self' data:",
            connect="'self'",
            intro=intro,
            cards=shown,
            classes=self.classes,
            decided={str(row): choice for row, choice in self.decided.items()},
            who=self.who,
            table=str(self.table),
        )

    def image(self, row: int) -> bytes:
        """The image of a row as JPEG, SIZE pixels a side, its whole within."""
        card = self.cards[row]
        try:
            pixels = decode_image(card.path.read_bytes(), SIZE, "pad") if card.path else self._prepared(row)
        except (UnreadableImage, OSError):
            pixels = self._prepared(row)
        encoded: bytes = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 92])[
            1
        ].tobytes()
        return encoded

    def decide(self, given: Mapping[str, Any]) -> str:
        """Writes a decision down; what to tell of it. Refused where it is none."""
        row, kind, label = (given.get(name) for name in ("row", "decision", "label"))
        if not isinstance(row, int) or not 0 <= row < len(self.cards) or kind not in KINDS:
            raise Refused(f"A decision is about one of {len(self.cards)} images, and one of {', '.join(KINDS)}.")
        if kind == RELABEL and label not in self.classes:
            raise Refused(f"{label!r} is no class. The classes are {', '.join(self.classes)}.")
        card, choice = self.cards[row], {"decision": kind, "label": str(label) if kind == RELABEL else ""}
        belongs = "" if kind == DROP else choice["label"] or card.suspect.label
        if belongs:  # an earlier decision may have changed its label already: the table speaks of the source's
            kind = KEEP if belongs == card.was else RELABEL
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        new = belongs if kind == RELABEL else ""
        add_decisions([Decision(card.suspect.file, kind, new, card.was, card.sha256, self.who, when)], self.table)
        self.decided[row] = choice
        return f"{card.suspect.file}: {f'is {belongs}' if belongs else 'dropped'}"


class ReviewServer(ThreadingHTTPServer):
    """Serves one review at `address` on the loopback; nobody without the token in it is answered."""

    daemon_threads = True

    def __init__(self, review: Review, intro: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.review, self.intro, self.token = review, intro, secrets.token_urlsafe(16)
        self.writing = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        place = self._place()
        if place == "":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.review.page(self.server.intro).encode())
        elif place is not None and place.startswith("image/") and place[6:].isdecimal():
            row = int(place[6:])
            if row < len(self.server.review.cards):
                self._answer(HTTPStatus.OK, "image/jpeg", self.server.review.image(row))
            else:
                self._tell(HTTPStatus.NOT_FOUND, "no such image")
        else:
            self._tell(HTTPStatus.NOT_FOUND, "nothing here")

    def do_POST(self) -> None:
        self.close_connection = True  # what is not read of a request must not be taken for the next one
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get_content_type()
        if self._place() != "decide" or kind != "application/json":
            self._tell(HTTPStatus.NOT_FOUND, "nothing here")
        elif not length.isdecimal() or int(length) > LONGEST:
            self._tell(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a decision has at most {LONGEST} bytes")
        else:
            try:
                given = json.loads(self.rfile.read(int(length)))
                with self.server.writing:
                    said = self.server.review.decide(given if isinstance(given, dict) else {})
            except (ValueError, OSError) as error:  # Refused is a ValueError, and so is what is no JSON
                self._tell(HTTPStatus.BAD_REQUEST, str(error))
            else:
                self._tell(HTTPStatus.OK, said)

    def _place(self) -> str | None:
        """What is asked for below the review's address; None for a stranger, or a page of another host's name."""
        port = self.server.server_address[1]
        known = self.headers.get("Host") in (f"127.0.0.1:{port}", f"localhost:{port}")
        _, _, rest = self.path.partition("/")
        token, slash, place = rest.partition("/")
        is_ours = secrets.compare_digest(token.encode(), self.server.token.encode())
        return place if known and is_ours and slash else None

    def _tell(self, status: HTTPStatus, text: str) -> None:
        self._answer(status, "text/plain; charset=utf-8", text.encode())

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the address holds the token."""
