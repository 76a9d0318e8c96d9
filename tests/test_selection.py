"""The gate: what it lets through, what it refuses, and how often it is wrong."""

import json

import numpy as np
import pytest
from scipy import stats

from frostline.evidence.comparison import mcnemar
from frostline.evidence.gate import Check, Verdict, decide_promotion
from frostline.params import Promote

CLASSES = ("cat", "dog")
MEASURED = {"model_mb": 10.0, "latency_p95_ms": 20.0, "golden_difference": 1e-7, "leaked": ()}


def make_predictions(labels, correct, confidence=0.95, num_classes=2):
    """Probabilities whose highest is the label where `correct`, the next class elsewhere."""
    chosen = np.where(correct, labels, (labels + 1) % num_classes)
    answers = np.full((len(labels), num_classes), (1 - confidence) / (num_classes - 1), np.float32)
    answers[np.arange(len(labels)), chosen] = confidence
    return answers


def draw_pair(rng, num_images, gain, discordance, accuracy=0.9):
    """Labels and two models' hits with known truth: the first is `gain` better, they differ on `discordance`."""
    labels = rng.integers(0, 2, num_images)
    kind = rng.random(num_images)
    wins = kind < (discordance + gain) / 2
    losses = ~wins & (kind < discordance)
    both = rng.random(num_images) < accuracy
    return (
        labels,
        np.where(wins, True, np.where(losses, False, both)),
        np.where(losses, True, np.where(wins, False, both)),
    )


def check_of(verdict: Verdict, name: str) -> Check:
    return next(check for check in verdict.checks if check.name == name)


def share_promoted(rules, *, gain, discordance, num_images=1000, simulations=1000, resamples=200):
    rng = np.random.default_rng(1)
    promoted = 0
    for _ in range(simulations):
        labels, ours, theirs = draw_pair(rng, num_images, gain, discordance)
        verdict = decide_promotion(
            labels,
            make_predictions(labels, ours, 0.9),
            make_predictions(labels, theirs, 0.9),
            CLASSES,
            rules,
            resamples=resamples,
            **MEASURED,
        )
        promoted += verdict.accepted
    return promoted / simulations


@pytest.mark.parametrize("discordance", [0.1, 0.3])
def test_equal_models_are_promoted_in_at_most_5_percent_of_1000_simulations(discordance):
    assert share_promoted(Promote(policy="better"), gain=0.0, discordance=discordance) <= 0.05


@pytest.mark.parametrize("discordance", [0.05, 0.1, 0.3])
def test_the_exact_share_of_equal_models_that_pass_is_at_most_5_percent(discordance):
    num_images, share = 1000, 0.0
    for discordant, weight in enumerate(stats.binom.pmf(np.arange(num_images + 1), num_images, discordance)):
        if weight > 1e-9:
            wins = np.arange(discordant + 1)
            passes = next((w for w in wins[discordant // 2 :] if mcnemar(w, discordant - w) < 0.05), discordant + 1)
            share += weight * stats.binom.sf(passes - 1, discordant, 0.5)
    assert 0.02 < share <= 0.05


def test_a_gain_of_3_points_on_1000_images_is_promoted_in_at_least_80_percent():
    assert share_promoted(Promote(policy="better"), gain=0.03, discordance=0.1, simulations=300) >= 0.8


@pytest.mark.parametrize("discordance", [0.01, 0.1])
def test_a_model_worse_by_the_margin_is_seldom_called_not_worse(discordance):
    rules = Promote(policy="not_worse", margin=0.01)
    # 5 % is the test's level; three standard errors of 400 simulations on top.
    assert share_promoted(rules, gain=-0.01, discordance=discordance, simulations=400) <= 0.05 + 0.033


def test_ten_points_more_on_500_images_are_promoted_with_numbers_in_the_message():
    rng = np.random.default_rng(0)
    labels, ours, theirs = draw_pair(rng, 500, 0.1, 0.14)
    verdict = decide_promotion(
        labels,
        make_predictions(labels, ours),
        make_predictions(labels, theirs),
        CLASSES,
        Promote(policy="better"),
        **MEASURED,
    )
    assert verdict.accepted
    assert "p = " in check_of(verdict, "comparison").message and "500 images" in check_of(verdict, "comparison").message
    assert verdict.numbers["comparison.difference"] == pytest.approx(ours.mean() - theirs.mean())


def test_a_class_that_loses_30_points_is_named_though_the_whole_improved():
    labels = np.repeat([0, 1], [400, 100])
    theirs = np.r_[np.arange(400) >= 100, np.arange(100) >= 5]
    ours = np.r_[np.arange(400) >= 5, np.arange(100) >= 35]
    verdict = decide_promotion(
        labels,
        make_predictions(labels, ours),
        make_predictions(labels, theirs),
        CLASSES,
        Promote(policy="better", max_ece=1.0),
        **MEASURED,
    )
    assert [check.name for check in verdict.checks if not check.passed] == ["classes"]
    assert "dog -30.0" in check_of(verdict, "classes").message


def test_forty_images_are_too_few_and_the_message_says_how_well_they_can_tell():
    labels = np.tile([0, 1], 20)
    verdict = decide_promotion(
        labels, make_predictions(labels, np.ones(40, bool)), None, CLASSES, Promote(), **MEASURED
    )
    assert not verdict.accepted
    assert "too few" in check_of(verdict, "test_size").message and "±" in check_of(verdict, "test_size").message


def test_too_small_a_gain_says_how_many_images_would_tell_and_so_many_do():
    rng = np.random.default_rng(3)
    labels, ours, theirs = draw_pair(rng, 400, 0.02, 0.06)
    verdict = decide_promotion(
        labels,
        make_predictions(labels, ours),
        make_predictions(labels, theirs),
        CLASSES,
        Promote(policy="better"),
        **MEASURED,
    )
    numbers = check_of(verdict, "comparison").numbers
    assert not verdict.accepted and numbers["needed_images"] > 400
    share = share_promoted(
        Promote(policy="better"),
        gain=numbers["difference"],
        discordance=numbers["discordance"],
        num_images=numbers["needed_images"],
        simulations=200,
    )
    assert 0.72 <= share <= 0.95


def test_a_challenger_that_is_behind_is_not_sent_for_more_images():
    rng = np.random.default_rng(3)
    labels, theirs, ours = draw_pair(rng, 400, 0.05, 0.1)
    verdict = decide_promotion(
        labels,
        make_predictions(labels, ours),
        make_predictions(labels, theirs),
        CLASSES,
        Promote(policy="better"),
        **MEASURED,
    )
    assert "would not help" in check_of(verdict, "comparison").message


def test_two_models_that_agree_everywhere_need_enough_images_to_be_called_not_worse():
    for num_images, accepted in ((200, False), (400, True)):
        labels = np.tile([0, 1], num_images // 2)
        answers = make_predictions(labels, np.arange(num_images) % 20 > 0)
        verdict = decide_promotion(labels, answers, answers, CLASSES, Promote(margin=0.01), **MEASURED)
        assert verdict.accepted is accepted, num_images


def test_the_first_champion_must_beat_the_largest_class_and_the_floor():
    labels = np.repeat([0, 1], [180, 20])
    lazy = make_predictions(labels, labels == 0, 0.9)
    assert not check_of(decide_promotion(labels, lazy, None, CLASSES, Promote(), **MEASURED), "floor").passed
    labels = np.tile([0, 1], 100)
    good = make_predictions(labels, np.arange(200) % 20 > 0)
    assert decide_promotion(labels, good, None, CLASSES, Promote(), **MEASURED).accepted
    assert not decide_promotion(labels, good, None, CLASSES, Promote(accuracy_floor=0.93), **MEASURED).accepted


@pytest.mark.parametrize(
    ("measured", "name"),
    [
        ({"model_mb": 501.0}, "model_size"),
        ({"latency_p95_ms": 1001.0}, "latency_p95"),
        ({"latency_p95_ms": float("nan")}, "latency_p95"),
        ({"golden_difference": 2e-4}, "golden"),
        ({"leaked": ["cats/1.jpg"]}, "leaks"),
        ({"model_mb": None}, "model_size"),
        ({"leaked": None}, "leaks"),
    ],
)
def test_each_limit_refuses_alone_and_what_was_not_measured_refuses_too(measured, name):
    labels = np.tile([0, 1], 100)
    good = make_predictions(labels, np.arange(200) % 20 > 0)
    verdict = decide_promotion(labels, good, None, CLASSES, Promote(), **(MEASURED | measured))
    assert [check.name for check in verdict.checks if not check.passed] == [name]


def test_a_badly_calibrated_model_is_refused_but_chance_on_few_images_is_not():
    labels = np.tile([0, 1], 500)
    right = np.arange(1000) % 4 > 0
    verdict = decide_promotion(labels, make_predictions(labels, right, 0.99), None, CLASSES, Promote(), **MEASURED)
    assert [check.name for check in verdict.checks if not check.passed] == ["calibration"]
    few = labels[:120]
    verdict = decide_promotion(few, make_predictions(few, right[:120], 0.84), None, CLASSES, Promote(), **MEASURED)
    assert verdict.accepted


def test_answers_that_are_no_probabilities_are_refused_not_scored():
    labels = np.tile([0, 1], 100)
    broken = make_predictions(labels, np.ones(200, bool))
    broken[3] = np.nan
    verdict = decide_promotion(labels, broken, None, CLASSES, Promote(), **MEASURED)
    assert not verdict.accepted and "no probabilities" in check_of(verdict, "predictions").message


def test_changed_classes_fail_a_check_of_their_own_and_the_rest_is_judged_on_the_shared_ones():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 600)
    good = make_predictions(labels, rng.random(600) < 0.95, num_classes=3)
    # The champion never heard of birds: on cats and dogs it is as good.
    old = good.copy()
    old[:, 2] = 0
    verdict = decide_promotion(
        labels, good, old, ("cat", "dog", "bird"), Promote(), champion_classes=("cat", "dog", "fish"), **MEASURED
    )
    assert [check.name for check in verdict.checks if not check.passed] == ["same_classes"]
    message = check_of(verdict, "same_classes").message
    assert "new: bird" in message and "gone: fish" in message and "--force" in message
    assert check_of(verdict, "comparison").numbers["num_images"] == (labels < 2).sum()
    assert set(check_of(verdict, "classes").numbers) == {"drop.cat", "drop.dog"}
    # Without a shared class there is nothing to compare.
    alone = decide_promotion(labels, good, 0 * old, ("a", "b", "c"), Promote(), champion_classes=("x", "y"), **MEASURED)
    assert "comparison" not in {check.name for check in alone.checks}


def test_a_champion_that_cannot_be_scored_is_a_failed_check_with_its_reason():
    labels = np.arange(400) % 2
    good = make_predictions(labels, np.arange(400) % 20 > 0)
    verdict = decide_promotion(
        labels, good, None, CLASSES, Promote(), champion_problem="its files are lost", **MEASURED
    )
    assert [check.name for check in verdict.checks if not check.passed] == ["champion"]
    assert "its files are lost" in check_of(verdict, "champion").message


def test_a_verdict_is_plain_values():
    labels = np.tile([0, 1], 100)
    good = make_predictions(labels, np.arange(200) % 20 > 0)
    verdict = decide_promotion(labels, good, good, CLASSES, Promote(), **MEASURED)
    assert json.loads(json.dumps(verdict.to_record(), allow_nan=False))["checks"][0]["name"] == "predictions"


def test_test_images_that_the_champion_was_trained_on_are_left_out_and_said_apart() -> None:
    """It has all of those right, and the challenger has half of them wrong: that is no reason to keep it."""
    rng = np.random.default_rng(3)
    labels = np.arange(400) % 2
    seen = np.arange(400) >= 300
    champion = make_predictions(labels, seen | (rng.random(400) < 0.9), 0.95)
    challenger = make_predictions(labels, np.where(seen, np.arange(400) % 4 < 2, True), 0.95)
    rules = Promote(margin=0.01, max_ece=1.0)
    blind = decide_promotion(labels, challenger, champion, CLASSES, rules, **MEASURED)
    assert not check_of(blind, "comparison").passed
    verdict = decide_promotion(labels, challenger, champion, CLASSES, rules, seen=seen, **MEASURED)
    comparison, told = check_of(verdict, "comparison"), check_of(verdict, "seen")
    assert comparison.passed and comparison.numbers["num_images"] == 300
    assert told.passed and (told.numbers["num_seen"], told.numbers["num_fresh"]) == (100, 300)
    assert told.numbers["champion_on_seen"] == 1.0 and told.numbers["accuracy_on_seen"] == 0.5
    few = decide_promotion(labels, challenger, champion, CLASSES, rules, seen=np.arange(400) >= 60, **MEASURED)
    assert not check_of(few, "seen").passed and "too few" in check_of(few, "seen").message
    none = decide_promotion(labels, challenger, champion, CLASSES, rules, seen=np.ones(400, bool), **MEASURED)
    assert not none.accepted
