"""A study's storage of which all trials are read once for a step, not once for each hyperparameter."""

import copy
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any, cast

import optuna
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState


class SteadyStorage:
    """Optuna's storage; inside `steady` all trials are read once, and again when one of them began or ended here.

    Optuna keeps finished trials, but reads those that run anew whenever anything asks for all trials, which its sampler does for
    each hyperparameter. With 32 workers those reads took longer than the rest of what is done for a trial
    (benchmarks/scale.py).
    """

    def __init__(self, storage: RDBStorage) -> None:
        self._storage = get_storage(storage)
        self._is_steady = False
        self._trials: list[FrozenTrial] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if self._trials is None or not self._is_steady:
            self._trials = self._storage.get_all_trials(study_id, deepcopy=False)
        found = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def create_new_trial(self, *given: Any, **named: Any) -> int:
        self._trials = None
        number: int = self._storage.create_new_trial(*given, **named)
        return number

    def set_trial_state_values(self, *given: Any, **named: Any) -> bool:
        self._trials = None
        is_set: bool = self._storage.set_trial_state_values(*given, **named)
        return is_set


def load_steady(name: str, storage: RDBStorage) -> optuna.Study:
    """The study of this name; KeyError where there is none."""
    return optuna.load_study(study_name=name, storage=cast(BaseStorage, SteadyStorage(storage)))


@contextmanager
def steady(study: optuna.Study) -> Iterator[None]:
    """In the block, what all trials of a study that `load_steady` gave are is read once."""
    storage = cast(SteadyStorage, study._storage)
    storage._is_steady, storage._trials = True, None
    try:
        yield
    finally:
        storage._is_steady, storage._trials = False, None
