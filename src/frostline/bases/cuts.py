"""A base divided at its cuts, every cut pooled for the head, and its parts copied; scaling of the pixels included."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from frostline.bases.base import Base, Cut
from frostline.bases.families import Scaling
from frostline.bases.folding import fold_graph
from frostline.bases.graph import copy_graph
from frostline.bases.weights import DEVIATION
from frostline.devices import keras, layers, ops

# A head sees so many cuts at most; a network of a hundred blocks would give it a hundred thousand columns.
MAX_POOLED = 24
# keras.applications.imagenet_utils: mean of ImageNet's channels, RGB.
MEAN_255 = (123.68, 116.779, 103.939)
MEAN_1 = (0.485, 0.456, 0.406)


def scale_pixels(pixels: Any, scaling: Scaling) -> Any:
    """uint8 pixels (n, h, w, 3) RGB as the float32 that the family was trained on."""
    match scaling:
        case "tf":
            return layers.Rescaling(1 / 127.5, offset=-1.0, name="scaling", dtype="float32")(pixels)
        case "torch":
            scale = [1 / (255 * deviation) for deviation in DEVIATION]
            offset = [-mean / deviation for mean, deviation in zip(MEAN_1, DEVIATION, strict=True)]
            return layers.Rescaling(scale, offset=offset, name="scaling", dtype="float32")(pixels)
        case "lite":
            return layers.Rescaling(1 / 128, offset=-127 / 128, name="scaling", dtype="float32")(pixels)
        case "caffe":
            centred = layers.Rescaling(1.0, offset=[-mean for mean in MEAN_255], name="scaling", dtype="float32")(
                pixels
            )
            return ops.flip(centred, axis=-1)  # RGB -> BGR
        case "none":
            return layers.Rescaling(1.0, name="scaling", dtype="float32")(pixels)


def choose_pooled(base: Base) -> tuple[Cut, ...]:
    """The cuts whose pooled maps a head may see, from the input side to the output: all, or MAX_POOLED spread evenly."""
    cuts = base.cuts[::-1]
    chosen = np.linspace(0, len(cuts) - 1, min(len(cuts), MAX_POOLED)).round().astype(int)
    return tuple(cuts[place] for place in chosen)


def find_means(base: Base, depth: int = 0) -> slice:
    """The columns of the pooled cuts that are the means of the last of them up to `cuts[depth]`."""
    channels = [cut.shape[-1] for cut in choose_pooled(base) if cut.depth >= depth]
    return slice(2 * sum(channels[:-1]), 2 * sum(channels[:-1]) + channels[-1])


def pool_maps(maps: Sequence[Any], name: str = "pool") -> Any:
    """(n, h, w, c) each -> (n, sum of 2 c): of every map its mean and its maximum over the places, in float32."""
    pooled = []
    for number, each in enumerate(maps):
        pooled.append(layers.GlobalAveragePooling2D(name=f"{name}_{number}_mean", dtype="float32")(each))
        pooled.append(layers.GlobalMaxPooling2D(name=f"{name}_{number}_max", dtype="float32")(each))
    return layers.Concatenate(name=name, dtype="float32")(pooled)


def build_prefix(base: Base, depths: Sequence[int], dtype: str = "float32", *, pooled: bool = True) -> keras.Model:
    """uint8 (n, s, s, 3) -> the maps at `cuts[d]` for each d of `depths`, then every cut pooled, in one pass; frozen.

    The last output is `pool_maps` of `choose_pooled`, unless it is not to be `pooled`. A copy of the base's layers, convolutions
    and BatchNormalization folded. dtype: "float32", "bfloat16" or "float16", that it computes in.
    """
    pixels = keras.Input((base.image_size, base.image_size, 3), dtype="uint8", name="pixels")
    cuts = [*(base.cuts[depth] for depth in depths), *(choose_pooled(base) if pooled else [])]
    tensors = [base.model.operations[cut.index].output for cut in cuts]
    maps = fold_graph(base.model.inputs[0], tensors, scale_pixels(pixels, base.scaling), dtype)
    outputs = [*maps[: len(depths)], *([pool_maps(maps[len(depths) :])] if pooled else [])]
    prefix = keras.Model(pixels, outputs, name=f"{base.name}_prefix")
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

    Its outputs are the maps of the pooled cuts above, from the input side to the output. Trainable. Call it with
    `training=False`: the base's BatchNorm keeps its pre-trained statistics, unfrozen or not.
    """
    if depth == 0:
        return None
    cut = base.cuts[depth]
    features = keras.Input(cut.shape, name="features")
    above = [base.model.operations[other.index].output for other in choose_pooled(base) if other.depth < depth]
    outputs = copy_graph(base.model.operations[cut.index].output, above, features)
    suffix = keras.Model(features, outputs, name=f"{base.name}_suffix_{depth}")
    suffix.trainable = True
    return suffix


def copy_prefix(base: Base, depth: int, pixels: Any) -> list[Any]:
    """The maps of the pooled cuts up to `cuts[depth]` and, last, that cut's own, for a tensor of pixels (n, s, s, 3) uint8.

    Layers of their own with the base's weights, stock ones, which load in Keras's safe mode; frozen, so that BatchNorm stays
    in inference mode however it is called.
    """
    wanted = [*(cut for cut in choose_pooled(base) if cut.depth >= depth), base.cuts[depth]]
    tensors = [base.model.operations[cut.index].output for cut in wanted]
    maps = copy_graph(base.model.inputs[0], tensors, scale_pixels(pixels, base.scaling), trainable=False)
    return list(maps)


def copy_suffix(base: Base, depth: int, suffix: keras.Model, start: Any, name: str) -> list[Any]:
    """The suffix's outputs for the map `start` of `cuts[depth]`: layers of their own, named after `name`, frozen.

    They take the suffix's present weights.
    """
    return list(copy_graph(suffix.inputs[0], suffix.outputs, start, prefix=f"{name}_", trainable=False))
