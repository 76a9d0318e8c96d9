"""Frostline's side of the comparison: every step of its line, timed, and the limit that its parts set."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from search import DROPOUT, LEARNING_RATE, TRANSFORMS, Trial, timed
from search_plain import Sources

from frostline import search, tracking
from frostline.arrays import load_array, load_json, load_split, mark_complete, save_json, save_split
from frostline.augmentation import save_views
from frostline.backbones import build_prefix, build_suffix, fetch_weights, load_base
from frostline.devices import compile_frozen, compile_function, value_and_grad
from frostline.features import extract_views
from frostline.folders import Entry
from frostline.params import Params, load_document, parse_params
from frostline.preparation.shards import decode_shards, gather_images
from frostline.process import count_cores
from frostline.trials import run_study

CLASSES = ("cats", "dogs")
LOOP_SECONDS = 2.0  # how long a segment is run alone


def make_params(sources: Sources, num_trials: int, given: argparse.Namespace, folder: Path) -> Params:
    """The default params with the workload's base, sizes and space."""
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
        },
    }
    return parse_params(document)


def run_frostline(
    sources: Sources, trials: Sequence[Trial], given: argparse.Namespace, folder: Path | None = None
) -> dict[str, Any]:
    """The line of `frostline`: prepared pictures, views, features and the study, all in `folder`.

    Features that lie in the folder already are used and their seconds, kept beside them, charged again.
    """
    folder = folder or given.work
    params = make_params(sources, len(trials), given, folder)
    phases = make_features(sources, params)

    started = time.monotonic()
    root = folder / f"study-{time.time_ns()}"
    root.mkdir(parents=True)
    store = tracking.open_store(params.tracking, root)
    parent = tracking.open_study_run(store, "benchmark", params={}, tags={})
    file = search.open_study(root / "studies", "benchmark", "code", "ask", params.tune.space)
    study = file.load()
    for trial in trials[1:]:  # a study begins with the first by itself
        drawn = {"dropout": trial.dropout, "head_learning_rate": trial.learning_rate}
        drawn |= {"suffix_learning_rate": trial.learning_rate} if trial.depth else {}
        study.enqueue_trial(drawn | ({"unfrozen_blocks": trial.depth} if len(sources.work.depths) > 1 else {}))
    started = timed(phases, "bookkeeping", started)
    outcome = run_study(params, file, store, parent, CLASSES)
    total = time.monotonic() - started

    records = outcome.records
    for record, trial in zip(records, trials, strict=True):
        hparams = record["hparams"]
        found = (hparams["unfrozen_blocks"], hparams["dropout"], hparams["head_learning_rate"])
        assert np.allclose(found, (trial.depth, trial.dropout, trial.learning_rate)), "the systems must run one list"
    inside = {name: taken for name, taken in outcome.seconds.items() if name != "total"}
    for name, taken in inside.items():
        phases[name] = phases.get(name, 0.0) + taken
    phases["bookkeeping"] += total - sum(inside.values())
    seconds = sum(phases.values())
    scores = [record["score"] for record in records if record["score"] is not None]
    epochs = [record["epochs"] for record in records]
    return {
        "system": "frostline",
        "seconds": seconds,
        "phases": phases,
        "share": {name: taken / seconds for name, taken in phases.items()},
        "mean_val_accuracy": float(np.mean(scores)),
        "best_val_accuracy": max(scores),
        "trials_per_minute": outcome.trials_per_minute,
        "epochs": epochs,
        "epochs_by_depth": {
            d: sum(e for e, t in zip(epochs, trials, strict=True) if t.depth == d) for d in sources.work.depths
        },
        "records": [
            {key: record[key] for key in ("score", "seconds", "epochs", "state")} | {"depth": trial.depth}
            for record, trial in zip(records, trials, strict=True)
        ],
    }


def make_features(sources: Sources, params: Params) -> dict[str, float]:
    """Seconds by phase of everything before the study; taken from the folder's note where it has been done there."""
    work, paths = sources.work, params.paths
    note = Path(paths.features) / "seconds.json"
    if note.is_file():
        return dict(load_json(note))
    phases: dict[str, float] = {}
    started = time.monotonic()
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
    mark_complete(prepared)
    started = timed(phases, "decode", started)

    train, val = load_split(prepared / "train"), load_split(prepared / "val")
    views, images_file = Path(paths.views), prepared / "train" / "images.npy"
    save_views(images_file, train.ids, params.augment.transforms, views, num_views=work.views, seed=params.seed)
    started = timed(phases, "augment", started)

    fetch_weights(params.base, Path(paths.base), params.seed)
    base = load_base(params.base, Path(paths.base))
    named = {f"view-{view:03d}": load_array(views / f"view-{view:03d}.npy") for view in range(1, work.views)}
    given = {"view-000": train.images, **named, "val": val.images}
    depths = sorted({0, *work.depths})
    for _ in extract_views(base, depths, params.tune.pooling, given, Path(paths.features), params.extract.batch_size):
        pass
    mark_complete(Path(paths.features))
    timed(phases, "prefix", started)
    save_json(note, phases)
    return phases


def measure_limit(
    sources: Sources, trials: Sequence[Trial], epochs_of: dict[int, int], num_prefix: int
) -> dict[str, Any]:
    """What the segments alone would take: seconds per image of each, run in a loop on one batch, times their images.

    The suffix is measured as Keras gives it: stock layers, forward alone and forward with backward.
    """
    work, base = sources.work, sources.base
    size, batch = work.image_size, work.batch_size
    pixels = ops.convert_to_tensor(np.random.default_rng(0).integers(0, 255, (64, size, size, 3)).astype(np.uint8))
    prefix = compile_frozen(build_prefix(base, sorted({0, *work.depths}), "avg"))
    per_image: dict[str, float] = {"prefix": _loop(lambda: prefix(pixels)) / 64}
    total = num_prefix * per_image["prefix"]
    num, val = len(sources.train), len(sources.val)
    for depth in work.depths:
        suffix = build_suffix(base, depth)
        if suffix is None:
            continue
        x = ops.convert_to_tensor(
            np.random.default_rng(0).normal(size=(batch, *base.cuts[depth].shape)).astype("float32")
        )
        fixed = [ops.convert_to_tensor(value) for value in suffix.non_trainable_variables]
        params = [ops.convert_to_tensor(value) for value in suffix.trainable_variables]

        def loss_of(values: list[Any], x: Any, suffix: Any = suffix, fixed: Any = fixed) -> Any:
            y, _ = suffix.stateless_call(values, fixed, x, training=False)
            return ops.mean(y), y

        both = compile_function(lambda v, x, f=value_and_grad(loss_of): f(v, x)[1])
        forward = compile_function(lambda v, x, f=loss_of: f(v, x)[1])
        per_image[f"suffix {depth} forward"] = _loop(lambda f=forward, p=params, x=x: f(p, x)) / batch
        per_image[f"suffix {depth} forward and backward"] = _loop(lambda f=both, p=params, x=x: f(p, x)) / batch
        total += epochs_of[depth] * (
            num * per_image[f"suffix {depth} forward and backward"] + val * per_image[f"suffix {depth} forward"]
        )
    return {"seconds": total, "seconds_per_image": per_image}


def _loop(run: Callable[[], Any]) -> float:
    """Median seconds of a call, after three."""
    taken = []
    stop = time.monotonic() + LOOP_SECONDS
    while len(taken) < 6 or time.monotonic() < stop:
        started = time.monotonic()
        out = run()
        ops.convert_to_numpy(out[0])  # waits for the result
        taken.append(time.monotonic() - started)
    return float(np.median(taken[3:]))
