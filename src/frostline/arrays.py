"""Arrays on disk, written row by row and read without holding them."""

import hashlib
import io
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from frostline.files import load_json, part_of, replacing, save_json

# Around each page that is touched Linux maps so many bytes; gathered rows may map so many before they are given back.
FAULT_BYTES, HELD_BYTES = 65_536, 16_000_000
DIGEST = 16  # bytes of a row's sha256 that are kept
DIGESTS = "digests"  # the folder beside arrays that holds those of their rows
# Of the features of train and val: a group for each image, int64 (num_images,), which near duplicates share; and what it is
# used for, uint8 (num_images,).
GROUPS, USE = "groups.npy", "use.npy"
LEFT_OUT, FINAL_ONLY, ALL = 0, 1, 2  # a copy of a test image; a training image's of one that judges trials; any other

Digests = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageSplit:
    """One split of the prepared images.

    images: uint8 (num_images, size, size, 3), memory-mapped; labels: int32 (num_images,); groups: int64 (num_images,),
    equal or nearly equal images share one; ids: the images' paths below `data/raw`, in the same order; digests: uint8
    (num_images, DIGEST), `digest_rows` of the images.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    groups: NDArray[np.int64]
    ids: tuple[str, ...]
    digests: Digests


class JoinedRows:
    """Arrays with rows of one shape and type, one after the other along the first axis, without a copy.

    `len`, `shape`, `dtype` and `take_rows` work as on one array. mirrored: of images (n, h, w, c), left and right changed.
    Another process that is sent them opens the files of those parts that are whole files itself.
    """

    def __init__(self, *parts: NDArray[Any], mirrored: bool = False) -> None:
        self.parts, self.mirrored = parts, mirrored
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape, self.dtype = (int(self.ends[-1]), *parts[0].shape[1:]), parts[0].dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _join, (self.mirrored, *(_file_of(part) or part for part in self.parts))


def _file_of(array: NDArray[Any]) -> Path | None:
    """The file that `load_array` opened this array from; None for a part of one, and for one in memory."""
    is_whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)
    return Path(array.filename) if is_whole else None  # type: ignore[attr-defined]


def _join(mirrored: bool, *parts: Path | NDArray[Any]) -> JoinedRows:
    return JoinedRows(*(load_array(part) if isinstance(part, Path) else part for part in parts), mirrored=mirrored)


class ArrayWriter:
    """A `.npy` file filled row by row, in the memory of one chunk; it appears under its name when it is full.

    A context manager; ValueError on leaving it when the rows do not fill `shape`. With `resume_at` it keeps what was
    written when it is left by an error, and begins with so many rows that an earlier writer has synced.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: DTypeLike, *, resume_at: int | None = None) -> None:
        self.path, self.shape, self.dtype, self.resume_at = path, shape, np.dtype(dtype), resume_at
        self.rows = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        header = io.BytesIO()
        facts = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, facts)
        if self.resume_at is None:
            temporary = self._stack.enter_context(replacing(self.path))
        else:
            temporary = part_of(self.path)
            temporary.parent.mkdir(parents=True, exist_ok=True)
        self.rows = self.resume_at or 0
        self._file = self._stack.enter_context(temporary.open("r+b" if self.rows else "wb"))
        if self.rows:
            row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
            self._file.truncate(len(header.getvalue()) + self.rows * row_bytes)
            self._file.seek(0, os.SEEK_END)
        else:
            self._file.write(header.getvalue())
        return self

    def append(self, chunk: NDArray[Any]) -> None:
        """Adds rows (num_rows, *shape[1:])."""
        if chunk.shape[1:] != self.shape[1:]:
            raise ValueError(f"A chunk of {self.path.name} has shape {chunk.shape}, expected rows of {self.shape[1:]}.")
        self._file.write(np.ascontiguousarray(chunk, dtype=self.dtype).data)
        self.rows += len(chunk)

    def sync(self) -> None:
        """Returns when all rows so far would survive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self.rows != self.shape[0]:
            error = ValueError(f"{self.path.name} got {self.rows} rows, expected {self.shape[0]}.")
            self._stack.__exit__(type(error), error, None)
            raise error
        if error is None and self.resume_at is not None:
            self.sync()
            part_of(self.path).replace(self.path)
        self._stack.__exit__(kind, error, trace)


def save_array(path: Path, chunks: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: DTypeLike) -> None:
    """Writes chunks, one after the other along the first axis, as one `.npy` of `shape`.

    Memory stays at one chunk. ValueError if the chunks do not fill `shape` exactly.
    """
    with ArrayWriter(path, shape, dtype) as writer:
        for chunk in chunks:
            writer.append(chunk)


def reserve_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
    """Makes a `.npy` file of `shape`, all zeros, whose rows any process may write with `write_rows`."""
    np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)


def write_rows(path: Path, rows: NDArray[Any], start: int) -> None:
    """Overwrites the rows from `start` on of the array in `path`; written, not mapped: a full disk is an OSError."""
    with path.open("r+b") as file:
        file.seek(load_array(path).offset + start * rows[0].nbytes)  # type: ignore[attr-defined]
        file.write(rows.data)


def load_array(path: Path) -> NDArray[Any]:
    """The array in `path`, memory-mapped and read-only."""
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


Rows = NDArray[Any] | JoinedRows


def take_rows(array: Rows, rows: slice | NDArray[np.integer[Any]]) -> NDArray[Any]:
    """A copy of some rows, in the memory of these rows alone.

    Pages of a mapped file count as this process's memory once they were read; they are given back, to be read again from
    the system's cache.
    """
    if isinstance(array, JoinedRows):
        wanted = np.arange(len(array))[rows]
        joined = np.empty((len(wanted), *array.shape[1:]), array.dtype)
        for start, end, part in zip([0, *array.ends[:-1]], array.ends, array.parts, strict=True):
            mine = (wanted >= start) & (wanted < end)
            if mine.any():
                joined[mine] = take_rows(part, wanted[mine] - start)
        return joined[:, :, ::-1] if array.mirrored else joined
    mapped = getattr(array, "_mmap", None)  # one that another process was sent is in memory, and a memmap by name alone
    if mapped is None:
        return np.array(array[rows])
    if isinstance(rows, slice):
        rows = np.arange(len(array))[rows]
    taken = np.empty((len(rows), *array.shape[1:]), array.dtype)
    block = max(1, HELD_BYTES // max(FAULT_BYTES, array.itemsize * math.prod(array.shape[1:])))
    for start in range(0, len(rows), block):
        taken[start : start + block] = array[rows[start : start + block]]
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)
    return taken


def join_pairs(num_rows: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """A group number for each row, int64 (num_rows,): rows of a pair share it, and with them whatever they are paired with.

    >>> join_pairs(5, [(3, 1), (4, 3)]).tolist()
    [0, 1, 2, 1, 1]
    """
    parents = np.arange(num_rows)

    def root_of(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = int(parents[index])
        return index

    for left, right in pairs:
        left, right = root_of(left), root_of(right)
        parents[max(left, right)] = min(left, right)
    return np.array([root_of(index) for index in range(num_rows)], np.int64)


def digest_rows(rows: NDArray[Any]) -> Digests:
    """The first DIGEST bytes of the sha256 of each row's bytes: uint8 (num_rows, DIGEST).

    >>> digest_rows(np.zeros((2, 3), np.uint8)).shape
    (2, 16)
    """
    rows = np.ascontiguousarray(rows)
    found = np.empty((len(rows), DIGEST), np.uint8)
    for place, row in enumerate(rows):
        found[place] = np.frombuffer(hashlib.sha256(row.data).digest()[:DIGEST], np.uint8)
    return found


def save_split(
    folder: Path,
    images: Iterable[NDArray[np.uint8]],
    size: int,
    labels: NDArray[np.int32],
    ids: list[str],
    groups: NDArray[np.int64] | None = None,
) -> None:
    """Writes one split: `images.npy` and the digests of its rows, `labels.npy`, `groups.npy`, `ids.json`.

    images: chunks (k, size, size, 3). Without `groups` every image is one of its own.
    """
    digests = [np.empty((0, DIGEST), np.uint8)]

    def digested() -> Iterator[NDArray[np.uint8]]:
        for chunk in images:
            digests.append(digest_rows(chunk))
            yield chunk

    save_array(folder / "images.npy", digested(), (len(ids), size, size, 3), np.uint8)
    save_array(folder / DIGESTS / "images.npy", digests, (len(ids), DIGEST), np.uint8)
    save_array(folder / "labels.npy", [labels], labels.shape, np.int32)
    save_array(folder / "groups.npy", [np.arange(len(ids)) if groups is None else groups], labels.shape, np.int64)
    save_json(folder / "ids.json", ids)


def load_labels(folder: Path) -> NDArray[np.int32]:
    """The labels of one split, memory-mapped; its images need not be there."""
    return load_array(folder / "labels.npy")


def load_groups(folder: Path) -> NDArray[np.int64]:
    """The groups of one split, memory-mapped; its images need not be there."""
    return load_array(folder / "groups.npy")


def load_split(folder: Path) -> ImageSplit:
    """One split, its images memory-mapped."""
    return ImageSplit(
        load_array(folder / "images.npy"),
        load_labels(folder),
        load_groups(folder),
        tuple(load_json(folder / "ids.json")),
        load_array(folder / DIGESTS / "images.npy"),
    )
