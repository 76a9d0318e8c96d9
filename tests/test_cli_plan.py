"""`frostline plan` from the outside, and what `augment` and `extract` then do."""

import importlib.util
import json

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from keras import layers
from ruamel.yaml import YAML

from frostline.arrays import load_array
from frostline.cli import group
from frostline.files import load_json, require_complete
from frostline.params import load_params
from frostline.process import UNFINISHED, run_stage
from frostline.training.data import load_features


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A base of four convolutions; each after the first is a block."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((32, 32, 3))
    for block, filters in enumerate((8, 16, 32, 32)):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
        x = layers.MaxPooling2D(name=f"pool{block}")(x)
    path = tmp_path_factory.mktemp("base") / "tiny.keras"
    keras.Model(inputs, x).save(path)
    return path


@pytest.fixture
def project(weights, params_document, tmp_path, monkeypatch):
    """A folder with small params, drawn images and the tiny base; nothing has run in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("frostline.process.die_with_parent", lambda: None)  # stages run in the tests' own process
    (tmp_path / "dvc.yaml").touch()
    params_document["fetch"] |= {"source": "generated", "images_per_class": 16}
    params_document["base"] |= {"name": "custom", "weights": str(weights), "image_size": 32, "options": {}}
    params_document["augment"]["views"] = 3
    params_document["tune"]["space"]["unfrozen_blocks"] = [0, "all"]
    write(params_document)
    return params_document


def write(document):
    with open("params.yaml", "w") as file:
        YAML().dump(document, file)


def plan(*arguments):
    return CliRunner().invoke(group, ["plan", *arguments], catch_exceptions=False).output


def run(root, stage):
    spec = importlib.util.spec_from_file_location(f"stage_{stage}", root / "pipelines" / f"{stage}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run_stage(stage, module.main)


def test_what_was_planned_is_what_is_stored(project, root, tmp_path, capsys):
    table = plan()
    assert [line.split()[0] for line in table.splitlines()[1:9]] == [
        *"prepare augment extract tune refit evaluate register all".split()
    ]
    assert "128 files decoded to 32 px" in table and "depths stored: 1" in table
    assert "by the shares of `prepare`" in table and "BUDGET" not in table
    assert list((tmp_path / UNFINISHED).iterdir()) == []

    for stage in ("source", "fetch", "prepare"):
        run(root, stage)
    # Two depths of three views and their mirror images fit beside the views themselves, a third does not.
    project["storage"]["budget_gb"] = 0.0022
    write(project)
    planned = json.loads(plan("--json"))
    assert planned["storage"]["stored"] == [1, 3]
    assert any("depth 2 is not stored but computed from depth 3" in note for note in planned["notes"])
    capsys.readouterr()
    for stage in ("augment", "extract"):
        run(root, stage)
    said = capsys.readouterr().out
    assert all(note in said for note in planned["notes"] if "BUDGET" in note)
    assert any(
        "depths 0 to 3 are searched, all blocks of the base" in note and note in said for note in planned["notes"]
    )
    assert require_complete(tmp_path / "data/features")["searched"] == [0, 3]
    sizes = {step["stage"]: step["bytes"] for step in planned["steps"]}
    for stage, *patterns in (
        ("prepare", "prepared/*/images.npy"),
        ("augment", "views/view-*.npy"),
        ("extract", "features/depth-*/*.npy", "features/pooled/*.npy"),
    ):
        written = [path for pattern in patterns for path in (tmp_path / "data").glob(pattern)]
        assert sizes[stage] == sum(load_array(path).nbytes for path in written), stage
    record = load_json(tmp_path / "data/features/features.json")
    assert (record["stored"], record["views"]) == (planned["storage"]["stored"], planned["storage"]["views"])
    assert sorted(path.name for path in (tmp_path / "data/features").glob("depth-*")) == ["depth-01", "depth-03"]

    # What is there is not made again, and that is said beforehand; of one depth more all rows pass the prefix.
    again = plan()
    assert all(word in again for word in ("0 new of 128 files", "0 new of", "to draw")) and again.count("0 new of") == 3
    project["tune"]["space"]["unfrozen_blocks"] = [0, 2]
    write(project)
    assert plan().count("0 new of") == 2
    project["tune"]["space"]["unfrozen_blocks"] = [0, 3]
    write(project)

    # A depth that is not stored is computed from the one below as if it were.
    params = load_params()
    base = keras.models.load_model(params.base.weights)
    features = load_features(tmp_path / "data/features", 2, slice(0, 3), lambda: load_base_of(params))
    pixels = np.asarray(load_array(tmp_path / "data/prepared/train/images.npy")[[3, 1]], np.float32)
    wanted = keras.Model(base.inputs[0], base.get_layer("pool1").output)(pixels)
    assert len(features) == record["views"] + 1 and list(features)[-1] == "mirror"
    plain = features["view-000"]
    given = plain[np.array([3, 1])]
    assert plain.map_size == 8 * 8 * 16 and plain.shape[1] == plain.map_size + 3
    wanted = np.asarray(wanted).reshape(2, -1)
    assert np.linalg.norm(given[:, : plain.map_size] - wanted) < 2e-3 * np.linalg.norm(wanted)
    np.testing.assert_array_equal(plain[0], plain[:1][0])


def load_base_of(params):
    from pathlib import Path

    from frostline.bases.base import load_base

    return load_base(params.base, Path(params.paths.base))


def test_what_only_fetch_can_know_is_refused(project):
    project["fetch"]["source"] = "cats_vs_dogs"
    write(project)
    result = CliRunner().invoke(group, ["plan"])
    assert "dvc repro fetch" in str(result.exception)
