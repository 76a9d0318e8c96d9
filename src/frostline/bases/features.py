"""Features: their places on disk, their types, and a compiled graph's answers to one batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.devices import Tensor, ops

Array = NDArray[Any]
Forward = Callable[[Tensor], list[Tensor]]


POOLED = "pooled"  # of every cut, of every view: what heads see
PLAIN = "view-000"
MIRROR = "mirror"  # the view of the plain image with left and right changed
TEST = "test"  # the folder of those of the plain test images, by which near duplicates are found


def depth_folder(depth: int) -> str:
    """The folder, among the features, of the maps that `depth` unfrozen blocks start from."""
    return f"depth-{depth:02d}"


def choose_dtype(features: NDArray[np.float32]) -> type[np.floating[Any]]:
    """float16, or float32 where float16 would lose more than a thousandth (an untrained base's features underflow)."""
    rounded = np.clip(features, -65504, 65504).astype(np.float16).astype(np.float32)
    return np.float16 if np.linalg.norm(features - rounded) <= 1e-3 * np.linalg.norm(features) else np.float32


def compute_features(forward: Forward, inputs: Array, size: int | None = None) -> list[NDArray[np.float32]]:
    """The outputs of a compiled graph for one batch, float32; size: of the batch that it is computed in, filled up."""
    number = len(inputs)
    if size and number < size:
        inputs = np.concatenate([inputs, np.repeat(inputs[-1:], size - number, axis=0)])
    outputs = forward(ops.convert_to_tensor(inputs))
    return [np.asarray(ops.convert_to_numpy(output), np.float32)[:number] for output in outputs]
