"""Frostline's own speed on whatever device Keras sees: prefix images/s, trials/minute of W1, FLOP/s of both.

    python benchmarks/gpu.py [--shared ../shared] [--backend jax] [--workload W1] [--per-class 1000]

Only Frostline runs, whole; see workloads.py for what it runs. One JSON line. It was written without a GPU at hand: so far it
has run on CPUs alone, and a GPU's numbers are for whoever has one to add.
"""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workloads import Sources, Trial


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shared", type=Path, default=Path("../shared"))
    arguments.add_argument("--backend", choices=["tensorflow", "jax"], default=None, help="else $KERAS_BACKEND")
    arguments.add_argument("--workload", choices=["W1", "W2", "W3"], default="W1")
    arguments.add_argument("--per-class", type=int, default=None)
    arguments.add_argument("--trials", type=int, default=None)
    arguments.add_argument("--epochs", type=int, default=None)
    given = arguments.parse_args()
    if given.backend:
        os.environ["KERAS_BACKEND"] = given.backend
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from workloads import WORKLOADS, Sources, draw_trials

    changes = {"per_class": given.per_class, "val_per_class": given.per_class, "num_trials": given.trials}
    changes |= {"epochs": given.epochs, "views": given.epochs}
    work = replace(WORKLOADS[given.workload], **{key: value for key, value in changes.items() if value})
    measure(Sources(work, given.shared), draw_trials(work, 7))


def measure(sources: "Sources", trials: list["Trial"]) -> None:
    """Runs the workload once and prints the line."""
    from side_frostline import run_frostline

    from frostline.devices import BACKEND, describe_device, share_memory

    share_memory()
    with tempfile.TemporaryDirectory() as scratch:
        rules = argparse.Namespace(seed=7, pruning="none", patience=None, no_probe=False, work=Path(scratch))
        line = run_frostline(sources, trials, rules)
    work, costs = sources.work, sources.costs()
    num, val = len(sources.train), len(sources.val)
    num_prefix, prefix_flops = sources.num_prefix, sources.num_prefix * costs.total
    study_flops = costs.ours(trials, line["epochs"], num, val, num_prefix) - prefix_flops
    phases = line["phases"]
    computing = phases["train"] + phases["validate"]
    report = {
        "device": describe_device(),
        "backend": BACKEND,
        "workload": work.name,
        "N": num,
        "V": val,
        "T": len(trials),
        "E": work.epochs,
        "R": work.views,
        "depths": work.depths,
        "prefix_images_per_second": num_prefix / phases["prefix"],
        "prefix_flops_per_second": prefix_flops / phases["prefix"],
        "trials_per_minute": line["trials_per_minute"],
        "training_flops_per_second": study_flops / computing if computing else None,
        "phases": phases,
        "best_val_accuracy": line["best_val_accuracy"],
    }
    print(json.dumps(report, default=float), flush=True)


if __name__ == "__main__":
    main()
