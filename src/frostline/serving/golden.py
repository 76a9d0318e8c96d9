"""Golden predictions: a few test images with the answers they got, stored with the version."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import load_split

COUNT = 16


def load_golden(
    predictions: Path, split: Path, classes: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Images uint8 (n, size, size, 3) and their probabilities float32 (n, num_classes), n at most 16.

    They are spread evenly over the split, as `evaluate` wrote them to predictions.csv; no choice is made by score.
    """
    test = load_split(split)
    place = {image_id: index for index, image_id in enumerate(test.ids)}
    with predictions.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"] in place]
    chosen = [rows[index] for index in np.linspace(0, len(rows) - 1, min(COUNT, len(rows))).astype(int)]
    images = np.stack([test.images[place[row["file"]]] for row in chosen])
    return images, np.array([[float(row[f"p({name})"]) for name in classes] for row in chosen], np.float32)
