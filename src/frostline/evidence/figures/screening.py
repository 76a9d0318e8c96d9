"""The image of a screening: what each base is worth at each size, and what it costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frostline.evidence.figures.canvas import BLUE, GREY, VERMILION, sheet, shorten


def screening(rows: Sequence[Mapping[str, Any]], path: Path, *, num_images: int) -> None:
    """Log loss out of fold with one standard error, beside the images a second, the best on top.

    rows: in their order, {label, log_loss, error, images_per_second, equal: not told from the best}.
    """
    places = range(len(rows), 0, -1)
    height = 1.6 + 0.42 * len(rows)
    title = f"Which base, at which size: {num_images} images, five folds"
    with sheet(path, title, height, ncols=2, sharey=True, width_ratios=[3, 2]) as (_, (loss, pace)):
        for place, row in zip(places, rows, strict=True):
            colour = VERMILION if place == len(rows) else BLUE if row["equal"] else GREY
            loss.errorbar(row["log_loss"], place, xerr=row["error"], fmt="o", color=colour, capsize=3)
            pace.barh(place, row["images_per_second"], height=0.5, color=colour)
        loss.set_yticks(list(places), [shorten(row["label"], 40) for row in rows])
        loss.set_ylim(0.4, len(rows) + 0.6)
        loss.set_xlabel("log loss, out of fold (blue: not told from the best)")
        pace.set_xlabel("images per second")
