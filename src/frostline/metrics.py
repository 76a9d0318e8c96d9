"""How good a classifier's answers are, and how sure that is: scores with intervals, paired tests, calibration.

Everywhere `labels` is int (num_images,) and `probabilities` float (num_images, num_classes) with rows that sum to 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from sklearn import metrics as sk

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

ECE_BINS = 15  # Guo et al., ICML 2017
SMALLEST = 1e-12  # the smallest probability whose logarithm is taken
# Floats in a block of bootstrap weights: 32 MB of float32, whatever the number of images.
BLOCK = 1 << 23
# ROC-AUC's bootstrap costs images x classes x resamples; above this it takes fewer resamples and says so.
AUC_BUDGET = 4_000_000_000


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval."""

    value: float
    low: float
    high: float


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
    {value, low, high}; per_class {name: {precision, recall, f1, support}}, the first two with intervals; confusion
    (rows = truth). Averages over classes leave out classes without an image. The Brier score is halved for two
    classes, as usual. Intervals are bootstrap percentiles, resampled within each class.
    """
    check_answers(labels, probabilities, len(class_names))
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
    record["accuracy"] |= {"wilson_low": wilson.low, "wilson_high": wilson.high}
    record["roc_auc"] = None
    if "roc_auc" in point:
        record["roc_auc"] = interval("roc_auc") | {"resamples": len(draws["roc_auc"])}
    # A resampled ECE is biased upwards (empty bins, repeated images): the spread is kept and centred on the value.
    low, high = np.quantile(draws["ece"], tails) - draws["ece"].mean() + point["ece"]
    record["ece"] = asdict(_make_interval(point["ece"], max(low, 0.0), high))
    record["ece"]["floor"] = round(ece_floor(exact), 6)
    record["per_class"] = _describe_classes(labels, exact, class_names, draws, tails)
    record["confusion"] = sk.confusion_matrix(labels, probabilities.argmax(1), labels=range(len(class_names))).tolist()
    return record


def check_answers(labels: Labels, probabilities: Floats, num_classes: int) -> None:
    """Raises ValueError where labels and probabilities do not fit each other or are no probabilities."""
    expected = (len(labels), num_classes)
    if probabilities.shape != expected or len(labels) == 0:
        raise ValueError(f"Probabilities have shape {probabilities.shape}, expected {expected}, not empty.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"Labels run from {labels.min()} to {labels.max()}, but there are {num_classes} classes.")
    if not are_probabilities(probabilities):
        raise ValueError("Some rows are no probabilities: not finite, negative, or not summing to 1.")


def are_probabilities(scores: Floats) -> bool:
    """Whether every row is finite, not negative, and sums to 1."""
    return bool(np.isfinite(scores).all() and scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """A share and its Wilson interval, which holds up near 0 and 1 where the bootstrap collapses."""
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(interval.low), float(interval.high))


def expected_calibration_error(labels: Labels, probabilities: Floats) -> float:
    """Mean distance between confidence and accuracy over 15 equal bins of confidence (Guo et al., ICML 2017)."""
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    return float(np.abs(np.bincount(_bins(confidence), gap, ECE_BINS)).sum() / len(labels))


def ece_floor(probabilities: Floats) -> float:
    """The ECE that a perfectly calibrated model with these confidences shows on so few images.

    About 0.05 at 100 images, 0.018 at 1000: below it an ECE says nothing. In a bin the sum of (hit - confidence) has
    variance v = sum c (1 - c); its expected size is sqrt(2 v / pi) for many images and 2 v for one, and never above either.
    """
    confidence = np.asarray(probabilities.max(axis=1), np.float64)
    variance = np.bincount(_bins(confidence), confidence * (1 - confidence), ECE_BINS)
    return float(np.minimum(np.sqrt(2 * variance / np.pi), 2 * variance).sum() / len(confidence))


def reliability(labels: Labels, probabilities: Floats) -> list[dict[str, float]]:
    """The non-empty bins of a reliability diagram: {low, high, confidence, accuracy, count}."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = _bins(confidence)
    return [
        {
            "low": b / ECE_BINS,
            "high": (b + 1) / ECE_BINS,
            "confidence": float(confidence[bins == b].mean()),
            "accuracy": float(correct[bins == b].mean()),
            "count": int((bins == b).sum()),
        }
        for b in range(ECE_BINS)
        if (bins == b).any()
    ]


def fit_temperature(labels: Labels, scores: Floats) -> float:
    """The temperature, 0.05 to 20, whose division of the logits minimises the log loss (Guo et al., ICML 2017).

    `scores` are probabilities or logits. The targets are not quite 1 and 0 but leave 1/(num_images + 2) to the other
    classes (Platt 1999), or a validation split without an error would ask for infinite confidence.
    """
    if are_probabilities(scores):
        logits = np.log(np.maximum(np.asarray(scores, np.float64), SMALLEST))
    else:
        logits = np.asarray(scores, np.float64)
    rest = 1 / (len(labels) + 2)
    targets = np.full(logits.shape, rest / (logits.shape[1] - 1))
    targets[np.arange(len(labels)), labels] = 1 - rest

    def loss(log_temperature: float) -> float:
        return float(-(targets * special.log_softmax(logits / np.exp(log_temperature), axis=1)).sum(axis=1).mean())

    found = optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def apply_temperature(probabilities: Floats, temperature: float) -> NDArray[np.float64]:
    """The probabilities with their logits divided by `temperature`; 1 / temperature undoes it."""
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-30))
    return np.asarray(special.softmax(logits / temperature, axis=1))


def count_discordant(labels: Labels, ours: Floats, theirs: Floats) -> tuple[int, int]:
    """(images that only `ours` gets right, images that only `theirs` gets right)."""
    right, right_there = ours.argmax(axis=1) == labels, theirs.argmax(axis=1) == labels
    return int((right & ~right_there).sum()), int((~right & right_there).sum())


def mcnemar(wins: int, losses: int) -> float:
    """The exact one-sided p-value of McNemar's test: how likely so many wins or more are if both are equally good."""
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue)


def paired_difference(
    labels: Labels, ours: Floats, theirs: Floats, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Our accuracy minus theirs on the same images, with its paired, stratified bootstrap interval."""
    gain = (ours.argmax(axis=1) == labels).astype(np.int8) - (theirs.argmax(axis=1) == labels)
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for label in np.unique(labels):
        # An image counts -1, 0 or +1, so a class's resample is one multinomial draw.
        counts = np.bincount(gain[labels == label] + 1, minlength=3)
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
        total += drawn[:, 2] - drawn[:, 0]
    low, high = np.quantile(total / len(labels), ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(float(gain.mean()), float(low), float(high))


def paired_score_interval(wins: int, losses: int, num_images: int, confidence: float = 0.95) -> Interval:
    """The difference of two paired accuracies with Tango's score interval (Statistics in Medicine 17, 1998).

    Unlike the bootstrap it does not collapse to a point where the two models agree on every image.
    """
    difference = (wins - losses) / num_images
    z = float(stats.norm.ppf((1 + confidence) / 2))

    def distance(delta: float) -> float:
        # The maximum-likelihood share of losses under the hypothesis that the true difference is delta.
        a = 2 * num_images
        b = -wins - losses + (2 * num_images - wins + losses) * delta
        c = -losses * delta * (1 - delta)
        share = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = num_images * (2 * share + delta * (1 - delta))
        return float((wins - losses - num_images * delta) / np.sqrt(max(variance, 1e-300)))

    edge = 1 - 1e-9
    low = optimize.brentq(lambda d: distance(d) - z, -edge, difference) if difference > -edge else -1.0
    high = optimize.brentq(lambda d: distance(d) + z, difference, edge) if difference < edge else 1.0
    return Interval(difference, float(low), float(high))


def needed_images(difference: float, discordance: float, *, significance: float, power: float = 0.8) -> int | None:
    """Test images for McNemar's one-sided test to see `difference` with `power`; None if there is nothing to see.

    `discordance` is the share of images that one of the two gets right and the other wrong.
    Source: Connor, Biometrics 43 (1987), with 1/difference added for the exact test.
    """
    if difference <= 0 or discordance <= 0:
        return None
    z_size, z_power = stats.norm.ppf(1 - significance), stats.norm.ppf(power)
    spread = z_size * np.sqrt(discordance) + z_power * np.sqrt(max(discordance - difference**2, 0.0))
    return int(np.ceil((spread / difference) ** 2 + 1 / difference))


def _make_interval(value: float, low: float, high: float) -> Interval:
    return Interval(round(float(value), 6), round(float(low), 6), round(float(high), 6))


def _bins(confidence: Floats) -> NDArray[np.intp]:
    return np.clip(np.ceil(np.asarray(confidence, np.float64) * ECE_BINS).astype(np.intp) - 1, 0, ECE_BINS - 1)


def _measure_once(labels: Labels, probabilities: NDArray[np.float64]) -> dict[str, float]:
    present = np.unique(labels)
    predicted = probabilities.argmax(axis=1)
    average = {"labels": present, "average": "macro", "zero_division": 0}
    point = {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "balanced_accuracy": float(sk.recall_score(labels, predicted, **average)),
        "macro_f1": float(sk.f1_score(labels, predicted, **average)),
        "log_loss": float(_log_losses(labels, probabilities).mean()),
        "brier": float(_brier_scores(labels, probabilities).mean()),
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
    gaps[_bins(confidence), np.arange(num_images)] = hits - confidence
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
