"""How familiar an image is: a distance from what training images span, as a quantile; in numpy and in the model alike."""

import keras
import numpy as np
import pytest

from frostline.training.familiarity import Familiarity, Subspace, build_familiarity, fit_familiarity


def draw(num_images: int, seed: int, shift: float = 0.0, directions: int = 0) -> np.ndarray:
    """Features of 48 columns that vary along five directions, those of the kind, and a little along all."""
    axes = np.random.default_rng(directions).standard_normal((5, 48))
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num_images, 5)) @ axes + 0.3 * rng.standard_normal((num_images, 48)) + 8 + shift


def test_ordinary_images_are_spread_evenly_and_strangers_are_near_0():
    found = fit_familiarity(draw(2000, 1), np.arange(2000) % 5)
    ordinary, strange = found.of(draw(4000, 2)), found.of(draw(500, 3, directions=9))
    shares = np.histogram(ordinary, 10, (0, 1))[0] / len(ordinary)
    np.testing.assert_allclose(shares, 0.1, atol=0.03)
    assert strange.max() < 0.01


def test_distances_are_from_the_other_folds():
    """From what they helped to span themselves, few images are near: new ones would all look strange."""
    columns = draw(40, 1)
    found, naive = fit_familiarity(columns, np.arange(40) % 5), fit_familiarity(columns, np.zeros(40, int))
    new = draw(2000, 2)
    assert 0.35 < found.of(new).mean() < 0.65
    assert naive.of(new).mean() < found.of(new).mean() - 0.1


def test_the_distance_is_what_the_axes_do_not_reach():
    subspace = Subspace(np.zeros(3, np.float32), np.ones(3, np.float32), np.array([[1.0], [0.0], [0.0]], np.float32))
    np.testing.assert_allclose(subspace.distances(np.array([[2.0, 0.0, 0.0], [3.0, 0.0, 4.0]])), [0, 0.64], atol=1e-6)
    found = Familiarity(subspace, np.array([0.0, 0.64, 1.0]))
    np.testing.assert_allclose(found.of(np.array([[2.0, 0, 0], [3.0, 0, 4.0], [0, 1.0, 0]])), [1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("columns", [np.zeros((12, 8)), np.ones((1, 8)), np.tile(np.eye(8), (2, 1))])
def test_images_that_say_nothing_have_a_familiarity(columns):
    found = fit_familiarity(columns, np.arange(len(columns)) % 5)
    assert np.isfinite(found.of(columns)).all() and ((found.of(columns) >= 0) & (found.of(columns) <= 1)).all()


def test_the_graph_says_what_the_arrays_say(tmp_path):
    maps = np.random.default_rng(0).normal(1, 1, (60, 4, 4, 48)).astype(np.float32)
    columns = maps.mean(axis=(1, 2)) + draw(60, 1)
    maps += draw(60, 1).astype(np.float32)[:, None, None]
    found = fit_familiarity(columns, np.arange(60) % 5, max_axes=4)
    given = keras.Input((4, 4, 48))
    model = keras.Model(given, {"familiarity": build_familiarity(found, given)})
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    told = np.asarray(loaded.predict_on_batch(maps)["familiarity"])
    assert told.shape == (60, 1) and told.dtype == np.float32 and told.std() > 0.1
    np.testing.assert_allclose(told[:, 0], found.of(columns), atol=1e-3)
    assert np.abs(told[:, 0] - found.of(columns[::-1])).max() > 0.1
