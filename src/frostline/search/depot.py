"""The place that `scale.store` names, a shared folder or a bucket on S3: files under their sha256, each written once."""

import errno
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from frostline.errors import Refused, first_line
from frostline.params import Params
from frostline.process import DISK_ERRORS
from frostline.tracking.patience import Patience

ANSWER_S = 10.0  # in which it must answer before any work
BLOCK = 32_000_000  # bytes that are asked for at once: an outage loses no more
S3 = "s3://"
# A server that is gone without a word is noticed after these; s3fs asks five times by itself.
TIMEOUTS = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 1}}
# What botocore and aiohttp call a server that does not answer, by their classes' names: a folder needs neither.
AWAY = {"ConnectionError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError"}
T = TypeVar("T")


class Missing(Refused):
    """A file is not in the store, which itself is there."""


@dataclass(frozen=True)
class Depot:
    """Files by the sha256 of their bytes, which is their name: whoever comes second finds what it would have written.

    address: a folder, or s3://BUCKET/PREFIX whose keys and endpoint are in the environment; patience_s: how long it is waited for
    while it is away.
    """

    address: str
    patience_s: float

    def refuse_unusable(self) -> None:
        """Raises Refused where the folder or bucket is not there, does not let us in, or does not answer within ANSWER_S."""
        said: list[Exception] = []

        def ask() -> None:
            try:
                _look(self.address)
            except Exception as error:
                said.append(error)

        # Not waited for any longer: a share whose server is gone lets nobody come back.
        asking = Thread(target=ask, daemon=True)
        asking.start()
        asking.join(ANSWER_S)
        if asking.is_alive():
            said.append(TimeoutError(f"it does not answer within {ANSWER_S:g} s"))
        for error in said:
            raise self._refusal(error) from error

    def put(self, path: Path, digest: str) -> bool:
        """Puts a file there under its sha256; False where it was there."""
        return self._call(partial(self._put, path, digest))

    def read(self, digest: str, size: int) -> Iterator[bytes]:
        """The bytes of a file, block by block; whoever reads them compares the sha256. Missing where there is no such file."""
        for start in range(0, size, BLOCK):
            yield self._call(partial(self._read, digest, start, min(start + BLOCK, size)))

    def place(self, digest: str) -> str:
        """Where a file lies."""
        return f"{self.address.rstrip('/')}/{digest[:2]}/{digest}"

    def _put(self, path: Path, digest: str) -> bool:
        files, root = _open(self.address)
        key = f"{root}/{digest[:2]}/{digest}"
        try:
            if files.info(key)["size"] == path.stat().st_size:
                return False
        except FileNotFoundError:
            pass
        if self.address.startswith(S3):
            files.put_file(path, key)  # it is there when it is whole
            return True
        folder = Path(root, digest[:2])
        folder.mkdir(exist_ok=True)  # not its parents: the share may not be mounted
        unfinished = folder / f".{uuid.uuid4().hex}.part"
        try:
            files.put_file(path, unfinished)
            files.mv(unfinished, key)
        finally:
            unfinished.unlink(missing_ok=True)
        return True

    def _read(self, digest: str, start: int, end: int) -> bytes:
        files, root = _open(self.address)
        block: bytes = files.cat_file(f"{root}/{digest[:2]}/{digest}", start=start, end=end)
        return block

    def _call(self, function: Callable[[], T]) -> T:
        patience = Patience("store", self.address, self.patience_s, "The store of features")
        while True:
            try:
                result = function()
            except Exception as error:
                if isinstance(error, FileNotFoundError) and not self._is_gone():
                    raise Missing(
                        f"{self.address} lacks a file ({first_line(error)}). `dvc repro tune` puts there what is missing when it starts."
                    ) from error
                if not (is_away(error) or isinstance(error, FileNotFoundError)):
                    raise self._refusal(error) from error
                patience.wait(error)
                continue
            patience.end()
            return result

    def _is_gone(self) -> bool:
        """Is it the folder or bucket itself that is not there?"""
        try:
            _look(self.address)
        except Exception:
            return True
        return False

    def _refusal(self, error: Exception) -> Refused:
        if isinstance(error, ImportError):
            return Refused(f"scale.store: {S3} needs s3fs, which comes with the extra `cluster`: pip install s3fs.")
        return Refused(f"scale.store: {self.address} cannot be used: {type(error).__name__}, {first_line(error)}.")


def open_depot(params: Params) -> Depot | None:
    """The place that `scale.store` names; None where it names none. Refused where it cannot be used now."""
    if params.scale.store is None:
        return None
    depot = Depot(params.scale.store, params.tracking.patience_s)
    depot.refuse_unusable()
    return depot


def is_away(error: Exception) -> bool:
    """Does an error say that the store did not answer, rather than that it answered no?"""
    if AWAY & {kind.__name__ for kind in type(error).__mro__}:
        return True
    refused = isinstance(error, (FileNotFoundError, FileExistsError, PermissionError))
    return isinstance(error, OSError) and not refused and error.errno not in (*DISK_ERRORS, errno.EINVAL)


def _look(address: str) -> None:
    files, root = _open(address)
    found = files.info(root.partition("/")[0] if address.startswith(S3) else root)
    if found["type"] != "directory":
        raise NotADirectoryError(errno.EINVAL, "it is a file, not a folder")


@cache
def _open(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it."""
    from fsspec.core import url_to_fs  # takes a second, and few projects have a store

    options = {"config_kwargs": TIMEOUTS, "use_listings_cache": False} if address.startswith(S3) else {}
    files, root = url_to_fs(address, skip_instance_cache=True, **options)
    return files, str(root).rstrip("/")
