"""How good a classifier's answers are: every score with a bootstrap interval.

`labels` is int (num_images,), `probabilities` float (num_images, num_classes) with rows that sum to 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk

from frostline.evidence.calibration import (
    ECE_BINS,
    SMALLEST,
    Floats,
    Labels,
    are_probabilities,
    bins_of,
    ece_floor,
    expected_calibration_error,
)
from frostline.evidence.comparison import Interval, wilson_interval

# Floats in a block of bootstrap weights: 32 MB of float32, whatever the number of images.
BLOCK = 1 << 23
# ROC-AUC's bootstrap costs images x classes x resamples; above this it takes fewer resamples and says so.
AUC_BUDGET = 4_000_000_000


def summarize(
    labels: Labels,
    probabilities: Floats,
    class_names: Sequence[str],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """All scores with intervals, as a record for `evaluation.json`.

    Keys: num_images, confidence, resamples; accuracy (with Wilson's interval too), balanced_accuracy, macro_f1,
    log_loss, brier, roc_auc (one class against the rest, averaged; None with a single class in `labels`) and ece, each
    {value, low, high}; per_class {name: {precision, recall, f1, support}}, the first two with intervals. Averages over
    classes leave out classes without an image. The Brier score is halved for two classes, as usual. Intervals are
    bootstrap percentiles, resampled within each class; where no answer, or every one, is wrong that collapses to a
    point, and accuracy's interval is Wilson's instead.
    """
    check_predictions(labels, probabilities, len(class_names))
    exact = np.asarray(probabilities, np.float64)
    point = _measure_once(labels, exact)
    draws = _resample(labels, exact, resamples, seed)
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)

    def interval(name: str) -> dict[str, float]:
        return asdict(_make_interval(point[name], *np.quantile(draws[name], tails)))

    record: dict[str, Any] = {"num_images": len(labels), "confidence": confidence, "resamples": resamples}
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier"):
        record[name] = interval(name)
    wilson = wilson_interval(int((probabilities.argmax(1) == labels).sum()), len(labels), confidence)
    ends = {"low": round(wilson.low, 6), "high": round(wilson.high, 6)}
    if record["accuracy"]["low"] == record["accuracy"]["high"]:
        record["accuracy"] |= ends
    record["accuracy"] |= {f"wilson_{end}": value for end, value in ends.items()}
    record["roc_auc"] = None
    if "roc_auc" in point:
        record["roc_auc"] = interval("roc_auc") | {"resamples": len(draws["roc_auc"])}
    # A resampled ECE is biased upwards (empty bins, repeated images): the spread is kept and centred on the value.
    low, high = np.quantile(draws["ece"], tails) - draws["ece"].mean() + point["ece"]
    record["ece"] = asdict(_make_interval(point["ece"], max(low, 0.0), high))
    record["ece"]["floor"] = round(ece_floor(exact), 6)
    record["per_class"] = _describe_classes(labels, exact, class_names, draws, tails)
    return record


def score_losses(labels: Labels, probabilities: NDArray[np.float64]) -> dict[str, float]:
    """The log loss and the Brier score."""
    log_loss = float(_log_losses(labels, probabilities).mean())
    return {"log_loss": log_loss, "brier": float(_brier_scores(labels, probabilities).mean())}


def check_predictions(labels: Labels, probabilities: Floats, num_classes: int) -> None:
    """Raises ValueError where labels and probabilities do not fit each other or are no probabilities."""
    expected = (len(labels), num_classes)
    if probabilities.shape != expected or len(labels) == 0:
        raise ValueError(f"Probabilities have shape {probabilities.shape}, expected {expected}, not empty.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"Labels run from {labels.min()} to {labels.max()}, but there are {num_classes} classes.")
    if not are_probabilities(probabilities):
        raise ValueError("Some rows are no probabilities: not finite, negative, or not summing to 1.")


def _make_interval(value: float, low: float, high: float) -> Interval:
    return Interval(round(float(value), 6), round(float(low), 6), round(float(high), 6))


def _measure_once(labels: Labels, probabilities: NDArray[np.float64]) -> dict[str, float]:
    present = np.unique(labels)
    predicted = probabilities.argmax(axis=1)
    average = {"labels": present, "average": "macro", "zero_division": 0}
    point = {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "balanced_accuracy": float(sk.recall_score(labels, predicted, **average)),
        "macro_f1": float(sk.f1_score(labels, predicted, **average)),
        **score_losses(labels, probabilities),
        "ece": expected_calibration_error(labels, probabilities),
    }
    if len(present) > 1:
        point["roc_auc"] = float(np.mean([sk.roc_auc_score(labels == c, probabilities[:, c]) for c in present]))
    return point


def _log_losses(labels: Labels, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], SMALLEST)))


def _brier_scores(labels: Labels, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = (probabilities**2).sum(axis=1) - 2 * probabilities[np.arange(len(labels)), labels] + 1
    return np.asarray(squares / 2 if probabilities.shape[1] == 2 else squares)


def _resample(
    labels: Labels, probabilities: NDArray[np.float64], resamples: int, seed: int
) -> Mapping[str, NDArray[np.float64]]:
    """Each score in each resample; per-class ones as (resamples, num_classes)."""
    num_images, num_classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    support = np.bincount(labels, minlength=num_classes)
    present = np.flatnonzero(support)
    # Sums over images of a resample are one matrix product: (columns, images) @ (images, resamples).
    hits = predicted == labels
    columns = np.stack([hits, _log_losses(labels, probabilities), _brier_scores(labels, probabilities)])
    columns = columns.astype(np.float32)
    gaps = np.zeros((ECE_BINS, num_images), np.float32)
    gaps[bins_of(confidence), np.arange(num_images)] = hits - confidence
    ranks = _rank_negatives(labels, probabilities, present) if len(present) > 1 else []
    auc_resamples = min(resamples, max(100, AUC_BUDGET // (num_images * max(len(present), 1))))
    drawn: dict[str, list[NDArray[Any]]] = {}
    done = 0
    for weights in _draw_weights(labels, resamples, seed):
        accuracy, log_loss, brier = columns @ weights / num_images
        true_positives = _sum_by(labels[hits], weights[hits], num_classes)  # (num_classes, block)
        positives = _sum_by(predicted, weights, num_classes)
        recall = true_positives / np.maximum(support, 1)[:, None]
        f1 = 2 * true_positives / np.maximum(positives + support[:, None], 1)
        scores = {
            "accuracy": accuracy,
            "log_loss": log_loss,
            "brier": brier,
            "ece": np.abs(gaps @ weights).sum(axis=0) / num_images,
            "balanced_accuracy": recall[present].mean(axis=0),
            "macro_f1": f1[present].mean(axis=0),
            "recall": recall.T,
            "precision": (true_positives / np.maximum(positives, 1)).T,
        }
        if ranks and done < auc_resamples:
            scores["roc_auc"] = _roc_auc(weights, ranks)[: auc_resamples - done]
        for name, values in scores.items():
            drawn.setdefault(name, []).append(values)
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


def _sum_by(groups: Labels, weights: NDArray[np.float32], num_groups: int) -> NDArray[np.float32]:
    """Sums the rows of `weights` (num_images, block) that share a group -> (num_groups, block)."""
    sums = np.zeros((num_groups, weights.shape[1]), np.float32)
    order = np.argsort(groups, kind="stable")
    if len(order):
        starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
        sums[groups[order][starts]] = np.add.reduceat(weights[order], starts, axis=0)
    return sums


def _rank_negatives(
    labels: Labels, probabilities: NDArray[np.float64], present: NDArray[np.intp]
) -> list[tuple[NDArray[np.intp], ...]]:
    """Per class: its images, the others by score, and how many others lie below and not above each of its images."""
    ranks: list[tuple[NDArray[np.intp], ...]] = []
    for label in present:
        members = np.flatnonzero(labels == label)
        others = np.flatnonzero(labels != label)
        others = others[np.argsort(probabilities[others, label], kind="stable")]
        scores = probabilities[others, label]
        below = np.searchsorted(scores, probabilities[members, label], side="left")
        not_above = np.searchsorted(scores, probabilities[members, label], side="right")
        ranks.append((members, others, below, not_above))
    return ranks


def _roc_auc(weights: NDArray[np.float32], ranks: list[tuple[NDArray[np.intp], ...]]) -> NDArray[np.float64]:
    """The macro average of one-against-rest ROC-AUC in each resample; ties count half."""
    total = np.zeros(weights.shape[1])
    for members, others, below, not_above in ranks:
        passed = np.zeros((len(others) + 1, weights.shape[1]), np.float32)
        np.cumsum(weights[others], axis=0, out=passed[1:])
        pairs = np.einsum("ij,ij->j", weights[members], (passed[below] + passed[not_above]) / 2, dtype=np.float64)
        total += pairs / (len(members) * len(others))
    return total / len(ranks)


def _describe_classes(
    labels: Labels,
    probabilities: NDArray[np.float64],
    class_names: Sequence[str],
    draws: Mapping[str, NDArray[np.float64]],
    tails: tuple[float, float],
) -> dict[str, Any]:
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=range(len(class_names)), zero_division=0
    )
    described = {}
    for index, name in enumerate(class_names):
        row: dict[str, Any] = {"support": int(support[index]), "f1": float(f1[index])}
        for key, value in (("precision", precision[index]), ("recall", recall[index])):
            row[key] = asdict(_make_interval(value, *np.quantile(draws[key][:, index], tails)))
        described[name] = row
    return described
