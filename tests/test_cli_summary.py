import json

import pytest
from samples import make_refit, make_search, make_trial


@pytest.fixture
def project(tmp_path, root, monkeypatch):
    (tmp_path / "params.yaml").write_text((root / "presets" / "default.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project, name, record):
    path = project / "reports" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def test_before_the_first_run_it_says_what_to_do(project, run_cli):
    answer = run_cli("summary")
    assert answer.code == 2 and "dvc repro" in answer.err and "trials.json" in answer.err


def test_it_shows_the_winner_the_interval_the_version_and_what_to_do_next(project, run_cli):
    drawn = {"unfrozen_blocks": 3, "dropout": 0.314}
    fallen = make_trial(2, "PRUNED", 0.5, suffix_learning_rate=2e-3, **drawn)
    trials = [make_trial(score=0.8), make_trial(1, score=0.9125, **drawn), fallen]
    write(project, "tune/trials.json", make_search(*trials, best=1).to_record())
    accuracy = {"value": 0.9375, "low": 0.9, "high": 0.96}
    baseline = {"accuracy": {"value": 0.85, "low": 0.8, "high": 0.9}}
    classes: dict[str, dict[str, float]] = {"cats": {}, "dogs": {}}
    record = {"num_images": 320, "accuracy": accuracy, "baseline": baseline, "per_class": classes}
    write(project, "evaluation/evaluation.json", record)
    deeper = {"depth": 4, "seconds": 12.0, "seconds_now": 9.0, "bytes": 120_000_000}
    write(project, "tune/study.json", {"cuts": [{"depth": depth} for depth in range(9)], "deeper": deeper})
    write(project, "registration.json", {"name": "frostline", "version": 4})
    write(project, "../models/refit.json", make_refit(1, unfrozen_blocks=3).to_record())
    answer = run_cli("summary")
    assert answer.code == 0, answer.err
    text = " ".join(answer.out.split())
    assert "1 of 3 (2 ran to the end): 3 blocks unfrozen, dropout 0.31, validation accuracy 0.912" in text
    assert "0.938, 95 % interval 0.900 to 0.960 on 320 images" in text
    assert "bare head 0.850" in text
    assert "final model 5 tails of its last 3 blocks and a head, on one frozen part, mixed with a linear head" in text
    assert "accuracy out of fold 0.900 on 600 images" in text
    assert "registered frostline version 4" in text
    assert "The best depth, 3, is the deepest that was searched" in text
    assert "One block more takes about 12 s a trial, where depth 3 takes 9 s, and 0.12 GB of features." in text
    assert "1 of 3 trials collapsed: trial 2 (a suffix rate of 0.002 is too high for 3 blocks)" in text
    for command in ("frostline ui", "frostline compare", "frostline promote"):
        assert command in text


def test_an_experiment_says_why_it_is_not_registered(project, run_cli):
    write(project, "tune/trials.json", make_search(make_trial()).to_record())
    accuracy = {"value": 0.9, "low": 0.6, "high": 1.0}
    write(project, "evaluation/evaluation.json", {"num_images": 9, "accuracy": accuracy, "per_class": {"cats": {}}})
    write(project, "registration.json", {"name": "frostline", "version": None, "reason": "made by an experiment"})
    assert "not registered: made by an experiment" in run_cli("summary").out


def test_results_of_an_older_version_are_refused_with_a_way_out(project, run_cli):
    write(project, "tune/trials.json", make_search(make_trial()).to_record())
    write(project, "evaluation/evaluation.json", {"num_images": 9, "accuracy": {"value": 0.9, "low": 0.6, "high": 1.0}})
    write(project, "registration.json", {"name": "frostline", "version": 1})
    write(project, "../models/refit.json", {"trial": 3, "seeds": [], "sha256": "f" * 64})
    answer = run_cli("summary")
    assert answer.code == 2 and "another version" in answer.err and "dvc repro" in answer.err
