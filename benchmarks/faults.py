"""Faults in a search on several machines: workers, Ray's nodes and head, PostgreSQL and MLflow's server killed or away.

The services of deploy/cluster.py run on this machine: PostgreSQL keeps the study, MLflow's server the runs, two nodes of Ray the
workers of `tune`. Whenever another trial has ended the next fault falls. The loss of Ray's head ends the stage, which is started
again then, as its line says. In the end there have to be exactly the trials that were asked for, each with one run, and nothing that
is said to run. Linux only.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import results

from frostline.params import load_params

sys.path.insert(0, str(results.ROOT / "tests"))

LONG = {"tune.epochs": 15, "tune.pruning": "none"}  # trials in which a fault can fall
AWAY_S = 60.0  # that the MLflow server is away
SERVICES = ("postgres", "s3", "mlflow", "ray", "ray-node")
FAULTS = {
    "worker killed": 3,
    "node of Ray killed": 2,
    "head of Ray killed": 2,
    "PostgreSQL restarted": 2,
    "PostgreSQL away for 20 s": 1,
    "MLflow's server away for 60 s": 1,
}  # how often in a study
LIST_RUNS = """
import json
from pathlib import Path
from frostline.params import load_params
from frostline.tracking.store import open_store

store = open_store(load_params().tracking, Path())
runs = store.client.search_runs([store.experiment_id], max_results=5000)
print(json.dumps([[run.info.run_id, run.info.status, run.data.tags] for run in runs]))
"""
SETTLE_S = 600.0  # in which another trial has to end after a fault


def main() -> None:
    from killing import make_base
    from servers import cluster
    from test_line import SMALL, start_project

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    results.add_options(parser)
    given = parser.parse_args()

    lines: results.Lines = []
    with tempfile.TemporaryDirectory() as folder, cluster(*SERVICES) as services:
        project = start_project(Path(folder) / "project")
        make_base(Path(folder) / "tiny.keras")
        project.environment |= {**services.environment, "KERAS_BACKEND": "jax"}
        scale = {"scale.engine": "ray", "scale.address": services.environment["RAY_ADDRESS"], "scale.workers": 2}
        project.set({**SMALL, **scale, **LONG, "base.weights": str(Path(folder) / "tiny.keras")})
        for number in range(given.studies):
            faults = [kind for kind, times in FAULTS.items() for _ in range(times)]
            random.Random(given.seed + number).shuffle(faults)
            project.set({"seed": number, "tune.num_trials": 10 * len(faults)})
            project.run("dvc", "repro", "extract")
            lines.append(Chaos(project, services).run(faults))
            print(json.dumps(lines[-1]), flush=True)
    results.keep("faults", lines, given, make_table)
    print(make_table(lines))


class Chaos:
    """One study, with faults."""

    def __init__(self, project: Any, services: Any) -> None:
        self.project, self.services = project, services
        self.log = Path(project.folder).with_name("tune.log")
        self.log.write_bytes(b"")
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def run(self, faults: list[str]) -> dict[str, Any]:
        """What became of it."""
        began, waited = time.monotonic(), []
        for fault in faults:
            if not self.wait_for_trials(self.count() + 1):
                break  # a study may end before all its faults
            now = time.monotonic()
            self.do(fault)
            self.wait_for_trials(self.count() + 1)
            waited.append(time.monotonic() - now)
            print(f"{fault}: {waited[-1]:.0f} s, {self.count()} trials", flush=True)
        while self.keep_going():
            time.sleep(0.5)
        said = self.log.read_text()
        return {
            "faults": faults[: len(waited)],
            "minutes": (time.monotonic() - began) / 60,
            "until_next_trial_s": waited,
            "starts": self.starts,
            "tracebacks": said.count("Traceback"),
            "said": sorted({line for line in said.splitlines() if line.startswith("frostline:")}),
            **self.judge(),
        }

    # --- the stage ------------------------------------------------------------------------------------------------

    def keep_going(self) -> bool:
        """Starts the stage where it is to be; False when it has ended well."""
        if self.process is None or self.process.poll() == 2:
            self.starts += 1
            assert self.starts < 30, self.log.read_text()
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "pipelines/tune.py"],
                    cwd=self.project.folder,
                    env=self.project.environment,
                    stdout=log,
                    stderr=log,
                )
        assert self.process.poll() in (None, 0), self.log.read_text()
        return self.process.poll() is None

    def wait_for_trials(self, number: int) -> bool:
        """Returns when so many trials have ended; False where all have."""
        end = time.monotonic() + SETTLE_S
        while self.count() < number:
            if not self.keep_going():
                return False
            assert time.monotonic() < end, f"no trial ends any more\n{self.log.read_text()}"
            time.sleep(0.5)
        return True

    def count(self) -> int:
        """Trials that were said to have ended."""
        return sum(line.startswith("trial ") for line in self.log.read_text().splitlines())

    # --- the faults -----------------------------------------------------------------------------------------------

    def do(self, fault: str) -> None:
        """Makes one of FAULTS, and mends what a person would have to."""
        services = self.services
        if fault == "worker killed":
            self.kill("ray", "ray-node", is_it=lambda process: "ray::_Worker" in " ".join(process.cmdline()))
        elif fault == "node of Ray killed":
            self.kill("ray-node", is_it=lambda process: process.name() == "raylet")
            services.down("ray-node")
            services.up("ray-node")
        elif fault == "head of Ray killed":
            self.kill("ray", is_it=lambda process: process.name() == "gcs_server")
            services.down("ray-node", "ray")
            services.up("ray", "ray-node")
        elif fault.startswith("PostgreSQL"):
            services.down("postgres")
            time.sleep(20 if "away" in fault else 0)
            services.up("postgres")
        else:
            services.down("mlflow")
            time.sleep(AWAY_S)
            services.up("mlflow")

    def kill(self, *services: str, is_it: Callable[[psutil.Process], bool]) -> None:
        """Kills one process of these services' that is asked for."""
        known = json.loads((self.services.folder / "cluster.json").read_text())["processes"]
        family = [child for name in services for child in psutil.Process(known[name][0]).children(recursive=True)]
        random.Random(len(family)).shuffle(family)
        for process in family:
            with contextlib.suppress(psutil.Error):
                if is_it(process):
                    os.kill(process.pid, signal.SIGKILL)
                    return
        raise AssertionError(f"no such process: {family}")

    # --- what has to hold -----------------------------------------------------------------------------------------

    def judge(self) -> dict[str, Any]:
        """Trials that are missing, there twice, or without their one run; runs and trials that are said to run."""
        runs = json.loads(self.project.run(sys.executable, "-c", LIST_RUNS))
        trials = self.project.load("reports/tune/trials.json")["trials"]
        numbers, own = Counter(trial["number"] for trial in trials), {trial["run_id"] for trial in trials}
        parents = {tags["mlflow.parentRunId"] for run_id, _, tags in runs if run_id in own}
        named = [tags["frostline.trial"] for _, _, tags in runs if tags.get("mlflow.parentRunId") in parents]
        asked_for = load_params(Path(self.project.folder) / "params.yaml").tune.num_trials
        return {
            "trials": asked_for,
            "missing": sorted(set(range(asked_for)) - set(numbers)),
            "twice": [key for key, times in numbers.items() if times > 1],
            "without_run": len(own - {run_id for run_id, *_ in runs}),
            "runs_twice": [key for key, times in Counter(named).items() if times > 1],
            "running": [tags.get("mlflow.runName") for _, status, tags in runs if status == "RUNNING"],
        }


def make_table(lines: results.Lines) -> str:
    """A row for each kind of fault, and one for all."""
    rows = []
    for kind in FAULTS:
        waits = [
            seconds
            for line in lines
            for fault, seconds in zip(line["faults"], line["until_next_trial_s"], strict=True)
            if fault == kind
        ]
        rows.append([kind, str(len(waits)), f"{sorted(waits)[len(waits) // 2]:.0f}", f"{max(waits):.0f}"])
    wrong = sum(line["without_run"] for line in lines)
    for line in lines:
        wrong += sum(len(line[key]) for key in ("missing", "twice", "runs_twice", "running"))
    trials, faults = (sum(line["trials"] for line in lines), sum(len(line["faults"]) for line in lines))
    rows.append([f"all: {trials} trials, {wrong} wrong", str(faults), "", ""])
    return results.draw_table(["fault", "times", "median s until the next trial ended", "longest"], rows)


if __name__ == "__main__":
    main()
