"""Rows of earlier runs: only what does not exist is made, and what comes out is what a run from nothing gives, bit for bit."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from zoo import make_image

from frostline.arrays import digest_rows, load_split, save_array
from frostline.bases.base import Base, build_base
from frostline.bases.extraction import Extractor, list_sources
from frostline.files import hash_folder
from frostline.images import shards
from frostline.images.preparation import prepare_images
from frostline.images.rows import EarlierRows, made_alike, mark_rows
from frostline.images.views import Drawing, save_views
from frostline.params import Prepare
from frostline.planning.earlier import keep_outputs, kept_folders, list_earlier

SIZE = 40  # maps of 20 x 20, 10 x 10 and 5 x 5: what depends on a place in a batch, shows
TRANSFORMS: list[dict[str, dict[str, Any]]] = [
    {"HorizontalFlip": {"p": 0.5}},
    {"RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.8}},
]


@pytest.fixture(scope="module")
def base() -> Base:
    return build_base("MobileNetV2", SIZE, options={"alpha": 0.35}, output_layer="block_4_add", seed=1)


# --- one array --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[str, NDArray[Any], NDArray[Any]], tuple[Path, Path, Path]]:
    def store(name: str, rows: NDArray[Any], made_from: NDArray[Any]) -> tuple[Path, Path, Path]:
        paths = tmp_path / f"{name}.npy", tmp_path / f"{name}.keys.npy", tmp_path / f"{name}.digests.npy"
        for path, array in zip(paths, (rows, digest_rows(made_from), digest_rows(rows)), strict=True):
            save_array(path, [array], array.shape, array.dtype)
        return paths

    return store


def test_rows_are_found_by_their_keys_in_any_of_several_arrays(stored: Any) -> None:
    rng = np.random.default_rng(0)
    values, origins = rng.normal(size=(50, 3)).astype(np.float32), np.arange(50)
    earlier = EarlierRows((3,), np.float32)
    assert earlier.find(digest_rows(origins)).tolist() == [-1] * 50
    earlier.add(*stored("first", values[:20], origins[:20]))
    earlier.add(*stored("second", values[10:40], origins[10:40]))
    order = rng.permutation(50)
    places = earlier.find(digest_rows(origins[order]))
    assert ((places < 0) == (order >= 40)).all()
    known = order[places >= 0]
    np.testing.assert_array_equal(earlier.take(places[places >= 0]), values[known])
    assert (earlier.check(places) == (places >= 0)).all()


def test_a_row_that_is_not_what_was_written_is_not_used(stored: Any) -> None:
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    array, keys, digests = stored("rows", values, np.arange(10))
    data = bytearray(array.read_bytes())
    data[-4 * 3 * 4 + 1] ^= 1  # a bit of row 6
    array.write_bytes(data)
    earlier = EarlierRows((3,), np.float32)
    earlier.add(array, keys, digests)
    places = earlier.find(digest_rows(np.arange(10)))
    assert np.flatnonzero(~earlier.check(places)).tolist() == [6]
    assert np.flatnonzero(~earlier.take_sound(places)[1]).tolist() == [6]


def test_arrays_of_another_shape_type_or_length_or_gone_are_left_out(stored: Any, tmp_path: Path) -> None:
    array, keys, digests = stored("rows", np.zeros((4, 3), np.float32), np.arange(4))
    for shape, kind in (((2,), np.float32), ((3,), np.float16)):
        earlier = EarlierRows(shape, kind)
        earlier.add(array, keys, digests)
        assert (earlier.find(digest_rows(np.arange(4))) == -1).all()
    earlier = EarlierRows((3,), np.float32)
    earlier.add(tmp_path / "gone.npy", keys, digests)
    earlier.add(array, stored("short", np.zeros((3, 3), np.float32), np.arange(3))[1], digests)
    array.write_bytes(array.read_bytes()[:60])
    earlier.add(array, keys, digests)
    assert (earlier.find(digest_rows(np.arange(4))) == -1).all()


# --- outputs that are kept --------------------------------------------------------------------------------------------


def make_output(folder: Path, content: bytes) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "array.npy").write_bytes(content * 1000)
    (folder / "complete.json").write_text(repr(content))
    mark_rows(folder, {"made": "so"})


def test_outputs_are_kept_as_links_until_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = Path("data/views")
    assert keep_outputs(["data/views"], tmp_path, 1) == [] and list_earlier("data/views", tmp_path) == []
    for content in (b"a", b"b", b"b", b"a"):
        make_output(output, content)
        assert keep_outputs(["data/views"], tmp_path, 1) == []
    first, second = list_earlier("data/views", tmp_path)
    assert (first / "array.npy").read_bytes()[:1] == b"a" and (second / "array.npy").read_bytes()[:1] == b"b"
    make_output(output, b"c")
    (said,) = keep_outputs(["data/views"], tmp_path, 2500e-9)
    assert "storage.kept_gb" in said
    kept = list_earlier("data/views", tmp_path)
    assert [(folder / "array.npy").read_bytes()[:1] for folder in kept] == [b"c", b"a"]
    assert (kept[0] / "array.npy").samefile(output / "array.npy")
    assert [folder for folder, _ in kept_folders(tmp_path)] == kept
    assert made_alike(kept, {"made": "so"}) == kept and made_alike(kept, {"made": "otherwise"}) == []


def test_half_an_output_is_not_kept_and_what_a_killed_process_left_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_output(Path("data/views"), b"a")
    Path("data/views/complete.json").unlink()
    keep_outputs(["data/views", "data/gone"], tmp_path, 1)
    assert kept_folders(tmp_path) == []
    make_output(Path("data/views"), b"a")
    left = tmp_path / ".frostline/earlier/data-views/.half"
    left.mkdir(parents=True)
    keep_outputs(["data/views"], tmp_path, 1)
    assert len(list_earlier("data/views", tmp_path)) == 1 and not left.exists()


# --- the line ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What the three stages are asked for: files of `raw` by name, views, depths, and the share of `val`."""

    files: tuple[tuple[str, int], ...]  # name below raw, number of the image
    views: int = 3
    depths: tuple[int, ...] = (1,)
    val_share: float = 0.2


def run_line(setting: Setting, place: Path, base: Base, earlier: dict[str, list[Path]]) -> dict[str, int]:
    """prepare, augment and extract into `place`, as the stages do; how many views and rows of features were made."""
    for name, number in setting.files:
        file = place / "raw" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cv2.imencode(".png", make_image(number, 40, 36))[1].tobytes())
    prepare = Prepare(val_share=setting.val_share, test_share=0.2, min_per_class=3)
    # The manifest has the paths of the files.
    with contextlib.chdir(place):
        raw, prepared, work = Path("raw"), Path("prepared"), Path("work/shards")
        known = earlier["prepared"]
        prepare_images(raw, prepared, prepare, size=SIZE, seed=7, work=work, workers=1, earlier=known)
    train, val = (load_split(place / "prepared" / split) for split in ("train", "val"))
    drawing = Drawing((place / "prepared/train/images.npy",), train.digests, TRANSFORMS, 7, tuple(earlier["views"]))
    drawn = sum(number for _, number in save_views(drawing, place / "views", num_views=setting.views, workers=1))
    mark_rows(place / "views", {})
    sources = list_sources(train, val, place / "views", setting.views, mirrored=True)
    extractor = Extractor(base, list(setting.depths), 8)
    computed = sum(number for _, number in extractor.save(sources, place / "features", earlier=earlier["features"]))
    return {"drawn": drawn, "computed": computed}


def change(setting: Setting, rng: np.random.Generator) -> Setting:
    """One change of those that people make."""
    files = list(setting.files)
    place = int(rng.integers(len(files)))
    name, number = files[place]
    other = {"a": "b", "b": "a"}[name[0]]
    kind = rng.choice(["add", "remove", "relabel", "rename", "views", "depth", "split", "edit"])
    if kind == "add":
        files.append((f"{rng.choice(['a', 'b'])}/new-{rng.integers(10**6)}.png", int(rng.integers(10**6))))
    elif kind == "remove" and len(files) > 30:
        files.pop(place)
    elif kind == "relabel":
        files[place] = (f"{other}/{name[2:]}", number)
    elif kind == "rename":
        files[place] = (f"{name[0]}/again-{rng.integers(10**6)}.png", number)
    elif kind == "edit":
        files[place] = (name, number + 10**6)
    elif kind == "views":
        return replace(setting, views=int(rng.integers(1, 5)))
    elif kind == "depth":
        return replace(setting, depths=tuple(range(1, int(rng.integers(2, 4)))))
    elif kind == "split":
        return replace(setting, val_share=float(rng.choice([0.2, 0.3])))
    return replace(setting, files=tuple(files))


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_changes_gives_what_a_run_from_nothing_gives(seed: int, base: Base, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    setting = Setting(tuple((f"{'ab'[number % 2]}/{number}.png", number) for number in range(40)))
    earlier: dict[str, list[Path]] = {"prepared": [], "views": [], "features": []}
    for step in range(5):
        place = tmp_path / f"step-{step}"
        run_line(setting, place, base, earlier)
        run_line(setting, tmp_path / "fresh", base, {output: [] for output in earlier})
        for output, folders in earlier.items():
            assert hash_folder(place / output) == hash_folder(tmp_path / "fresh" / output), f"{output}, step {step}"
            folders.insert(0, place / output)
        shutil.rmtree(tmp_path / "fresh")
        setting = change(setting, rng)


def test_only_rows_that_do_not_exist_are_made(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tuple((f"{'ab'[number % 2]}/{number}.png", number) for number in range(40))
    setting = Setting(files)
    nothing: dict[str, list[Path]] = {"prepared": [], "views": [], "features": []}
    first = run_line(setting, tmp_path / "first", base, nothing)
    assert first["drawn"] > 0 and first["computed"] > first["drawn"]
    earlier = {output: [tmp_path / "first" / output] for output in nothing}
    decoded = []
    decode = shards.decode_checked
    monkeypatch.setattr(shards, "decode_checked", lambda *given: decoded.append(1) or decode(*given))

    assert run_line(setting, tmp_path / "same", base, earlier) == {"drawn": 0, "computed": 0} and not decoded
    renamed = replace(setting, files=tuple((f"{'ba'[name[0] == 'b']}/x{name[2:]}", number) for name, number in files))
    made = run_line(renamed, tmp_path / "renamed", base, earlier)
    assert made["drawn"] == made["computed"] == 0  # every label and every name is another
    more = run_line(replace(setting, views=4), tmp_path / "views", base, earlier)
    train = len(load_split(tmp_path / "first/prepared/train").labels)
    assert more == {"drawn": train, "computed": train}
    fewer = run_line(replace(setting, views=2), tmp_path / "fewer", base, earlier)
    assert fewer == {"drawn": 0, "computed": 0}
    passes = []
    shorten = Extractor.shorten
    monkeypatch.setattr(Extractor, "shorten", lambda self, places: passes.append(places) or shorten(self, places))
    deeper = run_line(replace(setting, depths=(1, 2)), tmp_path / "deeper", base, earlier)
    assert deeper["drawn"] == 0 and deeper["computed"] == first["computed"]
    assert passes and all(places == [1] for places in passes)  # the maps of depth 2 alone, by a pass that ends there
    run_line(replace(setting, depths=(1, 2)), tmp_path / "deeper-fresh", base, nothing)
    assert hash_folder(tmp_path / "deeper/features") == hash_folder(tmp_path / "deeper-fresh/features")
    one = run_line(replace(setting, files=(*files, ("a/new.png", 999))), tmp_path / "one", base, earlier)
    assert one["drawn"] <= 2 and one["computed"] <= 4 and len(decoded) == 1 + 40  # and those of the run from nothing
