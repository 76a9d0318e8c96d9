"""A whole study run, and what it came to and cost."""

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frostline.params import Params
from frostline.search.space import make_baseline
from frostline.search.study import KILLED, StudyFile, importances, list_records
from frostline.search.worker import DRAW, Job, draw_of, run_trials
from frostline.tracking.runs import delete_trials
from frostline.tracking.store import Store
from frostline.training.bench import Bench, fit_shared_probe
from frostline.training.probe import Probe
from frostline.training.receipt import Receipt
from frostline.training.trainer import PHASES


@dataclass(frozen=True)
class Outcome:
    """What a study came to: the records of its trials, the proof of its features, and what it cost.

    seconds: by phase; `trace`, `train` and `validate` are those of all trials, whenever they ran, the rest those of this
    run. limit_seconds: what the epochs of all trials take at the best pace seen per image, with nothing between; None
    where a depth did not run this time.
    """

    records: list[dict[str, Any]]
    receipts: list[Receipt]
    probe: Probe | None
    importances: dict[str, float]
    seconds: dict[str, float]
    bookkeeping_per_trial: float | None
    pace: dict[int, dict[str, float]]
    limit_seconds: float | None

    @property
    def trials_per_minute(self) -> float:
        return 60 * len(self.records) / max(sum(self.seconds.values()), 1e-9)

    @property
    def achieved_over_limit(self) -> float | None:
        return self.limit_seconds and self.limit_seconds / sum(self.seconds.values())

    def to_record(self) -> dict[str, Any]:
        """All but the records, for study.json."""
        probe = self.probe and {"strength": self.probe.strength, "val_accuracy": self.probe.val_accuracy}
        return {
            "receipts": [receipt.to_record() for receipt in self.receipts],
            "probe": probe,
            "importances": self.importances,
            "seconds": self.seconds,
            "trials_per_minute": self.trials_per_minute,
            "bookkeeping_seconds_per_trial": self.bookkeeping_per_trial,
            "seconds_per_image": {str(depth): pace for depth, pace in self.pace.items()},
            "limit_seconds": self.limit_seconds,
            "achieved_over_limit": self.achieved_over_limit,
        }


def run_study(
    params: Params,
    study: StudyFile,
    store: Store,
    parent_run_id: str,
    class_names: tuple[str, ...],
    work: Path,
) -> Outcome:
    """Probe, receipts at the shallowest and the deepest cut, then trials until there are `tune.num_trials`.

    work: a folder for the states of trials that wait at a rung; it goes when the study is done.
    """
    laps = [time.monotonic()]
    bench = Bench(params, len(class_names), None)
    bench.base  # noqa: B018 - built here, so that its seconds are its own
    laps.append(time.monotonic())
    bench.probe = probe = fit_shared_probe(params)
    laps.append(time.monotonic())
    space = params.tune.space
    receipts = [bench.receipt(make_baseline(space, depth)) for depth in sorted({0, space.unfrozen_blocks[1]})]
    laps.append(time.monotonic())
    known = {record["number"] for record in list_records(study.load(), params.tune.num_trials)}
    # A kill between a trial's run and its record leaves the run of a trial that is drawn again.
    killed = [trial for trial in study.load().get_trials(deepcopy=False) if KILLED in trial.user_attrs]
    delete_trials(store, parent_run_id, DRAW, [draw_of(trial) for trial in killed])
    run_trials(Job(params, study, store, parent_run_id, class_names, probe, work), bench)
    laps.append(time.monotonic())
    shutil.rmtree(work, ignore_errors=True)

    records = list_records(study.load(), params.tune.num_trials)
    new = [record for record in records if record["number"] not in known]
    base, probing, checking, trying = np.diff(laps).tolist()
    bookkeeping = max(0.0, trying - sum(record["seconds"] for record in new) / params.tune.workers)
    phases = {phase: sum(record["phases"][phase] for record in records) for phase in PHASES}
    seconds = {"base": base, "probe": probing, "receipt": checking, **phases}
    # What a trial takes besides: reading features, the head's start, and states kept at rungs.
    other = sum(record["seconds"] for record in records) - sum(phases.values())
    return Outcome(
        records=records,
        receipts=receipts,
        probe=probe,
        importances=importances(study.load(), params.tune.num_trials),
        seconds={**seconds, "bookkeeping": bookkeeping + other},
        bookkeeping_per_trial=bookkeeping / len(new) if new else None,
        pace={depth: pace for depth in _depths(records) if math.isfinite((pace := bench.pace(depth))["train"])},
        limit_seconds=_limit(records, bench),
    )


def _depths(records: list[dict[str, Any]]) -> list[int]:
    return sorted({record["hparams"]["unfrozen_blocks"] for record in records})


def _limit(records: list[dict[str, Any]], bench: Bench) -> float | None:
    """Seconds that the epochs of all records take at the best pace per image; None where a pace is not known."""
    total = 0.0
    for record in records:
        depth = record["hparams"]["unfrozen_blocks"]
        pace, data = bench.pace(depth), bench.data(depth)
        total += record["epochs"] * (len(data.labels) * pace["train"] + len(data.val_labels) * pace["validate"])
    return total if math.isfinite(total) else None
