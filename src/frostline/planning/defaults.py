"""Values of `params.yaml` that suit a folder of images, each with its reason. Pure."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

TEST, VAL = 400, 300  # images that are enough to test on, and to rank trials on
# Images that are trained on, up to which so many epochs are: what a tail learns is a matter of steps.
EPOCHS = ((500, 12), (2_000, 8), (10_000, 5), (math.inf, 3))
FEW_TEST = 100  # images of the test split below which it tells little; promote.min_test_images by default
FEW_VAL = 20  # of each class
ACCURACY = 0.9  # for which uncertainties are told


class Setting(NamedTuple):
    """A value and why, in a few words that stand behind it."""

    value: Any
    reason: str


def choose_settings(num_files: int, splits: Mapping[str, int]) -> dict[str, Setting]:
    """By name as `params.yaml` nests them, for so many files and the folder's own splits ({} where it has none).

    >>> {name: setting.value for name, setting in choose_settings(800, {}).items()}
    {'prepare.test_share': 0.3, 'prepare.val_share': 0.2, 'tune.epochs': 12, 'augment.views': 12, 'tune.num_trials': 12}
    """
    chosen: dict[str, Setting] = {}
    trained = float(splits.get("train", num_files))
    if "test" not in splits and "validation" not in splits:
        share = _share(TEST, trained, 0.3)
        chosen["prepare.test_share"] = Setting(
            share, f"about {share * trained:.0f} images: {tell_width(share * trained)}"
        )
        trained *= 1 - share
    if "validation" not in splits:
        share = _share(VAL, trained, 0.2)
        chosen["prepare.val_share"] = Setting(share, "ranks the trials, and is trained on after that")
    epochs = next(number for limit, number in EPOCHS if trained * 0.8 < limit)
    chosen["tune.epochs"] = Setting(epochs, f"for about {trained:.0f} images that are trained on")
    chosen["augment.views"] = Setting(epochs, "as many as epochs: every epoch sees a fresh view")
    chosen["tune.num_trials"] = Setting(
        12 if trained < 10_000 else 8, "two linear heads, then tails of other depths and rates"
    )
    return chosen


def describe_splits(test: int, val: int, num_classes: int) -> list[str]:
    """What should be known of a test or validation split that is too small to tell much, a line each.

    >>> describe_splits(60, 400, 2)
    ['test: about 60 images, so that an accuracy of 0.9 is known to ±0.076; `promote` asks for 100']
    """
    lines = []
    if test < FEW_TEST:
        lines.append(f"test: about {test} images, so that {tell_width(test)}; `promote` asks for {FEW_TEST}")
    if val < FEW_VAL * num_classes:
        lines.append(
            f"val: about {val} images of {num_classes} classes, so that {tell_width(val)}: trials that are closer rank by chance. "
            "The final model is judged out of fold, on all images that it is trained on"
        )
    return lines


def _share(wanted: int, available: float, most: float) -> float:
    """The share, in steps of 0.05, that gives the wanted number; between 0.1 and `most`."""
    return round(min(most, max(0.1, math.ceil(20 * wanted / max(available, 1)) / 20)), 2)


def tell_width(num_images: float) -> str:
    """How exactly so many images tell an accuracy.

    >>> tell_width(240)
    'an accuracy of 0.9 is known to ±0.038'
    """
    width = 1.96 * math.sqrt(ACCURACY * (1 - ACCURACY) / max(num_images, 1))
    return f"an accuracy of {ACCURACY} is known to ±{width:.2g}"
