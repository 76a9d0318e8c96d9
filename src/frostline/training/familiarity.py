"""How familiar an image is: its distance from what the base's features of the training images span, as a quantile.

The features are the means of one cut over its places, divided by their length and standardised. Most of what training images
vary in lies in a few principal axes; an image's distance is what of its features those axes do not reach, squared. Source: the
residual of Wang, Li, Feng and Zhang, "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022;
docs/decisions/0021-familiarity.md compares it with others.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.devices import layers
from frostline.evidence.predictions import FAMILIARITY
from frostline.training.linear import find_range, measure_scale

MAX_AXES = 32
# Of the columns and of the images: axes that reach nearly all of them leave no distance.
PART_OF_AXES = 4
MAX_IMAGES = 10_000  # that it is fitted on; their columns are held in float32
MAX_STEPS = 256  # between quantiles that are stored
Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Subspace:
    """What features of training images span: mean, scale: float32 (num_columns,); axes: (num_columns, num_axes), orthonormal."""

    mean: Array = field(repr=False)
    scale: Array = field(repr=False)
    axes: Array = field(repr=False)

    def distances(self, columns: Array) -> Floats:
        """What of each image's columns (num_images, num_columns) the axes do not reach, squared, (num_images,)."""
        rows = (_unit(columns) - self.mean) / self.scale
        left = (rows**2).sum(axis=1) - ((rows @ self.axes) ** 2).sum(axis=1)
        return np.asarray(np.maximum(left, 0), np.float64)


@dataclass(frozen=True)
class Familiarity:
    """A subspace, and the quantiles of the distances of training images from the subspace of the other folds.

    quantiles: (num_steps + 1,), ascending, from the least to the largest.
    """

    subspace: Subspace
    quantiles: Floats = field(repr=False)

    def of(self, columns: Array) -> Floats:
        """The familiarity of images from their raw columns (num_images, num_columns): 0 to 1, (num_images,)."""
        starts, widths = self.steps()
        steps = np.clip((self.subspace.distances(columns)[:, None] - starts) / widths, 0, 1)
        return np.asarray(1 - steps.mean(axis=1))

    def steps(self) -> tuple[Floats, Floats]:
        """Where the steps between quantiles begin, and how wide they are, (num_steps,) each."""
        # Equal distances make a step of no width.
        widths = np.diff(self.quantiles)
        return self.quantiles[:-1], np.maximum(widths, 1e-6 * max(self.quantiles[-1], 1e-6))


def fit_familiarity(columns: Array, folds: NDArray[np.integer[Any]], max_axes: int = MAX_AXES) -> Familiarity:
    """The familiarity of images like those of raw columns (num_images, num_columns).

    folds: (num_images,), which images a distance is not measured from; max_axes: of the subspace.
    """
    chosen = np.linspace(0, len(columns) - 1, min(len(columns), MAX_IMAGES)).astype(int)
    columns, folds = np.asarray(columns[chosen], np.float32), folds[chosen]
    num_axes = max(1, min(max_axes, columns.shape[1] // PART_OF_AXES, len(columns) // PART_OF_AXES))
    distances = np.empty(len(columns))
    for fold in np.unique(folds):
        own = folds == fold
        # A single fold holds all that there is.
        others = ~own if not own.all() else own
        distances[own] = _span(columns[others], num_axes).distances(columns[own])
    levels = np.linspace(0, 1, min(len(columns), MAX_STEPS) + 1)
    return Familiarity(_span(columns, num_axes), np.quantile(distances, levels))


def build_familiarity(found: Familiarity, cut: Any) -> Any:
    """The map (n, h, w, c) of the cut -> the familiarity, float32 (n, 1), as a graph of stock layers."""
    subspace, name = found.subspace, FAMILIARITY
    starts, widths = found.steps()
    x = layers.GlobalAveragePooling2D(name=f"{name}_mean", dtype="float32")(cut)
    x = layers.UnitNormalization(name=f"{name}_unit", dtype="float32")(x)
    standardise = layers.BatchNormalization(
        center=False, scale=False, epsilon=0.0, name=f"{name}_scale", dtype="float32"
    )
    rows = standardise(x, training=False)
    standardise.set_weights([subspace.mean, subspace.scale**2])
    reached = _dense(rows, subspace.axes, None, f"{name}_axes")
    lengths = [
        layers.Dot(axes=1, name=f"{name}_{of}", dtype="float32")([y, y]) for of, y in (("all", rows), ("in", reached))
    ]
    distance = layers.Subtract(name=f"{name}_distance", dtype="float32")(lengths)
    steps = _dense(distance, 1 / widths[None], -starts / widths, f"{name}_steps")
    steps = layers.ReLU(max_value=1.0, name=f"{name}_share", dtype="float32")(steps)
    share = _dense(steps, np.full((len(starts), 1), -1 / len(starts)), np.ones(1), f"{name}_rest")
    return layers.ReLU(max_value=1.0, name=name, dtype="float32")(share)


def _dense(x: Any, kernel: Array, bias: Array | None, name: str) -> Any:
    layer = layers.Dense(kernel.shape[1], use_bias=bias is not None, name=name, dtype="float32")
    y = layer(x)
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return y


def _span(columns: Array, num_axes: int) -> Subspace:
    units = _unit(columns)
    mean, deviations = units.mean(axis=0), units.std(axis=0).astype(np.float64)
    scale = measure_scale(deviations).astype(np.float32)
    rows = (units - mean) / scale
    basis = find_range(rows, min(2 * num_axes, *rows.shape))
    axes = basis @ np.linalg.svd(rows @ basis, full_matrices=False)[2][:num_axes].T
    return Subspace(mean, scale, axes)


def _unit(columns: Array) -> Array:
    """Each row divided by its length, as `layers.UnitNormalization` does."""
    rows = np.asarray(columns, np.float32)
    return np.asarray(rows / np.sqrt(np.maximum((rows**2).sum(axis=1, keepdims=True), 1e-12)))
