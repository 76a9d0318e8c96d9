"""One significance for all comparisons on a test split: the sum never exceeds it, and simulated challengers hold it to that."""

import math

import numpy as np
import pytest

from frostline.evidence.budget import Budget
from frostline.evidence.comparison import mcnemar
from frostline.evidence.gate import decide_promotion
from frostline.params import Promote
from frostline.registry.wear import make_sketch

LIVES, CHALLENGERS, IMAGES = 100, 200, 400


def test_all_that_can_be_asked_together_has_no_more_than_the_significance():
    """Of every number of comparisons and of passed ones, all the challengers that the bits so far can choose."""
    spent = sum(
        math.comb(uses, passed) * Budget(uses, passed).level(0.05) for uses in range(400) for passed in range(uses + 1)
    )
    assert 0.045 < spent <= 0.05


def test_the_first_comparison_has_most_and_each_later_one_less():
    levels = [Budget(uses).level(0.05) for uses in range(6)]
    assert levels[0] == 0.03 and levels == sorted(levels, reverse=True)
    assert Budget(1, 1).level(0.05) < Budget(1, 0).level(0.05)
    assert Budget().left == 1 and 0.39 < Budget(1).left < 0.41 and 0 < Budget(1000).left < 0.02
    assert Budget(3, 1).after(True) == Budget(4, 2)
    said = Budget(3, 1).describe(0.05)
    assert "26% of this test split's budget is left after 3 comparisons, 1 passed" in said and "refill" in said


def promote_falsely(level_of, promoted_before: bool) -> float:
    """The share of lives in which one of so many challengers passes that are no better than the champion on new images.

    Each challenger is chosen by the verdicts so far: it answers as the last but on a tenth of the images, of which the champion gets as
    many right; after a pass it answers as that one does.
    """
    false = 0
    for life in range(LIVES):
        rng = np.random.default_rng(life)
        budget = Budget(1, 1) if promoted_before else Budget()
        for _ in range(budget.uses, CHALLENGERS):
            other = rng.random(IMAGES) < 0.1
            wins = int((other & (rng.random(IMAGES) < 0.5)).sum())
            passed = mcnemar(wins, int(other.sum()) - wins) < level_of(budget)
            budget = budget.after(passed)
            false += passed
            if passed:
                break
    return false / LIVES


@pytest.mark.parametrize("promoted_before", [False, True])
def test_200_challengers_chosen_by_earlier_verdicts_are_promoted_falsely_in_5_of_100_lives_at_most(promoted_before):
    assert promote_falsely(lambda budget: budget.level(0.05), promoted_before) <= 0.05


def test_without_a_budget_most_lives_see_a_false_promotion():
    assert promote_falsely(lambda _: 0.05, False) > 0.5


@pytest.mark.parametrize("policy", ["better", "not_worse"])
def test_the_gate_judges_at_the_level_that_is_left(policy):
    """A gain that the first comparison sees, and one after ten thousand does not."""
    labels = np.arange(1000) % 2
    rng = np.random.default_rng(0)
    champion, challenger = (np.where(rng.random(1000) < 0.97, labels, 1 - labels) for _ in range(2))
    champion[:40], challenger[:40] = 1 - labels[:40], np.where(np.arange(40) < 12, 1 - labels[:40], labels[:40])
    sure = [np.where(np.eye(2)[each] > 0, 0.95, 0.05) for each in (challenger, champion)]
    rules = Promote(policy=policy, margin=0.0 if policy == "not_worse" else 0.01)
    found = {}
    for uses in (0, 9, 10_000):
        verdict = decide_promotion(
            labels,
            *sure,
            ("a", "b"),
            rules,
            budget=Budget(uses),
            model_mb=1,
            latency_p95_ms=1,
            golden_difference=0,
            leaked=[],
        )
        found[uses] = next(check for check in verdict.checks if check.name == "comparison")
        assert found[uses].numbers["level"] == Budget(uses).level(0.05)
    assert found[0].passed and not found[10_000].passed


def test_a_split_is_the_same_where_more_than_a_tenth_of_its_images_is():
    names = [f"{number:064x}" for number in range(1000)]
    whole = make_sketch(names)
    assert whole.resembles(make_sketch(names[::-1])) and whole.name == make_sketch(set(names)).name
    assert whole.resembles(make_sketch([*names[:600], *(f"new{n}" for n in range(400))]))
    assert not whole.resembles(make_sketch([f"new{n}" for n in range(1000)]))
    assert not whole.resembles(make_sketch([*names[:10], *(f"new{n}" for n in range(990))]))
