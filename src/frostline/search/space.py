"""What a trial draws from the space of `params.yaml`. All of it loops over the declared hyperparameters."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from frostline.files import require_complete
from frostline.hparams import HPARAMS, Hparam, Hparams
from frostline.params import Params, Range, Space
from frostline.search.steady import steady


def with_found_depths(params: Params) -> Params:
    """The params with the depths that `extract` decided on, where they say `all` or `auto`."""
    if isinstance(params.tune.space.unfrozen_blocks[1], int):
        return params
    return params.with_depths(*require_complete(Path(params.paths.features))["searched"])


DRAWN = "drawn"  # of a trial: all that it tries is written down


def suggest(trial: Trial, space: Space) -> Hparams:
    """What a trial tries. Values with nothing to choose are not drawn."""
    drawn: dict[str, Any] = {}
    with steady(trial.study):
        for name, hparam in HPARAMS.items():
            drawn[name] = _draw(trial, name, hparam, getattr(space, name)) if hparam.used(drawn) else None
    trial.set_user_attr(DRAWN, True)
    return Hparams(**drawn)


def fit_to_space(space: Space, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Of values that a trial drew those that this space would draw, too."""
    fitting = {}
    for name, value in drawn.items():
        domain: Any = getattr(space, name, None)
        if isinstance(domain, Range):
            fits = domain.low < domain.high and domain.low <= value <= domain.high
        elif name in HPARAMS and HPARAMS[name].kind == "depth":
            fits = domain[0] < domain[1] and domain[0] <= value <= domain[1]
        else:
            fits = domain is not None and len(domain) > 1 and value in domain
        if fits:
            fitting[name] = value
    return fitting


def list_baselines(space: Space, pooling: str) -> list[Hparams]:
    """The first trials of every study: the bare head on the last cut, then the head on every cut.

    Of each range and list what its declaration says; where the head is not pooled it sees the last cut alone.
    """
    kinds = ("last",) if pooling == "flatten" else ("last", "all")
    return [make_baseline(space, 0, kind) for kind in kinds]


def make_baseline(space: Space, depth: int = 0, head_input: str | None = None) -> Hparams:
    """The middle of the space at a depth, with one head input where it is given."""
    given = {"unfrozen_blocks": depth} | ({"head_input": head_input} if head_input else {})
    values: dict[str, Any] = {}
    for name, hparam in HPARAMS.items():
        if name in given:
            values[name] = given[name]
        elif hparam.used(values):
            values[name] = _baseline_of(hparam, getattr(space, name))
    return Hparams.from_record(values)


def _draw(trial: Trial, name: str, hparam: Hparam, domain: Any) -> Any:
    if hparam.kind == "choice":
        return domain[0] if len(domain) == 1 else trial.suggest_categorical(name, domain)
    if hparam.kind == "depth":
        low, high = domain
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
