"""What a trial draws from the space of `params.yaml`. All of it loops over the declared hyperparameters."""

import math
from typing import Any

from optuna.trial import Trial

from frostline.hparams import HPARAMS, Hparam, Hparams
from frostline.params import Space


def suggest(trial: Trial, number: int, space: Space) -> Hparams:
    """What trial `number` tries. Values with nothing to choose are not drawn; trial 0 may always be head only."""
    drawn: dict[str, Any] = {}
    for name, hparam in HPARAMS.items():
        drawn[name] = _draw(trial, number, name, hparam, getattr(space, name)) if hparam.used(drawn) else None
    return Hparams(**drawn)


def baseline(space: Space) -> dict[str, Any]:
    """The first trial of every study: head only, and of each range and list what its declaration says."""
    values: dict[str, Any] = {}
    for name, hparam in HPARAMS.items():
        if hparam.used(values):
            values[name] = _baseline_of(hparam, getattr(space, name))
    return values


def make_baseline(space: Space, depth: int = 0) -> Hparams:
    """Trial 0's hparams, at another depth where one is given."""
    values: dict[str, Any] = {**baseline(space), "unfrozen_blocks": depth}
    for name, hparam in HPARAMS.items():
        if name not in values and hparam.used(values):
            values[name] = _baseline_of(hparam, getattr(space, name))
    return Hparams.from_record(values)


def _draw(trial: Trial, number: int, name: str, hparam: Hparam, domain: Any) -> Any:
    if hparam.kind == "choice":
        return domain[0] if len(domain) == 1 else trial.suggest_categorical(name, domain)
    if hparam.kind == "depth":
        low, high = (0 if number == 0 else domain[0]), domain[1]
        return low if low == high else trial.suggest_int(name, low, high)
    return (
        domain.low if domain.low == domain.high else trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    )


def _baseline_of(hparam: Hparam, domain: Any) -> Any:
    if hparam.kind == "choice":
        return domain[0]
    if hparam.kind == "depth":
        return 0
    if hparam.baseline == "low":
        return domain.low
    return math.sqrt(domain.low * domain.high) if domain.log else (domain.low + domain.high) / 2
