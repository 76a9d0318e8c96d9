"""The worker: draws trials, trains them on stored features, records them. Joins training, search and tracking."""

import math
import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import optuna

from frostline.devices import describe_device, share_memory
from frostline.hparams import Hparams
from frostline.params import Params
from frostline.process import die_with_parent
from frostline.search.progress import SearchProgress
from frostline.search.space import suggest
from frostline.search.study import (
    StudyFile,
    Task,
    keep_record,
    list_losers,
    list_records,
    list_rungs,
    next_task,
    pause,
    tell,
)
from frostline.seeding import derive_seed
from frostline.tracking.messages import describe_trial
from frostline.tracking.runs import log_trial
from frostline.tracking.store import Store
from frostline.training.bench import Bench
from frostline.training.fit import save_state
from frostline.training.probe import Probe
from frostline.training.trainer import PHASES, Epoch

POLL_SECONDS = 0.2  # how often a worker that waits at a rung looks again
DRAW = "frostline.draw"  # tag of a trial's run: which draw of the study it is of


@dataclass(frozen=True)
class Job:
    """All that a worker needs; it can be sent to another process."""

    params: Params
    study: StudyFile
    store: Store
    parent_run_id: str
    class_names: tuple[str, ...]
    probe: Probe | None
    work: Path  # states of trials that wait at a rung


def run_trials(job: Job, bench: Bench) -> None:
    """Runs trials until the study has `tune.num_trials`: on `bench` here, or in `tune.workers` processes."""
    tune = job.params.tune
    if tune.workers == 1:
        with SearchProgress(tune.num_trials, tune.epochs) as progress:
            for record in list_records(job.study.load(), tune.num_trials):
                progress.end(record)
            _work(job, bench, progress)
        return
    # Spawned: a fork after TensorFlow has run hangs.
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work_alone, args=(job,)) for _ in range(tune.workers)]
    for worker in workers:
        worker.start()
    while running := [worker.sentinel for worker in workers if worker.is_alive()]:
        multiprocessing.connection.wait(running)
        if tune.pruning == "halving" and any(worker.exitcode for worker in workers):
            for worker in workers:  # they would wait for the dead one's trial
                worker.terminate()
    for worker in workers:
        worker.join()
    if failed := [worker.exitcode for worker in workers if worker.exitcode]:
        raise RuntimeError(
            f"{len(failed)} of {len(workers)} workers ended early, with exit codes {failed}. Run `dvc repro` to go on."
        )


def _work_alone(job: Job) -> None:
    die_with_parent()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    share_memory()
    tune = job.params.tune
    progress = SearchProgress(tune.num_trials, tune.epochs, shown=False)  # several bars would overwrite each other
    _work(job, Bench(job.params, len(job.class_names), job.probe), progress)


def _work(job: Job, bench: Bench, progress: SearchProgress) -> None:
    study = job.study.load()
    tune = job.params.tune
    while True:
        with job.study.locked():
            for trial, record in list_losers(study, tune):
                _end(job, study, trial, record)
                progress.end(record)
            task = next_task(study, tune, job.params.seed)
        if task == "done":
            return
        if task == "wait":
            time.sleep(POLL_SECONDS)
            continue
        record = _run(task, bench, job.work, progress)
        if record["state"] == "PAUSED":
            with job.study.locked():
                pause(task.trial, record)
        else:
            _end(job, study, task.trial, record)
            progress.end(record)


def _end(job: Job, study: optuna.Study, trial: optuna.trial.Trial, record: dict[str, Any]) -> None:
    """Records a trial that goes no further."""
    record["run_id"] = _log(job, record, draw_of(trial))
    keep_record(trial, record)
    tell(study, trial.number, record)
    _state_file(job.work, record["number"]).unlink(missing_ok=True)
    print(describe_trial(record, job.params.tune.num_trials), flush=True)


def _state_file(work: Path, number: int) -> Path:
    return work / f"trial-{number:04d}.npz"


def _run(task: Task, bench: Bench, work: Path, progress: SearchProgress) -> dict[str, Any]:
    """The record of a trial after one piece of work: complete, pruned, paused at a rung, or failed with the reason."""
    tune, trial = bench.params.tune, task.trial
    so_far = task.so_far or {
        "seconds": 0.0,
        "phases": dict.fromkeys(PHASES, 0.0),
        "curves": None,
        "started": time.time(),
    }
    hparams = Hparams.from_record(so_far["hparams"]) if task.so_far else suggest(trial, task.number, tune.space)
    best = -math.inf
    state = "COMPLETE"

    def go_on(epoch: Epoch) -> bool:
        nonlocal best, state
        best = max(best, epoch.val_accuracy)
        progress.epoch(task.number, epoch.number, epoch.val_accuracy)
        if epoch.number == task.until < tune.epochs:
            state = "PAUSED"
        elif tune.pruning == "median" and epoch.number in list_rungs(tune)[:-1]:
            trial.report(best, epoch.number)
            state = "PRUNED" if trial.should_prune() else state
        return state == "COMPLETE"

    started, before = time.monotonic(), bench.seconds()
    record: dict[str, Any] = {
        "number": task.number,
        "hparams": hparams.to_record(),
        "started": so_far["started"],
        "score": None,
        "val_loss": None,
        "best_epoch": None,
        "epochs": 0,
        "curves": {},
    }
    file = _state_file(work, task.number)
    try:
        seed = derive_seed(bench.params.seed, "trial", task.number)
        fitted = bench.train(hparams, seed, go_on, file, so_far["curves"])
        record |= {
            "score": fitted.val_accuracy,
            "val_loss": fitted.val_loss,
            "best_epoch": fitted.best_epoch,
            "epochs": fitted.num_epochs,
            "curves": fitted.curves,
        }
        if state == "PAUSED" and tune.patience and fitted.num_epochs - fitted.best_epoch >= tune.patience:
            state = "COMPLETE"  # it would not have gone on anyway
        if state == "PAUSED":
            save_state(file, fitted.state)
    except FloatingPointError as error:
        state, record["reason"] = "FAIL", str(error)
    spent = {phase: so_far["phases"][phase] + taken - before[phase] for phase, taken in bench.seconds().items()}
    seconds = so_far["seconds"] + time.monotonic() - started
    return {**record, "state": state, "seconds": seconds, "phases": spent}


def draw_of(trial: optuna.trial.BaseTrial) -> str:
    # Its number would do within one study; a restarted study, or a colleague's on the same server, has the same numbers.
    assert trial.datetime_start is not None
    started: str = trial.datetime_start.isoformat()
    return started


def _log(job: Job, record: Mapping[str, Any], draw: str) -> str:
    hparams = record["hparams"]
    metrics = {}
    if record["score"] is not None:
        metrics = {
            "best_val_accuracy": record["score"],  # the first is what MLflow's comparison opens with
            "best_val_loss": record["val_loss"],
            "best_epoch": record["best_epoch"],
        }
    metrics |= {"seconds": record["seconds"], "epochs": record["epochs"]}
    return log_trial(
        job.store,
        job.parent_run_id,
        name=f"trial {record['number']:02d} · depth {hparams['unfrozen_blocks']}",
        params=hparams,
        metrics=metrics,
        curves=record["curves"],
        tags={
            "frostline.trial": str(record["number"]),
            DRAW: draw,
            "frostline.state": record["state"],
            "frostline.device": describe_device(),
            "frostline.backend": keras.backend.backend(),
        },
        status={"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}[record["state"]],
        started=record["started"],
        ended=time.time(),
    )
