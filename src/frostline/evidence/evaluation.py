"""The record of a test: the final model's scores, beside the head-only baseline and the search's own claim."""

from typing import Any

import numpy as np

from frostline.evidence.calibration import apply_temperature, expected_calibration_error
from frostline.evidence.comparison import count_discordant, mcnemar, paired_difference
from frostline.evidence.predictions import Predictions
from frostline.evidence.scores import check_predictions, score_losses, summarize


def make_evaluation(
    final: Predictions,
    baseline: Predictions,
    *,
    search_score: float,
    temperature: float,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """The record for `evaluation.json`: numbers and nested records of numbers.

    search_score: the best trial's validation accuracy; selection_optimism is what it was too good by.
    temperature: what the final model's logits were divided by; calibration is told before and after.
    """
    check_predictions(baseline.labels, baseline.probabilities, len(baseline.class_names))
    options: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    record = summarize(final.labels, final.probabilities, final.class_names, **options)
    plain = summarize(baseline.labels, baseline.probabilities, baseline.class_names, **options)
    record["search_score"] = search_score
    record["selection_optimism"] = round(search_score - record["accuracy"]["value"], 6)
    gain = paired_difference(final.labels, final.probabilities, baseline.probabilities, **options)
    wins, losses = count_discordant(final.labels, final.probabilities, baseline.probabilities)
    record["baseline"] = {
        name: plain[name] for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
    }
    record["gain"] = {
        "value": gain.value,
        "low": gain.low,
        "high": gain.high,
        "wins": wins,
        "losses": losses,
        "p_value": mcnemar(wins, losses),
    }
    record["calibration"] = {"temperature": temperature}
    uncalibrated = apply_temperature(final.probabilities, 1 / temperature)
    for name, probabilities in (("before", uncalibrated), ("after", np.asarray(final.probabilities, np.float64))):
        losses_of = score_losses(final.labels, probabilities)
        losses_of["ece"] = expected_calibration_error(final.labels, probabilities)
        record["calibration"][name] = {key: round(value, 6) for key, value in losses_of.items()}
    return record
