"""The head, and the tail (suffix + head) that a trial trains."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.bases.base import Base
from frostline.bases.cuts import build_suffix, choose_pooled
from frostline.devices import keras, layers, ops
from frostline.training.linear import Head

STANDARDISE, MASK_DROPOUT = "standardise", "mask_dropout"


class Standardise(layers.Layer):  # type: ignore[misc]
    """(x - mean) / scale of each column, both weights that are not trained: other values need no new trace."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = (int(input_shape[-1] or 0),)
        self.mean = self.add_weight(shape=width, initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=width, initializer="ones", trainable=False, name="scale")

    def call(self, inputs: Any) -> Any:
        return (inputs - self.mean) / self.scale


class MaskDropout(layers.Layer):  # type: ignore[misc]
    """Inverted dropout whose rate is a weight, so that another rate needs no new trace.

    `keras.layers.Dropout` bakes its rate into the graph. Source: Srivastava et al., JMLR 15 (2014), scaled at training.
    """

    def __init__(self, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.rate = self.add_weight(shape=(), initializer="zeros", trainable=False, name="rate")

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        keep = 1.0 - self.rate
        drawn = keras.random.uniform(ops.shape(inputs), seed=self.seed_generator)
        return ops.where(drawn < keep, inputs / keep, ops.zeros_like(inputs))


@dataclass(frozen=True)
class Tail:
    """What a trial trains: the base's blocks above the cut (None at depth 0) and the head on them.

    sees: what the head sees, `all` cuts pooled (mean and maximum) or the `last` one (as `pooling` says). map_shape: of the
    cut that the suffix starts from, () at depth 0 and a pooled head. columns: of the pooled cuts that come from storage.
    """

    depth: int
    sees: str
    pooling: str
    suffix: keras.Model | None
    head: keras.Model
    map_shape: tuple[int, ...]
    columns: slice

    @property
    def map_size(self) -> int:
        """Numbers of the map in a row of features."""
        return int(np.prod(self.map_shape)) if self.map_shape else 0


@dataclass(frozen=True)
class HeadStart:
    """Where a head begins: the standardisation of its columns, its weights, and the L2 strength that they were fitted with.

    mean, scale: float32 (num_columns,); weights: of its layers in their order; strength: of the penalty strength / 2 *
    |kernel|^2 on standardised columns beside a mean loss, 0 for none.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weights: list[NDArray[np.float32]]
    strength: float


def build_head(num_columns: int, num_classes: int, *, units: int, seed: int) -> keras.Model:
    """A head: columns (batch, num_columns) float32 -> logits (batch, num_classes).

    They are standardised; `units` > 0 adds one ReLU layer. Dropout stands before the last layer.
    """
    inputs = keras.Input((num_columns,), name="columns")
    x = Standardise(name=STANDARDISE)(inputs)
    if units:
        x = layers.Dense(units, activation="relu", name="hidden")(x)
    x = MaskDropout(seed, name=MASK_DROPOUT)(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits", dtype="float32")(x), name="head")


def build_tail(base: Base, depth: int, num_classes: int, *, units: int, pooling: str, sees: str) -> Tail:
    """A tail of its own, that shares no weight with the base or with another tail."""
    suffix = build_suffix(base, depth)
    map_shape: tuple[int, ...]
    if pooling == "flatten":
        map_shape, columns = base.cuts[depth].shape, slice(0, 0)
        width = int(np.prod(base.cuts[0].shape))
    else:
        map_shape = base.cuts[depth].shape if depth else ()
        columns = find_columns(base, depth, pooling, sees)
        every = find_columns(base, 0, pooling, sees)
        width = every.stop - every.start
    head = build_head(width, num_classes, units=units, seed=0)
    return Tail(depth, sees, pooling, suffix, head, map_shape, columns)


def find_columns(base: Base, depth: int, pooling: str, sees: str) -> slice:
    """The columns of the pooled cuts that a head at this depth takes from storage; at depth 0 all that it sees."""
    cuts = choose_pooled(base)
    width = sum(2 * cut.shape[-1] for cut in cuts)
    if sees == "all":
        return slice(0, sum(2 * cut.shape[-1] for cut in cuts if cut.depth >= depth))
    if depth:
        return slice(0, 0)  # it sees the suffix's output alone
    channels = base.cuts[0].shape[-1]
    return slice(width - 2 * channels, width - channels) if pooling == "avg" else slice(width - channels, width)


def group_columns(base: Base, sees: str) -> NDArray[np.int64]:
    """Which cut and pooling each of a linear head's columns belongs to, from 0, (num_columns,)."""
    if sees == "last":
        return np.zeros(base.cuts[0].shape[-1], np.int64)
    channels = [cut.shape[-1] for cut in choose_pooled(base) for _ in ("mean", "maximum")]
    return np.repeat(np.arange(len(channels)), channels)


def pool_outputs(outputs: list[Any], sees: str, pooling: str) -> list[Any]:
    """What the head sees of a suffix's output maps: each pooled, (n, columns), or the last one as `pooling` says."""
    if sees == "all":
        return [pool(x, axis=(1, 2)) for x in outputs for pool in (ops.mean, ops.max)]
    if pooling == "flatten":
        return [ops.reshape(outputs[-1], (-1, int(np.prod(outputs[-1].shape[1:]))))]
    return [(ops.mean if pooling == "avg" else ops.max)(outputs[-1], axis=(1, 2))]


def start_head(tail: Tail, seed: int, linear: "tuple[Head, NDArray[Any], NDArray[Any], float] | None") -> HeadStart:
    """Where the tail's head begins: drawn (Glorot uniform, zero biases), or at a linear head where it has no hidden layer.

    linear: its kernel and bias for raw columns, their mean and scale, and its L2 strength.
    """
    width = tail.head.input.shape[-1]
    if linear is not None:
        (kernel, bias), mean, scale, strength = linear
        statistics = mean.astype(np.float32), scale.astype(np.float32)
        if len(tail.head.trainable_variables) == 2:
            return HeadStart(*statistics, [kernel * statistics[1][:, None], bias + statistics[0] @ kernel], strength)
    else:
        statistics = np.zeros(width, np.float32), np.ones(width, np.float32)
    weights = []
    for index, variable in enumerate(tail.head.trainable_variables):
        if len(variable.shape) == 1:
            weights.append(np.zeros(variable.shape, np.float32))
        else:
            draw = keras.initializers.GlorotUniform(seed=seed + index)
            weights.append(np.asarray(ops.convert_to_numpy(draw(variable.shape, "float32"))))
    return HeadStart(*statistics, weights, 0.0)
