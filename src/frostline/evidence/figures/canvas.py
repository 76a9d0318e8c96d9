"""The sheet that every image is drawn on: size, fonts, colours, and how it reaches the disk."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from frostline.files import replacing

WIDTH = 9.0  # inches at DPI dots each: 900 pixels
DPI = 100

# Okabe and Ito's colours, in the order of use; yellow is left out, it is lost on white.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#8A8A8A"

STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    # Class names are the user's: a "$" in one is no formula.
    "text.parse_math": False,
}


@contextmanager
def sheet(path: Path, title: str, height: float, **subplots: Any) -> Iterator[tuple[Figure, Any]]:
    """A titled figure with its axes, written to `path` as PNG when the block ends; the same numbers give the same bytes."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a user's matplotlibrc is for the user's own figures
        mpl.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(**subplots)
        figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
        yield figure, axes
        with replacing(path) as temporary:
            figure.savefig(temporary, metadata={"Software": None})


def shorten(text: str, length: int) -> str:
    """The text, its middle left out where it is longer than `length`."""
    if len(text) <= length:
        return text
    keep = length - 1
    return text[: keep - keep // 2] + "…" + text[len(text) - keep // 2 :]
