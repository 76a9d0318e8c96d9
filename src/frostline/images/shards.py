"""Decoded images with their fingerprints, in shards on disk that a killed run takes up again."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.arrays import DIGEST, DIGESTS, load_array, save_array, take_rows
from frostline.files import COMPLETE, load_json, mark_complete, save_json
from frostline.images.decoding import FORMATS, UnreadableImage, check_header, decode_checked, read_header, used_bits
from frostline.images.names import READ
from frostline.images.rows import EarlierRows
from frostline.images.walk import Entry
from frostline.params import Prepare
from frostline.process import keep_freed_memory
from frostline.scale.local import HERE
from frostline.scale.work import Engine, Work

SHARD_BYTES = 16_000_000  # of decoded images: the unit of work, what a kill loses, what a worker holds
GATHER = 64  # decoded images copied at once
FILES = "files.npy"  # among the digests of a prepared split: those of its images' files, uint8 (num_images, DIGEST)
THUMB = 16  # side of the grey thumbnail
# From this many files on, processes (each imports OpenCV first) are worth their time and memory: threads share Python's lock.
PROCESSES_FROM = 2_000


@dataclass(frozen=True, slots=True)
class Record:
    """One file of `raw`. `reason` is "" for a usable image; then `row` is its place among the decoded ones."""

    image_id: str
    class_name: str
    folder_split: str | None
    reason: str
    sha256: str = ""
    pixel_sha256: str = ""
    dhash: int = 0
    width: int = 0
    height: int = 0
    note: str = ""
    row: int = -1
    used_bits: int = 0


@dataclass(frozen=True)
class Shard:
    """Some decoded files: `images.npy` (num_usable, size, size, 3), `thumbs.npy` (num_usable, THUMB * THUMB), uint8."""

    folder: Path
    records: tuple[Record, ...]
    num_usable: int


def decode_shards(
    entries: Sequence[Entry],
    prepare: Prepare,
    size: int,
    work: Path,
    workers: int,
    earlier: Sequence[Path] = (),
    engine: Engine = HERE,
) -> list[Shard]:
    """Decodes all files into shards below `work`; shards that are there already are taken as they are.

    earlier: splits that were decoded in the same way before; of files with equal bytes the images are taken from there.
    Neither they nor the engine, the number of workers and their kind change anything in the shards.
    """
    length = max(16, SHARD_BYTES // (size * size * 3))
    chunks = [entries[start : start + length] for start in range(0, len(entries), length)]
    folders = [work / f"shard-{number:05d}-{_digest(chunk, prepare, size)}" for number, chunk in enumerate(chunks)]
    missing = [
        (folder, chunk, prepare, size)
        for folder, chunk in zip(folders, chunks, strict=True)
        if not (folder / COMPLETE).is_file()
    ]
    known = (tuple(earlier), size)
    decoding = Work(_decode_shard, _start_worker, known, keep=_keep_shard, here=partial(_load_earlier, *known))
    in_threads = workers == 1 or sum(len(chunk) for _, chunk, *_ in missing) < PROCESSES_FROM
    crew = {"threads" if in_threads else "processes": workers}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the workers are the whole parallelism; OpenCV's own threads would fight for the same cores
    try:
        with closing(engine.map(decoding, missing, ahead=len(missing) + 1, **crew)) as done:
            deque(done, 0)
    finally:
        cv2.setNumThreads(threads)
    shards, row = [], 0
    for folder in folders:
        records = [Record(*fields) for fields in load_json(folder / "records.json")]
        first = row
        for index, record in enumerate(records):
            if not record.reason:
                records[index] = replace(record, row=row)
                row += 1
        shards.append(Shard(folder, tuple(records), row - first))
    return shards


def decoding_facts(prepare: Prepare, size: int, code: str) -> dict[str, Any]:
    """What an image is made from besides its file; code: a digest of what decodes it."""
    options = {"size": size, "resize": prepare.resize, "bits": prepare.bits}
    return options | {"code": code, "opencv": cv2.__version__, "numpy": np.__version__}


def load_thumbs(shards: Sequence[Shard]) -> NDArray[np.uint8]:
    """The thumbnails of all usable images, (num_usable, THUMB * THUMB)."""
    return np.concatenate([load_array(shard.folder / "thumbs.npy") for shard in shards])


def gather_images(shards: Sequence[Shard], rows: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """The decoded images of ascending `rows`, in chunks of at most GATHER."""
    start, wanted = 0, np.array(rows, np.int64)
    for shard in shards:
        low, high = np.searchsorted(wanted, [start, start + shard.num_usable])
        for first in range(low, high, GATHER):
            chunk = wanted[first : min(first + GATHER, high)] - start
            yield take_rows(load_array(shard.folder / "images.npy"), chunk)
        start += shard.num_usable


def make_fingerprints(image: NDArray[np.uint8]) -> tuple[int, NDArray[np.uint8]]:
    """Of an RGB image: the 64-bit difference hash, and the grey thumbnail, flat (THUMB * THUMB,).

    The hash says of each of 8 x 8 cells whether it is darker than its right neighbour. Source: N. Krawetz, "Kind of Like
    That", hackerfactor.com, 2013.
    """
    # Averages over whole multiples (16 of 9 x 8, 9 by 8 of 16 x 16) are several times faster than over any size.
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (144, 128), interpolation=cv2.INTER_LINEAR)
    thumb = cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()), np.asarray(thumb, np.uint8).ravel()


def _digest(entries: Sequence[Entry], prepare: Prepare, size: int) -> str:
    """Names what a shard is made of: the files with size and time, and how they are decoded."""
    how = (size, prepare.resize, prepare.min_side, prepare.max_megapixels, prepare.bits, FORMATS, cv2.__version__)
    digest = hashlib.sha256(repr(how).encode())
    for entry in entries:
        status = os.stat(entry.path)  # noqa: PTH116
        digest.update(repr((entry.image_id, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def _start_worker(splits: tuple[Path, ...], size: int) -> EarlierRows:
    keep_freed_memory()
    cv2.setNumThreads(1)
    return _load_earlier(splits, size)


def _load_earlier(splits: tuple[Path, ...], size: int) -> EarlierRows:
    """The images of these splits, by the digests of their files."""
    rows = EarlierRows((size, size, 3), np.uint8)
    for split in splits:
        rows.add(split / "images.npy", split / DIGESTS / FILES, split / DIGESTS / "images.npy")
    return rows


Decoded = tuple[list[Record], list[NDArray[np.uint8]], list[NDArray[np.uint8]]]


def _decode_shard(
    known: EarlierRows, folder: Path, entries: Sequence[Entry], prepare: Prepare, size: int
) -> Iterator[Decoded]:
    """The records of the entries, and the images (1, size, size, 3) and thumbnails (1, THUMB * THUMB) of the usable ones."""
    records, images, thumbs = [], [], []
    for entry in entries:
        record, image, thumb = _decode_entry(entry, prepare, size, known)
        records.append(record)
        if image is not None and thumb is not None:
            images.append(image[None])
            thumbs.append(thumb[None])
    yield records, images, thumbs


def _keep_shard(decoded: Decoded, folder: Path, entries: Sequence[Entry], prepare: Prepare, size: int) -> None:
    records, images, thumbs = decoded
    save_array(folder / "images.npy", images, (len(images), size, size, 3), np.uint8)
    save_array(folder / "thumbs.npy", thumbs, (len(thumbs), THUMB * THUMB), np.uint8)
    save_json(folder / "records.json", [astuple(record) for record in records])
    mark_complete(folder, num_usable=len(images))


def _decode_entry(
    entry: Entry, prepare: Prepare, size: int, known: EarlierRows
) -> tuple[Record, NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    try:
        data = Path(entry.path).read_bytes()
        header = read_header(data)
        check_header(header, min_side=prepare.min_side, max_megapixels=prepare.max_megapixels)
        sha256 = hashlib.sha256(data)
        image = _find_image(known, sha256.digest())
        if image is None:
            image = decode_checked(data, header, size, prepare.resize, prepare.bits)
        bits = used_bits(data, header)
    except UnreadableImage as error:
        return Record(entry.image_id, entry.class_name, entry.split, error.reason), None, None
    except OSError as error:
        return Record(entry.image_id, entry.class_name, entry.split, f"unreadable file: {error.strerror}"), None, None
    notes = []
    suffix = Path(entry.name).suffix.lower()
    if suffix not in READ[header.format]:
        notes.append(f"{header.format} named {suffix or 'without a suffix'}")
    if bits:
        notes.append(f"16 bits, of which {bits} are used")
    if header.animated:
        notes.append("first frame of an animation")
    if max(header.width, header.height) > 10 * min(header.width, header.height):
        notes.append("very long and thin")
    dhash, thumb = make_fingerprints(image)
    record = Record(
        entry.image_id,
        entry.class_name,
        entry.split,
        "",
        sha256=sha256.hexdigest(),
        pixel_sha256=hashlib.sha256(image.data).hexdigest(),
        dhash=dhash,
        width=header.width,
        height=header.height,
        note="; ".join(notes),
        used_bits=bits,
    )
    return record, image, thumb


def _find_image(known: EarlierRows, sha256: bytes) -> NDArray[np.uint8] | None:
    """The image (size, size, 3) that was decoded from a file before; None where none was, or it is not what it was."""
    place = known.find(np.frombuffer(sha256[:DIGEST], np.uint8)[None])
    if place[0] < 0:
        return None
    images, sound = known.take_sound(place)
    return images[0] if sound[0] else None
