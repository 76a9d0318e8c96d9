import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from samples import make_trial

from frostline.files import size_of
from frostline.params import Params, Tracking, parse_params
from frostline.process import UNFINISHED
from frostline.tracking.leftovers import DAY, REGISTERED, find_leftovers, remove_leftovers
from frostline.tracking.runs import close_run, log_trial, open_final_run, open_study_run
from frostline.tracking.store import Store, open_store


@pytest.fixture
def params(params_document) -> Params:
    return parse_params(params_document)


@pytest.fixture
def store(mlflow_root, monkeypatch) -> Store:
    opened = open_store(Tracking(), mlflow_root)
    # MLflow looks up the model of a new version in its global store.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", opened.uri)
    return opened


def make_study(store: Store, digest: str, root: Path) -> dict[str, str]:
    """A study with two trials and a final run with a file, as the stages leave them; the ids by name."""
    parent = open_study_run(store, digest, params={}, tags={})
    ids = {"parent": parent}
    for number in range(2):
        trial = make_trial(number, started=1.0)
        ids[f"trial {number}"] = log_trial(store, parent, trial, tags={}, ended=2.0)
    close_run(store, parent)
    ids["final"] = open_final_run(store, name="final", params={}, tags={"frostline.study": digest})
    image = root / "image.png"
    image.write_bytes(b"x" * 1000)
    close_run(store, ids["final"], artifacts=[image])
    (root / "studies").mkdir(exist_ok=True)
    (root / "studies" / f"{digest}.db").write_bytes(b"x" * 500)
    return ids


def make_model(store: Store, run_id: str, root: Path, *, version: bool) -> str:
    model = store.client.create_logged_model(store.experiment_id, "frostline", run_id)
    file = root / "model.keras"
    file.write_bytes(b"x" * 2000)
    folder = Path(model.artifact_location.removeprefix("file://"))
    folder.mkdir(parents=True)
    file.rename(folder / "model.keras")
    store.client.finalize_logged_model(model.model_id, "READY")
    if version:
        if not store.client.search_registered_models():
            store.client.create_registered_model("frostline")
        made = store.client.create_model_version(
            "frostline", f"models:/{model.model_id}", run_id, model_id=model.model_id
        )
        tags = {REGISTERED: json.dumps([{"name": "frostline", "version": int(made.version)}])}
        store.client.set_logged_model_tags(model.model_id, tags)
    return model.model_id


def names_of(leftovers) -> set[str]:
    return {leftover.key if leftover.kind in ("run", "model") else Path(leftover.key).stem for leftover in leftovers}


def test_only_what_nothing_leads_to_is_left_over(store, mlflow_root, params):
    old, registered, current = (make_study(store, digest, mlflow_root) for digest in ("old", "registered", "current"))
    loose = make_model(store, old["final"], mlflow_root, version=False)
    make_model(store, registered["final"], mlflow_root, version=True)
    report = mlflow_root / params.paths.study / "study.json"
    report.parent.mkdir(parents=True)
    report.write_text('{"study": "current"}')
    leftovers = find_leftovers(mlflow_root, params.paths, store, older_than=0)
    assert names_of(leftovers) == {*old.values(), loose, "old"}
    assert not names_of(leftovers) & {*registered.values(), *current.values()}


def test_removal_frees_the_files_and_leaves_registered_versions_whole(store, mlflow_root, params):
    old, registered = make_study(store, "old", mlflow_root), make_study(store, "registered", mlflow_root)
    make_model(store, old["final"], mlflow_root, version=False)
    kept = make_model(store, registered["final"], mlflow_root, version=True)
    before = size_of(mlflow_root / "mlruns")
    remove_leftovers(find_leftovers(mlflow_root, params.paths, store, older_than=0), mlflow_root, store)
    assert before - size_of(mlflow_root / "mlruns") == 3000
    assert [path.stem for path in (mlflow_root / "studies").glob("*.db")] == ["registered"]
    assert {run.info.run_id for run in store.client.search_runs([store.experiment_id])} == set(registered.values())
    model = store.client.get_logged_model(kept)
    assert (Path(model.artifact_location.removeprefix("file://")) / "model.keras").stat().st_size == 2000
    assert store.client.get_model_version("frostline", "1").source == f"models:/{kept}"
    assert find_leftovers(mlflow_root, params.paths, store, older_than=0) == []


def test_what_is_young_or_running_stays(store, mlflow_root, params):
    make_study(store, "old", mlflow_root)
    running = open_final_run(store, name="final", params={}, tags={})
    # The trials say that they ended in 1970; the others are of this minute.
    young = find_leftovers(mlflow_root, params.paths, store, older_than=DAY)
    assert {leftover.name for leftover in young} == {"trial 00 · depth 0", "trial 01 · depth 0"}
    assert running not in names_of(find_leftovers(mlflow_root, params.paths, store, older_than=0))


def test_the_work_of_a_running_stage_is_no_leftover(mlflow_root, params):
    for name in ("extract-1234", "tune-1234"):
        (mlflow_root / UNFINISHED / name).mkdir(parents=True)
        (mlflow_root / UNFINISHED / name / "shard.npy").write_bytes(b"x" * 100)
    lock = (mlflow_root / ".frostline" / "extract.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    leftovers = find_leftovers(mlflow_root, params.paths, None, older_than=0)
    assert [(leftover.name, leftover.size) for leftover in leftovers] == [("unfinished tune-1234", 100)]
    remove_leftovers(leftovers, mlflow_root, None)
    assert [path.name for path in (mlflow_root / UNFINISHED).iterdir()] == ["extract-1234"]
    lock.close()


def test_a_study_goes_with_its_side_files(mlflow_root, params):
    folder = mlflow_root / "studies"
    folder.mkdir()
    for name in ("a.db", "a.lock", "a.owner", "a.db-journal", "b.db"):
        (folder / name).touch()
    month_ago = time.time() - 31 * DAY
    os.utime(folder / "a.db", (month_ago, month_ago))
    leftovers = find_leftovers(mlflow_root, params.paths, None, older_than=30 * DAY)
    assert names_of(leftovers) == {"a"}
    remove_leftovers(leftovers, mlflow_root, None)
    assert [path.name for path in folder.iterdir()] == ["b.db"]


@pytest.mark.parametrize("what", ["delete_run", "delete_logged_model"])
def test_a_removal_that_was_broken_off_is_finished_by_the_next(store, mlflow_root, params, monkeypatch, what):
    old = make_study(store, "old", mlflow_root)
    make_model(store, old["final"], mlflow_root, version=False)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    real = getattr(type(store.client), what)
    for moment in (die, lambda *given: die(real(*given)), real):  # before, after, never
        monkeypatch.setattr(type(store.client), what, moment)
        try:
            remove_leftovers(find_leftovers(mlflow_root, params.paths, store, older_than=0), mlflow_root, store)
        except KeyboardInterrupt:
            assert moment is not real
    assert find_leftovers(mlflow_root, params.paths, store, older_than=0) == []
    assert [path for path in (mlflow_root / "mlruns").rglob("*") if path.is_file()] == []


def test_files_outside_the_projects_mlruns_are_never_removed(store, mlflow_root, params, tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").touch()
    experiment = store.client.create_experiment("elsewhere", outside.as_uri())
    elsewhere = Store(store.uri, experiment, store.root)
    run = open_final_run(elsewhere, name="final", params={}, tags={})
    close_run(elsewhere, run, artifacts=[outside / "file"])
    remove_leftovers(find_leftovers(mlflow_root, params.paths, elsewhere, older_than=0), mlflow_root, elsewhere)
    assert store.client.get_run(run).info.lifecycle_stage == "deleted"
    assert (outside / run / "artifacts" / "file").exists()
