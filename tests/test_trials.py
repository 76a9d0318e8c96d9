"""The core of the line on a tiny base: features, receipt, trials, refit."""

import contextlib
import gc
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from optuna.trial import TrialState
from projects import NUM, SIZE, make_params, make_project, make_sources
from samples import make_trial
from scipy.special import softmax
from torture import LONG, Search

from frostline.arrays import (
    ALL,
    FINAL_ONLY,
    GROUPS,
    LEFT_OUT,
    USE,
    load_array,
    load_split,
    save_array,
)
from frostline.bases.cost import flops_of
from frostline.bases.extraction import Extractor
from frostline.bases.features import choose_dtype
from frostline.errors import Refused
from frostline.evidence.explanation import explain
from frostline.evidence.trials import SearchRecord
from frostline.files import load_json
from frostline.hparams import Hparams
from frostline.params import Tracking
from frostline.search.outcome import estimate_deeper, run_study
from frostline.search.places import StudyFile
from frostline.search.space import make_baseline
from frostline.search.study import list_records, open_study
from frostline.search.worker import Job, run_trials
from frostline.seeding import derive_seed
from frostline.tracking.messages import describe_candidates
from frostline.tracking.runs import open_study_run
from frostline.tracking.store import Store, open_store
from frostline.training import refit as refit_module
from frostline.training.bench import Bench, fit_shared_heads
from frostline.training.receipt import check_equivalence
from frostline.training.refit import CrossFit, Refitter


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def bench(project: Path) -> Bench:
    bench = Bench(make_params(project), 2, {})
    bench.heads = fit_shared_heads(bench)
    return bench


def hparams_at(depth: int, head_input: str = "all") -> Hparams:
    return make_baseline(make_params(Path("anywhere")).tune.space, depth, head_input)


def make_search_of(depth: int, head_input: str = "all", **facts: Any) -> SearchRecord:
    """The bare head and one trial of this depth."""
    trials = (make_trial(0, head_input="last"), replace(make_trial(1, **facts), hparams=hparams_at(depth, head_input)))
    return SearchRecord("feed", 1, 2, trials)


def test_copies_of_test_images_are_trained_on_nowhere(project: Path, tmp_path: Path) -> None:
    """Row 5 of train and 2 of val are copies of test images, row 7 of train of one of val; 8 and 9 are alike."""
    params = make_params(project)
    features = tmp_path / "features"
    shutil.copytree(params.paths.features, features)
    first = NUM["train"]
    use, groups = np.full(first + NUM["val"], ALL, np.uint8), np.arange(first + NUM["val"])
    use[[5, first + 2]], use[7], groups[9] = LEFT_OUT, FINAL_ONLY, 8
    save_array(features / USE, [use], use.shape, np.uint8)
    save_array(features / GROUPS, [groups], groups.shape, np.int64)
    paths = params.paths.model_copy(update={"features": str(features)})
    params = params.model_copy(update={"paths": paths})
    bench = Bench(params, 2, {})
    data = bench.data(1, "all")
    assert data.train.tolist() == [row for row in range(first) if row not in (5, 7)]
    assert data.held_out.tolist() == [row for row in range(first, len(use)) if row != first + 2]
    assert data.class_weights.tolist() == [1, 1]
    bench.heads = fit_shared_heads(bench)
    assert len(bench.heads["all"].logits) == len(data.train)
    assert bench.receipt(hparams_at(1)).holds
    splits = [load_split(project / "data/prepared" / split) for split in NUM]
    refitter = Refitter(params, ("dark", "bright"), splits, tmp_path / "work")
    assert refitter.rows.tolist() == [row for row in range(len(use)) if row not in (5, first + 2)]
    assert len(refitter.labels) == len(refitter.folds) == len(use) - 2
    place = {row: place for place, row in enumerate(refitter.rows.tolist())}
    assert refitter.folds[place[8]] == refitter.folds[place[9]]
    search = make_search_of(1)
    record, probabilities = refitter.run(search, search.trials[1:], tmp_path / "out", splits[1].images[:4])
    assert record.num_images == len(probabilities) == len(use) - 2


def test_features_are_what_the_base_gives(project: Path, bench: Bench) -> None:
    images = load_split(project / "data/prepared/val").images
    scaled = np.asarray(images, np.float32) / 127.5 - 1
    whole = keras.ops.convert_to_numpy(bench.base.model(scaled, training=False))
    stored = load_array(project / "data/features/depth-00/view-000.npy")[NUM["train"] :]
    np.testing.assert_allclose(stored, whole, rtol=5e-3, atol=1e-3 * np.abs(stored).max())
    pooled = bench.data(0, "last").views[0][NUM["train"] :]
    np.testing.assert_allclose(pooled, whole.mean(axis=(1, 2)), rtol=5e-3, atol=1e-3 * np.abs(pooled).max())


def test_maps_that_lie_elsewhere_are_asked_for_and_those_of_the_depth_before_let_go(
    project: Path, bench: Bench
) -> None:
    asked: list[str] = []
    own = Bench(make_params(project), 2, bench.heads, asked.append)
    own.data(0, "all")
    assert asked == []
    own.train(hparams_at(1), 0)
    before = weakref.ref(own.data(1, "all"))
    assert before() is not None
    own.data(2, "all")
    gc.collect()
    assert asked == ["depth-01", "depth-02"] and before() is None


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
    (features / "depth-01/mirror.npy").unlink()
    sources = make_sources(project)
    assert dict(Extractor(bench.base, [0, 1, 2], 20).save(sources, features)) == dict.fromkeys(sources, 0) | {
        "mirror": 72
    }
    assert kept.stat().st_mtime_ns == stamp
    for name in ("depth-00", "depth-01", "pooled"):
        again, before = (
            np.asarray(load_array(root / name / "mirror.npy")) for root in (features, project / "data/features")
        )
        np.testing.assert_array_equal(again, before)


def test_cached_path_and_whole_network_have_the_same_loss_and_gradients(bench: Bench) -> None:
    for depth, head_input in ((0, "last"), (0, "all"), (2, "last"), (2, "all")):
        receipt = bench.receipt(hparams_at(depth, head_input))
        assert receipt.holds
        assert receipt.loss_difference < 1e-3


def test_features_of_another_base_get_no_receipt(project: Path, bench: Bench) -> None:
    hparams = hparams_at(0, "last")
    trainer, data = bench.trainer(hparams), bench.data(0, "last")
    val = load_split(project / "data/prepared/val")
    state = trainer.start(bench.start_head(hparams, 0), 0)
    wrong = np.asarray(data.views[0][data.held_out[:8]]) * 1.5
    with pytest.raises(Refused, match="do not stand for the base"):
        check_equivalence(bench.base, trainer, state, val.images[:8], wrong, val.labels[:8])


def test_identical_trials_are_identical_whatever_ran_between(bench: Bench) -> None:
    first = bench.train(hparams_at(1), seed=5).curves
    bench.train(hparams_at(1), seed=6)
    assert bench.train(hparams_at(1), seed=5).curves == first


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("head_input", ["last", "all"])
def test_training_begins_at_the_linear_head(bench: Bench, depth: int, head_input: str) -> None:
    """With rates of nothing, a tail answers as the linear head does, at every depth."""
    hparams = replace(hparams_at(depth, head_input), head_learning_rate=1e-30, suffix_learning_rate=1e-30, dropout=0.0)
    trainer, data = bench.trainer(hparams), bench.data(depth, head_input)
    logits = trainer.predict(trainer.start(bench.start_head(hparams, 0), 0), data.views[0])
    kernel, bias = bench.heads[head_input].whole
    wanted = np.asarray(bench.data(0, head_input).views[0][:], np.float32) @ kernel + bias
    np.testing.assert_allclose(logits, wanted, atol=0.02 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def refitter(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Refitter:
    return make_refitter(project, tmp_path_factory.mktemp("work"))


def make_refitter(project: Path, work: Path, **rules: Any) -> Refitter:
    params = make_params(project)
    params = params.model_copy(update={"refit": params.refit.model_copy(update=rules)})
    splits = [load_split(project / "data/prepared" / split) for split in NUM]
    return Refitter(params, ("dark", "bright"), splits, work)


def val_images(project: Path) -> np.ndarray:
    return np.asarray(load_split(project / "data/prepared/val").images)


@pytest.mark.parametrize("combine", ["mean", "average_weights", "single"])
def test_the_whole_model_is_the_mean_of_its_parts_in_stock_layers(
    project: Path, refitter: Refitter, tmp_path: Path, combine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tails and heads in equal parts, with the mirror image, whatever the out-of-fold loss would choose.
    monkeypatch.setattr(refit_module, "SHARES", [0.5])
    monkeypatch.setattr(refitter, "_mirrored", lambda _: [True])
    refitter.params = refitter.params.model_copy(
        update={"refit": refitter.params.refit.model_copy(update={"combine": combine})}
    )
    images, search = val_images(project), make_search_of(2)
    record, probabilities = refitter.run(search, search.trials[1:], tmp_path, images)
    assert record.join_difference < 1e-2 and (record.share, record.mirrored) == (0.5, True)
    assert set(record.sha256) == {"final", "baselines"}
    baselines = keras.saving.load_model(tmp_path / "baselines.keras", safe_mode=True)(images, training=False)
    for name, sees in (("baseline", "last"), ("every_cut", "all")):
        bench, rows = refitter.bench, np.arange(NUM["train"], NUM["train"] + NUM["val"])
        kernel, bias = bench.heads[sees].whole
        views = [np.asarray(view[rows], float) for view in (bench.data(0, sees).views[0], bench.data(0, sees).mirror)]
        wanted = np.mean([softmax(view @ kernel + bias, axis=1) for view in views], axis=0)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(baselines[name]), wanted, atol=5e-3)
    assert set(baselines) == {"baseline", "every_cut"}
    model = keras.saving.load_model(tmp_path / "final.keras", safe_mode=True)
    answers = keras.ops.convert_to_numpy(model(images, training=False))
    assert answers.shape == (NUM["val"], 2)
    np.testing.assert_allclose(answers.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(answers, keras.ops.convert_to_numpy(model(images[:, :, ::-1])), atol=1e-5)
    layers = [layer for layer in model._flatten_layers() if layer is not model]
    assert not [layer for layer in layers if type(layer).__module__.startswith("frostline")]
    assert not model.compiled  # no optimizer state travels with it
    assert probabilities.shape == (NUM["train"] + NUM["val"], 2)
    assert record.accuracy == (probabilities.argmax(axis=1) == refitter.labels).mean()
    json.dumps(record.to_record(), allow_nan=False)
    assert type(record).from_record(json.loads(json.dumps(record.to_record()))).to_record() == record.to_record()
    heat = explain(model, images[:2], np.array([0, 1]))
    assert heat.shape == (2, SIZE, SIZE) and heat.max() > 0.5


def test_out_of_fold_answers_are_those_of_the_networks_that_have_not_seen_the_image(
    project: Path, tmp_path: Path
) -> None:
    refitter = make_refitter(project, tmp_path / "work")
    bench, hparams = refitter.bench, hparams_at(1)
    crossed = refit_module.cross_fit_trial(
        bench, replace(make_trial(1), hparams=hparams), refitter.rows, refitter.folds, tmp_path / "work"
    )
    own, others = np.flatnonzero(refitter.folds == 1), np.flatnonzero(refitter.folds != 1)
    seed = derive_seed(bench.params.seed, "refit", 1, 1)
    alone = bench.train(hparams, seed, rows=(others, own), head=bench.start_head(hparams, seed, 1))
    logits = bench.trainer(hparams).predict(alone.state, bench.data(1, "all").views[0], own)
    np.testing.assert_allclose(crossed.plain[own], softmax(logits.astype(float), axis=1), atol=1e-6)


def test_a_killed_refit_goes_on_at_its_fold(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_module, "SHARES", [0.5])  # tails are part of it, whatever the loss would choose
    search, images = make_search_of(1), val_images(project)
    whole, _ = make_refitter(project, tmp_path / "whole").run(search, search.trials[1:], tmp_path / "a", images)
    killed, fitted = make_refitter(project, tmp_path / "work"), []
    train = Bench.train

    def die_at_the_third(self: Bench, *given: Any, **named: Any) -> Any:
        fitted.append(given)
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return train(self, *given, **named)

    monkeypatch.setattr(Bench, "train", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        killed.run(search, search.trials[1:], tmp_path / "b", images)
    again, _ = make_refitter(project, tmp_path / "work").run(search, search.trials[1:], tmp_path / "b", images)
    assert len(fitted) == 4  # of three folds the third alone is fitted again
    assert again.curves and again == whole


def test_the_judging_fold_does_not_say_when_its_tail_stops(project: Path, tmp_path: Path) -> None:
    """Or out-of-fold predictions would be of networks that have seen their fold after all."""
    refitter = make_refitter(project, tmp_path)
    tune = refitter.params.tune.model_copy(update={"patience": 1, "epochs": 4})
    bench = Bench(refitter.params.model_copy(update={"tune": tune}), 2, refitter.bench.heads)
    still = replace(hparams_at(0), head_learning_rate=1e-30)
    rows = np.arange(40), np.arange(40, 48)
    assert bench.train(still, 0).num_epochs == 2
    assert bench.train(still, 0, rows=rows).num_epochs == 4


def test_without_the_linear_head_as_a_start_refit_begins_as_the_search_did(project: Path, tmp_path: Path) -> None:
    params = make_params(project, probe=False)
    splits = [load_split(project / "data/prepared" / split) for split in NUM]
    refitter = Refitter(params, ("dark", "bright"), splits, tmp_path)
    drawn, searched = refitter.bench.start_head(hparams_at(0), 5), Bench(params, 2, {}).start_head(hparams_at(0), 5)
    assert set(refitter.bench.heads) == {"last", "all"}  # they are judged all the same
    assert all(np.array_equal(one, other) for one, other in zip(drawn.weights, searched.weights, strict=True))


def test_a_candidate_that_diverges_in_a_fold_is_left_out_and_said(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> Any:
        raise FloatingPointError("the loss is not finite in epoch 2")

    monkeypatch.setattr(Bench, "train", diverge)
    search = make_search_of(1)
    record, _ = make_refitter(project, tmp_path / "work").run(
        search, search.trials[1:], tmp_path / "out", val_images(project)
    )
    assert record.diverged == (1,) and record.share == 0
    assert [candidate.name for candidate in record.candidates] == ["bare head", "head on every cut"]
    assert "trial 1 left out" in "\n".join(describe_candidates(record))


def test_a_model_that_differs_from_what_was_trained_is_refused(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit_module, "JOIN_TOLERANCE", -1.0)
    search = make_search_of(1)
    with pytest.raises(Refused, match=r"in a probability.*extract\.precision"):
        make_refitter(project, tmp_path / "work").run(search, search.trials[1:], tmp_path, val_images(project))
    assert not (tmp_path / "final.keras").exists()


def test_where_no_flip_is_among_the_transforms_no_mirror_image_answers(project: Path, tmp_path: Path) -> None:
    refitter = make_refitter(project, tmp_path, mirrored="yes")
    bench = refitter.bench
    bench._data = {(0, sees): replace(bench.data(0, sees), mirror=None) for sees in ("last", "all")}
    heads = {
        sees: refit_module.cross_fit_head(bench, sees, sees, refitter.rows, refitter.folds) for sees in bench.heads
    }
    assert refitter._mirrored(heads["last"]) == [False]


def test_the_lowest_out_of_fold_log_loss_is_chosen() -> None:
    labels = np.array([0, 1, 0, 1, 1, 0], np.int32)

    def answer(sure: float, name: str, tails: bool) -> CrossFit:
        right = np.full((6, 2), 1 - sure)
        right[np.arange(6), labels] = sure
        trial = make_trial(3) if tails else None
        return CrossFit(name, trial, right, right[:, ::-1].copy(), [], {})

    heads = {"last": answer(0.6, "bare head", False), "all": answer(0.8, "head on every cut", False)}
    choice = refit_module.choose(labels, heads, [answer(0.7, "trial 3", True)], [False, True])
    assert (choice.share, choice.sees, choice.mirrored, choice.temperature) == (0.0, "all", False, 1.0)
    assert choice.tails is None and choice.heads is heads["all"]
    choice = refit_module.choose(labels, heads, [answer(0.9, "trial 3", True)], [False])
    assert choice.share == 1.0 and choice.heads is None
    others = [answer(0.9, "trial 3", True), answer(0.95, "trial 4", True), answer(0.8, "trial 5", True)]
    choice = refit_module.choose(labels, heads, others, [False, True])
    assert choice.tails is others[1] and (choice.share, choice.mirrored) == (1.0, False)


def test_within_a_standard_error_of_the_best_are_mirror_images_and_most_of_the_tails() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400).astype(np.int32)

    def answer(name: str, noise: float, tails: bool, mirror_too: float = 0.0) -> CrossFit:
        """Probabilities of the right class, noisy logits around 1.5, of image and mirror image."""

        def draw(more: float) -> Any:
            right = 1 / (1 + np.exp(-(1.5 + (noise + more) * rng.standard_normal(400))))
            return np.where(np.arange(2) == labels[:, None], right[:, None], 1 - right[:, None])

        return CrossFit(name, make_trial(3) if tails else None, draw(0.0), draw(mirror_too), [], {})

    # As good as each other: more of the tails than the mixture with the lowest loss has.
    heads = {"all": (head := answer("head on every cut", 1.0, False))}
    choice = refit_module.choose(labels, heads, [tails := answer("trial 3", 1.0, True)], [False, True])
    mixed = {share: share * tails.answers(True) + (1 - share) * head.answers(True) for share in refit_module.SHARES}
    lowest = min(mixed, key=lambda share: refit_module.log_loss(labels, mixed[share]))
    assert choice.mirrored and 0.3 < lowest < choice.share
    # Much worse tails get no more than their due, and a mirror image that says something else is left out.
    choice = refit_module.choose(labels, heads, [answer("trial 3", 4.0, True, mirror_too=9.0)], [False, True])
    assert choice.share < 0.3
    heads = {"all": answer("head on every cut", 1.0, False, mirror_too=9.0)}
    assert not refit_module.choose(
        labels, heads, [answer("trial 3", 1.0, True, mirror_too=9.0)], [False, True]
    ).mirrored


def test_flattened_maps_are_learnt_and_joined(project: Path, tmp_path: Path) -> None:
    params = make_params(project, pooling="flatten")
    splits = [load_split(project / "data/prepared" / split) for split in NUM]
    refitter = Refitter(params, ("dark", "bright"), splits, tmp_path / "work")
    assert refitter.bench.heads == {}
    search = make_search_of(1, "last")
    record, _ = refitter.run(search, search.trials[1:], tmp_path, val_images(project))
    assert record.join_difference < 1e-2 and record.share == 1.0
    assert set(record.sha256) == {"final", "baselines"}
    baselines = keras.saving.load_model(tmp_path / "baselines.keras", safe_mode=True)
    assert set(baselines.output) == {"baseline"}


def test_the_same_training_gives_the_same_file_whenever_and_wherever_it_is_saved(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the registry would take a rerun for a new model: Keras writes the date and drawn seeds into its files."""
    monkeypatch.setattr(refit_module, "SHARES", [0.5])
    search, images = make_search_of(1), val_images(project)
    first, _ = make_refitter(project, tmp_path / "1").run(search, search.trials[1:], tmp_path / "a", images)
    time.sleep(1.1)  # dates in metadata.json have seconds
    # As another process would: the base is loaded again, and Python's generator, from which Keras draws seeds, went on.
    keras.backend.clear_session()
    random.seed(4)
    again, _ = make_refitter(project, tmp_path / "2").run(search, search.trials[1:], tmp_path / "elsewhere", images)
    assert again.sha256 == first.sha256
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {f"{name}.keras" for name in first.sha256}


@pytest.mark.parametrize("workers", [1, 2, *([4] if LONG else [])])
def test_workers_run_the_asked_number_of_trials_and_log_each_once(
    project: Path, mlflow_root: Path, workers: int
) -> None:
    asked = 4 if workers < 4 else 16
    params = make_params(project, workers=workers, num_trials=asked, pruning="halving" if workers > 1 else "none")
    space = params.tune.space.model_copy(update={"unfrozen_blocks": (0, 0)})
    params = params.model_copy(update={"tune": params.tune.model_copy(update={"space": space})})
    study = open_study(StudyFile(mlflow_root / "studies" / "d.db", "d"), "c", "ask")
    store = open_store(params.tracking, mlflow_root)
    parent = open_study_run(store, "d", params={}, tags={})
    bench = Bench(params, 2, {})
    bench.heads = fit_shared_heads(bench)
    run_trials(Job(params, study, store, parent, ("dark", "bright"), bench.heads), bench)
    records = list_records(study.load(), asked)
    assert [record.number for record in records] == list(range(asked))
    children = store.client.search_runs([store.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert sorted(run.info.run_id for run in children) == sorted(record.run_id for record in records)
    assert sorted(int(run.data.tags["frostline.trial"]) for run in children) == list(range(asked))


def open_trials(store: Store, study: StudyFile) -> list[str]:
    """What is still said to run, in the store and in the study."""
    running = [trial.number for trial in study.load().get_trials(states=(TrialState.RUNNING,))]
    runs = store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'")
    return [*map(str, running), *(run.info.run_name for run in runs)]


@pytest.mark.skipif(not LONG or sys.platform != "linux", reason="three searches with two workers each: `make torture`")
def test_a_search_outlives_its_worker_ends_when_told_to_and_goes_on(project: Path, mlflow_root: Path) -> None:
    search = Search(make_params(project, num_trials=1000, workers=2), mlflow_root)
    workers = search.wait_for_workers(2)
    os.kill(workers.pop(), signal.SIGKILL)
    search.wait_for_records(2)  # the other one goes on
    seconds, code, said = search.end_by(signal.SIGINT, everyone=True)
    assert code == 130 and seconds < 5
    assert said.splitlines()[-1].startswith("frostline: tune was ended by SIGINT") and "Traceback" not in said
    study, store = StudyFile(mlflow_root / "studies" / "d.db", "d"), open_store(Tracking(), mlflow_root)
    assert open_trials(store, study) == []

    killed = Search(make_params(project, num_trials=1000, workers=2), mlflow_root)
    killed.wait_for_workers(2)
    assert killed.end_by(signal.SIGKILL, everyone=False)[0] < 5  # the workers end with their parent
    trials = len(search.trials_with("record")) + 3
    again = Search(make_params(project, num_trials=trials, workers=2), mlflow_root)
    assert (again.process.communicate()[1], again.process.returncode) == ("", 0)
    assert open_trials(store, study) == []
    records = list_records(study.load(), trials)
    assert [record.number for record in records] == list(range(trials))
    runs = store.client.search_runs([store.experiment_id], "tags.`frostline.kind` = 'trial'")
    assert sorted(run.info.run_id for run in runs) == sorted(record.run_id for record in records)


@contextlib.contextmanager
def serving_runs(root: Path, port: int) -> Iterator[None]:
    """MLflow's own server on the database in `root`, with one worker; killed with the block."""
    place = ["--backend-store-uri", f"sqlite:///{root / 'mlflow.db'}", "--artifacts-destination", str(root / "served")]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *place, "--port", str(port), "--workers", "1"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.5)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.skipif(not LONG, reason="MLflow's server is away for a minute: `make torture`")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_is_killed_for_a_minute_is_waited_for_and_every_step_is_there_once(
    project: Path, mlflow_root: Path, workers: int
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    tracking = Tracking(uri=f"http://127.0.0.1:{port}", patience_s=600)
    asked = 12
    params = make_params(project, num_trials=asked, workers=workers).model_copy(update={"tracking": tracking})
    with serving_runs(mlflow_root, port):
        search = Search(params, mlflow_root)
        search.wait_for_records(3)
    time.sleep(60)
    assert search.process.poll() is None and len(search.trials_with("record")) < asked
    with serving_runs(mlflow_root, port):
        said = search.process.communicate(timeout=1200)[1]
        assert search.process.returncode == 0, said
        assert "Traceback" not in said and len(re.findall("does not answer", said)) == workers, said
        assert len(re.findall(r"is back after (\d+) s", said)) == workers
        store = open_store(tracking, mlflow_root)
        study = StudyFile(mlflow_root / "studies" / "d.db", "d")
        assert open_trials(store, study) == []
        records = list_records(study.load(), asked)
        assert [record.number for record in records] == list(range(asked))
        runs = store.client.search_runs([store.experiment_id], "tags.`frostline.kind` = 'trial'")
        assert sorted(run.info.run_id for run in runs) == sorted(record.run_id for record in records)
        for record in records:
            for name in ("epoch/loss", "epoch/val_loss"):
                steps = [metric.step for metric in store.client.get_metric_history(record.run_id, name)]
                assert len(steps) == len({*steps}) == len(record.curves["loss"]), (record.number, name, steps)


def test_one_block_deeper_costs_what_its_flops_and_its_map_say(project: Path) -> None:
    bench = Bench(make_params(project), 2, {})
    assert estimate_deeper(bench, 2) is None  # nothing ran whose pace could tell
    bench.train(hparams_at(1), 0)
    found = estimate_deeper(bench, 2)
    assert found is not None and found["depth"] == 3
    above, sizes = flops_of(bench.base)["suffix"], [np.prod(cut.shape) for cut in bench.base.cuts]
    assert found["seconds"] / found["seconds_now"] == pytest.approx(above[3] / above[2])
    pace, data = bench.pace(1), bench.data(1, "last")
    one = 2 * (len(data.train) * pace["train"] + len(data.held_out) * pace["validate"])
    assert found["seconds_now"] == pytest.approx(one * above[2] / above[1])
    stored = max(load_json(project / "data/features/complete.json")["stored"])
    assert found["bytes"] == pytest.approx(
        sum(file.stat().st_size for file in (project / f"data/features/depth-{stored:02d}").iterdir())
        * sizes[3]
        / sizes[stored],
        rel=1e-6,
    )
    assert estimate_deeper(bench, len(bench.base.cuts) - 1) is None


def test_a_study_says_where_its_time_went(project: Path, mlflow_root: Path) -> None:
    params = make_params(project, num_trials=3)
    study = open_study(StudyFile(mlflow_root / "studies" / "timed.db", "timed"), "c", "ask")
    store = open_store(params.tracking, mlflow_root)
    parent = open_study_run(store, "timed", params={}, tags={})
    report = run_study(params, study, store, parent, ("dark", "bright")).to_record()
    assert set(report["seconds"]) == {"base", "heads", "receipt", "trace", "train", "validate", "bookkeeping"}
    assert all(taken > 0 for taken in report["seconds"].values())
    assert 0 < report["achieved_over_limit"] < 1
    assert 0 < report["bookkeeping_seconds_per_trial"] < 5
    json.dumps(report, allow_nan=False)
