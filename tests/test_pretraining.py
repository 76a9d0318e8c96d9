"""A base trained from scratch: resumed after a kill, whole on disk, and readable by the stock constructor."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from frostline.bases import pretraining
from frostline.bases.families import BUNDLED_BASE
from frostline.bases.pretraining import (
    EpochBatches,
    Recipe,
    augment_batch,
    make_card,
    make_generated_source,
    pretrain,
    save_base,
)
from frostline.cli.pretrain import command
from frostline.errors import Refused
from frostline.files import load_json, sha256_of
from frostline.images.generated.sets import draw_source, source_digest
from frostline.params import Tracking
from frostline.process import UNFINISHED
from frostline.seeding import derive_seed
from frostline.tracking import runs
from frostline.tracking.store import open_store

RECIPE = Recipe("MobileNet", {"alpha": 0.25}, image_size=32, epochs=2, batch_size=8, learning_rate=1e-3)


def build_tiny(recipe, size):
    """Two convolutions and a residual branch in place of the architecture: training them takes a second."""
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(4, 3, strides=4)(inputs)
    # A bias before a norm has no gradient but rounding, which Adam makes as large as any other.
    y = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    y = keras.layers.BatchNormalization()(y)
    return keras.Model(inputs, keras.layers.ReLU()(keras.layers.Add()([x, y])))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(pretraining, "build_stock", build_tiny)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_generated_source(tmp_path_factory.mktemp("source"), num_classes=4, images_per_class=6, size=32, seed=1)


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "build_stock", build_tiny)
        return pretrain(source, RECIPE, tmp_path_factory.mktemp("work"))


def test_generated_source_holds_every_class_equally_often(source):
    assert np.bincount(source.labels).tolist() == [6, 6, 6, 6]
    rows = np.array([0, 5, 23])
    assert np.array_equal(source.take(rows)[1], draw_source(1, derive_seed(1, 1), 32))


def test_a_killed_drawing_keeps_its_whole_shards(tmp_path):
    first = make_generated_source(tmp_path, 4, 6, 32, seed=1)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    (tmp_path / "val.npy").unlink()
    again = make_generated_source(tmp_path, 4, 6, 32, seed=1)
    assert (tmp_path / "shard-00000.npy").stat().st_mtime_ns == times["shard-00000.npy"]
    assert np.array_equal(first.val_images, again.val_images)


def test_training_killed_in_an_epoch_goes_on_and_ends_alike(tiny, source, trained, tmp_path):
    class Killed(Exception):
        pass

    def kill(progress):
        if progress.epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        pretrain(source, RECIPE, tmp_path, kill)
    (tmp_path / ".123.epoch-0009.weights.h5").write_bytes(b"half a checkpoint, not to be read")
    seen = []
    base, history = pretrain(source, RECIPE, tmp_path, lambda progress: seen.append(progress.epoch))
    assert set(seen) == {1}, "the first epoch is not run again"
    assert [epoch.epoch for epoch in history] == [0, 1]
    assert [epoch.loss for epoch in history] == pytest.approx([epoch.loss for epoch in trained[1]], abs=1e-6)
    for value, uninterrupted in zip(base.get_weights(), trained[0].get_weights(), strict=True):
        assert np.allclose(value, uninterrupted, atol=1e-5)


def test_the_optimizer_goes_on_where_it_stopped(tiny, source, tmp_path):
    pretrain(source, replace(RECIPE, epochs=1), tmp_path)
    network, _ = pretraining.build_network(RECIPE, 4)
    pretraining._compile(network, RECIPE, 3)
    assert len(pretraining._resume(network, tmp_path)) == 1
    assert int(network.optimizer.iterations) == 3
    assert any(np.any(variable) for variable in network.optimizer.variables[2:])


def test_small_images_first_give_a_base_for_the_full_size(tiny, source, tmp_path):
    recipe = replace(RECIPE, image_size=64, small_size=32, small_share=0.5)
    base, history = pretrain(source, recipe, tmp_path)
    assert [epoch.size for epoch in history] == [32, 64]
    assert base.input_shape == (None, 64, 64, 3)


def test_the_written_weights_load_into_the_stock_constructor(tmp_path):
    base = pretraining.build_stock(RECIPE, 32)
    path = save_base(tmp_path, base, {})
    stock = keras.applications.MobileNet(include_top=False, weights=path, input_shape=(32, 32, 3), alpha=0.25)
    images = np.linspace(-1, 1, 2 * 32 * 32 * 3, dtype=np.float32).reshape(2, 32, 32, 3)
    assert np.allclose(stock(images), base(images), atol=1e-5)


def test_the_card_says_what_the_base_is(source, trained, tmp_path):
    base, history = trained
    path = save_base(
        tmp_path, base, make_card(RECIPE, source, history, command="frostline pretrain", commit="abc", notes=["no"])
    )
    card = load_json(tmp_path / "card.json")
    assert card["sha256"] == sha256_of(path)
    assert (card["name"], card["options"], card["image_size"], card["scaling"]) == (
        "MobileNet",
        {"alpha": 0.25},
        32,
        "tf",
    )
    assert card["num_classes"] == 4
    assert card["val_accuracy"] == round(history[-1].val_accuracy, 4)
    assert card["generator"]["source"] == source_digest()
    assert {"recipe", "commit", "command", "notes", "versions", "device"} <= set(card)


def test_an_epochs_batches_depend_on_seed_and_epoch_alone(source):
    backwards = [EpochBatches(source, RECIPE, 1, 32)[index] for index in (2, 1, 0)][::-1]
    forwards = [EpochBatches(source, RECIPE, 1, 32)[index] for index in (0, 1, 2)]
    for (images, targets), (same_images, same_targets) in zip(forwards, backwards, strict=True):
        assert np.array_equal(images, same_images)
        assert np.array_equal(targets, same_targets)
    assert not np.array_equal(EpochBatches(source, RECIPE, 2, 32)[0][0], forwards[0][0])


def test_every_row_is_seen_once_in_an_epoch(source):
    batches = EpochBatches(source, replace(RECIPE, augmentation=0.0), 0, 32)
    seen = np.concatenate([batches[index][0] for index in range(len(batches))])
    assert {image.tobytes() for image in seen.astype(np.uint8)} == {
        image.tobytes() for image in source.take(np.arange(24))
    }


def test_statistics_are_those_of_the_images(tiny, source):
    network, base = pretraining.build_network(RECIPE, 4)
    before = network.layers[-1].get_weights()
    pretraining.settle_statistics(network, base, source, RECIPE)
    (norm,) = [layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert not np.allclose(norm.moving_mean, 0)
    assert all(np.array_equal(*pair) for pair in zip(before, network.layers[-1].get_weights(), strict=True))


def test_no_augmentation_leaves_images_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    before = images.copy()
    assert np.array_equal(augment_batch(images, np.random.default_rng(1), 0.0, 32), images)
    assert not np.array_equal(augment_batch(images, np.random.default_rng(1), 1.0, 32), images)
    assert np.array_equal(images, before)


def test_residual_branches_begin_silent_and_the_classifier_undecided():
    recipe = Recipe(options={"alpha": 0.35}, image_size=32)
    network, base = pretraining.build_network(recipe, 5)
    adds = [layer for layer in base.layers if isinstance(layer, keras.layers.Add)]
    silent = [
        layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization) and not np.any(layer.gamma)
    ]
    assert len(silent) == len(adds) == 10
    assert np.allclose(network(np.full((1, 32, 32, 3), 99, np.float32)), 0)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(Refused, match="MobileNetV2"):
        pretraining.build_stock(Recipe(architecture="MobileNetV"), 96)


SMALL = ("--base", "MobileNet", "--option", "alpha=0.25", "--image-size", "32", "--epochs", "1")
ARGUMENTS = ("generated", "--out", "mine", *SMALL, "--classes", "3", "--images-per-class", "4", "--batch-size", "4")


def run(*arguments):
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_command_writes_a_base_and_overwrites_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "epoch 1/1" in run(*ARGUMENTS, "--no-track")
    card = json.loads((tmp_path / "mine" / "card.json").read_text())
    assert card["file"] == "base.weights.h5"
    keras.applications.MobileNet(
        include_top=False, weights=tmp_path / "mine" / card["file"], input_shape=(32, 32, 3), alpha=0.25
    )
    assert not list((tmp_path / UNFINISHED).iterdir()), "finished work is removed"
    assert run(*ARGUMENTS, "--no-track").startswith("mine holds this very base already")
    assert load_json(tmp_path / "mine" / "card.json") == card
    with pytest.raises(Refused, match="holds a base already"):
        run(*ARGUMENTS, "--no-track", "--seed", "8")
    (tmp_path / "mine" / "card.json").write_text("{}")  # from elsewhere
    with pytest.raises(Refused, match="holds a base already"):
        run(*ARGUMENTS, "--no-track")


def test_a_training_killed_when_its_base_was_whole_is_ended_by_the_same_command(tiny, mlflow_root, monkeypatch):
    monkeypatch.chdir(mlflow_root)
    (mlflow_root / "dvc.yaml").touch()

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runs, "close_run", die)  # its curves are written already
        with pytest.raises(Killed):
            run(*ARGUMENTS)
    assert list((mlflow_root / UNFINISHED).iterdir())
    assert len(run(*ARGUMENTS).splitlines()) == 1
    assert not list((mlflow_root / UNFINISHED).iterdir())
    store = open_store(Tracking(), mlflow_root)
    (found,) = store.client.search_runs([store.experiment_id])
    assert found.info.status == "FINISHED" and found.data.tags["frostline.kind"] == "pretraining"
    assert len(store.client.get_metric_history(found.info.run_id, "epoch/loss")) == 1


def test_an_option_without_a_number_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"alpha=0\.35"):
        CliRunner().invoke(command, ["--out", str(tmp_path / "x"), "--option", "alpha=big"], catch_exceptions=False)


def test_the_bundled_base_is_small_whole_and_readable():
    card = load_json(BUNDLED_BASE / "card.json")
    path = BUNDLED_BASE / card["file"]
    assert path.stat().st_size <= 2_500_000
    assert sha256_of(path) == card["sha256"]
    size = card["image_size"]
    stock = getattr(keras.applications, card["name"])(
        include_top=False, weights=path, input_shape=(size, size, 3), **card["options"]
    )
    assert all(np.isfinite(weight).all() for weight in stock.get_weights())
