"""Images that are there twice: exactly, nearly, or under two labels."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import join_pairs
from frostline.images.shards import Record

# Correlation of two thumbnails from which a small dHash distance counts. On the images of horses_or_humans, all on
# similar backgrounds, dHash alone takes 1153 pairs for duplicates, most of them of different figures.
MIN_CORRELATION = 0.98

LeftOut = tuple[str, str, str, str]  # path, class, kind, reason


def drop_exact_duplicates(records: Sequence[Record]) -> tuple[list[Record], list[LeftOut]]:
    """Keeps one of each set of images with equal pixels per folder split; excludes those with two labels."""
    by_pixels: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_pixels[record.pixel_sha256].append(record)
    kept: list[Record] = []
    left_out: list[LeftOut] = []
    for record in records:
        same = by_pixels[record.pixel_sha256]
        classes = {other.class_name for other in same}
        if len(classes) > 1:
            others = ", ".join(other.image_id for other in same if other.class_name != record.class_name)
            left_out.append(
                (record.image_id, record.class_name, "conflict", f"conflicting label: the same pixels as {others}")
            )
            continue
        first = next(other for other in same if other.folder_split == record.folder_split)
        if first is record:
            kept.append(record)
        else:
            left_out.append((record.image_id, record.class_name, "duplicate", f"the same pixels as {first.image_id}"))
    return kept, left_out


def group_near_duplicates(records: Sequence[Record], thumbs: NDArray[np.uint8], bits: int | None) -> NDArray[np.int64]:
    """A group number per record, (num_records,): equal or nearly equal images share one, directly or in a chain.

    Nearly equal: dHashes within `bits` and thumbnails that correlate by at least MIN_CORRELATION.
    """

    def find_pairs() -> Iterator[tuple[int, int]]:
        first: dict[str, int] = {}
        for index, record in enumerate(records):
            yield first.setdefault(record.pixel_sha256, index), index
        if bits is None or len(records) < 2:
            return
        hashes = np.array([record.dhash for record in records], np.uint64)
        rows = np.array([record.row for record in records])
        for left, right in find_close_pairs(hashes, bits):
            alike = _correlate(thumbs[rows[left]], thumbs[rows[right]]) >= MIN_CORRELATION
            yield from zip(left[alike].tolist(), right[alike].tolist(), strict=True)

    return join_pairs(len(records), find_pairs())


def find_close_pairs(hashes: NDArray[np.uint64], bits: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """All pairs (left < right) of 64-bit hashes within `bits` of each other, in blocks; a pair may come more than once.

    By the pigeonhole principle, two hashes within `bits` agree in at least one of `bits + 1` parts of them, so only
    hashes that share a part are compared. Few hashes, or many bits, are compared all with all.
    """
    everyone = np.arange(len(hashes))
    if len(hashes) <= 20_000 or bits > 7:
        yield from _pairs_within(hashes, everyone, bits)
        return
    edges = np.linspace(0, 64, bits + 2).astype(int)
    for low, high in itertools.pairwise(edges.tolist()):
        part = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(part, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            if len(bucket) > 1:
                yield from _pairs_within(hashes, np.sort(bucket), bits)


def _pairs_within(
    hashes: NDArray[np.uint64], members: NDArray[np.intp], bits: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    block = max(1, 500_000 // len(members))  # at most so many distances at once: 10 MB
    for start in range(0, len(members), block):
        rows = members[start : start + block]
        distance = np.bitwise_count(hashes[rows][:, None] ^ hashes[members[start:]][None])
        left, right = np.nonzero(np.triu(distance <= bits, 1))
        if len(left):
            yield rows[left], members[start:][right]


def _correlate(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pearson's correlation of each pair of rows; two flat rows count as alike."""
    a, b = left.astype(np.float32), right.astype(np.float32)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    flat = (np.linalg.norm(a, axis=1) < 1) & (np.linalg.norm(b, axis=1) < 1)
    result = np.where(flat, 1.0, (a * b).sum(1) / np.maximum(norms, 1e-6))
    return np.asarray(result, np.float32)
