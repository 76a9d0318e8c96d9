"""Whether sets of classes hold the right one as often as was promised: thresholds out of fold, looked at on test images.

    python benchmarks/sets.py [--shared ../shared] [--tasks lite0@128:cats ...] [--draws 3] [--json FILE] [--write]
    python benchmarks/sets.py --table FILE [--write]

Every draw takes other images to train on, half of those that there are; what is tested on stays. A linear head on every cut is
cross-fitted; the thresholds are of its predictions out of fold, the sets of the head that is fitted to all images.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from labels import FOLDS, Columns, answer, extract, fit, mean
from results import Lines, add_options, draw_table, keep

TASKS = ("lite0@128:cats", "lite0@128:horses", "lite0@128:generated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="BASE:SET")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--table", type=Path, help="only make the table of a file of --json")
    add_options(parser)
    given = parser.parse_args()
    if given.table:
        lines = [json.loads(line) for line in given.table.read_text(encoding="utf-8").splitlines()]
    else:
        lines = measure_all(given)
    print(make_table(lines))
    keep("sets", lines, given, make_table)


def measure_all(given: argparse.Namespace) -> Lines:
    """A line for each task, draw and promise."""
    shared, lines, before = given.shared.resolve(), Lines(), Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        for task in given.tasks:
            base, name = task.split(":")
            columns = extract(base, name, shared)
            for draw in range(given.draws):
                found = look(columns, draw)
                lines += [{"base": base, "set": name, "draw": draw, **line} for line in found]
                print(task, draw, found, file=sys.stderr, flush=True)
        os.chdir(before)
    return lines


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
