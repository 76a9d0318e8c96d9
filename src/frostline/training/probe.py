"""The linear probe: a classifier on the frozen base's features, where every head starts from (LP-FT).

Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

MAX_IMAGES = 5_000  # a start for heads, not a result; scikit-learn holds several float32 copies
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C: the inverse of the L2 penalty


@dataclass(frozen=True)
class Probe:
    """kernel float32 (num_features, num_classes) and bias float32 (num_classes,), for raw features."""

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]
    strength: float
    val_accuracy: float


def fit_probe(
    features: NDArray[np.float16],
    labels: NDArray[np.int32],
    val: NDArray[np.float16],
    val_labels: NDArray[np.int32],
    num_classes: int,
) -> Probe:
    """The probe whose penalty gives the lowest validation loss.

    features: (num_images, num_features) of the plain view; of more than MAX_IMAGES an even sample is used. The
    features are standardised for the fit; the scaling is folded into kernel and bias.
    """
    chosen = np.linspace(0, len(labels) - 1, min(len(labels), MAX_IMAGES)).astype(int)
    x, y = np.asarray(features[chosen], np.float32), labels[chosen]
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    standard, val_standard = (x - mean) / scale, (np.asarray(val, np.float32) - mean) / scale
    fits = []
    for strength in STRENGTHS:
        with warnings.catch_warnings():
            # A fit that has not converged is a candidate like any other: the validation loss judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            # The products are small: BLAS's threads would spend most of the time waiting for each other.
            with threadpool_limits(1, "blas"):
                model = LogisticRegression(C=strength, max_iter=300).fit(standard, y)
        probabilities = model.predict_proba(val_standard)
        columns = np.searchsorted(model.classes_, val_labels)
        loss = -np.log(np.maximum(probabilities[np.arange(len(val_labels)), columns], 1e-12)).mean()
        fits.append((loss, strength, model, float((probabilities.argmax(axis=1) == columns).mean())))
    _, strength, model, accuracy = min(fits, key=lambda item: item[0])
    coefficients, intercepts = model.coef_, model.intercept_
    if num_classes == 2:  # one logit w for two classes is the pair (-w/2, w/2)
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    kernel = coefficients.T / scale[:, None]
    return Probe(kernel.astype(np.float32), (intercepts - mean @ kernel).astype(np.float32), strength, accuracy)
