"""What pruning costs and brings: the same searches with none, with the median pruner and with halving, at an equal budget of epochs.

    cd PROJECT; dvc repro extract; python benchmarks/pruning.py [--seeds 4] [--trials 16] [--json FILE]

Runs studies on the features stored in the project of this folder, in a temporary store; the project's own studies are not
touched. The budget is what `--trials` trials take without pruning; a search with pruning goes on for three times as many
trials, and what ends beyond the budget does not count. One JSON line per search: trials, epochs and seconds within the
budget, and the best validation accuracy found. Then the differences to `none`, paired by seed. A best of more trials is a
little more optimistic: validation accuracies are compared here, not test accuracies.
"""

import argparse
import json
import os
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from frostline.files import load_json
from frostline.params import load_params
from frostline.search.outcome import run_study
from frostline.search.places import StudyFile
from frostline.search.study import open_study
from frostline.tracking.runs import open_study_run
from frostline.tracking.store import open_store

PRUNINGS = ("none", "median", "halving")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=4)
    arguments.add_argument("--trials", type=int, default=16, help="of the search without pruning")
    arguments.add_argument("--json", type=Path, help="also append the lines to this file")
    given = arguments.parse_args()
    budget = given.trials * load_params().tune.epochs
    lines: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for pruning in PRUNINGS:
            num_trials = given.trials if pruning == "none" else 3 * given.trials
            lines.append({"seed": seed, "pruning": pruning, **run_search(pruning, seed, num_trials, budget)})
            print(json.dumps(lines[-1]), flush=True)
    best = {pruning: [line["best"] for line in lines if line["pruning"] == pruning] for pruning in PRUNINGS}
    for pruning in PRUNINGS[1:]:
        points = 100 * (np.array(best[pruning]) - np.array(best["none"]))
        spread = points.std(ddof=1) if len(points) > 1 else None
        lines.append({"pruning": pruning, "points_over_none": points.tolist(), "mean": points.mean(), "sd": spread})
        print(json.dumps(lines[-1]), flush=True)
    if given.json:
        with given.json.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def run_search(pruning: str, seed: int, num_trials: int, budget: int) -> dict[str, Any]:
    """What a search finds within `budget` epochs."""
    params = load_params()
    tune = params.tune.model_copy(update={"pruning": pruning, "num_trials": num_trials})
    params = params.model_copy(update={"seed": seed, "tune": tune})
    classes = tuple(load_json(Path(params.paths.prepared) / "classes.json"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # Goes before any server of the project's.
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root.resolve()}/mlflow.db"
        store = open_store(params.tracking, root)
        parent = open_study_run(store, "pruning", params={}, tags={})
        file = open_study(StudyFile(root / "studies" / "pruning.db", "pruning"), "code", "ask")
        trials = run_study(params, file, store, parent, classes).trials
    spent = accumulate(trial.epochs for trial in trials)
    within = [trial for trial, epochs in zip(trials, spent, strict=True) if epochs <= budget]
    return {
        "trials": len(within),
        "epochs": sum(trial.epochs for trial in within),
        "seconds": round(sum(trial.seconds for trial in within), 1),
        "best": max(trial.score for trial in within if trial.score is not None),
    }


if __name__ == "__main__":
    main()
