"""Rows that earlier runs made: found by what they are made from, and compared with their hash before they are used."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import DIGEST, Digests, digest_rows, load_array, take_rows
from frostline.files import digest_facts, load_json, save_json
from frostline.process import count_cores

BLOCK_BYTES = 16_000_000  # of rows that are hashed at once
# Names, in an output, what all of its rows are made from besides their keys; not in complete.json, on which studies depend.
RECIPE = "rows.json"


def mark_rows(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes what the rows of the output in `folder` are made from, besides their keys."""
    save_json(folder / RECIPE, {"recipe": digest_facts(facts)})


def made_alike(folders: Iterable[Path], facts: Mapping[str, Any]) -> list[Path]:
    """Those of the outputs whose rows are made from the same."""
    record = {"recipe": digest_facts(facts)}
    return [folder for folder in folders if (folder / RECIPE).is_file() and load_json(folder / RECIPE) == record]


class EarlierRows:
    """The rows of arrays of earlier runs, of one shape and type, by key.

    A key is a digest of what a row is made from: uint8 (num_rows, DIGEST). Of rows with one key the first array's counts.
    """

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._arrays: list[NDArray[Any]] = []
        self._digests: list[Digests] = []
        self._keys: list[Digests] = []
        self._index: tuple[NDArray[np.uint64], NDArray[np.int64], Digests] | None = None

    def add(self, array: Path, keys: Path, digests: Path) -> None:
        """Adds the rows of a file; of one that is missing, or has other rows, none."""
        try:
            rows, made_from, expected = load_array(array), load_array(keys), load_array(digests)
        except (OSError, ValueError):
            return
        if rows.shape[1:] == self.shape and rows.dtype == self.dtype and len(rows) == len(made_from) == len(expected):
            self._arrays.append(rows)
            self._keys.append(made_from)
            self._digests.append(expected)
            self._index = None

    def find(self, keys: Digests) -> NDArray[np.int64]:
        """The place of each key's row, int64 (num_keys,); -1 where no earlier run made it."""
        heads, order, known = self._sorted()
        wanted = np.ascontiguousarray(keys)
        if not len(known) or not len(wanted):
            return np.full(len(wanted), -1, np.int64)
        found = order[np.minimum(np.searchsorted(heads, _heads(wanted)), len(heads) - 1)]
        return np.where((known[found] == wanted).all(1), found, -1)

    def take(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """The rows at these places (num_places, *shape), as they lie on disk."""
        rows = np.empty((len(places), *self.shape), self.dtype)
        for start, array, _ in self._parts():
            mine = (places >= start) & (places < start + len(array))
            if mine.any():
                rows[mine] = take_rows(array, places[mine] - start)
        return rows

    def take_sound(self, places: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """`take`, and which of the rows are what was written: their hash says so."""
        rows = self.take(places)
        return rows, (digest_rows(rows) == self._expected(places)).all(1)

    def check(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these rows are there and are what was written, in the memory of a few blocks; of -1, False."""
        sound = np.zeros(len(places), bool)
        length = max(1, BLOCK_BYTES // max(1, math.prod(self.shape) * self.dtype.itemsize))
        wanted = np.flatnonzero(places >= 0)

        def compare(chunk: NDArray[np.intp]) -> None:
            sound[chunk] = self.take_sound(places[chunk])[1]

        with ThreadPoolExecutor(count_cores()) as pool:
            list(pool.map(compare, [wanted[start : start + length] for start in range(0, len(wanted), length)]))
        return sound

    def _expected(self, places: NDArray[np.int64]) -> Digests:
        digests = np.empty((len(places), DIGEST), np.uint8)
        for start, array, known in self._parts():
            mine = (places >= start) & (places < start + len(array))
            digests[mine] = known[places[mine] - start]
        return digests

    def _parts(self) -> Iterator[tuple[int, NDArray[Any], Digests]]:
        start = 0
        for array, digests in zip(self._arrays, self._digests, strict=True):
            yield start, array, digests
            start += len(array)

    def _sorted(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], Digests]:
        if self._index is None:
            known = np.concatenate([np.empty((0, DIGEST), np.uint8), *self._keys])
            order = np.argsort(_heads(known), kind="stable")
            self._index = _heads(known)[order], order, known
        return self._index


def _heads(digests: Digests) -> NDArray[np.uint64]:
    return np.ascontiguousarray(digests).view(np.uint64)[:, 0]
