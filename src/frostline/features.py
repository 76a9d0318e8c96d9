"""Features on disk: what the frozen prefix makes of every view, computed once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from frostline.arrays import ArrayWriter, load_array, load_split, require_complete
from frostline.backbones import Base, build_prefix
from frostline.devices import compile_frozen
from frostline.training import TrainingData, make_class_weights


def depth_folder(folder: Path, depth: int) -> Path:
    """Where the features for `depth` unfrozen blocks are."""
    return folder / f"depth-{depth:02d}"


def extract_views(
    base: Base,
    depths: Sequence[int],
    pooling: str,
    sources: Mapping[str, NDArray[np.uint8]],
    folder: Path,
    batch_size: int,
) -> Iterator[str]:
    """Writes the features of every source at every depth, one pass over its pictures; yields each name when done.

    sources: name -> uint8 (num_images, size, size, 3), e.g. "view-003" or "val". Writes
    `depth-DD/<name>.npy`, float16 or float32 (num_images, *feature shape). A source whose files all exist is passed over, so a
    killed extraction goes on where it was.
    """
    prefix = build_prefix(base, depths, None if pooling == "flatten" else pooling)
    forward = compile_frozen(prefix)
    shapes = [tuple(tensor.shape[1:]) for tensor in prefix.outputs]
    first = next(iter(sources.values()))
    dtypes = [choose_dtype(values) for values in _values(forward, first[:batch_size])]
    for name, images in sources.items():
        paths = [depth_folder(folder, depth) / f"{name}.npy" for depth in depths]
        if not all(path.is_file() for path in paths):
            with ExitStack() as stack:
                writers = [
                    stack.enter_context(ArrayWriter(path, (len(images), *shape), dtype))
                    for path, shape, dtype in zip(paths, shapes, dtypes, strict=True)
                ]
                for start in range(0, len(images), batch_size):
                    batch = _values(forward, images[start : start + batch_size])
                    for writer, values in zip(writers, batch, strict=True):
                        limit = np.finfo(writer.dtype).max  # kept as the largest number, not as infinity
                        writer.append(np.clip(values, -limit, limit))
        yield name


def choose_dtype(features: NDArray[np.float32]) -> type[np.floating[Any]]:
    """float16, or float32 where float16 would lose more than a thousandth (an untrained base's features underflow)."""
    rounded = np.clip(features, -65504, 65504).astype(np.float16).astype(np.float32)
    return np.float16 if np.linalg.norm(features - rounded) <= 1e-3 * np.linalg.norm(features) else np.float32


def _values(forward: Callable[[Any], list[Any]], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    outputs = forward(ops.convert_to_tensor(np.asarray(images)))
    return [np.asarray(ops.convert_to_numpy(output), np.float32) for output in outputs]


def load_training_data(folder: Path, prepared: Path, depth: int, num_views: int, class_weights: str) -> TrainingData:
    """The stored features of one depth with their labels; the features stay on disk, memory-mapped."""
    require_complete(folder)
    at = depth_folder(folder, depth)
    train, val = load_split(prepared / "train"), load_split(prepared / "val")
    labels, val_labels = np.array(train.labels), np.array(val.labels)
    num_classes = int(max(labels.max(), val_labels.max())) + 1
    return TrainingData(
        views=[load_array(at / f"view-{view:03d}.npy") for view in range(num_views)],
        labels=labels,
        val=load_array(at / "val.npy"),
        val_labels=val_labels,
        class_weights=make_class_weights(labels, num_classes, class_weights),
    )
