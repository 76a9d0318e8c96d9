"""Exports of a tiny model, each run by its own runtime."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from samples import add_familiarity

from frostline.arrays import save_split
from frostline.errors import Refused
from frostline.files import hash_folder, sha256_of
from frostline.serving import export
from frostline.serving.model import load_network, predict, predict_probabilities

SIZE = 32


@pytest.fixture(scope="module")
def network(tiny_model: Path) -> keras.Model:
    return load_network(tiny_model, None)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("form", export.FORMS)
def test_each_form_answers_as_the_keras_model_does(form, network, images, tmp_path):
    record = export.export_model(network, form, tmp_path / "out" / form, images, {"classes": ["a", "b", "c"]})
    place = tmp_path / "out" / form
    assert json.loads((place / "export.json").read_text()) == record
    assert sorted(path.name for path in place.iterdir()) == sorted(["export.json", record["artefact"]])
    assert [path.name for path in place.parent.iterdir()] == [form]
    artefact = place / record["artefact"]
    assert record["sha256"] == (hash_folder(artefact) if artefact.is_dir() else sha256_of(artefact))
    # Asked again, by what its own record says, as whoever gets it will.
    answers, interface = export.FORMS[form].run(artefact, images[:3])
    (probabilities,) = answers.values()
    np.testing.assert_allclose(probabilities, predict_probabilities(network, images[:3]), atol=export.TOLERANCE)
    assert {key: record[key] for key in interface} == interface
    assert interface["input"]["shape"] == [None, SIZE, SIZE, 3] and "uint8" in interface["input"]["dtype"]
    assert [output["shape"] for output in interface["outputs"]] == [[None, 3]]
    assert record["max_difference"] <= export.TOLERANCE and record["classes"] == ["a", "b", "c"]


@pytest.mark.parametrize("form", export.FORMS)
def test_each_form_tells_how_familiar_an_image_is(form, network, images, tmp_path):
    # Of the same kind as `images`, or all of them may be strange, and equal.
    knowing = add_familiarity(network, np.random.default_rng(1).integers(0, 256, (40, SIZE, SIZE, 3), np.uint8))
    record = export.export_model(knowing, form, tmp_path / form, images, {})
    assert {output["name"]: output["shape"][1] for output in record["outputs"]} == {
        "probabilities": 3,
        "familiarity": 1,
    }
    answers, _ = export.FORMS[form].run(tmp_path / form / record["artefact"], images)
    probabilities, familiarity = predict(knowing, images)
    np.testing.assert_allclose(answers["probabilities"], probabilities, atol=export.TOLERANCE)
    np.testing.assert_allclose(answers["familiarity"][:, 0], familiarity, atol=export.FAMILIARITY_TOLERANCE)
    assert len(set(familiarity.tolist())) > 1


def test_an_export_that_differs_is_removed_and_the_earlier_one_stays(network, images, tmp_path, monkeypatch):
    place = tmp_path / "saved_model"
    first = export.export_model(network, "saved_model", place, images, {})
    wrong = keras.models.clone_model(network)  # other weights
    monkeypatch.setattr(export, "_convert", lambda _, __, artefact: wrong.export(artefact, verbose=False))
    with pytest.raises(Refused, match="differs from the Keras model by"):
        export.export_model(network, "saved_model", place, images, {})
    assert json.loads((place / "export.json").read_text()) == first
    assert hash_folder(place / "model") == first["sha256"]
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]


def test_a_folder_of_something_else_is_not_replaced(network, images, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "thesis.txt").write_text("mine")
    with pytest.raises(Refused, match="no earlier export"):
        export.export_model(network, "saved_model", tmp_path / "onnx", images, {})
    assert (tmp_path / "onnx" / "thesis.txt").read_text() == "mine"


def test_what_keras_cannot_convert_is_refused_with_its_reason(network, images, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such op\nand a page of trace")

    monkeypatch.setattr(network, "export", fail)
    with pytest.raises(Refused, match=r"cannot turn this model into litert: RuntimeError: no such op$"):
        export.export_model(network, "litert", tmp_path / "litert", images, {})
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_before_the_work_starts(monkeypatch):
    monkeypatch.setattr(export.util, "find_spec", lambda name: None if name == "tf2onnx" else name)
    with pytest.raises(Refused, match=r'onnx needs tf2onnx.*pip install "frostline\[onnx\]"'):
        export.require_packages(["saved_model", "onnx"])
    export.require_packages(["saved_model", "litert"])
    monkeypatch.setattr(export, "BACKEND", "jax")
    with pytest.raises(Refused, match="KERAS_BACKEND is jax"):
        export.require_packages(["saved_model"])


def test_images_are_spread_over_a_split_or_come_with_the_version(images, tmp_path):
    many = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, SIZE, SIZE, 3), np.uint8)
    names = [str(number) for number in range(40)]
    save_split(tmp_path / "val", [many], SIZE, np.zeros(40, np.int32), names, np.arange(40))
    chosen = export.load_images(tmp_path / "val", SIZE)
    assert len(chosen) == 16 and chosen[0, 0, 0, 0] == 0 and chosen[-1, 0, 0, 0] == 39
    np.savez_compressed(tmp_path / "golden.npz", images=images, probabilities=np.zeros((5, 3)))
    np.testing.assert_array_equal(export.load_images(tmp_path, SIZE), images)
    with pytest.raises(Refused, match="32 pixels a side, the model takes 64"):
        export.load_images(tmp_path, 64)
    with pytest.raises(Refused, match="holds no images"):
        export.load_images(tmp_path / "nowhere", SIZE)


ALONE = """
import sys
from pathlib import Path
import numpy as np
from frostline.serving.export import export_model
from frostline.serving.model import load_network
model, form, folder = sys.argv[1:]
images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
export_model(load_network(Path(model), None), form, Path(folder), images, {})
"""


@pytest.mark.parametrize("form", sorted(export.FORMS))
def test_each_form_is_made_alone_in_a_fresh_process(form, tiny_model, tmp_path):
    """Nothing that an earlier export did to the model may be needed."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tiny_model), form, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "export.json").is_file()
