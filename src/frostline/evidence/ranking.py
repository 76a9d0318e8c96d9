"""Which trial won, from the records alone."""

from collections.abc import Sequence

import numpy as np

from frostline.errors import Refused
from frostline.evidence.trials import TrialRecord


def rank_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Finished trials, best first: higher score, then lower validation loss, then the earlier trial.

    Pruned, failed and non-finite trials are left out.
    """
    finished = [
        (-trial.score, trial.val_loss, trial.number, trial)
        for trial in trials
        if trial.state == "COMPLETE" and trial.score is not None and trial.val_loss is not None
    ]
    return [trial for *key, trial in sorted(finished, key=lambda item: item[:3]) if np.isfinite(key).all()]


def choose_best(trials: Sequence[TrialRecord]) -> TrialRecord:
    """The best finished trial. Refused where none finished, with the last reason."""
    ranked = rank_trials(trials)
    if not ranked:
        reasons = [trial.reason for trial in trials if trial.reason]
        raise Refused(
            f"None of {len(trials)} trials finished. Last reason: {reasons[-1] if reasons else 'all were pruned'}."
        )
    return ranked[0]


def list_candidates(trials: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """The best finished trials that were trained; linear heads, which need no training, are judged in any case."""
    return [trial for trial in rank_trials(trials) if trial.epochs][:count]
