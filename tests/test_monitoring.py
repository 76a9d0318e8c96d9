"""Tests that may be looked at after every image: rarely wrong, quick where something changed; seeded simulations."""

import numpy as np
import pytest

from frostline.evidence.monitoring import ALPHAS, Answer, load_answers, order, save_answers, weigh
from frostline.evidence.predictions import Predictions

NAMES = ("cat", "dog")
RUNS = 100


def make_test(rng: np.random.Generator, accuracy: float, num_images: int = 600) -> Predictions:
    """Test answers: half of the images are cats, familiarity is uniform."""
    labels = rng.integers(0, 2, num_images)
    predicted = np.where(rng.random(num_images) < accuracy, labels, 1 - labels)
    files = tuple(map(str, range(num_images)))
    return Predictions(files, labels, np.eye(2)[predicted], NAMES, "test", rng.random(num_images))


def draw(
    rng: np.random.Generator, count: int, accuracy: float, cats: float = 0.5, strange: float = 0.0, tag: str = ""
) -> list[Answer]:
    labels = (rng.random(count) > cats).astype(int)
    predicted = np.where(rng.random(count) < accuracy, labels, 1 - labels)
    familiarity = rng.random(count) * np.where(rng.random(count) < strange, 0.05, 1)
    rows = zip(predicted, familiarity, labels, strict=True)
    return [Answer(f"{tag}{n}", NAMES[p], float(f), NAMES[y]) for n, (p, f, y) in enumerate(rows)]


def raised(accuracy: float, then: float, count: int, name: str, runs: int = RUNS, **changes: float) -> float:
    """The share of simulated lives in which a test raises alarm; each with a test split of its own."""
    alarms = 0
    for run in range(runs):
        rng = np.random.default_rng([run, count])
        test, answers = make_test(rng, accuracy), draw(rng, count, then, tag=f"{run}-", **changes)
        found = weigh(test, answers)
        alarms += any(each.raised for each in found.values()) if name == "any" else found[name].raised
    return alarms / runs


def test_nothing_has_changed_and_nothing_is_said():
    """Three standard errors above the promised 0.05 would be 0.115 of 100 lives."""
    assert sum(ALPHAS.values()) == pytest.approx(0.05)
    assert raised(0.9, 0.9, 800, "any") <= 0.05


def test_ten_points_of_accuracy_are_missed_within_150_labels():
    assert raised(0.96, 0.86, 150, "accuracy") >= 0.8


def test_a_fifth_of_strangers_is_seen_without_labels():
    assert raised(0.95, 0.95, 200, "familiarity", strange=0.2) >= 0.9


def test_other_shares_of_the_classes_are_seen():
    assert raised(0.95, 0.95, 200, "shares", cats=0.8) >= 0.9


def test_the_wealth_goes_on_from_look_to_look_and_an_alarm_is_not_taken_back():
    rng = np.random.default_rng(1)
    test, bad, good = make_test(rng, 0.95), draw(rng, 80, 0.7, tag="a"), draw(rng, 400, 1.0, tag="b")
    first, then = weigh(test, bad)["accuracy"], weigh(test, [*bad, *good])["accuracy"]
    assert first.raised and then.raised and then.highest == first.highest and then.wealth < first.wealth
    assert weigh(test, bad[:40])["accuracy"].wealth != first.wealth


def test_a_label_that_comes_later_counts_for_the_accuracy_alone():
    rng = np.random.default_rng(2)
    test, answers = make_test(rng, 0.95), draw(rng, 60, 0.9)
    silent = [Answer(each.sha256, each.predicted, each.familiarity) for each in answers]
    later = [Answer(each.sha256, each.predicted, each.familiarity, each.label, again=True) for each in answers]
    together, apart = weigh(test, answers), weigh(test, [*silent, *later])
    assert together == apart and "accuracy" not in weigh(test, silent)


def test_a_model_that_tells_no_familiarity_is_monitored_by_its_answers():
    test = make_test(np.random.default_rng(3), 0.95)
    plain = Predictions(test.files, test.labels, test.probabilities, test.class_names, "test")
    assert set(weigh(plain, [Answer("a", "cat", None, "dog")])) == {"shares", "accuracy"}
    assert weigh(plain, []) == {}


def test_the_order_says_nothing_of_names():
    names = [f"{label}{n:02d}" for label in "ab" for n in range(50)]
    places = [order(names).index(name) for name in names[:50]]
    assert 30 < np.mean(places) < 70 and order(names[::-1]) == order(names)


def test_answers_come_back_from_their_table(tmp_path):
    answers = [Answer("a", "cat", 0.25, "dog"), Answer("b", "dog", None), Answer("a", "cat", 0.25, "cat", again=True)]
    save_answers(tmp_path / "answers.csv", answers)
    assert load_answers(tmp_path / "answers.csv") == answers
