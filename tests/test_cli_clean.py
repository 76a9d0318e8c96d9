import shutil

import pytest

from frostline.images.rows import mark_rows
from frostline.params import Tracking
from frostline.planning.earlier import keep_outputs, kept_folders
from frostline.tracking.runs import open_final_run
from frostline.tracking.store import open_store


@pytest.fixture
def project(mlflow_root, root, monkeypatch):
    shutil.copy(root / "presets" / "default.yaml", mlflow_root / "params.yaml")
    (mlflow_root / "dvc.yaml").write_text("stages: {}\n")
    (mlflow_root / "studies").mkdir()
    (mlflow_root / "studies" / "old.db").write_bytes(b"x" * 2_000_000)
    monkeypatch.chdir(mlflow_root)
    return mlflow_root


def test_nothing_is_removed_without_yes(project, run_cli):
    answer = run_cli("clean", "--older-than", "0")
    assert answer.code == 0, answer.err
    assert "study" in answer.out and "old" in answer.out and "2.0 MB" in answer.out
    assert "Nothing was removed" in answer.out
    assert (project / "studies" / "old.db").exists()


def test_yes_removes_what_was_listed_and_a_second_call_finds_nothing(project, run_cli):
    answer = run_cli("clean", "--older-than", "0", "--yes")
    assert answer.code == 0 and "Removed." in answer.out
    assert not (project / "studies" / "old.db").exists()
    assert "0 leftovers" in run_cli("clean", "--older-than", "0").out


def test_outputs_of_earlier_runs_are_listed_bounded_and_removed(project, run_cli):
    for content in ("one", "two"):
        output = project / "data" / "views"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        (output / "view-001.npy").write_bytes(b"x" * 1_000_000)
        (output / "complete.json").write_text(f'{{"made": "{content}"}}')
        mark_rows(output, {})
        keep_outputs(["data/views"], project, 1.0)
    assert len(kept_folders(project)) == 2
    said = " ".join(run_cli("clean").out.split())
    assert "Outputs of earlier runs hold 2.0 MB" in said and "storage.kept_gb: 40" in said
    params = (project / "params.yaml").read_text().replace("storage:\n", "storage:\n  kept_gb: 0.0015\n")
    (project / "params.yaml").write_text(params)
    answer = run_cli("clean", "--yes")
    assert answer.code == 0 and "to stay within storage.kept_gb" in answer.out
    assert len(kept_folders(project)) == 1
    answer = run_cli("clean", "--older-than", "0", "--yes")
    assert "earlier" in answer.out and "data-views" in answer.out and kept_folders(project) == []


def test_young_things_are_kept_by_default(project, run_cli):
    assert "0 leftovers older than 30 days" in run_cli("clean", "--yes").out
    assert (project / "studies" / "old.db").exists()


def test_runs_of_dead_processes_are_closed(project, run_cli):
    store = open_store(Tracking(), project)
    run = open_final_run(store, name="final", params={}, tags={})
    store.client.set_tag(run, "frostline.pid", "999999999")
    assert "1 runs whose process is gone are still RUNNING" in run_cli("clean").out
    assert "1 runs whose process is gone were closed" in run_cli("clean", "--yes").out
    assert store.client.get_run(run).info.status == "KILLED"


def test_without_a_store_none_is_made(tmp_path, project, run_cli):
    (project / "mlflow.db").unlink()
    assert run_cli("clean").code == 0
    assert not (project / "mlflow.db").exists()
