"""The head, the tail (suffix + head), and the whole model that is exported."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from frostline.arrays import replacing
from frostline.backbones import Base, build_suffix, join_base

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


def join_model(base: Base, tail: Tail, *, pooling: str, dropout: float, temperature: float) -> keras.Model:
    """The whole model: uint8 (batch, size, size, 3) -> float32 probabilities (batch, num_classes).

    Takes the tail's present weights. The mask layer is swapped for `keras.layers.Dropout`; logits are divided by
    `temperature` (Guo et al., ICML 2017) before the softmax. Holds no optimizer state.
    """
    features = join_base(base, tail.depth, tail.suffix)
    units = next((layer.units for layer in tail.head.layers if layer.name == "hidden"), 0)
    head = build_head(
        tuple(features.output.shape[1:]),
        tail.head.output.shape[-1],
        units=units,
        pooling=pooling,
        dropout=layers.Dropout(dropout, name="dropout"),
    )
    for variable, source in zip(head.trainable_variables, tail.head.trainable_variables, strict=True):
        variable.assign(source)
    logits = head(features.output)
    scaled = layers.Rescaling(1.0 / temperature, name="temperature", dtype="float32")(logits)
    return keras.Model(features.input, layers.Softmax(name="probabilities", dtype="float32")(scaled), name="frostline")


def save_model(model: keras.Model, path: Path) -> None:
    """Writes `model` to `path` (`.keras`), whole or not at all, in bytes that depend on the model alone.

    Keras's own file holds dates, addresses in memory as names of shared objects, and a seed drawn anew for each dropout
    layer, so that the same model would get another sha256 each time it is trained. The model's seed states are set to zero.
    """
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            variable.assign(ops.zeros_like(variable))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        dated = temporary.with_suffix(".keras")  # Keras asks for the suffix
        try:
            model.save(dated)
            with ZipFile(dated) as source, ZipFile(temporary, "w") as target:
                for entry in source.infolist():
                    undated = ZipInfo(entry.filename)
                    if entry.filename.endswith(".json"):
                        target.writestr(undated, _without_accidents(source.read(entry).decode()))
                        continue
                    undated.file_size = entry.file_size  # beyond 2 GB the archive takes another form
                    with source.open(entry) as given, target.open(undated, "w") as written:
                        shutil.copyfileobj(given, written)
        finally:
            dated.unlink(missing_ok=True)


def _without_accidents(text: str) -> str:
    places: dict[str, int] = {}
    text = re.sub(
        r'(?<="shared_object_id": )\d+', lambda found: str(places.setdefault(found.group(), len(places) + 1)), text
    )
    return re.sub(r', "date_saved": "[^"]*"', "", text)
