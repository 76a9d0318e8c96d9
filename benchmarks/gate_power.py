"""How often the gate promotes, by true gain, discordance and number of test images; written into docs/promotion.md.

    python benchmarks/gate_power.py            # prints the tables
    python benchmarks/gate_power.py --write    # puts them between the markers of docs/promotion.md

`better` is exact: sums over all counts of wins and losses. `not_worse` runs the gate's own two bounds on simulated
test sets, because a bootstrap has no formula.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from frostline.evidence.comparison import mcnemar, needed_images, paired_difference, paired_score_interval

PAGE = Path(__file__).parents[1] / "docs/promotion.md"
BEGIN, END = "<!-- benchmarks/gate_power.py -->", "<!-- end -->"
SIGNIFICANCE, MARGIN = 0.05, 0.01
SIMULATIONS = 1000
DISCORDANCES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)


def share_better(gain: float, discordance: float, num_images: int) -> float:
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
                low, high = (
                    (low, middle) if mcnemar(middle, int(discordant) - middle) < SIGNIFICANCE else (middle + 1, high)
                )
            total += weight * stats.binom.sf(low - 1, discordant, wins_share)
    return total


def share_not_worse(gain: float, discordance: float, num_images: int) -> float:
    """The share of simulated test sets on which both lower bounds of the difference lie above -MARGIN."""
    rng = np.random.default_rng(0)
    shares = [1 - discordance, (discordance + gain) / 2, (discordance - gain) / 2]
    labels = np.zeros(num_images, int)
    passed = 0
    for seed in range(SIMULATIONS):
        kind = rng.choice(3, num_images, p=shares)
        score = paired_score_interval((kind == 1).sum(), (kind == 2).sum(), num_images, 1 - 2 * SIGNIFICANCE)
        ours, theirs = (np.eye(2)[(kind == lost).astype(int)] for lost in (2, 1))
        drawn = paired_difference(labels, ours, theirs, confidence=1 - 2 * SIGNIFICANCE, resamples=500, seed=seed)
        passed += min(score.low, drawn.low) > -MARGIN
    return passed / SIMULATIONS


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [title, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def make_tables() -> str:
    percent = [f"{d:.0%}" for d in DISCORDANCES]
    cases = [(0.0, 1000), (0.01, 1000), (0.02, 1000), (0.03, 1000), (0.05, 1000), (0.03, 500), (0.05, 500), (0.10, 200)]
    better = [
        [
            f"{100 * gain:+g} points",
            str(n),
            *(f"{share_better(gain, d, n):.3f}" if gain < d else "–" for d in DISCORDANCES),
        ]
        for gain, n in cases
    ]
    needed = [
        [f"{100 * gain:+g} points", *(f"{needed_images(gain, d, significance=SIGNIFICANCE):,}" for d in DISCORDANCES)]
        for gain in (0.01, 0.02, 0.03, 0.05)
    ]
    small = (0.01, 0.02, 0.05, 0.10)
    not_worse = [
        [f"{100 * gain:+g} points", str(n), *(f"{share_not_worse(gain, d, n):.3f}" for d in small)]
        for gain, n in ((-0.01, 1000), (0.0, 300), (0.0, 1000), (0.0, 3000), (0.01, 1000))
    ]
    return "\n\n".join(
        [
            make_table(
                "`better`: probability that the comparison passes, by the share of discordant answers (exact)",
                ["true gain", "test images", *percent],
                better,
            ),
            make_table(
                "Test images that see a gain with a probability of 80 % (`needed_images`)",
                ["true gain", *percent],
                needed,
            ),
            make_table(
                f"`not_worse`, margin {100 * MARGIN:g} point: share of {SIMULATIONS} simulated test sets that pass",
                ["true gain", "test images", *(f"{d:.0%}" for d in small)],
                not_worse,
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/promotion.md")
    given = parser.parse_args()
    tables = make_tables()
    print(tables)
    if given.write:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
