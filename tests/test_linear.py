"""The linear head: it is the optimum, its gradient is the loss's, its kernel takes raw features, folds see nothing of their own."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from frostline.training import linear

STRENGTHS = (1.0, 0.1, 0.01)


def make_features(num_rows, num_features, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    centres = rng.normal(size=(num_classes, num_features))
    scale, shift = rng.uniform(0.01, 20, num_features), rng.normal(size=num_features) * 5
    features = (0.3 * centres[labels] + rng.normal(size=(num_rows, num_features))) * scale + shift
    return features.astype(np.float32), labels


def answer(features, labels, num_classes, strength, weights=None):
    """Probabilities of the training rows by the head of all of them."""
    folds = np.arange(len(labels)) // num_classes % 2
    kernel, bias = linear.cross_validate(features, labels, num_classes, folds, (strength,), weights).whole
    return softmax(features.astype(np.float64) @ kernel + bias, axis=1)


def optimum_of_sklearn(features, labels, strength, weights=None):
    """Probabilities of the training rows at scikit-learn's optimum of the same objective."""
    scale = linear.measure_scale(features.std(axis=0, dtype=np.float64))
    standard = (features - features.mean(axis=0, dtype=np.float64)) / scale
    total = len(labels) if weights is None else weights.sum()
    columns = 2 if labels.max() == 1 else 1  # one column of scikit-learn's for two of ours
    model = LogisticRegression(C=columns / (strength * total), tol=1e-9, max_iter=20_000)
    return model.fit(standard, labels, sample_weight=weights).predict_proba(standard)


@pytest.mark.parametrize(
    ("num_rows", "num_features", "num_classes"),
    [(60, 200, 2), (90, 150, 5), (300, 40, 4), (120, 30, 2), (150, 300, 30)],
)
def test_the_head_is_the_optimum_of_scikit_learn(num_rows, num_features, num_classes):
    features, labels = make_features(num_rows, num_features, num_classes)
    for strength in STRENGTHS:
        found = answer(features, labels, num_classes, strength)
        np.testing.assert_allclose(found, optimum_of_sklearn(features, labels, strength), atol=1e-3)


def test_weights_of_rows_count_as_they_do_in_scikit_learn():
    features, labels = make_features(80, 120, 3)
    weights = np.random.default_rng(1).uniform(0.2, 3, 80)
    found = answer(features, labels, 3, 0.1, weights)
    np.testing.assert_allclose(found, optimum_of_sklearn(features, labels, 0.1, weights), atol=1e-3)


def test_the_gradient_is_the_slope_of_the_loss_of_every_head():
    rng = np.random.default_rng(0)
    rows, targets, weights = rng.normal(size=(20, 7)), np.eye(3)[rng.integers(0, 3, 20)], rng.uniform(0, 2, (2, 20))
    point = rng.normal(size=(8, 2, 3))
    _, gradient = linear.loss_and_gradient(point, rows, targets, weights, 0.3)
    for place in np.ndindex(point.shape):
        step = np.zeros_like(point)
        step[place] = 1e-5
        above, _ = linear.loss_and_gradient(point + step, rows, targets, weights, 0.3)
        below, _ = linear.loss_and_gradient(point - step, rows, targets, weights, 0.3)
        assert gradient[place] == pytest.approx((above - below) / 2e-5, abs=1e-8)


def test_the_strongest_axes_of_many_rows_give_the_same_head(monkeypatch):
    rng = np.random.default_rng(0)
    features, labels = make_features(120, 20, 3)
    features = features @ rng.normal(size=(20, 90)).astype(np.float32)  # 20 axes hold all of the variance
    features += rng.normal(size=features.shape).astype(np.float32) * 0.1
    exact = answer(features, labels, 3, 0.1)
    monkeypatch.setattr(linear, "MAX_EXACT", 60)
    monkeypatch.setattr(linear, "NUM_AXES", 30)
    assert linear.rotate(features)[1].shape == (120, 30)
    np.testing.assert_allclose(answer(features, labels, 3, 0.1), exact, atol=2e-3)


def test_a_strength_means_the_same_for_twice_the_rows():
    features, labels = make_features(60, 80, 3)
    twice = answer(np.tile(features, (2, 1)), np.tile(labels, 2), 3, 0.1)[:60]
    np.testing.assert_allclose(answer(features, labels, 3, 0.1), twice, atol=2e-3)


def test_the_scale_and_the_origin_of_a_feature_say_nothing():
    features, labels = make_features(60, 80, 3)
    other = features.astype(np.float64) * 7 - 3
    np.testing.assert_allclose(answer(features, labels, 3, 0.1), answer(other, labels, 3, 0.1), atol=2e-3)


def test_a_constant_feature_gets_no_weight():
    features, labels = make_features(40, 10, 2)
    features[:, 3] = 5.0
    kernel, _ = linear.cross_validate(features, labels, 2, np.arange(40) // 2 % 2, (0.01,)).whole
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(kernel[3], 0, atol=1e-9)


def test_a_unit_that_is_silent_in_training_does_not_decide_when_it_speaks():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    features = rng.normal(size=(60, 20)) + labels[:, None]
    features[:, 0] = 1e-4 * labels
    kernel, _ = linear.cross_validate(features, labels, 2, np.arange(60) // 2 % 2, (0.1,)).whole
    assert np.abs(kernel[0]).max() < 1  # an image in which it is 1 gains as much by it as by others
    np.testing.assert_allclose(
        linear.measure_scale(np.array([1e-9, 3.0, 4.0, 2.0]), np.array([0, 0, 1, 1]))[0], 3 / 2**0.5
    )


def test_strengths_are_tried_from_strong_to_weak():
    features, labels = make_features(60, 80, 3)
    found = linear.cross_validate(features, labels, 3, np.arange(60) // 3 % 2, (0.01, 1.0, 0.1))
    assert found.strengths == STRENGTHS[: len(found.losses)]


def test_a_strength_of_zero_is_refused():
    features, labels = make_features(20, 5, 2)
    with pytest.raises(ValueError, match="above 0"):
        linear.cross_validate(features, labels, 2, np.arange(20) % 2, (1.0, 0.0))


@pytest.fixture(scope="module")
def crossed():
    features, labels = make_features(100, 150, 4)
    views = np.stack([features, features + 0.01])
    folds = np.random.default_rng(0).permutation(100) % 5
    return views, labels, folds, linear.cross_validate(views, labels, 4, folds)


def test_out_of_fold_logits_are_those_of_the_head_that_has_not_seen_the_image(crossed):
    views, labels, folds, result = crossed
    for fold, (kernel, bias) in enumerate(result.heads):
        own = folds == fold
        np.testing.assert_allclose(views[0, own] @ kernel + bias, result.logits[own], atol=1e-2)
    assert result.loss == pytest.approx(linear.mean_cross_entropy(result.logits, labels), abs=1e-6)


def test_a_folds_head_does_not_depend_on_the_labels_in_the_fold(crossed):
    views, labels, folds, result = crossed
    other = np.where(folds == 2, (labels + 1) % 4, labels)
    strength = (result.choice.strength,)
    (kernel, bias), (same, same_bias) = (
        linear.cross_validate(views, each, 4, folds, strength).heads[2] for each in (labels, other)
    )
    np.testing.assert_allclose(views[0] @ kernel + bias, views[0] @ same + same_bias, atol=1e-2)


def test_many_images_choose_the_strength_of_the_lowest_loss():
    choice = linear.choose_strength((1.0, 0.1, 0.01), [0.6, 0.5, 0.6], 1000, complete=True)
    assert choice.strength == pytest.approx(0.1)


def test_few_images_choose_between_the_strengths_that_they_cannot_tell_apart():
    choice = linear.choose_strength((1.0, 0.1, 0.01), [0.50, 0.49, 0.48], 20, complete=True)
    assert 0.05 < choice.strength < 0.1


def test_an_edge_of_the_range_is_named():
    def edge_of(losses, complete):
        return linear.choose_strength((1.0, 0.1, 0.01)[: len(losses)], losses, 100, complete=complete).edge

    assert edge_of([0.5, 0.6], True) == "strongest"
    assert edge_of([0.6, 0.5], True) == "weakest"
    assert edge_of([0.6, 0.5, 0.6], True) is None
    assert edge_of([0.6, 0.5], False) is None
