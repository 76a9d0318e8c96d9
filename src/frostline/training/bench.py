"""What trainings of one process share: base, features, linear heads, one compiled trainer per tail shape."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from frostline.arrays import load_labels, load_split
from frostline.bases.base import Base, load_base
from frostline.files import require_complete
from frostline.hparams import Hparams
from frostline.params import Params
from frostline.seeding import derive_seed
from frostline.training.data import SplitRows, TrainingData, draw_folds, load_features, load_rows, load_training_data
from frostline.training.fit import Fit, fit
from frostline.training.linear import CrossValidation, cross_validate
from frostline.training.receipt import Receipt, check_equivalence
from frostline.training.tail import HeadStart, build_tail, find_columns, group_columns, start_head
from frostline.training.trainer import PHASES, Epoch, Trainer

PROBE_BATCH = 32  # images of the equivalence receipt
MAX_IMAGES = 10_000  # that a linear head is fitted on; its columns are held in float64
HEAD_FOLDS = 5  # that choose a linear head's L2 strength within the training images


class Bench:
    """What trials of one process share.

    params: of the whole project; num_classes: of the images; heads: a linear head, cross-validated on the training images,
    for each of `last` and `all` that may be seen, where trials begin; empty where heads begin at random. take: brings the folder
    of this name among the features, where they lie elsewhere; it may remove the one before.
    """

    def __init__(
        self,
        params: Params,
        num_classes: int,
        heads: Mapping[str, CrossValidation],
        take: Callable[[str], None] | None = None,
    ) -> None:
        self.params, self.num_classes, self.heads, self._take = params, num_classes, dict(heads), take
        self._base: Base | None = None
        self._trainers: dict[tuple[int, int, str, str], Trainer] = {}
        self._data: dict[tuple[int, str], TrainingData] = {}

    @cached_property
    def rows(self) -> SplitRows:
        """Which images may be used for what."""
        return load_rows(Path(self.params.paths.features), Path(self.params.paths.prepared))

    @property
    def base(self) -> Base:
        if self._base is None:
            self._base = load_base(self.params.base, Path(self.params.paths.base))
        return self._base

    @property
    def batch_size(self) -> int:
        """`tune.batch_size`, but no more than there are images: the rest of a batch would be computed for nothing."""
        numbers = require_complete(Path(self.params.paths.prepared))["num_images"]
        return min(self.params.tune.batch_size, int(numbers["train"] + numbers["val"]))

    def sees(self, hparams: Hparams) -> str:
        """What a head sees: as the trial says, the last cut alone where it is not pooled."""
        return "last" if self.params.tune.pooling == "flatten" else hparams.head_input

    def trainer(self, hparams: Hparams) -> Trainer:
        """The compiled trainer for this depth, head shape and optimiser, built at the first use."""
        key = (hparams.unfrozen_blocks, hparams.head_units, hparams.optimizer, self.sees(hparams))
        if key not in self._trainers:
            base, tune = self.base, self.params.tune
            started = time.monotonic()
            tail = build_tail(base, key[0], self.num_classes, units=key[1], pooling=tune.pooling, sees=key[3])
            trainer = Trainer(tail, hparams.optimizer, self.batch_size, self.num_classes)
            trainer.seconds["trace"] = time.monotonic() - started
            self._trainers[key] = trainer
        return self._trainers[key]

    def data(self, depth: int, sees: str) -> TrainingData:
        """The stored features of one depth, trained on `train` and judged on `val`."""
        if (depth, sees) not in self._data:
            paths, tune = self.params.paths, self.params.tune
            flat = tune.pooling == "flatten"
            columns = slice(0, 0) if flat else find_columns(self.base, depth, tune.pooling, sees)
            features = load_features(Path(paths.features), depth, columns, lambda: self.base, self._bring)
            self._data[depth, sees] = load_training_data(
                features, self.rows, Path(paths.prepared), tune.class_weights, self.num_classes
            )
        return self._data[depth, sees]

    def _bring(self, name: str) -> None:
        """Brings the maps of a depth, and lets go of the other depths': nothing that is open could be removed."""
        if self._take:
            self._data = {key: data for key, data in self._data.items() if key[0] == 0}
            self._take(name)

    def train(
        self,
        hparams: Hparams,
        seed: int,
        go_on: Callable[[Epoch], bool] | None = None,
        *,
        rows: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None,
        head: HeadStart | None = None,
    ) -> Fit:
        """One training as `params.tune` says, of the given (trained, judging) rows where they are not those of the splits.

        Rows that judge a fold do not end its training: patience is for the splits alone. head: where it begins; the linear
        head of the training images, or a drawn one, unless given.
        """
        tune, trainer = self.params.tune, self.trainer(hparams)
        data = self.data(hparams.unfrozen_blocks, self.sees(hparams))
        return fit(
            trainer,
            trainer.start(head or self.start_head(hparams, seed), derive_seed(seed, "dropout")),
            data if rows is None else data.split(*rows),
            hparams,
            num_epochs=tune.epochs,
            schedule=tune.schedule,
            seed=seed,
            patience=tune.patience if rows is None else None,
            go_on=go_on,
        )

    def start_head(self, hparams: Hparams, seed: int, fold: int | None = None) -> HeadStart:
        """Where a head begins: at the linear head of the training images, or of all but one fold; drawn without `tune.probe`."""
        found = self.heads.get(self.sees(hparams)) if self.params.tune.probe else None
        linear = None
        if found is not None:
            own = found.whole if fold is None else found.heads[fold]
            linear = (own, found.mean, found.scale, found.choice.strength)
        return start_head(self.trainer(hparams).tail, derive_seed(seed, "head"), linear)

    def seconds(self) -> dict[str, float]:
        """What all trainers have taken so far, by phase."""
        return {phase: sum(trainer.seconds[phase] for trainer in self._trainers.values()) for phase in PHASES}

    def pace(self, depth: int) -> dict[str, float]:
        """Seconds per image that training and validation at this depth need at best, here; infinite where none ran."""
        paces = [trainer.pace for key, trainer in self._trainers.items() if key[0] == depth]
        return {phase: min((pace[phase] for pace in paces), default=math.inf) for phase in ("train", "validate")}

    def receipt(self, hparams: Hparams) -> Receipt:
        """Checks that stored features stand for the base at this depth; Refused where they do not."""
        trainer, data = self.trainer(hparams), self.data(hparams.unfrozen_blocks, self.sees(hparams))
        images = load_split(Path(self.params.paths.prepared) / "val").images
        judging = data.held_out
        chosen = judging[np.linspace(0, len(judging) - 1, min(PROBE_BATCH, len(judging))).astype(int)]
        state = trainer.start(self.start_head(hparams, 0), 0)
        features, own = np.asarray(data.views[0][chosen]), images[chosen - self.rows.num_train]
        return check_equivalence(self.base, trainer, state, own, features, data.labels[chosen])


def fit_heads(
    bench: Bench, kinds: Sequence[str], rows: NDArray[np.intp], folds: NDArray[np.int64]
) -> dict[str, CrossValidation]:
    """A linear head on pooled features for each of `last` and `all`, cross-validated over the folds of these rows.

    Trained on the plain and, where it is stored, the mirrored image; of more than MAX_IMAGES on an even sample. Empty
    where the head is not pooled.
    """
    if bench.params.tune.pooling == "flatten":
        return {}
    sample = np.linspace(0, len(rows) - 1, min(len(rows), MAX_IMAGES)).astype(int)

    def fit_head(kind: str) -> CrossValidation:
        data = bench.data(0, kind)
        views = [view[rows[sample]] for view in (data.views[0], data.mirror) if view is not None]
        return cross_validate(
            np.stack(views),
            data.labels[rows[sample]],
            bench.num_classes,
            folds[sample],
            weights=data.class_weights[data.labels[rows[sample]]],
            groups=group_columns(bench.base, kind),
        )

    bench.base  # noqa: B018 - built here once, not by both threads
    # One thread of BLAS for each: its own threads spend most of the time waiting for each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor() as pool:
        return dict(zip(kinds, pool.map(fit_head, kinds), strict=True))


def fit_shared_heads(bench: Bench) -> dict[str, CrossValidation]:
    """The linear heads of the training images alone, where trials begin (LP-FT); empty where `tune.probe` is off.

    Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.
    """
    params = bench.params
    if not params.tune.probe:
        return {}
    rows, labels = bench.rows, load_labels(Path(params.paths.prepared) / "train")
    folds = draw_folds(labels[rows.train], rows.groups[rows.train], HEAD_FOLDS, params.seed)
    return fit_heads(bench, ("last", "all"), rows.train, folds)
