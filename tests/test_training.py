"""Training a tail on stored features."""

import dataclasses

import keras
import numpy as np
import pytest

from frostline.bases.graph import copy_graph
from frostline.devices import without_drawing
from frostline.hparams import Hparams
from frostline.training.data import TrainingData, draw_folds, make_class_weights
from frostline.training.fit import fit
from frostline.training.tail import HeadStart, Tail, build_head, start_head
from frostline.training.trainer import Trainer, score_logits

PLAIN = Hparams(
    dropout=0.0,
    unfrozen_blocks=1,
    head_learning_rate=1e-2,
    suffix_learning_rate=1e-3,
    weight_decay=0.0,
    label_smoothing=0.0,
    optimizer="adam",
    head_units=0,
    head_input="last",
)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    """200 maps (4, 4, 8), flat, in which one channel is the class's; 150 are trained on."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200).astype(np.int32)
    features = rng.normal(size=(200, 4, 4, 8)).astype(np.float16)
    features[..., :3] += np.eye(3, dtype=np.float16)[labels][:, None, None]
    rows = features.reshape(200, -1)
    views = [rows, rows + np.float16(0.01)]
    return TrainingData(views, None, labels, np.arange(150), np.arange(150, 200), np.ones(3, np.float32))


def build_suffix() -> keras.Model:
    inputs = keras.Input((4, 4, 8))
    x = keras.layers.Conv2D(12, 3, padding="same", kernel_initializer=keras.initializers.GlorotUniform(seed=1))(inputs)
    return keras.Model(inputs, [keras.layers.ReLU()(keras.layers.BatchNormalization()(x))])


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    tail = Tail(1, "last", "avg", build_suffix(), build_head(12, 3, units=0, seed=0), (4, 4, 8), slice(0, 0))
    return Trainer(tail, "adam", batch_size=32, num_classes=3)


def begin(trainer: Trainer, seed: int = 0) -> HeadStart:
    return start_head(trainer.tail, seed, None)


def train(trainer: Trainer, data: TrainingData, hparams: Hparams, num_epochs: int = 3, seed: int = 0) -> list[float]:
    start = trainer.start(begin(trainer), seed)
    return fit(trainer, start, data, hparams, num_epochs=num_epochs, schedule="cosine", seed=seed).curves["loss"]


def test_identical_trials_give_identical_histories(trainer: Trainer, data: TrainingData) -> None:
    first = train(trainer, data, PLAIN)
    train(trainer, data, dataclasses.replace(PLAIN, dropout=0.5, head_learning_rate=0.1))
    assert train(trainer, data, PLAIN) == first


def test_a_trial_costs_no_trace(trainer: Trainer, data: TrainingData) -> None:
    for change in ({"dropout": 0.3}, {"head_learning_rate": 1e-3}, {"weight_decay": 0.1}, {"label_smoothing": 0.1}):
        train(trainer, data, dataclasses.replace(PLAIN, **change))
    assert trainer.num_traces == 1


@pytest.mark.parametrize(
    "change",
    [
        {"dropout": 0.5},
        {"head_learning_rate": 1e-3},
        {"suffix_learning_rate": 1e-2},
        {"weight_decay": 0.5},
        {"label_smoothing": 0.2},
    ],
)
def test_each_hparam_changes_the_training(trainer: Trainer, data: TrainingData, change: dict[str, float]) -> None:
    assert train(trainer, data, dataclasses.replace(PLAIN, **change)) != train(trainer, data, PLAIN)


def test_training_learns_and_keeps_the_best_epoch(trainer: Trainer, data: TrainingData) -> None:
    start = trainer.start(begin(trainer), 0)
    fitted = fit(trainer, start, data, PLAIN, num_epochs=8, schedule="constant", seed=0)
    assert fitted.val_accuracy == max(fitted.curves["val_accuracy"]) > 0.9
    loss, accuracy = score_logits(
        trainer.predict(fitted.best_state, data.views[0], data.held_out), data.labels[data.held_out]
    )
    assert (loss, accuracy) == (fitted.val_loss, fitted.val_accuracy)
    assert fitted.curves["val_accuracy"][fitted.best_epoch - 1] == accuracy


def test_training_leaves_the_tail_as_it_was(trainer: Trainer, data: TrainingData) -> None:
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in trainer.tail.suffix.variables]
    train(trainer, data, PLAIN)
    after = [keras.ops.convert_to_numpy(v) for v in trainer.tail.suffix.variables]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_batch_normalization_keeps_its_statistics_while_it_trains(trainer: Trainer, data: TrainingData) -> None:
    start = trainer.start(begin(trainer), 0)
    fitted = fit(trainer, start, data, PLAIN, num_epochs=2, schedule="constant", seed=0)
    trainer_model = trainer.tail.suffix
    before = {v.path: np.array(keras.ops.convert_to_numpy(v)) for v in trainer_model.variables}
    trainer.store(fitted.best_state.params)
    changed = {
        v.path for v in trainer_model.variables if not np.array_equal(before[v.path], keras.ops.convert_to_numpy(v))
    }
    trainer.restore()
    assert any(path.endswith("gamma") for path in changed)
    assert not any("moving" in path for path in changed)


def test_a_trial_stops_when_it_is_told_to(trainer: Trainer, data: TrainingData) -> None:
    start = trainer.start(begin(trainer), 0)
    fitted = fit(
        trainer, start, data, PLAIN, num_epochs=5, schedule="cosine", seed=0, go_on=lambda epoch: epoch.number < 2
    )
    assert len(fitted.curves["loss"]) == 2


def test_seconds_are_told_apart_by_phase(trainer: Trainer, data: TrainingData) -> None:
    before = dict(trainer.seconds)
    train(trainer, data, PLAIN)
    assert trainer.seconds["trace"] > 0
    assert all(trainer.seconds[phase] > before[phase] for phase in ("train", "validate"))
    assert 0 < trainer.pace["train"] * len(data.train) < trainer.seconds["train"]


def test_patience_ends_a_training_that_no_longer_improves(trainer: Trainer, data: TrainingData) -> None:
    still = dataclasses.replace(PLAIN, head_learning_rate=1e-30, suffix_learning_rate=1e-30)
    start = trainer.start(begin(trainer), 0)
    fitted = fit(trainer, start, data, still, num_epochs=9, schedule="constant", seed=0, patience=2)
    assert len(fitted.curves["loss"]) < 9


def test_a_loss_that_is_not_finite_is_an_error(trainer: Trainer, data: TrainingData) -> None:
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train(trainer, data, dataclasses.replace(PLAIN, head_learning_rate=1e38, suffix_learning_rate=1e38))


def test_the_chunk_size_does_not_change_the_training(
    trainer: Trainer, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(trainer, data, PLAIN, num_epochs=2)
    monkeypatch.setattr("frostline.training.trainer.CHUNK_BYTES", 2 * 32 * data.views[0][0].nbytes)
    assert train(trainer, data, PLAIN, num_epochs=2) == pytest.approx(whole, rel=1e-5)


def test_the_strength_of_the_penalty_holds_the_head_back(trainer: Trainer, data: TrainingData) -> None:
    def kernel(strength: float) -> float:
        head = dataclasses.replace(begin(trainer), strength=strength)
        fitted = fit(trainer, trainer.start(head, 0), data, PLAIN, num_epochs=3, schedule="constant", seed=0)
        return float(np.linalg.norm(keras.ops.convert_to_numpy(fitted.state.params[-2])))

    assert kernel(10.0) < 0.8 * kernel(0.0)


def test_a_head_that_begins_at_a_linear_head_answers_as_it_does(trainer: Trainer) -> None:
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(12, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    mean, scale = rng.normal(size=12), rng.uniform(0.5, 2, 12)
    columns = rng.normal(size=(5, 12)).astype(np.float32)
    head = start_head(trainer.tail, 0, ((kernel, bias), mean, scale, 0.1))
    standardised = (columns - head.mean) / head.scale
    np.testing.assert_allclose(standardised @ head.weights[0] + head.weights[1], columns @ kernel + bias, atol=1e-4)
    assert head.strength == 0.1


def test_a_gpu_does_not_round_the_factors_of_float32() -> None:
    if keras.backend.backend() == "jax":
        import jax

        assert jax.config.jax_default_matmul_precision == "highest"
    else:
        import tensorflow as tf

        assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_layers_that_are_filled_later_draw_nothing() -> None:
    def build() -> list[np.ndarray]:
        layer = keras.layers.SeparableConv2D(4, 3)
        layer.build((None, 8, 8, 2))
        norm = keras.layers.BatchNormalization()
        norm.build((None, 8, 8, 2))
        return [*layer.get_weights(), *norm.get_weights()]

    with pytest.raises(ZeroDivisionError), without_drawing():
        assert not any(values.any() for values in build())
        raise ZeroDivisionError
    kernels, pointwise, _, gamma, *_ = build()  # as ever, also after an error
    assert kernels.any() and pointwise.any() and (gamma == 1).all()


def test_other_rows_of_the_same_features_need_no_trace(trainer: Trainer, data: TrainingData) -> None:
    train(trainer, data, PLAIN)
    before = trainer.num_traces
    rows = np.random.default_rng(0).permutation(200)
    train(trainer, data.split(rows[:150], rows[150:]), PLAIN)
    assert trainer.num_traces == before


def test_folds_are_even_by_class_and_keep_groups_whole() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [100, 60, 20]).astype(np.int32)
    groups = np.where(rng.random(180) < 0.3, np.arange(180) // 3 * 3, np.arange(180))
    # A group may lie across classes; what counts is that it is never cut.
    folds = draw_folds(labels, groups, 5, seed=1)
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    for label, count in enumerate(np.bincount(labels)):
        per_fold = np.bincount(folds[labels == label], minlength=5)
        assert per_fold.max() - per_fold.min() <= 3, (label, count, per_fold)
    np.testing.assert_array_equal(folds, draw_folds(labels, groups, 5, seed=1))
    assert (folds != draw_folds(labels, groups, 5, seed=2)).any()


def test_fewer_groups_than_folds_make_fewer_folds_and_none_is_empty() -> None:
    labels, groups = np.array([0, 0, 0, 1, 1], np.int32), np.array([0, 0, 1, 2, 2])
    assert np.bincount(draw_folds(labels, groups, 5, seed=1)).tolist().count(0) == 0
    assert set(draw_folds(labels, groups, 5, seed=1)) == {0, 1, 2}


def test_balanced_class_weights_are_inverse_to_the_counts() -> None:
    weights = make_class_weights(np.array([0, 0, 0, 1], np.int32), 2, "balanced")
    assert weights.tolist() == pytest.approx([4 / 6, 2.0])


def test_score_logits_matches_the_definition() -> None:
    logits = np.log(np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]], np.float32))
    loss, accuracy = score_logits(logits, np.array([0, 1, 1], np.int32))
    assert loss == pytest.approx(-np.log([0.7, 0.6, 0.1]).mean(), rel=1e-5)
    assert accuracy == pytest.approx(2 / 3)


def test_whoever_answers_with_a_copy_takes_nothing_from_its_original() -> None:
    """JAX gives the arrays of a model that predicts away, those of a copy too where it shared them."""
    images, original = np.ones((2, 4, 4, 8), np.float32), build_suffix()
    answers = []
    for _ in range(2):
        start = keras.Input((4, 4, 8))
        copy = keras.Model(start, copy_graph(original.input, original.outputs, start))
        answers.append(copy.predict_on_batch(images)[0])
    np.testing.assert_array_equal(*answers)
