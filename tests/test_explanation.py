"""Grad-CAM: the map shows where the evidence for the class stands."""

import keras
import numpy as np
import pytest
from keras import layers

from frostline.errors import Refused
from frostline.evidence.explanation import explain, split_at_maps


def make_model(size=32):
    """Predictions "red" or "blue" by the amount of each colour; its feature map holds the two colours as channels."""
    pixels = keras.Input((size, size, 3), dtype="uint8")
    scaled = layers.Rescaling(1 / 255, dtype="float32")(pixels)
    pick = layers.Conv2D(2, 4, strides=4, use_bias=False, name="colours")
    features = pick(scaled)
    kernel = np.zeros((4, 4, 3, 2), np.float32)
    kernel[..., 0, 0] = kernel[..., 2, 1] = 1 / 16
    pick.set_weights([kernel])
    dense = layers.Dense(2, name="logits")
    logits = dense(layers.GlobalAveragePooling2D()(features))
    dense.set_weights([np.array([[20.0, -20.0], [-20.0, 20.0]], np.float32), np.zeros(2, np.float32)])
    return keras.Model(pixels, layers.Softmax()(layers.Rescaling(0.8)(logits)))


def make_mirrored(size=32):
    """The same, which answers with the mean of the image's and its mirror image's probabilities."""
    one = make_model(size)
    network = keras.Model(one.input, one.output, name="network")
    pixels = keras.Input((size, size, 3), dtype="uint8")
    return keras.Model(pixels, layers.Average()([network(pixels), network(keras.ops.flip(pixels, axis=2))]))


def make_images():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[:, :12, :12, 0] = 255  # red, top left
    images[:, 20:, 20:, 2] = 255  # blue, bottom right
    return images


def test_each_class_is_explained_by_its_own_place():
    red, blue = explain(make_model(), make_images(), np.array([0, 1]))
    assert red.shape == (32, 32) and red.dtype == np.float32
    assert red[4, 4] > 0.9 and red[28, 28] < 0.1
    assert blue[28, 28] > 0.9 and blue[4, 4] < 0.1
    assert red.min() >= 0 and red.max() <= 1


def test_a_model_that_answers_for_the_mirror_image_too_is_explained_in_the_image():
    images = make_images()
    np.testing.assert_allclose(
        explain(make_mirrored(), images, np.array([0, 1])), explain(make_model(), images, np.array([0, 1])), atol=1e-5
    )


def test_a_sure_answer_is_explained_as_well_as_an_unsure_one():
    model, images = make_model(), make_images()
    images[:, 20:, 20:] = 0  # red alone: a probability of 1.0 in float32, whose own gradient is nothing
    assert model.predict_on_batch(images)[0, 0] > 0.85
    assert explain(model, images, np.array([0, 0]))[0, 4, 4] > 0.9


def test_nothing_that_speaks_for_the_class_gives_an_empty_map():
    images = make_images()
    images[:, 20:, 20:] = 0
    assert explain(make_model(), images, np.array([1, 1])).max() < 1e-3


def test_more_images_than_a_batch_and_none_at_all():
    images = np.concatenate([make_images()] * 10)
    maps = explain(make_model(), images, np.tile([0, 1], 10))
    assert maps.shape == (20, 32, 32)
    assert np.allclose(maps[0], maps[18], atol=1e-6)
    assert explain(make_model(), images[:0], np.zeros(0, int)).shape == (0, 32, 32)


def test_the_two_halves_are_the_model(tmp_path):
    model = make_model()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    to_maps, to_scores = split_at_maps(loaded)
    images = make_images()
    joined = keras.ops.softmax(to_scores(to_maps(images)))
    assert np.allclose(keras.ops.convert_to_numpy(joined), model.predict_on_batch(images), atol=1e-6)


def test_a_model_without_a_feature_map_is_refused():
    vector = keras.Input((4,))
    with pytest.raises(Refused, match="no feature map"):
        split_at_maps(keras.Model(vector, layers.Dense(2, activation="softmax")(vector)))
