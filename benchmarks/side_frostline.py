"""Frostline's side of the comparison: every step of its line, timed, and the limit that its parts set."""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray
from workloads import DROPOUT, LEARNING_RATE, TRANSFORMS, Sources, Trial, clocks, timed

from frostline.arrays import load_split, save_split
from frostline.bases.base import load_base
from frostline.bases.cuts import build_suffix
from frostline.bases.extraction import Extractor, list_sources
from frostline.bases.files import fetch_weights
from frostline.devices import compile_function, value_and_grad
from frostline.files import load_json, mark_complete, save_json
from frostline.images.shards import decode_shards, gather_images
from frostline.images.views import Drawing, save_views
from frostline.images.walk import Entry
from frostline.params import Params, load_document, parse_params
from frostline.planning.storage import flips, list_depths
from frostline.process import count_cores
from frostline.search.outcome import run_study
from frostline.search.places import StudyFile
from frostline.search.space import list_baselines
from frostline.search.study import open_study
from frostline.tracking.runs import open_study_run
from frostline.tracking.store import open_store
from frostline.training.fusion import make_forward

CLASSES = ("cats", "dogs")
LOOP_SECONDS = 2.0  # how long a segment is run alone


def make_params(sources: Sources, num_trials: int, given: argparse.Namespace, folder: Path) -> Params:
    """The default params with the workload's base, sizes and space, and room for `num_trials` after the baselines."""
    work = sources.work
    document = load_document(Path(__file__).parents[1] / "presets" / "default.yaml")
    document["paths"] = {name: str(folder / path) for name, path in document["paths"].items()}
    document["seed"] = given.seed
    document["base"] = {
        "name": work.base,
        "weights": str((sources.shared / work.weights).resolve()),
        "image_size": work.image_size,
        "output_layer": work.output_layer,
    }
    document["augment"] = {"views": work.views, "transforms": TRANSFORMS}
    rate = {"low": LEARNING_RATE[0], "high": LEARNING_RATE[1], "log": True}
    document["tune"] |= {
        "num_trials": num_trials,
        "epochs": work.epochs,
        "batch_size": work.batch_size,
        "schedule": "constant",
        "pruning": given.pruning,
        "patience": given.patience,
        "probe": not given.no_probe,
        "space": {
            "dropout": list(DROPOUT),
            "unfrozen_blocks": [min(work.depths), max(work.depths)],
            "head_learning_rate": rate,
            "suffix_learning_rate": rate,
            "weight_decay": 0.0,
            "label_smoothing": 0.0,
            "optimizer": "adam",
            "head_units": 0,
            "head_input": "last",  # what the heads of all systems see
        },
    }
    params = parse_params(document)
    document["tune"]["num_trials"] += len(list_baselines(params.tune.space, params.tune.pooling))
    return parse_params(document)


def run_frostline(
    sources: Sources, trials: Sequence[Trial], given: argparse.Namespace, folder: Path | None = None
) -> dict[str, Any]:
    """The line of `frostline`: prepared images, views, features and the study, all in `folder`.

    Features that lie in the folder already are used and their seconds, kept beside them, charged again.
    """
    folder = folder or given.work
    params = make_params(sources, len(trials), given, folder)
    phases = make_features(sources, params)
    cpu = phases.pop("cpu")

    started, cpu_started = time.monotonic(), time.process_time()
    root = folder / f"study-{time.time_ns()}"
    root.mkdir(parents=True)
    store = open_store(params.tracking, root)
    started = timed(phases, "new MLflow database", started)
    parent = open_study_run(store, "benchmark", params={}, tags={})
    file = open_study(StudyFile(root / "studies" / "benchmark.db", "benchmark"), "code", "ask")
    study = file.load()
    baselines = len(list_baselines(params.tune.space, params.tune.pooling))
    for _ in range(baselines):  # a study begins with the linear heads, which draw nothing
        study.enqueue_trial({})
    for trial in trials:
        drawn = {"dropout": trial.dropout, "head_learning_rate": trial.learning_rate}
        drawn |= {"suffix_learning_rate": trial.learning_rate} if trial.depth else {}
        study.enqueue_trial(drawn | ({"unfrozen_blocks": trial.depth} if len(sources.work.depths) > 1 else {}))
    started = timed(phases, "bookkeeping", started)
    outcome = run_study(params, file, store, parent, CLASSES)
    total, cpu = time.monotonic() - started, cpu + time.process_time() - cpu_started

    records = outcome.trials[baselines:]
    for record, trial in zip(records, trials, strict=True):
        found = (record.depth, record.hparams.dropout, record.hparams.head_learning_rate)
        assert np.allclose(found, (trial.depth, trial.dropout, trial.learning_rate)), "the systems must run one list"
    for name, taken in outcome.seconds.items():
        phases[name] = phases.get(name, 0.0) + taken
    phases["bookkeeping"] += total - sum(outcome.seconds.values())
    seconds = sum(phases.values())
    scores = [record.score for record in records if record.score is not None]
    epochs = [record.epochs for record in records]
    return {
        "system": "frostline",
        "seconds": seconds,
        "cpu_seconds": cpu,
        "phases": phases,
        "bookkeeping_seconds_per_trial": outcome.bookkeeping_per_trial,
        "study_achieved_over_limit": outcome.achieved_over_limit,
        "share": {name: taken / seconds for name, taken in phases.items()},
        "mean_val_accuracy": float(np.mean(scores)),
        "best_val_accuracy": max(scores),
        "trials_per_minute": outcome.trials_per_minute,
        "epochs": epochs,
        "epochs_by_depth": {
            d: sum(e for e, t in zip(epochs, trials, strict=True) if t.depth == d) for d in sources.work.depths
        },
        "records": [
            {key: getattr(record, key) for key in ("score", "seconds", "epochs", "state", "depth")}
            for record in records
        ],
    }


def make_features(sources: Sources, params: Params) -> dict[str, float]:
    """Seconds by phase of everything before the study; taken from the folder's note where it has been done there."""
    work, paths = sources.work, params.paths
    note = Path(paths.features) / "seconds.json"
    if note.is_file():
        return dict(load_json(note))
    phases: dict[str, float] = {}
    started, cpu = time.monotonic(), _cpu()
    prepared = Path(paths.prepared)
    for split, files in (("train", sources.train), ("val", sources.val)):
        entries = [Entry(path, None, CLASSES[label], Path(path).name) for path, label in files]
        shards = decode_shards(entries, params.prepare, work.image_size, prepared / "work" / split, count_cores())
        records = [(r, label) for r, (_, label) in zip((r for s in shards for r in s.records), files, strict=True)]
        kept = [(r, label) for r, label in records if r.row >= 0]
        images = gather_images(shards, [r.row for r, _ in kept])
        labels = np.array([label for _, label in kept], np.int32)
        save_split(prepared / split, images, work.image_size, labels, [r.image_id for r, _ in kept])
    save_json(prepared / "classes.json", CLASSES)
    train, val = load_split(prepared / "train"), load_split(prepared / "val")
    mark_complete(prepared, num_images={"train": len(train.labels), "val": len(val.labels)})
    started = timed(phases, "decode", started)

    views, files_of = Path(paths.views), (prepared / "train" / "images.npy",)
    list(save_views(Drawing(files_of, train.digests, TRANSFORMS, params.seed), views, num_views=work.views))
    started = timed(phases, "augment", started)

    fetch_weights(params.base, Path(paths.base), params.seed)
    base = load_base(params.base, Path(paths.base))
    given = list_sources(train, val, views, work.views, mirrored=flips(params.augment))
    depths = list_depths(params.tune)
    extractor = Extractor(base, depths, params.extract.batch_size)
    for _ in extractor.save(given, Path(paths.features)):
        pass
    mark_complete(Path(paths.features), stored=depths)
    timed(phases, "prefix", started)
    phases["cpu"] = _cpu() - cpu
    save_json(note, phases)
    return phases


def _cpu() -> float:
    """CPU seconds of this process and of the children that have ended: views are drawn by processes of their own."""
    return time.process_time() + sum(os.times()[2:4])


def measure_limit(
    sources: Sources, trials: Sequence[Trial], epochs_of: dict[int, int], num_prefix: int
) -> dict[str, Any]:
    """What the segments alone would take: (wall, CPU) seconds per image of each, run in a loop, times their images.

    A suffix is measured as Keras gives it (stock layers) and as Frostline runs it (`fused`), forward alone and forward
    with backward; the limit is made of the faster.
    """
    work, base = sources.work, sources.base
    size, batch = work.image_size, work.batch_size
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (512, size, size, 3)).astype(np.uint8)
    extractor = Extractor(base, [depth for depth in work.depths if depth], 64)
    per_image = {"prefix": _loop(lambda: [None for _ in extractor.run(pixels)]) / len(pixels)}
    total = num_prefix * per_image["prefix"]
    num, val = len(sources.train), len(sources.val)
    for depth in work.depths:
        suffix = build_suffix(base, depth)
        if suffix is None:
            continue
        x = ops.convert_to_tensor(np.abs(rng.normal(size=(batch, *base.cuts[depth].shape))).astype("float32"))
        fixed = [ops.convert_to_tensor(value) for value in suffix.non_trainable_variables]
        params = [ops.convert_to_tensor(value) for value in suffix.trainable_variables]
        fused = make_forward(suffix)
        # The last output is the base's own, which a head that sees the last cut stands on.
        kinds: dict[str, Callable[[Any, Any], Any]] = {
            "stock": partial(_call_stock, suffix, fixed),
            "fused": partial(_call_fused, fused, fixed),
        }
        best: dict[str, NDArray[np.float64]] = {}
        for kind, forward in kinds.items():
            both = compile_function(partial(_gradients, forward))
            only = compile_function(partial(_outputs, forward))
            for name, run in (("forward", only), ("forward and backward", both)):
                taken = _loop(partial(_finish, run, params, x)) / batch
                per_image[f"suffix {depth} {kind} {name}"] = taken
                best[name] = min(best.get(name, taken), taken, key=lambda pair: float(pair[0]))
        total += epochs_of[depth] * (num * best["forward and backward"] + val * best["forward"])
    return {
        "seconds": total[0],
        "cpu_seconds": total[1],
        "images_per_second": {name: (1 / taken).round(1).tolist() for name, taken in per_image.items()},
    }


def _call_stock(suffix: Any, fixed: Any, params: Any, x: Any) -> Any:
    return suffix.stateless_call(params, fixed, x, training=False)[0][-1]


def _call_fused(fused: Any, fixed: Any, params: Any, x: Any) -> Any:
    return fused(params, fixed, x)[-1]


def _gradients(forward: Callable[[Any, Any], Any], params: Any, x: Any) -> Any:
    # All of them are returned: a graph leaves out what nobody asks for.
    loss = value_and_grad(lambda v, x: (ops.mean(forward(v, x)), x))
    return loss(params, x)[1]


def _outputs(forward: Callable[[Any, Any], Any], params: Any, x: Any) -> Any:
    return [forward(params, x)]


def _finish(run: Callable[[Any, Any], Any], params: Any, x: Any) -> None:
    """Runs a compiled call and waits for what it gives."""
    ops.convert_to_numpy(run(params, x)[-1])


def _loop(run: Callable[[], Any]) -> NDArray[np.float64]:
    """Median (wall, CPU) seconds of a call, after two."""
    taken: list[NDArray[np.float64]] = []
    stop = time.monotonic() + LOOP_SECONDS
    while len(taken) < 5 or time.monotonic() < stop:
        started = clocks()
        run()
        taken.append(clocks() - started)
    return np.asarray(np.median(taken[2:], axis=0))
