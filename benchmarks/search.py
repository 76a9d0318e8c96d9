"""What a search costs: plain Keras + Optuna, KerasTuner, the strongest plain version, and Frostline, side by side.

    python benchmarks/search.py W1 [--shared ../shared] [--systems plain strong strong-bfloat16 tuner frostline] [--json FILE]
    python benchmarks/search.py W1 --accuracy --seeds 5        # whole runs of plain and frostline, paired by seed

W1: cats_vs_dogs, MobileNetV2 1.0 at 160 px, 12 trials over depths 0 to 3. W2: InceptionV3 at 150 px up to mixed8, the
same. W3: as W1 with 50 trials at depth 0. All: the same list of (depth, dropout, learning rate), 8 epochs, 8 views.

Frostline runs whole and is charged with everything: decoding, views, features, probe, receipt, traces, training,
MLflow and Optuna. Of the others a sample is timed (one trial per depth: its build, its trace, some steps) and
extrapolated to all trials and epochs; the sample is printed. No system is charged with the import of TensorFlow. CPU
seconds stand beside wall seconds: they say more where other programs use the machine. One JSON line per system.
KerasTuner is no dependency (`pip install keras-tuner tensorboard`): where it is missing it is left out, with the reason.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

# Heavy libraries are imported inside functions: the processes that render views import this file again.

TRANSFORMS = [
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
    """One search. `per_class`: training pictures per class, all where None; validation likewise."""

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
    """The list of all systems: depths in turn; the first is the middle of each range, where Frostline begins."""
    rng = np.random.default_rng(seed)
    low, high = np.log(LEARNING_RATE)
    drawn = [
        Trial(work.depths[i % len(work.depths)], float(rng.uniform(*DROPOUT)), float(np.exp(rng.uniform(low, high))))
        for i in range(work.num_trials)
    ]
    return [Trial(work.depths[0], sum(DROPOUT) / 2, math.sqrt(math.prod(LEARNING_RATE))), *drawn[1:]]


def list_files(folder: Path, per_class: int | None) -> list[tuple[str, int]]:
    """(path, label) of the first pictures of every class folder."""
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

    def ours(self, trials: Sequence[Trial], epochs: Sequence[int], num: int, val: int, views: int) -> float:
        """The formula of a prefix that runs once. epochs: of each trial."""
        once = (num * views + val) * max(self.prefix.values())
        above = {depth: self.total - below for depth, below in self.prefix.items()}
        return once + sum(
            e * (num * 3 * (above[t.depth] + self.head) + val * (above[t.depth] + self.head))
            for t, e in zip(trials, epochs, strict=True)
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("workload", choices=WORKLOADS)
    arguments.add_argument("--shared", type=Path, default=Path("../shared"))
    arguments.add_argument("--systems", nargs="+", default=["plain", "strong", "strong-bfloat16", "tuner", "frostline"])
    arguments.add_argument("--steps", type=int, default=12, help="training steps timed per depth, after three")
    arguments.add_argument("--accuracy", action="store_true", help="whole runs of plain and frostline")
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--per-class", type=int, default=None, help="training pictures per class")
    arguments.add_argument("--val-per-class", type=int, default=None)
    arguments.add_argument("--trials", type=int, default=None)
    arguments.add_argument("--epochs", type=int, default=None)
    arguments.add_argument("--pruning", default="none", choices=["none", "median", "halving"])
    arguments.add_argument("--patience", type=int, default=None)
    arguments.add_argument("--no-probe", action="store_true")
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--work", type=Path, default=None, help="scratch folder; features there are used again")
    arguments.add_argument("--json", type=Path, default=None)
    given = arguments.parse_args()
    changes = {"per_class": given.per_class, "val_per_class": given.val_per_class, "num_trials": given.trials}
    changes |= {"epochs": given.epochs, "views": given.epochs}
    work = replace(WORKLOADS[given.workload], **{key: value for key, value in changes.items() if value})
    with tempfile.TemporaryDirectory() as scratch:
        given.work = given.work or Path(scratch)
        lines = compare_accuracy(work, given) if given.accuracy else compare_speed(work, given)
    if given.json:
        given.json.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")


def compare_speed(work: Workload, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One line per system, printed as it comes; the ratio is to `plain`."""
    from search_frostline import measure_limit, run_frostline
    from search_plain import run_system

    sources = Sources(work, given.shared)
    costs = sources.costs()
    trials = draw_trials(work, given.seed)
    num, val = len(sources.train), len(sources.val)
    naive = costs.naive(trials, work.epochs, num, val)
    say({**asdict(work), "N": num, "V": val, "T": len(trials), "E": work.epochs, "R": work.views})
    lines: list[dict[str, Any]] = []
    for system in given.systems:
        if system == "frostline":
            line = run_frostline(sources, trials, given)
            flops = costs.ours(trials, line.pop("epochs"), num, val, work.views)
            limit = measure_limit(sources, trials, line.pop("epochs_by_depth"), num * work.views + val)
            reached = {"segments": limit["seconds"] / line["seconds"]}
            reached["segments, CPU seconds"] = limit["cpu_seconds"] / line["cpu_seconds"]
            line |= {"limit": limit, "achieved_over_limit": reached}
        else:
            line, flops = run_system(system, sources, trials, given.steps), naive
        if "seconds" in line:
            line |= {"flops": flops, "flops_per_second": flops / line["seconds"]}
            plain = next((one for one in lines if one["system"] == "plain"), None)
            if plain:
                line["times_faster_than_plain"] = plain["seconds"] / line["seconds"]
                line["times_less_cpu_than_plain"] = plain["cpu_seconds"] / line["cpu_seconds"]
                if system == "frostline":
                    line["times_fewer_flops"] = naive / flops
                    line["achieved_over_limit"]["flops"] = line["times_faster_than_plain"] * flops / naive
        say(line)
        lines.append(line)
    return lines


def compare_accuracy(work: Workload, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole runs of both systems for every seed; the difference of their scores with its 95 % interval."""
    from scipy import stats
    from search_frostline import run_frostline
    from search_plain import run_system

    sources = Sources(work, given.shared)
    say({**asdict(work), "N": len(sources.train), "V": len(sources.val), "seeds": given.seeds})
    lines = []
    for seed in range(given.seeds):
        given.seed = seed
        trials = draw_trials(work, seed)
        scores = {
            "plain": run_system("plain", sources, trials, None, seed),
            "frostline": run_frostline(sources, trials, given, folder=given.work / f"seed-{seed}"),
        }
        kept = ("mean_val_accuracy", "best_val_accuracy", "seconds")
        line = {"seed": seed} | {name: {key: one[key] for key in kept} for name, one in scores.items()}
        say(line)
        lines.append(line)
    for name in ("mean_val_accuracy", "best_val_accuracy"):
        points = np.array([100 * (line["frostline"][name] - line["plain"][name]) for line in lines[: given.seeds]])
        half = stats.t.ppf(0.975, len(points) - 1) * points.std(ddof=1) / math.sqrt(len(points))
        line = {"difference": name, "points": points.tolist(), "mean": points.mean(), "low": points.mean() - half}
        lines.append(line | {"high": points.mean() + half})
        say(lines[-1])
    return lines


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line, default=float), flush=True)


def clocks() -> np.ndarray:
    """(wall, CPU) seconds: on a shared machine the second says more."""
    return np.array([time.monotonic(), time.process_time()])


def timed(phases: dict[str, float], name: str, started: float) -> float:
    """Adds the seconds since `started` to a phase and returns the time now."""
    now = time.monotonic()
    phases[name] = phases.get(name, 0.0) + now - started
    return now


if __name__ == "__main__":
    sys.exit(main())
