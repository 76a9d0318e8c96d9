"""What familiarity tells of images: of the test split's, which are ordinary, and of generated ones, which are strangers."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.evidence.comparison import Interval, wilson_interval
from frostline.evidence.predictions import Predictions
from frostline.images.generated.sets import A_THING, draw_strangers
from frostline.params import Params
from frostline.seeding import derive_seed

RARE = 0.05  # a familiarity that so many of a hundred ordinary images are below
COUNT = 100  # strangers of each set
Floats = NDArray[np.floating[Any]]
Predict = Callable[[NDArray[np.uint8]], tuple[Floats, Floats | None]]


@dataclass(frozen=True)
class Strangers:
    """below: share of the test images whose familiarity is below RARE; right_below, right_above: share of right answers among
    them and among the others, None where there are none; auroc: by set of strangers, how often one is less familiar than a
    test image."""

    below: Interval
    right_below: float | None
    right_above: float | None
    auroc: Mapping[str, float]

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def meet_strangers(test: Predictions, predict: Predict, size: int, params: Params) -> Strangers | None:
    """What the familiarity of the test images and of generated ones tells; None where the model tells none.

    predict: probabilities and familiarity of images, uint8 (num_images, size, size, 3).
    """
    if test.familiarity is None:
        return None
    drawn = draw_strangers(COUNT, size, derive_seed(params.seed, "strangers"))
    if params.fetch.source == "generated":
        del drawn[A_THING]  # these are what it is trained on
    return measure_strangers(test, {name: np.asarray(predict(images)[1]) for name, images in drawn.items()})


def measure_strangers(test: Predictions, strange: Mapping[str, Floats]) -> Strangers:
    """What the familiarity of the test images, and that of each set of strangers, tells."""
    assert test.familiarity is not None
    familiarity, right = test.familiarity, test.correct
    rare = familiarity < RARE
    return Strangers(
        below=wilson_interval(int(rare.sum()), len(rare)),
        right_below=float(right[rare].mean()) if rare.any() else None,
        right_above=float(right[~rare].mean()) if not rare.all() else None,
        auroc={name: auroc(familiarity, values) for name, values in strange.items()},
    )


def auroc(ordinary: Floats, strange: Floats) -> float:
    """How often one of `strange` is lower than one of `ordinary`, ties counted by half.

    >>> auroc(np.array([0.5, 0.9]), np.array([0.1, 0.5]))
    0.875
    """
    order = np.sort(ordinary)
    above = len(order) - (np.searchsorted(order, strange, "left") + np.searchsorted(order, strange, "right")) / 2
    return float(above.mean() / len(order))


def describe_strangers(found: Strangers | None) -> str:
    """What familiarity is, what it came to on the test split, and how well it tells generated images."""
    if found is None:
        return (
            "This model does not tell how familiar an image is: the base's features of these images vary no more than they "
            "are rounded. It answers with one of its classes whatever it is shown."
        )
    below = found.below
    text = (
        "Each answer has a familiarity from 0 to 1: the share of training images that lie farther from what the others span than "
        "this image does. Of ordinary images any familiarity is as likely; of something else it is near 0. "
        f"On the test split {below.value:.1%} [{below.low:.1%}, {below.high:.1%}] are below {RARE:g}"
    )
    if found.right_below is not None and found.right_above is not None:
        text += f"; of those {found.right_below:.1%} are answered right, of the others {found.right_above:.1%}"
    told = " and ".join(f"{name} {value:.3f}" for name, value in found.auroc.items())
    return (
        f"{text}. How often a stranger is less familiar than a test image (AUROC): {told}. Photographs of something else are "
        "harder to tell (docs/familiarity.md). The answer is one of the classes in any case."
    )
