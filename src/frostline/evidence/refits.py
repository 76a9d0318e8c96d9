"""What is kept of the final training: the candidates' out-of-fold scores, what was chosen, and the model's file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from frostline.evidence.trials import Curves
from frostline.hparams import Hparams


@dataclass(frozen=True)
class Candidate:
    """One way to answer, judged on every image by a network that has not seen it.

    name: "trial 7", "head on every cut" or "bare head"; trial: its number, None for linear heads; accuracy with its 95 %
    interval, and log loss in nats, of the out-of-fold predictions; gain: accuracy over the bare head on the same images
    with its paired interval.
    """

    name: str
    trial: int | None
    accuracy: float
    low: float
    high: float
    log_loss: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class RefitRecord:
    """What `refit.json` says.

    trial, hparams: of the tails, those of the baseline where only linear heads answer; folds, combine: as params said;
    num_images: that were trained on; share: of the tails in the answer, the rest is the linear heads'; mirrored: does it
    answer for the mirror image, too; temperature: of the mixture; accuracy and log_loss: out of fold, of the whole mixture;
    candidates: all that were judged; diverged: trials left out because of a loss that is not finite in a fold; curves: of the
    first fold; strengths: L2 of the linear heads, with the edge of the range that one lies on; sha256: of the files by name;
    join_difference: largest difference of a probability between the joined model and its parts; familiarity_difference: of a
    familiarity, None where the model tells none.
    """

    study: str
    trial: int
    trial_run: str
    hparams: Hparams
    folds: int
    combine: str
    num_images: int
    share: float
    mirrored: bool
    temperature: float
    accuracy: float
    log_loss: float
    candidates: tuple[Candidate, ...]
    diverged: tuple[int, ...]
    curves: Curves
    strengths: Mapping[str, Mapping[str, Any]]
    sha256: Mapping[str, str]
    join_difference: float
    familiarity_difference: float | None = None

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "hparams": self.hparams.to_record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The refit of `to_record`'s form."""
        candidates = tuple(Candidate(**candidate) for candidate in record["candidates"])
        hparams, diverged = Hparams.from_record(record["hparams"]), tuple(record["diverged"])
        return cls(**{**record, "hparams": hparams, "candidates": candidates, "diverged": diverged})
