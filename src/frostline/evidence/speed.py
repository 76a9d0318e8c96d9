"""How fast a model answers on the machine that asks, and how large it is."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import Rows, take_rows
from frostline.process import count_cores

BATCH = 32
WARM_UP, ALONE, BATCHES = 2, 100, 10  # answers before what is timed, single images that are, and batches
ENOUGH_S, LEAST = 2.0, 5  # seconds after which no more are asked for, once there are so many


@dataclass(frozen=True)
class Speed:
    """p50_ms, p95_ms: of one decoded image; images_per_s: in batches of BATCH; bytes: of the file; cores: of the machine."""

    p50_ms: float
    p95_ms: float
    images_per_s: float
    bytes: int
    cores: int


def measure_speed(answer: Callable[[NDArray[np.uint8]], Any], images: Rows, file: Path) -> Speed:
    """The speed of a model, kept in `file`, that answers to uint8 images (num_images, size, size, 3)."""
    p50, p95 = np.percentile(time_answers(answer, images, 1, ALONE, ENOUGH_S), [50, 95])
    rate = BATCH / float(np.median(time_answers(answer, images, BATCH, BATCHES, ENOUGH_S)))
    return Speed(1000 * float(p50), 1000 * float(p95), rate, file.stat().st_size, count_cores())


def time_answers(
    answer: Callable[[NDArray[np.uint8]], Any], images: Rows, size: int, number: int, enough_s: float = math.inf
) -> list[float]:
    """Seconds of each of so many answers to `size` images, walking round them; compiling is left out.

    Of at least LEAST answers no more than take `enough_s`.
    """
    seconds: list[float] = []
    for turn in range(-WARM_UP, number):
        if turn >= LEAST and sum(seconds[WARM_UP:]) >= enough_s:
            break
        batch = take_rows(images, (turn * size + np.arange(size)) % len(images))
        started = time.perf_counter()
        answer(batch)
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]


def describe_speed(speed: Speed) -> str:
    """What a reader of a card wants to know of it."""
    return (
        f"One decoded image takes {speed.p50_ms:.1f} ms (median; 95 % within {speed.p95_ms:.1f} ms), batches of {BATCH} "
        f"{speed.images_per_s:.0f} images/s, on the machine that evaluated it ({speed.cores} cores). The file has "
        f"{speed.bytes / 1e6:.1f} MB."
    )
