"""Every picture that Frostline draws, as PNG files of about 900 pixels' width: the size at which MLflow shows them.

Colours are told apart by the colour-blind (Okabe and Ito 2008; cividis), and shapes say the same thing again.
"""

from frostline.figures.answers import confusion_matrix, coverage, reliability, roc_pr
from frostline.figures.evaluation import draw_evaluation
from frostline.figures.search import (
    draw_study,
    frost_line,
    importance,
    learning_curves,
    parallel_coordinates,
    search_history,
)
from frostline.figures.sheets import explanations, flips, mistakes, preview_sheet

__all__ = [
    "confusion_matrix",
    "coverage",
    "draw_evaluation",
    "draw_study",
    "explanations",
    "flips",
    "frost_line",
    "importance",
    "learning_curves",
    "mistakes",
    "parallel_coordinates",
    "preview_sheet",
    "reliability",
    "roc_pr",
    "search_history",
]
