"""The core of the line on a tiny base: features, receipt, trials, refit."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from frostline.arrays import load_array, load_split, save_split
from frostline.bases.base import load_base
from frostline.bases.features import Extractor, choose_dtype
from frostline.bases.files import fetch_weights
from frostline.errors import Refused
from frostline.files import mark_complete, save_json
from frostline.hparams import Hparams
from frostline.params import Params, load_document, parse_params
from frostline.search.outcome import run_study
from frostline.search.space import make_baseline
from frostline.search.study import list_records, open_study
from frostline.search.worker import Job, run_trials
from frostline.tracking.runs import open_study_run
from frostline.tracking.store import open_store
from frostline.training import refit as refit_module
from frostline.training.bench import Bench, fit_shared_probe
from frostline.training.receipt import check_equivalence
from frostline.training.refit import refit

SIZE, VIEWS = 32, 2
NUM = {"train": 48, "val": 24}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared pictures of two classes (bright or dark), their view, a random base and its features."""
    folder = tmp_path_factory.mktemp("project")
    params = make_params(folder)
    rng = np.random.default_rng(0)
    for split, num in NUM.items():
        labels = (np.arange(num) % 2).astype(np.int32)
        images = (
            rng.integers(0, 120, (num, SIZE, SIZE, 3)).astype(np.uint8)
            + (labels * 130).astype(np.uint8)[:, None, None, None]
        )
        save_split(
            Path(params.paths.prepared) / split, [images], SIZE, labels, [f"{split}/{i}.png" for i in range(num)]
        )
    save_json(Path(params.paths.prepared) / "classes.json", ["dark", "bright"])
    fetch_weights(params.base, Path(params.paths.base), params.seed)
    base = load_base(params.base, Path(params.paths.base))
    train, val = (load_split(Path(params.paths.prepared) / split) for split in NUM)
    sources = {"view-000": train.images, "view-001": np.asarray(train.images)[:, :, ::-1], "val": val.images}
    assert list(Extractor(base, [0, 1, 2], "avg", 20).save(sources, Path(params.paths.features))) == list(sources)
    mark_complete(Path(params.paths.features), stored=[0, 1, 2], views=VIEWS)
    return folder


def make_params(folder: Path, **tune: Any) -> Params:
    document = load_document(Path(__file__).parents[1] / "presets" / "default.yaml")
    document["paths"] = {name: str(folder / path) for name, path in document["paths"].items()}
    document["base"] |= {"weights": "random", "image_size": SIZE}
    document["augment"]["views"] = VIEWS
    document["tune"] |= {"epochs": 2, "batch_size": 16, "num_trials": 3} | tune
    document["tune"]["space"]["unfrozen_blocks"] = [0, 2]
    document["refit"]["seeds"] = 3
    return parse_params(document)


@pytest.fixture(scope="module")
def bench(project: Path) -> Bench:
    return Bench(make_params(project), 2, None)


def hparams_at(depth: int) -> Hparams:
    return make_baseline(make_params(Path("anywhere")).tune.space, depth)


def test_features_are_what_the_base_gives(project: Path, bench: Bench) -> None:
    images = load_split(project / "data/prepared/val").images
    scaled = np.asarray(images, np.float32) / 127.5 - 1
    whole = keras.ops.convert_to_numpy(bench.base.model(scaled, training=False))
    stored = load_array(project / "data/features/depth-00/val.npy")
    np.testing.assert_allclose(stored, whole.mean(axis=(1, 2)), rtol=5e-3, atol=1e-3 * np.abs(stored).max())


def test_features_are_float16_unless_that_loses_them() -> None:
    ordinary = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    assert choose_dtype(ordinary) is np.float16
    assert choose_dtype(ordinary * 1e-7) is np.float32
    assert choose_dtype(ordinary * 1e6) is np.float32


def test_an_extraction_goes_on_where_it_was_killed(project: Path, bench: Bench, tmp_path: Path) -> None:
    features = tmp_path / "features"
    shutil.copytree(project / "data/features", features)
    kept = features / "depth-00/view-000.npy"
    stamp = kept.stat().st_mtime_ns
    (features / "depth-01/val.npy").unlink()
    splits = {split: load_split(project / f"data/prepared/{split}").images for split in NUM}
    sources = {"view-000": splits["train"], "val": splits["val"]}
    assert list(Extractor(bench.base, [0, 1, 2], "avg", 20).save(sources, features)) == ["view-000", "val"]
    assert kept.stat().st_mtime_ns == stamp
    for name in ("depth-00", "depth-01"):
        again, before = (
            np.asarray(load_array(root / name / "val.npy")) for root in (features, project / "data/features")
        )
        np.testing.assert_array_equal(again, before)


def test_cached_path_and_whole_network_have_the_same_loss_and_gradients(bench: Bench) -> None:
    for depth in (0, 2):
        receipt = bench.receipt(hparams_at(depth))
        assert receipt.holds
        assert receipt.loss_difference < 1e-3


def test_features_of_another_base_get_no_receipt(project: Path, bench: Bench) -> None:
    trainer, val = bench.trainer(hparams_at(0)), load_split(project / "data/prepared/val")
    head = [np.full((1280, 2), 0.1, np.float32) * [[1, -1]], np.zeros(2, np.float32)]
    wrong = np.asarray(load_array(project / "data/features/depth-00/val.npy")) * 1.5
    with pytest.raises(Refused, match="do not stand for the base"):
        check_equivalence(bench.base, trainer, trainer.start(head, 0), val.images[:8], wrong[:8], val.labels[:8], "avg")


def test_identical_trials_are_identical_whatever_ran_between(bench: Bench) -> None:
    first = bench.train(hparams_at(1), seed=5).curves
    bench.train(hparams_at(1), seed=6)
    assert bench.train(hparams_at(1), seed=5).curves == first


def test_a_model_that_differs_from_what_was_trained_is_refused(
    project: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.asarray(load_split(project / "data/prepared/val").images)
    exact = refit(bench, hparams_at(1), bench.params.refit, tmp_path / "model.keras", images).join_difference
    monkeypatch.setattr(refit_module, "JOIN_TOLERANCE", exact - 1e-6)
    with pytest.raises(Refused, match=r"in a probability.*extract\.precision"):
        refit(bench, hparams_at(1), bench.params.refit, tmp_path / "refused.keras", images)
    assert not (tmp_path / "refused.keras").exists()


def test_exported_model_agrees_with_prefix_and_tail(project: Path, bench: Bench, tmp_path: Path) -> None:
    images = np.asarray(load_split(project / "data/prepared/val").images)
    for depth in (0, 2):
        result = refit(bench, hparams_at(depth), bench.params.refit, tmp_path / f"{depth}.keras", images)
        model = keras.saving.load_model(tmp_path / f"{depth}.keras", safe_mode=True)
        probabilities = keras.ops.convert_to_numpy(model(images, training=False))
        assert result.join_difference < 1e-2
        assert probabilities.shape == (24, 2)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        accuracy = (probabilities.argmax(axis=1) == load_split(project / "data/prepared/val").labels).mean()
        assert accuracy == pytest.approx(result.val_accuracy)
        assert not [layer for layer in model.layers if type(layer).__module__.startswith("frostline")]
        assert not model.compiled  # no optimizer state travels with it


def test_refit_keeps_the_median_of_its_seeds(bench: Bench, project: Path, tmp_path: Path) -> None:
    images = np.asarray(load_split(project / "data/prepared/val").images[:4])
    result = refit(bench, hparams_at(0), bench.params.refit, tmp_path / "m.keras", images)
    ranked = sorted((seed["val_accuracy"], -seed["val_loss"]) for seed in result.seeds)
    assert (result.val_accuracy, -result.val_loss) == ranked[1]
    json.dumps(result.to_record())


def test_the_same_training_gives_the_same_file_whenever_and_wherever_it_is_saved(
    bench: Bench, project: Path, tmp_path: Path
) -> None:
    """Or the registry would take a rerun for a new model: Keras writes the date and drawn seeds into its files."""
    images = np.asarray(load_split(project / "data/prepared/val").images[:4])
    first = refit(bench, hparams_at(1), bench.params.refit, tmp_path / "a.keras", images)
    time.sleep(1.1)  # dates in metadata.json have seconds
    # As another process would: the base is loaded again, and Python's generator, from which Keras draws seeds, went on.
    keras.backend.clear_session()
    random.seed(4)
    again = refit(
        Bench(bench.params, 2, None), hparams_at(1), bench.params.refit, tmp_path / "elsewhere" / "b.keras", images
    )
    assert again.sha256 == first.sha256
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["b.keras"]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_run_the_asked_number_of_trials_and_log_each_once(
    project: Path, mlflow_root: Path, workers: int
) -> None:
    params = make_params(project, workers=workers, num_trials=4, pruning="halving" if workers > 1 else "none")
    space = params.tune.space.model_copy(update={"unfrozen_blocks": (0, 0)})
    params = params.model_copy(update={"tune": params.tune.model_copy(update={"space": space})})
    study = open_study(mlflow_root / "studies", "d", "c", "ask", space)
    store = open_store(params.tracking, mlflow_root)
    parent = open_study_run(store, "d", params={}, tags={})
    probe = fit_shared_probe(params)
    job = Job(params, study, store, parent, ("dark", "bright"), probe)
    run_trials(job, Bench(params, 2, probe))
    records = list_records(study.load(), 4)
    assert [record.number for record in records] == [0, 1, 2, 3]
    children = store.client.search_runs([store.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert sorted(run.info.run_id for run in children) == sorted(record.run_id for record in records)
    assert {run.data.tags["frostline.trial"] for run in children} == {"0", "1", "2", "3"}


def test_a_study_says_where_its_time_went(project: Path, mlflow_root: Path) -> None:
    params = make_params(project, num_trials=2)
    study = open_study(mlflow_root / "studies", "timed", "c", "ask", params.tune.space)
    store = open_store(params.tracking, mlflow_root)
    parent = open_study_run(store, "timed", params={}, tags={})
    report = run_study(params, study, store, parent, ("dark", "bright")).to_record()
    assert set(report["seconds"]) == {"base", "probe", "receipt", "trace", "train", "validate", "bookkeeping"}
    assert all(taken > 0 for taken in report["seconds"].values())
    assert 0 < report["achieved_over_limit"] < 1
    assert 0 < report["bookkeeping_seconds_per_trial"] < 5
    json.dumps(report, allow_nan=False)
