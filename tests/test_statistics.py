"""A base on images that it knows, scaled as it knows them or not, and with its weights in disorder."""

import dataclasses
import importlib.util

import keras
import numpy as np
import pytest
from ruamel.yaml import YAML

from frostline.bases import statistics
from frostline.bases.base import Base, build_base
from frostline.bases.families import BUNDLED_BASE
from frostline.bases.statistics import HOPELESS, ODD, check_input, measure_agreement
from frostline.cli import doctor
from frostline.errors import Refused
from frostline.images.decoding import decode_image
from frostline.images.generated.sets import draw_target
from frostline.params import load_params
from frostline.process import run_stage
from frostline.seeding import derive_seed

SMALL = {"alpha": 0.35}


@pytest.fixture(scope="module")
def generated():
    return np.stack([draw_target(label % 8, derive_seed(7, label), 96) for label in range(32)])


def load_bundled():
    return build_base("MobileNetV2", 96, options=SMALL, weights=BUNDLED_BASE / "base.weights.h5")


@pytest.fixture(scope="module")
def bundled():
    return load_bundled()


def scaled_as(base: Base, scaling) -> Base:
    return dataclasses.replace(base, scaling=scaling)


def test_a_base_knows_the_images_that_it_was_made_for(bundled, generated):
    assert check_input(bundled, generated) == []
    agreement = measure_agreement(bundled, generated)
    assert agreement.whole < 0.05
    assert agreement.best in ("tf", "lite")  # they differ by half a grey level


@pytest.mark.parametrize("scaling", ["none", "caffe"])
def test_pixels_a_hundred_times_too_large_are_refused_with_the_scaling_that_fits(bundled, generated, scaling):
    with pytest.raises(Refused, match=rf"scaled as '{scaling}' are not what .* as '(tf|lite)' by 0\.0.*check_input"):
        check_input(scaled_as(bundled, scaling), generated)


def test_pixels_scaled_otherwise_are_warned_of(bundled, generated):
    (line,) = check_input(scaled_as(bundled, "torch"), generated)
    assert line.startswith("WARNING: pixels scaled as 'torch' are not what MobileNetV2 was trained on")


def test_a_custom_base_is_told_its_option(bundled, generated):
    custom = dataclasses.replace(bundled, name="custom", scaling="none")
    with pytest.raises(Refused, match=r"Set base\.options: \{scaling: (tf|lite)\}"):
        check_input(custom, generated)


@pytest.mark.parametrize("kind", ["read row by row", "shuffled", "never filled"])
def test_weights_in_disorder_are_refused(generated, kind):
    base = load_bundled()
    fresh = build_base("MobileNetV2", 96, options=SMALL, seed=3)
    for layer, other in zip(base.model.layers, fresh.model.layers, strict=True):
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            kernel, *rest = layer.get_weights()
            if kind == "read row by row":
                kernel = np.ascontiguousarray(kernel.T).reshape(kernel.shape)
            elif kind == "shuffled":
                kernel = np.random.default_rng(0).permutation(kernel.ravel()).reshape(kernel.shape)
            else:
                kernel = other.get_weights()[0]
            layer.set_weights([kernel, *rest])
    with pytest.raises(Refused, match=r"base\.weights: the statistics .*wrong order.*extract\.check_input: false"):
        check_input(base, generated)
    assert measure_agreement(base, generated).whole > HOPELESS


def test_a_base_without_trained_statistics_is_not_judged(generated):
    vgg = build_base("VGG16", 32, output_layer="block1_pool")
    (line,) = check_input(vgg, generated[:, :32, :32])
    assert line.startswith("VGG16 has no BatchNormalization with statistics")
    assert measure_agreement(build_base("MobileNetV2", 32, options=SMALL), generated[:, :32, :32]) is None


def test_statistics_are_those_of_all_images_whatever_the_batches(bundled, generated, monkeypatch):
    whole = measure_agreement(bundled, generated)
    monkeypatch.setattr(statistics, "BATCH_PIXELS", 3 * 96 * 96)
    parts = measure_agreement(bundled, generated)
    assert parts.whole == pytest.approx(whole.whole, rel=1e-3)
    assert parts.misfits == pytest.approx(whole.misfits, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "layer", "path"),
    [
        ("MobileNetV2", SMALL, None, "mobilenet_v2_035/mobilenet_v2_035_notop.weights.h5"),
        ("MobileNetV2", {}, None, "mobilenet_v2_100/mobilenet_v2_100_notop.weights.h5"),
        ("InceptionV3", {}, "mixed8", "inception_v3/inception_v3_mixed8.weights.h5"),
    ],
)
@pytest.mark.parametrize("folder", ["cats_vs_dogs/train", "horses_or_humans/train", "horses_or_humans/validation"])
def test_real_weights_know_real_images(shared, generated, name, options, layer, path, folder):
    base = build_base(name, 96, options=options, output_layer=layer, weights=shared / "weights" / path)
    files = [file for each in sorted((shared / "data" / folder).iterdir()) for file in sorted(each.iterdir())[:16]]
    images = np.stack([decode_image(file.read_bytes(), 96) for file in files])
    assert check_input(base, images) == check_input(base, generated) == []
    assert measure_agreement(base, images).whole < ODD
    with pytest.raises(Refused, match="scaled as 'none'"):
        check_input(scaled_as(base, "none"), images)


def test_extract_refuses_weights_in_disorder_unless_told_otherwise(
    params_document, tmp_path, root, monkeypatch, capsys
):
    """The stage, with a whole file of numbers that a network of the right shape takes without a word; and `doctor --deep`."""
    base = load_bundled()
    for layer in base.model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            kernel, *rest = layer.get_weights()
            layer.set_weights([np.ascontiguousarray(kernel.T).reshape(kernel.shape), *rest])
    base.model.save_weights(tmp_path / "mine.weights.h5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("frostline.process.die_with_parent", lambda: None)
    (tmp_path / "dvc.yaml").touch()
    params_document["fetch"] |= {"source": "generated", "images_per_class": 12}
    params_document["base"] |= {"weights": "mine.weights.h5", "image_size": 64}
    params_document["augment"]["views"] = 1
    params_document["tune"]["space"]["unfrozen_blocks"] = 0

    def run(*stages):
        with open("params.yaml", "w") as file:
            YAML().dump(params_document, file)
        for stage in stages:
            spec = importlib.util.spec_from_file_location(f"stage_{stage}", root / "pipelines" / f"{stage}.py")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            run_stage(stage, module.main)

    with pytest.raises(SystemExit):
        run("fetch", "prepare", "augment", "extract")
    assert "base.weights: the statistics" in capsys.readouterr().err
    assert not (tmp_path / "data/features/complete.json").exists()
    findings = list(doctor.examine_input(tmp_path, load_params()))
    assert [finding.level for finding in findings] == ["fail"]

    params_document["extract"]["check_input"] = False
    run("extract")
    assert (tmp_path / "data/features/complete.json").exists()
