"""A family's whole network with its 1000-class top, on uint8 images."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frostline.bases.cuts import scale_pixels
from frostline.bases.families import FAMILIES, check_base
from frostline.bases.networks import build_network
from frostline.bases.packages import PACKAGES, save_package
from frostline.bases.weights import load_weights
from frostline.devices import keras
from frostline.errors import Refused, first_line


def build_whole(
    name: str, image_size: int, *, options: Mapping[str, Any] | None = None, weights: Path | None = None
) -> keras.Model:
    """uint8 (n, image_size, image_size, 3) -> float32 probabilities (n, 1000).

    weights None: ImageNet's, from the package that carries them or else downloaded by Keras. Raises Refused where that fails and for
    a file that leaves a layer unfilled, the top included.
    """
    options = dict(options or {})
    check_base(name, image_size, options)
    shape = (image_size, image_size, 3)
    try:
        network = build_network(
            name, image_size, options, include_top=True, weights=None if weights or name in PACKAGES else "imagenet"
        )
    except Exception as error:  # Keras raises bare Exception where a download fails
        raise Refused(f"{name} with its top could not be built at {image_size} px: {first_line(error)}") from error
    if weights is not None:
        load_weights(weights, network.layers, network.layers, f"{name} with its top")
    elif name in PACKAGES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "whole.weights.h5"
            save_package(name, path, include_top=True)
            load_weights(path, network.layers, network.layers, f"{name} with its top")
    pixels = keras.Input(shape, dtype="uint8", name="pixels")
    return keras.Model(pixels, network(scale_pixels(pixels, FAMILIES[name].scaling), training=False), name=name)
