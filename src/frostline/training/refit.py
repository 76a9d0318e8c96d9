"""The final training: the best hparams again with several seeds, joined to one whole model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from frostline.errors import Refused
from frostline.evidence.calibration import fit_temperature
from frostline.files import sha256_of
from frostline.hparams import Hparams
from frostline.params import Refit as RefitParams
from frostline.seeding import derive_seed
from frostline.training.bench import Bench
from frostline.training.model import join_model, save_model

# Largest difference of a probability between the joined model and prefix + tail; the features between are float16.
JOIN_TOLERANCE = 0.02


@dataclass(frozen=True)
class Refit:
    """A whole model on disk and how it came about."""

    hparams: Hparams
    seeds: list[dict[str, float]]
    kept: int
    temperature: float
    sha256: str
    join_difference: float
    curves: dict[str, list[float]]

    @property
    def val_accuracy(self) -> float:
        return self.seeds[self.kept]["val_accuracy"]

    @property
    def val_loss(self) -> float:
        return self.seeds[self.kept]["val_loss"]

    def to_record(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "hparams": self.hparams.to_record(),
            "val_accuracy": self.val_accuracy,
            "val_loss": self.val_loss,
        }


def refit(bench: Bench, hparams: Hparams, rules: RefitParams, path: Path, images: NDArray[np.uint8]) -> Refit:
    """Trains `rules.seeds` times on `train`, keeps the median (or best) validation score, writes the whole model to `path`.

    The temperature is fitted on `val` and stored in the model. `images` (uint8) go through the joined model and
    through its parts; Refused where the probabilities differ by more than JOIN_TOLERANCE.
    """
    trainer, data = bench.trainer(hparams), bench.data(hparams.unfrozen_blocks)
    seeds = [derive_seed(bench.params.seed, "refit", index) for index in range(rules.seeds)]
    fits = [bench.train(hparams, seed) for seed in seeds]
    ranked = sorted(range(len(fits)), key=lambda index: fits[index].rank)
    kept = ranked[-1] if rules.keep == "best" else ranked[len(ranked) // 2]
    best = fits[kept].best_state
    assert best is not None

    logits = trainer.predict(best, data.val)
    temperature = fit_temperature(data.val_labels, logits)
    trainer.store(best.params)
    model = join_model(
        bench.base, trainer.tail, pooling=bench.params.tune.pooling, dropout=hparams.dropout, temperature=temperature
    )
    difference = float(np.abs(_predict(model, images) - softmax(logits[: len(images)] / temperature, axis=1)).max())
    if difference > JOIN_TOLERANCE:
        raise Refused(
            f"The whole model and the features that it was trained on differ by {difference:.2g} in a probability; {JOIN_TOLERANCE} "
            f"is allowed. Set extract.precision to float32 (it is {bench.params.extract.precision}), or delete "
            "data/features, and run `dvc repro`."
        )
    save_model(model, path)
    return Refit(
        hparams=hparams,
        seeds=[
            {"seed": seed, "val_accuracy": f.val_accuracy, "val_loss": f.val_loss}
            for seed, f in zip(seeds, fits, strict=True)
        ],
        kept=kept,
        temperature=temperature,
        sha256=sha256_of(path),
        join_difference=difference,
        curves=fits[kept].curves,
    )


def _predict(model: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate(
        [keras.ops.convert_to_numpy(model(images[i : i + 16], training=False)) for i in range(0, len(images), 16)]
    )
