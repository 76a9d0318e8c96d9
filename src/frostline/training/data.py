"""What a tail is trained on: stored features of one depth with their labels, read as they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import ALL, GROUPS, LEFT_OUT, USE, load_array, load_groups, load_labels, take_rows
from frostline.bases.base import Base
from frostline.bases.cuts import build_bridge
from frostline.bases.features import MIRROR, PLAIN, POOLED, Forward, compute_features, depth_folder
from frostline.devices import compile_frozen
from frostline.files import require_complete
from frostline.seeding import derive_seed

Array = NDArray[Any]


class FeatureRows:
    """Features of one view, read from disk when they are asked for; stands in for an array.

    A row is the map of the depth, flat, and behind it columns `first` to `last` of the pooled cuts. `len`, `shape`, `dtype`,
    and an index, a slice or a list of rows. maps: None at depth 0. With `bridge`, the stored map belongs to a cut below: the
    wanted one is computed from it, `batch_size` images at a time.
    """

    def __init__(
        self,
        pooled: Array,
        columns: slice,
        maps: Array | None = None,
        map_shape: tuple[int, ...] = (),
        bridge: Forward | None = None,
        batch_size: int = 32,
    ) -> None:
        self._pooled, self._columns, self._maps = pooled, columns, maps
        self._map_shape, self._bridge, self._batch_size = map_shape, bridge, batch_size
        width = len(range(*columns.indices(pooled.shape[1])))
        self.map_size = int(np.prod(map_shape)) if maps is not None else 0
        self.shape = (len(pooled), self.map_size + width)
        self.dtype = pooled.dtype if maps is None else np.result_type(pooled.dtype, maps.dtype)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Array:
        if isinstance(rows, (int, np.integer)):
            single: Array = self[[rows]][0]
            return single
        wanted = rows if isinstance(rows, slice) else np.asarray(rows)
        pooled = take_rows(self._pooled, wanted)[:, self._columns]
        if self._maps is None:
            return pooled
        row = np.empty((len(pooled), self.shape[1]), self.dtype)
        row[:, self.map_size :] = pooled
        maps = take_rows(self._maps, wanted)
        if self._bridge is None:
            row[:, : self.map_size] = maps.reshape(len(maps), -1)
        else:
            for start in range(0, len(maps), self._batch_size):
                part = slice(start, start + self._batch_size)
                made = compute_features(self._bridge, maps[part].astype(np.float32))[0]
                row[part, : self.map_size] = made.reshape(len(made), -1)
        return row

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype)


Features = FeatureRows | Array


@dataclass(frozen=True)
class TrainingData:
    """Features of one depth, and which of them are trained on.

    views: R arrays (num_images, num_columns), of which epoch e reads number e mod R; the first is the plain image. mirror:
    the mirrored plain image, or None. labels: int32 (num_images,), in the order train, val; train, held_out: rows that are
    trained on, and rows whose plain image judges, no near duplicates of those; class_weights: float32 (num_classes,).
    """

    views: Sequence[Features]
    mirror: Features | None
    labels: NDArray[np.int32]
    train: NDArray[np.intp]
    held_out: NDArray[np.intp]
    class_weights: NDArray[np.float32]

    def split(self, train: NDArray[np.intp], held_out: NDArray[np.intp]) -> "TrainingData":
        """The same features with other rows to train on."""
        return replace(self, train=train, held_out=held_out)


def load_features(
    folder: Path,
    depth: int,
    columns: slice,
    base: Callable[[], Base],
    take: Callable[[str], None] | None = None,
) -> dict[str, FeatureRows]:
    """The features of one depth by view, PLAIN first; see FeatureRows.

    columns: of the pooled cuts. `base` is built where the depth's map is not stored but computed from a cut below. take: brings
    the folder of this name among the features, where they lie elsewhere.
    """
    facts = require_complete(folder)
    names = sorted(path.stem for path in (folder / POOLED).glob("*.npy"))
    names = [name for name in names if name != MIRROR] + [name for name in names if name == MIRROR]
    pooled = {name: load_array(folder / POOLED / f"{name}.npy") for name in names}
    if depth == 0 and columns != slice(0, 0):  # a pooled head sees columns alone
        return {name: FeatureRows(rows, columns) for name, rows in pooled.items()}
    source = depth if depth in facts["stored"] else min(stored for stored in facts["stored"] if stored > depth)
    if take:
        take(depth_folder(source))
    maps = {name: load_array(folder / depth_folder(source) / f"{name}.npy") for name in names}
    bridge, shape = None, maps[PLAIN].shape[1:]
    if source != depth:
        model = build_bridge(base(), source, depth)
        bridge, shape = compile_frozen(model), tuple(model.outputs[0].shape[1:])
    return {name: FeatureRows(pooled[name], columns, maps[name], shape, bridge) for name in names}


@dataclass(frozen=True)
class SplitRows:
    """Which rows of the stored features, train and then val, are used for what; groups: int64 (num_images,), near duplicates
    share one.

    train, val: in the search; both: in the final training; num_train: rows of the whole train.
    """

    groups: NDArray[np.int64]
    train: NDArray[np.intp]
    val: NDArray[np.intp]
    both: NDArray[np.intp]
    num_train: int


def load_rows(features: Path, prepared: Path) -> SplitRows:
    """The rows that near duplicates leave: a test image's are not used, those in train of one that judges not in the search.

    Where `extract` has not looked for any, all are used, in the groups that `prepare` found.
    """
    train, val = (load_groups(prepared / split) for split in ("train", "val"))
    groups, num_train = np.concatenate([train, val]), len(train)
    use = np.full(len(groups), ALL, np.uint8)
    if (features / USE).is_file():
        groups, use = np.asarray(load_array(features / GROUPS)), load_array(features / USE)
    both, is_train = np.flatnonzero(use != LEFT_OUT), np.arange(len(use)) < num_train
    return SplitRows(groups, np.flatnonzero(is_train & (use == ALL)), both[both >= num_train], both, num_train)


def load_training_data(
    features: dict[str, FeatureRows], rows: SplitRows, prepared: Path, class_weights: str, num_classes: int
) -> TrainingData:
    """The features with the labels of train and val: trained on train, judged on val."""
    labels = np.concatenate([load_labels(prepared / split) for split in ("train", "val")])
    return TrainingData(
        views=[view for name, view in features.items() if name != MIRROR],
        mirror=features.get(MIRROR),
        labels=labels,
        train=rows.train,
        held_out=rows.val,
        class_weights=make_class_weights(labels[rows.train], num_classes, class_weights),
    )


def make_class_weights(labels: NDArray[np.int32], num_classes: int, kind: str) -> NDArray[np.float32]:
    """A weight per class: ones ("none") or num_images / (num_classes * count) ("balanced", as in scikit-learn)."""
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.ones(num_classes) if kind == "none" else len(labels) / (num_classes * np.maximum(counts, 1))
    return weights.astype(np.float32)


def draw_folds(labels: NDArray[np.int32], groups: NDArray[np.int64], num_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each image, (num_images,): stratified by class, a group (near duplicates) never in two.

    The groups of a class are dealt out in an order that depends on the seed and on each group's number alone, the next one
    always to the fold that has the fewest images of its class. No fold is empty: fewer groups make fewer folds.

    >>> draw_folds(np.array([0, 0, 1, 1, 0, 1]), np.array([0, 1, 2, 3, 1, 5]), 2, 7).tolist().count(0)
    3
    """
    folds = np.full(len(labels), -1, np.int64)
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    num_folds = min(num_folds, len(members))
    counts = np.zeros((num_folds, int(labels.max()) + 1), int)
    # Large groups first: they find the folds still even.
    order = sorted(members, key=lambda group: (-len(members[group]), derive_seed(seed, "fold", group)))
    for group in order:
        rows = members[group]
        own = np.bincount(labels[rows], minlength=counts.shape[1])
        fold = min(range(num_folds), key=lambda each: ((counts[each] * (own > 0)).sum(), counts[each].sum(), each))
        folds[rows] = fold
        counts[fold] += own
    return folds
