"""The line at the bottom of a terminal."""

import io

from rich.console import Console
from samples import make_trial

from frostline.search.progress import SearchProgress
from frostline.tracking.messages import describe_trial


def shown_by(console: Console) -> str:
    with SearchProgress(2, 4, console=console) as progress:
        progress.epoch(0, 1, 0.75)
        progress.epoch(0, 2, 0.5)
        assert progress.share == 2 / 8
        progress.end(make_trial(score=0.75))  # pruned: its other epochs are not waited for
        assert progress.share == 4 / 8
        progress.epoch(1, 3, 0.875)
        assert progress.share == 7 / 8
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_trial_epoch_and_best_score() -> None:
    text = shown_by(Console(file=io.StringIO(), force_terminal=True, width=120))
    assert "trial 2/2 · epoch 3/4 · best 0.8750" in text


def test_a_log_file_gets_no_bar() -> None:
    assert shown_by(Console(file=io.StringIO(), force_terminal=False, width=120)).strip() == ""


def test_a_trial_that_collapsed_is_explained() -> None:
    facts = {"unfrozen_blocks": 6, "suffix_learning_rate": 2e-3}
    fallen, good = make_trial(score=0.19, **facts), make_trial(score=0.8, **facts)
    line = describe_trial(fallen, 16, 0.83, 5)
    assert "collapsed: a suffix rate of 0.002 is too high for 6 blocks, whose head began at 0.8300" in line
    for trial in (good, make_trial(score=0.19)):  # a head alone has no suffix rate
        assert "collapsed" not in describe_trial(trial, 16, 0.83, 5)
    assert "collapsed" not in describe_trial(fallen, 16)
