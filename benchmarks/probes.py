"""What a screening could judge bases by: how often each probe chooses the base whose final model is best, and its seconds.

    python benchmarks/probes.py [--shared ../shared] [--sets cats:25 ...] [--bases lite0@96 ...] [--draws 2] [--json FILE] [--write]
    python benchmarks/probes.py --table FILE [--write]

The images of a draw are those of benchmarks/learning.py, whose stored results say what `refit` makes of each base on them; a draw
counts where they have all the bases. The probes, all of them on every cut of the images that are trained on:

    head, plain and mirrored    the cross-validated logistic regression on both views
    head, plain                 the same on one view; what `frostline screen` does
    ridge, plain                ridge regression on one-hot classes, its mean squared error with each image left out
    LogME, plain                the evidence of such a regression (You et al., "LogME", ICML 2021), by their fixed point
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from learning import BASES, load_images, make_params
from numpy.typing import NDArray
from results import RESULTS, Lines, add_options, draw_table, keep, load_lines

SETS = ("cats:25", "cats:50", "cats:100", "horses:25", "horses:50", "generated:30")
RIDGES = 10.0 ** np.arange(-4, 4)  # on standardised features, per image
Array = NDArray[np.floating[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--sets", nargs="+", default=SETS, help="NAME:IMAGES_PER_CLASS")
    parser.add_argument("--bases", nargs="+", default=list(BASES), choices=BASES)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--table", type=Path, help="only make the table of a file of --json")
    add_options(parser)
    given = parser.parse_args()
    lines: Lines = load_lines(given.table) if given.table else []
    if not given.table:
        known = load_products()
        with TemporaryDirectory() as folder:
            for name in given.sets:
                for base in given.bases:
                    draws = [draw for draw in range(given.draws) if (base, name, draw) in known]
                    for line in probe(base, name, draws, given.shared.resolve(), Path(folder)):
                        line["product"] = known[base, name, line["draw"]]
                        lines.append(line)
                        print(json.dumps(line), file=sys.stderr, flush=True)
    print(make_table(lines))
    keep("probes", lines, given, make_table)


def load_products() -> dict[tuple[str, str, int], float]:
    """Base, set and draw -> accuracy on test of what `refit` makes, as benchmarks/learning.py measured it."""
    stored = json.loads((RESULTS / "learning.json").read_text(encoding="utf-8"))["lines"]
    return {(line["base"], line["set"], line["draw"]): line["accuracy"] for line in stored if line["way"] == "product"}


def probe(base: str, name: str, draws: list[int], shared: Path, work: Path) -> Lines:
    """A line for each draw and probe."""
    from frostline.params import parse_params
    from frostline.search.screening import Candidate, Sample
    from frostline.training.data import draw_folds

    kind, per_class = name.split(":")
    family, options, weights, size = BASES[base]
    pool, _ = load_images(shared, kind, size, int(per_class))
    place = weights if weights == "package" else str(shared / weights)
    chosen = {"name": family, "options": options, "image_size": size, "weights": place}
    params = parse_params(make_params(chosen), "probes.py")
    labels = np.repeat(np.arange(len(pool), dtype=np.int32), int(per_class))
    lines: Lines = []
    for draw in draws:
        rng = np.random.default_rng([7, draw])  # as learning.py draws
        rows = [rng.permutation(len(images))[: int(per_class)] for images in pool]
        images = np.concatenate([each[its] for each, its in zip(pool, rows, strict=True)])
        folds = draw_folds(labels, np.arange(len(labels)), 5, draw)
        sample = Sample(images, labels, folds, tuple(map(str, range(len(pool)))))
        candidate = Candidate(params.base, sample, known=True, seed=7, work=work / f"{base}-{name}-{draw}")
        for mirrored in (True, False):
            found = candidate.judge(np.arange(len(labels)), mirrored=mirrored)
            views = "plain and mirrored" if mirrored else "plain"
            scores = {f"head, {views}": (found.log_loss, fit_again(candidate, 1 + mirrored, labels, folds))}
            if not mirrored:
                for way, score in (("ridge", ridge_error), ("LogME", minus_evidence)):
                    scores[f"{way}, plain"] = time_probe(candidate, labels, score)
            lines += [
                {"base": base, "set": name, "draw": draw, "probe": way, "score": score, "fit_s": fit_s}
                | {"pass_s": (1 + mirrored) * len(labels) / found.images_per_second}
                for way, (score, fit_s) in scores.items()
            ]
    return lines


def fit_again(candidate: Any, num_views: int, labels: Any, folds: Any) -> float:
    """Seconds of the head alone."""
    from frostline.training.linear import cross_validate
    from frostline.training.tail import group_columns

    started = time.perf_counter()
    cross_validate(
        candidate._views[:num_views],
        labels,
        int(labels.max()) + 1,
        folds,
        groups=group_columns(candidate.network, "all"),
    )
    return time.perf_counter() - started


def time_probe(candidate: Any, labels: Any, score: Callable[[Array, Array, Array], float]) -> tuple[float, float]:
    """A probe's score, the lower the better, and its seconds."""
    from frostline.training.linear import rotate
    from frostline.training.tail import group_columns

    started = time.perf_counter()
    rotation, rows = rotate(candidate._views[0], group_columns(candidate.network, "all"))
    targets = np.eye(int(labels.max()) + 1)[labels]
    return score(rows, rotation.variances, targets), time.perf_counter() - started


def ridge_error(rows: Array, variances: Array, targets: Array) -> float:
    """The mean squared error with each row left out, at the best of RIDGES; rows (n, r) in their principal axes."""
    number, errors = len(rows), []
    centred = targets - targets.mean(axis=0)
    for ridge in RIDGES:
        shrunk = rows / (number * (variances + ridge))
        influence = np.einsum("nr,nr->n", rows, shrunk) + 1 / number
        left_out = (centred - rows @ (shrunk.T @ centred)) / (1 - influence)[:, None]
        errors.append(float((left_out**2).mean()))
    return min(errors)


def minus_evidence(rows: Array, variances: Array, targets: Array) -> float:
    """Minus the mean over classes and rows of the logarithm of the maximum evidence."""
    number, found = len(rows), []
    eigenvalues = number * variances
    for target in (targets - targets.mean(axis=0)).T:  # the rows are centred, too: a free bias
        projected = (rows.T @ target) / np.sqrt(eigenvalues)
        rest = max(float(target @ target - projected @ projected), 1e-9)
        alpha = beta = 1.0
        for _ in range(100):
            ratio = alpha / beta
            mean_sq = float((eigenvalues * projected**2 / (ratio + eigenvalues) ** 2).sum())
            residual = rest + float((projected**2 * ratio**2 / (ratio + eigenvalues) ** 2).sum())
            effective = float((eigenvalues / (ratio + eigenvalues)).sum())
            alpha, beta = effective / max(mean_sq, 1e-12), (number - effective) / max(residual, 1e-12)
            if abs(alpha / beta - ratio) < 1e-3 * ratio:
                break
        evidence = len(eigenvalues) * np.log(alpha) + number * np.log(beta) - number * np.log(2 * np.pi)
        evidence -= beta * residual + alpha * mean_sq + np.log(alpha + beta * eigenvalues).sum()
        found.append(evidence / 2 / number)
    return -float(np.mean(found))


def make_table(lines: Lines) -> str:
    """How often each probe chose the best base, what its choice lost, and what it took."""
    probes = list(dict.fromkeys(line["probe"] for line in lines))
    bases = {line["base"] for line in lines}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["probe"], line["set"], line["draw"]].append(line)
    rows = []
    for probe in probes:
        own = [
            each
            for key, each in groups.items()
            if key[0] == probe and len({line["base"] for line in each}) == len(bases)
        ]
        lost = [
            max(line["product"] for line in each) - min(each, key=lambda line: line["score"])["product"] for each in own
        ]
        mine = [line for each in own for line in each]
        rows.append(
            [
                probe,
                f"{sum(each == 0 for each in lost)} of {len(lost)}",
                f"{100 * np.mean(lost):.2f}",
                f"{100 * np.max(lost):.1f}",
                f"{np.mean([line['pass_s'] for line in mine]):.2f}",
                f"{np.mean([line['fit_s'] for line in mine]):.2f}",
            ]
        )
    columns = ["probe", "chose the best", "points lost, mean", "most", "s of the pass", "s of the fit"]
    return draw_table(columns, rows)


if __name__ == "__main__":
    main()
