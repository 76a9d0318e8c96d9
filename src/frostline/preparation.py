"""Raw class folders -> decoded, checked, de-duplicated and split arrays."""

import csv
import hashlib
import itertools
import math
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.arrays import load_array, load_json, mark_complete, replacing, save_array, save_json, save_split
from frostline.decoding import FORMATS, UnreadableImage, check_header, decode_checked, read_header
from frostline.params import Prepare
from frostline.process import Refused, count_cores
from frostline.seeding import derive_seed
from frostline.sources.folders import Entry, find_layout

SHARD_BYTES = 64_000_000  # of decoded pictures: what a kill can lose, and what memory holds
THUMB = 16  # side of the grey thumbnail that confirms a near duplicate
# Correlation of two thumbnails from which a small dHash distance counts. On the pictures of horses_or_humans, all on
# similar backgrounds, dHash alone takes 1153 pairs for duplicates, most of them of different figures.
MIN_CORRELATION = 0.98
SPLITS = ("train", "val", "test")
MANIFEST_COLUMNS = (
    "image_id",
    "path",
    "class_name",
    "label",
    "split",
    "sha256",
    "pixel_sha256",
    "dhash",
    "width",
    "height",
    "note",
)
_SUFFIXES = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "GIF": (".gif",), "BMP": (".bmp",), "WebP": (".webp",),
             "TIFF": (".tif", ".tiff"), "AVIF": (".avif",), "PNM": (".ppm", ".pgm", ".pnm")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """One file of `raw`. `reason` is "" for a usable picture; then `row` is its place among the decoded ones."""

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


@dataclass(frozen=True)
class Summary:
    """What `prepare_images` did: images per split and class, files left out by kind, and what to tell the user."""

    counts: dict[str, dict[str, int]]
    left_out: dict[str, int]
    notes: tuple[str, ...]
    content_sha256: str


def prepare_images(
    raw: Path, destination: Path, prepare: Prepare, *, size: int, seed: int, work: Path, workers: int | None = None
) -> Summary:
    """Decodes, checks, de-duplicates and splits `raw`, and writes the folder `destination`.

    `work` keeps decoded shards, so that a killed run goes on; the number of `workers` changes nothing but the time.
    Raises Refused where the pictures cannot make a sound data set, naming files and classes.
    """
    layout = find_layout(raw, follow_links=True)
    if len(layout.classes) < 2:
        raise Refused(f"{raw} holds one class, {layout.classes[0]!r}; at least 2 are needed to tell apart.")
    shards = _decode_shards(layout.entries, prepare, size, work, workers or count_cores())
    records = [record for shard in shards for record in shard.records]
    usable = [record for record in records if not record.reason]
    skipped = _skipped_by_fetch(raw) + list(layout.skipped)
    left_out = [
        (record.image_id, record.class_name, "unreadable", record.reason) for record in records if record.reason
    ]
    left_out += [(path, "", "skipped", reason) for path, reason in skipped]
    _check_rejected(left_out, len(records) + len(skipped), prepare, raw, work)

    thumbs = np.concatenate([load_array(shard.folder / "thumbs.npy") for shard in shards])
    kept, dropped = drop_exact_duplicates(usable)
    left_out += dropped
    _check_classes(kept, layout.classes, prepare)
    groups = group_near_duplicates(kept, thumbs, prepare.near_duplicate_bits)
    notes = list(layout.notes)
    notes += _check_leaks(kept, groups, prepare)
    splits, split_note = split_images(kept, groups, prepare, seed)
    notes.append(split_note)
    _check_splits(kept, splits, layout.classes)
    return _write(destination, raw, prepare, size, layout.classes, kept, splits, shards, left_out, notes, groups)


# --- decoding -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    folder: Path
    records: tuple[Record, ...]


def _decode_shards(entries: Sequence[Entry], prepare: Prepare, size: int, work: Path, workers: int) -> list[_Shard]:
    """Decodes all files into shards below `work`; shards that are there already are taken as they are."""
    length = max(16, SHARD_BYTES // (size * size * 3))
    shards, row = [], 0
    # One thread per picture is the whole parallelism; OpenCV's own threads would fight for the same cores.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(entries), length):
                chunk = entries[start : start + length]
                folder = work / f"shard-{start // length:05d}-{_digest(chunk, prepare, size)}"
                if not (folder / "complete.json").is_file():
                    _decode_shard(folder, chunk, prepare, size, pool, workers)
                records = []
                for fields in load_json(folder / "records.json"):
                    records.append(Record(**fields, row=row if not fields["reason"] else -1))
                    row += not fields["reason"]
                shards.append(_Shard(folder, tuple(records)))
    finally:
        cv2.setNumThreads(threads)
    return shards


def _digest(entries: Sequence[Entry], prepare: Prepare, size: int) -> str:
    """Names what a shard was made of: the files with size and time, and how they are decoded."""
    digest = hashlib.sha256(repr((size, prepare.resize, prepare.min_side, prepare.max_megapixels, FORMATS)).encode())
    for entry in entries:
        status = os.stat(entry.path)  # noqa: PTH116
        digest.update(repr((entry.image_id, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def _decode_shard(
    folder: Path, entries: Sequence[Entry], prepare: Prepare, size: int, pool: ThreadPoolExecutor, workers: int
) -> None:
    records: list[Record] = []
    images: list[NDArray[np.uint8]] = []
    pending: deque[Future[list[tuple[Record, NDArray[np.uint8] | None]]]] = deque()
    batches = [entries[start : start + 16] for start in range(0, len(entries), 16)]
    for batch in batches:
        pending.append(pool.submit(_decode_batch, batch, prepare, size))
    for future in pending:
        for record, image in future.result():
            records.append(record)
            if image is not None:
                images.append(image)
    shape = (len(images), size, size, 3)
    save_array(folder / "images.npy", (image[None] for image in images), shape, np.uint8)
    thumbs = [make_thumb(image)[None] for image in images]
    save_array(folder / "thumbs.npy", thumbs, (len(images), THUMB * THUMB), np.uint8)
    save_json(
        folder / "records.json",
        [{key: value for key, value in asdict(record).items() if key != "row"} for record in records],
    )
    mark_complete(folder, num_images=len(images))


def _decode_batch(
    entries: Sequence[Entry], prepare: Prepare, size: int
) -> list[tuple[Record, NDArray[np.uint8] | None]]:
    return [_decode_entry(entry, prepare, size) for entry in entries]


def _decode_entry(entry: Entry, prepare: Prepare, size: int) -> tuple[Record, NDArray[np.uint8] | None]:
    try:
        data = Path(entry.path).read_bytes()
        header = read_header(data)
        check_header(header, min_side=prepare.min_side, max_megapixels=prepare.max_megapixels)
        image = decode_checked(data, header, size, prepare.resize)
    except UnreadableImage as error:
        return Record(entry.image_id, entry.class_name, entry.split, error.reason), None
    except OSError as error:
        return Record(entry.image_id, entry.class_name, entry.split, f"unreadable file: {error.strerror}"), None
    notes = []
    suffix = Path(entry.name).suffix.lower()
    if suffix not in _SUFFIXES[header.format]:
        notes.append(f"{header.format} named {suffix or 'without a suffix'}")
    if header.animated:
        notes.append("first frame of an animation")
    if max(header.width, header.height) > 10 * min(header.width, header.height):
        notes.append("very long and thin")
    record = Record(
        entry.image_id,
        entry.class_name,
        entry.split,
        "",
        sha256=hashlib.sha256(data).hexdigest(),
        pixel_sha256=hashlib.sha256(image.data).hexdigest(),
        dhash=make_dhash(image),
        width=header.width,
        height=header.height,
        note="; ".join(notes),
    )
    return record, image


def make_dhash(image: NDArray[np.uint8]) -> int:
    """The 64-bit difference hash of an RGB picture: is each of 8 x 8 cells darker than its right neighbour?

    Source: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes())


def make_thumb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The grey thumbnail of an RGB picture, flat: (THUMB * THUMB,) uint8."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (THUMB, THUMB), interpolation=cv2.INTER_AREA), dtype=np.uint8).ravel()


# --- duplicates -----------------------------------------------------------------------------------------------------

LeftOut = tuple[str, str, str, str]  # path, class, kind, reason


def drop_exact_duplicates(records: Sequence[Record]) -> tuple[list[Record], list[LeftOut]]:
    """Keeps one of each set of pictures with equal pixels per folder split; excludes those with two labels."""
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
    """A group number per record, (num_records,): equal or nearly equal pictures share one, directly or in a chain.

    Nearly equal: dHashes within `bits` and thumbnails that correlate by at least MIN_CORRELATION.
    """
    parents = np.arange(len(records))

    def root_of(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = int(parents[index])
        return index

    def join(left: int, right: int) -> None:
        left, right = root_of(left), root_of(right)
        parents[max(left, right)] = min(left, right)

    first: dict[str, int] = {}
    for index, record in enumerate(records):
        join(first.setdefault(record.pixel_sha256, index), index)
    if bits is not None and len(records) > 1:
        hashes = np.array([record.dhash for record in records], np.uint64)
        rows = np.array([record.row for record in records])
        for left, right in find_close_pairs(hashes, bits):
            alike = _correlate(thumbs[rows[left]], thumbs[rows[right]]) >= MIN_CORRELATION
            for one, other in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
                join(one, other)
    return np.array([root_of(index) for index in range(len(records))], np.int64)


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
    block = max(1, 4_000_000 // len(members))  # at most 4 million distances at once
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


# --- splits ---------------------------------------------------------------------------------------------------------


def split_images(
    records: Sequence[Record], groups: NDArray[np.int64], prepare: Prepare, seed: int
) -> tuple[list[str], str]:
    """The split of each record, and a sentence that says where the splits come from.

    Folders' own splits are kept. What is missing is drawn by a hash of each group's first file, so that added pictures
    move no old one; a class that a split would miss gets the group that is nearest to it.
    """
    given = {record.folder_split for record in records}
    splits = [
        {"train": "train", "validation": "val", "test": "test", None: ""}[record.folder_split] for record in records
    ]
    everyone = list(range(len(records)))
    if given == {None}:
        shares = {"test": prepare.test_share, "val": prepare.val_share}
        note = f"drawn: {prepare.val_share:g} of the groups to val, {prepare.test_share:g} to test, the rest to train"
        pool, rest = everyone, "train"
    elif "validation" in given and "test" not in given:
        shares, rest = {"test": 0.5}, "val"
        note = "train and val are the folders' own; test is half of their validation"
        pool = [index for index in everyone if splits[index] == "val"]
    elif "validation" not in given:
        shares, rest = {"val": prepare.val_share}, "train"
        pool = [index for index in everyone if splits[index] == "train"]
        note = f"val is {prepare.val_share:g} of the folders' train" + (
            "; test is the folders' own" if "test" in given else ""
        )
        if "test" not in given:
            shares = {"test": prepare.test_share, "val": prepare.val_share}
            note = f"drawn from the folders' train: {prepare.val_share:g} to val, {prepare.test_share:g} to test"
    else:
        return splits, "train, val and test are the folders' own"
    if sum(shares.values()) >= 1:
        raise Refused(
            f"prepare.val_share and prepare.test_share add up to {sum(shares.values()):g}; leave something for train."
        )
    drawn = draw_splits([records[index] for index in pool], groups[pool], shares, rest, seed)
    for index, split in zip(pool, drawn, strict=True):
        splits[index] = split
    return splits, note


def draw_splits(
    records: Sequence[Record], groups: NDArray[np.int64], shares: dict[str, float], rest: str, seed: int
) -> list[str]:
    """A split per record: each group falls where its hash, evenly spread over [0, 1), says; `rest` takes what is left."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups.tolist()):
        members[group].append(index)
    # The file's own hash: neither its name nor the size that it is resized to may move it.
    points = {
        group: min(derive_seed(seed, "split", records[index].sha256) for index in indices) / 2**31
        for group, indices in members.items()
    }
    intervals, start = {}, 0.0
    for split, share in shares.items():
        intervals[split] = (start, start + share)
        start += share
    intervals[rest] = (start, 1.0)
    assigned = {
        group: next(split for split, (low, high) in intervals.items() if low <= point < high)
        for group, point in points.items()
    }
    for class_name in sorted({record.class_name for record in records}):
        weights = {
            group: sum(records[index].class_name == class_name for index in indices)
            for group, indices in members.items()
        }
        _balance(assigned, {group: weight for group, weight in weights.items() if weight}, points, intervals)
    return [assigned[group] for group in groups.tolist()]


def _balance(
    assigned: dict[int, str],
    weights: dict[int, int],
    points: dict[int, float],
    intervals: dict[str, tuple[float, float]],
) -> None:
    """Moves a class's groups, those at the borders first, until no split is empty or, by large groups, far from its share.

    A picture without near duplicates moves only to fill an empty split: added pictures shall not move old ones. Groups
    may move while a split is off by more than the standard deviation of a binomial draw. Changes `assigned`.
    """
    total = sum(weights.values())
    shares = {split: high - low for split, (low, high) in intervals.items()}
    counts = dict.fromkeys(intervals, 0)
    for group, weight in weights.items():
        counts[assigned[group]] += weight

    def lack(split: str, change: int = 0) -> float:
        """Pictures missing to the split's share, in standard deviations; infinite where there is none."""
        count, share = counts[split] + change, shares[split]
        return (share * total - count) / max(1.0, (share * (1 - share) * total) ** 0.5) if count > 0 else math.inf

    while True:
        poor, rich = max(intervals, key=lack), min(intervals, key=lack)
        if lack(poor) <= 1 and lack(rich) >= -1:
            return
        low, high = intervals[poor]
        able = [
            (max(low - points[group], points[group] - high), group)
            for group, weight in weights.items()
            if assigned[group] == rich
            and (weight > 1 or counts[poor] == 0)
            and max(abs(lack(poor, weight)), abs(lack(rich, -weight))) < max(abs(lack(poor)), abs(lack(rich)))
        ]
        if not able:
            return
        _, group = min(able)
        assigned[group] = poor
        counts[poor] += weights[group]
        counts[rich] -= weights[group]


# --- checks ---------------------------------------------------------------------------------------------------------


def _skipped_by_fetch(raw: Path) -> list[tuple[str, str]]:
    marker = raw / "complete.json"
    return [(path, reason) for path, reason in load_json(marker).get("skipped", [])] if marker.is_file() else []


def _check_rejected(left_out: Sequence[LeftOut], total: int, prepare: Prepare, raw: Path, work: Path) -> None:
    if len(left_out) <= prepare.max_rejected_share * total:
        return
    report = work.parent.parent / "rejected.csv"
    _write_csv(report, ("path", "class_name", "kind", "reason"), left_out)
    pointers = sum("Git LFS" in reason for _, _, _, reason in left_out)
    if pointers > total / 2:
        raise Refused(
            f"{pointers} of {total} files in {raw} are Git LFS pointers. Run `git lfs pull` where the pictures come from, "
            "then `dvc repro`."
        )
    listed = "\n".join(f"  {path}: {reason}" for path, _, _, reason in left_out[:20])
    more = f"\n  and {len(left_out) - 20} more" if len(left_out) > 20 else ""
    raise Refused(
        f"{len(left_out)} of {total} files in {raw} cannot be used; prepare.max_rejected_share allows "
        f"{prepare.max_rejected_share:.1%}. Mend or remove them, or raise the share. All of them are in {report}:\n{listed}{more}"
    )


def _check_classes(records: Sequence[Record], classes: Sequence[str], prepare: Prepare) -> None:
    counts = Counter(record.class_name for record in records)
    small = [f"{name} ({counts[name]})" for name in classes if counts[name] < prepare.min_per_class]
    if small:
        raise Refused(
            f"Too few usable pictures in {', '.join(small)}; prepare.min_per_class asks for {prepare.min_per_class}. "
            "Add pictures or remove the class."
        )


def _check_leaks(records: Sequence[Record], groups: NDArray[np.int64], prepare: Prepare) -> list[str]:
    """Notes on groups that the folders' own splits tear apart; raises Refused where that is not allowed."""
    members: dict[int, list[Record]] = defaultdict(list)
    for record, group in zip(records, groups.tolist(), strict=True):
        members[group].append(record)
    torn = [same for same in members.values() if len({record.folder_split for record in same}) > 1]
    if not torn:
        return []
    listed = "\n".join("  " + " = ".join(record.image_id for record in same[:4]) for same in torn[:10])
    more = f"\n  and {len(torn) - 10} more" if len(torn) > 10 else ""
    text = (
        f"{len(torn)} pictures stand, equal or nearly equal, in more than one of the folders' splits:\n{listed}{more}"
    )
    if not prepare.allow_leak:
        raise Refused(
            f"{text}\nRemove them from one side, or set prepare.allow_leak: true and distrust the test score."
        )
    return [text]


def _check_splits(records: Sequence[Record], splits: Sequence[str], classes: Sequence[str]) -> None:
    present = {(split, record.class_name) for record, split in zip(records, splits, strict=True)}
    missing = [f"{split}/{name}" for split in SPLITS for name in classes if (split, name) not in present]
    if missing:
        raise Refused(
            f"No picture is left for {', '.join(missing)}: the class has too few distinct pictures. Add some."
        )


# --- writing --------------------------------------------------------------------------------------------------------


def _write(
    destination: Path,
    raw: Path,
    prepare: Prepare,
    size: int,
    classes: Sequence[str],
    records: Sequence[Record],
    splits: Sequence[str],
    shards: Sequence[_Shard],
    left_out: list[LeftOut],
    notes: list[str],
    groups: NDArray[np.int64],
) -> Summary:
    label_of = {name: label for label, name in enumerate(classes)}
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        chosen = [record for record, its in zip(records, splits, strict=True) if its == split]
        counts[split] = dict.fromkeys(classes, 0) | Counter(record.class_name for record in chosen)
        labels = np.array([label_of[record.class_name] for record in chosen], np.int32)
        save_split(
            destination / split,
            _gather(shards, [record.row for record in chosen]),
            size,
            labels,
            [record.image_id for record in chosen],
        )
    rows = [
        (record.image_id, (raw / record.image_id).as_posix(), record.class_name, label_of[record.class_name], split, record.sha256,
         record.pixel_sha256, f"{record.dhash:016x}", record.width, record.height, record.note)
        for record, split in zip(records, splits, strict=True)
    ]  # fmt: skip
    _write_csv(destination / "manifest.csv", MANIFEST_COLUMNS, rows)
    _write_csv(destination / "rejected.csv", ("path", "class_name", "kind", "reason"), sorted(left_out))
    save_json(destination / "classes.json", list(classes))
    digest = hashlib.sha256(
        "\n".join(sorted(f"{row[4]}/{row[3]}/{row[6]}/{row[0]}" for row in rows)).encode()
    ).hexdigest()
    kinds = dict(Counter(kind for _, _, kind, _ in left_out))
    sizes = Counter(groups.tolist())
    mark_complete(
        destination,
        content_sha256=digest,
        num_images={split: sum(counts[split].values()) for split in SPLITS},
        counts=counts,
        left_out=kinds,
        near_duplicate_groups=sum(number > 1 for number in sizes.values()),
        image_size=size,
        resize=prepare.resize,
        notes=notes,
    )
    return Summary(counts, kinds, tuple(notes), digest)


def _gather(shards: Sequence[_Shard], rows: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """The decoded pictures of ascending `rows`, in chunks that lie within one shard."""
    start = 0
    wanted = np.array(rows, np.int64)
    for shard in shards:
        length = sum(not record.reason for record in shard.records)
        low, high = np.searchsorted(wanted, [start, start + length])
        if high > low:
            yield load_array(shard.folder / "images.npy")[wanted[low:high] - start]
        start += length


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
