"""Views of the training pictures, made by Albumentations; each depends on (seed, image id, view number) alone."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import albumentations as A
import numpy as np
from numpy.typing import NDArray

from frostline.process import Refused
from frostline.seeding import derive_seed

Transforms = Sequence[Mapping[str, Mapping[str, Any]]]


def build_transforms(transforms: Transforms) -> A.Compose:
    """The transforms as one pipeline; raises Refused with every problem in them."""
    check_transforms(transforms)
    return _build(transforms)


def check_transforms(transforms: Transforms) -> None:
    """Raises Refused that lists every unknown transform, misspelt argument and impossible value."""
    problems = [problem for place, entry in enumerate(transforms) for problem in _problems_of(place, entry)]
    if problems:
        raise Refused(f"augment.transforms has {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(problems))


def view_seed(seed: int, image_id: str, view: int) -> int:
    """The seed of one view of one picture."""
    return derive_seed(seed, "augment", image_id, view)


def make_view(image: NDArray[np.uint8], pipeline: A.Compose, seed: int) -> NDArray[np.uint8]:
    """One view of `image`, uint8 of the same shape; equal for equal seeds."""
    pipeline.set_random_seed(seed)
    view: NDArray[np.uint8] = pipeline(image=image)["image"]
    return view


def _build(transforms: Transforms) -> A.Compose:
    # Strict turns what Albumentations merely warns of into an error.
    return A.Compose([getattr(A, name)(**arguments) for entry in transforms for name, arguments in entry.items()])


def _problems_of(place: int, entry: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    if len(entry) != 1:
        return [f"transforms[{place}]: one transform per entry; given were {', '.join(entry) or 'none'}"]
    for name, arguments in entry.items():
        kind = getattr(A, name, None)
        if not (inspect.isclass(kind) and issubclass(kind, A.BasicTransform)):
            problems.append(f"transforms[{place}]: unknown transform {name!r}{_nearest(name, _names())}")
            continue
        allowed = list(inspect.signature(kind.__init__).parameters)[1:]
        wrong = [argument for argument in arguments if argument not in allowed]
        for argument in wrong:
            problems.append(f"transforms[{place}].{name}: unknown argument {argument!r}{_nearest(argument, allowed)}; allowed: {', '.join(allowed)}")
        if not wrong:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    kind(**arguments)
            except (ValueError, TypeError, UserWarning) as error:
                problems.append(f"transforms[{place}].{name}: {' '.join(str(error).split())}")
    return problems


def _names() -> list[str]:
    return [name for name, kind in vars(A).items() if inspect.isclass(kind) and issubclass(kind, A.BasicTransform)]


def _nearest(word: str, allowed: Sequence[str]) -> str:
    close = get_close_matches(word, allowed, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
