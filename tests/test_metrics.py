"""Scores and intervals: right values, honest spread, bounded memory."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from frostline.errors import Refused
from frostline.evidence import scores
from frostline.evidence.calibration import (
    apply_temperature,
    ece_floor,
    fit_temperature,
    reliability,
)
from frostline.evidence.comparison import mcnemar, needed_images, paired_difference, paired_score_interval
from frostline.evidence.evaluation import Evaluation, make_evaluation
from frostline.evidence.predictions import (
    Predictions,
    common_rows,
    load_predictions,
    pick_examples,
    pick_mistakes,
    save_predictions,
)
from frostline.evidence.scores import Sample, measure, summarize


def draw_answers(num_images=400, num_classes=4, sharpness=1.0, seed=0, skill=2.0):
    """Calibrated answers for sharpness 1: the label is drawn from the softmax of the logits."""
    rng = np.random.default_rng(seed)
    logits = skill * rng.normal(size=(num_images, num_classes))
    chosen = softmax(logits, axis=1)
    labels = (chosen.cumsum(axis=1) > rng.random((num_images, 1))).argmax(axis=1)
    return labels, softmax(sharpness * logits, axis=1).astype(np.float32)


def ece_of(labels, probabilities):
    return measure(labels, probabilities, ["ece"])["ece"]


def names_of(num_classes):
    return [f"class {index}" for index in range(num_classes)]


@pytest.mark.parametrize("num_classes", [2, 5])
def test_values_are_those_of_scikit_learn(num_classes):
    labels, probabilities = draw_answers(num_classes=num_classes)
    found, _ = summarize(labels, probabilities, names_of(num_classes), resamples=100)
    exact = probabilities.astype(float) / probabilities.sum(axis=1, keepdims=True, dtype=float)
    predicted = probabilities.argmax(axis=1)
    expected = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "log_loss": sk.log_loss(labels, exact),
        "brier": sk.brier_score_loss(labels, exact[:, 1] if num_classes == 2 else exact),
        "roc_auc": sk.roc_auc_score(labels, exact[:, 1] if num_classes == 2 else exact, multi_class="ovr"),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=2e-6), name
        assert found[name].low < value < found[name].high, name


def test_a_resample_is_scored_as_scikit_learn_scores_its_images():
    labels, probabilities = draw_answers(200, 3)
    probabilities = np.round(probabilities.astype(float), 1) + 1e-3  # with ties
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    weights = next(iter(scores._draw_weights(labels, 5, 3)))
    drawn = scores._resample(Sample(labels, probabilities), 5, 3)
    for column in range(5):
        rows = np.repeat(np.arange(200), weights[:, column].astype(int))
        truth, given = labels[rows], probabilities[rows]
        predicted = given.argmax(axis=1)
        assert np.array_equal(np.bincount(truth), np.bincount(labels))
        area = np.mean([sk.roc_auc_score(truth == c, given[:, c]) for c in range(3)])
        assert drawn["roc_auc"][column] == pytest.approx(area, abs=1e-6)
        assert drawn["macro_f1"][column] == pytest.approx(sk.f1_score(truth, predicted, average="macro"), abs=1e-6)
        assert drawn["log_loss"][column] == pytest.approx(sk.log_loss(truth, given), abs=1e-5)
        assert drawn["ece"][column] == pytest.approx(ece_of(truth, given), abs=1e-5)
        precision, recall, _, _ = sk.precision_recall_fscore_support(truth, predicted)
        assert drawn["precision"][column] == pytest.approx(precision, abs=1e-6)
        assert drawn["recall"][column] == pytest.approx(recall, abs=1e-6)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = {"bootstrap": 0, "score": 0}
    for seed in range(400):
        kind = rng.choice(3, 300, p=[0.88, 0.07, 0.05])  # as good as each other, won, lost: a true gain of 2 points
        labels = rng.integers(0, 2, 300)
        ours, theirs = (np.eye(2)[np.where(kind == lost, 1 - labels, labels)] for lost in (2, 1))
        drawn = paired_difference(labels, ours, theirs, resamples=400, confidence=0.9, seed=seed)
        score = paired_score_interval((kind == 1).sum(), (kind == 2).sum(), 300, 0.9)
        held["bootstrap"] += drawn.low <= 0.02 <= drawn.high
        held["score"] += score.low <= 0.02 <= score.high
    for name, times in held.items():
        assert 0.855 <= times / 400 <= 0.945, name  # 90 %, give or take three standard errors


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    labels, probabilities = draw_answers()
    first, second, third = (summarize(labels, probabilities, names_of(4), resamples=100, seed=s)[0] for s in (1, 1, 2))
    assert first == second
    assert first["log_loss"] != third["log_loss"]


def test_no_mistake_gives_wilsons_interval_not_certainty():
    labels = np.tile([0, 1], 128)
    found, _ = summarize(labels, np.eye(2, dtype=np.float32)[labels] * 0.98 + 0.01, ["a", "b"], resamples=100)
    assert found["accuracy"].value == found["accuracy"].high == 1.0
    assert found["accuracy"].low == pytest.approx(0.9852, abs=1e-3)


def test_a_class_without_test_images_counts_neither_for_nor_against():
    labels, probabilities = draw_answers(300, 2)
    padded = np.concatenate([probabilities, np.zeros((300, 1), np.float32)], axis=1)
    (two, _), (three, classes) = (
        summarize(labels, probabilities, names_of(2)),
        summarize(labels, padded, names_of(3)),
    )
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc"):
        assert two[name] == three[name]
    assert classes["class 2"]["support"] == 0


def test_one_class_alone_has_no_roc_auc():
    probabilities = draw_answers(50, 2)[1]
    assert summarize(np.zeros(50, int), probabilities, ["a", "b"], resamples=100)[0]["roc_auc"] is None


@pytest.mark.parametrize(
    "spoil", [lambda p: p * 2, lambda p: np.where(p == p.max(), np.nan, p), lambda p: p[:, :1], lambda p: p[:0]]
)
def test_what_is_no_probability_is_refused(spoil):
    labels, probabilities = draw_answers()
    with pytest.raises(ValueError, match="robabilities"):
        summarize(labels, spoil(probabilities), names_of(4))


def test_bootstrap_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr(scores, "BLOCK", 1 << 12)
    labels, probabilities = draw_answers(1000)
    blocks = list(scores._draw_weights(labels, 50, 0))
    assert max(block.size for block in blocks) <= 1 << 12
    assert sum(block.shape[1] for block in blocks) == 50
    assert len(scores._resample(Sample(labels, probabilities), 50, 0)["accuracy"]) == 50


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_fitted_temperature_undoes_the_sharpness(sharpness):
    labels, probabilities = draw_answers(20000, 4, sharpness)
    temperature = fit_temperature(labels, probabilities)
    assert temperature == pytest.approx(sharpness, rel=0.05)
    logits = np.log(np.maximum(probabilities, 1e-12)) + 5
    assert fit_temperature(labels, logits) == pytest.approx(temperature, rel=1e-3)
    calibrated = apply_temperature(probabilities, temperature)
    assert ece_of(labels, calibrated) < 0.015


def test_a_validation_split_without_mistakes_does_not_ask_for_infinite_confidence():
    labels = np.tile([0, 1], 50)
    probabilities = np.eye(2)[labels] * 0.8 + 0.1
    calibrated = apply_temperature(probabilities, fit_temperature(labels, probabilities))
    assert 0.95 < calibrated.max() < 0.999


def test_the_temperature_can_be_undone():
    _, probabilities = draw_answers()
    assert np.allclose(apply_temperature(apply_temperature(probabilities, 1.7), 1 / 1.7), probabilities, atol=1e-6)


@pytest.mark.parametrize("num_images", [20, 100, 1000])
def test_the_floor_of_the_calibration_error_is_what_calibrated_answers_show(num_images):
    errors, floors = [], []
    for seed in range(300):
        labels, probabilities = draw_answers(num_images, seed=seed)
        errors.append(ece_of(labels, probabilities))
        floors.append(ece_floor(probabilities))
    assert np.mean(floors) == pytest.approx(np.mean(errors), rel=0.08)


def test_reliability_bins_hold_every_image_once():
    labels, probabilities = draw_answers()
    bins = reliability(labels, probabilities)
    assert sum(b["count"] for b in bins) == len(labels)
    error = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(labels)
    assert error == pytest.approx(ece_of(labels, probabilities), abs=1e-6)


def test_mcnemar_is_the_binomial_tail():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(1 / 32)
    assert mcnemar(2, 3) == pytest.approx(26 / 32)


def test_the_paired_interval_is_narrower_than_two_separate_ones():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    both_wrong, wins, losses = np.split(rng.permutation(1000)[:160], [100, 140])
    theirs = np.eye(2)[np.where(np.isin(np.arange(1000), np.r_[both_wrong, wins]), 1 - labels, labels)]
    ours = np.eye(2)[np.where(np.isin(np.arange(1000), np.r_[both_wrong, losses]), 1 - labels, labels)]
    found = paired_difference(labels, ours, theirs)
    assert found.value == pytest.approx(0.02)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.06 / 1000), rel=0.1)


def test_tangos_interval_agrees_with_his_published_examples():
    # Tango (1998), Table: n = 44, (b, c) = (0, 1) and equal answers on 100 images; z^2 / (n + z^2) by hand.
    assert paired_score_interval(0, 0, 100, 0.9).low == pytest.approx(-0.02634, abs=1e-5)
    swapped = paired_score_interval(1, 12, 44)
    assert (swapped.low, swapped.high) == pytest.approx((-0.40229, -0.10675), abs=1e-4)
    large = paired_score_interval(300, 200, 100_000)
    assert large.low == pytest.approx(0.001 - 1.96 * np.sqrt(0.005 / 100_000), rel=0.02)


def test_needed_images_is_known_only_for_a_gain():
    assert needed_images(0.0, 0.1, significance=0.05) is None
    assert needed_images(-0.1, 0.1, significance=0.05) is None
    assert 600 < needed_images(0.03, 0.1, significance=0.05) < 800


def make_table(seed=0, num_images=60, files=None):
    labels, probabilities = draw_answers(num_images, 3, seed=seed)
    files = files or [f"class/{index}, a.jpg" for index in range(num_images)]
    return Predictions(tuple(files), labels, probabilities, ("a", 'b "2"', "p(c)"), "test")


def test_answers_come_back_from_disk_bit_for_bit(tmp_path):
    table = make_table()
    save_predictions(tmp_path / "predictions.csv", table)
    found = load_predictions(tmp_path / "predictions.csv")
    assert found.files == table.files and found.class_names == table.class_names and found.split == "test"
    assert np.array_equal(found.probabilities, table.probabilities)
    assert np.array_equal(found.labels, table.labels)
    header, first = (tmp_path / "predictions.csv").read_text().splitlines()[:2]
    assert header.startswith("file,label,prediction,p(a)") and header.endswith("correct,split")
    assert first.split(",")[-2] in ("true", "false")


def test_a_file_that_is_no_table_of_predictions_is_refused(tmp_path):
    (tmp_path / "predictions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(Refused, match="no table of predictions"):
        load_predictions(tmp_path / "predictions.csv")


def test_mistakes_come_most_confident_first_and_examples_are_of_both_kinds():
    table = make_table(num_images=300)
    rows = pick_mistakes(table, 5)
    assert not table.correct[rows].any()
    confidence = table.probabilities.max(axis=1)
    assert list(confidence[rows]) == sorted(confidence[~table.correct], reverse=True)[:5]
    examples = pick_examples(table, 12)
    assert table.correct[examples].sum() == 6 and len(set(examples)) == 12


def test_tables_are_compared_on_the_files_that_both_have():
    old = make_table(files=[f"{index}.jpg" for index in range(60)])
    new = Predictions(
        old.files[::-1][:40], old.labels[::-1][:40], old.probabilities[::-1][:40], old.class_names, "test"
    )
    rows = common_rows(old, new)
    assert [old.files[row] for row in rows[0]] == [new.files[row] for row in rows[1]]
    assert len(rows[0]) == 40
    with pytest.raises(Refused, match="other images"):
        common_rows(old, make_table(files=[f"{index}.png" for index in range(60)]))


def test_an_evaluation_says_how_much_too_good_the_search_looked_and_what_scaling_did():
    final, plain = make_table(1, 500), make_table(1, 500)
    worse = plain.probabilities[:, [1, 0, 2]]
    plain = Predictions(plain.files, plain.labels, worse, plain.class_names, "test")
    options = {"resamples": 200, "confidence": 0.95, "seed": 0}
    found = make_evaluation(final, plain, None, search_score=0.95, temperature=2.0, **options)
    assert found.selection_optimism == pytest.approx(0.95 - final.correct.mean(), abs=1e-6)
    assert found.gain.value == pytest.approx(final.correct.mean() - plain.correct.mean())
    assert found.gain.low > 0 and found.gain.p_value < 1e-6
    assert found.calibration["after"]["ece"] == pytest.approx(found.score("ece").value, abs=1e-6)
    # The answers are calibrated as they are; without the temperature they were twice as sharp.
    assert found.calibration["before"]["log_loss"] > found.calibration["after"]["log_loss"]
    record = json.loads(json.dumps(found.to_record(), allow_nan=False))
    assert Evaluation.from_record(record) == found


def test_a_metric_is_declared_once(monkeypatch):
    """What is declared is scored, with an interval, in the record of a test; nothing else names it."""
    worst = scores.Metric("share of errors", lambda drawn: 1 - drawn.means[0])
    monkeypatch.setattr(scores, "METRICS", {**scores.METRICS, "error": worst})
    labels, probabilities = draw_answers()
    found, _ = summarize(labels, probabilities, names_of(4), resamples=100)
    assert found["error"].value == pytest.approx(1 - found["accuracy"].value)
    assert found["error"].low < found["error"].value < found["error"].high
