"""The head, and the tail (suffix + head) that a trial trains."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from frostline.bases.base import Base
from frostline.bases.cuts import build_suffix

MASK_DROPOUT = "mask_dropout"


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
    """What a trial trains: the base's blocks above the cut (None at depth 0) and the head on them."""

    depth: int
    suffix: keras.Model | None
    head: keras.Model


def build_head(
    feature_shape: tuple[int, ...], num_classes: int, *, units: int, pooling: str, dropout: layers.Layer
) -> keras.Model:
    """A head: features (batch, *feature_shape) float32 -> logits (batch, num_classes).

    A feature map is pooled ("avg", "max") or flattened first; `units` > 0 adds one ReLU layer. Dropout stands before
    the last layer.
    """
    pools = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D, "flatten": layers.Flatten}
    inputs = keras.Input(feature_shape, name="features")
    x = pools[pooling](name="pool")(inputs) if len(feature_shape) == 3 else inputs
    if units:
        x = layers.Dense(units, activation="relu", name="hidden")(x)
    x = dropout(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits", dtype="float32")(x), name="head")


def build_tail(base: Base, depth: int, num_classes: int, *, units: int, pooling: str, seed: int) -> Tail:
    """A tail of its own, that shares no weight with the base or with another tail."""
    suffix = build_suffix(base, depth)
    feature_shape: tuple[int, ...] = base.cuts[0].shape
    if suffix is None and pooling != "flatten":
        feature_shape = feature_shape[-1:]  # pooled once, by the prefix
    head = build_head(
        feature_shape, num_classes, units=units, pooling=pooling, dropout=MaskDropout(seed, name=MASK_DROPOUT)
    )
    return Tail(depth, suffix, head)


def make_head_weights(
    tail: Tail, seed: int, probe: tuple[NDArray[np.float32], NDArray[np.float32]] | None
) -> list[NDArray[np.float32]]:
    """Start values of the head's trainable weights: drawn (Glorot uniform, zero biases), or the probe's where one fits.

    probe: kernel (num_features, num_classes) and bias (num_classes,) of a linear probe on the pooled features.
    """
    values = []
    for index, variable in enumerate(tail.head.trainable_variables):
        if len(variable.shape) == 1:
            values.append(np.zeros(variable.shape, np.float32))
        else:
            draw = keras.initializers.GlorotUniform(seed=seed + index)
            values.append(np.asarray(ops.convert_to_numpy(draw(variable.shape, "float32"))))
    if probe is not None and len(values) == 2 and values[0].shape == probe[0].shape:
        values = [probe[0].astype(np.float32), probe[1].astype(np.float32)]
    return values
