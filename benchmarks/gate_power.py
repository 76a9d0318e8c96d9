"""How often the gate promotes, by true gain, discordance and number of test images.

    python benchmarks/gate_power.py [--json FILE] [--write]    # prints the tables; --write puts them into docs/promotion.md

`better` is exact: sums over all counts of wins and losses. `not_worse` runs the gate's own two bounds on simulated
test sets, because a bootstrap has no formula.
"""

import argparse
import json

import numpy as np
from results import Lines, add_options, draw_table, keep
from scipy import stats

from frostline.evidence.comparison import mcnemar, needed_images, paired_difference, paired_score_interval

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
    return json.loads(json.dumps(lines))  # type: ignore[no-any-return]


def make_table(lines: Lines) -> str:
    """The three tables, each below its title."""
    titles = {
        "better": "`better`: probability that the comparison passes, by the share of discordant answers (exact)",
        "needed": "Test images that see a gain with a probability of 80 % (`needed_images`)",
        "not_worse": f"`not_worse`, margin {100 * MARGIN:g} point: share of {SIMULATIONS} simulated test sets that pass",
    }
    tables = []
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
    return "\n\n".join(tables)


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
