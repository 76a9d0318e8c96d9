"""What a tail is trained on: stored features of one depth with their labels, read as they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import load_array, load_split, take_rows
from frostline.bases.base import Base
from frostline.bases.cuts import build_bridge
from frostline.bases.features import Forward, compute_features, depth_folder
from frostline.devices import compile_frozen
from frostline.files import require_complete

Array = NDArray[Any]


@dataclass(frozen=True)
class TrainingData:
    """Features of one depth.

    views: R arrays float16 (num_images, *shape), epoch e reads view e mod R; labels int32 (num_images,);
    val: float16 (num_val, *shape); class_weights: float32 (num_classes,).
    """

    views: Sequence[Array]
    labels: NDArray[np.int32]
    val: Array
    val_labels: NDArray[np.int32]
    class_weights: NDArray[np.float32]


class FeatureRows:
    """Features of one view at one depth, read from disk when they are asked for; stands in for an array.

    `len`, `shape`, `dtype`, and an index, a slice or a list of rows. With `bridge`, what is stored belongs to a cut
    below: the rows are computed from it, `batch_size` at a time.
    """

    def __init__(self, stored: Array, shape: tuple[int, ...], bridge: Forward | None = None, batch_size: int = 32):
        self._stored, self._bridge, self._batch_size = stored, bridge, batch_size
        self.shape, self.dtype = (len(stored), *shape), stored.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        if isinstance(rows, (int, np.integer)):
            return cast(Array, self[[rows]][0])
        taken = take_rows(self._stored, rows if isinstance(rows, slice) else np.asarray(rows))
        if self._bridge is None:
            return taken
        made = np.empty((len(taken), *self.shape[1:]), self.dtype)
        for start in range(0, len(taken), self._batch_size):
            part = slice(start, start + self._batch_size)
            made[part] = compute_features(self._bridge, taken[part].astype(np.float32))[0]
        return made

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype)


def load_training_data(
    folder: Path,
    prepared: Path,
    depth: int,
    class_weights: str,
    base: Callable[[], Base] | None = None,
    *,
    plain: bool = False,
) -> TrainingData:
    """The features of one depth with their labels; they stay on disk, and are read as they are asked for.

    All views that `extract` stored, or with `plain` the first one alone. `base` is built where the depth is not stored but computed
    from a cut below.
    """
    facts = require_complete(folder)
    source = depth if depth in facts.get("stored", [depth]) else min(d for d in facts["stored"] if d > depth)
    at = depth_folder(folder, source)
    first = load_array(at / "val.npy")
    bridge, shape = None, first.shape[1:]
    if source != depth:
        assert base is not None, f"depth {depth} is computed from depth {source}: the base is needed"
        model = build_bridge(base(), source, depth)
        bridge, shape = compile_frozen(model), tuple(model.outputs[0].shape[1:])
    train, val = load_split(prepared / "train"), load_split(prepared / "val")
    labels, val_labels = np.array(train.labels), np.array(val.labels)
    num_classes = int(max(labels.max(), val_labels.max())) + 1
    names = [f"view-{view:03d}" for view in range(1 if plain else facts["views"])]
    views = [FeatureRows(load_array(at / f"{name}.npy"), shape, bridge) for name in names]
    return TrainingData(
        views=cast(list[Array], views),
        labels=labels,
        val=cast(Array, FeatureRows(first, shape, bridge)),
        val_labels=val_labels,
        class_weights=make_class_weights(labels, num_classes, class_weights),
    )


def make_class_weights(labels: NDArray[np.int32], num_classes: int, kind: str) -> NDArray[np.float32]:
    """A weight per class: ones ("none") or num_images / (num_classes * count) ("balanced", as in scikit-learn)."""
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.ones(num_classes) if kind == "none" else len(labels) / (num_classes * np.maximum(counts, 1))
    return weights.astype(np.float32)
