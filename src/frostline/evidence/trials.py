"""What is kept of a search: a record of each trial, and all of them together."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from frostline.hparams import Hparams

Curves = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class TrialRecord:
    """One trial as `trials.json` has it.

    number: from 0; state: PRUNED trials were stopped early, FAIL ones have a `reason`; score: the best epoch's validation
    accuracy, None where the trial failed; val_loss: that epoch's, in nats; epochs: that it trained; curves: loss,
    accuracy, val_loss and val_accuracy by epoch; started: seconds since 1970; seconds: that it took, by phase in `phases`;
    run_id: its run in MLflow; started_from: study and number of the trial, of a study on other images, that tried the same.
    """

    number: int
    hparams: Hparams
    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    score: float | None = None
    val_loss: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    curves: Curves = field(default_factory=dict)
    started: float = 0.0
    seconds: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)
    run_id: str = ""
    reason: str | None = None
    started_from: str | None = None

    @property
    def depth(self) -> int:
        """Unfrozen blocks."""
        return self.hparams.unfrozen_blocks

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "hparams": self.hparams.to_record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The trial of `to_record`'s form."""
        return cls(**{**record, "hparams": Hparams.from_record(record["hparams"])})


@dataclass(frozen=True)
class SearchRecord:
    """A whole search as `trials.json` has it.

    study: its digest; score: the name of what was maximised; baseline, best: numbers of trials; epochs: of a whole trial.
    """

    study: str
    best: int
    epochs: int
    trials: tuple[TrialRecord, ...]
    score: str = "val_accuracy"
    baseline: int = 0

    def trial(self, number: int) -> TrialRecord:
        """The trial of that number; KeyError where there is none."""
        for trial in self.trials:
            if trial.number == number:
                return trial
        raise KeyError(number)

    def in_state(self, state: str) -> list[TrialRecord]:
        """The trials in a state that have a score."""
        return [trial for trial in self.trials if trial.state == state and trial.score is not None]

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "trials": [trial.to_record() for trial in self.trials]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The search of `to_record`'s form."""
        return cls(**{**record, "trials": tuple(TrialRecord.from_record(trial) for trial in record["trials"])})


def describe_edge(search: SearchRecord) -> str:
    """A sentence where the best depth is the deepest that was searched, or next to it; else ""."""
    deepest = max(trial.depth for trial in search.trials)
    best = search.trial(search.best).depth
    if deepest == 0 or best < deepest - 1:
        return ""
    where = "the deepest that was searched" if best == deepest else f"next to the deepest that was searched, {deepest}"
    return (
        f"The best depth, {best}, is {where}: a deeper one may be better still. Raise tune.space.unfrozen_blocks; "
        "`frostline plan` says what that costs."
    )
