"""The table of a model's predictions: one row per image, so that two runs can be compared image by image."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.errors import Refused
from frostline.files import replacing

# The outputs of a model that also tells how familiar an image is; others have the probabilities alone.
PROBABILITIES, FAMILIARITY = "probabilities", "familiarity"
# Those of the model that final models are compared with: linear heads on the last cut and on every cut.
BASELINES = ("baseline", "every_cut")


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on one split.

    files: each image's path below the data; labels: int (num_images,); probabilities: float32
    (num_images, num_classes), columns in the order of class_names; familiarity: (num_images,), None where the model tells none.
    """

    files: tuple[str, ...]
    labels: NDArray[np.integer[Any]]
    probabilities: NDArray[np.floating[Any]]
    class_names: tuple[str, ...]
    split: str
    familiarity: NDArray[np.floating[Any]] | None = None

    @property
    def predicted(self) -> NDArray[np.intp]:
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.asarray(self.predicted == self.labels)


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Writes CSV with the columns file, label, prediction, p(<class>) for each class, correct, split, and familiarity if it is known."""
    names = predictions.class_names
    familiarity = predictions.familiarity
    more = [[]] * len(predictions.files) if familiarity is None else [[f"{value:.9g}"] for value in familiarity]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        last = [] if familiarity is None else [FAMILIARITY]
        writer.writerow(["file", "label", "prediction", *(f"p({name})" for name in names), "correct", "split", *last])
        told = (predictions.files, predictions.labels, predictions.predicted, predictions.probabilities, more)
        for name, label, prediction, row, rest in zip(*told, strict=True):
            # Nine digits bring a float32 back exactly.
            shown = [f"{value:.9g}" for value in row]
            right = str(bool(label == prediction)).lower()
            writer.writerow([name, names[label], names[prediction], *shown, right, predictions.split, *rest])


def load_predictions(path: Path) -> Predictions:
    """The predictions in a table of `save_predictions`. Refused where the file is no such table or has no rows."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = tuple(
        column[2:-1] for column in (rows[0] if rows else {}) if column.startswith("p(") and column.endswith(")")
    )
    if not rows or not names or not {"file", "label", "split"} <= set(rows[0]):
        raise Refused(f"{path.name} is no table of predictions: it needs rows with file, label, split and p(<class>).")
    place = {name: index for index, name in enumerate(names)}
    return Predictions(
        files=tuple(row["file"] for row in rows),
        labels=np.array([place[row["label"]] for row in rows]),
        probabilities=np.array([[row[f"p({name})"] for name in names] for row in rows], np.float32),
        class_names=names,
        split=rows[0]["split"],
        familiarity=np.array([row[FAMILIARITY] for row in rows], np.float32) if FAMILIARITY in rows[0] else None,
    )


def pick_mistakes(predictions: Predictions, count: int) -> NDArray[np.intp]:
    """The wrong predictions, the most confident first, at most `count` of them."""
    wrong = np.flatnonzero(~predictions.correct)
    order = np.argsort(-predictions.probabilities.max(axis=1)[wrong], kind="stable")
    return np.asarray(wrong[order][:count])


def pick_examples(predictions: Predictions, count: int) -> NDArray[np.intp]:
    """About half right predictions, spread evenly over the split, and half wrong ones, the most confident first."""
    wrong = pick_mistakes(predictions, count // 2)
    right = np.flatnonzero(predictions.correct)
    spread = np.linspace(0, len(right) - 1, min(count - len(wrong), len(right))).astype(int)
    return np.concatenate([right[spread], wrong])


def common_rows(before: Predictions, after: Predictions) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the files that both tables hold with the same label, in the order of `before`.

    Refused where the classes differ or there are no such files.
    """
    if set(before.class_names) != set(after.class_names):
        raise Refused(
            f"The two runs have other classes: {', '.join(before.class_names)}; {', '.join(after.class_names)}. "
            "Their predictions cannot be compared."
        )
    place = {name: row for row, name in enumerate(after.files)}
    pairs: Sequence[tuple[int, int]] = [
        (row, place[name])
        for row, name in enumerate(before.files)
        if name in place and before.class_names[before.labels[row]] == after.class_names[after.labels[place[name]]]
    ]
    if not pairs:
        raise Refused("The two runs were tested on other images: no file is in both tables.")
    rows = np.array(pairs, np.intp)
    return rows[:, 0], rows[:, 1]
