"""Sets of classes that hold the right one as often as was promised: split conformal prediction, out of fold.

An image's set has every class whose probability reaches a threshold, and the likeliest class in any case. The threshold of a
promise is the quantile of the probabilities that images out of fold gave to their own class. Source: Sadinle, Lei and
Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", JASA 114, 2019; with folds in the place of a
held-out half: Vovk, Nouretdinov, Manokhin and Gammerman, "Cross-conformal predictive distributions", COPA 2018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.evidence.calibration import Floats, Labels
from frostline.evidence.comparison import Interval, wilson_interval
from frostline.evidence.predictions import Predictions
from frostline.files import load_json, save_json

PROMISES = (0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Promise:
    """What a promise came to on the test split.

    threshold: probability from which a class is in the set; covered: the share of sets that hold the right class; by_class:
    the same of each class's images; size: classes in a set, on average; single: share of sets with one class.
    """

    promised: float
    threshold: float
    covered: Interval
    by_class: Mapping[str, Interval]
    size: float
    single: float

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def find_thresholds(labels: Labels, probabilities: Floats) -> dict[float, float]:
    """Promise -> the probability from which a class is in the set.

    Of n exchangeable images and a new one each rank is as likely: the new one's own class lies below the k-th smallest
    probability with at most k / (n + 1). Few images cannot hold a high promise: then 0, every class.

    >>> find_thresholds(np.zeros(9, int), np.linspace(0.1, 0.9, 9)[:, None])[0.8]
    0.2
    """
    own = np.sort(np.asarray(probabilities, np.float64)[np.arange(len(labels)), labels])
    # A promise of 0.95 on 19 images is one of them, whatever the rounding of 1 - 0.95.
    ranks = {promise: int((len(own) + 1) * (1 - promise) + 1e-9) for promise in PROMISES}
    return {promise: float(own[rank - 1]) if rank else 0.0 for promise, rank in ranks.items()}


def make_sets(probabilities: Floats, threshold: float) -> NDArray[np.bool_]:
    """Which classes are in each image's set, (num_images, num_classes).

    >>> make_sets(np.array([[0.7, 0.2, 0.1], [0.04, 0.06, 0.9]]), 0.15).tolist()
    [[True, True, False], [False, False, True]]
    """
    likeliest = probabilities == probabilities.max(axis=1, keepdims=True)
    return np.asarray((probabilities >= threshold) | likeliest)


def keep_promises(thresholds: Mapping[float, float], test: Predictions, confidence: float) -> list[Promise]:
    """What each promise came to on the test images, with intervals of that confidence."""
    rows = np.arange(len(test.labels))
    found = []
    for promise, threshold in thresholds.items():
        sets = make_sets(test.probabilities, threshold)
        hits, sizes = sets[rows, test.labels], sets.sum(axis=1)
        by_class = {
            name: wilson_interval(int(hits[own].sum()), int(own.sum()), confidence)
            for label, name in enumerate(test.class_names)
            if (own := test.labels == label).any()
        }
        covered = wilson_interval(int(hits.sum()), len(hits), confidence)
        found.append(Promise(promise, threshold, covered, by_class, float(sizes.mean()), float((sizes == 1).mean())))
    return found


def save_promises(path: Path, promises: Sequence[Promise]) -> None:
    """Writes what each promise came to, as JSON."""
    save_json(path, [each.to_record() for each in promises])


def load_sets(path: Path) -> dict[str, float]:
    """Promised share, as text -> threshold, of a file of `save_promises`."""
    return {f"{record['promised']:g}": float(record["threshold"]) for record in load_json(path)}


def describe_promises(promises: Sequence[Promise], images: int) -> str:
    """On what the promise rests, and when it breaks. images: out of fold, that the thresholds are of."""
    kept = [each for each in promises if each.covered.high >= each.promised]
    told = (
        "On the test split every promise holds, as far as its interval tells."
        if len(kept) == len(promises)
        else "On the test split too few sets hold the right class for "
        + ", ".join(f"{each.promised:g}" for each in promises if each not in kept)
        + "."
    )
    return (
        f"The thresholds are quantiles of {images} images, judged by networks that have not seen them. The promise is about new images "
        "of the same kind, on average over all classes, not about each class. It breaks where images come from elsewhere: "
        f"another camera, other surroundings, other shares of the classes, something that is none of them. {told}"
    )
