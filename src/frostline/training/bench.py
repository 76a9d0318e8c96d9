"""What trainings of one process share: base, features, one compiled trainer per tail shape, the probe."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from frostline.arrays import load_split
from frostline.bases.base import Base, load_base
from frostline.hparams import Hparams
from frostline.params import Params
from frostline.seeding import derive_seed
from frostline.training.data import TrainingData, load_training_data
from frostline.training.fit import Fit, fit
from frostline.training.probe import Probe, fit_probe
from frostline.training.receipt import Receipt, check_equivalence
from frostline.training.tail import build_tail, make_head_weights
from frostline.training.trainer import PHASES, Epoch, Trainer

PROBE_BATCH = 32  # pictures of the equivalence receipt


class Bench:
    """What trials of one process share: the base, the features of each depth, and one compiled trainer per tail shape."""

    def __init__(self, params: Params, num_classes: int, probe: Probe | None) -> None:
        self.params, self.num_classes, self.probe = params, num_classes, probe
        self._base: Base | None = None
        self._trainers: dict[tuple[int, int, str], Trainer] = {}
        self._data: dict[int, TrainingData] = {}

    @property
    def base(self) -> Base:
        if self._base is None:
            self._base = load_base(self.params.base, Path(self.params.paths.base))
        return self._base

    def trainer(self, hparams: Hparams) -> Trainer:
        """The compiled trainer for this depth, head shape and optimiser, built at the first use."""
        key = (hparams.unfrozen_blocks, hparams.head_units, hparams.optimizer)
        if key not in self._trainers:
            base, tune = self.base, self.params.tune
            started = time.monotonic()
            tail = build_tail(base, key[0], self.num_classes, units=key[1], pooling=tune.pooling, seed=0)
            trainer = Trainer(tail, hparams.optimizer, tune.batch_size, self.num_classes)
            trainer.seconds["trace"] = time.monotonic() - started
            self._trainers[key] = trainer
        return self._trainers[key]

    def data(self, depth: int) -> TrainingData:
        """The stored features of one depth."""
        if depth not in self._data:
            params = self.params
            self._data[depth] = load_training_data(
                Path(params.paths.features),
                Path(params.paths.prepared),
                depth,
                params.tune.class_weights,
                lambda: self.base,
            )
        return self._data[depth]

    def train(self, hparams: Hparams, seed: int, go_on: Callable[[Epoch], bool] | None = None) -> Fit:
        """One training as `params.tune` says."""
        tune, trainer = self.params.tune, self.trainer(hparams)
        probe = (self.probe.kernel, self.probe.bias) if self.probe else None
        start = trainer.start(
            make_head_weights(trainer.tail, derive_seed(seed, "head"), probe), derive_seed(seed, "dropout")
        )
        return fit(
            trainer,
            start,
            self.data(hparams.unfrozen_blocks),
            hparams,
            num_epochs=tune.epochs,
            schedule=tune.schedule,
            seed=seed,
            patience=tune.patience,
            go_on=go_on,
        )

    def seconds(self) -> dict[str, float]:
        """What all trainers have taken so far, by phase."""
        return {phase: sum(trainer.seconds[phase] for trainer in self._trainers.values()) for phase in PHASES}

    def pace(self, depth: int) -> dict[str, float]:
        """Seconds per image that training and validation at this depth need at best, here; infinite where none ran."""
        paces = [trainer.pace for key, trainer in self._trainers.items() if key[0] == depth]
        return {phase: min((pace[phase] for pace in paces), default=math.inf) for phase in ("train", "validate")}

    def receipt(self, hparams: Hparams) -> Receipt:
        """Checks that stored features stand for the base at this depth; Refused where they do not."""
        trainer, data = self.trainer(hparams), self.data(hparams.unfrozen_blocks)
        val = load_split(Path(self.params.paths.prepared) / "val")
        chosen = np.linspace(0, len(val.labels) - 1, min(PROBE_BATCH, len(val.labels))).astype(int)
        state = trainer.start(make_head_weights(trainer.tail, 0, None), 0)
        return check_equivalence(
            self.base,
            trainer,
            state,
            val.images[chosen],
            np.asarray(data.val[chosen]),
            val.labels[chosen],
            self.params.tune.pooling,
        )


def fit_shared_probe(params: Params) -> Probe | None:
    """The linear probe that warm-starts every head; None where no head could start from one."""
    tune = params.tune
    if not tune.probe or tune.pooling == "flatten" or 0 not in tune.space.head_units:
        return None
    data = load_training_data(Path(params.paths.features), Path(params.paths.prepared), 0, "none", plain=True)
    return fit_probe(data.views[0], data.labels, data.val, data.val_labels, int(data.labels.max()) + 1)
