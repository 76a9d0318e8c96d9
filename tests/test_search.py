"""The study: drawing, resuming, exporting."""

from pathlib import Path
from typing import Any

import pytest

from frostline import search
from frostline.params import Space, Tune, parse_params
from frostline.process import Refused


@pytest.fixture
def tune(params_document: dict[str, Any]) -> Tune:
    section = params_document["tune"]
    section["num_trials"] = 12
    section["space"] |= {"unfrozen_blocks": [0, 3], "optimizer": ["adam", "sgd"]}
    return parse_params(params_document).tune


def more(tune: Tune, **changes: Any) -> Tune:
    return tune.model_copy(update=changes)


def open_study(folder: Path, space: Space, code: str = "c", when: str = "ask") -> search.StudyFile:
    return search.open_study(folder, "digest", code, when, space)


def score_of(hparams: dict[str, Any]) -> float:
    return 0.9 - abs(hparams["dropout"] - 0.3) + 0.01 * hparams["unfrozen_blocks"]


def run(file: search.StudyFile, tune: Tune, seed: int = 7, die_at: int | None = None) -> None:
    """A search whose score is a formula; `die_at` leaves that trial as a killed process would."""
    study = file.load()
    while asked := search.ask(study, tune, seed):
        trial, number = asked
        hparams = search.suggest(trial, number, tune.space).to_record()
        if number == die_at:
            return
        record = {"number": number, "state": "COMPLETE", "hparams": hparams, "score": score_of(hparams)}
        search.keep_record(trial, record)
        search.tell(study, trial.number, record)


def records(file: search.StudyFile, num_trials: int = 12) -> list[dict[str, Any]]:
    return search.list_records(file.load(), num_trials)


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
    asked = search.ask(study, tune, 7)
    assert asked
    trial, number = asked
    hparams = search.suggest(trial, number, tune.space).to_record()
    search.keep_record(trial, {"number": 0, "state": "COMPLETE", "hparams": hparams, "score": 0.5})
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
    asked = search.ask(study, tune, 7)
    assert asked
    trial, number = asked
    hparams = search.suggest(trial, number, tune.space).to_record()
    record = {"number": 0, "state": "FAIL", "hparams": hparams, "score": None, "reason": "diverged"}
    search.keep_record(trial, record)
    search.tell(study, trial.number, record)
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


@pytest.mark.parametrize("pruning", ["median", "halving"])
def test_a_hopeless_trial_is_pruned_at_a_rung(tmp_path: Path, tune: Tune, pruning: str) -> None:
    tune = more(tune, pruning=pruning)
    study = open_study(tmp_path, tune.space).load()
    pruned: list[bool] = []
    for score in (0.9, 0.9, 0.9, 0.9, 0.9, 0.1):
        asked = search.ask(study, tune, 7)
        assert asked
        trial = asked[0]
        trial.report(score, 1)
        pruned.append(trial.should_prune())
        trial.report(score, 2)
        search.tell(study, trial.number, {"state": "COMPLETE", "score": score})
    assert pruned == [False] * 5 + [True]


def test_rungs_are_the_powers_of_two() -> None:
    assert [epoch for epoch in range(1, 20) if search.is_rung(epoch)] == [1, 2, 4, 8, 16]


def test_importances_name_the_hparam_that_matters(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path, tune.space)
    run(file, more(tune, num_trials=30))
    shares = search.importances(file.load(), 30)
    assert max(shares, key=lambda name: shares[name]) == "dropout"
