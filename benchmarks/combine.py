"""What each `refit.combine` costs in serving, and what it answers: size, latency, images per second, log loss on test images.

    python benchmarks/combine.py [--shared ../shared] [--tasks lite0@96:cats:50 ...] [--depths 2 6] [--seeds 3] [--json FILE] [--write]
    python benchmarks/combine.py --table FILE [--write]

Tails alone, without a linear head or the mirror image, with hyperparameters fixed beforehand. The models of one depth are asked in turn,
so that whatever else the machine does slows all of them alike; processor time is told, too, which that does not change.
"""

import argparse
import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from depths import Judge, Project
from results import Lines, add_options, draw_table, keep, load_lines

TASKS = ("v2-0.35@96:cats:100", "lite0@96:cats:50")
WAYS = ("mean", "average_weights", "single")
ROUNDS = 5  # of each model, one after the other
HPARAMS: dict[str, Any] = {
    "dropout": 0.2,
    "head_learning_rate": 1e-4,
    "suffix_learning_rate": 3e-4,
    "weight_decay": 1e-4,
    "label_smoothing": 0.0,
    "optimizer": "adam",
    "head_units": 0,
    "head_input": "all",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="BASE:SET:IMAGES_PER_CLASS")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 6])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", type=Path, help="only make the table of a file of --json")
    add_options(parser)
    given = parser.parse_args()
    if given.table:
        lines = load_lines(given.table)
    else:
        lines, shared = [], given.shared.resolve()
        for task in given.tasks:
            with TemporaryDirectory() as folder, contextlib.chdir(folder):
                project = Project(task, shared)
                for seed in range(given.seeds):
                    for line in look(project, seed, given.depths):
                        lines.append(line)
                        print(json.dumps(line), file=sys.stderr, flush=True)
    print(make_table(lines))
    keep("combine", lines, given, make_table)


def look(project: Project, seed: int, depths: list[int]) -> Iterator[dict[str, Any]]:
    """A line for each depth and way; speeds with the first seed alone."""
    from frostline.evidence.speed import ALONE, BATCH, BATCHES, WARM_UP, time_answers
    from frostline.evidence.trials import TrialRecord
    from frostline.hparams import Hparams
    from frostline.serving.model import load_network, predict
    from frostline.training.model import Members, build_model, save_model
    from frostline.training.refit import Choice, cross_fit_trial, log_loss, make_members

    project.store(seed)
    bench = project.bench
    bench.params = project.params.model_copy(update={"seed": seed})
    bench._data.clear()
    bench.__dict__.pop("rows", None)
    judge = Judge(project, seed)
    rows, labels = project.drawn[project.tested], project.labels[project.tested]
    for depth in depths:
        trial = TrialRecord(0, Hparams.from_record({"unfrozen_blocks": depth, **HPARAMS}), "COMPLETE")
        with TemporaryDirectory() as work:
            tails = cross_fit_trial(bench, trial, judge.rows, judge.folds, Path(work))
            choice = Choice(tails, None, "all", 1.0, False, 1.0, tails.plain)
            networks, sizes = {}, {}
            for way in WAYS:
                members: Members = make_members(bench, choice, way, judge.rows, Path(work))
                facts: dict[str, Any] = {"temperature": 1.0, "mirrored": False}
                file = Path(work) / f"{way}.keras"
                save_model(build_model(bench.base, members, pooling="avg", **facts), file)
                networks[way], sizes[way] = load_network(file, None), file.stat().st_size
        images = project.images[rows]
        answered = {way: predict(network, images)[0].astype(np.float64) for way, network in networks.items()}
        seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        processor: dict[str, float] = defaultdict(float)
        for _ in range(ROUNDS if seed == 0 else 0):
            for way, network in networks.items():
                answer = partial(predict, network)
                seconds[way, 1] += time_answers(answer, images, 1, ALONE)
                started = time.process_time()
                seconds[way, BATCH] += time_answers(answer, images, BATCH, BATCHES)
                processor[way] += (time.process_time() - started) / (ROUNDS * (WARM_UP + BATCHES) * BATCH)
        for way, answers in answered.items():
            line = {"task": project.task, "seed": seed, "depth": depth, "way": way, "bytes": sizes[way]}
            line |= {"log_loss": log_loss(labels, answers), "accuracy": float((answers.argmax(1) == labels).mean())}
            if seed == 0:
                p50, p95 = np.percentile(seconds[way, 1], [50, 95])
                rate = BATCH / float(np.median(seconds[way, BATCH]))
                line |= {
                    "p50_ms": 1000 * p50,
                    "p95_ms": 1000 * p95,
                    "images_per_s": rate,
                    "processor_ms": 1000 * processor[way],
                }
            yield line


def make_table(lines: Lines) -> str:
    """A row for each task, depth and way."""
    groups: dict[tuple[str, int, str], Lines] = defaultdict(list)
    for line in lines:
        groups[line["task"], line["depth"], line["way"]].append(line)
    rows = []
    for (task, depth, way), own in groups.items():
        first, losses, rights = own[0], [line["log_loss"] for line in own], [line["accuracy"] for line in own]
        speed = [
            f"{first['p50_ms']:.1f}",
            f"{first['p95_ms']:.1f}",
            f"{first['images_per_s']:.0f}",
            f"{first['processor_ms']:.1f}",
        ]
        told = [f"{first['bytes'] / 1e6:.1f}", *speed, f"{np.mean(rights):.3f} / {np.mean(losses):.3f}"]
        rows.append([task, depth, way, *told])
    columns = [
        "base, set",
        "depth",
        "`refit.combine`",
        "MB",
        "one image, p50 ms",
        "p95 ms",
        "images/s in batches of 32",
    ]
    columns.append("processor ms an image in batches")
    return draw_table([*columns, f"accuracy / log loss on test, draws: {len(next(iter(groups.values())))}"], rows)


if __name__ == "__main__":
    main()
