"""One training of a tail: its epochs one after the other, its curves and its best state."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from frostline.hparams import Hparams
from frostline.training.data import TrainingData
from frostline.training.trainer import Epoch, State, Trainer

CURVES = ("loss", "accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Fit:
    """A training so far: its curves, and the states after the last and after the best epoch.

    The best epoch has the highest validation accuracy (ties: the lower loss, then the earlier one). `best_state` is None
    before the first.
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
) -> Fit:
    """Trains for `num_epochs`, fewer where `patience` epochs bring nothing better or `go_on` says no.

    FloatingPointError where a loss is not finite.
    """
    kept: dict[str, list[float]] = {name: [] for name in CURVES}
    fitted = Fit(kept, state, None)
    epochs = trainer.epochs(state, data, hparams, num_epochs=num_epochs, schedule=schedule, seed=seed)
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
