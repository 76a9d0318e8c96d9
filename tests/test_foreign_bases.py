"""Bases that come from elsewhere: names that meet ours, files of Keras 2, and what cannot be loaded."""

import keras
import numpy as np
import pytest

from frostline import params
from frostline.bases.base import build_base
from frostline.bases.cuts import build_prefix, build_suffix, copy_prefix, copy_suffix
from frostline.bases.files import fetch_weights
from frostline.errors import Refused


def draw_images(size):
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor)


def assert_close(given, wanted):
    assert np.abs(numbers(given) - numbers(wanted)).max() < 1e-4 * max(1.0, np.abs(numbers(wanted)).max())


def stir_statistics(model):
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_variance.shape))


def section(**values):
    return params.Base(**({"name": "custom", "weights": "random", "image_size": 32, "options": {}} | values))


def test_names_of_a_users_layers_never_meet_ours(tmp_path):
    """Names that we use, that TensorFlow takes for no scope, and that differ only in what is made safe."""
    x = inputs = keras.Input((32, 32, 3), name="pixels")
    names = ["scaling", "_conv", "features", "pool", "lögits", "a b", "a_b", "logits", "flip"]
    for index, name in enumerate(names):
        x = keras.layers.Conv2D(4, 3, padding="same", strides=2 if index in (2, 5) else 1, name=name)(x)
    path = tmp_path / "own.keras"
    keras.Model(inputs, x, name="custom").save(path)
    for scaling in ("none", "caffe"):
        base = build_base("custom", 32, weights=path, options={"scaling": scaling})
        assert [cut.name for cut in base.cuts] == ["flip", "lögits".replace("ö", "_"), "_conv"]
        images = draw_images(32)
        prefix, suffix = build_prefix(base, [1]), build_suffix(base, 1)
        pixels = keras.Input((32, 32, 3), dtype="uint8", name="pixels")
        output = copy_suffix(base, 1, suffix, copy_prefix(base, 1, pixels)[-1], "fold")[-1]
        joined = keras.Model(pixels, keras.layers.Dense(2, name="logits")(keras.layers.Flatten(name="pool")(output)))
        joined.save(tmp_path / "joined.keras")
        assert_close(keras.saving.load_model(tmp_path / "joined.keras")(images), joined(images))
        above = keras.Model(pixels, output)
        assert_close(above(images), keras.tree.flatten(suffix(prefix(images)[0], training=False))[-1])
    assert build_base("custom", 32, weights=path, output_layer="_conv").cuts[0].name == "_conv"


def test_a_keras_2_file_with_the_base_inside_is_read(tmp_path):
    """As Keras 2 wrote it: one group for the base, first the weights that were trained, then the others."""
    import h5py

    network = build_base("MobileNetV2", 32, options={"alpha": 0.35}, seed=1).model
    stir_statistics(network)
    with h5py.File(tmp_path / "classifier.h5", "w") as file:
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [b"mobilenetv2_0.35_32", b"pool", b"dense"]
        for name in ("mobilenetv2_0.35_32", "pool", "dense"):
            root.create_group(name).attrs["weight_names"] = []
        inner = []
        for trained in (True, False):
            for layer in network.layers:
                for weight in layer.weights:
                    if (weight.name in ("moving_mean", "moving_variance")) != trained:
                        inner.append((f"{layer.name}/{weight.name}:0", numbers(weight)))
        # What keras.applications leaves off HDF5's limit of 64 kB in an attribute, too.
        root["mobilenetv2_0.35_32"].attrs["weight_names"] = [name.encode() for name, _ in inner]
        for name, values in inner:
            root["mobilenetv2_0.35_32"][name] = values
        root["dense"].attrs["weight_names"] = [b"dense/kernel:0"]
        root["dense"]["dense/kernel:0"] = np.zeros((1280, 2), np.float32)
    filled = build_base("MobileNetV2", 32, options={"alpha": 0.35}, weights=tmp_path / "classifier.h5")
    images = draw_images(32).astype(np.float32)
    assert_close(filled.model(images), network(images))


@pytest.mark.parametrize(
    ("metadata", "config", "words"),
    [
        ({"keras_version": "2.15.0"}, {"class_name": "Functional"}, "saved by Keras 2.15.0"),
        ({"keras_version": "3.0.0"}, {"class_name": "Mine", "module": "mine", "config": {}}, "holds a Mine"),
        (
            {"keras_version": "3.0.0"},
            {
                "class_name": "Functional",
                "config": {"layers": [{"class_name": "Lambda", "module": "keras.layers", "config": {}}]},
            },
            "holds Lambda",
        ),
        (
            {"keras_version": "3.0.0"},
            {
                "class_name": "Sequential",
                "config": {"layers": [{"class_name": "Swish", "module": "mine", "config": {}}]},
            },
            "holds Swish",
        ),
    ],
)
def test_a_custom_file_that_cannot_be_a_base_is_refused_before_anything_runs(tmp_path, metadata, config, words):
    import json
    import zipfile

    path = tmp_path / "own.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps(metadata))
        archive.writestr("config.json", json.dumps(config))
    with pytest.raises(Refused, match=words):
        fetch_weights(section(weights=str(path)), tmp_path / "out", 1)


def test_what_a_library_says_is_cut_to_a_line(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("first line\n" + 100_000 * "x")

    monkeypatch.setattr(keras.models, "load_model", fail)
    with pytest.raises(Refused) as refusal:
        build_base("custom", 32, weights=tmp_path / "own.keras")
    assert len(str(refusal.value)) < 600
