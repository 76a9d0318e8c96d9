"""The study: trials drawn, pruned, resumed and read back."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from frostline.errors import Refused
from frostline.evidence.trials import TrialRecord
from frostline.params import Tune
from frostline.search.places import CODE, SIGNED, Place, StudyServer
from frostline.search.space import DRAWN, list_baselines
from frostline.search.steady import steady
from frostline.seeding import derive_seed
from frostline.tracking.messages import say

RECORD = "record"  # what trials.json says of a finished trial
KILLED = "killed"  # set on a trial whose process died; it is drawn again and not counted
UNSIGNED = (sys.maxsize, -1)
ABOUT = "about"  # of a study: what another must have in common with it to begin with its best trials
STARTS = "starts"  # of a study: what its first trials after the baselines try, and where that comes from
STARTED = "started_from"  # of a trial: study and number of the trial that tried the same on other images
JOB = "job"  # of a study: what `tune` wants of it now
WHOLE = 4  # trials that the median pruner lets train to the end before it judges any
RANDOM = 8  # trials that the sampler draws before it looks at scores
LOOK_S = 1.0  # between two looks at whether others' trials have ended


@dataclass(frozen=True)
class Start:
    """What a trial of another study drew, and which one it was: "study/number"."""

    drawn: Mapping[str, Any]
    origin: str


def open_study(
    place: Place,
    code: str,
    when_code_changed: str,
    *,
    about: Mapping[str, Any] | None = None,
    find_starts: Callable[[], Sequence[Start]] = tuple,
) -> Place:
    """The place, with its study made whole where it is new, and ready to go on where it is not.

    about: what is kept of it for later studies; find_starts: what a new one begins with, after the baselines.

    Trials that a dead process left behind are closed and drawn again. Refused where the training code has changed
    since the study began and `when_code_changed` is "ask". Of a file's study, only one process may call this at a time.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place.prepare()
    place.call(partial(_open, place, code, when_code_changed, about or {}, find_starts))
    return place


def _open(
    place: Place, code: str, when_code_changed: str, about: Mapping[str, Any], find: Callable[[], Sequence[Start]]
) -> None:
    with place.locked():
        if place.exists():
            _close_open(place.load(), place.judge(alone=True))
            if _has_trials_of_other_code(place.load(), code):
                if when_code_changed == "ask":
                    raise Refused(
                        f"The training code has changed since study {place.digest} began, so its trials and new ones may not compare. "
                        "Set tune.when_code_changed to keep (go on with the old trials) or restart (put the old study aside)."
                    )
                if when_code_changed == "restart":
                    place.put_aside()
        if not place.exists():
            place.create({ABOUT: about, STARTS: [asdict(start) for start in find()], CODE: code})
        place.load().set_user_attr(CODE, code)


def _has_trials_of_other_code(study: optuna.Study, code: str) -> bool:
    return study.user_attrs.get(CODE) != code and any(
        RECORD in trial.user_attrs for trial in study.get_trials(deepcopy=False)
    )


def announce(place: Place, num_trials: int, parent_run_id: str, manifest: tuple[str, int] | None = None) -> None:
    """Writes down what a worker that joins has to know beside what lies in the project's folder.

    manifest: sha256 and size of the list of what lies in `scale.store`.
    """
    job = {"num_trials": num_trials, "parent_run_id": parent_run_id, "manifest": manifest}
    place.read(lambda study: study.set_user_attr(JOB, job))


def close_abandoned(place: Place) -> None:
    """Gives back the trials whose process is gone, while others may go on."""
    with place.locked():  # so nobody is between drawing a trial and signing for it
        _close_open(place.load(), place.judge())


def close_stopped(place: Place) -> None:
    """Gives back the trials that run here; called when this process is told to end, and its workers are gone."""
    with place.locked():
        _close_open(place.load(), place.judge(alone=True))


def _close_open(study: optuna.Study, is_abandoned: Callable[[FrozenTrial], bool]) -> None:
    """Ends the open trials that nobody works on, in the order of their numbers, in which they are drawn again."""
    for trial in sorted(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)), key=_number_of):
        if not is_abandoned(trial):
            continue
        if counts(trial):  # it had finished; only the last word is missing
            tell(study, trial.number, _record_of(trial))
        else:
            _close_killed(study, trial)


def _close_killed(study: optuna.Study, trial: FrozenTrial) -> None:
    _mark_killed(study, trial)
    # What it was given counts too: a trial may die before it has drawn. And of half a draw nothing counts: the sampler's
    # numbers for the rest would be those that it drew the first half with.
    known = trial.params if DRAWN in trial.user_attrs else {}
    if drawn := {**trial.system_attrs.get("fixed_params", {}), **known}:
        study.enqueue_trial(
            drawn, user_attrs={key: trial.user_attrs[key] for key in (STARTED,) if key in trial.user_attrs}
        )


def _mark_killed(study: optuna.Study, trial: FrozenTrial) -> None:
    Trial(study, trial._trial_id).set_user_attr(KILLED, True)
    study.tell(trial.number, state=TrialState.FAIL)


def draw(place: Place, study: optuna.Study, tune: Tune, seed: int) -> tuple[Trial, int] | None:
    """As `ask`, locked, once whatever nobody works on was given back; `study` is loaded from `place`.

    Call it from a process that works on no trial: what an attempt left that broke off is given back, too.
    """
    with place.locked(), steady(study):
        if isinstance(place, StudyServer):  # of a file's workers the parent sees which is gone
            _close_open(study, place.judge())
        asked = ask(study, tune, seed)
        if asked:
            place.sign(*asked)
        return asked


def ask(study: optuna.Study, tune: Tune, seed: int) -> tuple[Trial, int] | None:
    """The next trial and its number among those that count, or None when there are `num_trials`. Call it locked, and sign it.

    The sampler's seed is derived from the trial's number, so a resumed study does not repeat itself, and
    with one worker gives what an uninterrupted one gives.
    """
    taken = {_number_of(trial) for trial in study.get_trials(deepcopy=False) if _is_taken(trial)}
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
    return study.ask(), number


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


def finish(place: Place, trial: Trial, record: TrialRecord) -> bool:
    """Keeps the record and ends the trial. False where its number is another's meanwhile: nothing of it is kept then.

    So it goes with a process that was taken for dead while it was cut off, or suspended. Done twice, it is done once.
    """
    study = trial.study
    with place.locked(), steady(study):
        trials = study.get_trials(deepcopy=False)
        (mine,) = (other for other in trials if other._trial_id == trial._trial_id)
        others = {_number_of(other) for other in trials if other is not mine and counts(other)}
        if KILLED in mine.user_attrs or record.number in others:
            if not mine.state.is_finished():
                _mark_killed(study, mine)
            return False
        if not counts(mine):
            keep_record(trial, record)
        if not mine.state.is_finished():
            tell(study, trial.number, record)
        return True


def wait_for_all(place: Place, num_trials: int) -> bool:
    """Waits while other machines work on the last trials. True when all have ended, False when one is to be drawn after all."""
    said = False
    while (left := place.call(partial(_look, place, num_trials))) is None:
        if not said:
            say("tune", "all trials are drawn; waiting for those that run on other machines")
        said = True
        time.sleep(LOOK_S)
    return left == 0


def _look(place: Place, num_trials: int) -> int | None:
    """How many trials are to be drawn; None where there is none, but some of others' run."""
    with place.locked():
        study = place.load()
        _close_open(study, place.judge())
        drawn = [trial for trial in study.get_trials(deepcopy=False) if _is_taken(trial)]
        wanted = set(range(num_trials))
        left = wanted - {_number_of(trial) for trial in drawn}
        running = wanted - {_number_of(trial) for trial in drawn if counts(trial)} - left
        return None if running and not left else len(left)


def counts(trial: FrozenTrial) -> bool:
    """Has it a record that nobody else was given the number of?"""
    return RECORD in trial.user_attrs and KILLED not in trial.user_attrs


def _is_taken(trial: FrozenTrial) -> bool:
    return KILLED not in trial.user_attrs and trial.state != TrialState.WAITING


def list_records(study: optuna.Study, num_trials: int) -> list[TrialRecord]:
    """The records of the trials 0 to `num_trials` - 1: going from 24 trials back to 12 gives what 12 gave."""
    records = [_record_of(trial) for trial in study.get_trials(deepcopy=False) if counts(trial)]
    return sorted((record for record in records if record.number < num_trials), key=lambda record: record.number)


def list_starts(study: optuna.Study) -> list[Start]:
    """What the study's first trials after the baselines try."""
    return [Start(**start) for start in study.user_attrs.get(STARTS, [])]


def list_drawn(study: optuna.Study) -> list[tuple[TrialRecord, dict[str, Any]]]:
    """Each trial that has a record, and what it drew."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]
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
    return _parse_record(trial.user_attrs[RECORD])


@lru_cache(maxsize=4096)
def _parse_record(text: str) -> TrialRecord:
    # Of all finished trials, whenever one is drawn or ends.
    return TrialRecord.from_record(json.loads(text))
