"""The study on disk: trials drawn, pruned, resumed and read back."""

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, Trial, TrialState

from frostline.errors import Refused
from frostline.evidence.trials import TrialRecord
from frostline.files import remove_abandoned, replacing
from frostline.params import Tune
from frostline.process import locked
from frostline.search.space import list_baselines
from frostline.seeding import derive_seed

RECORD = "record"  # what trials.json says of a finished trial
KILLED = "killed"  # set on a trial whose process died; it is drawn again and not counted
SIGNED = "signed"  # a trial's number among those that count, and the process that works on it
UNSIGNED = (sys.maxsize, -1)
CODE = "code"
ABOUT = "about"  # of a study: what another must have in common with it to begin with its best trials
STARTS = "starts"  # of a study: what its first trials after the baselines try, and where that comes from
STARTED = "started_from"  # of a trial: study and number of the trial that tried the same on other images
WHOLE = 4  # trials that the median pruner lets train to the end before it judges any
RANDOM = 8  # trials that the sampler draws before it looks at scores


@dataclass(frozen=True)
class StudyFile:
    """A study on disk: one SQLite database, with a lock file beside it."""

    path: Path
    digest: str
    timeout_s: float = 60.0

    def load(self) -> optuna.Study:
        """The study; several processes may hold it at once."""
        return optuna.load_study(study_name=self.digest, storage=_storage(self.path, self.timeout_s))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A short exclusive hold among the study's processes: drawing a trial depends on how many there are."""
        with locked(self.path.with_suffix(".lock")):
            yield


@dataclass(frozen=True)
class Start:
    """What a trial of another study drew, and which one it was: "study/number"."""

    drawn: Mapping[str, Any]
    origin: str


def open_study(
    folder: Path,
    digest: str,
    code: str,
    when_code_changed: str,
    *,
    about: Mapping[str, Any] | None = None,
    find_starts: Callable[[], Sequence[Start]] = tuple,
) -> StudyFile:
    """The study with this digest, made whole in one step where it is new, ready to go on where it is not.

    about: what is kept of it for later studies; find_starts: what a new one begins with, after the baselines.

    Trials that a dead process left behind are closed and drawn again. Refused where the training code has changed
    since the study began and `when_code_changed` is "ask". Only one process may call this at a time.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    file = StudyFile(folder / f"{digest}.db", digest)
    with file.locked():
        remove_abandoned(folder)
        if file.path.exists() and _has_trials_of_other_code(file.load(), code):
            if when_code_changed == "ask":
                raise Refused(
                    f"The training code has changed since study {digest} began, so its trials and new ones may not compare. "
                    "Set tune.when_code_changed to keep (go on with the old trials) or restart (put the old study aside)."
                )
            if when_code_changed == "restart":
                file.path.rename(file.path.with_name(f"{digest}.until-{int(file.path.stat().st_mtime)}.db"))
        if not file.path.exists():
            _create(file, code, about or {}, find_starts())
        study = file.load()
        study.set_user_attr(CODE, code)
        _close_open(study, lambda _: True)
    return file


def _has_trials_of_other_code(study: optuna.Study, code: str) -> bool:
    return study.user_attrs.get(CODE) != code and any(
        RECORD in trial.user_attrs for trial in study.get_trials(deepcopy=False)
    )


def _create(file: StudyFile, code: str, about: Mapping[str, Any], starts: Sequence[Start]) -> None:
    # Two processes that create the tables at once kill each other, and a kill in between leaves half a schema.
    with replacing(file.path) as temporary:
        storage = _storage(temporary, file.timeout_s)
        study = optuna.create_study(study_name=file.digest, storage=storage, direction="maximize")
        study.set_user_attr(CODE, code)
        study.set_user_attr(ABOUT, about)
        study.set_user_attr(STARTS, [asdict(start) for start in starts])
        storage.engine.dispose()


def _storage(path: Path, timeout_s: float) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": timeout_s}})


def close_abandoned(file: StudyFile) -> None:
    """Gives back the trials whose process is gone, while others may go on."""
    with file.locked():  # so nobody is between drawing a trial and signing for it
        _close_open(file.load(), lambda process: not psutil.pid_exists(process))


def close_stopped(file: StudyFile) -> None:
    """Gives back the trials that run; called when this process is told to end, and its workers are gone."""
    with file.locked():
        _close_open(file.load(), lambda _: True)


def _close_open(study: optuna.Study, is_dead: Callable[[int], bool]) -> None:
    """Ends the open trials of dead processes, in the order of their numbers, in which they are drawn again."""
    for trial in sorted(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)), key=_number_of):
        if not is_dead(trial.user_attrs.get(SIGNED, UNSIGNED)[1]):
            continue
        if RECORD in trial.user_attrs:  # it had finished; only the last word is missing
            tell(study, trial.number, _record_of(trial))
        else:
            _close_killed(study, trial)


def _close_killed(study: optuna.Study, trial: FrozenTrial) -> None:
    Trial(study, trial._trial_id).set_user_attr(KILLED, True)
    study.tell(trial.number, state=TrialState.FAIL)
    # What it was given counts too: a trial may die before it has drawn.
    if drawn := {**trial.system_attrs.get("fixed_params", {}), **trial.params}:
        study.enqueue_trial(
            drawn, user_attrs={key: trial.user_attrs[key] for key in (STARTED,) if key in trial.user_attrs}
        )


def ask(study: optuna.Study, tune: Tune, seed: int) -> tuple[Trial, int] | None:
    """The next trial and its number among those that count, or None when there are `num_trials`. Call it locked.

    The sampler's seed is derived from the trial's number, so a resumed study does not repeat itself, and
    with one worker gives what an uninterrupted one gives.
    """
    taken = {
        _number_of(trial)
        for trial in study.get_trials(deepcopy=False)
        if KILLED not in trial.user_attrs and trial.state != TrialState.WAITING
    }
    # The lowest that is free: of several workers' trials a kill may take the first and leave the second.
    number = next(number for number in itertools.count() if number not in taken)
    if number >= tune.num_trials:
        return None
    starts = list_starts(study)
    # What is drawn beside what was learnt is not what was drawn then.
    drawn = derive_seed(seed, "sampler", number, *(start.origin for start in starts))
    study.sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=RANDOM)
    study.pruner = make_pruner(tune)
    place = number - len(list_baselines(tune.space, tune.pooling))
    # What a killed trial was given waits already.
    if 0 <= place < len(starts) and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(dict(starts[place].drawn), user_attrs={STARTED: starts[place].origin})
    trial = study.ask()
    trial.set_user_attr(SIGNED, [number, os.getpid()])
    return trial, number


def list_rungs(tune: Tune) -> list[int]:
    """Epochs after which a trial is judged: a quarter of all, half of them, and the last; the last alone without pruning.

    Not earlier: the head starts at the linear head's optimum, so that at first whatever moves the features only seems
    worse (docs/decisions/0010-pruning.md).
    """
    early = (tune.epochs // 4, tune.epochs // 2) if tune.pruning != "none" else ()
    return [*sorted({epoch for epoch in early if epoch}), tune.epochs]


def expect_epochs(tune: Tune) -> float:
    """Epochs that all trials together train, if every rung ends half of the trials that it judges."""
    judged: float = sum(
        (rung - before) / 2**place for place, (before, rung) in enumerate(pairwise([0, *list_rungs(tune)]))
    )
    whole = min(WHOLE, tune.num_trials) if tune.pruning == "median" else 0
    return whole * tune.epochs + (tune.num_trials - whole) * judged


def make_pruner(tune: Tune) -> optuna.pruners.BasePruner:
    """Optuna's pruner for `tune.pruning`; it judges the scores reported at the rungs.

    halving: asynchronous successive halving (Li et al., MLSys 2020); a trial goes on where it is in the better half of
    those that reached the rung so far.
    """
    if tune.pruning == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=WHOLE, n_warmup_steps=0)
    if tune.pruning == "halving" and len(list_rungs(tune)) > 1:
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=list_rungs(tune)[0], reduction_factor=2)
    return optuna.pruners.NopPruner()


def tell(study: optuna.Study, number: int, record: TrialRecord) -> None:
    """Ends a trial as its record says."""
    state = TrialState[record.state]
    study.tell(number, record.score if state == TrialState.COMPLETE else None, state=state)


def keep_record(trial: Trial, record: TrialRecord) -> None:
    """Stores what trials.json will say; from here on the trial survives a kill."""
    trial.set_user_attr(RECORD, json.dumps(record.to_record()))


def list_records(study: optuna.Study, num_trials: int) -> list[TrialRecord]:
    """The records of the trials 0 to `num_trials` - 1: going from 24 trials back to 12 gives what 12 gave."""
    records = [_record_of(trial) for trial in study.get_trials(deepcopy=False) if RECORD in trial.user_attrs]
    return sorted((record for record in records if record.number < num_trials), key=lambda record: record.number)


def list_starts(study: optuna.Study) -> list[Start]:
    """What the study's first trials after the baselines try."""
    return [Start(**start) for start in study.user_attrs.get(STARTS, [])]


def list_drawn(study: optuna.Study) -> list[tuple[TrialRecord, dict[str, Any]]]:
    """Each trial that has a record, and what it drew."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if RECORD in trial.user_attrs]
    return [(_record_of(trial), dict(trial.params)) for trial in trials]


def list_killed(study: optuna.Study) -> list[FrozenTrial]:
    """The trials whose process died before they had a record."""
    return [trial for trial in study.get_trials(deepcopy=False) if KILLED in trial.user_attrs]


def importances(study: optuna.Study, num_trials: int) -> dict[str, float]:
    """The share of the score's variance that each hparam explains over trials 0 to `num_trials` - 1 (fANOVA).

    Empty with too few different scores. Source: Hutter, Hoos and Leyton-Brown, ICML 2014.
    """
    known = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if _record_of(trial).number < num_trials
    ]
    if len(known) < 4 or len({trial.value for trial in known}) < 2:
        return {}
    judged = optuna.create_study(direction="maximize")
    judged.add_trials(known)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(judged, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _number_of(trial: FrozenTrial) -> int:
    """A trial's number among those that count; of one that died before it signed, a number that none has."""
    if RECORD in trial.user_attrs:
        return _record_of(trial).number
    return int(trial.user_attrs.get(SIGNED, UNSIGNED)[0])


def _record_of(trial: FrozenTrial) -> TrialRecord:
    return TrialRecord.from_record(json.loads(trial.user_attrs[RECORD]))
