"""Which parts of a picture an answer rests on: Grad-CAM (Selvaraju et al., ICCV 2017)."""

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from frostline.devices import value_and_grad
from frostline.errors import Refused

BATCH_SIZE = 16


def explain(model: keras.Model, images: NDArray[np.uint8], classes: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Heat maps float32 (num_images, size, size), 0 to 1: how much each place speaks for the class in `classes`.

    model: uint8 (num_images, size, size, 3) -> probabilities, as `refit` writes it; images in that form. A picture in
    which nothing speaks for the class gets a map of zeros. Refused where the model has no feature map.
    """
    to_features, to_scores = split_at_features(model)

    def score(params: list[Any], wanted: Any) -> tuple[Any, None]:
        return ops.sum(to_scores(params[0], training=False) * wanted), None

    gradient_of = value_and_grad(score)
    maps = []
    for start in range(0, len(images), BATCH_SIZE):
        features = to_features(np.asarray(images[start : start + BATCH_SIZE]), training=False)
        wanted = np.eye(model.output_shape[-1], dtype=np.float32)[np.asarray(classes[start : start + BATCH_SIZE])]
        _, (gradients,) = gradient_of([features], ops.convert_to_tensor(wanted))
        weights = ops.mean(gradients, axis=(1, 2), keepdims=True)  # (batch, 1, 1, channels)
        heat = ops.relu(ops.sum(weights * features, axis=-1, keepdims=True))
        heat = heat / ops.maximum(ops.max(heat, axis=(1, 2, 3), keepdims=True), 1e-12)
        size = (images.shape[1], images.shape[2])
        maps.append(ops.convert_to_numpy(ops.image.resize(heat, size, interpolation="bilinear"))[..., 0])
    empty = np.zeros((0, *images.shape[1:3]), np.float32)
    return np.concatenate([empty, *maps]).clip(0, 1).astype(np.float32)


def split_at_features(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """(image -> last feature map, feature map -> class scores before the softmax); the two share the model's layers.

    The probabilities would not do: their gradient vanishes where the model is sure.
    """
    features = next((layer.output for layer in reversed(model.layers) if _is_map(layer)), None)
    if features is None:
        raise Refused(f"{model.name} has no feature map (num_images, height, width, channels) that could be explained.")
    last = model.layers[-1]
    scores = last.input if isinstance(last, keras.layers.Softmax) else ops.log(ops.maximum(model.output, 1e-7))
    return keras.Model(model.inputs[0], features), keras.Model(features, scores)


def _is_map(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.layers.InputLayer):
        return False
    shape: tuple[Any, ...] = getattr(layer.output, "shape", ())
    return len(shape) == 4 and shape[1] > 1 and shape[2] > 1
