"""The one worker: draws trials, trains them on stored features, records them. Joins training, search and tracking."""

import math
import multiprocessing
import multiprocessing.connection
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.special import softmax

from frostline import search, tracking
from frostline.arrays import load_split, sha256_of
from frostline.backbones import Base, load_base
from frostline.classifier import build_tail, join_model, make_head_weights, save_model
from frostline.devices import describe_device, share_memory
from frostline.equivalence import Receipt, check_equivalence
from frostline.features import load_training_data
from frostline.hparams import Hparams
from frostline.metrics.calibration import fit_temperature
from frostline.params import Params, Space
from frostline.params import Refit as RefitParams
from frostline.probe import Probe, fit_probe
from frostline.process import Refused, die_with_parent
from frostline.progress import SearchProgress
from frostline.seeding import derive_seed
from frostline.training import PHASES, Epoch, Fit, Trainer, TrainingData, fit, load_state, save_state

PROBE_BATCH = 32  # pictures of the equivalence receipt
POLL_SECONDS = 0.2  # how often a worker that waits at a rung looks again
DRAW = "frostline.draw"  # tag of a trial's run: which draw of the study it is of
# Largest difference of a probability between the joined model and prefix + tail; the features between are float16.
JOIN_TOLERANCE = 0.02


@dataclass(frozen=True)
class Job:
    """All that a worker needs; it can be sent to another process."""

    params: Params
    study: search.StudyFile
    store: tracking.Store
    parent_run_id: str
    class_names: tuple[str, ...]
    probe: Probe | None
    work: Path  # states of trials that wait at a rung


class Bench:
    """What trials of one process share: the base, the features of each depth, and one compiled trainer per tail shape."""

    def __init__(self, params: Params, num_classes: int, probe: Probe | None) -> None:
        self.params, self.num_classes, self.probe = params, num_classes, probe
        self._base: Base | None = None
        self._trainers: dict[tuple[int, int, str], Trainer] = {}
        self._data: dict[int, TrainingData] = {}

    @property
    def base(self) -> Base:
        if self._base is None:
            self._base = load_base(self.params.base, Path(self.params.paths.base))
        return self._base

    def trainer(self, hparams: Hparams) -> Trainer:
        """The compiled trainer for this depth, head shape and optimiser, built at the first use."""
        key = (hparams.unfrozen_blocks, hparams.head_units, hparams.optimizer)
        if key not in self._trainers:
            base, tune = self.base, self.params.tune
            started = time.monotonic()
            tail = build_tail(base, key[0], self.num_classes, units=key[1], pooling=tune.pooling, seed=0)
            trainer = Trainer(tail, hparams.optimizer, tune.batch_size, self.num_classes)
            trainer.seconds["trace"] = time.monotonic() - started
            self._trainers[key] = trainer
        return self._trainers[key]

    def data(self, depth: int) -> TrainingData:
        """The stored features of one depth."""
        if depth not in self._data:
            params = self.params
            self._data[depth] = load_training_data(
                Path(params.paths.features),
                Path(params.paths.prepared),
                depth,
                params.augment.views,
                params.tune.class_weights,
                lambda: self.base,
            )
        return self._data[depth]

    def train(
        self,
        hparams: Hparams,
        seed: int,
        go_on: Callable[[Epoch], bool] | None = None,
        state: Path | None = None,
        curves: Mapping[str, list[float]] | None = None,
    ) -> Fit:
        """One training as `params.tune` says: from the start, or on from the file `state` with the epochs of `curves`."""
        tune, trainer = self.params.tune, self.trainer(hparams)
        probe = (self.probe.kernel, self.probe.bias) if self.probe else None
        start = trainer.start(
            make_head_weights(trainer.tail, derive_seed(seed, "head"), probe), derive_seed(seed, "dropout")
        )
        goes_on = state is not None and state.is_file()  # where the file is gone, the same epochs run again
        return fit(
            trainer,
            load_state(state, start) if state and goes_on else start,
            self.data(hparams.unfrozen_blocks),
            hparams,
            num_epochs=tune.epochs,
            schedule=tune.schedule,
            seed=seed,
            patience=tune.patience,
            go_on=go_on,
            curves=curves if goes_on else None,
        )

    def seconds(self) -> dict[str, float]:
        """What all trainers have taken so far, by phase."""
        return {phase: sum(trainer.seconds[phase] for trainer in self._trainers.values()) for phase in PHASES}

    def pace(self, depth: int) -> dict[str, float]:
        """Seconds per image that training and validation at this depth need at best, here; infinite where none ran."""
        paces = [trainer.pace for key, trainer in self._trainers.items() if key[0] == depth]
        return {phase: min((pace[phase] for pace in paces), default=math.inf) for phase in ("train", "validate")}

    def receipt(self, hparams: Hparams) -> Receipt:
        """Checks that stored features stand for the base at this depth; Refused where they do not."""
        trainer, data = self.trainer(hparams), self.data(hparams.unfrozen_blocks)
        val = load_split(Path(self.params.paths.prepared) / "val")
        chosen = np.linspace(0, len(val.labels) - 1, min(PROBE_BATCH, len(val.labels))).astype(int)
        state = trainer.start(make_head_weights(trainer.tail, 0, None), 0)
        return check_equivalence(
            self.base,
            trainer,
            state,
            val.images[chosen],
            np.asarray(data.val[chosen]),
            val.labels[chosen],
            self.params.tune.pooling,
        )


def fit_shared_probe(params: Params) -> Probe | None:
    """The linear probe that warm-starts every head; None where no head could start from one."""
    tune = params.tune
    if not tune.probe or tune.pooling == "flatten" or 0 not in tune.space.head_units:
        return None
    data = load_training_data(Path(params.paths.features), Path(params.paths.prepared), 0, 1, "none")
    return fit_probe(data.views[0], data.labels, data.val, data.val_labels, int(data.labels.max()) + 1)


def make_baseline(space: Space, depth: int = 0) -> Hparams:
    """Trial 0's hparams, at another depth where one is given."""
    drawn = search.baseline(space)
    suffix_rate = space.suffix_learning_rate.low if depth else None
    return Hparams.from_record({**drawn, "unfrozen_blocks": depth, "suffix_learning_rate": suffix_rate})


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
    study: search.StudyFile,
    store: tracking.Store,
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
    known = {record["number"] for record in search.list_records(study.load(), params.tune.num_trials)}
    # A kill between a trial's run and its record leaves the run of a trial that is drawn again.
    killed = [trial for trial in study.load().get_trials(deepcopy=False) if search.KILLED in trial.user_attrs]
    tracking.delete_trials(store, parent_run_id, DRAW, [_draw_of(trial) for trial in killed])
    run_trials(Job(params, study, store, parent_run_id, class_names, probe, work), bench)
    laps.append(time.monotonic())
    shutil.rmtree(work, ignore_errors=True)

    records = search.list_records(study.load(), params.tune.num_trials)
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
        importances=search.importances(study.load(), params.tune.num_trials),
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


def run_trials(job: Job, bench: Bench) -> None:
    """Runs trials until the study has `tune.num_trials`: on `bench` here, or in `tune.workers` processes."""
    tune = job.params.tune
    if tune.workers == 1:
        with SearchProgress(tune.num_trials, tune.epochs) as progress:
            for record in search.list_records(job.study.load(), tune.num_trials):
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
            for trial, record in search.list_losers(study, tune):
                _end(job, study, trial, record)
                progress.end(record)
            task = search.next_task(study, tune, job.params.seed)
        if task == "done":
            return
        if task == "wait":
            time.sleep(POLL_SECONDS)
            continue
        record = _run(task, bench, job.work, progress)
        if record["state"] == "PAUSED":
            with job.study.locked():
                search.pause(task.trial, record)
        else:
            _end(job, study, task.trial, record)
            progress.end(record)


def _end(job: Job, study: optuna.Study, trial: optuna.trial.Trial, record: dict[str, Any]) -> None:
    """Records a trial that goes no further."""
    record["run_id"] = _log(job, record, _draw_of(trial))
    search.keep_record(trial, record)
    search.tell(study, trial.number, record)
    _state_file(job.work, record["number"]).unlink(missing_ok=True)
    print(describe_trial(record, job.params.tune.num_trials), flush=True)


def _state_file(work: Path, number: int) -> Path:
    return work / f"trial-{number:04d}.npz"


def _run(task: search.Task, bench: Bench, work: Path, progress: SearchProgress) -> dict[str, Any]:
    """The record of a trial after one piece of work: complete, pruned, paused at a rung, or failed with the reason."""
    tune, trial = bench.params.tune, task.trial
    so_far = task.so_far or {
        "seconds": 0.0,
        "phases": dict.fromkeys(PHASES, 0.0),
        "curves": None,
        "started": time.time(),
    }
    hparams = Hparams.from_record(so_far["hparams"]) if task.so_far else search.suggest(trial, task.number, tune.space)
    best = -math.inf
    state = "COMPLETE"

    def go_on(epoch: Epoch) -> bool:
        nonlocal best, state
        best = max(best, epoch.val_accuracy)
        progress.epoch(task.number, epoch.number, epoch.val_accuracy)
        if epoch.number == task.until < tune.epochs:
            state = "PAUSED"
        elif tune.pruning == "median" and epoch.number in search.list_rungs(tune)[:-1]:
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


def _draw_of(trial: optuna.trial.BaseTrial) -> str:
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
    return tracking.log_trial(
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


def describe_trial(record: Mapping[str, Any], num_trials: int) -> str:
    """One line for a log: number, depth, dropout, score, time."""
    hparams = record["hparams"]
    score = "failed" if record["score"] is None else f"val accuracy {record['score']:.4f}"
    note = {
        "COMPLETE": "",
        "PRUNED": f", pruned after epoch {record['epochs']}",
        "FAIL": f": {record.get('reason', '')}",
    }
    return (
        f"trial {record['number'] + 1}/{num_trials}: depth {hparams['unfrozen_blocks']}, dropout {hparams['dropout']:.2f}, "
        f"{score}, {record['seconds']:.1f} s{note[record['state']]}"
    )


@dataclass(frozen=True)
class Refit:
    """A whole model on disk and how it came about."""

    hparams: Hparams
    seeds: list[dict[str, float]]
    kept: int
    temperature: float
    sha256: str
    join_difference: float
    curves: dict[str, list[float]]

    @property
    def val_accuracy(self) -> float:
        return self.seeds[self.kept]["val_accuracy"]

    @property
    def val_loss(self) -> float:
        return self.seeds[self.kept]["val_loss"]

    def to_record(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "hparams": self.hparams.to_record(),
            "val_accuracy": self.val_accuracy,
            "val_loss": self.val_loss,
        }


def refit(bench: Bench, hparams: Hparams, rules: RefitParams, path: Path, images: NDArray[np.uint8]) -> Refit:
    """Trains `rules.seeds` times on `train`, keeps the median (or best) validation score, writes the whole model to `path`.

    The temperature is fitted on `val` and stored in the model. `images` (uint8) go through the joined model and
    through its parts; Refused where the probabilities differ by more than JOIN_TOLERANCE.
    """
    trainer, data = bench.trainer(hparams), bench.data(hparams.unfrozen_blocks)
    seeds = [derive_seed(bench.params.seed, "refit", index) for index in range(rules.seeds)]
    fits = [bench.train(hparams, seed) for seed in seeds]
    ranked = sorted(range(len(fits)), key=lambda index: fits[index].rank)
    kept = ranked[-1] if rules.keep == "best" else ranked[len(ranked) // 2]
    best = fits[kept].best_state
    assert best is not None

    logits = trainer.predict(best, data.val)
    temperature = fit_temperature(data.val_labels, logits)
    trainer.store(best.params)
    model = join_model(
        bench.base, trainer.tail, pooling=bench.params.tune.pooling, dropout=hparams.dropout, temperature=temperature
    )
    difference = float(np.abs(_predict(model, images) - softmax(logits[: len(images)] / temperature, axis=1)).max())
    if difference > JOIN_TOLERANCE:
        raise Refused(
            f"The whole model and the features that it was trained on differ by {difference:.2g} in a probability; {JOIN_TOLERANCE} "
            f"is allowed. Set extract.precision to float32 (it is {bench.params.extract.precision}), or delete "
            "data/features, and run `dvc repro`."
        )
    save_model(model, path)
    return Refit(
        hparams=hparams,
        seeds=[
            {"seed": seed, "val_accuracy": f.val_accuracy, "val_loss": f.val_loss}
            for seed, f in zip(seeds, fits, strict=True)
        ],
        kept=kept,
        temperature=temperature,
        sha256=sha256_of(path),
        join_difference=difference,
        curves=fits[kept].curves,
    )


def _predict(model: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate(
        [keras.ops.convert_to_numpy(model(images[i : i + 16], training=False)) for i in range(0, len(images), 16)]
    )
