"""Sets with a promise: their thresholds, what they hold, and that they hold it as often as promised."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from frostline.evidence.conformal import (
    PROMISES,
    describe_promises,
    find_thresholds,
    keep_promises,
    load_sets,
    make_sets,
    save_promises,
)
from frostline.evidence.predictions import Predictions


def draw(num_images, seed, sharpness=2.0, num_classes=4):
    """Labels drawn from calibrated probabilities, and these sharpened, as by a model that is too sure."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(num_images, num_classes))
    truth = softmax(logits, axis=1)
    labels = (truth.cumsum(axis=1) > rng.random((num_images, 1))).argmax(axis=1)
    return labels, softmax(sharpness * logits, axis=1)


def test_a_promise_is_kept_on_average_however_badly_a_model_is_calibrated():
    """Over draws of both, the images that thresholds are of and the new ones; and not kept by far too much."""
    for number in (50, 500):
        shares = {promise: [] for promise in PROMISES}
        for seed in range(200):
            labels, probabilities = draw(number + 100, seed, sharpness=4.0)
            found = find_thresholds(labels[:number], probabilities[:number])
            for promise, threshold in found.items():
                inside = probabilities[number:][np.arange(100), labels[number:]] >= threshold
                shares[promise].append(inside.mean())
        for promise, kept in shares.items():
            error = np.std(kept) / np.sqrt(len(kept))
            assert promise - 3 * error <= np.mean(kept) <= promise + 1 / (number + 1) + 3 * error, (number, promise)


def test_few_images_hold_no_high_promise():
    labels, probabilities = draw(19, 0)
    found = find_thresholds(labels, probabilities)
    assert found[0.99] == found[0.98] == 0.0 < found[0.95]
    own = np.sort(probabilities[np.arange(19), labels])
    assert found[0.95] == own[0] and found[0.9] == own[1] and found[0.8] == own[3]


def test_a_set_has_the_likeliest_class_in_any_case_and_grows_with_the_promise():
    labels, probabilities = draw(300, 1)
    found = find_thresholds(labels, probabilities)
    before = np.zeros(probabilities.shape, bool)
    for promise in PROMISES:
        sets = make_sets(probabilities, found[promise])
        assert sets[np.arange(300), probabilities.argmax(axis=1)].all()
        assert (sets >= before).all()
        before = sets
    assert not make_sets(probabilities, 0.0).sum() < probabilities.size


def test_what_came_of_it_is_counted_in_all_and_by_class(tmp_path):
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.7, 0.2, 0.1], [0.6, 0.35, 0.05]])
    test = Predictions(tuple("abcd"), labels, probabilities, ("x", "y", "z"), "test")
    (kept,) = keep_promises({0.9: 0.3}, test, 0.95)
    assert kept.covered.value == 0.75 and kept.covered.low < 0.75 < kept.covered.high
    assert {name: each.value for name, each in kept.by_class.items()} == {"x": 1.0, "y": 0.5}  # of z there is no image
    assert (kept.size, kept.single) == (1.5, 0.5)
    save_promises(tmp_path / "sets.json", [kept])
    assert load_sets(tmp_path / "sets.json") == {"0.9": 0.3}
    assert json.loads((tmp_path / "sets.json").read_text())[0]["by_class"]["y"]["value"] == 0.5


@pytest.mark.parametrize(
    ("shift", "said"), [(0, "every promise holds"), (1, "too few sets hold the right class for 0.8")]
)
def test_a_promise_that_is_broken_is_told(shift, said):
    labels, probabilities = draw(1200, 2)
    found = find_thresholds(labels[:400], probabilities[:400])
    labels = (labels + shift) % 4
    test = Predictions(tuple(map(str, range(800))), labels[400:], probabilities[400:], tuple("abcd"), "test")
    assert said in describe_promises(keep_promises(found, test, 0.95), 400)
