"""How many wrong labels a review finds, and what accuracy it brings back: labels flipped at random, ranked out of fold.

    python benchmarks/labels.py [--shared ../shared] [--tasks lite0@128:cats ...] [--draws 3] [--json FILE] [--write]
    python benchmarks/labels.py --table FILE [--write]

Of each set some labels are flipped to another class, the same for all ways of a draw. A linear head on every cut is
cross-fitted on the flipped labels, as `refit` does; its predictions out of fold rank the images, as `evaluate` does. Then a
person, who knows, looks at the first 6 % and puts right what is wrong. Tested is on images whose labels nobody flipped.
"""

import argparse
import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from learning import BASES as KNOWN
from learning import load_images, make_params
from numpy.typing import NDArray
from results import Lines, add_options, draw_table, keep, load_lines
from scipy.special import softmax

BASES = {**KNOWN, "lite0@224": ("EfficientNetLite0", {}, "package", 224)}
TASKS = ("lite0@128:cats", "lite0@224:cats", "lite0@128:horses", "lite0@128:generated")
SETS = {
    "cats": 250,
    "horses": 90,
    "generated": 30,
}  # a quarter of the images of each class, as benchmarks/learning.py draws them
RATES = (0.02, 0.05)
REVIEWED = 0.06  # share of the images that are looked at
FOLDS = 5
Array = NDArray[Any]


@dataclass(frozen=True)
class Columns:
    """Pooled features of one base on one set. views: plain and mirror image, (num_images, num_columns); test: the same of test images."""

    views: list[Array]
    labels: Array
    test: list[Array]
    test_labels: Array
    groups: Array


def main() -> None:
    run("labels", __doc__, TASKS, look, make_table)


def run(
    name: str,
    about: str | None,
    tasks: Sequence[str],
    look: Callable[[Columns, int], Iterator[dict[str, Any]]],
    make_table: Callable[[Lines], str],
) -> None:
    """A benchmark on sets of labelled images: the lines that `look` gives for each task, of so many draws."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument(
        "--tasks", nargs="+", default=tasks, metavar="BASE:SET", help=f"of {', '.join(BASES)}: {', '.join(SETS)}"
    )
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--table", type=Path, help="only make the table of a file of --json")
    add_options(parser)
    given = parser.parse_args()
    if given.table:
        lines = load_lines(given.table)
    else:
        lines = Lines()
        shared = given.shared.resolve()
        with TemporaryDirectory() as folder, contextlib.chdir(folder):
            for task in given.tasks:
                base, images = task.split(":")
                for line in look(extract(base, images, shared), given.draws):
                    lines.append({"base": base, "set": images, **line})
                    print(lines[-1], file=sys.stderr, flush=True)
    print(make_table(lines))
    keep(name, lines, given, make_table)


def look(columns: Columns, draws: int) -> Iterator[dict[str, Any]]:
    """A line for each share of flipped labels and draw."""
    clean = review(columns, 0.0, 0)
    for rate in RATES:
        for draw in range(draws):
            line = review(columns, rate, draw)
            line["accuracy"] |= {"clean": clean["accuracy"]["as labelled"]}
            yield line | {"looks_wrong_clean": clean["looks_wrong"]}


def extract(base: str, name: str, shared: Path) -> Columns:
    """The images of a set through the frozen prefix, once for all draws."""
    from frostline.bases.base import load_base
    from frostline.bases.extraction import Extractor
    from frostline.bases.files import fetch_weights
    from frostline.params import parse_params
    from frostline.training.tail import group_columns

    family, options, weights, size = BASES[base]
    weights = weights if weights == "package" else str(shared / weights)
    chosen = {"name": family, "options": options, "image_size": size, "weights": weights}
    params = parse_params(make_params(chosen), "labels.py")
    folder = Path(f"base-{base}")
    if not folder.is_dir():
        fetch_weights(params.base, folder, 7)
    network = load_base(params.base, folder)
    extractor = Extractor(network, [], 64)

    def run(parts: list[Array]) -> tuple[list[Array], Array]:
        images = np.concatenate(parts)
        views = [images, np.ascontiguousarray(images[:, :, ::-1])]
        found = [np.concatenate([batch[-1] for batch in extractor.run(view)]).astype(np.float16) for view in views]
        return found, np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])

    train, test = (run(parts) for parts in load_images(shared, name, size, SETS[name]))
    return Columns(*train, *test, group_columns(network, "all"))


def review(columns: Columns, rate: float, draw: int) -> dict[str, Any]:
    """What ranking and review came to on one draw of flipped labels."""
    from frostline.evidence.suspicion import find_confident, score_labels
    from frostline.training.data import draw_folds

    rng = np.random.default_rng([draw, round(1000 * rate)])
    truth, num_classes = columns.labels, int(columns.labels.max()) + 1
    num_images = len(truth)
    flipped = np.zeros(num_images, bool)
    flipped[rng.choice(num_images, round(rate * num_images), replace=False)] = True
    labels = truth.copy()
    labels[flipped] = (truth[flipped] + rng.integers(1, num_classes, flipped.sum())) % num_classes
    folds = draw_folds(labels, np.arange(num_images), FOLDS, draw)

    started = time.perf_counter()
    answers, head = fit(columns, labels, folds)
    fitted = time.perf_counter()
    scores, _ = score_labels(labels, answers)
    order = np.argsort(scores, kind="stable")
    wrong = find_confident(labels, answers)
    ended = time.perf_counter()

    looked = order[: round(REVIEWED * num_images)]
    mended = labels.copy()
    mended[looked] = truth[looked]
    accuracy = {"as labelled": measure(columns, head)}
    if rate:
        accuracy["reviewed"] = measure(columns, fit(columns, mended, folds)[1])
    return {
        "rate": rate,
        "draw": draw,
        "num_images": num_images,
        "flipped": int(flipped.sum()),
        "found": int(flipped[looked].sum()),
        "looks_wrong": int(wrong.sum()),
        "looks_wrong_flipped": int((wrong & flipped).sum()),
        "out_of_fold": float((answers.argmax(axis=1) == truth).mean()),
        "fit_seconds": fitted - started,
        "rank_seconds": ended - fitted,
        "accuracy": accuracy,
    }


def fit(columns: Columns, labels: Array, folds: Array) -> tuple[Array, Any]:
    """Out-of-fold probabilities, the mean of image and mirror image, and the head of all images."""
    from threadpoolctl import threadpool_limits

    from frostline.training.linear import cross_validate

    with threadpool_limits(1, "blas"):
        found = cross_validate(
            np.stack(columns.views), labels, int(columns.labels.max()) + 1, folds, groups=columns.groups
        )
    answers = np.zeros((len(labels), int(columns.labels.max()) + 1))
    for view in columns.views:
        for fold, (kernel, bias) in enumerate(found.heads):
            own = np.flatnonzero(folds == fold)
            answers[own] += softmax(view[own].astype(np.float64) @ kernel + bias, axis=1) / len(columns.views)
    return answers, found.whole


def measure(columns: Columns, head: Any) -> float:
    """Accuracy on the test images."""
    return float((answer(columns, head).argmax(axis=1) == columns.test_labels).mean())


def answer(columns: Columns, head: Any) -> Array:
    """Probabilities of the test images, the mean of image and mirror image."""
    kernel, bias = head
    answers = [softmax(view.astype(np.float64) @ kernel + bias, axis=1) for view in columns.test]
    return np.asarray(np.mean(answers, axis=0))


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def make_table(lines: Lines) -> str:
    """A row for each base, set and rate, with means over draws."""
    groups: dict[tuple[str, str, float], Lines] = defaultdict(list)
    for line in lines:
        groups[line["base"], line["set"], line["rate"]].append(line)

    rows = []
    for (base, name, rate), own in groups.items():
        found = [line["found"] / line["flipped"] for line in own]
        accuracy = [mean([line["accuracy"][way] for line in own]) for way in ("as labelled", "reviewed", "clean")]
        seconds = [mean([line[kind] for line in own]) for kind in ("fit_seconds", "rank_seconds")]
        rows.append(
            [
                f"{base}, {name}",
                f"{rate:.0%} of {own[0]['num_images']}",
                f"{mean([line['out_of_fold'] for line in own]):.3f}",
                f"{mean(found):.3f} ({min(found):.3f})",
                f"{mean([line['looks_wrong'] for line in own]):.0f} ({own[0]['looks_wrong_clean']})",
                f"{mean([line['looks_wrong_flipped'] for line in own]):.0f} of {own[0]['flipped']}",
                *(f"{value:.3f}" for value in accuracy),
                f"{seconds[0]:.1f} + {seconds[1]:.3f}",
            ]
        )
    columns = [
        "base, set",
        "flipped",
        "right out of fold",
        "found in the first 6 % (worst draw)",
        "look wrong (of clean labels)",
        "flipped among them",
    ]
    columns += ["accuracy as labelled", "reviewed", "clean", "seconds: fit + rank"]
    return draw_table(columns, rows)


if __name__ == "__main__":
    main()
