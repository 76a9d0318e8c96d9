"""Whether confidence can be believed: temperature, expected calibration error, reliability.

`labels` is int (num_images,), `probabilities` float (num_images, num_classes) with rows that sum to 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

ECE_BINS = 15  # Guo et al., ICML 2017
TEMPERATURE_PRIOR = 0.25
SMALLEST = 1e-12  # the smallest probability whose logarithm is taken


def fit_temperature(labels: Labels, scores: Floats, *, prior: float = TEMPERATURE_PRIOR) -> float:
    """The temperature, 0.05 to 20, whose division of the logits minimises the log loss (Guo et al., ICML 2017).

    `scores` are probabilities or logits, out of fold. prior: standard deviation of a normal prior on the logarithm of the
    temperature, against which half of the images count. Out-of-fold predictions are those of single networks; the mean of
    several, which answers, is less sure of itself, so that what fits them is too high for it. They also hang together
    through their shared training images: on few of them the plain optimum does more harm than good
    (docs/decisions/0014-cross-fitting.md). infinity: no prior.
    """
    if are_probabilities(scores):
        logits = np.log(np.maximum(np.asarray(scores, np.float64), SMALLEST))
    else:
        logits = np.asarray(scores, np.float64)
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        mean = -special.log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()
        return float(mean + (log_temperature / prior) ** 2 / len(labels))

    found = optimize.minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def apply_temperature(probabilities: Floats, temperature: float) -> NDArray[np.float64]:
    """The probabilities with their logits divided by `temperature`; 1 / temperature undoes it.

    >>> apply_temperature(np.array([[0.9, 0.1]]), 2.0).round(2).tolist()
    [[0.75, 0.25]]
    """
    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-30))
    return np.asarray(special.softmax(logits / temperature, axis=1))


def ece_floor(probabilities: Floats) -> float:
    """The ECE that a perfectly calibrated model with these confidences shows on so few images.

    About 0.05 at 100 images, 0.018 at 1000: below it an ECE says nothing. In a bin the sum of (hit - confidence) has
    variance v = sum c (1 - c); its expected size is sqrt(2 v / pi) for many images and 2 v for one, and never above either.
    """
    confidence = np.asarray(probabilities.max(axis=1), np.float64)
    variance = np.bincount(bins_of(confidence), confidence * (1 - confidence), ECE_BINS)
    return float(np.minimum(np.sqrt(2 * variance / np.pi), 2 * variance).sum() / len(confidence))


def reliability(labels: Labels, probabilities: Floats) -> list[dict[str, float]]:
    """The non-empty bins of a reliability diagram: {low, high, confidence, accuracy, count}."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = bins_of(confidence)
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


def bins_of(confidence: Floats) -> NDArray[np.intp]:
    """The bin of ECE_BINS equal ones that each confidence falls in; each holds its upper end."""
    return np.clip(np.ceil(np.asarray(confidence, np.float64) * ECE_BINS).astype(np.intp) - 1, 0, ECE_BINS - 1)


def are_probabilities(scores: Floats) -> bool:
    """Whether every row is finite, not negative, and sums to 1."""
    return bool(np.isfinite(scores).all() and scores.min() >= 0 and np.allclose(scores.sum(axis=1), 1, atol=1e-3))
