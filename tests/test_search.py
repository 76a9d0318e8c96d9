"""The study: drawing, resuming, exporting."""

from pathlib import Path
from typing import Any

import pytest

from frostline.errors import Refused
from frostline.params import Space, Tune, parse_params
from frostline.search import study as search_study
from frostline.search.space import suggest
from frostline.search.study import (
    StudyFile,
    Task,
    ask,
    expect_epochs,
    importances,
    keep_record,
    list_losers,
    list_records,
    list_rungs,
    next_task,
    pause,
    tell,
)


@pytest.fixture
def tune(params_document: dict[str, Any]) -> Tune:
    section = params_document["tune"]
    section["num_trials"] = 12
    section["space"] |= {"unfrozen_blocks": [0, 3], "optimizer": ["adam", "sgd"]}
    return parse_params(params_document).tune


def more(tune: Tune, **changes: Any) -> Tune:
    return tune.model_copy(update=changes)


def open_study(folder: Path, space: Space, code: str = "c", when: str = "ask") -> StudyFile:
    return search_study.open_study(folder, "digest", code, when, space)


def score_of(hparams: dict[str, Any]) -> float:
    return 0.9 - abs(hparams["dropout"] - 0.3) + 0.01 * hparams["unfrozen_blocks"]


def run(file: StudyFile, tune: Tune, seed: int = 7, die_at: int | None = None) -> None:
    """A search whose score is a formula; `die_at` leaves that trial as a killed process would."""
    study = file.load()
    while asked := ask(study, tune, seed):
        trial, number = asked
        hparams = suggest(trial, number, tune.space).to_record()
        if number == die_at:
            return
        record = {"number": number, "state": "COMPLETE", "hparams": hparams, "score": score_of(hparams)}
        keep_record(trial, record)
        tell(study, trial.number, record)


def records(file: StudyFile, num_trials: int = 12) -> list[dict[str, Any]]:
    return list_records(file.load(), num_trials)


def test_the_first_trial_is_the_head_only_baseline(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path, tune.space)
    run(file, more(tune, num_trials=1))
    hparams = records(file)[0]["hparams"]
    assert hparams["unfrozen_blocks"] == 0
    assert hparams["optimizer"] == "adam"
    assert "suffix_learning_rate" not in hparams


def test_the_suffix_rate_is_drawn_only_where_blocks_are_unfrozen(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path, tune.space)
    run(file, tune)
    for record in records(file):
        assert ("suffix_learning_rate" in record["hparams"]) == (record["hparams"]["unfrozen_blocks"] > 0)


def test_a_killed_and_resumed_study_has_the_trials_of_an_uninterrupted_one(tmp_path: Path, tune: Tune) -> None:
    whole = open_study(tmp_path / "whole", tune.space)
    run(whole, tune)
    for death in (0, 3, 9):
        folder = tmp_path / f"killed-{death}"
        run(open_study(folder, tune.space), tune, die_at=death)
        resumed = open_study(folder, tune.space)
        run(resumed, tune)
        assert records(resumed) == records(whole)


def test_a_trial_killed_after_its_record_is_not_trained_again(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path, tune.space)
    study = file.load()
    asked = ask(study, tune, 7)
    assert asked
    trial, number = asked
    hparams = suggest(trial, number, tune.space).to_record()
    keep_record(trial, {"number": 0, "state": "COMPLETE", "hparams": hparams, "score": 0.5})
    again = open_study(tmp_path, tune.space)
    run(again, tune)
    assert records(again)[0]["score"] == 0.5
    assert len(records(again)) == 12


def test_more_trials_go_on_and_fewer_give_what_fewer_gave(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path, tune.space)
    run(file, more(tune, num_trials=6))
    first = records(file, 6)
    run(open_study(tmp_path, tune.space), tune)
    assert len(records(file)) == 12
    assert records(file, 6) == first
    drawn = [str(record["hparams"]) for record in records(file)]
    assert len(set(drawn)) == 12


def test_changed_code_is_asked_about(tmp_path: Path, tune: Tune) -> None:
    run(open_study(tmp_path, tune.space), tune)
    with pytest.raises(Refused, match="when_code_changed"):
        open_study(tmp_path, tune.space, code="new")
    kept = open_study(tmp_path, tune.space, code="new", when="keep")
    assert len(records(kept)) == 12
    fresh = open_study(tmp_path, tune.space, code="newer", when="restart")
    assert records(fresh) == []
    assert len(list(tmp_path.glob("digest.until-*.db"))) == 1


def test_a_diverged_trial_counts_and_cannot_win(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path, tune.space)
    study = file.load()
    asked = ask(study, tune, 7)
    assert asked
    trial, number = asked
    hparams = suggest(trial, number, tune.space).to_record()
    record = {"number": 0, "state": "FAIL", "hparams": hparams, "score": None, "reason": "diverged"}
    keep_record(trial, record)
    tell(study, trial.number, record)
    run(file, tune)
    assert len(records(file)) == 12
    assert file.load().best_trial.number != trial.number


def test_a_single_value_is_not_drawn(tmp_path: Path, params_document: dict[str, Any]) -> None:
    params_document["tune"]["space"] |= {"unfrozen_blocks": 2, "dropout": 0.25, "optimizer": "sgd"}
    tune = more(parse_params(params_document).tune, num_trials=5)
    file = open_study(tmp_path, tune.space)
    run(file, tune)
    assert {record["hparams"]["dropout"] for record in records(file)} == {0.25}
    assert [record["hparams"]["unfrozen_blocks"] for record in records(file)] == [0, 2, 2, 2, 2]


def test_a_hopeless_trial_is_pruned_at_a_rung(tmp_path: Path, tune: Tune) -> None:
    tune = more(tune, pruning="median")
    study = open_study(tmp_path, tune.space).load()
    task = next_task(study, tune, 7)
    assert isinstance(task, Task) and task.until == tune.epochs, "only halving pauses a trial at a rung"
    tell(study, task.trial.number, {"state": "COMPLETE", "score": 0.9})
    pruned: list[bool] = []
    for score in (0.9, 0.9, 0.9, 0.9, 0.1):
        asked = ask(study, tune, 7)
        assert asked
        trial = asked[0]
        trial.report(score, 1)
        pruned.append(trial.should_prune())
        trial.report(score, 2)
        tell(study, trial.number, {"state": "COMPLETE", "score": score})
    assert pruned == [False] * 4 + [True]


def halve(file: StudyFile, tune: Tune, die_after: int | None = None) -> list[tuple[int, int]]:
    """A halved search whose score is a formula: what was trained, (number, up to epoch), in order.

    die_after: after so many pieces of work the process dies in the next.
    """
    study = file.load()
    done: list[tuple[int, int]] = []
    while True:
        for trial, record in list_losers(study, tune):
            keep_record(trial, record)
            tell(study, trial.number, record)
        task = next_task(study, tune, 7)
        if task == "done" or len(done) == die_after:
            return done
        assert task != "wait"
        hparams = (task.so_far or {}).get("hparams") or suggest(task.trial, task.number, tune.space).to_record()
        record = {"number": task.number, "hparams": hparams, "epochs": task.until, "val_loss": 0.5, "state": "COMPLETE"}
        record["score"] = score_of(hparams) + 0.001 * task.until
        done.append((task.number, task.until))
        if task.until < tune.epochs:
            pause(task.trial, record)
        else:
            keep_record(task.trial, record)
            tell(study, task.trial.number, record)


def test_halving_trains_the_better_half_on(tmp_path: Path, tune: Tune) -> None:
    tune = more(tune, pruning="halving", epochs=8)
    file = open_study(tmp_path, tune.space)
    done = halve(file, tune)
    # A bracket of 8 and one of 4: 8 + 4 + 2 and 4 + 2 + 1 pieces of work.
    assert [sum(until == rung for _, until in done) for rung in (2, 4, 8)] == [12, 6, 3]
    assert expect_epochs(tune) == 12 * 2 + 6 * 2 + 3 * 4
    ended = records(file)
    assert [record["number"] for record in ended] == list(range(12))
    for bracket in (ended[:8], ended[8:]):
        ranked = sorted(bracket, key=lambda record: score_of(record["hparams"]), reverse=True)
        best = sorted(ranked[: len(bracket) // 4], key=lambda record: record["number"])
        assert [record for record in bracket if record["state"] == "COMPLETE"] == best
    states = [trial.state.name for trial in file.load().get_trials() if trial.state.name != "WAITING"]
    assert sorted(states) == ["COMPLETE"] * 3 + ["PRUNED"] * 9


def test_a_halved_study_that_was_killed_anywhere_ends_as_an_uninterrupted_one(tmp_path: Path, tune: Tune) -> None:
    tune = more(tune, pruning="halving", epochs=8)
    whole = open_study(tmp_path / "whole", tune.space)
    done = halve(whole, tune)
    for death in (0, 9):  # before the first trial has drawn; in one that goes on
        folder = tmp_path / f"killed-{death}"
        before = halve(open_study(folder, tune.space), tune, die_after=death)
        resumed = open_study(folder, tune.space)
        assert before + halve(resumed, tune) == done
        assert records(resumed) == records(whole)


def test_a_worker_waits_for_the_others_at_a_rung(tmp_path: Path, tune: Tune) -> None:
    tune = more(tune, pruning="halving", epochs=8, num_trials=2)
    file = open_study(tmp_path, tune.space)
    study = file.load()
    first, second = (next_task(study, tune, 7) for _ in range(2))
    assert isinstance(first, Task)
    assert isinstance(second, Task)
    record = {"epochs": 2, "val_loss": 0.5, "hparams": {}}
    pause(first.trial, {"number": 0, "score": 0.7, **record})
    assert next_task(study, tune, 7) == "wait"
    assert list_losers(study, tune) == []
    pause(second.trial, {"number": 1, "score": 0.8, **record})
    assert [record["number"] for _, record in list_losers(study, tune)] == [0]


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (4, [1, 2, 4]), (8, [2, 4, 8]), (13, [3, 6, 13])]
)
def test_trials_are_judged_after_a_quarter_and_half_of_their_epochs(tune: Tune, epochs: int, rungs: list[int]) -> None:
    assert list_rungs(more(tune, pruning="median", epochs=epochs)) == rungs
    assert list_rungs(more(tune, pruning="none", epochs=epochs)) == [epochs]
    assert expect_epochs(more(tune, pruning="none", epochs=epochs, num_trials=3)) == 3 * epochs


def test_importances_name_the_hparam_that_matters(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path, tune.space)
    run(file, more(tune, num_trials=30))
    shares = importances(file.load(), 30)
    assert max(shares, key=lambda name: shares[name]) == "dropout"
