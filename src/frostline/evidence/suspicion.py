"""Which labels look wrong: confident learning on predictions by networks that have not seen the image.

Source: Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70, 2021.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import ImageSplit, take_rows
from frostline.errors import Refused
from frostline.evidence.predictions import Predictions
from frostline.files import replacing

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Answer = Callable[[NDArray[np.uint8]], Floats]


@dataclass(frozen=True)
class Suspect:
    """One image with its label, and the label that the other images suggest.

    p_label, p_suggested: their probabilities; score: 0 where it surely is the suggested, 1 where it surely is what it is
    called; looks_wrong: by confident learning.
    """

    file: str
    split: str
    label: str
    suggested: str
    p_label: float
    p_suggested: float
    score: float
    looks_wrong: bool


@dataclass(frozen=True)
class Suspicion:
    """How many of num_images labels look wrong, tested of them in the test split.

    by_chance: how many would be found wrong among so many images taken at random, if all that look wrong are.
    """

    num_images: int
    looks_wrong: int
    tested: int
    by_chance: float


def find_suspects(known: Sequence[Predictions], splits: Mapping[str, ImageSplit], answer: Answer) -> list[Suspect]:
    """Every image of the splits, the most suspicious label first.

    known: predictions by networks that have not seen the images; answer: of a network that has seen none of the others, uint8
    images -> probabilities.
    """
    names = known[0].class_names
    tables = [*known, *_answer_missing(known, splits, answer)]
    if any(each.class_names != names for each in tables):
        raise ValueError("The tables of predictions have other classes.")
    labels = np.concatenate([each.labels for each in tables])
    probabilities = np.concatenate([np.asarray(each.probabilities, np.float64) for each in tables])
    files = [file for each in tables for file in each.files]
    places = {file: name for name, split in splits.items() for file in split.ids}
    scores, suggested = score_labels(labels, probabilities)
    wrong = find_confident(labels, probabilities)
    return [
        Suspect(
            files[row],
            places[files[row]],
            names[labels[row]],
            names[suggested[row]],
            float(probabilities[row, labels[row]]),
            float(probabilities[row, suggested[row]]),
            float(scores[row]),
            bool(wrong[row]),
        )
        for row in np.lexsort((np.array(files), scores)).tolist()
    ]


def _answer_missing(
    known: Sequence[Predictions], splits: Mapping[str, ImageSplit], answer: Answer
) -> Iterator[Predictions]:
    """Predictions on the images that no table has."""
    there = {file for each in known for file in each.files}
    for name, split in splits.items():
        rows = [row for row, file in enumerate(split.ids) if file not in there]
        if rows:
            files = tuple(split.ids[row] for row in rows)
            whole = len(rows) == len(split.ids)  # a split that is not held in memory
            answers = answer(split.images if whole else take_rows(split.images, np.array(rows)))
            yield Predictions(files, np.asarray(split.labels)[rows], answers, known[0].class_names, name)


def score_labels(labels: Labels, probabilities: Floats) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Of each image how sure its label is, float64 (num_images,), and the likeliest other label.

    The normalised margin of the source: the probability of the label minus that of the likeliest other one, put into 0 to 1.

    >>> scores, others = score_labels(np.array([0, 0]), np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]]))
    >>> scores.round(2).tolist(), others.tolist()
    ([0.9, 0.35], [1, 2])
    """
    rows = np.arange(len(labels))
    others = np.array(probabilities, np.float64)
    own = others[rows, labels]
    others[rows, labels] = -1.0
    suggested = others.argmax(axis=1)
    return (own - others[rows, suggested] + 1) / 2, suggested


def find_confident(labels: Labels, probabilities: Floats) -> NDArray[np.bool_]:
    """Whether each image belongs confidently to another class than its label says, (num_images,).

    Confidently: the probability is at least the mean one of that class among the images that are called so, which makes up
    for classes that a model is less sure of. Of several such classes the likeliest counts.
    """
    present = np.unique(labels)
    thresholds = np.full(probabilities.shape[1], np.inf)
    thresholds[present] = [probabilities[labels == label, label].mean() for label in present]
    sure = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.asarray((sure.max(axis=1) >= 0) & (sure.argmax(axis=1) != labels))


def sum_up(suspects: Sequence[Suspect]) -> Suspicion:
    """How many labels look wrong."""
    wrong = [each for each in suspects if each.looks_wrong]
    share = len(wrong) / max(1, len(suspects))
    return Suspicion(len(suspects), len(wrong), sum(each.split == "test" for each in wrong), len(wrong) * share)


def describe_suspicion(found: Suspicion) -> str:
    """What the labels look like, in a sentence or two."""
    if not found.looks_wrong:
        return f"None of {found.num_images} labels looks wrong."
    return (
        f"{found.looks_wrong} of {found.num_images} labels look wrong ({found.looks_wrong / found.num_images:.1%}), "
        f"{found.tested} of them in the test split; {found.looks_wrong} images taken at random would hold about "
        f"{found.by_chance:.1f} such. A hard image looks like a wrong label: a person has to look."
    )


def save_suspects(path: Path, suspects: Sequence[Suspect]) -> None:
    """Writes CSV, a row for each image, the most suspicious first."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Suspect)])
        for each in suspects:
            *words, p_label, p_suggested, score, wrong = astuple(each)
            numbers = [f"{value:.6g}" for value in (p_label, p_suggested, score)]
            writer.writerow([*words, *numbers, str(wrong).lower()])


def load_suspects(path: Path) -> list[Suspect]:
    """The rows of a table of `save_suspects`. Refused where there is none."""
    if not path.is_file():
        raise Refused(f"{path} is missing. `dvc repro` makes it.")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and set(rows[0]) != {field.name for field in fields(Suspect)}:
        raise Refused(f"{path} is of another version of Frostline. Run `dvc repro`.")
    return [
        Suspect(
            row["file"],
            row["split"],
            row["label"],
            row["suggested"],
            float(row["p_label"]),
            float(row["p_suggested"]),
            float(row["score"]),
            row["looks_wrong"] == "true",
        )
        for row in rows
    ]
