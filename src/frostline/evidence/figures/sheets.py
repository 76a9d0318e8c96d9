"""Sheets of images: views, mistakes, explanations, flips. Images are uint8 (num_images, size, size, 3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from frostline.evidence.figures.canvas import BLUE, VERMILION, sheet, shorten

Images = NDArray[np.uint8]
Array = NDArray[Any]


def preview_sheet(views: Images, captions: Sequence[str], path: Path) -> None:
    """One row per image, one column per view; view 0 is the plain image.

    views: uint8 (num_images, num_views, size, size, 3); captions: one per image, such as its class.
    """
    num_images, num_views, size = views.shape[:3]
    step = size + max(1, size // 20)
    # One picture, not one for each view: to lay out 64 of them takes seconds.
    mosaic = np.full((num_images * step, num_views * step, 3), 255, np.uint8)
    for row, column in np.ndindex(num_images, num_views):
        mosaic[row * step : row * step + size, column * step : column * step + size] = views[row, column]
    title = f"Views of {num_images} training images"
    with sheet(path, title, 0.6 + num_images * (8.6 / num_views)) as (_, axes):
        _show(axes, mosaic[: size - step, : size - step])
        names = ["plain", *(f"view {view}" for view in range(1, num_views))]
        axes.set_xticks(np.arange(num_views) * step + size / 2, names)
        names = [shorten(caption, max(6, 100 // num_views)) for caption in captions]
        axes.set_yticks(np.arange(num_images) * step + size / 2, names, rotation=90, va="center")
        axes.tick_params(length=0, labelsize=10, top=False, labeltop=True, labelbottom=False)
        axes.grid(visible=False)


def mistakes(
    images: Images, labels: Array, probabilities: Array, ids: Sequence[str], class_names: Sequence[str], path: Path
) -> None:
    """The wrong answers in `images`, the most confident first; each with its truth, its answer and both probabilities.

    The caller chooses the images; see `worst_mistakes`.
    """
    answers = probabilities.argmax(axis=1)
    lines = [
        (
            f"is {class_names[label]}: {row[label]:.1%}",
            f"said {class_names[answer]}: {row[answer]:.1%}",
            Path(name).name,
        )
        for label, answer, row, name in zip(labels, answers, probabilities, ids, strict=True)
    ]
    _gallery(images, lines, path, "The worst mistakes: wrong and sure of it", "No mistakes on the test images.")


def suspects(images: Images, lines: Sequence[Sequence[str]], path: Path) -> None:
    """Images whose labels look wrong, the most suspicious first. lines: of each its label, what is suggested, its file."""
    _gallery(images, lines, path, "Labels that look wrong", "No label looks wrong.")


def flips(
    images: Images,
    labels: Array,
    before: tuple[str, Array],
    after: tuple[str, Array],
    ids: Sequence[str],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Images on which two runs disagree; before, after: (name of the run, its predicted labels)."""
    lines = [
        (
            ("mended: " if new == label else "broken: " if old == label else "both wrong: ") + class_names[label],
            f"{class_names[old]} → {class_names[new]}",
            Path(name).name,
        )
        for label, old, new, name in zip(labels, before[1], after[1], ids, strict=True)
    ]
    title = f"Predictions that changed from {shorten(before[0], 28)} to {shorten(after[0], 28)}"
    _gallery(images, lines, path, title, "No answer changed.", good=[line[0].startswith("mended") for line in lines])


def explanations(
    images: Images,
    heatmaps: Array,
    labels: Array,
    probabilities: Array,
    ids: Sequence[str],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Pairs of an image and what its answer rests on (Grad-CAM), right answers first, then wrong ones.

    heatmaps: float (num_images, size, size), 0 to 1.
    """
    answers = probabilities.argmax(axis=1)
    order = np.argsort(answers != labels, kind="stable")
    pairs = 3
    rows = max(1, -(-len(order) // pairs))
    grid = {"nrows": rows, "ncols": 2 * pairs, "squeeze": False}
    title = "What the answers rest on (Grad-CAM): right answers, then wrong ones"
    with sheet(path, title, 0.7 + 2.0 * rows, **grid) as (_, axes):
        for cell in axes.ravel():
            cell.axis("off")
        for place, index in enumerate(order):
            plain, mapped = (axes[place // pairs, 2 * (place % pairs) + side] for side in (0, 1))
            right = answers[index] == labels[index]
            _show(plain, images[index])
            _show(mapped, overlay(images[index], heatmaps[index]))
            _frame(mapped, BLUE if right else VERMILION)
            said = f"{shorten(class_names[answers[index]], 16)} {probabilities[index].max():.0%}"
            plain.set_title(f"is {shorten(class_names[labels[index]], 16)}", fontsize=9, loc="left")
            mapped.set_title(
                ("✓ " if right else "✗ ") + said, fontsize=9, loc="left", color=BLUE if right else VERMILION
            )
            plain.set_xlabel(shorten(Path(ids[index]).name, 20), fontsize=8)


def overlay(image: Images, heatmap: Array) -> Images:
    """The image (size, size, 3) in grey under its heat map (size, size; 0 to 1) in colour."""
    grey = image.mean(axis=2, keepdims=True)
    colour = mpl.colormaps["inferno"](heatmap)[..., :3] * 255
    strength = 0.25 + 0.5 * heatmap[..., None]
    return np.asarray((1 - strength) * grey + strength * colour).clip(0, 255).astype(np.uint8)


def _gallery(
    images: Images,
    lines: Sequence[Sequence[str]],
    path: Path,
    title: str,
    empty: str,
    good: Sequence[bool] | None = None,
) -> None:
    columns = 6
    rows = max(1, -(-len(images) // columns))
    with sheet(path, title, 0.7 + 2.05 * rows, nrows=rows, ncols=columns, squeeze=False) as (figure, axes):
        for cell in axes.ravel():
            cell.axis("off")
        if not len(images):
            figure.text(0.5, 0.4, empty, ha="center", fontsize=13)
        for index, image in enumerate(images):
            cell = axes.ravel()[index]
            _show(cell, image)
            _frame(cell, BLUE if good is not None and good[index] else VERMILION)
            cell.set_title("\n".join(shorten(line, 21) for line in lines[index][:2]), fontsize=9, loc="left")
            cell.set_xlabel(shorten(lines[index][2], 20), fontsize=8)


def _show(axes: Any, image: Images) -> None:
    axes.axis("on")
    axes.imshow(image, interpolation="nearest" if image.shape[0] < 64 else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _frame(axes: Any, colour: str) -> None:
    axes.spines[:].set(visible=True, color=colour, linewidth=2)
