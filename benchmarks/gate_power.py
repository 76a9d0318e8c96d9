"""How often the gate promotes, by true gain, discordance and number of test images.

    python benchmarks/gate_power.py [--json FILE] [--write]    # prints the tables; --write puts them into docs/promotion.md

The budget of a test split is measured by simulated lives: 200 challengers, each no better (or worse by the margin) than the champion, on
the same test images. `better` is exact: sums over all counts of wins and losses. `not_worse` runs the gate's own two bounds on simulated
test sets, because a bootstrap has no formula.
"""

import argparse
import json

import numpy as np
from results import Lines, add_options, draw_table, keep
from scipy import stats

from frostline.evidence.budget import Budget
from frostline.evidence.comparison import mcnemar, needed_images, paired_difference, paired_score_interval
from frostline.evidence.gate import MAX_RESAMPLES

SIGNIFICANCE, MARGIN = 0.05, 0.01
SIMULATIONS = 1000
LIVES, CHALLENGERS = 1000, 200
# Comparison -> what was judged on the split before it.
PLACES = {
    "before there was a budget": None,
    "first": Budget(),
    "second, the first refused": Budget(1),
    "second, the first passed": Budget(1, 1),
    "5th, none passed": Budget(4),
    "20th, none passed": Budget(19),
    "20th, two passed": Budget(19, 2),
    "200th, none passed": Budget(199),
}
DISCORDANCES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)


def share_better(gain: float, discordance: float, num_images: int, level: float = SIGNIFICANCE) -> float:
    """The exact probability that McNemar's test passes: a binomial number of discordant images, of which so many won."""
    total = 0.0
    wins_share = (discordance + gain) / (2 * discordance)
    counts = np.arange(num_images + 1)
    for discordant, weight in zip(counts, stats.binom.pmf(counts, num_images, discordance), strict=True):
        if weight > 1e-9:
            # The fewest wins that pass, from half upwards.
            low, high = int(discordant) // 2, int(discordant) + 1
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if mcnemar(middle, int(discordant) - middle) < level else (middle + 1, high)
            total += weight * stats.binom.sf(low - 1, discordant, wins_share)
    return total


def share_not_worse(gain: float, discordance: float, num_images: int, level: float = SIGNIFICANCE) -> float:
    """The share of simulated test sets on which both lower bounds of the difference lie above -MARGIN."""
    rng = np.random.default_rng(0)
    shares = [1 - discordance, (discordance + gain) / 2, (discordance - gain) / 2]
    labels = np.zeros(num_images, int)
    passed = 0
    for seed in range(SIMULATIONS):
        kind = rng.choice(3, num_images, p=shares)
        score = paired_score_interval((kind == 1).sum(), (kind == 2).sum(), num_images, 1 - 2 * level)
        ours, theirs = (np.eye(2)[(kind == lost).astype(int)] for lost in (2, 1))
        drawn = paired_difference(
            labels,
            ours,
            theirs,
            confidence=1 - 2 * level,
            resamples=max(500, min(MAX_RESAMPLES, round(20 / level))),
            seed=seed,
        )
        passed += min(score.low, drawn.low) > -MARGIN
    return passed / SIMULATIONS


def share_of_false_lives(policy: str, discordance: float, num_images: int, *, spend: bool, looks: str) -> float:
    """The share of simulated lives in which a challenger passes that must not.

    looks: at the `verdicts`, or at the `numbers` beside them: then every tenth challenger answers otherwise than the champion where most of
    those before it did that won more than they lost. That one is no better on new images either.
    """
    false = 0
    for life in range(LIVES if looks == "verdicts" else LIVES // 10):
        rng = np.random.default_rng([life, num_images])
        gain = 0.0 if policy == "better" else -MARGIN
        would_win = rng.random(num_images) < (discordance + gain) / (2 * discordance)  # where another answer is right
        votes, budget = np.zeros(num_images), Budget()
        for number in range(CHALLENGERS):
            if looks == "verdicts":
                would_win = rng.random(num_images) < (discordance + gain) / (2 * discordance)
            other = rng.random(num_images) < discordance
            if looks == "numbers" and number % 10 == 9:
                other = votes > np.quantile(votes, 1 - discordance)
            wins, losses = int((other & would_win).sum()), int((other & ~would_win).sum())
            level = budget.level(SIGNIFICANCE) if spend else SIGNIFICANCE
            if policy == "better":
                passed = mcnemar(wins, losses) < level
            else:  # by this bound alone; the gate asks for another one, too
                passed = paired_score_interval(wins, losses, num_images, 1 - 2 * level).low > -MARGIN
            if passed:
                false += 1
                break
            votes += other * max(wins - losses, 0)
            budget = budget.after(passed)
    return false / (LIVES if looks == "verdicts" else LIVES // 10)


def measure() -> Lines:
    """A line per row of the three tables; shares by discordance, None where so large a gain cannot be."""
    cases = [(0.0, 1000), (0.01, 1000), (0.02, 1000), (0.03, 1000), (0.05, 1000), (0.03, 500), (0.05, 500), (0.10, 200)]
    lines: Lines = [
        {
            "table": "better",
            "gain": gain,
            "images": images,
            "by_discordance": {d: share_better(gain, d, images) if gain < d else None for d in DISCORDANCES},
        }
        for gain, images in cases
    ]
    for gain in (0.01, 0.02, 0.03, 0.05):
        needed = {d: needed_images(gain, d, significance=SIGNIFICANCE) for d in DISCORDANCES}
        lines.append({"table": "needed", "gain": gain, "by_discordance": needed})
    for gain, images in ((-0.01, 1000), (0.0, 300), (0.0, 1000), (0.0, 3000), (0.01, 1000)):
        passed = {d: share_not_worse(gain, d, images) for d in (0.01, 0.02, 0.05, 0.10)}
        lines.append({"table": "not_worse", "gain": gain, "images": images, "by_discordance": passed})
    for place, budget in PLACES.items():
        level = SIGNIFICANCE if budget is None else budget.level(SIGNIFICANCE)
        line = {"table": "budget", "place": place, "level": level, "left": 1.0 if budget is None else budget.left}
        line["better"] = {gain: share_better(gain, 0.1, 1000, level) for gain in (0.02, 0.03, 0.05)}
        line["not_worse"] = {gain: share_not_worse(gain, 0.02, 1000, level) for gain in (0.0, 0.01)}
        line["needed"] = needed_images(0.03, 0.1, significance=level)
        lines.append(line)
    for policy, discordance, images in (("better", 0.1, 300), ("better", 0.1, 1000), ("not_worse", 0.05, 1000)):
        for looks in ("verdicts", "numbers"):
            shares = {
                name: share_of_false_lives(policy, discordance, images, spend=spend, looks=looks)
                for name, spend in (("each its own", False), ("one budget", True))
            }
            lines.append(
                {
                    "table": "lives",
                    "policy": policy,
                    "images": images,
                    "looks": looks,
                    "discordance": discordance,
                    **shares,
                }
            )
    return json.loads(json.dumps(lines))  # type: ignore[no-any-return]


def make_table(lines: Lines) -> str:
    """The three tables, each below its title."""
    titles = {
        "better": "`better`: probability that the comparison passes, by the share of discordant answers (exact)",
        "needed": "Test images that see a gain with a probability of 80 % (`needed_images`)",
        "not_worse": f"`not_worse`, margin {100 * MARGIN:g} point: share of {SIMULATIONS} simulated test sets that pass",
    }
    tables = []
    named: dict[str, Lines] = {name: [line for line in lines if line["table"] == name] for name in ("budget", "lives")}
    for name, title in titles.items():
        own = [line for line in lines if line["table"] == name]
        images = ["test images"] if "images" in own[0] else []
        columns = ["true gain", *images, *(f"{float(share):.0%}" for share in own[0]["by_discordance"])]
        rows = [
            [
                f"{100 * line['gain']:+g} points",
                *([line["images"]] if images else []),
                *map(_cell, line["by_discordance"].values()),
            ]
            for line in own
        ]
        tables.append(f"{title}\n\n{draw_table(columns, rows)}")
    return "\n\n".join([*tables, _draw_budget(named["budget"]), _draw_lives(named["lives"])])


def _draw_budget(lines: Lines) -> str:
    columns = ["comparison on a test split", "judged at p <", "left before it", "`better`, +2 points", "+3", "+5"]
    columns += ["images for +3", "`not_worse`, +0 points", "+1"]
    rows = [
        [
            line["place"],
            f"{line['level']:.2g}",
            f"{line['left']:.0%}",
            *map(_cell, line["better"].values()),
            f"{line['needed']:,}",
            *map(_cell, line["not_worse"].values()),
        ]
        for line in lines
    ]
    title = "What the budget costs, on 1000 test images: probability to pass at 10 % (`better`) and 2 % discordance (`not_worse`)"
    return f"{title}\n\n{draw_table(columns, rows)}"


def _draw_lives(lines: Lines) -> str:
    columns = ["policy", "discordance", "test images", "chosen by", "each its own 5 %", "one budget of 5 %"]
    rows = [
        [
            f"`{line['policy']}`",
            f"{line['discordance']:.0%}",
            line["images"],
            line["looks"],
            _cell(line["each its own"]),
            _cell(line["one budget"]),
        ]
        for line in lines
    ]
    title = (
        f"Share of lives of {CHALLENGERS} challengers in which one is promoted that must not be "
        f"({LIVES} lives; chosen by numbers, {LIVES // 10})"
    )
    return f"{title}\n\n{draw_table(columns, rows)}"


def _cell(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    given = parser.parse_args()
    lines = measure()
    print(make_table(lines))
    keep("gate_power", lines, given, make_table)


if __name__ == "__main__":
    main()
