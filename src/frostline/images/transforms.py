"""The transforms that params.yaml declares, checked before they run. The home of Albumentations."""

import inspect
import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import albumentations as A
import numpy as np
from numpy.typing import NDArray

from frostline.errors import Refused, nearest

Transforms = Sequence[Mapping[str, Mapping[str, Any]]]
Pipeline = tuple[A.BasicTransform | A.BaseCompose, ...]


# --- what params.yaml says ------------------------------------------------------------------------------------------


def build_transforms(transforms: Transforms, image_size: int | None = None) -> Pipeline:
    """The transforms, ready to run; raises Refused with every problem in them (see `check_transforms`)."""
    check_transforms(transforms, image_size)
    return tuple(build_transform(name, arguments) for entry in transforms for name, arguments in entry.items())


def check_transforms(transforms: Transforms, image_size: int | None = None) -> None:
    """Raises Refused that lists every unknown transform, misspelt argument and impossible value.

    Albumentations only warns of most of these and goes on without them. With `image_size`, the transforms are tried one
    after the other, and refused if uint8 (image_size, image_size, 3) does not come out at their end.
    """
    problems = [
        problem for place, entry in enumerate(transforms) for problem in _problems_of(f"transforms[{place}]", entry)
    ]
    if not problems and image_size and transforms:
        problems = _problems_of_line(transforms, image_size)
    if problems:
        raise Refused(f"augment has {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(problems))


def build_transform(name: str, arguments: Mapping[str, Any]) -> A.BasicTransform | A.BaseCompose:
    kind = getattr(A, name)
    if issubclass(kind, A.BaseCompose):
        inner = [build_transform(*item) for entry in arguments["transforms"] for item in entry.items()]
        return kind(**{**arguments, "transforms": inner})
    return kind(**arguments)


def _problems_of(place: str, entry: Any) -> list[str]:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        return [f"{place}: expected one transform, {{Name: {{argument: value}}}}; given was {entry!r}"]
    ((name, arguments),) = entry.items()
    if name == "Lambda":
        return [f"{place}: Lambda takes functions of Python, which params.yaml cannot hold"]
    if name not in _names():
        return [f"{place}: unknown transform {name!r}{nearest(name, _names())}"]
    place, kind = f"{place}.{name}", getattr(A, name)
    if not isinstance(arguments, Mapping):
        return [f"{place}: expected {{argument: value}}; given was {arguments!r}"]
    allowed = [word for word in inspect.signature(kind).parameters if word != "self"]
    wrong = [argument for argument in arguments if argument not in allowed]
    if wrong:
        return [
            f"{place}: unknown argument {word!r}{nearest(word, allowed)}; allowed: {', '.join(allowed)}"
            for word in wrong
        ]
    if issubclass(kind, A.BaseCompose):
        inner = arguments.get("transforms")
        if not isinstance(inner, list) or not inner:
            return [f"{place}.transforms: expected a list of transforms; given was {inner!r}"]
        found = [text for at, each in enumerate(inner) for text in _problems_of(f"{place}.transforms[{at}]", each)]
        if found:
            return found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # As the recipe will hold it: what has no number or word for it could not be drawn again.
            json.dumps(A.to_dict(build_transform(name, arguments)), allow_nan=False)
    except Exception as error:  # whatever a transform raises is the user's to know
        return [f"{place}: {_shorten(error)}"]
    return []


def _problems_of_line(transforms: Transforms, image_size: int) -> list[str]:
    """What is wrong with the transforms as a whole: one that fails, or another shape or type at their end."""
    probe = np.random.default_rng(0).integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
    names = [f"transforms[{place}].{name}" for place, entry in enumerate(transforms) for name in entry]
    problems: dict[str, None] = {}
    for line in _lines_of(build_transforms(transforms)):
        image, changed = probe, ""
        for name, transform in zip(names, line, strict=True):
            before = image
            try:
                image = run_transforms((transform,), image, seed=0, force=True) if transform is not None else image
            except Exception as error:
                shape = "x".join(map(str, before.shape[:2]))
                problems[f"{name}: fails on an image of {shape}: {_shorten(error)}"] = None
                break
            if image.shape != before.shape or image.dtype != before.dtype:
                changed = name
        else:
            if image.shape != probe.shape or image.dtype != np.uint8:
                shape = "x".join(map(str, image.shape))
                problems[
                    f"{changed}: makes {shape} {image.dtype} of {image_size}x{image_size}x3 uint8, and no later one brings it back; a "
                    "view must keep its shape and type"
                ] = None
    return list(problems)


def _lines_of(pipeline: Pipeline) -> Iterator[tuple[Any, ...]]:
    """The ways in which a pipeline may run: all its transforms, each alternative, and each left out where it may be."""
    yield pipeline
    for place, transform in enumerate(pipeline):
        if isinstance(transform, (A.OneOf, A.SomeOf)):
            yield from ((*pipeline[:place], inner, *pipeline[place + 1 :]) for inner in transform.transforms)
        if transform.p < 1:
            yield (*pipeline[:place], None, *pipeline[place + 1 :])


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split("For further information")[0].split()) or type(error).__name__


def _names() -> list[str]:
    composed = {"OneOf", "SomeOf", "Sequential", "RandomOrder"}
    return [
        name
        for name, kind in vars(A).items()
        if inspect.isclass(kind) and (name in composed or (issubclass(kind, A.BasicTransform) and name[0] != "_"))
    ]


def run_transforms(
    pipeline: Pipeline, image: NDArray[np.uint8], seed: int, *, force: bool = False
) -> NDArray[np.uint8]:
    # One stream for all transforms. `Compose.set_random_seed` gives each transform the same seed, so that an image
    # would be brightened exactly when it is flipped; it is slower, too.
    drawn = np.random.Generator(np.random.PCG64(seed))
    drawn_by_python = random.Random(seed)
    image = np.array(image)  # some transforms write into what they get
    for transform in pipeline:
        transform.set_random_state(drawn, drawn_by_python)
        image = transform(image=image, force_apply=force)["image"]
    return image
