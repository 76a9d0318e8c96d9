"""Files from the network: whole or not at all, of the expected content, from where they are said to be."""

import hashlib
import http.client
import ipaddress
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from frostline.errors import Refused, fill_places, find_secret, redact
from frostline.files import load_json, save_json, sha256_of
from frostline.images.folders import require_space

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
RETRIES = 3
BACK_OFF_SECONDS = 2.0  # doubled after each try
MAX_WAIT_SECONDS = 60.0  # a server that asks for more patience is asked again all the same
MAX_REDIRECTS = 5
# A server that drips is a server that stalls: below this many bytes in READ_SECONDS the try is over.
MIN_BYTES = 10_000
LOCK_FILE = Path("fetch.lock.json")


class _TryAgain(Exception):
    """A failure that another try may mend; `after`: the seconds that the server asks for before it."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def download(
    url: str,
    folder: Path,
    *,
    sha256: str | None = None,
    allow_private: bool = False,
    lock_file: Path = LOCK_FILE,
    back_off: float = BACK_OFF_SECONDS,
) -> Path:
    """The file at `url`, in `folder` under a name derived from the address.

    A partial download is taken up where it stopped, if the server says that the file is still the same. Without
    `sha256`, the first download's is recorded in `lock_file`, and a later one must equal it. Raises Refused, without
    secrets in the message, if the file cannot be had or is another one.
    """
    shown = redact(url)
    check_url(url)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{_file_name(url)}"
    expected = sha256 or _recorded(lock_file).get(shown, {}).get("sha256")
    if path.is_file() and expected and sha256_of(path) == expected:
        return path
    part = path.with_name(path.name + ".part")
    for attempt in range(RETRIES + 1):
        try:
            _transfer(fill_places(url), part, resumable=expected is not None, allow_private=allow_private)
            break
        except _TryAgain as error:
            if attempt == RETRIES:
                raise Refused(
                    f"{shown} could not be fetched after {RETRIES + 1} tries: {error}. What arrived is kept; run again to go on."
                ) from None
            wait = max(back_off * 2**attempt, error.after)
            print(f"fetch: {error}; trying again in {wait:g} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    _judge(part, shown, sha256, lock_file)
    part.replace(path)
    _validator_file(part).unlink(missing_ok=True)
    return path


def _judge(part: Path, shown: str, sha256: str | None, lock_file: Path) -> None:
    """Removes the file and raises Refused where it is not the expected one; records it where nothing was expected."""
    actual = sha256_of(part)
    with part.open("rb") as file:
        start = file.read(512)
    recorded = _recorded(lock_file)
    problem = None
    if re.match(rb"(?i)\s*(<!doctype html|<html|<head)", start):
        problem = (
            f"{shown} is not an archive: an HTML page came instead, perhaps of a login. Open the address in a browser."
        )
    elif sha256 and actual != sha256:
        problem = f"{shown} has another content than expected.\n  expected sha256 {sha256}\n  received sha256 {actual}\nIt was not used."
    elif not sha256 and shown in recorded and recorded[shown]["sha256"] != actual:
        problem = (
            f"{shown} changed since it was first fetched.\n  recorded sha256 {recorded[shown]['sha256']} in {lock_file}\n"
            f"  received sha256 {actual}\nIf the change is right, remove the entry from {lock_file} and run again."
        )
    if problem:
        part.unlink()
        _validator_file(part).unlink(missing_ok=True)
        raise Refused(problem)
    if not sha256 and shown not in recorded:
        save_json(lock_file, {**recorded, shown: {"sha256": actual, "num_bytes": part.stat().st_size}})
        print(
            f"fetch: no checksum is published for {shown}; its sha256 is now in {lock_file}, which belongs into git",
            file=sys.stderr,
        )


def _recorded(lock_file: Path) -> dict[str, Any]:
    return dict(load_json(lock_file)) if lock_file.is_file() else {}


# --- addresses ------------------------------------------------------------------------------------------------------


def check_url(url: str) -> None:
    """Raises Refused unless the address is http or https, has a host and carries no password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise Refused(f"{redact(url)} is not an address: {error}.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Refused(f"{redact(url)} is not an http or https address.")
    if parts.username or parts.password:
        raise Refused(
            f"The address of {redact(url)} carries a user or password, which params.yaml would keep. "
            "Fetch the file by hand and give its path."
        )


def refuse_secret(url: str) -> None:
    """Raises Refused where a secret stands in the address: params.yaml, dvc.lock and MLflow would keep it."""
    if name := find_secret(url):
        raise Refused(
            f"{redact(url)}: the value of {name} is a secret, and params.yaml is no place for it. Put it into a variable of "
            f"the environment, and write {name}=${{VARIABLE}} here"
        )


def _file_name(url: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(url).path.rsplit("/", 1)[-1])[-80:] or "download"


# --- transfer -------------------------------------------------------------------------------------------------------


def _transfer(url: str, part: Path, *, resumable: bool, allow_private: bool) -> None:
    """Fetches into `part`, from its end where the server can; raises _TryAgain for what another try may mend."""
    validator_file = _validator_file(part)
    validator = validator_file.read_text("utf-8") if validator_file.is_file() else ""
    start = part.stat().st_size if part.is_file() and (validator or resumable) else 0
    headers = {"User-Agent": "frostline", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    try:
        with _open(url, headers, allow_private) as response:
            if response.status != 206:
                start = 0
            elif not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
                part.unlink(missing_ok=True)
                raise _TryAgain("the server resumed at another place")
            kind = response.headers.get_content_type()
            if kind == "text/html":
                raise Refused(
                    f"{redact(url)} is not an archive: text/html came instead. Open the address in a browser."
                )
            etag = response.headers.get("ETag") or ""
            # Weak validators (W/) do not promise equal bytes (RFC 9110, section 13.1.5).
            validator_file.write_text(
                etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified") or "", "utf-8"
            )
            length = response.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            if total is not None:
                require_space(part.parent, total - start)
            _receive(response, part, start, total)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing beyond what is there
            part.unlink(missing_ok=True)
            raise _TryAgain("the file got shorter on the server") from None
        if error.code in (408, 425, 429) or error.code >= 500:
            after = _seconds_asked(error.headers.get("Retry-After") or "") if error.code in (429, 503) else 0.0
            raise _TryAgain(f"the server answered {error.code} {error.reason}", after) from None
        raise Refused(f"{redact(url)}: the server answered {error.code} {error.reason}.") from None
    except (TimeoutError, ConnectionError, http.client.HTTPException, urllib.error.URLError, socket.gaierror) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, Refused):
            raise reason from None
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Refused(f"{redact(url)}: the server's certificate is not valid: {reason.verify_message}.") from None
        raise _TryAgain(f"{type(reason).__name__}: {reason}".replace(url, redact(url))) from None


def _seconds_asked(retry_after: str) -> float:
    """The wait that `Retry-After` asks for, in seconds or as a date; 0 where it says neither, MAX_WAIT_SECONDS at most."""
    if retry_after.strip().isdecimal():
        return min(float(retry_after), MAX_WAIT_SECONDS)
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    # A date of HTTP is in GMT, whether it says so or not.
    seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), MAX_WAIT_SECONDS)


def _receive(response: Any, part: Path, start: int, total: int | None) -> None:
    received, window_start, window_bytes = start, time.monotonic(), 0
    progress = _Progress(total)
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        # read1 gives what one packet brought; read would wait for the whole megabyte, however slowly it drips.
        while chunk := response.read1(1 << 20):
            file.write(chunk)
            received += len(chunk)
            window_bytes += len(chunk)
            progress.show(received)
            if time.monotonic() - window_start > READ_SECONDS:
                if window_bytes < MIN_BYTES:
                    raise TimeoutError(f"only {window_bytes} bytes in {READ_SECONDS:g} s")
                window_start, window_bytes = time.monotonic(), 0
    if total is not None and received < total:
        raise _TryAgain(f"the connection ended after {received} of {total} bytes")


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


class _Progress:
    """A line that is rewritten on a terminal, and every tenth of the file, one below the other, in a log."""

    def __init__(self, total: int | None) -> None:
        self.total, self.terminal, self.next = total, sys.stderr.isatty(), 0.0

    def show(self, received: int) -> None:
        if self.total:
            share, text = (
                received / self.total,
                f"{received / 1e6:.1f} of {self.total / 1e6:.1f} MB, {received / self.total:.0%}",
            )
            step = 0.001 if self.terminal else 0.1
        else:
            share, text, step = received / 1e6, f"{received / 1e6:.1f} MB", 1.0 if self.terminal else 50.0
        if share >= self.next:
            self.next = share + step
            ending = "\n" if not self.terminal or received == self.total else ""
            print(f"{chr(13) if self.terminal else ''}fetch: {text}", end=ending, file=sys.stderr, flush=True)


def _open(url: str, headers: Mapping[str, str], allow_private: bool) -> Any:
    """The response, after at most MAX_REDIRECTS redirects, none to another scheme or a private address."""
    proxies = {urlsplit(proxy).hostname for proxy in urllib.request.getproxies().values()}
    opener = urllib.request.build_opener(_Http(allow_private, proxies), _Https(allow_private, proxies), _NoRedirect())
    address = url
    for _ in range(MAX_REDIRECTS + 1):
        check_url(address)
        response = opener.open(urllib.request.Request(address, headers=dict(headers)), timeout=CONNECT_SECONDS)
        if response.status not in (301, 302, 303, 307, 308):
            return response
        response.close()
        new = urljoin(address, response.headers.get("Location") or "")
        if urlsplit(address).scheme == "https" and urlsplit(new).scheme != "https":
            raise Refused(f"{redact(url)} redirects to {redact(new)}, which is not https.")
        address = new
    raise Refused(f"{redact(url)} redirects more than {MAX_REDIRECTS} times.")


class _NoRedirect(urllib.request.HTTPErrorProcessor):
    """Hands redirects back instead of following them unchecked."""

    def http_response(self, request: Any, response: Any) -> Any:
        if 300 <= response.status < 400:
            return response
        return super().http_response(request, response)

    https_response = http_response


def connect_checked(address: tuple[str, int], allow_private: bool) -> socket.socket:
    """A connection to a public address of the host; what is looked up is what is connected to.

    Raises Refused where the host's address is private, of this machine or otherwise not public.
    """
    host, port = address
    error: OSError | None = None
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        found = ipaddress.ip_address(place[0])
        mapped = getattr(found, "ipv4_mapped", None)
        if not allow_private and not (mapped or found).is_global:
            raise Refused(
                f"{host} is {found}, an address that is not public. Set fetch.allow_private: true if that is meant."
            )
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(place)
            connection.settimeout(READ_SECONDS)
            return connection
        except OSError as problem:
            connection.close()
            error = problem
    raise error or OSError(f"{host} has no address")


def _connector(allow_private: bool, proxies: set[str | None]) -> Any:
    # A proxy may be private: it is the user's own, and looks the target up itself.
    return lambda address, *_: connect_checked(address, allow_private or address[0] in proxies)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, allow_private: bool, proxies: set[str | None]) -> None:
        super().__init__()
        self.connector = _connector(allow_private, proxies)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._build, request)

    def _build(self, host: str, **options: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(host, **options)
        connection._create_connection = self.connector  # type: ignore[attr-defined]
        return connection


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, allow_private: bool, proxies: set[str | None]) -> None:
        super().__init__()
        self.connector = _connector(allow_private, proxies)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._build, request)

    def _build(self, host: str, **options: Any) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(host, **options)
        connection._create_connection = self.connector  # type: ignore[attr-defined]
        return connection
