"""Images from formulas: the same for the same seed, in any order, and different between classes."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from frostline.bases.families import BUNDLED_BASE
from frostline.files import load_json
from frostline.images.generated.sets import (
    TARGET_CLASSES,
    draw_source,
    draw_target,
    source_digest,
    target_digest,
    write_target,
)
from frostline.images.generated.source import ROUND, attractor, fractal_of
from frostline.seeding import derive_seed


def test_target_has_named_classes_and_uint8_images():
    assert len(TARGET_CLASSES) >= 5
    image = draw_target(0, seed=1, size=64)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5


def test_identical_seeds_give_identical_files(tmp_path):
    for name in ("first", "second"):
        write_target(tmp_path / name, images_per_class=2, size=48, seed=3)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.png"))
    assert len(files) == 2 * len(TARGET_CLASSES)
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_other_seeds_give_other_images():
    assert not np.array_equal(draw_target(0, 1, 48), draw_target(0, 2, 48))
    assert not np.array_equal(draw_source(0, 1, 48), draw_source(0, 2, 48))


def test_a_longer_set_begins_with_the_shorter(tmp_path):
    write_target(tmp_path / "short", images_per_class=1, size=48, seed=3)
    write_target(tmp_path / "long", images_per_class=3, size=48, seed=3)
    for name in TARGET_CLASSES:
        assert (tmp_path / "short" / name / "00000.png").read_bytes() == (
            tmp_path / "long" / name / "00000.png"
        ).read_bytes()


def test_a_written_image_is_the_drawn_one(tmp_path):
    write_target(tmp_path, images_per_class=1, size=48, seed=3)
    written = cv2.cvtColor(cv2.imread(str(tmp_path / "fish" / "00000.png")), cv2.COLOR_BGR2RGB)
    label = TARGET_CLASSES.index("fish")
    assert np.array_equal(written, draw_target(label, derive_seed(3, 0), 48))


@pytest.mark.parametrize("draw", [draw_target, draw_source])
def test_a_image_does_not_depend_on_what_was_drawn_before(draw):
    alone = draw(5, 9, 48)
    for label in (7, 2, 5):
        draw(label, 1, 48)
    assert np.array_equal(draw(5, 9, 48), alone)


def test_source_classes_are_different_formulas():
    fractals = [label for label in range(8 * 4) if ROUND[label % len(ROUND)] == "fractal"]
    points = [attractor(fractal_of(label), 500)[:500] for label in fractals]
    assert all(not np.allclose(points[0], other) for other in points[1:])


def test_a_negative_source_class_is_refused():
    with pytest.raises(ValueError, match="from 0 up"):
        draw_source(-1, 0, 48)


def test_target_classes_can_be_told_apart_and_not_by_colour():
    """Ridge regression on edge directions beats chance by far; on mean colour it does not."""
    per_class, classes = 60, len(TARGET_CLASSES)
    images = np.stack([draw_target(label, seed, 48) for seed in range(per_class) for label in range(classes)])
    labels = np.tile(np.arange(classes), per_class)
    train = np.arange(len(labels)) < len(labels) * 2 // 3
    chance = 1 / classes
    assert _score(np.stack([_edges(image) for image in images]), labels, train) > 1.8 * chance
    assert _score(images.mean(axis=(1, 2)), labels, train) < 2.2 * chance


def _edges(image):
    """Histograms of edge direction on a 4 x 4 grid."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1)
    x, y = cv2.Scharr(grey, cv2.CV_32F, 1, 0), cv2.Scharr(grey, cv2.CV_32F, 0, 1)
    bins = ((np.arctan2(y, x) % np.pi) / np.pi * 7.999).astype(int)
    cells = np.add.outer(np.arange(48) // 12 * 4, np.arange(48) // 12)
    histogram = np.bincount((cells * 8 + bins).ravel(), np.hypot(x, y).ravel(), 128)
    return np.sqrt(histogram / histogram.sum())


def _score(features, labels, train):
    features = (features - features[train].mean(0)) / (features[train].std(0) + 1e-6)
    features = np.hstack([features, np.ones((len(features), 1))])
    targets = np.eye(labels.max() + 1)[labels[train]]
    gram = features[train].T @ features[train] + 30 * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features[train].T @ targets)
    return (np.argmax(features[~train] @ weights, axis=1) == labels[~train]).mean()


def test_the_card_of_the_bundled_base_names_this_very_generator():
    card = load_json(BUNDLED_BASE / "card.json")
    assert card["generator"] == {"source": source_digest(), "target": target_digest()}


def test_the_generator_needs_no_keras():
    code = (
        "import sys, frostline.images.generated.sets; sys.exit('keras' in sys.modules or 'tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
