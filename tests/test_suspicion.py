"""Labels that look wrong: the ranking, what confident learning takes for wrong, and the table."""

import numpy as np
import pytest

from frostline.arrays import ImageSplit, digest_rows
from frostline.errors import Refused
from frostline.evidence.predictions import Predictions
from frostline.evidence.suspicion import (
    Suspicion,
    describe_suspicion,
    find_confident,
    find_suspects,
    load_suspects,
    save_suspects,
    score_labels,
    sum_up,
)

NAMES = ("cats", "dogs")


def make_split(*ids, labels):
    number = len(ids)
    images = np.arange(number, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return ImageSplit(images, np.array(labels, np.int32), np.arange(number), ids, digest_rows(images))


def make_predictions(files, labels, dogs, split):
    dogs = np.array(dogs)
    return Predictions(tuple(files), np.array(labels), np.stack([1 - dogs, dogs], axis=1), NAMES, split)


def refuse(images):
    raise AssertionError("every image is known")


def test_flipped_labels_come_first_whatever_the_number_of_classes():
    rng = np.random.default_rng(0)
    for num_classes in (2, 3, 20):
        truth = rng.integers(0, num_classes, 1000)
        probabilities = np.full((1000, num_classes), 0.1 / (num_classes - 1))
        probabilities[np.arange(1000), truth] = 0.9
        probabilities = probabilities + rng.random(probabilities.shape) * 0.05
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        flipped = rng.choice(1000, 50, replace=False)
        labels = truth.copy()
        labels[flipped] = (labels[flipped] + 1) % num_classes
        scores, suggested = score_labels(labels, probabilities)
        assert set(np.argsort(scores)[:50]) == set(flipped)
        assert (suggested[flipped] == truth[flipped]).all()
        wrong = set(np.flatnonzero(find_confident(labels, probabilities)))
        assert wrong <= set(flipped) and len(wrong) >= 20  # those that are surer than the mean of their class


def test_a_class_that_a_model_is_less_sure_of_is_judged_by_its_own_measure():
    """Of two classes one has 0.55 on average: an image called otherwise that reaches it is suspicious, though 0.9 is usual."""
    labels = np.array([0] * 50 + [1] * 50 + [0])
    dogs = np.array([0.1] * 50 + [0.55] * 50 + [0.6])
    wrong = find_confident(labels, np.stack([1 - dogs, dogs], axis=1))
    assert np.flatnonzero(wrong).tolist() == [100]


def test_a_class_without_an_image_is_never_suggested_as_sure():
    probabilities = np.array([[0.2, 0.1, 0.7], [0.1, 0.8, 0.1]])
    assert not find_confident(np.array([0, 1]), probabilities).any()


def test_all_splits_are_ranked_together_and_the_unknown_are_answered():
    splits = {
        "train": make_split("t/0", "t/1", labels=[0, 1]),
        "val": make_split("v/0", "v/1", labels=[0, 1]),
        "test": make_split("x/0", labels=[1]),
    }
    known = [
        make_predictions(["t/0", "t/1"], [0, 1], [0.1, 0.9], "out of fold"),
        make_predictions(["x/0"], [1], [0.02], "test"),
    ]
    asked = []

    def answer(images):
        asked.append(np.asarray(images).tolist())
        return np.array([[0.3, 0.7], [0.1, 0.9]])

    found = find_suspects(known, splits, answer)
    assert asked == [splits["val"].images.tolist()]
    assert [(each.file, each.split, each.label, each.suggested) for each in found] == [
        ("x/0", "test", "dogs", "cats"),
        ("v/0", "val", "cats", "dogs"),
        ("t/0", "train", "cats", "dogs"),
        ("t/1", "train", "dogs", "cats"),
        ("v/1", "val", "dogs", "cats"),
    ]
    assert found[0].p_label == pytest.approx(0.02) and found[0].p_suggested == pytest.approx(0.98)
    whole = find_suspects([*known, make_predictions(["v/0", "v/1"], [0, 1], [0.7, 0.9], "val")], splits, refuse)
    assert [each.file for each in whole] == [each.file for each in found]


def test_the_table_comes_back(tmp_path):
    splits = {"train": make_split("a, b/0", "t/1", "t/2", labels=[0, 1, 0])}
    known = [make_predictions(["a, b/0", "t/1", "t/2"], [0, 1, 0], [0.875, 0.75, 0.25], "out of fold")]
    found = find_suspects(known, splits, refuse)
    save_suspects(tmp_path / "suspicious.csv", found)
    assert load_suspects(tmp_path / "suspicious.csv") == found
    assert found[0].looks_wrong and found[0].file == "a, b/0"


def test_a_table_of_another_kind_or_none_is_refused(tmp_path):
    with pytest.raises(Refused, match="dvc repro"):
        load_suspects(tmp_path / "suspicious.csv")
    (tmp_path / "suspicious.csv").write_text("file,label\na,b\n")
    with pytest.raises(Refused, match="another version"):
        load_suspects(tmp_path / "suspicious.csv")


def test_the_sentence_has_the_numbers_and_what_chance_gives():
    splits = {"train": make_split(*(f"t/{n}" for n in range(40)), labels=[0, 1] * 20)}
    dogs = [0.1, 0.9] * 20
    dogs[:4] = [0.95, 0.05, 0.96, 0.04]
    found = sum_up(
        find_suspects([make_predictions(splits["train"].ids, [0, 1] * 20, dogs, "out of fold")], splits, refuse)
    )
    assert found == Suspicion(40, 4, 0, 0.4)
    assert (
        "4 of 40 labels look wrong (10.0%), 0 of them in the test split; 4 images taken at random would hold about 0.4"
        in (describe_suspicion(found))
    )
    assert describe_suspicion(Suspicion(40, 0, 0, 0.0)) == "None of 40 labels looks wrong."
