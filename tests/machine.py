"""One of several machines of a study: a process with a name of its own whose trials are a formula and take a while.

`python machine.py NAME DIGEST NUM_TRIALS SECONDS` draws until no trial is left, and prints the number of each that it begins with.
"""

import socket
import sys
import time
from functools import partial
from pathlib import Path

from optuna.trial import Trial

from frostline.evidence.trials import TrialRecord
from frostline.hparams import Hparams
from frostline.params import Tune, load_document, parse_params
from frostline.search import places
from frostline.search.places import StudyServer
from frostline.search.space import suggest
from frostline.search.study import draw, finish
from frostline.tracking import owners, patience

EXPERIMENT = "tests"


def make_tune(num_trials: int, **changes: object) -> Tune:
    document = load_document(Path(__file__).parents[1] / "presets" / "default.yaml")
    document["tune"] |= {"num_trials": num_trials, **changes}
    return parse_params(document).tune


def be_quick(patch: object = setattr) -> None:
    """Beats often, and takes whoever does not for dead soon."""
    patch(places, "BEAT_S", 0.2)
    patch(places, "GRACE_S", 6.0)
    patch(patience, "PAUSE_S", 0.2)


def suggest_again(trial: Trial, tune: Tune) -> Hparams:
    return suggest(Trial(trial.study, trial._trial_id), tune.space)


def work(place: StudyServer, num_trials: int, seconds: float) -> None:
    tune, study = make_tune(num_trials), place.call(place.load)
    while asked := place.call(partial(draw, place, study, tune, 7)):
        trial, number = asked
        with place.beating(trial):
            hparams = place.call(partial(suggest_again, trial, tune))
            print(number, flush=True)
            time.sleep(seconds)
            record = TrialRecord(number, hparams, "COMPLETE", 0.9 - abs(hparams.dropout - 0.3))
            if not place.call(partial(finish, place, trial, record)):
                print("lost", flush=True)


if __name__ == "__main__":
    # Not of the machine that it runs on, as far as it can tell.
    socket.gethostname = owners._boot_id = lambda: sys.argv[1]
    be_quick()
    work(StudyServer(EXPERIMENT, sys.argv[2], 60.0), int(sys.argv[3]), float(sys.argv[4]))
