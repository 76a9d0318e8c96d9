"""Runs in MLflow, on a database made once for the session."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from samples import make_trial
from torture import LONG, write_together

from frostline.errors import Refused
from frostline.params import Tracking
from frostline.tracking import runs
from frostline.tracking.lineage import lineage_tags
from frostline.tracking.owners import sweep_dead_runs
from frostline.tracking.runs import (
    close_run,
    delete_trials,
    log_to_run,
    log_trial,
    open_final_run,
    open_study_run,
    reopen_final_run,
)
from frostline.tracking.store import Store, open_store


@pytest.fixture
def store(mlflow_root: Path) -> Store:
    return open_store(Tracking(), mlflow_root)


def log_one(store: Store, parent: str, number: int = 0, **changes: Any) -> str:
    tags = changes.pop("tags", {})
    curves = {"loss": [0.7, 0.5], "val_accuracy": [0.8, 0.9]}
    facts = {"val_loss": float("inf"), "curves": curves, "started": 1000.0, "unfrozen_blocks": 2, **changes}
    return log_trial(store, parent, make_trial(number, **facts), tags=tags, ended=1003.5)


def test_trial_is_a_finished_child_with_its_curves(store):
    parent = open_study_run(store, "d1", params={"epochs": 2}, tags={})
    run = store.client.get_run(log_one(store, parent))
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.params.items() >= {"dropout": "0.3", "unfrozen_blocks": "2", "optimizer": "adam"}.items()
    assert run.info.end_time - run.info.start_time == 3500
    history = store.client.get_metric_history(run.info.run_id, "epoch/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.7), (2, 0.5)]


def test_trial_carries_its_studys_lineage(store):
    lineage = {"frostline.git.commit": "f00", "frostline.md5.prepared": "abc", "mlflow.user": "me"}
    parent = open_study_run(store, "d1", params={}, tags=lineage)
    tags = store.client.get_run(log_one(store, parent)).data.tags
    assert tags.items() >= lineage.items()
    assert tags["frostline.study"] == "d1"
    assert "frostline.pid" not in tags


def test_trial_that_a_kill_left_open_is_closed(store, monkeypatch):
    parent = open_study_run(store, "d1", params={}, tags={})
    monkeypatch.setattr(type(store.client), "set_terminated", lambda *_: None)
    left = log_one(store, parent)
    monkeypatch.undo()
    assert sweep_dead_runs(store) == 1
    assert store.client.get_run(left).info.status == "KILLED"


def test_the_run_of_a_trial_that_was_drawn_again_is_deleted(store):
    parent, other = (open_study_run(store, digest, params={}, tags={}) for digest in ("d1", "d2"))
    left, same, others = (
        log_one(store, study, tags={"frostline.trial": "0", "frostline.draw": draw})
        for study, draw in ((parent, "10:00"), (parent, "11:00"), (other, "10:00"))
    )
    assert delete_trials(store, parent, "frostline.draw", ["10:00", "09:00"]) == 1
    stages = [store.client.get_run(run).info.lifecycle_stage for run in (left, same, others)]
    assert stages == ["deleted", "active", "active"]


def test_the_run_table_opens_with_our_columns(store):
    import json

    view = json.loads(store.client.get_experiment(store.experiment_id).tags["mlflow.sharedViewState.frostline"])
    assert "metrics.`best_val_accuracy`" in view["selectedColumns"]
    assert "params.`unfrozen_blocks`" in view["selectedColumns"]
    # An experiment of an older version gets today's view.
    store.client.set_experiment_tag(store.experiment_id, "mlflow.sharedViewState.frostline", "{}")
    open_store(Tracking(), store.root)
    assert json.loads(store.client.get_experiment(store.experiment_id).tags["mlflow.sharedViewState.frostline"]) == view


def test_infinite_metric_is_not_logged(store):
    # MLflow's "best first" order would put it at the top.
    parent = open_study_run(store, "d1", params={}, tags={})
    assert "best_val_loss" not in store.client.get_run(log_one(store, parent)).data.metrics


def test_pruned_trial_does_not_look_like_a_crash(store):
    parent = open_study_run(store, "d1", params={}, tags={})
    run = store.client.get_run(log_one(store, parent, state="PRUNED"))
    assert (run.info.status, run.data.tags["frostline.state"]) == ("KILLED", "PRUNED")


def test_study_run_is_reopened_not_doubled(store):
    first = open_study_run(store, "d1", params={"epochs": 2}, tags={})
    close_run(store, first)
    assert open_study_run(store, "d1", params={"epochs": 3}, tags={}) == first
    assert store.client.get_run(first).info.status == "RUNNING"
    assert open_study_run(store, "d2", params={}, tags={}) != first


def test_a_final_run_that_was_killed_is_whole_when_it_is_gone_on_with_and_has_each_step_once(store, monkeypatch):
    sha256, params = {"frostline.sha256": "s" * 64, "frostline.md5.prepared": "d.dir"}, {"dropout": 0.3}

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_log", die)
        with pytest.raises(KeyboardInterrupt):
            open_final_run(store, name="final", params=params, tags=sha256)
    for _ in range(2):  # the second after a kill behind the curves
        run = reopen_final_run(store, "s" * 64, sha256, params)
        log_to_run(store, run, curves={"loss": [0.5, 0.25]}, at=1000.0)
    found = store.client.get_run(run)
    assert found.data.params == {"dropout": "0.3"} and len(found.inputs.dataset_inputs) == 1
    assert [metric.step for metric in store.client.get_metric_history(run, "epoch/loss")] == [1, 2]


def test_more_metrics_than_one_batch_takes_are_all_logged(store):
    run = open_final_run(store, name="final", params={f"p{i}": i for i in range(150)}, tags={})
    log_to_run(store, run, metrics={f"m{i}": i for i in range(1200)})
    data = store.client.get_run(run).data
    assert (len(data.params), len(data.metrics)) == (150, 1200)


def test_images_go_to_their_folder_and_class_names_with_signs_are_taken(store, tmp_path):
    run = open_final_run(store, name="final", params={}, tags={})
    (tmp_path / "roc.png").write_bytes(b"png")
    (tmp_path / "card.md").write_text("card")
    close_run(store, run, metrics={"recall a & (b)": 0.5}, artifacts=[tmp_path / "roc.png", tmp_path / "card.md"])
    assert [item.path for item in store.client.list_artifacts(run)] == ["card.md", "figures"]
    assert store.client.get_run(run).data.metrics == {"recall a _ _b_": 0.5}


def test_artifacts_lie_below_the_root_wherever_the_process_stands(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_final_run(store, name="final", params={}, tags={})
    assert store.client.get_run(run).info.artifact_uri.startswith((store.root / "mlruns").as_uri())


def test_projects_that_share_a_database_and_start_together_lose_nothing(tmp_path):
    rounds, projects, each, runs = (20, 4, 2, 3) if LONG else (1, 3, 1, 2)
    for number in range(rounds):
        folder = tmp_path / f"round-{number}"
        folder.mkdir()
        ended = write_together(folder, projects, each, runs)
        assert [code for code, _ in ended] == [0] * len(ended), ended
        shared = Tracking(uri=f"sqlite:///{folder / 'team' / 'shared.db'}")
        store = open_store(shared, folder / "project-0")
        found = store.client.search_runs([store.experiment_id])
        assert len(found) == projects * each * runs and {len(run.data.metrics) for run in found} == {10}
        assert {run.info.status for run in found} == {"FINISHED"}
        # Files go beside what is shared, not to whoever came first.
        assert all(run.info.artifact_uri.startswith((folder / "team" / "mlruns").as_uri()) for run in found)


def test_what_a_killed_creation_of_the_database_left_goes(tmp_path):
    left = tmp_path / "mlflow.db.new-abcd"
    left.mkdir()
    (left / "mlflow.db").write_bytes(b"half")
    open_store(Tracking(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_runs_of_dead_processes_are_closed_and_others_left_alone(store):
    mine = open_final_run(store, name="mine", params={}, tags={})
    dead = open_final_run(store, name="dead", params={}, tags={})
    reused = open_final_run(store, name="reused pid", params={}, tags={})
    elsewhere = open_final_run(store, name="another host", params={}, tags={})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    store.client.set_tag(dead, "frostline.pid", str(ended.pid))
    store.client.set_tag(reused, "frostline.started", "1.0")
    store.client.set_tag(elsewhere, "frostline.host", "some-other-host")
    store.client.set_tag(elsewhere, "frostline.pid", str(ended.pid))
    assert sweep_dead_runs(store) == 2
    statuses = [store.client.get_run(run).info.status for run in (mine, dead, reused, elsewhere)]
    assert statuses == ["RUNNING", "KILLED", "KILLED", "RUNNING"]


def test_file_store_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(Refused, match="a folder"):
        open_store(Tracking(uri="./mlruns"), tmp_path)


def test_server_that_is_down_is_named_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    with pytest.raises(Refused, match=r"http://127\.0\.0\.1:9 cannot be used") as refusal:
        open_store(Tracking(), tmp_path)
    assert "hunter2" not in str(refusal.value)


def test_deleted_experiment_is_not_revived_in_silence(store):
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(Refused, match="was deleted"):
        open_store(Tracking(), store.root)


def test_lineage_counts_neither_outputs_nor_the_lock_as_changes(tmp_path):
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "params.yaml").write_text("seed: 3\n")
    (tmp_path / "dvc.lock").write_text("stages: {}\n")
    git("add", ".")
    git("commit", "-q", "-m", "start")
    (tmp_path / "dvc.lock").write_text(
        "stages: {prepare: {outs: [{path: data/prepared, md5: abc.dir}, {path: reports/x, md5: d}]}}\n"
    )
    (tmp_path / "data").mkdir()
    tags = lineage_tags("seed: 3\n", tmp_path, workspace=tmp_path)
    assert tags["frostline.git.changes"] == "none"
    assert tags["frostline.md5.prepared"] == "abc.dir"
    assert tags["frostline.seed"] == "3"
    assert len(tags["frostline.git.commit"]) == 40
    (tmp_path / "params.yaml").write_text("seed: 4\n")
    assert lineage_tags("seed: 4\n", tmp_path, workspace=tmp_path)["frostline.git.changes"] == "params.yaml"


def test_a_trial_costs_less_than_a_tenth_of_a_second(store):
    parent = open_study_run(store, "d1", params={}, tags={})
    curves = {name: [0.5] * 8 for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
    times = []
    for number in range(5):
        before = time.process_time()
        log_one(store, parent, number, curves=curves)
        times.append(time.process_time() - before)
    assert min(times) < 0.1


def test_credentials_of_the_environment_are_in_no_tag(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(lineage_tags("seed: 1\n", tmp_path))


def test_sections_of_params_become_dotted_names(store):
    run = open_study_run(store, "d1", params={"tune": {"epochs": 2, "space": {"dropout": 0.5}}}, tags={})
    assert store.client.get_run(run).data.params == {"tune.epochs": "2", "tune.space.dropout": "0.5"}


def test_a_screening_that_writes_is_not_taken_for_a_dead_one_and_a_killed_one_is(mlflow_root, monkeypatch):
    store = open_store(Tracking(), mlflow_root)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    def close(store, run_id, **_):
        assert sweep_dead_runs(store) == 0  # as a stage that starts now would
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "close_run", close)
    with pytest.raises(KeyboardInterrupt):
        runs.log_look(store, "screen", "screen", params={}, metrics={}, tags={}, artifacts=[])
    (left,) = store.client.search_runs([store.experiment_id], "tags.`frostline.kind` = 'screen'")
    store.client.set_tag(left.info.run_id, "frostline.pid", str(process.pid))
    assert sweep_dead_runs(store) == 1
    assert store.client.get_run(left.info.run_id).info.status == "KILLED"


def test_a_look_whose_process_was_killed_is_taken_up_and_what_was_half_uploaded_goes(store, tmp_path, monkeypatch):
    found = tmp_path / "screen.json"
    found.write_text("{}")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    def look(loss: float) -> str:
        facts = {"params": {"fetch.source": "mine"}, "metrics": {"log_loss": loss}, "tags": {"frostline.seed": "7"}}
        return runs.log_look(store, "screen", "screen", **facts, artifacts=[found])

    def leave_half(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "close_run", leave_half)
        with pytest.raises(KeyboardInterrupt):
            look(0.5)
    (left,) = store.client.search_runs([store.experiment_id])
    folder = Path(left.info.artifact_uri.removeprefix("file://"))
    (folder / "figures").mkdir(parents=True)
    for place in (folder, folder / "figures"):
        (place / ".artifact.uploading.x1y2").write_bytes(b"half")
    store.client.set_tag(left.info.run_id, "frostline.pid", str(process.pid))
    assert sweep_dead_runs(store) == 1
    assert [path for path in folder.rglob("*") if path.is_file()] == []

    assert look(0.5) == left.info.run_id  # half written
    assert look(0.5) == left.info.run_id  # whole, but its process could not say so any more
    (run,) = store.client.search_runs([store.experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["frostline.state"] == "COMPLETE"
    assert run.data.tags["frostline.pid"] == str(os.getpid())
    assert (folder / "screen.json").is_file()
    assert look(0.25) != left.info.run_id
