"""Whether sets of classes hold the right one as often as was promised: thresholds out of fold, looked at on test images.

    python benchmarks/sets.py [--shared ../shared] [--tasks lite0@128:cats ...] [--draws 3] [--json FILE] [--write]
    python benchmarks/sets.py --table FILE [--write]

Every draw takes other images to train on, half of those that there are; what is tested on stays. A linear head on every cut is
cross-fitted; the thresholds are of its predictions out of fold, the sets of the head that is fitted to all images.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from labels import FOLDS, Columns, answer, fit, mean, run
from results import Lines, draw_table

TASKS = ("lite0@128:cats", "lite0@128:horses", "lite0@128:generated")


def main() -> None:
    run("sets", __doc__, TASKS, look_at_all, make_table)


def look_at_all(columns: Columns, draws: int) -> Iterator[dict[str, Any]]:
    """A line for each draw and promise."""
    for draw in range(draws):
        for line in look(columns, draw):
            yield {"draw": draw, **line}


def look(columns: Columns, draw: int) -> list[dict[str, Any]]:
    """A line for each promise."""
    from frostline.evidence.conformal import find_thresholds, keep_promises
    from frostline.evidence.predictions import Predictions
    from frostline.training.data import draw_folds

    rows = np.sort(np.random.default_rng(draw).permutation(len(columns.labels))[: len(columns.labels) // 2])
    half = replace(columns, views=[view[rows] for view in columns.views], labels=columns.labels[rows])
    folds = draw_folds(half.labels, np.arange(len(rows)), FOLDS, draw)
    unseen, head = fit(half, half.labels, folds)
    names = tuple(map(str, range(unseen.shape[1])))
    files = tuple(map(str, range(len(columns.test_labels))))
    test = Predictions(files, columns.test_labels, answer(columns, head), names, "test")
    return [
        {
            "num_images": len(rows),
            "num_test": len(files),
            "promised": each.promised,
            "covered": each.covered.value,
            "lowest_class": min(one.value for one in each.by_class.values()),
            "size": each.size,
            "single": each.single,
        }
        for each in keep_promises(find_thresholds(half.labels, unseen), test, 0.95)
    ]


def make_table(lines: Lines) -> str:
    """A row for each task and promise, with means over draws."""
    groups: dict[tuple[str, str, float], Lines] = defaultdict(list)
    for line in lines:
        groups[line["base"], line["set"], line["promised"]].append(line)
    rows = []
    for (base, name, promised), own in groups.items():
        covered = [line["covered"] for line in own]
        rows.append(
            [
                f"{base}, {name}, {own[0]['num_images']} images",
                f"{promised:g}",
                f"{mean(covered):.3f} ({min(covered):.3f} to {max(covered):.3f})",
                f"{mean([line['lowest_class'] for line in own]):.3f}",
                f"{mean([line['size'] for line in own]):.2f}",
                f"{mean([line['single'] for line in own]):.1%}",
            ]
        )
    columns = [
        "base, set",
        "promised",
        "held on test (of the draws)",
        "of the lowest class",
        "classes in a set",
        "sets of one",
    ]
    return draw_table(columns, rows)


if __name__ == "__main__":
    main()
