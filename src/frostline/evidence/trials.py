"""What is kept of a search: a record of each trial, and all of them together."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from frostline.errors import some
from frostline.hparams import Hparams

Curves = Mapping[str, Sequence[float]]
HEADS = 2  # trials at the beginning of a search that are linear heads


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


def describe_edge(search: SearchRecord, study: Mapping[str, Any]) -> str:
    """A sentence where the best depth is the deepest that was searched, or next to it, and what one more costs; else "".

    study: the record of `study.json`, whose `cuts` and `deeper` are used.
    """
    deepest = max(trial.depth for trial in search.trials)
    best, blocks = search.trial(search.best).depth, len(study.get("cuts", ())) - 1
    if deepest == 0 or best < deepest - 1 or (best < deepest and deepest == blocks):
        return ""
    if best == blocks:
        return f"The best depth, {best}, is the whole base: there is none deeper."
    where = "the deepest that was searched" if best == deepest else f"next to the deepest that was searched, {deepest}"
    told = [f"The best depth, {best}, is {where}: a deeper one may be better still."]
    if deeper := study.get("deeper"):
        told.append(
            f"One block more takes about {deeper['seconds']:.2g} s a trial, where depth {deeper['depth'] - 1} takes "
            f"{deeper['seconds_now']:.2g} s, and {deeper['bytes'] / 1e9:.2g} GB of features."
        )
    return " ".join(
        [
            *told,
            "Raise tune.space.unfrozen_blocks, or its minutes where it is auto; `frostline plan` says what that costs.",
        ]
    )


def find_collapsed(search: SearchRecord, num_classes: int) -> list[TrialRecord]:
    """The trials that fell more than half of the way from the better linear head, where every tail begins, to guessing."""
    heads = [trial.score for trial in search.trials if trial.number < HEADS and trial.score is not None]
    head = max(heads, default=None)
    return [trial for trial in search.trials if has_collapsed(trial, head, num_classes)]


def has_collapsed(trial: TrialRecord, head: float | None, num_classes: int) -> bool:
    """Did it fall more than half of the way from `head`, the better linear head's score, to guessing?"""
    if head is None or trial.score is None or trial.hparams.suffix_learning_rate is None:
        return False
    return trial.score < (head + 1 / num_classes) / 2


def describe_collapse(trial: TrialRecord) -> str:
    """Why a trial collapsed."""
    return f"a suffix rate of {trial.hparams.suffix_learning_rate:.2g} is too high for {trial.depth} blocks"


def describe_collapsed(search: SearchRecord, num_classes: int) -> str:
    """A sentence on the trials that collapsed; "" where none did."""
    found = find_collapsed(search, num_classes)
    if not found:
        return ""
    reasons = some([f"trial {trial.number} ({describe_collapse(trial)})" for trial in found], 3)
    return f"{len(found)} of {len(search.trials)} trials collapsed: {reasons}. Lower the upper end of suffix_learning_rate."
