"""Images drawn from formulas and seeds: a small target set to transfer to, a large source family to pre-train on."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.images.generated.source import draw_formula
from frostline.images.generated.target import THINGS, draw_thing
from frostline.seeding import derive_seed

TARGET_CLASSES: tuple[str, ...] = tuple(THINGS)
A_THING, A_PATTERN = "generated things", "generated patterns"


def draw_target(label: int, seed: int, size: int) -> NDArray[np.uint8]:
    """The image of `TARGET_CLASSES[label]` that belongs to `seed`: uint8 (size, size, 3), RGB."""
    name = TARGET_CLASSES[label]
    return draw_thing(name, np.random.default_rng(derive_seed(seed, "target", name)), size)


def write_target(folder: Path, images_per_class: int, size: int, seed: int) -> None:
    """Writes `folder/<class>/<number>.png`, `images_per_class` images of each of `TARGET_CLASSES`.

    An image depends on (seed, class, number, size) alone: a longer set begins with the shorter one.
    """
    for label, name in enumerate(TARGET_CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(images_per_class):
            image = draw_target(label, derive_seed(seed, number), size)
            path = folder / name / f"{number:05d}.png"
            if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
                raise OSError(f"{path} could not be written.")


def draw_source(label: int, seed: int, size: int) -> NDArray[np.uint8]:
    """The image of source class `label` (any number from 0 up) that belongs to `seed`: uint8 (size, size, 3), RGB."""
    if label < 0:
        raise ValueError(f"A source class is a number from 0 up; given was {label}.")
    return draw_formula(label, np.random.default_rng(derive_seed(seed, "source", label)), size)


def draw_strangers(count: int, size: int, seed: int) -> dict[str, NDArray[np.uint8]]:
    """Images that show nothing of what most people train on, by their name: uint8 (count, size, size, 3) each."""
    draws = {A_THING: (draw_target, len(TARGET_CLASSES)), A_PATTERN: (draw_source, count)}
    return {
        name: np.stack([draw(number % classes, derive_seed(seed, number), size) for number in range(count)])
        for name, (draw, classes) in draws.items()
    }


def target_digest() -> str:
    """The sha256 of a fixed sample of target images: what the generator draws, whatever its source text looks like."""
    return _digest(draw_target, len(TARGET_CLASSES))


def source_digest() -> str:
    """The sha256 of a fixed sample of source images."""
    return _digest(draw_source, 32)


def _digest(draw: Callable[[int, int, int], NDArray[np.uint8]], num_classes: int) -> str:
    sample = hashlib.sha256()
    for label in range(num_classes):
        for seed in range(4):
            sample.update(draw(label, seed, 96).tobytes())
    return sample.hexdigest()
