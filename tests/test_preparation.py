"""Preparation: what is kept, what is left out and why, and which split everything falls into."""

import csv
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from zoo import encode, make_image, make_readable, make_unreadable

from frostline.arrays import load_array, load_split
from frostline.errors import Refused
from frostline.files import load_json, require_complete
from frostline.images import shards
from frostline.images.duplicates import find_close_pairs, group_near_duplicates
from frostline.images.preparation import MANIFEST_COLUMNS, Summary, prepare_images
from frostline.images.shards import Record, make_fingerprints
from frostline.images.splits import draw_splits
from frostline.params import Prepare


def add_images(folder: Path, count: int, first: int, kind: str = "PNG") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        (folder / f"{seed}.{kind.lower()}").write_bytes(encode(make_image(seed, 48, 40), kind))


def make_raw(root: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        add_images(root / name, count, 1000 * (number + 1))
    return root


def prepare(
    raw: Path, name: str = "prepared", workers: int = 2, seed: int = 7, size: int = 32, **settings: Any
) -> Summary:
    place = raw.parent
    return prepare_images(
        raw, place / name, Prepare(**settings), size=size, seed=seed, work=place / "work" / "x" / "y", workers=workers
    )


def splits_of(folder: Path) -> dict[str, str]:
    return {row["image_id"]: row["split"] for row in rows_of(folder / "manifest.csv")}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_arrays_labels_ids_and_manifest_agree(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 20, "dogs": 30})
    summary = prepare(raw)
    folder = tmp_path / "prepared"
    rows = rows_of(folder / "manifest.csv")
    assert tuple(rows[0]) == MANIFEST_COLUMNS and len(rows) == 50
    assert load_json(folder / "classes.json") == ["cats", "dogs"]
    for split in ("train", "val", "test"):
        loaded = load_split(folder / split)
        mine = [row for row in rows if row["split"] == split]
        assert list(loaded.ids) == [row["image_id"] for row in mine]
        assert loaded.labels.dtype == np.int32 and loaded.labels.tolist() == [int(row["label"]) for row in mine]
        for image, row in zip(loaded.images, mine, strict=True):
            seed = int(Path(row["image_id"]).stem)
            assert np.array_equal(image, cv2.resize(make_image(seed, 48, 40), (32, 32), interpolation=cv2.INTER_LINEAR))
            assert Path(row["path"]).read_bytes() == (raw / row["image_id"]).read_bytes()
        assert summary.counts[split] == {
            name: sum(row["class_name"] == name for row in mine) for name in ("cats", "dogs")
        }
    facts = require_complete(folder)
    assert facts["counts"] == summary.counts and facts["content_sha256"] == summary.content_sha256


def test_the_zoo_is_sorted_into_used_and_named_with_reasons(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 20, "dogs": 20})
    unreadable = make_unreadable()
    del unreadable["100-megapixel.png"]  # slow to draw, and tested with the decoder
    for name, (data, _) in unreadable.items():
        (raw / "cats" / f"bad-{name}").write_bytes(data)
    for name, (data, _) in make_readable().items():
        (raw / "dogs" / f"good-{name}").write_bytes(data)
    (raw / "complete.json").write_text('{"skipped": [["cats/pipe.jpg", "a pipe, not a plain file"]]}')
    summary = prepare(raw, max_rejected_share=0.9)
    left_out = {row["path"]: row for row in rows_of(tmp_path / "prepared" / "rejected.csv")}
    for name, (_, word) in unreadable.items():
        row = left_out.pop(f"cats/bad-{name}")
        assert row["kind"] == "unreadable" and word in row["reason"] and row["class_name"] == "cats"
    assert left_out.pop("cats/pipe.jpg")["kind"] == "skipped"
    assert left_out and all(row["kind"] == "duplicate" for row in left_out.values())  # of one image in many formats
    assert summary.left_out["unreadable"] == len(unreadable)
    notes = {row["image_id"]: row["note"] for row in rows_of(tmp_path / "prepared" / "manifest.csv")}
    assert notes["dogs/good-jpeg-named.png"] == "JPEG named .png" or "dogs/good-jpeg-named.png" in left_out
    assert notes["dogs/good-animated.gif"] == "first frame of an animation"


def test_too_many_bad_files_are_refused_by_name_and_all_are_listed(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 20, "dogs": 20})
    for number in range(5):
        (raw / "dogs" / f"bad{number}.jpg").write_bytes(b"")
    with pytest.raises(Refused, match=r"(?s)5 of 45 files.*5\.0%.*dogs/bad0\.jpg: empty file"):
        prepare(raw)
    assert not (tmp_path / "prepared").exists()
    assert len(rows_of(tmp_path / "work" / "rejected.csv")) == 5


def test_lfs_pointers_are_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "raw" / name / f"{number}.jpg").write_bytes(
                b"version https://git-lfs.github.com/spec/v1\noid x\n"
            )
    with pytest.raises(Refused, match="git lfs pull"):
        prepare(tmp_path / "raw")


@pytest.mark.parametrize(
    ("counts", "word"),
    [({"cats": 20}, "at least 2"), ({"cats": 20, "dogs": 4}, r"dogs \(4\).*min_per_class asks for 5")],
)
def test_one_class_or_a_tiny_one_is_refused(tmp_path: Path, counts: dict[str, int], word: str) -> None:
    with pytest.raises(Refused, match=word):
        prepare(make_raw(tmp_path / "raw", counts))


def test_the_number_of_workers_and_their_kind_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 40, "dogs": 40})
    monkeypatch.setattr(shards, "SHARD_BYTES", 32 * 32 * 3 * 16)
    contents = []
    for number, (workers, processes_from) in enumerate([(1, 10**9), (4, 10**9), (2, 1)]):
        monkeypatch.setattr(shards, "PROCESSES_FROM", processes_from)
        place = tmp_path / str(number)
        place.mkdir()
        prepare_images(raw, place / "prepared", Prepare(), size=32, seed=7, work=place / "w", workers=workers)
        contents.append(
            {
                str(path.relative_to(place)): path.read_bytes()
                for path in sorted((place / "prepared").rglob("*"))
                if path.is_file()
            }
        )
    assert contents[0] == contents[1] == contents[2]


def test_a_killed_run_goes_on_with_its_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 40, "dogs": 40})
    monkeypatch.setattr(shards, "SHARD_BYTES", 32 * 32 * 3 * 16)
    decode, calls = shards._decode_shard, []

    def counted(known: Any, folder: Path, *rest: Any) -> Iterator[Any]:
        calls.append(folder.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        yield from decode(known, folder, *rest)

    monkeypatch.setattr(shards, "_decode_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, workers=1)
    done = len(list((tmp_path / "work").rglob("shard-*/complete.json")))
    assert done >= 2
    calls[:] = [""] * 3
    prepare(raw, workers=1)
    assert len(calls) - 3 == 5 - done
    (raw / "cats" / "1000.png").write_bytes(encode(make_image(1, 60, 60), "PNG"))  # a changed file is decoded again
    calls[:] = [""] * 3
    prepare(raw, "again", workers=1)
    assert len(calls) - 3 == 1


# --- duplicates


def test_equal_pixels_within_a_class_are_kept_once(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 20, "dogs": 20})
    (raw / "cats/copy.png").write_bytes((raw / "cats/1003.png").read_bytes())
    (raw / "cats/same.bmp").write_bytes(encode(make_image(1003, 48, 40), "BMP"))  # other bytes, same pixels
    assert prepare(raw).left_out == {"duplicate": 2}
    reasons = {row["path"]: row["reason"] for row in rows_of(tmp_path / "prepared/rejected.csv")}
    assert reasons == dict.fromkeys(("cats/copy.png", "cats/same.bmp"), "the same pixels as cats/1003.png")


def test_equal_pixels_in_two_classes_are_excluded_as_conflicting(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 20, "dogs": 20})
    (raw / "dogs/cat.png").write_bytes((raw / "cats/1003.png").read_bytes())
    assert prepare(raw).left_out == {"conflict": 2}
    rows = rows_of(tmp_path / "prepared/rejected.csv")
    assert [row["path"] for row in rows] == ["cats/1003.png", "dogs/cat.png"]
    assert all("conflicting label" in row["reason"] for row in rows)


CHANGES: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "re-encoded": lambda pixels: encode(pixels, "JPEG", quality=50),
    "half as large": lambda pixels: encode(
        cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), "PNG"
    ),
    "brighter": lambda pixels: encode(np.clip(pixels * 1.1, 0, 255).astype(np.uint8), "PNG"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_duplicates_never_cross_splits(tmp_path: Path, change: str) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 25, "dogs": 25})
    for path in sorted(raw.rglob("*.png")):
        pixels = make_image(int(path.stem), 96, 80)
        path.write_bytes(encode(pixels, "PNG"))
        path.with_name(path.stem + "-again.jpg").write_bytes(CHANGES[change](pixels))
    prepare(raw)
    splits = splits_of(tmp_path / "prepared")
    assert len(splits) == 100
    for image_id, split in splits.items():
        if "again" not in image_id:
            assert splits[image_id.replace(".png", "-again.jpg")] == split
    assert load_json(tmp_path / "prepared/complete.json")["near_duplicate_groups"] == 50


def test_near_duplicates_can_be_switched_off(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 20, "dogs": 20})
    (raw / "cats/again.jpg").write_bytes(encode(make_image(1003, 48, 40), "JPEG", quality=50))
    prepare(raw, near_duplicate_bits=None)
    assert load_json(tmp_path / "prepared/complete.json")["near_duplicate_groups"] == 0


def test_a_leak_between_the_folders_own_splits_is_refused_or_named(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number, split in enumerate(("train", "validation", "test")):
        make_raw(raw / split, {"cats": 8, "dogs": 8})
        for name in ("cats", "dogs"):
            for file in (raw / split / name).iterdir():
                file.write_bytes(encode(make_image(int(file.stem) + 100 * number, 48, 40), "PNG"))
    prepare(raw, "clean")
    (raw / "test/cats/leaked.jpg").write_bytes(encode(make_image(1001, 48, 40), "JPEG", quality=60))
    with pytest.raises(Refused, match=r"(?s)test/cats/leaked\.jpg = train/cats/1001\.png.*allow_leak"):
        prepare(raw)
    summary = prepare(raw, allow_leak=True)
    assert any("leaked.jpg" in note for note in summary.notes)
    assert splits_of(tmp_path / "prepared")["test/cats/leaked.jpg"] == "test"


def test_close_hashes_are_all_found_by_parts_as_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 4000, dtype=np.uint64)
    flips = [
        np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, size, replace=False).astype(np.uint64))
        for size in rng.integers(1, 7, 4000)
    ]
    hashes = np.concatenate(
        [np.repeat(centres, 4), centres ^ np.array(flips, np.uint64), rng.integers(0, 2**64, 3000, dtype=np.uint64)]
    )
    assert len(hashes) > 20_000  # so that the parts are used
    found = {
        pair for left, right in find_close_pairs(hashes, 4) for pair in zip(left.tolist(), right.tolist(), strict=True)
    }
    brute = set()
    for index in range(len(hashes)):
        close = np.flatnonzero(np.bitwise_count(hashes[index + 1 :] ^ hashes[index]) <= 4) + index + 1
        brute |= {(index, other) for other in close.tolist()}
    assert found == brute


def test_flat_backgrounds_alone_make_no_duplicates() -> None:
    """Two figures on one background: few bits of dHash differ, but the thumbnails do."""
    background = make_image(5, 96, 96)
    images = []
    for column in (10, 60):
        image = background.copy()
        image[20:80, column : column + 30] = 0
        images.append(image)
    prints = [make_fingerprints(image) for image in images]
    records = [Record(str(row), "a", None, "", pixel_sha256=str(row), dhash=0, row=row) for row in range(2)]
    assert group_near_duplicates(records, np.stack([thumb for _, thumb in prints]), 4).tolist() == [0, 1]


# --- splits


def make_records(count: int, class_name: str = "a", first: int = 0) -> list[Record]:
    return [
        Record(f"{class_name}/{n}", class_name, None, "", sha256=f"{class_name}{n}", pixel_sha256=f"{class_name}{n}")
        for n in range(first, first + count)
    ]


def draw(records: Sequence[Record], groups: Sequence[int] | None = None, seed: int = 7) -> dict[str, str]:
    numbers = np.arange(len(records)) if groups is None else np.array(groups)
    splits = draw_splits(records, numbers, {"test": 0.2, "val": 0.2}, "train", seed)
    return {record.image_id: split for record, split in zip(records, splits, strict=True)}


@pytest.mark.parametrize("seed", range(10))
def test_added_images_leave_the_old_ones_in_their_split(seed: int) -> None:
    old = make_records(40, "a") + make_records(200, "b")
    before = draw(old, seed=seed)
    after = draw(make_records(10, "a", first=40) + old + make_records(10, "b", first=200), seed=seed)
    assert {image_id: after[image_id] for image_id in before} == before


def test_a_split_depends_on_content_and_seed_not_on_order_or_names() -> None:
    records = make_records(100)
    assert draw(records) == draw(records[::-1])
    assert draw(records) != draw(records, seed=8)


@pytest.mark.parametrize("count", [5, 6, 8, 20])
def test_every_class_is_in_every_split_however_small(count: int) -> None:
    for seed in range(30):
        assert set(draw(make_records(count) + make_records(500, "b"), seed=seed).values()) == {"train", "val", "test"}
        assert {split for image_id, split in draw(make_records(count), seed=seed).items()} == {"train", "val", "test"}


def test_shares_are_kept_within_the_spread_of_a_draw() -> None:
    counts = Counter(draw(make_records(5000)).values())
    assert abs(counts["test"] - 1000) < 100 and abs(counts["val"] - 1000) < 100


def test_large_groups_of_near_duplicates_do_not_skew_a_split() -> None:
    for seed in range(10):
        records = make_records(400)
        counts = Counter(draw(records, groups=[index // 20 for index in range(400)], seed=seed).values())
        assert abs(counts["test"] - 80) <= 20 and abs(counts["val"] - 80) <= 20


def test_folders_own_train_and_validation_are_kept_and_half_of_validation_becomes_test(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    make_raw(raw / "train", {"cats": 10, "dogs": 10})
    for number, name in enumerate(("cats", "dogs")):
        add_images(raw / "validation" / name, 30, 5000 + 1000 * number)
    summary = prepare(raw)
    splits = splits_of(tmp_path / "prepared")
    assert {image_id for image_id, split in splits.items() if split == "train"} == {
        i for i in splits if i.startswith("train/")
    }
    assert set(Counter(splits.values())) == {"train", "val", "test"}
    for name in ("cats", "dogs"):
        assert (
            8 <= summary.counts["test"][name] <= 22 and summary.counts["val"][name] + summary.counts["test"][name] == 30
        )
    assert any("half of their validation" in note for note in require_complete(tmp_path / "prepared")["notes"])


def test_folders_own_test_is_kept_and_val_is_drawn_from_train(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    make_raw(raw / "train", {"cats": 30, "dogs": 30})
    for number, name in enumerate(("cats", "dogs")):
        add_images(raw / "test" / name, 10, 5000 + 1000 * number)
    prepare(raw)
    splits = splits_of(tmp_path / "prepared")
    assert {i for i, split in splits.items() if split == "test"} == {i for i in splits if i.startswith("test/")}
    assert {split for i, split in splits.items() if i.startswith("train/")} == {"train", "val"}


def test_a_resized_data_set_keeps_its_split(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw", {"cats": 30, "dogs": 30})
    prepare(raw, "small", size=32)
    prepare(raw, "large", size=48)
    assert splits_of(tmp_path / "small") == splits_of(tmp_path / "large")


def test_imbalanced_classes_are_both_everywhere(tmp_path: Path) -> None:
    summary = prepare(make_raw(tmp_path / "raw", {"cats": 50, "dogs": 5}))
    assert all(count > 0 for counts in summary.counts.values() for count in counts.values())


# --- memory


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from frostline.params import Prepare\nfrom frostline.images import shards\n"
        "from frostline.images.preparation import prepare_images\n"
        "shards.SHARD_BYTES = 1_000_000\nraw = Path(sys.argv[1])\n"
        "prepare_images(raw, raw.parent / (raw.name + '-out'), Prepare(), size=96, seed=1, work=raw.parent / 'w', workers=2)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for count in (30, 300):
        raw = make_raw(tmp_path / str(count), {"cats": count, "dogs": count})
        done = subprocess.run([sys.executable, "-c", code, str(raw)], capture_output=True, check=True, text=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.2 * peaks[0]


# --- real images


@pytest.mark.parametrize("name", ["cats_vs_dogs", "horses_or_humans"])
def test_the_reference_labs_images_pass_without_a_leak(tmp_path: Path, shared: Path, name: str) -> None:
    summary = prepare_images(
        shared / "data" / name, tmp_path / "prepared", Prepare(), size=64, seed=7, work=tmp_path / "w"
    )
    assert not summary.left_out
    for counts in summary.counts.values():
        assert max(counts.values()) < 1.6 * min(counts.values())


def test_sixteen_bit_images_that_use_twelve_are_noted_and_the_param_mends_them(tmp_path: Path) -> None:
    import cv2

    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.integers(0, 4096, (40, 40), dtype=np.uint16)
            cv2.imwrite(str(tmp_path / "raw" / name / f"{index}.png"), pixels)
    dark, light = (
        prepare_images(
            tmp_path / "raw", tmp_path / f"out{bits}", Prepare(bits=bits), size=32, seed=1, work=tmp_path / "w"
        )
        for bits in (16, 12)
    )
    assert "set prepare.bits: 12" in "; ".join(dark.notes)
    assert "prepare.bits" not in "; ".join(light.notes)
    means = [load_array(tmp_path / f"out{bits}" / "train" / "images.npy").mean() for bits in (16, 12)]
    assert means[0] < 10 < 120 < means[1]
