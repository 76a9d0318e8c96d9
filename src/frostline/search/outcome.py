"""A whole study run, and what it came to and cost."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from frostline.bases.cost import flops_of
from frostline.bases.features import depth_folder
from frostline.evidence.trials import TrialRecord
from frostline.files import require_complete, size_of
from frostline.params import Params
from frostline.search.places import Place
from frostline.search.space import make_baseline
from frostline.search.study import announce, importances, list_killed, list_records
from frostline.search.worker import Job, draw_of, run_trials
from frostline.tracking.runs import DRAW, delete_trials
from frostline.tracking.store import Store
from frostline.training.bench import Bench, fit_shared_heads
from frostline.training.linear import CrossValidation, describe_head
from frostline.training.receipt import Receipt
from frostline.training.trainer import PHASES


@dataclass(frozen=True)
class Outcome:
    """What a study came to: the records of its trials, the proof of its features, and what it cost.

    seconds: by phase; `trace`, `train` and `validate` are those of all trials, whenever they ran, the rest those of this
    run. limit_seconds: what the epochs of all trials take at the best pace seen per image, with nothing between; None
    where a depth did not run this time. deeper: what one block more than was searched would cost; see `estimate_deeper`.
    """

    trials: list[TrialRecord]
    receipts: list[Receipt]
    heads: Mapping[str, CrossValidation]
    importances: dict[str, float]
    seconds: dict[str, float]
    bookkeeping_per_trial: float | None
    pace: dict[int, dict[str, float]]
    limit_seconds: float | None
    deeper: Mapping[str, float] | None

    @property
    def trials_per_minute(self) -> float:
        return 60 * len(self.trials) / max(sum(self.seconds.values()), 1e-9)

    @property
    def achieved_over_limit(self) -> float | None:
        return self.limit_seconds and self.limit_seconds / sum(self.seconds.values())

    def to_record(self) -> dict[str, Any]:
        """All but the trials, for study.json."""
        return {
            "receipts": [receipt.to_record() for receipt in self.receipts],
            "heads": {sees: describe_head(head) for sees, head in self.heads.items()},
            "importances": self.importances,
            "seconds": self.seconds,
            "trials_per_minute": self.trials_per_minute,
            "bookkeeping_seconds_per_trial": self.bookkeeping_per_trial,
            "seconds_per_image": {str(depth): pace for depth, pace in self.pace.items()},
            "limit_seconds": self.limit_seconds,
            "deeper": self.deeper,
            "achieved_over_limit": self.achieved_over_limit,
        }


def run_study(
    params: Params,
    study: Place,
    store: Store,
    parent_run_id: str,
    class_names: tuple[str, ...],
    manifest: tuple[str, int] | None = None,
) -> Outcome:
    """Linear heads, receipts at the shallowest and the deepest cut, then trials until there are `tune.num_trials`.

    manifest: as in `announce`.
    """
    laps = [time.monotonic()]
    announce(study, params.tune.num_trials, parent_run_id, manifest)
    bench = Bench(params, len(class_names), {})
    bench.base  # noqa: B018 - built here, so that its seconds are its own
    laps.append(time.monotonic())
    bench.heads = fit_shared_heads(bench)
    laps.append(time.monotonic())
    space, num_trials = params.tune.space, params.tune.num_trials
    receipts = [bench.receipt(make_baseline(space, depth)) for depth in sorted({0, space.depths[1]})]
    laps.append(time.monotonic())
    known = {trial.number for trial in study.read(partial(list_records, num_trials=num_trials))}
    run_trials(Job(params, study, store, parent_run_id, class_names, bench.heads), bench)
    # A kill between a trial's run and its record leaves the run of a trial that is drawn again.
    delete_trials(store, parent_run_id, DRAW, [draw_of(trial) for trial in study.read(list_killed)])
    laps.append(time.monotonic())

    trials = study.read(partial(list_records, num_trials=num_trials))
    new = [trial for trial in trials if trial.number not in known]
    base, fitting, checking, trying = np.diff(laps).tolist()
    bookkeeping = max(0.0, trying - sum(trial.seconds for trial in new) / params.num_workers)
    phases = {phase: sum(trial.phases[phase] for trial in trials) for phase in PHASES}
    # What a trial takes besides: reading features, and the head's start.
    other = sum(trial.seconds for trial in trials) - sum(phases.values())
    paces = {depth: bench.pace(depth) for depth in sorted({trial.depth for trial in trials})}
    return Outcome(
        trials=trials,
        receipts=receipts,
        heads=bench.heads,
        importances=study.read(partial(importances, num_trials=num_trials)),
        seconds={"base": base, "heads": fitting, "receipt": checking, **phases, "bookkeeping": bookkeeping + other},
        bookkeeping_per_trial=bookkeeping / len(new) if new else None,
        pace={depth: pace for depth, pace in paces.items() if math.isfinite(pace["train"])},
        limit_seconds=_limit(trials, bench),
        deeper=estimate_deeper(bench, space.depths[1]),
    )


def estimate_deeper(bench: Bench, deepest: int) -> dict[str, float] | None:
    """What a search one block deeper than `deepest` would cost, as the plan has it: seconds of a whole trial by the FLOPs above
    the cut, beside those at `deepest`, and bytes of its features.

    None where the base has no further cut, or no trial here was nearly so deep that its pace could tell.
    """
    depth, paces = deepest + 1, {known: bench.pace(known) for known in range(1, deepest + 1)}
    known = max((known for known, pace in paces.items() if math.isfinite(pace["train"])), default=0)
    if depth >= len(bench.base.cuts) or not known:
        return None
    above, data, tune = flops_of(bench.base)["suffix"], bench.data(known, "last"), bench.params.tune
    epoch = len(data.train) * paces[known]["train"] + len(data.held_out) * paces[known]["validate"]
    seconds = [tune.epochs * epoch * above[each] / above[known] for each in (deepest, depth)]
    features = Path(bench.params.paths.features)
    stored = max(require_complete(features)["stored"])
    numbers = [math.prod(bench.base.cuts[each].shape) for each in (stored, depth)]
    size = size_of(features / depth_folder(stored)) * numbers[1] / numbers[0]
    return {"depth": depth, "seconds": seconds[1], "seconds_now": seconds[0], "bytes": round(size)}


def _limit(trials: list[TrialRecord], bench: Bench) -> float | None:
    """Seconds that the epochs of all trials take at the best pace per image; None where a pace is not known."""
    total = 0.0
    for trial in trials:
        if trial.epochs:
            pace, data = bench.pace(trial.depth), bench.data(trial.depth, bench.sees(trial.hparams))
            total += trial.epochs * (len(data.train) * pace["train"] + len(data.held_out) * pace["validate"])
    return total if math.isfinite(total) else None
