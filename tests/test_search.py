"""The study: drawing, resuming, exporting."""

import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from samples import make_trial

from frostline.errors import Refused
from frostline.evidence.trials import TrialRecord
from frostline.hparams import Hparams
from frostline.params import Tune, parse_params
from frostline.search import places, space
from frostline.search import study as search_study
from frostline.search.places import SIGNED, StudyFile
from frostline.search.space import list_baselines, suggest
from frostline.search.starts import begin_study, find_starts
from frostline.search.study import (
    close_abandoned,
    draw,
    expect_epochs,
    importances,
    keep_record,
    list_records,
    list_rungs,
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


def open_study(folder: Path, code: str = "c", when: str = "ask") -> StudyFile:
    return search_study.open_study(StudyFile(folder / "digest.db", "digest"), code, when)


def score_of(hparams: Hparams) -> float:
    return 0.9 - abs(hparams.dropout - 0.3) + 0.01 * hparams.unfrozen_blocks


def run(file: StudyFile, tune: Tune, seed: int = 7, die_at: int | None = None) -> None:
    """A search whose score is a formula; `die_at` leaves that trial as a killed process would."""
    study = file.load()
    while asked := draw(file, study, tune, seed):
        trial, number = asked
        hparams = suggest(trial, tune.space)
        if number == die_at:
            return
        record = TrialRecord(number, hparams, "COMPLETE", score_of(hparams))
        keep_record(trial, record)
        tell(study, trial.number, record)


def records(file: StudyFile, num_trials: int = 12) -> list[TrialRecord]:
    return list_records(file.load(), num_trials)


def test_the_first_trials_are_the_linear_heads(tune: Tune) -> None:
    bare, every_cut = list_baselines(tune.space, "avg")
    assert (bare.head_input, every_cut.head_input) == ("last", "all")
    for hparams in (bare, every_cut):
        assert (hparams.unfrozen_blocks, hparams.optimizer, hparams.suffix_learning_rate) == (0, "adam", None)
    assert [each.head_input for each in list_baselines(tune.space, "flatten")] == ["last"]


def test_the_suffix_rate_is_drawn_only_where_blocks_are_unfrozen(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path)
    run(file, tune)
    for record in records(file):
        assert (record.hparams.suffix_learning_rate is not None) == (record.depth > 0)


def test_a_killed_and_resumed_study_has_the_trials_of_an_uninterrupted_one(tmp_path: Path, tune: Tune) -> None:
    whole = open_study(tmp_path / "whole")
    run(whole, tune)
    for death in (0, 3, 9):
        folder = tmp_path / f"killed-{death}"
        run(open_study(folder), tune, die_at=death)
        resumed = open_study(folder)
        run(resumed, tune)
        assert records(resumed) == records(whole)


@pytest.mark.parametrize("draws", [1, 3])
def test_killed_while_it_draws_a_trial_draws_the_same_again(
    tmp_path: Path, tune: Tune, monkeypatch: pytest.MonkeyPatch, draws: int
) -> None:
    whole = open_study(tmp_path / "whole")
    run(whole, tune)
    run(open_study(tmp_path), more(tune, num_trials=4))
    real, made = space._draw, []

    def die(*given: Any) -> Any:
        made.append(given)
        if len(made) > draws:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(space, "_draw", die)
        run(open_study(tmp_path), tune)
    resumed = open_study(tmp_path)
    run(resumed, tune)
    assert records(resumed) == records(whole)


def test_all_trials_are_read_at_most_three_times_for_a_trial_and_it_draws_what_it_would_anyway(
    tmp_path: Path, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads = RDBStorage._get_trials, []

    def count(*given: Any, **named: Any) -> Any:
        reads.append(given)
        return read(*given, **named)

    monkeypatch.setattr(RDBStorage, "_get_trials", count)
    file = open_study(tmp_path)
    reads.clear()
    run(file, tune)
    assert len(reads) <= 3 * tune.num_trials + 1
    with monkeypatch.context() as patch:
        patch.setattr(space, "steady", nullcontext)
        patch.setattr(search_study, "steady", nullcontext)
        patch.setattr(places, "load_steady", lambda name, storage: optuna.load_study(study_name=name, storage=storage))
        plain = open_study(tmp_path / "plain")
        few = len(reads)
        reads.clear()
        run(plain, tune)
        assert len(reads) > few  # the more, the more trials are drawn by the sampler
    assert records(file) == records(plain)


@pytest.mark.parametrize("lost", [(0,), (0, 1)])
def test_of_several_workers_trials_whichever_is_lost_no_number_is_doubled_or_missing(
    tmp_path: Path, tune: Tune, lost: tuple[int, ...]
) -> None:
    file = open_study(tmp_path)
    study = file.load()
    drawn = []
    for _ in range(3):
        trial, number = draw(file, study, tune, 7) or pytest.fail("no trial")
        drawn.append((trial, TrialRecord(number, suggest(trial, tune.space), "COMPLETE", 0.5)))
    for place, (trial, record) in enumerate(drawn):
        if place not in lost:
            keep_record(trial, record)
            tell(study, trial.number, record)
    run(open_study(tmp_path), more(tune, num_trials=5))
    found = records(file)
    assert [record.number for record in found] == list(range(5))
    assert [record.hparams for record in found[:3]] == [record.hparams for _, record in drawn]


def test_a_trial_whose_process_is_gone_is_given_back_and_others_go_on(tmp_path: Path, tune: Tune) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    file = open_study(tmp_path)
    study = file.load()
    (dead, _), (mine, _) = draw(file, study, tune, 7) or pytest.fail(), draw(file, study, tune, 7) or pytest.fail()
    dead.set_user_attr(SIGNED, [0, process.pid])
    close_abandoned(file)
    states = [trial.state.name for trial in study.get_trials()][:2]
    assert states == ["FAIL", "RUNNING"]
    _, number = draw(file, study, tune, 7) or pytest.fail()
    assert number == 0 and mine.number == 1


def test_what_a_study_killed_at_its_creation_left_goes_at_the_next_start(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for left in (f".{process.pid}.other.db", f".{process.pid}.other.db-journal"):
        (tmp_path / left).touch()
    open_study(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digest.db", "digest.lock"]


def test_a_trial_killed_after_its_record_is_not_trained_again(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path)
    study = file.load()
    asked = draw(file, study, tune, 7)
    assert asked
    trial = asked[0]
    keep_record(trial, TrialRecord(0, suggest(trial, tune.space), "COMPLETE", 0.5))
    again = open_study(tmp_path)
    run(again, tune)
    assert records(again)[0].score == 0.5
    assert len(records(again)) == 12


def test_more_trials_go_on_and_fewer_give_what_fewer_gave(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path)
    run(file, more(tune, num_trials=6))
    first = records(file, 6)
    run(open_study(tmp_path), tune)
    assert len(records(file)) == 12
    assert records(file, 6) == first
    drawn = [str(record.hparams) for record in records(file)]
    assert len(set(drawn)) == 12


def test_changed_code_is_asked_about(tmp_path: Path, tune: Tune) -> None:
    run(open_study(tmp_path), tune)
    with pytest.raises(Refused, match="when_code_changed"):
        open_study(tmp_path, code="new")
    kept = open_study(tmp_path, code="new", when="keep")
    assert len(records(kept)) == 12
    fresh = open_study(tmp_path, code="newer", when="restart")
    assert records(fresh) == []
    assert len(list(tmp_path.glob("digest.until-*.db"))) == 1


def test_a_diverged_trial_counts_and_cannot_win(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path)
    study = file.load()
    asked = draw(file, study, tune, 7)
    assert asked
    trial = asked[0]
    record = TrialRecord(0, suggest(trial, tune.space), "FAIL", reason="diverged")
    keep_record(trial, record)
    tell(study, trial.number, record)
    run(file, tune)
    assert len(records(file)) == 12
    assert file.load().best_trial.number != trial.number


def test_a_single_value_is_not_drawn(tmp_path: Path, params_document: dict[str, Any]) -> None:
    params_document["tune"]["space"] |= {"unfrozen_blocks": 2, "dropout": 0.25, "optimizer": "sgd"}
    tune = more(parse_params(params_document).tune, num_trials=5)
    file = open_study(tmp_path)
    run(file, tune)
    assert {record.hparams.dropout for record in records(file)} == {0.25}
    assert [record.depth for record in records(file)] == [2] * 5


def test_a_hopeless_trial_is_pruned_at_a_rung(tmp_path: Path, tune: Tune) -> None:
    tune = more(tune, pruning="median")
    file = open_study(tmp_path)
    study = file.load()
    pruned: list[bool] = []
    for score in (0.9, 0.9, 0.9, 0.9, 0.1):
        asked = draw(file, study, tune, 7)
        assert asked
        trial = asked[0]
        trial.report(score, 1)
        pruned.append(trial.should_prune())
        trial.report(score, 2)
        tell(study, trial.number, make_trial(score=score))
    assert pruned == [False] * 4 + [True]


@pytest.mark.parametrize("scores", [(0.5, 0.6, 0.4, 0.9, 0.3)])
def test_halving_lets_the_better_half_go_on(tmp_path: Path, tune: Tune, scores: tuple[float, ...]) -> None:
    tune = more(tune, pruning="halving", epochs=8)
    file = open_study(tmp_path)
    study = file.load()
    stopped = []
    for score in scores:
        trial, number = draw(file, study, tune, 7) or pytest.fail("no trial")
        trial.report(score, list_rungs(tune)[0])
        stopped.append(trial.should_prune())
        tell(study, trial.number, make_trial(number, "PRUNED" if stopped[-1] else "COMPLETE", score))
    # The first has nobody to be behind of; then whoever is in the better half of those that came so far.
    assert stopped == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (4, [1, 2, 4]), (8, [2, 4, 8]), (13, [3, 6, 13])]
)
def test_trials_are_judged_after_a_quarter_and_half_of_their_epochs(tune: Tune, epochs: int, rungs: list[int]) -> None:
    assert list_rungs(more(tune, pruning="median", epochs=epochs)) == rungs
    assert list_rungs(more(tune, pruning="none", epochs=epochs)) == [epochs]
    assert expect_epochs(more(tune, pruning="none", epochs=epochs, num_trials=3)) == 3 * epochs


def test_importances_name_the_hparam_that_matters(tmp_path: Path, tune: Tune) -> None:
    file = open_study(tmp_path)
    run(file, more(tune, num_trials=30))
    shares = importances(file.load(), 30)
    assert max(shares, key=lambda name: shares[name]) == "dropout"


# --- what was learnt on other images ----------------------------------------------------------------------------------

ABOUT = {"base": "one"}


def file_of(folder: Path, digest: str) -> StudyFile:
    return StudyFile(folder / f"{digest}.db", digest)


def open_next(folder: Path, digest: str, tune: Tune, count: int = 3, about: dict[str, str] = ABOUT) -> StudyFile:
    file = file_of(folder, digest)
    find = partial(find_starts, file, about, tune.space, count)
    return search_study.open_study(file, "c", "ask", about=about, find_starts=find)


def run_trained(file: StudyFile, tune: Tune, die_at: int | None = None) -> None:
    """As `run`, with trials that were trained; the first two are linear heads."""
    study = file.load()
    while asked := draw(file, study, tune, 7):
        trial, number = asked
        hparams = suggest(trial, tune.space) if number > 1 else list_baselines(tune.space, "avg")[number]
        if number == die_at:
            return
        origin = trial.user_attrs.get("started_from")
        score = score_of(hparams) if number > 1 else 0.1
        record = TrialRecord(number, hparams, "COMPLETE", score, 0.5, epochs=4 * (number > 1), started_from=origin)
        keep_record(trial, record)
        tell(study, trial.number, record)


def test_a_study_begins_with_what_the_best_trials_of_the_last_one_tried(tmp_path: Path, tune: Tune) -> None:
    first = open_next(tmp_path, "a" * 16, tune)
    run_trained(first, tune)
    assert all(record.started_from is None for record in records(first))
    best = sorted((record for record in records(first) if record.epochs), key=lambda record: -record.score)[:3]
    second = open_next(tmp_path, "b" * 16, tune)
    run_trained(second, tune)
    found = records(second)
    assert [record.started_from for record in found[:6]] == [
        None,
        None,
        *(f"{'a' * 16}/{record.number}" for record in best),
        None,
    ]
    assert [record.hparams for record in found[2:5]] == [record.hparams for record in best]
    assert found[5].hparams not in [record.hparams for record in records(first)]
    # The third begins with the second's, which was written to last.
    third = open_next(tmp_path, "c" * 16, tune)
    run_trained(third, more(tune, num_trials=3))
    assert records(third)[2].started_from.startswith("b" * 16)


def test_what_a_study_begins_with_is_said_and_what_that_may_save(
    tmp_path: Path, params_document: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    params = parse_params(params_document)
    first = begin_study(tmp_path, "a" * 16, "c", params)
    run_trained(first, params.tune)
    assert capsys.readouterr().out == ""
    best = max((record for record in records(first) if record.epochs), key=lambda record: record.score or 0.0)
    second = begin_study(tmp_path, "b" * 16, "c", params)
    begins, saves = capsys.readouterr().out.splitlines()
    assert begins.startswith(f"tune: begins with what trial {best.number} of study {'a' * 16} tried")
    assert "tune.num_trials" in saves
    # The linear heads alone begin with nothing.
    begin_study(tmp_path, "b" * 16, "c", params.model_copy(update={"tune": more(params.tune, num_trials=2)}))
    assert capsys.readouterr().out == ""
    # One, where params say nothing else: more brought nothing (docs/changes.md).
    run_trained(second, params.tune)
    assert [record.number for record in records(second) if record.started_from] == [2]


def test_killed_among_what_it_began_with_a_study_goes_on_as_if_undisturbed(tmp_path: Path, tune: Tune) -> None:
    run_trained(open_next(tmp_path, "a" * 16, tune), tune)
    whole = open_next(tmp_path, "b" * 16, tune)
    run_trained(whole, tune)
    for number, death in enumerate((0, 2, 3, 5)):
        # Beside the first alone, or it would begin with another's.
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        (folder / f"{'a' * 16}.db").write_bytes((tmp_path / f"{'a' * 16}.db").read_bytes())
        run_trained(open_next(folder, "b" * 16, tune), tune, die_at=death)
        resumed = open_next(folder, "b" * 16, tune)
        run_trained(resumed, tune)
        assert records(resumed) == records(whole)


def test_another_base_another_count_or_a_file_that_is_no_study_give_nothing(tmp_path: Path, tune: Tune) -> None:
    run_trained(open_next(tmp_path, "a" * 16, tune), tune)
    assert find_starts(file_of(tmp_path, "b"), {"base": "other"}, tune.space, 3) == []
    assert find_starts(file_of(tmp_path, "b"), ABOUT, tune.space, 0) == []
    assert len(find_starts(file_of(tmp_path, "b"), ABOUT, tune.space, 2)) == 2
    assert find_starts(file_of(tmp_path, "a" * 16), ABOUT, tune.space, 3) == []  # its own
    (tmp_path / "broken.db").write_bytes(b"no database")
    assert len(find_starts(file_of(tmp_path, "b"), ABOUT, tune.space, 3)) == 3


def test_what_the_space_does_not_hold_any_more_is_drawn_anew(tmp_path: Path, tune: Tune) -> None:
    run_trained(open_next(tmp_path, "a" * 16, tune), tune)
    space = tune.space.model_copy(update={"unfrozen_blocks": (0, 1), "optimizer": ["sgd"]})
    for start in find_starts(file_of(tmp_path, "b"), ABOUT, space, 3):
        assert "optimizer" not in start.drawn and start.drawn.get("unfrozen_blocks", 0) <= 1
        assert space.dropout.low <= start.drawn["dropout"] <= space.dropout.high
    narrow = more(tune, space=space, num_trials=5)
    run_trained(open_next(tmp_path, "b" * 16, narrow), narrow)
