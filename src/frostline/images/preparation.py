"""Raw class folders -> decoded, checked, de-duplicated and split arrays."""

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import DIGEST, DIGESTS, save_array, save_split
from frostline.errors import Refused
from frostline.files import load_json, mark_complete, replacing, save_json
from frostline.images.decisions import Decision, decide
from frostline.images.duplicates import LeftOut, drop_exact_duplicates, group_near_duplicates
from frostline.images.folders import read_layout
from frostline.images.rows import made_alike, mark_rows
from frostline.images.shards import FILES, Record, Shard, decode_shards, decoding_facts, gather_images, load_thumbs
from frostline.images.splits import split_images
from frostline.params import Prepare
from frostline.process import count_cores
from frostline.scale.local import HERE
from frostline.scale.work import Engine

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


@dataclass(frozen=True)
class Summary:
    """What `prepare_images` did: images per split and class, files left out by kind, and what to tell the user."""

    counts: dict[str, dict[str, int]]
    left_out: dict[str, int]
    notes: tuple[str, ...]
    content_sha256: str


def prepare_images(
    raw: Path,
    destination: Path,
    prepare: Prepare,
    *,
    size: int,
    seed: int,
    work: Path,
    workers: int | None = None,
    decisions: Mapping[str, Decision] | None = None,
    earlier: Sequence[Path] = (),
    code: str = "",
    engine: Engine = HERE,
) -> Summary:
    """Decodes, checks, de-duplicates and splits `raw`, and writes the folder `destination`.

    `work` keeps decoded shards, so that a killed run goes on. decisions: of people about images, by id. earlier: folders that
    earlier runs wrote; files that were decoded there, by the same code (its digest) with the same options, are not decoded
    again. Neither they nor the engine and the number of `workers` change anything but the time.
    Raises Refused where the images cannot make a sound data set, naming files and classes.
    """
    layout = read_layout(raw)
    if len(layout.classes) < 2:
        raise Refused(f"{raw} holds one class, {layout.classes[0]!r}; at least 2 are needed to tell apart.")
    facts = decoding_facts(prepare, size, code)
    known = [folder / split for folder in made_alike(earlier, facts) for split in SPLITS]
    shards = decode_shards(layout.entries, prepare, size, work, workers or count_cores(), known, engine)
    records = [record for shard in shards for record in shard.records]
    usable = [record for record in records if not record.reason]
    skipped = _skipped_by_fetch(raw) + list(layout.skipped)
    left_out = [
        (record.image_id, record.class_name, "unreadable", record.reason) for record in records if record.reason
    ]
    left_out += [(path, "", "skipped", reason) for path, reason in skipped]
    _check_rejected(left_out, len(records) + len(skipped), prepare, raw, work)

    decided = decide(usable, decisions or {}, layout.classes)
    kept, duplicates = drop_exact_duplicates(decided.records)
    left_out += [*decided.dropped, *duplicates]
    _check_classes(kept, layout.classes, prepare)
    groups = group_near_duplicates(kept, load_thumbs(shards), prepare.near_duplicate_bits)
    notes = [*layout.notes, *decided.notes]
    notes += _dark_note(kept, prepare)
    notes += _check_leaks(kept, groups, prepare)
    splits, split_note = split_images(kept, groups, prepare, seed)
    notes.append(split_note)
    _check_splits(kept, splits, layout.classes)
    changed = Counter(
        split for record, split in zip(kept, splits, strict=True) if record.image_id in decided.relabelled
    )
    summary = _write(
        destination, raw, prepare, size, layout.classes, kept, splits, shards, left_out, notes, groups, changed
    )
    mark_rows(destination, facts)
    return summary


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
            f"{pointers} of {total} files in {raw} are Git LFS pointers. Run `git lfs pull` where the images come from, "
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
            f"Too few usable images in {', '.join(small)}; prepare.min_per_class asks for {prepare.min_per_class}. "
            "Add images or remove the class."
        )


def _dark_note(records: Sequence[Record], prepare: Prepare) -> list[str]:
    """A note where 16-bit images leave their upper bits empty, so that they come out dark."""
    deep = [record.used_bits for record in records if record.used_bits]
    if not deep or max(deep) >= prepare.bits:
        return []
    used = max(9, max(deep))
    return [
        f"{len(deep)} images have 16 bits, of which at most {max(deep)} are used: they come out dark. If their camera has no more, "
        f"set prepare.bits: {used}, which makes its brightest white"
    ]


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
    text = f"{len(torn)} images stand, equal or nearly equal, in more than one of the folders' splits:\n{listed}{more}"
    if not prepare.allow_leak:
        raise Refused(
            f"{text}\nRemove them from one side, or set prepare.allow_leak: true and distrust the test score."
        )
    return [text]


def _check_splits(records: Sequence[Record], splits: Sequence[str], classes: Sequence[str]) -> None:
    present = {(split, record.class_name) for record, split in zip(records, splits, strict=True)}
    missing = [f"{split}/{name}" for split in SPLITS for name in classes if (split, name) not in present]
    if missing:
        raise Refused(f"No image is left for {', '.join(missing)}: the class has too few distinct images. Add some.")


def _write(
    destination: Path,
    raw: Path,
    prepare: Prepare,
    size: int,
    classes: Sequence[str],
    records: Sequence[Record],
    splits: Sequence[str],
    shards: Sequence[Shard],
    left_out: list[LeftOut],
    notes: list[str],
    groups: NDArray[np.int64],
    relabelled: Mapping[str, int],
) -> Summary:
    label_of = {name: label for label, name in enumerate(classes)}
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        chosen = [record for record, its in zip(records, splits, strict=True) if its == split]
        own = groups[[its == split for its in splits]]
        counts[split] = dict.fromkeys(classes, 0) | Counter(record.class_name for record in chosen)
        labels = np.array([label_of[record.class_name] for record in chosen], np.int32)
        save_split(
            destination / split,
            gather_images(shards, [record.row for record in chosen]),
            size,
            labels,
            [record.image_id for record in chosen],
            own,
        )
        files = [bytes.fromhex(record.sha256)[:DIGEST] for record in chosen]
        digests = np.frombuffer(b"".join(files), np.uint8).reshape(-1, DIGEST)
        save_array(destination / split / DIGESTS / FILES, [digests], digests.shape, np.uint8)
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
        relabelled=dict(relabelled),
        near_duplicate_groups=sum(number > 1 for number in sizes.values()),
        image_size=size,
        resize=prepare.resize,
        # Validation images that a person set apart may be meant to stay unseen; see refit.train_on_val.
        val_is_drawn=all(record.folder_split != "validation" for record in records),
        notes=notes,
    )
    return Summary(counts, kinds, tuple(notes), digest)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
