"""A family's network built with Keras: by `keras.applications`, or here where that has none of the name."""

from collections.abc import Mapping
from typing import Any

from frostline.bases.lite import CLASSES, EPSILON, HEAD, SCALES, STEM, Block, blocks_of
from frostline.devices import keras, layers

Tensor = Any  # a KerasTensor


def build_network(
    name: str,
    image_size: int | None,
    options: Mapping[str, Any],
    *,
    include_top: bool = False,
    weights: str | None = None,
) -> keras.Model:
    """Scaled images (n, image_size, image_size, 3) -> a feature map, or with its top 1000 probabilities.

    image_size None leaves the sides open. weights: None, or "imagenet", which `keras.applications` downloads.
    """
    shape = (image_size, image_size, 3)
    if name in SCALES:
        return _build_lite(name, shape, include_top)
    application = getattr(keras.applications, name)
    network: keras.Model = application(include_top=include_top, weights=weights, input_shape=shape, **options)
    return network


def _build_lite(name: str, shape: tuple[int | None, int | None, int], include_top: bool) -> keras.Model:
    images = keras.Input(shape)
    x = layers.Conv2D(STEM, 3, 2, "same", use_bias=False, name="stem_conv")(images)
    x = _activate(_normalize(x, "stem_bn"), "stem_activation")
    for block in blocks_of(name):
        x = _build_block(x, block)
    x = layers.Conv2D(HEAD, 1, use_bias=False, name="top_conv")(x)
    x = _activate(_normalize(x, "top_bn"), "top_activation")
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
    return keras.Model(images, x, name=name.lower())


def _build_block(given: Tensor, block: Block) -> Tensor:
    x, name = given, block.name
    if block.expansion > 1:
        x = layers.Conv2D(block.given * block.expansion, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _activate(_normalize(x, f"{name}_expand_bn"), f"{name}_expand_activation")
    # TensorFlow trained them with "same", which pads an even side behind alone. With as much on both sides the released
    # statistics of Lite0 and Lite1 fit photographs less well.
    x = layers.DepthwiseConv2D(block.kernel, block.stride, "same", use_bias=False, name=f"{name}_dwconv")(x)
    x = _activate(_normalize(x, f"{name}_bn"), f"{name}_activation")
    x = layers.Conv2D(block.channels, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _normalize(x, f"{name}_project_bn")
    return layers.Add(name=f"{name}_add")([x, given]) if block.has_sum else x


def _normalize(x: Tensor, name: str) -> Tensor:
    return layers.BatchNormalization(epsilon=EPSILON, name=name)(x)


def _activate(x: Tensor, name: str) -> Tensor:
    return layers.ReLU(6.0, name=name)(x)
