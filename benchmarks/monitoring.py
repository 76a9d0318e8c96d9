"""How often `frostline monitor` raises alarm where nothing changed, and how soon it finds what did: simulated lives of a model.

    python benchmarks/monitoring.py [--lives 400] [--json FILE] [--write]
    python benchmarks/monitoring.py --table FILE [--write]

Each life has a test split of its own, drawn at the model's true accuracy, and new images, all with labels. Two classes of equal size.
What has changed is there from the first new image on.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from results import Lines, add_options, draw_table, keep, load_lines

TESTED, ACCURACIES = (300, 600, 1500), (0.98, 0.95, 0.9, 0.8)
LONG, SHORT = 2000, 150  # new images: of a life in which nothing changes, and of one in which something did
NAMES = ("a", "b")
# Case -> what differs: points of accuracy, share of the first class, share of strangers (familiarity below 0.05).
CASES: dict[str, tuple[float, float, float]] = {
    "nothing": (0.0, 0.5, 0.0),
    "10 points of accuracy less": (-0.1, 0.5, 0.0),
    "20 points of accuracy less": (-0.2, 0.5, 0.0),
    "one in ten is a stranger": (0.0, 0.5, 0.1),
    "one in five is a stranger": (0.0, 0.5, 0.2),
    "the first class is 70 % for 50": (0.0, 0.7, 0.0),
}
WATCHED = {"accuracy": "accuracy", "stranger": "familiarity", "class": "shares"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=400)
    parser.add_argument("--table", type=Path, help="only make the table of a file of --json")
    add_options(parser)
    given = parser.parse_args()
    if given.table:
        lines = load_lines(given.table)
    else:
        lines = Lines()
        for tested in TESTED:
            for accuracy in ACCURACIES:
                for case in CASES:
                    lines.append(live(case, tested, accuracy, given.lives))
                    print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    print(make_table(lines))
    keep("monitoring", lines, given, make_table)


def live(case: str, tested: int, accuracy: float, lives: int) -> dict[str, object]:
    """The share of lives in which each test raises alarm."""
    from frostline.evidence.monitoring import Answer, weigh
    from frostline.evidence.predictions import Predictions

    drop, share, strange = CASES[case]
    count = LONG if case == "nothing" else SHORT
    alarms = dict.fromkeys(("accuracy", "familiarity", "shares", "any"), 0)
    for number in range(lives):
        rng = np.random.default_rng([number, tested, round(1000 * accuracy)])
        labels = rng.integers(0, 2, tested)
        predicted = np.where(rng.random(tested) < accuracy, labels, 1 - labels)
        files = tuple(map(str, range(tested)))
        test = Predictions(files, labels, np.eye(2)[predicted], NAMES, "test", rng.random(tested))
        truth = (rng.random(count) > share).astype(int)
        answers = np.where(rng.random(count) < accuracy + drop, truth, 1 - truth)
        familiarity = rng.random(count) * np.where(rng.random(count) < strange, 0.05, 1)
        found = weigh(
            test,
            [
                Answer(f"{number}-{place}", NAMES[answer], float(value), NAMES[label])
                for place, (answer, value, label) in enumerate(zip(answers, familiarity, truth, strict=True))
            ],
        )
        for name, reading in found.items():
            alarms[name] += reading.raised
        alarms["any"] += any(reading.raised for reading in found.values())
    shares = {name: number / lives for name, number in alarms.items()}
    return {"case": case, "tested": tested, "accuracy": accuracy, "images": count, "lives": lives, "alarms": shares}


def make_table(lines: Lines) -> str:
    """A row for each case and size of the test split, a column for each accuracy."""
    rows = []
    for case in dict.fromkeys(line["case"] for line in lines):
        watched = next((name for word, name in WATCHED.items() if word in case), "any")
        for tested in dict.fromkeys(line["tested"] for line in lines):
            own = [line for line in lines if (line["case"], line["tested"]) == (case, tested)]
            rows.append([case, watched, own[0]["images"], tested, *(f"{line['alarms'][watched]:.3f}" for line in own)])
    accuracies = dict.fromkeys(line["accuracy"] for line in lines)
    columns = ["what changed", "alarm by", "new images", "test images", *(f"accuracy {each:g}" for each in accuracies)]
    return draw_table(columns, rows)


if __name__ == "__main__":
    main()
