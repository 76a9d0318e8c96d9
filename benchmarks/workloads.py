"""What the search benchmarks share: workloads, the one list of trials, the images and the base, FLOPs by formula, clocks."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Heavy libraries are imported inside functions: the processes that draw views import this file again.

TRANSFORMS: list[dict[str, dict[str, Any]]] = [
    {"HorizontalFlip": {"p": 0.5}},
    {
        "Affine": {
            "scale": [0.8, 1.2],
            "rotate": [-20, 20],
            "translate_percent": [-0.1, 0.1],
            "border_mode": 4,
            "p": 0.8,
        }
    },
    {"RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5}},
]
DROPOUT = (0.0, 0.6)
LEARNING_RATE = (1e-4, 1e-3)


@dataclass(frozen=True)
class Workload:
    """One search. `per_class`: training images per class, all where None; validation likewise."""

    name: str
    base: str
    weights: str
    image_size: int
    output_layer: str | None
    depths: tuple[int, ...]
    num_trials: int
    epochs: int = 8
    views: int = 8
    batch_size: int = 32
    per_class: int | None = None
    val_per_class: int | None = None


MOBILENET = ("MobileNetV2", "weights/mobilenet_v2_100/mobilenet_v2_100_notop.weights.h5", 160, None)
INCEPTION = ("InceptionV3", "weights/inception_v3/inception_v3_mixed8.weights.h5", 150, "mixed8")
WORKLOADS = {
    "W1": Workload("W1", *MOBILENET, depths=(0, 1, 2, 3), num_trials=12),
    "W2": Workload("W2", *INCEPTION, depths=(0, 1, 2, 3), num_trials=12),
    "W3": Workload("W3", *MOBILENET, depths=(0,), num_trials=50),
}


@dataclass(frozen=True)
class Trial:
    """What every system tries; one learning rate for head and suffix, as in the tutorials."""

    depth: int
    dropout: float
    learning_rate: float


def draw_trials(work: Workload, seed: int) -> list[Trial]:
    """The list of all systems, depths in turn."""
    rng = np.random.default_rng(seed)
    low, high = np.log(LEARNING_RATE)
    return [
        Trial(work.depths[i % len(work.depths)], float(rng.uniform(*DROPOUT)), float(np.exp(rng.uniform(low, high))))
        for i in range(work.num_trials)
    ]


def list_files(folder: Path, per_class: int | None) -> list[tuple[str, int]]:
    """(path, label) of the first images of every class folder."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    return [
        (str(path), label)
        for label, one in enumerate(classes)
        for path in sorted(path for path in one.iterdir() if path.is_file())[:per_class]
    ]


class Sources:
    """What all systems share: the files, and the base with its weights (whose reading is charged to nobody)."""

    def __init__(self, work: Workload, shared: Path) -> None:
        self.work, self.shared = work, shared
        folder = shared / "data" / "cats_vs_dogs"
        self.train = list_files(folder / "train", work.per_class)
        self.val = list_files(folder / "validation", work.val_per_class)

    @cached_property
    def base(self) -> Any:
        from frostline.bases.base import build_base

        work = self.work
        weights = self.shared / work.weights
        return build_base(work.base, work.image_size, output_layer=work.output_layer, weights=weights)

    @property
    def num_prefix(self) -> int:
        """Images that go through the frozen prefix: all views of `train`, plain `val`, and both mirrored."""
        num, val = len(self.train), len(self.val)
        return num * self.work.views + val + (num + val if self.work.views > 1 else 0)

    def costs(self) -> "Costs":
        """Forward FLOPs of the base, its prefixes and a head of two classes."""
        from frostline.bases.cost import flops_of

        found = flops_of(self.base)
        head = 2 * self.base.cuts[0].shape[-1] * 2
        return Costs(found["total"], {depth: found["prefix"][depth] for depth in self.work.depths}, head)


@dataclass(frozen=True)
class Costs:
    """Forward FLOPs per image: the whole base, the frozen prefix of each depth, the head."""

    total: int
    prefix: dict[int, int]
    head: int

    def naive(self, trials: Sequence[Trial], epochs: int, num: int, val: int) -> float:
        """The formula of every system that runs the whole network at every step."""
        return sum(
            epochs
            * (num * (3 * self.total - 2 * self.prefix[t.depth] + 3 * self.head) + val * (self.total + self.head))
            for t in trials
        )

    def ours(self, trials: Sequence[Trial], epochs: Sequence[int], num: int, val: int, num_prefix: int) -> float:
        """The formula of a prefix that runs once, to its end: every cut is pooled. epochs: of each trial."""
        above = {depth: self.total - below for depth, below in self.prefix.items()}
        return num_prefix * self.total + sum(
            e * (num * 3 * (above[t.depth] + self.head) + val * (above[t.depth] + self.head))
            for t, e in zip(trials, epochs, strict=True)
        )


def say(line: dict[str, Any]) -> None:
    """Prints a JSON line."""
    print(json.dumps(line, default=float), flush=True)


def clocks() -> NDArray[np.float64]:
    """(wall, CPU) seconds: on a shared machine the second says more."""
    return np.array([time.monotonic(), time.process_time()])


def timed(phases: dict[str, float], name: str, started: float) -> float:
    """Adds the seconds since `started` to a phase and returns the time now."""
    now = time.monotonic()
    phases[name] = phases.get(name, 0.0) + now - started
    return now
