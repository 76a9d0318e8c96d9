"""The table of families: what it says without Keras, and that Keras agrees."""

import inspect
import subprocess
import sys

import pytest

from frostline.bases.families import FAMILIES, check_base, cuts_of
from frostline.bases.lite import SCALES
from frostline.errors import Refused


def test_every_family_of_keras_applications_is_in_the_table_and_those_built_here():
    import keras

    names = {name for name, _ in inspect.getmembers(keras.applications, inspect.isfunction)}
    assert names | set(SCALES) == set(FAMILIES)


def test_the_cuts_are_the_blocks_of_the_published_networks():
    assert [f"mixed{block}" for block in range(11)] == list(cuts_of("InceptionV3", {})[-11:])
    assert cuts_of("VGG16", {}) == tuple(f"block{block}_pool" for block in range(1, 6))
    blocks = [name for name in cuts_of("ResNet50", {}) if name.startswith("conv") and name.endswith("_out")]
    assert len(blocks) == 16


def test_a_family_without_a_useful_cut_says_why():
    assert len(cuts_of("NASNetMobile", {})) == 1
    assert "single tensor" in FAMILIES["NASNetMobile"].head_only_reason


def test_only_families_with_real_weights_tried_are_marked_so():
    assert {family.name for family in FAMILIES.values() if family.tried} == {
        "InceptionV3",
        "MobileNetV2",
        *SCALES,
    }


@pytest.mark.parametrize(
    ("name", "size", "options", "words"),
    [
        ("MobilNetV2", 96, {}, "did you mean MobileNetV2?"),
        ("MobileNetV2", 96, {"alpa": 0.5}, "did you mean alpha?"),
        ("MobileNetV2", 96, {"alpha": True}, "base.options.alpha: MobileNetV2 takes a number above 0"),
        ("MobileNetV2", 96, {"alpha": -1.0}, "base.options.alpha: MobileNetV2 takes a number above 0"),
        ("MobileNetV2", 96, {"alpha": float("nan")}, "given was nan"),
        ("MobileNetV2", 96, {"alpha": float("inf")}, "given was inf"),
        ("MobileNetV2", 96, {"alpha": 1e9}, "at most 8"),
        ("MobileNetV3Small", 96, {"minimalistic": 1}, "true or false"),
        ("MobileNetV2", 96, {"alpha": "0.5"}, "base.options.alpha: MobileNetV2 takes a number above 0"),
        (
            "MobileNet",
            96,
            {"depth_multiplier": 1.5},
            "base.options.depth_multiplier: MobileNet takes a whole number above 0",
        ),
        ("ResNet50", 96, {"alpha": 0.5}, "allowed: none"),
        ("InceptionV3", 64, {}, "at least 75 px; given was 64"),
        ("custom", 64, {"scaling": "tg"}, "tf, caffe, torch, lite, none"),
    ],
)
def test_what_a_family_does_not_take_is_refused_with_what_it_takes(name, size, options, words):
    with pytest.raises(Refused) as refusal:
        check_base(name, size, options)
    assert words in str(refusal.value)


def test_what_a_family_takes_passes():
    check_base("MobileNetV2", 32, {"alpha": 0.35})
    check_base("MobileNetV3Small", 32, {"alpha": 1, "minimalistic": True})
    check_base("custom", 32, {"scaling": "tf"})


def test_the_table_and_the_fetching_of_weights_need_no_keras():
    code = "import sys, frostline.bases.families; from frostline.bases.files import fetch_weights; assert 'keras' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
