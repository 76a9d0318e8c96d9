"""What a search costs: plain Keras + Optuna, KerasTuner, the strongest plain version, and Frostline, side by side.

    python benchmarks/search.py W1 [--shared ../shared] [--systems plain strong strong-bfloat16 tuner frostline] [--json FILE] [--write]
    python benchmarks/search.py W1 --accuracy --seeds 5        # whole runs of plain and frostline, paired by seed

W1: cats_vs_dogs, MobileNetV2 1.0 at 160 px, 12 trials over depths 0 to 3. W2: InceptionV3 at 150 px up to mixed8, the
same. W3: as W1 with 50 trials at depth 0. All: the same list of (depth, dropout, learning rate), 8 epochs, 8 views.

Heads see the last cut, as in the tutorials. Frostline runs whole and is charged with everything: decoding, views, features of
every cut, the linear heads that a study begins with and every head starts from, receipt, traces, training,
MLflow and Optuna. Of the others a sample is timed (one trial per depth: its build, its trace, some steps) and
extrapolated to all trials and epochs; the sample is printed. No system is charged with the import of TensorFlow. CPU
seconds stand beside wall seconds: they say more where other programs use the machine. One JSON line per system.
KerasTuner is no dependency (`pip install keras-tuner tensorboard`): where it is missing it is left out, with the reason.
"""

import argparse
import math
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from results import Lines, add_options, draw_table, keep
from workloads import WORKLOADS, Sources, Workload, draw_trials, say

# Both sides are imported inside functions: the processes that draw views import this file again.


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("workload", choices=WORKLOADS)
    arguments.add_argument("--shared", type=Path, default=Path("../shared"))
    arguments.add_argument("--systems", nargs="+", default=["plain", "strong", "strong-bfloat16", "tuner", "frostline"])
    arguments.add_argument("--steps", type=int, default=12, help="training steps timed per depth, after three")
    arguments.add_argument("--accuracy", action="store_true", help="whole runs of plain and frostline")
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--per-class", type=int, default=None, help="training images per class")
    arguments.add_argument("--val-per-class", type=int, default=None)
    arguments.add_argument("--trials", type=int, default=None)
    arguments.add_argument("--epochs", type=int, default=None)
    arguments.add_argument("--pruning", default="none", choices=["none", "median", "halving"])
    arguments.add_argument("--patience", type=int, default=None)
    arguments.add_argument("--no-probe", action="store_true")
    arguments.add_argument("--seed", type=int, default=7)
    arguments.add_argument("--work", type=Path, default=None, help="scratch folder; features there are used again")
    add_options(arguments)
    given = arguments.parse_args()
    if given.accuracy and given.write:
        arguments.error("--write keeps times; --accuracy measures none")
    changes = {"per_class": given.per_class, "val_per_class": given.val_per_class, "num_trials": given.trials}
    changes |= {"epochs": given.epochs, "views": given.epochs}
    work = replace(WORKLOADS[given.workload], **{key: value for key, value in changes.items() if value})
    with tempfile.TemporaryDirectory() as scratch:
        given.work = given.work or Path(scratch)
        lines = compare_accuracy(work, given) if given.accuracy else compare_speed(work, given)
    keep(f"search-{given.workload}", lines, given, make_table)


def make_table(lines: Lines) -> str:
    """A row for each system."""
    rows = [
        [
            line["system"],
            *(f"{line[name]:.1f}" if name in line else "–" for name in ("seconds", "cpu_seconds")),
            *(
                f"{line[name]:.2f}" if name in line else "–"
                for name in ("times_faster_than_plain", "times_less_cpu_than_plain")
            ),
        ]
        for line in lines
    ]
    return draw_table(["", "wall seconds", "CPU seconds", "times faster than plain", "in CPU seconds"], rows)


def compare_speed(work: Workload, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One line per system, printed as it comes; the ratio is to `plain`."""
    from side_frostline import measure_limit, run_frostline
    from side_plain import run_system

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
            flops = costs.ours(trials, line.pop("epochs"), num, val, sources.num_prefix)
            limit = measure_limit(sources, trials, line.pop("epochs_by_depth"), sources.num_prefix)
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
    from side_frostline import run_frostline
    from side_plain import run_system

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
        line: dict[str, Any] = {"seed": seed}
        line |= {name: {key: one[key] for key in kept} for name, one in scores.items()}
        say(line)
        lines.append(line)
    for name in ("mean_val_accuracy", "best_val_accuracy"):
        points = np.array([100 * (line["frostline"][name] - line["plain"][name]) for line in lines[: given.seeds]])
        half = stats.t.ppf(0.975, len(points) - 1) * points.std(ddof=1) / math.sqrt(len(points))
        line = {"difference": name, "points": points.tolist(), "mean": points.mean(), "low": points.mean() - half}
        lines.append(line | {"high": points.mean() + half})
        say(lines[-1])
    return lines


if __name__ == "__main__":
    main()
