"""A base divided at its cuts and joined again; scaling of the pixels included."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from frostline.bases.base import Base
from frostline.bases.families import Scaling
from frostline.bases.folding import fold_graph
from frostline.bases.graph import copy_graph, copy_weights

# keras.applications.imagenet_utils: mean and standard deviation of ImageNet's channels, RGB.
MEAN_255 = (123.68, 116.779, 103.939)
MEAN_1 = (0.485, 0.456, 0.406)
DEVIATION_1 = (0.229, 0.224, 0.225)


def scale_pixels(pixels: Any, scaling: Scaling) -> Any:
    """uint8 pixels (n, h, w, 3) RGB as the float32 that the family was trained on."""
    match scaling:
        case "tf":
            return layers.Rescaling(1 / 127.5, offset=-1.0, name="scaling", dtype="float32")(pixels)
        case "torch":
            scale = [1 / (255 * deviation) for deviation in DEVIATION_1]
            offset = [-mean / deviation for mean, deviation in zip(MEAN_1, DEVIATION_1, strict=True)]
            return layers.Rescaling(scale, offset=offset, name="scaling", dtype="float32")(pixels)
        case "caffe":
            centred = layers.Rescaling(1.0, offset=[-mean for mean in MEAN_255], name="scaling", dtype="float32")(
                pixels
            )
            return ops.flip(centred, axis=-1)  # RGB -> BGR
        case "none":
            return layers.Rescaling(1.0, name="scaling", dtype="float32")(pixels)


def build_prefix(base: Base, depths: Sequence[int], pooling: str | None, dtype: str = "float32") -> keras.Model:
    """uint8 (n, s, s, 3) -> the features at `cuts[d]` for each d of `depths`, in one pass; frozen.

    Depth 0 is pooled to (n, channels) when `pooling` is "avg" or "max". A copy of the base's layers, convolutions and
    BatchNormalization folded. dtype: "float32", "bfloat16" or "float16", that it computes in.
    """
    pixels = keras.Input((base.image_size, base.image_size, 3), dtype="uint8", name="pixels")
    tensors = [base.model.operations[base.cuts[depth].index].output for depth in depths]
    maps = fold_graph(base.model.inputs[0], tensors, scale_pixels(pixels, base.scaling), dtype)
    pools = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
    for position, depth in enumerate(depths):
        if depth == 0 and pooling in pools:
            maps[position] = pools[pooling](name="pool", dtype="float32")(maps[position])
    prefix = keras.Model(pixels, maps, name=f"{base.name}_prefix")
    prefix.trainable = False
    return prefix


def build_bridge(base: Base, start: int, end: int) -> keras.Model:
    """Features at `cuts[start]` -> features at the higher `cuts[end]`; frozen, a copy, folded as the prefix is."""
    features = keras.Input(base.cuts[start].shape, name="features")
    below, above = (base.model.operations[base.cuts[depth].index].output for depth in (start, end))
    bridge = keras.Model(features, fold_graph(below, [above], features), name=f"{base.name}_bridge")
    bridge.trainable = False
    return bridge


def build_suffix(base: Base, depth: int) -> keras.Model | None:
    """The layers above `cuts[depth]`, copied with their weights: shares nothing with the base; None at depth 0.

    Trainable. Call it with `training=False`: the base's BatchNorm keeps its pre-trained statistics, unfrozen or not.
    """
    if depth == 0:
        return None
    cut = base.cuts[depth]
    features = keras.Input(cut.shape, name="features")
    output = copy_graph(base.model.operations[cut.index].output, base.model.outputs[0], features)
    suffix = keras.Model(features, output, name=f"{base.name}_suffix_{depth}")
    suffix.trainable = True
    return suffix


def join_base(base: Base, depth: int, suffix: keras.Model | None) -> keras.Model:
    """uint8 (n, s, s, 3) -> feature map: the base's layers below `cuts[depth]` and the suffix's above, all copied.

    One flat model of stock layers, which loads in Keras's safe mode. Frozen, so that its BatchNorm stays in inference
    mode however it is called.
    """
    pixels = keras.Input((base.image_size, base.image_size, 3), dtype="uint8", name="pixels")
    output = copy_graph(base.model.inputs[0], base.model.outputs[0], scale_pixels(pixels, base.scaling))
    joined = keras.Model(pixels, output, name=base.name)
    if suffix is not None:
        copies = {layer.name: layer for layer in joined.layers}
        for layer in suffix.layers:
            if layer.weights:
                copy_weights(layer, copies[layer.name])
    joined.trainable = False
    return joined
