"""Which trial won, from the records alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frostline.errors import Refused


def rank_trials(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Finished trials, best first: higher score, then lower validation loss, then the earlier trial.

    Pruned, failed and non-finite trials are left out.
    """
    finished = [
        record
        for record in records
        if record["state"] == "COMPLETE" and np.isfinite(record["score"]) and np.isfinite(record["val_loss"])
    ]
    return sorted(finished, key=lambda record: (-record["score"], record["val_loss"], record["number"]))


def choose_best(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The best finished trial. Refused where none finished, with the last reason."""
    ranked = rank_trials(records)
    if not ranked:
        reasons = [record["reason"] for record in records if "reason" in record]
        raise Refused(
            f"None of {len(records)} trials finished. Last reason: {reasons[-1] if reasons else 'all were pruned'}."
        )
    return ranked[0]
