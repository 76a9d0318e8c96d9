"""The record of a test: the final model's scores, beside the head-only baseline and the search's own claim."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from frostline.evidence.calibration import apply_temperature
from frostline.evidence.comparison import count_discordant, mcnemar, paired_difference
from frostline.evidence.predictions import Predictions
from frostline.evidence.scores import METRICS, Score, measure, summarize

CALIBRATED = ("log_loss", "brier", "ece")  # what a temperature changes
COMPARED = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")  # what is told of the baseline, too


@dataclass(frozen=True)
class Gain:
    """Accuracy over the baseline's on the same images: paired interval, images won and lost, McNemar's exact p-value."""

    value: float
    low: float
    high: float
    wins: int
    losses: int
    p_value: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluation.json` says.

    scores: of each metric, None where it has no value; per_class: {precision, recall, f1, support} by name; baseline:
    scores of the bare head, gain: over it; every_cut, every_cut_gain: the same of a linear head on every cut, None where the
    head is not pooled; search_score: the best trial's validation accuracy, and selection_optimism, what it was too
    good by; temperature: what the logits were divided by, calibration: log loss, Brier score and ECE before and after.
    """

    num_images: int
    confidence: float
    resamples: int
    scores: Mapping[str, Score | None]
    per_class: Mapping[str, Mapping[str, Any]]
    search_score: float
    selection_optimism: float
    baseline: Mapping[str, Score]
    gain: Gain
    every_cut: Mapping[str, Score] | None
    every_cut_gain: Gain | None
    temperature: float
    calibration: Mapping[str, Mapping[str, float]]

    def score(self, name: str) -> Score:
        """A metric that has a value; KeyError where it has none."""
        found = self.scores[name]
        if found is None:
            raise KeyError(name)
        return found

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON, the metrics at the top, where `dvc metrics` shows them."""
        return {
            "num_images": self.num_images,
            "confidence": self.confidence,
            "resamples": self.resamples,
            **{name: score and score.to_record() for name, score in self.scores.items()},
            "per_class": dict(self.per_class),
            "search_score": self.search_score,
            "selection_optimism": self.selection_optimism,
            "baseline": {name: score.to_record() for name, score in self.baseline.items()},
            "gain": asdict(self.gain),
            "every_cut": self.every_cut and {name: score.to_record() for name, score in self.every_cut.items()},
            "every_cut_gain": self.every_cut_gain and asdict(self.every_cut_gain),
            "calibration": {"temperature": self.temperature, **self.calibration},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The evaluation of `to_record`'s form."""
        calibration, every_cut = dict(record["calibration"]), record.get("every_cut")
        return cls(
            **{key: record[key] for key in ("num_images", "confidence", "resamples", "per_class")},
            **{key: record[key] for key in ("search_score", "selection_optimism")},
            scores={name: record.get(name) and Score.from_record(record[name]) for name in METRICS},
            baseline={name: Score.from_record(score) for name, score in record["baseline"].items()},
            gain=Gain(**record["gain"]),
            every_cut=every_cut and {name: Score.from_record(score) for name, score in every_cut.items()},
            every_cut_gain=record.get("every_cut_gain") and Gain(**record["every_cut_gain"]),
            temperature=calibration.pop("temperature"),
            calibration=calibration,
        )


def make_evaluation(
    final: Predictions,
    baseline: Predictions,
    every_cut: Predictions | None = None,
    *,
    search_score: float,
    temperature: float,
    resamples: int,
    confidence: float,
    seed: int,
) -> Evaluation:
    """The record of the models' predictions on the same images; see Evaluation for the other arguments."""
    options: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    scores, per_class = summarize(final.labels, final.probabilities, final.class_names, **options)
    plain, gain = _compare(final, baseline, options)
    more = _compare(final, every_cut, options) if every_cut is not None else None
    accuracy = scores["accuracy"]
    assert accuracy is not None
    uncalibrated = apply_temperature(final.probabilities, 1 / temperature)
    measured = {
        name: measure(final.labels, probabilities)
        for name, probabilities in (("before", uncalibrated), ("after", np.asarray(final.probabilities, np.float64)))
    }
    return Evaluation(
        num_images=len(final.labels),
        confidence=confidence,
        resamples=resamples,
        scores=scores,
        per_class=per_class,
        search_score=search_score,
        selection_optimism=round(search_score - accuracy.value, 6),
        baseline=plain,
        gain=gain,
        every_cut=more and more[0],
        every_cut_gain=more and more[1],
        temperature=temperature,
        calibration={name: {key: round(values[key], 6) for key in CALIBRATED} for name, values in measured.items()},
    )


def _compare(ours: Predictions, theirs: Predictions, options: dict[str, Any]) -> tuple[dict[str, Score], Gain]:
    """Their scores, and what ours gain over them."""
    scores, _ = summarize(theirs.labels, theirs.probabilities, theirs.class_names, **options)
    gain = paired_difference(ours.labels, ours.probabilities, theirs.probabilities, **options)
    wins, losses = count_discordant(ours.labels, ours.probabilities, theirs.probabilities)
    known = {name: score for name in COMPARED if (score := scores[name]) is not None}
    return known, Gain(gain.value, gain.low, gain.high, wins, losses, mcnemar(wins, losses))
