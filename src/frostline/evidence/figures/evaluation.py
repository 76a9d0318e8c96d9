"""All images of one evaluation, from the predictions alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import ImageSplit
from frostline.evidence import calibration
from frostline.evidence.evaluation import Evaluation
from frostline.evidence.figures.predictions import confusion_matrix, coverage, reliability, roc_pr
from frostline.evidence.figures.sheets import explanations, mistakes
from frostline.evidence.figures.sheets import suspects as draw_gallery
from frostline.evidence.predictions import Predictions, pick_mistakes
from frostline.evidence.suspicion import Suspect


def draw_evaluation(
    predictions: Predictions,
    evaluation: Evaluation,
    images: NDArray[np.uint8],
    examples: NDArray[np.intp],
    heatmaps: NDArray[np.float32],
    folder: Path,
    *,
    worst: int,
) -> list[Path]:
    """Draws all that an evaluation shows into `folder` and returns the files, in the order a person would look.

    images: the whole split, uint8 (num_images, size, size, 3), may be
    memory-mapped; examples: rows that `heatmaps` explain; worst: how many mistakes are shown.
    """
    labels, probabilities, names = predictions.labels, predictions.probabilities, predictions.class_names
    order = ("confusion_matrix", "mistakes", "explanations", "reliability", "coverage", "roc_pr")
    files = {name: folder / f"{name}.png" for name in order}
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predictions.predicted), 1)
    confusion_matrix(counts, names, files["confusion_matrix"])
    for name, rows in (("mistakes", pick_mistakes(predictions, worst)), ("explanations", examples)):
        ids = [predictions.files[row] for row in rows]
        shown = np.stack([images[row] for row in rows]) if len(rows) else images[:0]
        if name == "mistakes":
            mistakes(shown, labels[rows], probabilities[rows], ids, names, files[name])
        else:
            explanations(shown, heatmaps, labels[rows], probabilities[rows], ids, names, files[name])
    scaled = evaluation.calibration
    before = calibration.apply_temperature(probabilities, 1 / evaluation.temperature)
    reliability(
        calibration.reliability(labels, before),
        calibration.reliability(labels, probabilities),
        files["reliability"],
        ece=(scaled["before"]["ece"], scaled["after"]["ece"]),
        temperature=evaluation.temperature,
        floor=evaluation.score("ece").more["floor"],
    )
    coverage(labels, probabilities, files["coverage"])
    roc_pr(labels, probabilities, names, files["roc_pr"])
    return list(files.values())


def draw_suspects(suspects: Sequence[Suspect], splits: Mapping[str, ImageSplit], path: Path, *, count: int) -> None:
    """Draws at most `count` of the images whose labels look wrong, the most suspicious first."""
    shown = [each for each in suspects if each.looks_wrong][:count]
    lines = [
        (
            f"called {each.label}: {each.p_label:.1%}",
            f"like {each.suggested}: {each.p_suggested:.1%}",
            Path(each.file).name,
        )
        for each in shown
    ]
    rows = {file: (name, row) for name, split in splits.items() for row, file in enumerate(split.ids)}
    found = [splits[name].images[row] for name, row in (rows[each.file] for each in shown)]
    images = np.stack(found) if found else np.zeros((0, 1, 1, 3), np.uint8)
    draw_gallery(images, lines, path)
