"""The worker: draws trials, trains them on stored features, records them. Joins training, search and tracking."""

import multiprocessing
import multiprocessing.connection
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.context import SpawnProcess

from optuna.trial import BaseTrial, Trial

from frostline.devices import BACKEND, describe_device, share_memory
from frostline.errors import Refused
from frostline.evidence.trials import TrialRecord
from frostline.params import Params
from frostline.process import die_with_parent, if_stopped, shielded
from frostline.search.progress import SearchProgress
from frostline.search.space import list_baselines, suggest
from frostline.search.study import (
    STARTED,
    StudyFile,
    ask,
    close_abandoned,
    close_stopped,
    keep_record,
    list_records,
    list_rungs,
    tell,
)
from frostline.search.trial import run_baseline, run_trial
from frostline.tracking.messages import describe_trial
from frostline.tracking.runs import DRAW, log_trial
from frostline.tracking.store import Store
from frostline.training.bench import Bench
from frostline.training.linear import CrossValidation


@dataclass(frozen=True)
class Job:
    """All that a worker needs; it can be sent to another process.

    study: where trials are drawn from; store, parent_run_id: where their runs go; class_names: of the images; heads: the
    linear ones that every head starts from, by what they see.
    """

    params: Params
    study: StudyFile
    store: Store
    parent_run_id: str
    class_names: tuple[str, ...]
    heads: Mapping[str, CrossValidation]


def run_trials(job: Job, bench: Bench) -> None:
    """Runs trials until the study has `tune.num_trials`: on `bench` here, or in `tune.workers` processes."""
    tune = job.params.tune
    if tune.workers == 1:
        with if_stopped(partial(close_stopped, job.study)), SearchProgress(tune.num_trials, tune.epochs) as progress:
            for record in list_records(job.study.load(), tune.num_trials):
                progress.end(record)
            _work(job, bench, progress)
        return
    with if_stopped(partial(close_stopped, job.study)):
        number = tune.workers
        while ended := _run_workers(job, number):
            close_abandoned(job.study)
            if len(ended) == number:
                raise Refused(f"All workers of the search ended early, with exit codes {ended}. `dvc repro` goes on.")
            # The others may have gone before the trials came back.
            number = 1 if len(list_records(job.study.load(), tune.num_trials)) < tune.num_trials else 0


def _run_workers(job: Job, number: int) -> list[int]:
    """Runs trials in so many processes until no trial is left to draw; the exit codes of those that ended early."""
    # Spawned: a fork after TensorFlow has run hangs.
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work_alone, args=(job,)) for _ in range(number)]
    with if_stopped(partial(_end, workers)):
        with shielded():
            for worker in workers:
                worker.start()
        ended: list[int] = []
        while running := [worker for worker in workers if worker.exitcode is None]:
            multiprocessing.connection.wait([worker.sentinel for worker in running])
            if early := [code for worker in running if (code := worker.exitcode)]:
                ended += early
                close_abandoned(job.study)
                print(f"tune: a worker ended early, with exit code {early[0]}; its trial is drawn again", flush=True)
        return ended


def _end(workers: Sequence[SpawnProcess]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


def draw_of(trial: BaseTrial) -> str:
    """What tells a draw from every other: its number would do within one study, but a restarted study, or a colleague's on
    the same server, has the same numbers."""
    assert trial.datetime_start is not None
    started: str = trial.datetime_start.isoformat()
    return started


def _work_alone(job: Job) -> None:
    die_with_parent()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    share_memory()
    tune = job.params.tune
    progress = SearchProgress(tune.num_trials, tune.epochs, shown=False)  # several bars would overwrite each other
    try:
        _work(job, Bench(job.params, len(job.class_names), job.heads), progress)
    except Refused as refusal:
        print(f"frostline: {refusal}", file=sys.stderr, flush=True)
        sys.exit(2)


def _work(job: Job, bench: Bench, progress: SearchProgress) -> None:
    study, tune = job.study.load(), job.params.tune
    while True:
        with job.study.locked():
            asked = ask(study, tune, job.params.seed)
        if asked is None:
            return
        record = _run(job, bench, *asked, progress)
        keep_record(asked[0], record)
        tell(study, asked[0].number, record)
        head = max((known.score for known in list_records(study, 2) if known.score is not None), default=None)
        print(describe_trial(record, tune.num_trials, head, len(job.class_names)), flush=True)
        progress.end(record)


def _run(job: Job, bench: Bench, trial: Trial, number: int, progress: SearchProgress) -> TrialRecord:
    tune = job.params.tune
    early = list_rungs(tune)[:-1]

    def should_stop(best: float, epoch: int) -> bool:
        if epoch not in early:
            return False
        trial.report(best, epoch)
        return bool(trial.should_prune())

    baselines = list_baselines(tune.space, tune.pooling)
    if number < len(baselines):
        record = run_baseline(bench, baselines[number], number)
    else:
        record = run_trial(
            bench,
            suggest(trial, tune.space),
            number,
            should_stop=should_stop,
            report=lambda epoch: progress.epoch(number, epoch.number, epoch.val_accuracy),
        )
    tags = {DRAW: draw_of(trial), "frostline.device": describe_device(), "frostline.backend": BACKEND}
    if origin := trial.user_attrs.get(STARTED):
        record = replace(record, started_from=origin)
        tags["frostline.started_from"] = origin
    return replace(record, run_id=log_trial(job.store, job.parent_run_id, record, tags=tags, ended=time.time()))
