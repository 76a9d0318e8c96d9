"""Multinomial logistic regression to its optimum: many features, few images, a path of L2 strengths, folds.

What is minimised over kernel W and bias b, on standardised features z, with row weights w (ones unless given):

    sum_i w_i * cross_entropy(softmax(z_i W + b), y_i) / sum_i w_i  +  strength / 2 * |W|^2

The loss is a mean, so a strength means the same for any number of rows (scikit-learn's C is 1 / (strength * num_rows), and
for two classes, where scikit-learn has one column, 2 / (strength * num_rows)). The bias is free.

What makes it fast: the features are rotated once into their principal axes: the penalty does not see a rotation, and what no
row reaches keeps a kernel of zero, so r = min(num_rows, num_features) columns are enough; of more than MAX_EXACT of both only the
NUM_AXES strongest are computed, behind which next to nothing is left. In these axes a bound of the Hessian is diagonal
(Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44, 1992); with the mean of p (1 - p) in the
place of its 1/2, scaling each axis by it leaves L-BFGS (Liu and Nocedal, 1989) a rounder valley, and the same tolerance for weak
and strong penalties. The folds are one problem, whose loss is the sum of theirs: a step reads the rows once for all. Each
strength starts from the stronger one's optimum (Friedman, Hastie, Tibshirani, J. Stat. Software 33, 2010).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, qr
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

# Penalty per row on standardised features, strong to weak, two a decade. The strongest leaves next to nothing of the
# kernels, the weakest next to nothing of the training loss.
STRENGTHS = (10.0, 3.16, 1.0, 0.316, 0.1, 0.0316, 0.01, 3.16e-3, 1e-3, 3.16e-4, 1e-4)
# Largest gradient per scaled coordinate. Probabilities are then within 1e-4 of the optimum's; along the path, where only
# the order of the losses is wanted, within a few 1e-4.
TOLERANCE, COARSE = 1e-5, 3e-5
MAX_STEPS = 1000
MAX_EXACT = 2048  # rows or features up to which all axes are computed
NUM_AXES = 1024  # the strongest, that are computed of more
NEGLECTED = 0.002  # part of the variance, that of the weakest axes, which the path does without
RANK = 1e-10  # axes with less than this part of the first axis's variance are rounding
# Part of the images that count when strengths are weighed. Out-of-fold losses of one image hang together through the
# shared training images and along the path; all of them counted, the choice on 50 images follows their noise.
TRUST = 0.5
NEGLIGIBLE = 10.0  # nats of weight behind the best, from which on weaker strengths are not tried
Array = NDArray[np.float64]
Reals = NDArray[np.floating[Any]]
Head = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Rotation:
    """Standardised features in their principal axes.

    mean, scale: (num_features,); axes: matrices whose product is (num_features, r), orthonormal columns, never formed;
    variances: (r,), of the rows along each, ascending.
    """

    mean: Array = field(repr=False)
    scale: Array = field(repr=False)
    axes: tuple[Array, ...] = field(repr=False)
    variances: Array = field(repr=False)

    def fold(self, coefficients: Array) -> Head:
        """Kernel (num_features, num_classes) and bias (num_classes,) for raw features, from (r + 1, num_classes)."""
        kernel = np.linalg.multi_dot([*self.axes, coefficients[:-1]]) / self.scale[:, None]
        return kernel.astype(np.float32), (coefficients[-1] - self.mean @ kernel).astype(np.float32)


@dataclass(frozen=True)
class CrossValidation:
    """The chosen strength, its heads, and their out-of-fold answers.

    strengths, losses: (S,), of the path, strong to weak, in nats; logits: float32 (num_images, num_classes), each by the
    head that has not seen the image, on its view 0; loss: their mean cross-entropy; accuracy: their share of right ones.
    heads: kernel float32 (num_features, num_classes) and bias (num_classes,) for raw features, of each fold in turn; whole:
    the same, of all images; mean, scale: (num_features,), what features are centred and divided by.
    """

    strengths: tuple[float, ...]
    losses: Array
    choice: "Choice"
    logits: NDArray[np.float32] = field(repr=False)
    loss: float
    accuracy: float
    heads: list[Head] = field(repr=False)
    whole: Head = field(repr=False)
    mean: Array = field(repr=False)
    scale: Array = field(repr=False)


@dataclass(frozen=True)
class Choice:
    """The strength, the place of the path's lowest loss, and the edge of the range that the lowest loss lies on, if it does."""

    strength: float
    lowest: int
    edge: str | None  # "strongest", "weakest" or None


def cross_validate(
    features: NDArray[Any],
    labels: NDArray[np.integer[Any]],
    num_classes: int,
    folds: NDArray[np.integer[Any]],
    strengths: Sequence[float] = STRENGTHS,
    weights: NDArray[Any] | None = None,
    groups: NDArray[np.integer[Any]] | None = None,
) -> CrossValidation:
    """A head for each fold and one of all images, at the strength that the out-of-fold losses choose.

    features: (num_views, N, num_features) or (N, num_features), raw: all views of an image are trained on or none;
    labels, folds: (N,), folds from 0; weights: (N,); groups: (num_features,), which cut and pooling each belongs to. Mean
    and scale are those of all rows, labels unseen, so that every head and every strength has the same measure.
    """
    strengths = _ordered(strengths)
    views = features if features.ndim == 3 else features[None]
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    targets = np.tile(np.eye(num_classes)[labels], (len(views), 1))
    # A row of weight 0 is not trained on: no copy of the rows for each fold.
    seen = np.stack([np.tile(np.where(folds == fold, 0.0, weights), len(views)) for fold in range(folds.max() + 1)])
    rotation, rows = rotate(views.reshape(len(targets), -1), groups)
    # Enough for the order of the losses.
    weak = int(np.searchsorted(np.cumsum(rotation.variances), NEGLECTED * rotation.variances.sum()))
    coarse, variances = rows[:, weak:].astype(np.float32), rotation.variances[weak:]
    current = best = np.zeros((len(variances) + 1, len(seen), num_classes))
    losses: list[float] = []
    for strength in strengths:
        current = _fit(coarse, targets, seen, variances, strength, current, COARSE)
        losses.append(mean_cross_entropy(_held_out(coarse, current, folds), labels, weights))
        best = current if losses[-1] == min(losses) else best
        if TRUST * len(labels) * (losses[-1] - min(losses)) > NEGLIGIBLE:
            break
    choice = choose_strength(strengths[: len(losses)], losses, len(labels), complete=len(losses) == len(strengths))
    seen = np.append(seen, np.tile(weights, len(views))[None], axis=0)
    best = np.append(best, best.mean(axis=1, keepdims=True), axis=1)
    best = np.concatenate([np.zeros((weak, *best.shape[1:])), best])
    best = _fit(rows, targets, seen, rotation.variances, choice.strength, best, TOLERANCE)
    logits = _held_out(rows, best[:, :-1], folds)
    return CrossValidation(
        strengths=strengths[: len(losses)],
        losses=np.asarray(losses),
        choice=choice,
        logits=logits.astype(np.float32),
        loss=mean_cross_entropy(logits, labels, weights),
        accuracy=float((logits.argmax(axis=1) == labels).mean()),
        heads=[rotation.fold(best[:, fold]) for fold in range(len(seen) - 1)],
        whole=rotation.fold(best[:, -1]),
        mean=rotation.mean,
        scale=rotation.scale,
    )


def choose_strength(strengths: Sequence[float], losses: Sequence[float], num_images: int, *, complete: bool) -> Choice:
    """The mean of the strengths' logarithms, weighed by exp(-TRUST * num_images * loss); the best one where they are many.

    With few images the losses differ by less than their noise, and the lowest may lie anywhere; the mean then stays near
    the middle of the range. complete: were all of the range's strengths tried?

    >>> few, many = (choose_strength([1.0, 0.1, 0.01], [0.60, 0.50, 0.48], number, complete=True) for number in (10, 1000))
    >>> round(few.strength, 2), round(many.strength, 2), many.lowest, many.edge
    (0.07, 0.01, 2, 'weakest')
    """
    lowest = int(np.argmin(losses))
    shares = softmax(-TRUST * num_images * np.asarray(losses))
    edge = "strongest" if lowest == 0 else "weakest" if complete and lowest == len(losses) - 1 else None
    return Choice(float(np.exp(shares @ np.log(strengths))), lowest, edge)


def _held_out(rows: Reals, coefficients: Array, folds: NDArray[np.integer[Any]]) -> Array:
    """Logits (N, num_classes) of each image's view 0 by the fold that has not seen it."""
    logits = np.empty((len(folds), coefficients.shape[-1]))
    for fold in range(coefficients.shape[1]):
        chosen = np.flatnonzero(folds == fold)  # view 0 comes first in `rows`
        logits[chosen] = rows[chosen] @ coefficients[:-1, fold] + coefficients[-1, fold]
    return logits


def mean_cross_entropy(
    logits: NDArray[Any], labels: NDArray[np.integer[Any]], weights: NDArray[Any] | None = None
) -> float:
    """The weighted mean cross-entropy in nats of logits (n, num_classes)."""
    logits = np.asarray(logits, np.float64)
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=weights))


def rotate(features: NDArray[Any], groups: NDArray[np.integer[Any]] | None = None) -> tuple[Rotation, Array]:
    """The rotation of raw features (n, num_features) into their principal axes, and the rows there, (n, r).

    groups: (num_features,) from 0, which features have one measure (see `measure_scale`); one group where None.
    """
    raw = np.asarray(features, np.float64)
    mean, scale = raw.mean(axis=0), measure_scale(raw.std(axis=0), groups)
    rows = (raw - mean) / scale
    basis = None
    if min(rows.shape) > MAX_EXACT:
        basis = find_range(rows.astype(np.float32), NUM_AXES).astype(np.float64)
    kept = rows if basis is None else rows @ basis
    wide = kept.shape[1] > kept.shape[0]
    variances, vectors = eigh(kept @ kept.T if wide else kept.T @ kept, driver="evd", check_finite=False)
    chosen = variances > RANK * variances[-1]
    variances, vectors = variances[chosen], vectors[:, chosen]
    deviations = np.sqrt(variances)
    axes = (kept.T, vectors / deviations) if wide else (vectors,) if basis is None else (basis, vectors)
    return Rotation(mean, scale, axes, variances / len(rows)), vectors * deviations if wide else kept @ vectors


def find_range(rows: Reals, num_axes: int) -> Reals:
    """Orthonormal columns (num_features, num_axes) that hold nearly all of the variance of rows (n, num_features).

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53, 2011, algorithm 4.4.
    """
    basis = np.random.default_rng(0).standard_normal((rows.shape[1], num_axes)).astype(rows.dtype)
    for _ in range(2):
        basis = qr(rows.T @ (rows @ basis), mode="economic", overwrite_a=True, check_finite=False)[0]
    return np.asarray(basis)


def measure_scale(deviations: Array, groups: NDArray[np.integer[Any]] | None = None) -> Array:
    """What each feature is divided by: its deviation, but at least the root mean square of its group's.

    A unit that is silent on a few hundred training images speaks on some other; divided by its own tiny deviation it
    would decide alone (docs/decisions/0013-linear-heads.md has the numbers).

    >>> measure_scale(np.array([2.0, 1e-6])).round(2).tolist()
    [2.0, 1.41]
    """
    groups = np.zeros(len(deviations), int) if groups is None else groups
    typical = np.sqrt(np.bincount(groups, deviations**2) / np.bincount(groups))[groups]
    return np.where(typical > 0, np.maximum(deviations, typical), 1.0)


def loss_and_gradient(
    coefficients: Array, rows: Reals, targets: Array, weights: Array, strength: float
) -> tuple[float, Array]:
    """The sum of the objectives of G heads and its gradient (r + 1, G, num_classes); the last row is the bias.

    coefficients: (r + 1, G, num_classes); rows: (n, r), float32 or float64, in which the two products are computed; targets:
    (n, num_classes), one-hot; weights: (G, n), of each row for each head.
    """
    kernel, bias = coefficients[:-1], coefficients[-1]
    flat = kernel.reshape(len(kernel), -1).astype(rows.dtype)
    logits = np.asarray(rows @ flat, np.float64).reshape(len(rows), *bias.shape) + bias
    logits -= logits.max(axis=-1, keepdims=True)
    powers = np.exp(logits)
    sums = powers.sum(axis=-1, keepdims=True)
    share = (weights / weights.sum(axis=1, keepdims=True)).T
    losses = np.log(sums[..., 0]) - np.einsum("ngc,nc->ng", logits, targets)
    errors = (powers / sums - targets[:, None]) * share[..., None]
    gradient = np.empty_like(coefficients)
    gradient[:-1] = (rows.T @ errors.reshape(len(rows), -1).astype(rows.dtype)).reshape(
        kernel.shape
    ) + strength * kernel
    gradient[-1] = errors.sum(axis=0)
    return float((share * losses).sum() + strength / 2 * np.vdot(kernel, kernel)), gradient


def _fit(
    rows: Reals, targets: Array, weights: Array, variances: Array, strength: float, start: Array, tolerance: float
) -> Array:
    """The optima of all heads, (r + 1, G, num_classes), from `start`."""
    flat = start[:-1].reshape(len(variances), -1).astype(rows.dtype)
    chances = softmax((rows @ flat).reshape(len(rows), *start.shape[1:]) + start[-1], axis=-1)
    curvature = float((chances * (1 - chances)).mean())
    measure = 1 / np.sqrt(np.append(curvature * variances + strength, curvature + 1e-6))[:, None, None]

    def objective(flat: Array) -> tuple[float, Array]:
        value, gradient = loss_and_gradient(flat.reshape(start.shape) * measure, rows, targets, weights, strength)
        return value, (gradient * measure).ravel()

    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": MAX_STEPS, "maxfun": 2 * MAX_STEPS, "maxcor": 10}
    found = minimize(objective, (start / measure).ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x.reshape(start.shape) * measure)


def _ordered(strengths: Sequence[float]) -> tuple[float, ...]:
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"Strengths must be above 0, and at least one; received {list(strengths)}.")
    return tuple(sorted(strengths, reverse=True))


def describe_head(found: CrossValidation) -> dict[str, Any]:
    """What a record says of a linear head: L2 strength, the edge of the range that it lies on, out-of-fold scores."""
    return {
        "strength": found.choice.strength,
        "edge": found.choice.edge,
        "log_loss": found.loss,
        "accuracy": found.accuracy,
    }
