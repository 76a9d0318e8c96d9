import hashlib
import json
import os
import shutil
import subprocess

import pytest

from frostline.cli import doctor
from frostline.params import Tracking
from frostline.tracking.runs import open_final_run
from frostline.tracking.store import open_store


@pytest.fixture
def project(mlflow_root, root, monkeypatch):
    """A project in which everything is as it should be."""
    shutil.copy(root / "presets" / "default.yaml", mlflow_root / "params.yaml")
    shutil.copytree(root / "locks", mlflow_root / "locks")
    (mlflow_root / "dvc.yaml").write_text("stages: {}\n")
    (mlflow_root / ".dvc").mkdir()
    shutil.copy(root / ".dvc" / "config", mlflow_root / ".dvc" / "config")
    for command in (
        ["init", "-q"],
        ["add", "params.yaml"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=mlflow_root, check=True)
    monkeypatch.chdir(mlflow_root)
    open_store(Tracking(), mlflow_root)
    return mlflow_root


def findings(project) -> dict[str, list[doctor.Finding]]:
    found: dict[str, list[doctor.Finding]] = {"ok": [], "warn": [], "fail": []}
    for finding in doctor.examine(project):
        found[finding.level].append(finding)
    return found


def text(found: list[doctor.Finding]) -> str:
    return "\n".join(f"{finding.what} {finding.advice}" for finding in found)


def test_a_healthy_project_has_no_failure(project, run_cli):
    answer = run_cli("doctor")
    assert answer.code == 0, answer.out
    assert "fail" not in answer.out
    for part in ("Python 3.", "tracking store sqlite:///", "GB free", "DVC links its cache", "git: at "):
        assert part in answer.out


def test_doctor_changes_nothing(project, run_cli):
    (project / "mlflow.db").unlink()
    before = sorted(path for path in project.rglob("*") if ".git" not in path.parts)
    run_cli("doctor")
    assert sorted(path for path in project.rglob("*") if ".git" not in path.parts) == before


def test_a_stale_file_store_is_found_and_ends_with_1(project, run_cli):
    (project / "mlruns" / "0").mkdir(parents=True)
    (project / "mlruns" / "0" / "meta.yaml").touch()
    answer = run_cli("doctor")
    assert answer.code == 1
    assert "mlruns/0" in answer.out and "migrate-filestore" in answer.out


def test_other_versions_than_the_locks_are_named(project):
    lock = project / "locks" / "dev.txt"
    lock.write_text(lock.read_text().replace("\nkeras==3.15.1", "\nkeras==3.99.0"))
    assert "keras is 3.15.1, the lock says 3.99.0: its results may differ" in text(findings(project)["warn"])


def test_weights_that_changed_since_they_were_fetched_fail(project):
    folder = project / "data" / "base"
    folder.mkdir(parents=True)
    (folder / "weights.h5").write_bytes(b"weights")
    card = {
        "name": "MobileNetV2",
        "weights": "file",
        "file": "weights.h5",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    (folder / "card.json").write_text(json.dumps(card))
    assert "sha256 as fetched" in text(findings(project)["ok"])
    (folder / "weights.h5").write_bytes(b"Weights")
    assert "sha256 differs dvc repro -f fetch" in text(findings(project)["fail"])


def test_a_run_of_a_dead_process_is_noticed(project):
    store = open_store(Tracking(), project)
    run = open_final_run(store, name="final", params={}, tags={})
    assert "RUNNING" not in text(findings(project)["warn"])
    store.client.set_tag(run, "frostline.pid", "999999999")
    assert "1 runs are RUNNING although their process is gone" in text(findings(project)["warn"])


def test_a_server_that_does_not_answer_fails_within_seconds(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    failure = text(findings(project)["fail"])
    assert "http://127.0.0.1:9 does not answer" in failure and "Start the server" in failure


def test_a_store_of_features_is_looked_at(project):
    text_of_params = (project / "params.yaml").read_text()
    (project / "shared").mkdir()
    (project / "params.yaml").write_text(text_of_params.replace("scale:\n", f"scale:\n  store: {project / 'shared'}\n"))
    assert f"store of features {project / 'shared'}" in text(findings(project)["ok"])
    (project / "shared").rmdir()
    assert "FileNotFoundError" in text(findings(project)["fail"])


def test_a_database_that_is_none_is_one_finding_among_the_others(project):
    (project / "mlflow.db").write_bytes(b"this is no database")
    found = findings(project)
    assert "no database of MLflow" in text(found["fail"])
    assert "git: at " in text(found["ok"])


def test_wrong_params_are_one_finding_among_the_others(project):
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("num_trials:", "num_trails:"))
    found = findings(project)
    assert "did you mean num_trials?" in text(found["fail"])
    assert "DVC links" in text(found["ok"])


def test_a_secret_in_the_tracked_config_fails(project):
    config = project / ".dvc" / "config"
    config.write_text(config.read_text() + "['remote \"s3\"']\n    secret_access_key = abc\n")
    failure = text(findings(project)["fail"])
    assert "secret_access_key" in failure and "--local" in failure and "abc" not in failure


@pytest.mark.parametrize("links", ["copy", '"reflink,hardlink,copy"', '"hardlink,copy"'])
def test_a_cache_that_copies_everything_is_noticed(project, links):
    """DVC takes a copy for a reflink, so that hard links behind it in the list are never made."""
    (project / ".dvc" / "config").write_text(f"[cache]\n    type = {links}\n")
    said = text(findings(project)["warn"])
    assert ("stored twice" in said) == (links.strip('"') != "hardlink,copy" and not doctor._can_reflink(project))


def test_a_stage_that_always_runs_is_no_problem():
    status = {"source": ["always changed"], "fetch": [{"changed deps": {"data/source.json": "modified"}}]}
    assert doctor.stale_stages(status) == ["fetch"]
    assert doctor.stale_stages({"source": ["always changed"]}) == []


def test_a_card_that_nothing_computes_on_is_told(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (finding,) = [one for one in doctor.examine_devices(deep=True) if "H200" in one.what]
    assert finding.level == "warn" and "on CPU" in finding.what and "UUID" not in finding.what
    monkeypatch.setattr("frostline.devices.on_cpu", lambda: False)
    monkeypatch.setattr(doctor, "_is_installed", lambda _: True)
    assert [one.level for one in doctor.examine_devices(deep=True) if "H200" in one.what] == ["ok"]
    fake.write_text("#!/bin/sh\nexit 9\n")
    assert "driver" in text(list(doctor.examine_devices(deep=False)))
