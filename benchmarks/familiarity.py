"""How well images of something else are told from those of the kind that was trained on, by several distances of features.

    python benchmarks/familiarity.py [--shared ../shared] [--bases lite0@96 lite0@128] [--draws 3] [--json FILE] [--write]
    python benchmarks/familiarity.py --table FILE [--write]

Every draw takes half of a set's images to train on; ordinary images are those that are tested on, strangers the tested images of
another set. AUROC: how often a stranger looks stranger than an ordinary image. The ways:

    largest probability   of a linear head on every cut, the mean of image and mirror image
    nearest image         the squared distance to the nearest training image, of the last cut's means divided by their length
    nearest, in the axes  the same in the principal axes alone: what a file of the same size could hold, but for the images
    Mahalanobis           in these axes, to the nearest class's mean (Lee et al., NeurIPS 2018)
    relative Mahalanobis  less that to the mean of all (Ren et al., 2021)
    familiarity           what the product tells: what of an image's features the axes do not reach
"""

import argparse
import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from labels import FOLDS, SETS, Columns, answer, extract, fit, mean
from numpy.typing import NDArray
from results import Lines, add_options, draw_table, keep, load_lines

BASES = ("lite0@96", "lite0@128")
RARE = 0.05  # of ordinary images, that look stranger
RIDGE = 1e-3
TIMED = 300
Array = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--bases", nargs="+", default=BASES)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--table", type=Path, help="only make the table of a file of --json")
    add_options(parser)
    given = parser.parse_args()
    lines = (
        measure(given.shared.resolve(), given.bases, given.draws) if given.table is None else load_lines(given.table)
    )
    print(make_table(lines))
    keep("familiarity", lines, given, make_table)


def measure(shared: Path, bases: Sequence[str], draws: int) -> Lines:
    """A line for each base, set, draw and way."""
    lines = Lines()
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        for base in bases:
            sets = {name: extract(base, name, shared) for name in SETS}
            means = find_last_means(sets["cats"].groups)
            for name in sets:
                for draw in range(draws):
                    for line in look(sets, name, draw, means):
                        lines.append({"base": base, "set": name, "draw": draw, **line})
                        print(json.dumps(lines[-1], default=float), file=sys.stderr, flush=True)
    return lines


def find_last_means(groups: Array) -> Array:
    """Which columns are the means of the last cut; behind them come its maxima."""
    return np.asarray(groups == groups.max() - 1)


def look(sets: dict[str, Columns], name: str, draw: int, means: Array) -> Lines:
    """A line for each way."""
    from frostline.training.data import draw_folds
    from frostline.training.familiarity import MAX_AXES, fit_familiarity

    own = sets[name]
    rows = np.sort(np.random.default_rng(draw).permutation(len(own.labels))[: len(own.labels) // 2])
    folds = draw_folds(own.labels[rows], np.arange(len(rows)), FOLDS, draw)
    half = Columns([view[rows] for view in own.views], own.labels[rows], own.test, own.test_labels, own.groups)
    trained = np.asarray(half.views[0][:, means], np.float32)
    tested = {other: np.asarray(each.test[0][:, means], np.float32) for other, each in sets.items()}

    _, head = fit(half, half.labels, folds)
    units, basis = _unit(trained), _principal(_unit(trained), MAX_AXES)
    centre = units.mean(axis=0)
    reached = (units - centre) @ basis
    by_class = np.stack([reached[half.labels == label].mean(axis=0) for label in np.unique(half.labels)])
    within, overall = _precision(reached - by_class[half.labels]), _precision(reached)
    found = fit_familiarity(trained, folds)
    familiarity = {other: found.of(each) for other, each in tested.items()}

    def within_axes(columns: Array) -> Array:
        return np.asarray((_unit(columns) - centre) @ basis)

    def mahalanobis(columns: Array) -> Array:
        return np.asarray(np.min([_squares(within_axes(columns) - one, within) for one in by_class], axis=0))

    strangeness = {
        "largest probability": {
            other: -answer(Columns(each.views, each.labels, each.test, each.test_labels, each.groups), head).max(axis=1)
            for other, each in sets.items()
        },
        "nearest image": {other: _nearest(_unit(each), units) for other, each in tested.items()},
        "nearest, in the axes": {other: _nearest(within_axes(each), reached) for other, each in tested.items()},
        "Mahalanobis": {other: mahalanobis(each) for other, each in tested.items()},
        "relative Mahalanobis": {
            other: mahalanobis(each) - _squares(within_axes(each), overall) for other, each in tested.items()
        },
        # Beyond the largest distance of training images all are alike.
        "familiarity": {other: -each for other, each in familiarity.items()},
    }
    cost = {"bytes": 4 * sum(part.size for part in (found.subspace.mean, found.subspace.scale, found.subspace.axes))}
    lines = []
    for way, told in strangeness.items():
        limit = np.quantile(told[name], 1 - RARE)
        line: dict[str, Any] = {
            "way": way,
            "auroc": {other: measure_auroc(told[name], told[other]) for other in sets if other != name},
            "found": {other: float((told[other] > limit).mean()) for other in sets if other != name},
        }
        if way == "familiarity":
            line |= {
                "ordinary_below": float((familiarity[name] < RARE).mean()),
                "mean": float(familiarity[name].mean()),
            }
            line |= {"strangers_below": {other: float((familiarity[other] < RARE).mean()) for other in line["found"]}}
            line |= {**cost, "ms": measure_ms(found)}
        lines.append(line)
    return lines


def measure_auroc(ordinary: Array, strange: Array) -> float:
    """How often a stranger has the larger value, ties by half."""
    from frostline.evidence.strangers import auroc

    return auroc(-ordinary, -strange)


def measure_ms(found: Any) -> float:
    """What one image's familiarity adds to the median time of an answer, from a map of 4 x 4 places on."""
    from frostline.devices import compile_frozen, keras, layers, ops
    from frostline.training.familiarity import build_familiarity

    given = keras.Input((4, 4, len(found.subspace.mean)))
    answer = layers.Softmax()(layers.Dense(2)(layers.GlobalAveragePooling2D()(given)))
    outputs = [[answer], [answer, build_familiarity(found, given)]]
    calls = [compile_frozen(keras.Model(given, each)) for each in outputs]
    image = ops.convert_to_tensor(np.ones((1, *given.shape[1:]), np.float32))
    times = []
    for _ in range(TIMED):  # in turn, so that what else the machine does meets both
        for call in calls:
            started = time.perf_counter()
            ops.convert_to_numpy(call(image)[-1])
            times.append(time.perf_counter() - started)
    plain, knowing = np.median(np.reshape(times, (-1, 2)), axis=0)
    return 1000 * float(knowing - plain)


def _unit(columns: Array) -> Array:
    return np.asarray(columns / np.linalg.norm(columns, axis=1, keepdims=True))


def _principal(rows: Array, num_axes: int) -> Array:
    return np.asarray(np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:num_axes].T)


def _precision(rows: Array) -> Array:
    covariance = rows.T @ rows / len(rows)
    return np.asarray(
        np.linalg.inv(covariance + RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    )


def _squares(rows: Array, precision: Array) -> Array:
    return np.asarray(np.einsum("ni,ij,nj->n", rows, precision, rows))


def _nearest(rows: Array, others: Array) -> Array:
    return np.asarray(((rows**2).sum(axis=1)[:, None] - 2 * rows @ others.T + (others**2).sum(axis=1)).min(axis=1))


def make_table(lines: Lines) -> str:
    """Two tables: AUROC by way, and what familiarity comes to; means over draws, the worst draw in brackets."""
    return "\n\n".join([_compare(lines), _sum_up([line for line in lines if line["way"] == "familiarity"])])


def _compare(lines: Lines) -> str:
    groups: dict[tuple[str, str], Lines] = defaultdict(list)
    for line in lines:
        groups[line["base"], line["way"]].append(line)
    pairs = list(dict.fromkeys((line["set"], other) for line in lines for other in line["auroc"]))
    rows = []
    for (base, way), own in groups.items():
        values = [[line["auroc"][other] for line in own if line["set"] == name] for name, other in pairs]
        cells = [f"{mean(each):.3f} ({min(each):.3f})" for each in values]
        rows.append([base, way, *cells, f"{mean([mean(each) for each in values]):.3f}"])
    return draw_table(["base", "AUROC by", *(f"{name}, strangers {other}" for name, other in pairs), "mean"], rows)


def _sum_up(lines: Lines) -> str:
    groups: dict[tuple[str, str], Lines] = defaultdict(list)
    for line in lines:
        groups[line["base"], line["set"]].append(line)
    rows = []
    for (base, name), own in groups.items():
        strange = [
            f"{other} {mean([line['strangers_below'][other] for line in own]):.2f}"
            for other in own[0]["strangers_below"]
        ]
        rows.append(
            [
                f"{base}, {name}",
                f"{mean([line['ordinary_below'] for line in own]):.3f}",
                f"{mean([line['mean'] for line in own]):.2f}",
                ", ".join(strange),
                f"{own[0]['bytes'] / 1000:.0f} kB",
                f"{mean([line['ms'] for line in own]):.2f}",
            ]
        )
    columns = [
        "base, set",
        f"test images below {RARE}",
        "their mean",
        f"strangers below {RARE}",
        "weights",
        "ms more an image",
    ]
    return draw_table(columns, rows)


if __name__ == "__main__":
    main()
