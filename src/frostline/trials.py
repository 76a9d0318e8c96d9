"""The one worker: draws trials, trains them on stored features, records them. Joins training, search and tracking."""

import math
import multiprocessing
import os
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
from frostline.process import die_with_parent
from frostline.seeding import derive_seed
from frostline.training import Epoch, Fit, Trainer, TrainingData, fit

PROBE_BATCH = 32  # pictures of the equivalence receipt
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
            tune = self.params.tune
            tail = build_tail(self.base, key[0], self.num_classes, units=key[1], pooling=tune.pooling, seed=0)
            self._trainers[key] = Trainer(tail, hparams.optimizer, tune.batch_size, self.num_classes)
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
            )
        return self._data[depth]

    def train(self, hparams: Hparams, seed: int, go_on: Callable[[Epoch], bool] | None = None) -> Fit:
        """One training from the start state, as `params.tune` says."""
        tune, trainer = self.params.tune, self.trainer(hparams)
        probe = (self.probe.kernel, self.probe.bias) if self.probe else None
        start = trainer.start(
            make_head_weights(trainer.tail, derive_seed(seed, "head"), probe), derive_seed(seed, "dropout")
        )
        return fit(
            trainer,
            start,
            self.data(hparams.unfrozen_blocks),
            hparams,
            num_epochs=tune.epochs,
            schedule=tune.schedule,
            seed=seed,
            patience=tune.patience,
            go_on=go_on,
        )

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
    """What a study came to: the records of its trials, the proof of its features, and what it cost."""

    records: list[dict[str, Any]]
    receipts: list[Receipt]
    probe: Probe | None
    importances: dict[str, float]
    seconds: dict[str, float]

    @property
    def trials_per_minute(self) -> float:
        return 60 * len(self.records) / max(self.seconds["trials"], 1e-9)

    def to_record(self) -> dict[str, Any]:
        """All but the records, for study.json."""
        probe = self.probe and {"strength": self.probe.strength, "val_accuracy": self.probe.val_accuracy}
        return {
            "receipts": [receipt.to_record() for receipt in self.receipts],
            "probe": probe,
            "importances": self.importances,
            "seconds": self.seconds,
            "trials_per_minute": self.trials_per_minute,
        }


def run_study(
    params: Params, study: search.StudyFile, store: tracking.Store, parent_run_id: str, class_names: tuple[str, ...]
) -> Outcome:
    """Probe, receipts at the shallowest and the deepest cut, then trials until there are `tune.num_trials`."""
    started = time.monotonic()
    probe = fit_shared_probe(params)
    probed = time.monotonic()
    bench = Bench(params, len(class_names), probe)
    space = params.tune.space
    receipts = [bench.receipt(make_baseline(space, depth)) for depth in sorted({0, space.unfrozen_blocks[1]})]
    checked = time.monotonic()
    run_trials(Job(params, study, store, parent_run_id, class_names, probe), bench)
    records = search.list_records(study.load(), params.tune.num_trials)
    seconds = {
        "probe": probed - started,
        "receipt": checked - probed,
        # Of all trials that are reported, whenever they ran.
        "trials": sum(record["seconds"] for record in records),
    }
    return Outcome(records, receipts, probe, search.importances(study.load(), params.tune.num_trials), seconds)


def run_trials(job: Job, bench: Bench) -> None:
    """Runs trials until the study has `tune.num_trials`: on `bench` here, or in `tune.workers` processes."""
    if job.params.tune.workers == 1:
        _work(job, bench)
        return
    # Spawned: a fork after TensorFlow has run hangs.
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work_alone, args=(job,)) for _ in range(job.params.tune.workers)]
    for worker in workers:
        worker.start()
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
    _work(job, Bench(job.params, len(job.class_names), job.probe))


def _work(job: Job, bench: Bench) -> None:
    study = job.study.load()
    while True:
        with job.study.locked():
            asked = search.ask(study, job.params.tune, job.params.seed)
        if asked is None:
            return
        trial, number = asked
        started = time.time()
        record = _run_trial(trial, number, search.suggest(trial, number, job.params.tune.space), bench)
        record["run_id"] = _log(job, record, started)
        search.keep_record(trial, record)
        search.tell(study, trial.number, record)
        print(describe_trial(record, job.params.tune.num_trials), flush=True)


def _run_trial(trial: optuna.trial.Trial, number: int, hparams: Hparams, bench: Bench) -> dict[str, Any]:
    """The record of one trial: trained, pruned, or failed with the reason."""
    best = -math.inf
    pruned = False

    def go_on(epoch: Epoch) -> bool:
        nonlocal best, pruned
        best = max(best, epoch.val_accuracy)
        if search.is_rung(epoch.number) and epoch.number < bench.params.tune.epochs:
            trial.report(best, epoch.number)
            pruned = trial.should_prune()
        return not pruned

    started = time.monotonic()
    record: dict[str, Any] = {"number": number, "hparams": hparams.to_record()}
    try:
        fitted = bench.train(hparams, derive_seed(bench.params.seed, "trial", number), go_on)
    except FloatingPointError as error:
        empty: dict[str, Any] = {"score": None, "val_loss": None, "best_epoch": None, "epochs": 0, "curves": {}}
        return {**record, "state": "FAIL", "reason": str(error), **empty, "seconds": time.monotonic() - started}
    return {
        **record,
        "state": "PRUNED" if pruned else "COMPLETE",
        "score": fitted.best.val_accuracy,
        "val_loss": fitted.best.val_loss,
        "best_epoch": fitted.best.number,
        "epochs": len(fitted.curves["loss"]),
        "seconds": time.monotonic() - started,
        "curves": fitted.curves,
    }


def _log(job: Job, record: Mapping[str, Any], started: float) -> str:
    hparams = record["hparams"]
    metrics = {"seconds": record["seconds"], "epochs": record["epochs"]}
    if record["score"] is not None:
        metrics |= {
            "best_val_accuracy": record["score"],
            "best_val_loss": record["val_loss"],
            "best_epoch": record["best_epoch"],
        }
    return tracking.log_trial(
        job.store,
        job.parent_run_id,
        name=f"trial {record['number']:02d} · depth {hparams['unfrozen_blocks']} · dropout {hparams['dropout']:.2f}",
        params=hparams,
        metrics=metrics,
        curves=record["curves"],
        tags={
            "frostline.trial": str(record["number"]),
            "frostline.state": record["state"],
            "frostline.device": describe_device(),
            "frostline.backend": keras.backend.backend(),
        },
        status={"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}[record["state"]],
        started=started,
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
    through its parts; AssertionError where the probabilities differ by more than JOIN_TOLERANCE.
    """
    trainer, data = bench.trainer(hparams), bench.data(hparams.unfrozen_blocks)
    seeds = [derive_seed(bench.params.seed, "refit", index) for index in range(rules.seeds)]
    fits = [bench.train(hparams, seed) for seed in seeds]
    ranked = sorted(range(len(fits)), key=lambda index: fits[index].best.rank)
    kept = ranked[-1] if rules.keep == "best" else ranked[len(ranked) // 2]
    best = fits[kept].best

    logits = trainer.predict(best.state, data.val)
    temperature = fit_temperature(data.val_labels, logits)
    trainer.store(best.state.params)
    model = join_model(
        bench.base, trainer.tail, pooling=bench.params.tune.pooling, dropout=hparams.dropout, temperature=temperature
    )
    difference = float(np.abs(_predict(model, images) - softmax(logits[: len(images)] / temperature, axis=1)).max())
    assert difference <= JOIN_TOLERANCE, f"the joined model differs from its parts by {difference:.3g}"
    save_model(model, path)
    return Refit(
        hparams=hparams,
        seeds=[
            {"seed": seed, "val_accuracy": f.best.val_accuracy, "val_loss": f.best.val_loss}
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
