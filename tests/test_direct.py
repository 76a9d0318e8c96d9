"""Images labelled with ImageNet's classes, without training."""

import json

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from frostline.cli import group
from frostline.errors import Refused
from frostline.serving import direct
from frostline.serving.direct import label_images, load_class_names


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    return path


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps({str(index): [f"n{index:08}", f"thing_{index}"] for index in range(1000)}))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    import keras

    path = tmp_path_factory.mktemp("weights") / "whole.weights.h5"
    keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35).save_weights(path)
    return path


def test_each_image_gets_its_likeliest_classes_and_a_bad_one_its_reason(image, names, weights):
    files = [
        ("broken.jpg", b"no image"),
        (str(image), None),
        ("inline", image.read_bytes()),
        ("absent.jpg", None),
    ]
    rows = label_images("MobileNetV2", weights, files, 3, labels=names, options={"alpha": 0.35}, image_size=32)
    assert [row["file"] for row in rows] == ["broken.jpg", str(image), "inline", "absent.jpg"]
    assert "error" in rows[0] and "error" in rows[3]
    assert rows[1]["top"] == rows[2]["top"] and len(rows[1]["top"]) == 3
    scores = [entry["probability"] for entry in rows[1]["top"]]
    assert scores == sorted(scores, reverse=True) and 0 < scores[0] <= 1
    assert rows[1]["label"] == f"thing {rows[1]['top'][0]['index']}" and rows[1]["probability"] == scores[0]


def test_without_names_classes_are_numbered_and_it_is_said_how_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert load_class_names(None)[281] == "class 281"
    assert direct.HOW_TO_NAME in capsys.readouterr().err


def test_names_are_taken_from_the_cache_of_keras(tmp_path, monkeypatch, names):
    (tmp_path / "models").mkdir()
    names.rename(tmp_path / "models" / "imagenet_class_index.json")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert load_class_names(None)[281] == "thing 281"


@pytest.mark.parametrize("text", ["{", "[]", '{"1": ["a", "b"]}', "3", '["only one"]'])
def test_a_file_that_does_not_name_the_classes_is_refused(tmp_path, text):
    path = tmp_path / "names.json"
    path.write_text(text)
    with pytest.raises(Refused, match="--labels"):
        load_class_names(path)


@pytest.mark.parametrize("name", ["custom", "MobileNetV4"])
def test_a_base_without_imagenet_classes_is_refused(name):
    with pytest.raises(Refused):
        label_images(name, None, [])


def test_the_command_prints_the_five_likeliest_classes(image, names, tmp_path, monkeypatch):
    import keras

    path = tmp_path / "whole.weights.h5"
    keras.applications.MobileNetV2(weights=None, alpha=0.35).save_weights(path)
    monkeypatch.chdir(tmp_path)  # no project is needed
    arguments = ["predict", "--base", "MobileNetV2", "--weights", str(path), "--labels", str(names), str(image)]
    arguments += ["--options", "alpha=0.35"]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(image), "", "", "", ""]
    assert all(line[1].startswith("thing ") for line in lines)
    scores = [float(line[2]) for line in lines]
    assert scores == sorted(scores, reverse=True)


def test_real_weights_know_a_cat(shared):
    folder = shared / "weights"
    cats = sorted((shared / "data" / "cats_vs_dogs" / "validation" / "cats").iterdir())[:20]
    rows = label_images(
        "MobileNetV2",
        folder / "mobilenet_v2_100" / "mobilenet_v2_100.weights.h5",
        [(str(cat), None) for cat in cats],
        labels=folder / "imagenet_class_index.json",
    )
    cat_classes = range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian
    assert sum(any(entry["index"] in cat_classes for entry in row["top"]) for row in rows) > 10
