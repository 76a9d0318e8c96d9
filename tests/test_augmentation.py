"""Views: equal whoever makes them and in whatever order; mistakes in the transforms are refused, all at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
from numpy.typing import NDArray
from zoo import make_image

from frostline.arrays import digest_rows, load_array, save_array
from frostline.errors import Refused
from frostline.files import load_json, part_of
from frostline.images.transforms import build_transforms, check_transforms
from frostline.images.views import (
    Drawing,
    digest_recipe,
    make_preview,
    make_view,
    make_views,
    save_recipe,
    save_views,
    view_seed,
)

TRANSFORMS: list[dict[str, dict[str, Any]]] = [
    {"HorizontalFlip": {"p": 0.5}},
    {"Affine": {"scale": [0.8, 1.2], "rotate": [-20, 20], "border_mode": 4, "p": 0.8}},
    {"RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5}},
    {"OneOf": {"transforms": [{"GaussNoise": {"p": 1.0}}, {"CoarseDropout": {"p": 1.0}}], "p": 0.5}},
]
NUM, SIZE = 300, 32


def save(files: Sequence[Path], images: NDArray[np.uint8], folder: Path, num_views: int, **options: Any) -> list[int]:
    """How many rows of each view had to be drawn."""
    drawing = Drawing(tuple(files), digest_rows(images), TRANSFORMS, 7, tuple(options.pop("earlier", ())))
    return [drawn for _, drawn in save_views(drawing, folder, num_views=num_views, **{"workers": 1} | options)]


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.stack([make_image(seed, SIZE, SIZE) for seed in range(NUM)])


@pytest.fixture
def images_file(tmp_path: Path, images: NDArray[np.uint8]) -> Path:
    save_array(tmp_path / "images.npy", [images], images.shape, np.uint8)
    return tmp_path / "images.npy"


def test_a_view_does_not_depend_on_the_order_of_the_images(images: NDArray[np.uint8]) -> None:
    pipeline = build_transforms(TRANSFORMS)
    digests = digest_rows(images)
    views = make_views(images, digests, pipeline, view=3, seed=7)
    order = np.random.default_rng(0).permutation(NUM)
    again = make_views(images[order], digests[order], build_transforms(TRANSFORMS), view=3, seed=7)
    assert np.array_equal(again, views[order])


def test_views_differ_by_seed_number_and_pixels(images: NDArray[np.uint8]) -> None:
    pipeline = build_transforms(TRANSFORMS)
    same, digests = np.repeat(images[:1], 20, 0), digest_rows(images[:20])
    views = make_views(same, digests, pipeline, view=1, seed=7)
    assert len({view.tobytes() for view in views}) > 15
    for other in (
        make_views(same, digests, pipeline, view=2, seed=7),
        make_views(same, digests, pipeline, view=1, seed=8),
    ):
        assert not np.array_equal(views, other)


def test_the_plain_image_is_view_zero_and_is_never_changed(images: NDArray[np.uint8]) -> None:
    before = images.copy()
    digests = digest_rows(images)
    assert np.array_equal(make_views(images[:5], digests[:5], build_transforms(TRANSFORMS), view=0, seed=7), before[:5])
    make_views(images, digests, build_transforms([{"CoarseDropout": {"p": 1.0}}]), view=1, seed=7)
    assert np.array_equal(images, before)


def test_the_number_of_workers_changes_no_view(tmp_path: Path, images: NDArray[np.uint8], images_file: Path) -> None:
    for workers in (1, 2):
        save([images_file], images, tmp_path / str(workers), 3, workers=workers)
    for view in (1, 2):
        one, two = (load_array(tmp_path / str(workers) / f"view-{view:03d}.npy") for workers in (1, 2))
        assert np.array_equal(
            one, make_views(images, digest_rows(images), build_transforms(TRANSFORMS), view=view, seed=7)
        )
        assert np.array_equal(one, two)
    assert sorted(file.name for file in (tmp_path / "2").iterdir()) == ["digests", "view-001.npy", "view-002.npy"]


def test_images_of_several_files_are_one_view_in_their_order(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    files = [tmp_path / "train.npy", tmp_path / "val.npy"]
    for file, part in zip(files, (images[:200], images[200:]), strict=True):
        save_array(file, [part], part.shape, np.uint8)
    save(files, images, tmp_path / "views", 2)
    whole = make_views(images, digest_rows(images), build_transforms(TRANSFORMS), view=1, seed=7)
    assert np.array_equal(load_array(tmp_path / "views" / "view-001.npy"), whole)


def test_finished_views_are_kept_when_a_run_goes_on(
    tmp_path: Path, images: NDArray[np.uint8], images_file: Path
) -> None:
    folder = tmp_path / "views"
    save([images_file], images, folder, 2)
    before = (folder / "view-001.npy").stat().st_mtime_ns
    save([images_file], images, folder, 3)
    assert (folder / "view-001.npy").stat().st_mtime_ns == before
    assert load_array(folder / "view-002.npy").shape == (NUM, SIZE, SIZE, 3)


def test_what_a_killed_run_left_is_not_mixed_in(tmp_path: Path, images: NDArray[np.uint8], images_file: Path) -> None:
    folder = tmp_path / "views"
    save([images_file], images, folder, 4)
    (folder / "view-001.npy").unlink()
    part_of(folder / "view-001.npy").write_bytes(b"half a view")
    part_of(folder / "view-005.npy").write_bytes(b"half a view")
    save([images_file], images, folder, 3)
    assert sorted(file.name for file in folder.iterdir()) == ["digests", "view-001.npy", "view-002.npy"]
    assert load_array(folder / "view-001.npy").shape == (NUM, SIZE, SIZE, 3)


def test_a_single_view_needs_no_file(tmp_path: Path, images: NDArray[np.uint8], images_file: Path) -> None:
    assert save([images_file], images, tmp_path / "views", 1) == []
    assert [file.name for file in (tmp_path / "views").iterdir()] == ["digests"]


def test_transforms_draw_independently_of_each_other() -> None:
    """With one seed for all, as `Compose.set_random_seed` gives, an image would be inverted exactly when it is flipped."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 100
    pipeline = build_transforms([{"HorizontalFlip": {"p": 0.5}}, {"InvertImg": {"p": 0.5}}])
    seen = {make_view(image, pipeline, view_seed(7, b"a", view)).tobytes() for view in range(64)}
    assert len(seen) == 4


def test_the_recipe_draws_the_same_views_again(tmp_path: Path, images: NDArray[np.uint8]) -> None:
    save_recipe(tmp_path, TRANSFORMS, num_views=4, seed=7, content_sha256="c")
    recipe = load_json(tmp_path / "recipe.json")
    assert recipe["seed"] == 7 and recipe["versions"]["albumentations"] == A.__version__
    again = tuple(A.from_dict({"transform": transform}) for transform in recipe["transforms"])
    view = make_view(images[0], build_transforms(TRANSFORMS), view_seed(7, b"a", 2))
    assert np.array_equal(make_view(images[0], again, view_seed(recipe["seed"], b"a", 2)), view)


def test_the_digest_follows_what_changes_a_view_and_nothing_else() -> None:
    base = digest_recipe(TRANSFORMS, seed=7, content_sha256="c")
    assert base == digest_recipe([dict(entry) for entry in TRANSFORMS], seed=7, content_sha256="c")
    others = {
        digest_recipe(TRANSFORMS[:2], seed=7, content_sha256="c"),
        digest_recipe(TRANSFORMS, seed=8, content_sha256="c"),
    }
    assert len(others | {base, digest_recipe(TRANSFORMS, seed=7, content_sha256="d")}) == 4


def test_the_preview_shows_plain_images_beside_their_views(images: NDArray[np.uint8]) -> None:
    views, rows = make_preview(images, digest_rows(images), TRANSFORMS, num_views=4, seed=7, rows=3)
    assert views.shape == (3, 4, SIZE, SIZE, 3) and rows[0] == 0 and rows[-1] == len(images) - 1
    assert np.array_equal(views[:, 0], images[rows])
    expected = make_views(images[:1], digest_rows(images[:1]), build_transforms(TRANSFORMS), view=1, seed=7)[0]
    assert np.array_equal(views[0, 1], expected)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"HorizontalFlp": {}}, "unknown transform 'HorizontalFlp' (did you mean HorizontalFlip?)"),
        ({"Affine": {"rotat": 3}}, "unknown argument 'rotat' (did you mean rotate?)"),
        ({"CoarseDropout": {"max_holes": 3}}, "unknown argument 'max_holes'"),
        ({"GaussNoise": {"var_limit": 3}}, "unknown argument 'var_limit'"),
        ({"HorizontalFlip": {"p": 2}}, "less than or equal to 1"),
        ({"HorizontalFlip": {"p": 0.5}, "Blur": {}}, "expected one transform"),
        ({"OneOf": {"transforms": []}}, "expected a list of transforms"),
        ({"OneOf": {"transforms": [{"Blurr": {}}]}}, "did you mean Blur?"),
        ({"RandomCrop": {"height": 20, "width": 20}}, "keep its shape"),
        ({"Resize": {"height": 64, "width": 64}}, "keep its shape"),
        ({"Normalize": {}}, "float32"),
        ({"ToGray": {"num_output_channels": 1}}, "keep its shape"),
        ({"RandomCrop": {"height": 200, "width": 200}}, "fails on an image of 32x32"),
        ({"Lambda": {}}, "functions of Python"),
        ({"MaskDropout": {}}, "fails on an image of 32x32"),
        ({"OneOf": {"transforms": [{"Blur": {}}, {"Resize": {"height": 64, "width": 64}}]}}, "makes 64x64"),
        ({"GaussNoise": {"std_range": [float("nan"), 0.2]}}, "transforms[1].GaussNoise"),
    ],
)
def test_a_mistake_in_a_transform_is_refused_with_the_right_word(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        check_transforms([{"HorizontalFlip": {}}, entry], image_size=32)
    assert words in str(refusal.value) and "transforms[1]" in str(refusal.value)


def test_the_size_counts_at_the_end_and_on_every_way_there() -> None:
    pad, crop = {"PadIfNeeded": {"min_height": 40, "min_width": 40}}, {"RandomCrop": {"height": 32, "width": 32}}
    check_transforms([pad, crop], image_size=32)
    grow, small = {"Resize": {"height": 64, "width": 64, "p": 0.5}}, {"Resize": {"height": 24, "width": 24, "p": 0.5}}
    check_transforms([grow, crop], image_size=32)
    with pytest.raises(Refused, match=r"transforms\[1\].*fails on an image of 24x24"):
        check_transforms([small, crop], image_size=32)
    # Not each run leaves it out.
    with pytest.raises(Refused, match=r"transforms\[0\].*makes 40x40"):
        check_transforms([pad, {"CenterCrop": {"height": 32, "width": 32, "p": 0.5}}], image_size=32)


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(Refused, match="3 problems"):
        check_transforms([{"Nonsense": {}}, {"Blur": {"blur": 1, "limit": 2}}])


def test_the_transforms_people_use_still_run_with_these_libraries() -> None:
    """Albumentations is frozen while OpenCV and NumPy move on: this is where a break would show."""
    names = (
        "HorizontalFlip VerticalFlip RandomRotate90 Transpose Affine Perspective Rotate ElasticTransform GridDistortion RandomGamma "
        "RandomBrightnessContrast HueSaturationValue ColorJitter RGBShift CLAHE ToGray Posterize Equalize Blur GaussianBlur "
        "MotionBlur GaussNoise ISONoise ImageCompression CoarseDropout GridDropout Sharpen RandomFog RandomShadow ChannelShuffle"
    ).split()
    check_transforms(
        [{name: {"p": 1.0}} for name in names] + [{"RandomResizedCrop": {"size": [32, 32]}}], image_size=32
    )
