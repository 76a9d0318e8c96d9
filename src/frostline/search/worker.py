"""The worker: draws trials, trains them on stored features, records them. Joins training, search and tracking."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from optuna.trial import BaseTrial, Trial

from frostline.devices import BACKEND, describe_device, list_gpus, share_memory
from frostline.errors import Refused
from frostline.evidence.trials import TrialRecord
from frostline.params import Params
from frostline.process import if_stopped
from frostline.scale.engines import open_engine
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
    """Runs trials until the study has `tune.num_trials`: on `bench` here, or in the workers of the params' engine."""
    num_trials = job.params.tune.num_trials

    def say_lost(reason: str) -> None:
        close_abandoned(job.study)
        print(f"tune: a worker ended early ({reason}); its trial is drawn again", flush=True)

    with if_stopped(partial(close_stopped, job.study)), open_engine(job.params) as engine:
        number = engine.workers
        here, gpus = partial(_work_here, job, bench), list_gpus()
        while ended := engine.run_workers(
            _work_alone, (job,), number, here=here, lost=say_lost, gpus=gpus, one_machine=True
        ):
            close_abandoned(job.study)
            if len(ended) >= number:
                raise Refused(f"All workers of the search ended early: {'; '.join(ended)}. `dvc repro` goes on.")
            # The others may have gone before the trials came back.
            number = 1 if len(list_records(job.study.load(), num_trials)) < num_trials else 0


def draw_of(trial: BaseTrial) -> str:
    """What tells a draw from every other: its number would do within one study, but a restarted study, or a colleague's on
    the same server, has the same numbers."""
    assert trial.datetime_start is not None
    started: str = trial.datetime_start.isoformat()
    return started


def _work_here(job: Job, bench: Bench) -> Iterator[str]:
    tune = job.params.tune
    with SearchProgress(tune.num_trials, tune.epochs) as progress:
        for record in list_records(job.study.load(), tune.num_trials):
            progress.end(record)
        yield from _work(job, bench, progress)


def _work_alone(job: Job) -> Iterator[str]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    share_memory()
    tune = job.params.tune
    progress = SearchProgress(tune.num_trials, tune.epochs, shown=False)  # several bars would overwrite each other
    yield from _work(job, Bench(job.params, len(job.class_names), job.heads), progress)


def _work(job: Job, bench: Bench, progress: SearchProgress) -> Iterator[str]:
    """Runs trials until none is left to draw; what is to be said of each."""
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
        yield describe_trial(record, tune.num_trials, head, len(job.class_names))
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
