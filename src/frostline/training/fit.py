"""One training of a tail: its epochs one after the other, its curves and its best state."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
from keras import ops

from frostline.files import replacing
from frostline.hparams import Hparams
from frostline.training.data import TrainingData
from frostline.training.trainer import Epoch, State, Trainer

CURVES = ("loss", "accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Fit:
    """A training so far: its curves, and the states after the last and after the best epoch.

    The best epoch has the highest validation accuracy (ties: the lower loss, then the earlier one). `best_state` is None
    where that epoch came before the training was continued.
    """

    curves: dict[str, list[float]]
    state: State = field(repr=False)
    best_state: State | None = field(repr=False)

    @property
    def num_epochs(self) -> int:
        return len(self.curves["loss"])

    @property
    def best_epoch(self) -> int:
        """The best epoch's number, from 1; 0 before the first."""
        return 1 + max(range(self.num_epochs), key=self._rank_of, default=-1)

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better: validation accuracy, then the lower validation loss."""
        return self._rank_of(self.best_epoch - 1)

    @property
    def val_accuracy(self) -> float:
        return self.rank[0]

    @property
    def val_loss(self) -> float:
        return -self.rank[1]

    def _rank_of(self, index: int) -> tuple[float, float]:
        return self.curves["val_accuracy"][index], -self.curves["val_loss"][index]


def fit(
    trainer: Trainer,
    state: State,
    data: TrainingData,
    hparams: Hparams,
    *,
    num_epochs: int,
    schedule: str,
    seed: int,
    patience: int | None = None,
    go_on: Callable[[Epoch], bool] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
) -> Fit:
    """Trains for `num_epochs`, fewer where `patience` epochs bring nothing better or `go_on` says no.

    curves: of the epochs that `state` has had; the training goes on behind them as if it had not been interrupted.
    FloatingPointError where a loss is not finite.
    """
    kept = {name: list(curves[name] if curves else []) for name in CURVES}
    fitted = Fit(kept, state, None)
    epochs = trainer.epochs(
        state, data, hparams, num_epochs=num_epochs, schedule=schedule, seed=seed, first=fitted.num_epochs
    )
    for epoch in epochs:
        if not (math.isfinite(epoch.loss) and math.isfinite(epoch.val_loss)):
            raise FloatingPointError(f"the loss is not finite in epoch {epoch.number}")
        for name in CURVES:
            kept[name].append(getattr(epoch, name))
        is_best = fitted.best_epoch == epoch.number
        fitted = Fit(kept, epoch.state, epoch.state if is_best else fitted.best_state)
        if (patience and epoch.number - fitted.best_epoch >= patience) or (go_on and not go_on(epoch)):
            break
    return fitted


def save_state(path: Path, state: State) -> None:
    """Writes a state as one `.npz`, whole or not at all."""
    values = keras.tree.flatten((state.params, state.slots, state.draws, state.step))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, *[ops.convert_to_numpy(value) for value in values])


def load_state(path: Path, like: State) -> State:
    """The state in `path`, in the shape of a state of the same trainer; ValueError where it is of another."""
    template = (like.params, like.slots, like.draws, like.step)
    with np.load(path, allow_pickle=False) as file:
        values = [file[f"arr_{index}"] for index in range(len(file.files))]
    shapes = [np.shape(value) for value in keras.tree.flatten(template)]
    if [value.shape for value in values] != shapes:
        raise ValueError(f"{path} holds the state of another network.")
    return State(*keras.tree.pack_sequence_as(template, values))
