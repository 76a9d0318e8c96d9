"""A database of an older MLflow, and a project that stood elsewhere: found by who reads, set right by `frostline mend`."""

import hashlib
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from frostline.cli import doctor
from frostline.errors import Refused
from frostline.params import Tracking, load_params
from frostline.tracking.lineage import lineage_tags
from frostline.tracking.mending import former_root, is_outdated, mend
from frostline.tracking.runs import log_to_run, open_final_run, reopen_final_run
from frostline.tracking.store import open_store


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def age(path):
    """As if the last migration had not been made, as far as the version that the database tells."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    scripts = [
        s.revision for s in ScriptDirectory.from_config(_get_alembic_config(f"sqlite:///{path}")).walk_revisions()
    ]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("update alembic_version set version_num = ?", (scripts[1],))


def test_who_reads_writes_nothing(mlflow_root, root):
    params = load_params(root / "presets" / "default.yaml")
    path = mlflow_root / "mlflow.db"
    before, files = digest(path), sorted(mlflow_root.rglob("*"))
    with pytest.raises(Refused, match="no run yet"):
        open_store(Tracking(), mlflow_root, create=False)
    assert [finding.level for finding in doctor.examine_store(mlflow_root, params)] == ["ok"]
    assert (digest(path), sorted(mlflow_root.rglob("*"))) == (before, files)
    open_store(Tracking(), mlflow_root)
    before = digest(path)
    assert open_store(Tracking(), mlflow_root, create=False).experiment_id
    assert {finding.level for finding in doctor.examine_store(mlflow_root, params)} == {"ok"}
    assert digest(path) == before


# Writes to the database in argv[1], past the memory that SQLite would keep it in, and is gone.
KILLED_WRITER = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("pragma cache_size = 1")
database.execute("begin")
for number in range(300):
    database.execute("insert into experiments (name, lifecycle_stage) values (?, 'active')", (f"half {number}" * 50,))
os._exit(9)
"""


def test_what_a_killed_process_was_writing_is_undone_by_who_only_reads(mlflow_root):
    path = mlflow_root / "mlflow.db"
    store = open_store(Tracking(), mlflow_root)
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], check=False)
    assert path.with_name("mlflow.db-journal").stat().st_size > 0
    with (
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        database.execute("select * from experiments")  # as it was
    assert open_store(Tracking(), mlflow_root, create=False).experiment_id == store.experiment_id
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select count(*) from experiments where name like 'half%'").fetchone() == (0,)


def test_an_older_database_is_refused_unchanged_until_it_is_to_be_mended(mlflow_root, root):
    path = mlflow_root / "mlflow.db"
    age(path)
    before = digest(path)
    assert is_outdated(path, mlflow_root)
    for create in (True, False):
        with pytest.raises(Refused, match="frostline mend"):
            open_store(Tracking(), mlflow_root, create=create)
    params = load_params(root / "presets" / "default.yaml")
    (finding,) = doctor.examine_store(mlflow_root, params)
    assert finding.level == "fail" and "older MLflow" in finding.what
    assert digest(path) == before


def test_a_newer_database_and_none_at_all_are_refused(mlflow_root):
    path = mlflow_root / "mlflow.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
    with pytest.raises(Refused, match="newer MLflow"):
        open_store(Tracking(), mlflow_root)
    path.write_text("no database at all, but a text of some length" * 20)
    with pytest.raises(Refused, match="no database of MLflow's"):
        open_store(Tracking(), mlflow_root)


def test_a_moved_project_is_found_and_mended_with_a_copy(mlflow_root, tmp_path, root):
    store = open_store(Tracking(), mlflow_root)
    run = open_final_run(store, name="final", params={}, tags={})
    store.client.log_text(run, "old", "old.txt")
    new = tmp_path / "moved % _ here"
    shutil.move(mlflow_root, new)
    path = new / "mlflow.db"
    assert former_root(path, new, "frostline") == mlflow_root
    with pytest.raises(Refused, match="moved or copied"):
        open_store(Tracking(), new)
    (finding,) = doctor.examine_store(new, load_params(root / "presets" / "default.yaml"))
    assert finding.level == "fail"
    before = digest(path)
    said = mend(path, new, "frostline")
    assert any("were moved" in line for line in said)
    (copy,) = new.glob("mlflow.db.before-*")
    with closing(sqlite3.connect(copy)) as database:
        assert str(mlflow_root) in database.execute("select artifact_uri from runs").fetchone()[0]
    assert digest(path) != before
    assert mend(path, new, "frostline") == []
    store = open_store(Tracking(), new)
    # MLflow's client remembers a run's place for as long as it lives, so a new run is asked.
    assert store.client.get_run(run).info.artifact_uri.startswith(new.as_uri())
    assert list(new.rglob("old.txt"))
    store.client.log_text(open_final_run(store, name="final", params={}, tags={}), "new", "new.txt")
    assert list(new.rglob("new.txt")) and not mlflow_root.exists()


@pytest.mark.parametrize("what", ["delete_run", "nothing", "unknown"])
def test_the_line_goes_on_whatever_was_done_to_its_run(mlflow_root, what):
    store = open_store(Tracking(), mlflow_root)
    run = open_final_run(store, name="final", params={"a": 1}, tags={"frostline.sha256": "s" * 64})
    if what == "delete_run":
        store.client.delete_run(run)
    found = reopen_final_run(store, ("u" if what == "unknown" else "s") * 64, {})
    assert found == (run if what == "nothing" else None)
    found = found or open_final_run(store, name="final", params={"a": 1}, tags={})
    log_to_run(store, found, metrics={"accuracy": 0.5})
    assert store.client.get_run(found).data.metrics["accuracy"] == 0.5


def test_a_deleted_experiment_is_refused_with_what_to_do(mlflow_root):
    store = open_store(Tracking(), mlflow_root)
    store.client.delete_experiment(store.experiment_id)
    for create in (True, False):
        with pytest.raises(Refused, match="experiments restore"):
            open_store(Tracking(), mlflow_root, create=create)


def test_a_failed_git_call_is_never_an_answer(tmp_path, monkeypatch):
    """A repository of another owner, as in a container: git refuses it."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert lineage_tags("seed: 1", tmp_path, workspace=tmp_path)["frostline.git.changes"] == "none"
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    tags = lineage_tags("seed: 1", tmp_path, workspace=tmp_path)
    assert "dubious ownership" in tags["frostline.git.changes"]
    (finding,) = doctor.examine_git(tmp_path)
    assert finding.level == "fail" and "safe.directory" in finding.advice
    from frostline.planning.checks import repository_problems

    assert "dubious ownership" in repository_problems(tmp_path)[0]
