"""Settings of a user's own, for other work: set aside, refused or recorded, and said."""

import json
import os
import subprocess
import sys

import pytest

from frostline.planning.settings import ignored_settings, settings_problems
from frostline.tracking.lineage import lineage_tags

PROBE = """
from frostline import devices
import keras, os
assert keras.backend.backend() == "tensorflow" or os.environ["KERAS_BACKEND"] == "jax"
assert (keras.config.image_data_format(), keras.config.floatx()) == ("channels_last", "float32")
assert keras.config.dtype_policy().name == "float32" and abs(keras.config.epsilon() - 1e-7) < 1e-12
assert not {"KERAS_MAX_EPOCHS", "MLFLOW_RUN_ID", "JAX_ENABLE_X64"} & set(os.environ)
assert keras.layers.Conv2D(3, 3).data_format == "channels_last"
"""


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return lambda **values: (tmp_path / "keras.json").write_text(json.dumps(values))


def test_settings_for_other_work_change_nothing_here(keras_home):
    keras_home(image_data_format="channels_first", floatx="float16", epsilon=0.1, backend="torch")
    others = {"KERAS_BACKEND": "torch", "KERAS_MAX_EPOCHS": "1", "MLFLOW_RUN_ID": "x", "JAX_ENABLE_X64": "1"}
    subprocess.run([sys.executable, "-c", PROBE], check=True, env={**os.environ, **others}, capture_output=True)


def test_what_is_set_aside_is_said(keras_home, monkeypatch):
    monkeypatch.delenv("FROSTLINE_IGNORED", raising=False)
    assert ignored_settings() == []
    keras_home(image_data_format="channels_first", floatx="float32")
    (line,) = ignored_settings()
    assert "image_data_format: channels_first" in line
    assert settings_problems() == []
    monkeypatch.setenv("FROSTLINE_IGNORED", "KERAS_BACKEND=torch")
    assert "KERAS_BACKEND=torch" in ignored_settings()[0]


@pytest.mark.parametrize("values", [{"floatx": "float8"}, {"image_data_format": "nchw"}, {"epsilon": "small"}])
def test_what_keras_does_not_start_with_is_a_problem(keras_home, values):
    keras_home(**values)
    (problem,) = settings_problems()
    assert next(iter(values)) in problem


def test_what_may_change_a_last_digit_is_recorded(root, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert "TF_ENABLE_ONEDNN_OPTS=0" in lineage_tags("seed: 1", root)["frostline.environment"]
