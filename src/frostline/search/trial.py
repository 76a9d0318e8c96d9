"""One trial: a training of drawn hparams, judged at its rungs."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from frostline.evidence.trials import TrialRecord
from frostline.hparams import Hparams
from frostline.seeding import derive_seed
from frostline.training.bench import Bench
from frostline.training.trainer import PHASES, Epoch, score_logits


def run_trial(
    bench: Bench,
    hparams: Hparams,
    number: int,
    *,
    should_stop: Callable[[float, int], bool],
    report: Callable[[Epoch], None] = lambda _: None,
) -> TrialRecord:
    """The record of a trial: complete, pruned, or failed with the reason.

    should_stop: is asked after each epoch, with the best validation accuracy so far and the epoch's number, from 1;
    report: is shown each epoch. The seed depends on the params' and on the trial's number alone.
    """
    best = -math.inf
    state: Literal["COMPLETE", "PRUNED"] = "COMPLETE"

    def go_on(epoch: Epoch) -> bool:
        nonlocal best, state
        best = max(best, epoch.val_accuracy)
        report(epoch)
        if should_stop(best, epoch.number):
            state = "PRUNED"
        return state == "COMPLETE"

    began, started, before = time.time(), time.monotonic(), bench.seconds()
    try:
        fitted = bench.train(hparams, derive_seed(bench.params.seed, "trial", number), go_on)
        record = TrialRecord(
            number,
            hparams,
            state,
            score=fitted.val_accuracy,
            val_loss=fitted.val_loss,
            best_epoch=fitted.best_epoch,
            epochs=fitted.num_epochs,
            curves=fitted.curves,
        )
    except FloatingPointError as error:
        record = TrialRecord(number, hparams, "FAIL", reason=str(error))
    phases = {phase: taken - before[phase] for phase, taken in bench.seconds().items()}
    return replace(record, started=began, seconds=time.monotonic() - started, phases=phases)


def run_baseline(bench: Bench, hparams: Hparams, number: int) -> TrialRecord:
    """The record of a linear head at its optimum, which no gradient step has to find; its loss is out of fold.

    Where there is no linear head, of a trial at depth 0.
    """
    sees = bench.sees(hparams)
    if sees not in bench.heads:
        return run_trial(bench, hparams, number, should_stop=lambda *_: False)
    began, started = time.time(), time.monotonic()
    data, found = bench.data(0, sees), bench.heads[sees]
    kernel, bias = found.whole
    logits = np.asarray(data.views[0][data.held_out], np.float32) @ kernel + bias
    val_loss, val_accuracy = score_logits(logits, data.labels[data.held_out])
    curves = {"loss": found.loss, "accuracy": found.accuracy, "val_loss": val_loss, "val_accuracy": val_accuracy}
    return TrialRecord(
        number,
        hparams,
        "COMPLETE",
        score=val_accuracy,
        val_loss=val_loss,
        best_epoch=0,
        curves={name: [value] for name, value in curves.items()},
        started=began,
        seconds=time.monotonic() - started,
        phases=dict.fromkeys(PHASES, 0.0),
    )
