"""How good a classifier's predictions are: each metric declared once, as a function of weights, with a bootstrap interval.

`labels` is int (num_images,), `probabilities` float (num_images, num_classes) with rows that sum to 1. A resample of the
images is a vector of weights, how often each is drawn; weights of one give the value itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from frostline.evidence.calibration import ECE_BINS, SMALLEST, Floats, Labels, are_probabilities, bins_of, ece_floor
from frostline.evidence.comparison import Interval, wilson_interval

Array = NDArray[np.floating[Any]]
# Floats in a block of bootstrap weights: 32 MB of float32, whatever the number of images.
BLOCK = 1 << 23
# ROC-AUC's bootstrap costs images x classes x resamples; above this it takes fewer resamples and says so.
AUC_BUDGET = 4_000_000_000


class Sample:
    """Predictions on some images, and what every metric asks of them."""

    def __init__(self, labels: Labels, probabilities: Floats) -> None:
        self.labels, self.probabilities = labels, np.asarray(probabilities, np.float64)
        self.num_images, self.num_classes = probabilities.shape
        self.predicted = self.probabilities.argmax(axis=1)
        self.hits = self.predicted == labels
        self.support = np.bincount(labels, minlength=self.num_classes)
        self.present = np.flatnonzero(self.support)
        own = self.probabilities[np.arange(self.num_images), labels]
        squares = (self.probabilities**2).sum(axis=1) - 2 * own + 1
        # Per image: right or wrong, log loss in nats, Brier score (halved for two classes, as usual).
        self.columns = np.stack(
            [self.hits, -np.log(np.maximum(own, SMALLEST)), squares / 2 if self.num_classes == 2 else squares]
        )

    @cached_property
    def gaps(self) -> NDArray[np.float64]:
        """(ECE_BINS, num_images): right or wrong minus confidence, in the row of the image's bin of confidence."""
        confidence = self.probabilities.max(axis=1)
        gaps = np.zeros((ECE_BINS, self.num_images))
        gaps[bins_of(confidence), np.arange(self.num_images)] = self.hits - confidence
        return gaps

    @cached_property
    def ranks(self) -> list[tuple[NDArray[np.intp], ...]]:
        """Per class: its images, the others by score, and how many others lie below and not above each of its images."""
        ranks: list[tuple[NDArray[np.intp], ...]] = []
        for label in self.present:
            members = np.flatnonzero(self.labels == label)
            others = np.flatnonzero(self.labels != label)
            others = others[np.argsort(self.probabilities[others, label], kind="stable")]
            scores = self.probabilities[others, label]
            below = np.searchsorted(scores, self.probabilities[members, label], side="left")
            not_above = np.searchsorted(scores, self.probabilities[members, label], side="right")
            ranks.append((members, others, below, not_above))
        return ranks


class Weighted:
    """A sample under weights (num_images, block): what several metrics share, computed when first asked for."""

    def __init__(self, sample: Sample, weights: Array) -> None:
        self.sample, self.weights = sample, weights

    @cached_property
    def means(self) -> Array:
        """(3, block): accuracy, log loss and Brier score; one matrix product for all resamples."""
        return np.asarray(self.sample.columns.astype(self.weights.dtype) @ self.weights / self.sample.num_images)

    @cached_property
    def true_positives(self) -> Array:
        """(num_classes, block)"""
        hits = self.sample.hits
        return _sum_by(self.sample.labels[hits], self.weights[hits], self.sample.num_classes)

    @cached_property
    def positives(self) -> Array:
        """(num_classes, block): weight of the images that were predicted to be of the class."""
        return _sum_by(self.sample.predicted, self.weights, self.sample.num_classes)

    @cached_property
    def recall(self) -> Array:
        """(num_classes, block); resampling keeps every class's number of images."""
        return np.asarray(self.true_positives / np.maximum(self.sample.support, 1)[:, None])

    @cached_property
    def precision(self) -> Array:
        """(num_classes, block); 0 for a class that is never predicted."""
        return np.asarray(self.true_positives / np.maximum(self.positives, 1))

    @cached_property
    def f1(self) -> Array:
        """(num_classes, block)"""
        return np.asarray(2 * self.true_positives / np.maximum(self.positives + self.sample.support[:, None], 1))

    @cached_property
    def roc_auc(self) -> Array:
        """(block,): one class against the rest, averaged; ties count half."""
        total = np.zeros(self.weights.shape[1])
        for members, others, below, not_above in self.sample.ranks:
            passed = np.zeros((len(others) + 1, self.weights.shape[1]), self.weights.dtype)
            np.cumsum(self.weights[others], axis=0, out=passed[1:])
            drawn = (passed[below] + passed[not_above]) / 2
            pairs = np.einsum("ij,ij->j", self.weights[members], drawn, dtype=np.float64)
            total += pairs / (len(members) * len(others))
        return total / len(self.sample.ranks)


@dataclass(frozen=True)
class Metric:
    """A metric: its name for people, its value in each resample (block,), and whether the run table shows it."""

    label: str
    measure: Callable[[Weighted], Array]
    logged: bool = False
    # An average over classes needs two of them; None stands where `labels` hold one.
    needs_classes: bool = False


# Averages over classes leave out classes without an image.
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("accuracy", lambda drawn: drawn.means[0], logged=True),
    "balanced_accuracy": Metric("balanced accuracy", lambda drawn: drawn.recall[drawn.sample.present].mean(axis=0)),
    "macro_f1": Metric("macro F1", lambda drawn: drawn.f1[drawn.sample.present].mean(axis=0), logged=True),
    "log_loss": Metric("log loss", lambda drawn: drawn.means[1], logged=True),
    "brier": Metric("Brier score", lambda drawn: drawn.means[2]),
    "roc_auc": Metric("ROC-AUC, one class against the rest", lambda drawn: drawn.roc_auc, needs_classes=True),
    "ece": Metric(
        "expected calibration error",
        lambda drawn: (
            np.abs(drawn.sample.gaps.astype(drawn.weights.dtype) @ drawn.weights).sum(axis=0) / drawn.sample.num_images
        ),
        logged=True,
    ),
}


@dataclass(frozen=True)
class Score:
    """A measured value with its interval, and what else is known of this one by name."""

    value: float
    low: float
    high: float
    more: Mapping[str, float]

    def to_record(self) -> dict[str, float]:
        """Plain values for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, **self.more}

    @classmethod
    def from_record(cls, record: Mapping[str, float]) -> Self:
        """The score of `to_record`'s form."""
        more = {key: value for key, value in record.items() if key not in ("value", "low", "high")}
        return cls(record["value"], record["low"], record["high"], more)


def measure(labels: Labels, probabilities: Floats, names: Sequence[str] = ()) -> dict[str, float]:
    """The values of metrics, of all unless named; those that need several classes are left out where `labels` hold one.

    >>> measure(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]), ["accuracy"])
    {'accuracy': 0.5}
    """
    once = Weighted(Sample(labels, probabilities), np.ones((len(labels), 1)))
    return {
        name: float(metric.measure(once)[0])
        for name, metric in _metrics_for(once.sample).items()
        if not names or name in names
    }


def summarize(
    labels: Labels,
    probabilities: Floats,
    class_names: Sequence[str],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[dict[str, Score | None], dict[str, Any]]:
    """Every metric with its interval, None where it has no value, and the record of each class.

    Of a class: {precision, recall, f1, support}, the first two with intervals. Intervals are bootstrap percentiles,
    resampled within each class; where no prediction, or every one, is wrong that collapses to a point, and accuracy's
    interval is Wilson's instead, which stands beside it in any case.
    """
    check_predictions(labels, probabilities, len(class_names))
    sample = Sample(labels, probabilities)
    draws = _resample(sample, resamples, seed)
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    scores: dict[str, Score | None] = dict.fromkeys(METRICS)
    for name, value in measure(labels, probabilities).items():
        low, high = np.quantile(draws[name], tails)
        more: dict[str, float] = {}
        if name == "accuracy":
            wilson = wilson_interval(int(sample.hits.sum()), len(labels), confidence)
            more = {"wilson_low": round(wilson.low, 6), "wilson_high": round(wilson.high, 6)}
            if round(float(low), 6) == round(float(high), 6):
                low, high = wilson.low, wilson.high
        elif name == "roc_auc":
            more = {"resamples": len(draws[name])}
        elif name == "ece":
            # A resampled ECE is biased upwards (empty bins, repeated images): the spread is kept and centred on the value.
            shift = value - draws[name].mean()
            low, high = max(low + shift, 0.0), high + shift
            more = {"floor": round(ece_floor(sample.probabilities), 6)}
        scores[name] = Score(**asdict(_make_interval(value, low, high)), more=more)
    return scores, _describe_classes(sample, class_names, draws, tails)


def check_predictions(labels: Labels, probabilities: Floats, num_classes: int) -> None:
    """Raises ValueError where labels and probabilities do not fit each other or are no probabilities."""
    expected = (len(labels), num_classes)
    if probabilities.shape != expected or len(labels) == 0:
        raise ValueError(f"Probabilities have shape {probabilities.shape}, expected {expected}, not empty.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"Labels run from {labels.min()} to {labels.max()}, but there are {num_classes} classes.")
    if not are_probabilities(probabilities):
        raise ValueError("Some rows are no probabilities: not finite, negative, or not summing to 1.")


def _metrics_for(sample: Sample) -> dict[str, Metric]:
    return {name: metric for name, metric in METRICS.items() if len(sample.present) > 1 or not metric.needs_classes}


def _make_interval(value: float, low: float, high: float) -> Interval:
    return Interval(round(float(value), 6), round(float(low), 6), round(float(high), 6))


def _resample(sample: Sample, resamples: int, seed: int) -> Mapping[str, NDArray[np.float64]]:
    """Each metric in each resample; `recall` and `precision` of each class as (resamples, num_classes)."""
    auc_resamples = min(resamples, max(100, AUC_BUDGET // (sample.num_images * max(len(sample.present), 1))))
    drawn: dict[str, list[NDArray[Any]]] = {}
    done = 0
    for weights in _draw_weights(sample.labels, resamples, seed):
        block = Weighted(sample, weights)
        for name, metric in _metrics_for(sample).items():
            if name != "roc_auc" or done < auc_resamples:
                room = auc_resamples - done if name == "roc_auc" else None
                drawn.setdefault(name, []).append(metric.measure(block)[:room])
        for name in ("recall", "precision"):
            drawn.setdefault(name, []).append(getattr(block, name).T)
        done += weights.shape[1]
    return {name: np.concatenate(values) for name, values in drawn.items()}


def _draw_weights(labels: Labels, resamples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Blocks (num_images, block) of how often each image is drawn; every class keeps its number of images."""
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, BLOCK // len(labels)))
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        weights = np.empty((len(labels), size), np.float32)
        for members in classes:
            places = rng.integers(0, len(members), (size, len(members))) * size + np.arange(size)[:, None]
            weights[members] = np.bincount(places.ravel(), minlength=len(members) * size).reshape(len(members), size)
        yield weights


def _sum_by(groups: Labels, weights: Array, num_groups: int) -> Array:
    """Sums the rows of `weights` (num_images, block) that share a group -> (num_groups, block)."""
    sums = np.zeros((num_groups, weights.shape[1]), weights.dtype)
    order = np.argsort(groups, kind="stable")
    if len(order):
        starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
        sums[groups[order][starts]] = np.add.reduceat(weights[order], starts, axis=0)
    return sums


def _describe_classes(
    sample: Sample,
    class_names: Sequence[str],
    draws: Mapping[str, NDArray[np.float64]],
    tails: tuple[float, float],
) -> dict[str, Any]:
    once = Weighted(sample, np.ones((sample.num_images, 1)))
    described = {}
    for index, name in enumerate(class_names):
        row: dict[str, Any] = {"support": int(sample.support[index]), "f1": float(once.f1[index, 0])}
        for key, values in (("precision", once.precision), ("recall", once.recall)):
            row[key] = asdict(_make_interval(values[index, 0], *np.quantile(draws[key][:, index], tails)))
        described[name] = row
    return described
