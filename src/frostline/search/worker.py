"""The worker: draws trials, trains them on stored features, records them. Joins training, search and tracking."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import BaseTrial, Trial

from frostline.devices import BACKEND, describe_device, list_gpus, share_memory
from frostline.errors import Refused
from frostline.evidence.trials import HEADS, TrialRecord, describe_collapse, has_collapsed
from frostline.files import load_json
from frostline.params import Params
from frostline.process import if_stopped
from frostline.scale.engines import open_engine
from frostline.search.places import CODE, Place, StudyFile, digest_of, require_server
from frostline.search.progress import SearchProgress
from frostline.search.space import list_baselines, suggest, with_found_depths
from frostline.search.study import (
    JOB,
    STARTED,
    close_abandoned,
    close_stopped,
    draw,
    finish,
    list_records,
    list_rungs,
    wait_for_all,
)
from frostline.search.supply import find_data
from frostline.search.trial import run_baseline, run_trial
from frostline.tracking.messages import describe_trial
from frostline.tracking.runs import DRAW, delete_trials, has_run, log_trial
from frostline.tracking.store import Store
from frostline.training.bench import Bench, fit_shared_heads
from frostline.training.linear import CrossValidation


@dataclass(frozen=True)
class Job:
    """All that a worker needs; it can be sent to another process.

    study: where trials are drawn from; store, parent_run_id: where their runs go; class_names: of the images; heads: the
    linear ones that every head starts from, by what they see.
    """

    params: Params
    study: Place
    store: Store
    parent_run_id: str
    class_names: tuple[str, ...]
    heads: Mapping[str, CrossValidation]


def run_trials(job: Job, bench: Bench) -> None:
    """Runs trials until the study has `tune.num_trials`: on `bench` here, or in the workers of the params' engine."""
    tune, study = job.params.tune, job.study

    def say_lost(reason: str) -> None:
        study.call(partial(close_abandoned, study))
        print(f"tune: a worker ended early ({reason}); its trial is drawn again", flush=True)

    with if_stopped(partial(close_stopped, study)), open_engine(job.params) as engine:
        number = engine.workers
        work = partial(engine.run_workers, _work_alone, (job,), here=partial(_work_here, job, bench), lost=say_lost)
        while number:
            ended = work(number, gpus=list_gpus(), one_machine=isinstance(study, StudyFile))
            if len(ended) == number:
                raise Refused(f"All workers of the search ended early: {'; '.join(ended)}. `dvc repro` goes on.")
            # The others may have gone before the trials of those that ended early came back.
            number = 0 if wait_for_all(study, tune.num_trials) else 1


def join(params: Params, store: Store, code: str) -> None:
    """Runs trials of the study that `tune` runs with these params and data on another machine, until none is left to draw.

    What it reads is in this project's folder or, where there are no features, in `scale.store`. code: the digest of the trials' code
    here. Refused where there is no such study, or its trials are of other code or another store.
    """
    with find_data(params) as (found, take):
        _join(found, store, code, take)


def _join(params: Params, store: Store, code: str, take: Callable[[str], None] | None) -> None:
    params = with_found_depths(params)
    study = require_server(digest_of(params), params)
    facts = study.read(lambda loaded: loaded.user_attrs)
    if facts[CODE] != code:
        raise Refused(
            f"The code here is not that of study {study.digest}. A worker needs the version that `tune` runs."
        )
    if JOB not in facts:
        raise Refused(f"`tune` has not begun with study {study.digest}. Start the worker once it says so.")
    parent = facts[JOB]["parent_run_id"]
    if not has_run(store, parent):
        raise Refused(
            f"{store.shown_uri} has no run {parent}, below which study {study.digest} writes its trials. Set MLFLOW_TRACKING_URI to "
            "the server that `tune` writes to."
        )
    params = params.model_copy(update={"tune": params.tune.model_copy(update={"num_trials": facts[JOB]["num_trials"]})})
    classes = tuple(load_json(Path(params.paths.prepared) / "classes.json"))
    _share_device()
    bench = Bench(params, len(classes), {}, take)
    # Fitted again: they take seconds, and what is sent from machine to machine would have to be believed.
    bench.heads = fit_shared_heads(bench)
    with if_stopped(partial(close_stopped, study)):
        for line in _work(Job(params, study, store, parent, classes, bench.heads), bench, _hidden_progress(params)):
            print(line, flush=True)


def draw_of(trial: BaseTrial) -> str:
    """What tells a draw from every other: its number would do within one study, but a restarted study, or a colleague's on
    the same server, has the same numbers."""
    assert trial.datetime_start is not None
    started: str = trial.datetime_start.isoformat()
    return started


def _work_here(job: Job, bench: Bench) -> Iterator[str]:
    tune = job.params.tune
    with SearchProgress(tune.num_trials, tune.epochs) as progress:
        for record in job.study.read(partial(list_records, num_trials=tune.num_trials)):
            progress.end(record)
        yield from _work(job, bench, progress)


def _work_alone(job: Job) -> Iterator[str]:
    _share_device()
    with find_data(job.params) as (params, take):
        bench = Bench(params, len(job.class_names), job.heads, take)
        yield from _work(replace(job, params=params), bench, _hidden_progress(params))


def _share_device() -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    share_memory()


def _hidden_progress(params: Params) -> SearchProgress:
    return SearchProgress(
        params.tune.num_trials, params.tune.epochs, shown=False
    )  # several bars would overwrite each other


def _work(job: Job, bench: Bench, progress: SearchProgress) -> Iterator[str]:
    """Runs trials until none is left to draw; what is to be said of each."""
    place, tune = job.study, job.params.tune
    study = place.call(place.load)
    _ = job.store.client  # MLflow's store takes a second to import: before a trial is drawn, not when one ends
    head = _Head(place, study)
    while asked := place.call(partial(draw, place, study, tune, job.params.seed)):
        trial, number = asked
        with place.beating(trial):
            try:
                record = _run(job, bench, trial, number, head, progress)
                is_ours = place.call(partial(finish, place, trial, record))
            except UpdateFinishedTrialError:
                is_ours = False
        if not is_ours:
            delete_trials(job.store, job.parent_run_id, DRAW, [draw_of(trial)])
            yield f"tune: trial {number} was given to another process, as this one was out of reach for long"
            continue
        yield describe_trial(record, tune.num_trials, head.score(), len(job.class_names))
        progress.end(record)


def _run(job: Job, bench: Bench, trial: Trial, number: int, head: "_Head", progress: SearchProgress) -> TrialRecord:
    tune = job.params.tune
    early = list_rungs(tune)[:-1]

    def should_stop(best: float, epoch: int) -> bool:
        return epoch in early and job.study.call(partial(_is_behind, trial, best, epoch))

    baselines = list_baselines(tune.space, tune.pooling)
    if number < len(baselines):
        record = run_baseline(bench, baselines[number], number)
    else:
        record = run_trial(
            bench,
            # A new one each time: it knows what was drawn before the database went away.
            job.study.call(lambda: suggest(Trial(trial.study, trial._trial_id), tune.space)),
            number,
            should_stop=should_stop,
            report=lambda epoch: progress.epoch(number, epoch.number, epoch.val_accuracy),
        )
    tags = {DRAW: draw_of(trial), "frostline.device": describe_device(), "frostline.backend": BACKEND}
    if origin := trial.user_attrs.get(STARTED):
        record = replace(record, started_from=origin)
        tags["frostline.started_from"] = origin
    if has_collapsed(record, head.score(), len(job.class_names)):
        tags["frostline.collapsed"] = describe_collapse(record)
    return replace(record, run_id=log_trial(job.store, job.parent_run_id, record, tags=tags, ended=time.time()))


class _Head:
    """The better linear head, where every tail begins."""

    def __init__(self, place: Place, study: optuna.Study) -> None:
        self.place, self.study = place, study
        self.records: list[TrialRecord] = []

    def score(self) -> float | None:
        """Its score, asked of the study until all heads have ended; None before there is one."""
        if len(self.records) < HEADS:
            self.records = self.place.call(partial(list_records, self.study, HEADS))
        return max((known.score for known in self.records if known.score is not None), default=None)


def _is_behind(trial: Trial, best: float, epoch: int) -> bool:
    trial.report(best, epoch)
    return bool(trial.should_prune())
