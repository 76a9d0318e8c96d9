"""Which parts of an image an answer rests on: Grad-CAM (Selvaraju et al., ICCV 2017)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.devices import compile_function, keras, ops, value_and_grad
from frostline.errors import Refused
from frostline.evidence.predictions import PROBABILITIES

BATCH_SIZE = 16


def explain(model: keras.Model, images: NDArray[np.uint8], classes: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Heat maps float32 (num_images, size, size), 0 to 1: how much each place speaks for the class in `classes`.

    model: uint8 (num_images, size, size, 3) -> probabilities, as `refit` writes it; images in that form. The maps of all
    tails and cuts that the answer rests on are added in units of the score. An image in which nothing speaks for the class
    gets a map of zeros. Refused where the model has no feature map.
    """
    to_maps, to_scores = split_at_maps(model)

    def score(params: list[Any], wanted: Any) -> tuple[Any, None]:
        return ops.sum(to_scores(params, training=False) * wanted), None

    gradient_of = value_and_grad(score)
    size = (images.shape[1], images.shape[2])

    def explain_batch(batch: Any, wanted: Any) -> Any:
        maps = keras.tree.flatten(to_maps(batch, training=False))
        _, gradients = gradient_of(maps, wanted)
        heat = 0.0
        for each, gradient in zip(maps, gradients, strict=True):
            weights = ops.mean(gradient, axis=(1, 2), keepdims=True)  # (batch, 1, 1, channels)
            places = each.shape[1] * each.shape[2]  # the share of one pixel falls with the size of the map
            own = ops.relu(ops.sum(weights * each, axis=-1, keepdims=True)) * places
            heat = heat + ops.image.resize(own, size, interpolation="bilinear")
        return heat / ops.maximum(ops.max(heat, axis=(1, 2, 3), keepdims=True), 1e-12)

    compiled = compile_function(explain_batch)
    heats = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = ops.convert_to_tensor(images[start : start + BATCH_SIZE])
        wanted = np.eye(to_scores.output_shape[-1], dtype=np.float32)[np.asarray(classes[start : start + BATCH_SIZE])]
        heats.append(ops.convert_to_numpy(compiled(batch, ops.convert_to_tensor(wanted)))[..., 0])
    empty = np.zeros((0, *images.shape[1:3]), np.float32)
    return np.concatenate([empty, *heats]).clip(0, 1).astype(np.float32)


def split_at_maps(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """(image -> the feature maps that are pooled, or the last one; those maps -> class scores before the last softmax).

    The two share the model's layers. The probabilities would not do: their gradient vanishes where the model is sure.
    Of a model that also answers for the mirror image, the part that answers for the image is explained.
    """
    inner = next((layer for layer in model.layers if layer.name == "network" and isinstance(layer, keras.Model)), None)
    if inner is not None:
        model = inner
    if isinstance(model.output, dict):
        model = keras.Model(model.inputs[0], model.output[PROBABILITIES], name=model.name)
    pools = keras.layers.GlobalAveragePooling2D | keras.layers.GlobalMaxPooling2D | keras.layers.Flatten
    maps = {id(layer.input): layer.input for layer in model.layers if isinstance(layer, pools) and _is_map(layer.input)}
    features = list(maps.values()) or [layer.output for layer in reversed(model.layers) if _is_map(layer.output)][:1]
    if not features:
        raise Refused(f"{model.name} has no feature map (num_images, height, width, channels) that could be explained.")
    last = model.layers[-1]
    scores = last.input if isinstance(last, keras.layers.Softmax) else ops.log(ops.maximum(model.output, 1e-7))
    return keras.Model(model.inputs[0], features), keras.Model(features, scores)


def _is_map(tensor: Any) -> bool:
    shape: tuple[Any, ...] = getattr(tensor, "shape", ())
    return len(shape) == 4 and shape[1] > 1 and shape[2] > 1
