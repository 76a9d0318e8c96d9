"""What a trial draws from the space of `params.yaml`."""

import math
from typing import Any

from optuna.trial import Trial

from frostline.hparams import Hparams
from frostline.params import Range, Space


def make_baseline(space: Space, depth: int = 0) -> Hparams:
    """Trial 0's hparams, at another depth where one is given."""
    drawn = baseline(space)
    suffix_rate = space.suffix_learning_rate.low if depth else None
    return Hparams.from_record({**drawn, "unfrozen_blocks": depth, "suffix_learning_rate": suffix_rate})


def baseline(space: Space) -> dict[str, Any]:
    """The first trial of every study: head only, the middle of each range, the first of each list."""
    drawn: dict[str, Any] = {"unfrozen_blocks": 0, "optimizer": space.optimizer[0], "head_units": space.head_units[0]}
    for name in ("dropout", "head_learning_rate", "weight_decay", "label_smoothing"):
        drawn[name] = _middle(getattr(space, name))
    drawn["label_smoothing"] = space.label_smoothing.low
    return drawn


def _middle(drawn: Range) -> float:
    return math.sqrt(drawn.low * drawn.high) if drawn.log else (drawn.low + drawn.high) / 2


def suggest(trial: Trial, number: int, space: Space) -> Hparams:
    """What trial `number` tries. Values with nothing to choose are not drawn; trial 0 may always be head only."""
    depth = (0 if number == 0 else space.unfrozen_blocks[0], space.unfrozen_blocks[1])
    unfrozen = depth[0] if depth[0] == depth[1] else trial.suggest_int("unfrozen_blocks", *depth)
    return Hparams(
        dropout=_draw(trial, "dropout", space.dropout),
        unfrozen_blocks=unfrozen,
        head_learning_rate=_draw(trial, "head_learning_rate", space.head_learning_rate),
        suffix_learning_rate=_draw(trial, "suffix_learning_rate", space.suffix_learning_rate) if unfrozen else None,
        weight_decay=_draw(trial, "weight_decay", space.weight_decay),
        label_smoothing=_draw(trial, "label_smoothing", space.label_smoothing),
        optimizer=_choose(trial, "optimizer", space.optimizer),
        head_units=_choose(trial, "head_units", space.head_units),
    )


def _draw(trial: Trial, name: str, drawn: Range) -> float:
    if drawn.low == drawn.high:
        return drawn.low
    value: float = trial.suggest_float(name, drawn.low, drawn.high, log=drawn.log)
    return value


def _choose(trial: Trial, name: str, choices: list[Any]) -> Any:
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)
