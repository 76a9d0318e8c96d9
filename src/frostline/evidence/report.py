"""The report: all that is known of a final model on one page that holds its images and calls nobody."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frostline.errors import redact
from frostline.evidence.card import (
    Records,
    describe_calibration,
    describe_final,
    describe_gain,
    describe_optimism,
    describe_worst,
)
from frostline.evidence.comparison import Interval
from frostline.evidence.conformal import Promise, describe_promises
from frostline.evidence.evaluation import Evaluation
from frostline.evidence.pages import embed, render
from frostline.evidence.predictions import Predictions, pick_mistakes
from frostline.evidence.refits import RefitRecord
from frostline.evidence.scores import METRICS, Score
from frostline.evidence.speed import BATCH
from frostline.evidence.strangers import describe_strangers
from frostline.evidence.suspicion import Suspect, describe_suspicion, sum_up
from frostline.evidence.trials import describe_collapsed, describe_edge
from frostline.params import Params

LISTED = 100  # mistakes and suspects in the tables, at most
LEFT, RIGHT = 135.0, 440.0  # where the axis of the chart begins and ends, of 460
CONTENTS = (
    ("result", "Result"),
    ("frost-line", "Frost line"),
    ("folds", "Folds"),
    ("classes", "Per class"),
    ("mistakes", "Mistakes"),
    ("labels", "Labels"),
    ("calibration", "Calibration"),
    ("sets", "Sets"),
    ("strangers", "Strangers"),
    ("cost", "Cost"),
    ("lineage", "Lineage"),
    ("use", "How to use it"),
)


@dataclass(frozen=True)
class Findings:
    """What `evaluate` found besides the records. figures: PNG files, in any folder."""

    predictions: Predictions
    suspects: Sequence[Suspect]
    figures: Sequence[Path]


def make_report(records: Records, params: Params, findings: Findings) -> str:
    """The page as HTML."""
    evaluation, predictions = records.evaluation, findings.predictions
    wrong = pick_mistakes(predictions, len(predictions.labels))
    names = predictions.class_names
    return render(
        "report.html",
        images="data:",
        connect="'none'",
        title=params.register_.name,
        contents=CONTENTS,
        lead=_introduce(records),
        accuracy=evaluation.score("accuracy"),
        num_images=evaluation.num_images,
        confidence=f"{100 * evaluation.confidence:g} %",
        compared=make_chart(compare_accuracy(evaluation)),
        gains=_list_gains(evaluation),
        scores=[
            {"label": METRICS[name].label, "value": score.value, "low": score.low, "high": score.high}
            for name, score in evaluation.scores.items()
            if score
        ],
        search=_describe_search(records),
        folds=_describe_folds(records),
        candidates=records.refit.candidates,
        classes=list(evaluation.per_class.items()),
        num_mistakes=len(wrong),
        mistakes=[
            {
                "file": predictions.files[row],
                "label": names[predictions.labels[row]],
                "said": names[predictions.predicted[row]],
                "probability": float(predictions.probabilities[row].max()),
            }
            for row in wrong[:LISTED]
        ],
        labels=describe_suspicion(sum_up(findings.suspects)),
        suspects=[each for each in findings.suspects if each.looks_wrong][:LISTED],
        calibration=describe_calibration(evaluation),
        promises=[{**vars(each), "worst": describe_worst(each)} for each in records.promises],
        sets=describe_promises(records.promises, records.refit.num_images),
        classes_of_sets=_list_sets(records.promises),
        strangers=describe_strangers(records.strangers),
        cost=_list_cost(records),
        lineage=_list_lineage(records, params),
        size=records.prepared["image_size"],
        figures={path.name: embed(path) for path in findings.figures if path.is_file()},
    )


@dataclass(frozen=True)
class Side:
    """One of two versions. name: for people; run_id: of its run in MLflow."""

    name: str
    run_id: str
    evaluation: Evaluation
    refit: RefitRecord


def make_comparison(first: Side, second: Side, lead: str, flips: Sequence[Mapping[str, Any]]) -> str:
    """Two versions side by side, as HTML. lead: what their answers on common images say; flips: those that changed."""
    sides = (first, second)
    both = [name for name in METRICS if all(side.evaluation.scores[name] for side in sides)]
    accuracies = [(side.name, side.evaluation.score("accuracy")) for side in sides]
    names = dict.fromkeys(name for side in sides for name in side.evaluation.per_class)
    return render(
        "comparison.html",
        images="data:",
        connect="'none'",
        title=f"{first.name} and {second.name}",
        names=[side.name for side in sides],
        lead=lead,
        compared=make_chart(accuracies),
        confidence=f"{100 * first.evaluation.confidence:g} %",
        scores=[
            {
                "label": METRICS[name].label,
                "cells": [side.evaluation.score(name) for side in sides],
                "difference": second.evaluation.score(name).value - first.evaluation.score(name).value,
            }
            for name in both
        ],
        classes=[
            {
                "name": name,
                "cells": [_of_class(side, name, kind) for kind in ("recall", "precision") for side in sides],
            }
            for name in names
        ],
        flips=flips[:LISTED],
        num_flips=len(flips),
        facts=[(name, *values) for name, values in _list_facts(sides)],
    )


def _of_class(side: Side, name: str, kind: str) -> str:
    found = side.evaluation.per_class.get(name)
    return f"{found[kind]['value']:.3f}" if found else "–"


def _list_facts(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    refits = [side.refit for side in sides]
    rows = [
        ("run", [side.run_id for side in sides]),
        ("final model", [describe_final(refit) for refit in refits]),
        ("test images", [str(side.evaluation.num_images) for side in sides]),
        ("images trained on", [str(refit.num_images) for refit in refits]),
        ("accuracy out of fold", [f"{refit.accuracy:.4f}" for refit in refits]),
        ("log loss out of fold", [f"{refit.log_loss:.4f}" for refit in refits]),
        ("trial", [str(refit.trial) for refit in refits]),
    ]
    hparams = [refit.hparams.to_record() for refit in refits]
    rows += [
        (name, [str(each.get(name, "–")) for each in hparams]) for name in dict.fromkeys([*hparams[0], *hparams[1]])
    ]
    return [*rows, ("sha256", [refit.sha256["final"] for refit in refits])]


def compare_accuracy(evaluation: Evaluation) -> list[tuple[str, Score]]:
    """(name, test accuracy) of the final model and of the linear heads beside it."""
    found = [("final model", evaluation.score("accuracy"))]
    if evaluation.every_cut:
        found.append(("head on every cut", evaluation.every_cut["accuracy"]))
    return [*found, ("bare head", evaluation.baseline["accuracy"])]


def make_chart(rows: Sequence[tuple[str, Score]]) -> dict[str, Any]:
    """Where the dots, the intervals and the ticks of a chart of accuracies stand, in its units from LEFT to RIGHT."""
    low, high = min(score.low for _, score in rows), max(score.high for _, score in rows)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / step <= 8)
    last = min(1.0, float(np.ceil(high / step) * step))
    first = min(float(np.floor(low / step) * step), last - step)

    def place(value: float) -> float:
        return round(LEFT + (value - first) / (last - first) * (RIGHT - LEFT), 1)

    ticks = np.arange(first, last + step / 2, step)
    return {
        "rows": [
            {"name": name, "x": place(score.value), "x_low": place(score.low), "x_high": place(score.high)}
            | {"value": score.value, "low": score.low, "high": score.high}
            for name, score in rows
        ],
        "ticks": [{"x": place(tick), "text": f"{100 * tick:.0f} %"} for tick in ticks.tolist()],
    }


def _introduce(records: Records) -> str:
    names = ", ".join(records.class_names[:12])
    more = f" and {len(records.class_names) - 12} more" if len(records.class_names) > 12 else ""
    return (
        f"Tells {len(records.class_names)} classes of images apart: {names}{more}. "
        f"Base: {records.base['name']}. Final model: {describe_final(records.refit)}."
    )


def _list_gains(evaluation: Evaluation) -> list[str]:
    lines = [describe_gain("the bare head on the last cut", evaluation.baseline, evaluation.gain)]
    if evaluation.every_cut and evaluation.every_cut_gain:
        lines.append(describe_gain("a linear head on every cut", evaluation.every_cut, evaluation.every_cut_gain))
    return [*lines, describe_optimism(evaluation)]


def _describe_search(records: Records) -> str:
    search = records.search
    states = [trial.state for trial in search.trials]
    depths = sorted({trial.depth for trial in search.trials})
    notes = (describe_edge(search, records.study), describe_collapsed(search, len(records.class_names)))
    return (
        f"{len(states)} trials over depths {depths[0]} to {depths[-1]}: {states.count('COMPLETE')} finished, "
        f"{states.count('PRUNED')} pruned, {states.count('FAIL')} failed. The best validation score is that of trial {search.best}, "
        f"with {search.trial(search.best).depth} blocks unfrozen. {' '.join(notes)}"
    )


def _describe_folds(records: Records) -> str:
    refit = records.refit
    return (
        f"{refit.num_images} images in {refit.folds} folds: each is judged by networks that have not seen it. Chosen by log loss: "
        f"{refit.share:.0%} tails of trial {refit.trial}, {1 - refit.share:.0%} linear heads"
        + (", the mean with the mirror image" if refit.mirrored else "")
        + f". Out of fold the final model has accuracy {refit.accuracy:.1%} and log loss {refit.log_loss:.4f}."
    )


def _list_sets(promises: Sequence[Promise]) -> list[tuple[str, list[Interval]]]:
    """Of each class how often sets hold it, by promise."""
    return [(name, [each.by_class[name] for each in promises]) for name in promises[0].by_class]


def _list_cost(records: Records) -> list[tuple[str, str]]:
    search, study, speed = records.search, records.study, records.speed
    stored = study.get("cache_bytes", {})
    return [
        ("trials", f"{len(search.trials)} in {sum(trial.seconds for trial in search.trials):.0f} s"),
        *((f"seconds of the search: {name}", f"{taken:.1f}") for name, taken in study.get("seconds", {}).items()),
        *((f"{name} on disk", f"{size / 1e6:.0f} MB") for name, size in stored.items()),
        ("size of the model", f"{speed.bytes / 1e6:.1f} MB"),
        ("one image", f"{speed.p50_ms:.1f} ms, 95 % within {speed.p95_ms:.1f} ms"),
        (f"batches of {BATCH}", f"{speed.images_per_s:.0f} images/s on {speed.cores} cores"),
    ]


def _list_lineage(records: Records, params: Params) -> list[tuple[str, str]]:
    prepared, base, refit = records.prepared, records.base, records.refit
    counts = ", ".join(f"{number} {split}" for split, number in prepared["num_images"].items())
    return [
        ("source of the images", redact(params.fetch.source)),
        ("images", f"{counts}; {prepared['image_size']} × {prepared['image_size']} pixels ({prepared['resize']})"),
        ("hash of the prepared data", prepared["content_sha256"]),
        ("base", f"{base['name']}, weights {base['weights']}, from {base.get('source') or 'an unnamed source'}"),
        ("licence of the weights", base.get("licence") or "not stated"),
        ("sha256 of the weights", base.get("sha256") or "–"),
        ("study", refit.study),
        ("hyperparameters", ", ".join(f"{name} {value}" for name, value in refit.hparams.to_record().items())),
        ("seed", str(params.seed)),
        ("sha256 of the model", refit.sha256["final"]),
    ]
