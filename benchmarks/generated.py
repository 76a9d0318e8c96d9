"""Generated images per second of one thread's processor time, at 96 px: the target set, the source family and its kinds.

    python benchmarks/generated.py

The first image of each source class is not counted: it searches the class's formula.
"""

import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.images.generated.sets import TARGET_CLASSES, draw_source, draw_target
from frostline.images.generated.source import ROUND
from frostline.seeding import derive_seed

SIZE = 96
NUM_SOURCE = 192
IMAGES = 768  # per line


def measure(draw: Callable[[int, int, int], NDArray[np.uint8]], labels: Sequence[int]) -> float:
    """Images per second, the classes in turn."""
    started = time.process_time()
    for number in range(IMAGES):
        draw(labels[number % len(labels)], derive_seed(9, number), SIZE)
    return IMAGES / (time.process_time() - started)


def main() -> None:
    cv2.setNumThreads(1)
    source = range(NUM_SOURCE)
    for label in source:
        draw_source(label, 0, SIZE)
    print(f"target {measure(draw_target, range(len(TARGET_CLASSES))):.0f}")
    print(f"source {measure(draw_source, source):.0f}")
    for kind in sorted(set(ROUND)):
        labels = [label for label in source if ROUND[label % len(ROUND)] == kind]
        print(f"  {kind} {measure(draw_source, labels):.0f}")


if __name__ == "__main__":
    main()
