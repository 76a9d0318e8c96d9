"""The model that MLflow serves: a tiny network, real encoded images."""

import base64
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from samples import add_familiarity

from frostline.errors import Refused
from frostline.files import sha256_of
from frostline.serving.model import DATA, Card, FrostlineModel, load_network, predict_probabilities, save_model_folder

CLASSES = ("cat", "dog & fox", "日本")
SIZE = 32


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image[..., ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def mlflow_model(tiny_model: Path, images: np.ndarray, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    card = Card(CLASSES, SIZE, "squash", 16, 50.0, sha256_of(tiny_model))
    save_model_folder(folder, tiny_model, card, None)
    return folder


@pytest.fixture(scope="module")
def model(mlflow_model: Path) -> FrostlineModel:
    return FrostlineModel(mlflow_model / DATA)


def test_encoded_images_and_their_pixels_get_the_same_answer(model, images):
    encoded = model.predict(pd.DataFrame({"image": [encode(image) for image in images]}))
    pixels = model.predict(pd.DataFrame({"pixels": [image.tolist() for image in images]}))
    assert encoded["label"].tolist() == pixels["label"].tolist()
    assert encoded["probabilities"].tolist() == pixels["probabilities"].tolist()
    for row in encoded.itertuples():
        assert set(row.probabilities) == set(CLASSES)
        assert row.probability == max(row.probabilities.values())
        assert sum(row.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_a_model_that_knows_strangers_says_how_familiar_each_image_is(tiny_model, images, tmp_path):
    add_familiarity(keras.saving.load_model(tiny_model)).save(tmp_path / "final.keras")
    card = Card(CLASSES, SIZE, "squash", 16, 50.0, sha256_of(tmp_path / "final.keras"))
    save_model_folder(tmp_path / "served", tmp_path / "final.keras", card, None)
    model = mlflow.pyfunc.load_model(str(tmp_path / "served"))
    ordinary = np.random.default_rng(3).integers(0, 200, images.shape, np.uint8)
    answers = model.predict(pd.DataFrame({"image": [encode(image) for image in [*ordinary, images[0] * 0]]}))
    assert list(answers) == ["label", "probability", "probabilities", "familiarity"]
    assert answers["familiarity"].between(0, 1).all() and answers["familiarity"].iloc[-1] < answers["familiarity"].max()
    plain = FrostlineModel.from_file(tiny_model, replace(card, sha256=sha256_of(tiny_model)))
    knowing = FrostlineModel.from_file(tmp_path / "final.keras", card)
    assert knowing.knows_strangers and not plain.knows_strangers and plain.answer(images)[1] is None
    np.testing.assert_allclose(plain.probabilities(images), knowing.probabilities(images), atol=1e-6)
    assert [part.shape for part in knowing.answer(images[:0])] == [(0, 3), (0,)]


def test_the_size_of_a_batch_changes_no_answer(model, images):
    together = model.probabilities(images)
    alone = np.concatenate([model.probabilities(image[None]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert model.probabilities(images[:0]).shape == (0, 3)


def test_threads_compute_one_batch_at_a_time():
    inside = []

    class Network:
        output = np.zeros((0, 2))

        def predict_on_batch(self, images):
            inside.append("in")
            time.sleep(0.01)
            inside.append("out")
            return np.zeros((len(images), 2))

    network, image = Network(), np.zeros((1, 8, 8, 3), np.uint8)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: predict_probabilities(network, image), range(8)))
    assert inside == ["in", "out"] * 8


def test_whoever_only_knows_mlflow_gets_the_same_answers(mlflow_model, model, images, tmp_path):
    """A process without this project on its path, as a server elsewhere would be: the code travels with the model."""
    request = {"dataframe_records": [{"image": base64.b64encode(encode(image)).decode()} for image in images]}
    program = (
        "import sys, json; sys.path = [place for place in sys.path if not place.endswith('/src')]\n"
        "import mlflow.pyfunc\n"
        "from mlflow.pyfunc.scoring_server import invocations\n"
        f"model = mlflow.pyfunc.load_model({str(mlflow_model)!r})\n"
        "import frostline; assert '/code/' in frostline.__file__, frostline.__file__\n"
        "schema = model.metadata.get_input_schema()\n"
        "for line in sys.stdin:\n"
        "    try: print(invocations(line, 'application/json', model, schema).response)\n"
        "    except Exception as error: print(json.dumps([error.get_http_status_code(), error.message]))\n"
    )
    bad = [
        {"dataframe_records": [{"image": base64.b64encode(b"no image").decode()}]},
        {"dataframe_records": [{"image": None}]},
        {"dataframe_records": [{"pixels": images[0, :8].tolist()}]},
        {"dataframe_records": [{"pixels": (images[0].astype(int) + 256).tolist()}]},
        {"dataframe_records": [{"image": "x"}]},
        {"dataframe_records": []},
    ]
    pixels = {"dataframe_split": {"columns": ["pixels"], "data": [[image.tolist()] for image in images]}}
    lines = "\n".join(json.dumps(item) for item in (request, pixels, *bad)) + "\n"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], input=lines, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.strip().splitlines()]
    wanted = model.predict(pd.DataFrame({"image": [encode(image) for image in images]})).to_dict("records")
    for answer in answers[:2]:
        assert [row["label"] for row in answer["predictions"]] == [row["label"] for row in wanted]
        for got, want in zip(answer["predictions"], wanted, strict=True):
            assert got["probabilities"] == pytest.approx(want["probabilities"], abs=1e-5)
    assert [status for status, _ in answers[2:]] == [400] * len(bad)
    assert "shape [8, 32, 3], expected [32, 32, 3]" in answers[4][1]
    assert "0 to 255" in answers[5][1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": b"GIF89a"}, "row 0"),
        ({"image": "!!!"}, "row 0"),
        ({"image": 3}, "must be the bytes"),
        ({"image": None}, "got neither"),
        ({"pixels": [[1, 2], [3]]}, "different lengths"),
        ({"pixels": [[[0.5] * 3] * SIZE] * SIZE}, "whole numbers"),
    ],
)
def test_a_row_that_is_no_image_is_refused_with_its_number(model, row, said):
    with pytest.raises(Exception, match=said) as refusal:
        model.predict(pd.DataFrame([row]))
    assert refusal.value.get_http_status_code() == 400


def test_every_bad_row_is_named(model, images):
    rows = pd.DataFrame({"image": [encode(images[0]), b"bad", b""]})
    with pytest.raises(Exception, match=r"row 1: .*row 2: "):
        model.predict(rows)


def test_swapped_model_is_not_loaded(tiny_model, tmp_path):
    other = tmp_path / "model.keras"
    other.write_bytes(tiny_model.read_bytes()[:-1] + b"x")
    with pytest.raises(Refused, match="checksum mismatch"):
        load_network(other, sha256_of(tiny_model))


def test_torn_model_is_refused_in_words(tiny_model, tmp_path):
    torn = tmp_path / "model.keras"
    torn.write_bytes(tiny_model.read_bytes()[:500])
    with pytest.raises(Refused, match="cannot be loaded"):
        load_network(torn, None)


def test_the_requirements_are_exact_and_without_the_project(mlflow_model):
    lines = (mlflow_model / "requirements.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in lines} >= {"keras", "tensorflow", "mlflow", "opencv-python-headless"}
    assert all("==" in line for line in lines)


def test_saving_a_model_does_not_import_keras(tiny_model, tmp_path):
    program = (
        "import sys; from pathlib import Path; from frostline.serving import model as serving\n"
        f"card = serving.Card(('a',), 32, 'squash', 16, 50.0, 'x')\n"
        f"serving.save_model_folder(Path({str(tmp_path / 'model')!r}), Path({str(tiny_model)!r}), card, None)\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def asked(data: bytes) -> list[object]:
    """What MLflow's server hands on for `dataframe_records`, `inputs` and `instances`, and what clients of others send."""
    text = base64.b64encode(data)
    return [
        pd.DataFrame({"image": [data]}),
        {"image": np.array([text])},
        {"image": [text.decode()]},
        {"image": np.bytes_(text)},
        [{"image": np.bytes_(text)}],
        {"image": [b"data:image/png;base64," + text]},
        {"image": [b"{'b64': '" + text + b"'}"]},
        {"image": [base64.urlsafe_b64encode(data).rstrip(b"=").decode()]},
    ]


def test_a_image_is_understood_in_every_form_that_mlflow_hands_on(model, images):
    data = encode(images[0])
    answers = [model.predict(given).to_dict("records") for given in asked(data)]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("place", range(8))
def test_a_refusal_does_not_repeat_what_was_sent(model, place):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as refusal:
        model.predict(asked(b"no image, but a text" * 1000)[place])
    # As MLflow's server does, with all that was sent.
    refusal.value.message = f"Failed to predict data '{'x' * 30_000}'. Error '{refusal.value.message}'"
    assert len(refusal.value.serialize_as_json()) < 400
    assert "row 0" in refusal.value.message
    assert refusal.value.get_http_status_code() == 400
