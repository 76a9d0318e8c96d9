"""`frostline worker`: a search whose `tune` was killed is finished by others, and `tune` takes over what they did."""

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killing import change_params, make_project
from optuna.trial import TrialState
from servers import Cluster, cluster
from torture import LONG

from frostline.files import load_json, sha256_of
from frostline.params import Params, load_params
from frostline.planning.closure import code_of
from frostline.process import run_stage
from frostline.scale.engines import has_ray
from frostline.search.depot import _open, open_depot
from frostline.search.places import StudyServer, digest_of
from frostline.search.starts import begin_study
from frostline.search.study import announce, list_killed, list_records
from frostline.search.supply import put_supply
from frostline.search.worker import Job, run_trials
from frostline.tracking.runs import open_study_run
from frostline.tracking.store import Store, open_store
from frostline.training.bench import Bench, fit_shared_heads

TRIALS = 8 if LONG else 4
TUNE = [sys.executable, "pipelines/tune.py"]
WORKER = [sys.executable, "-c", "from frostline.cli import main; main()", "worker"]


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster("postgres", "s3") as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        _open.cache_clear()  # of the services of an earlier test
        yield made
        made.kill("s3")  # asked to end, it takes ten seconds


@pytest.fixture
def project(services: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small line that has run up to `extract`."""
    folder = tmp_path / "project"
    make_project(folder)
    space = load_json(folder / "params.yaml")["tune"]["space"] | {"unfrozen_blocks": [1, 2]}
    change_params(folder, "tune", num_trials=TRIALS, space=space)
    change_params(folder, "scale", store="s3://frostline/features")
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(folder)
    for stage in ("source", "fetch", "prepare", "augment", "extract"):
        run_stage(stage, runpy.run_path(f"pipelines/{stage}.py")["main"])
    return folder


def start(command: list[str]) -> "subprocess.Popen[str]":
    # JAX is up in a fifth of the time.
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait(process: "subprocess.Popen[str]", is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not is_so():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.1)


def is_training(place: StudyServer) -> bool:
    return bool(place.load().get_trials(states=(TrialState.RUNNING,)))


def numbers(place: StudyServer) -> list[int]:
    return [record.number for record in place.read(lambda study: list_records(study, TRIALS))]


def begin(project: Path, params: Params) -> tuple[StudyServer, Store, str]:
    """A study, its data in the store, and the run below which its trials belong: in the place of `tune`, which would train, too."""
    store, digest = open_store(params.tracking, project), digest_of(params)
    parent = open_study_run(store, digest, params={}, tags={})
    place = begin_study(project / "studies", digest, code_of("search/worker.py"), params)
    announce(place, TRIALS, parent, put_supply(params, open_depot(params)))
    assert isinstance(place, StudyServer)
    return place, store, parent


@pytest.mark.skipif(not has_ray(), reason="the extra ray is not installed: make env EXTRA=ray")
def test_rays_workers_without_the_data_take_it_from_the_store(
    project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # of the workers
    params = load_params()
    params = params.model_copy(update={"scale": params.scale.model_copy(update={"engine": "ray", "workers": 1})})
    place, store, parent = begin(project, params)
    classes = tuple(load_json(Path(params.paths.prepared) / "classes.json"))
    bench = Bench(params, len(classes), {})
    heads = fit_shared_heads(bench)
    (project / "data").rename(project / "elsewhere")
    run_trials(Job(params, place, store, parent, classes, heads), bench)
    assert numbers(place) == list(range(TRIALS)) and not (project / "data").exists()
    assert capfd.readouterr().out.count("\ntrial ") == TRIALS


def test_a_worker_without_the_data_draws_what_is_left_and_ends(project: Path) -> None:
    params = load_params()
    place, store, parent = begin(project, params)
    data = (project / "data").rename(project / "elsewhere")
    worker = start(WORKER)
    out, said = worker.communicate()
    assert worker.returncode == 0, said
    assert numbers(place) == list(range(TRIALS))
    records = place.read(lambda study: list_records(study, TRIALS))
    runs = store.client.search_runs([store.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert sorted(run.info.run_id for run in runs) == sorted(record.run_id for record in records)
    assert list((project / "studies").glob("*.db")) == []
    # Taken were neither images nor the maps of a depth that no trial had, and nothing is left but the cache.
    assert "MB taken from s3://frostline/features" in out and not (project / "data").exists()
    cache = project.with_name("cache")
    taken = {path.name for path in cache.glob("files/*/*")}
    maps = list(data.glob("features/depth-*/*.npy"))
    depths = {record.hparams.unfrozen_blocks for record in records}
    wanted = {sha256_of(path) for path in maps if int(path.parent.name[-2:]) in depths}
    assert 0 < len(wanted) < len(maps) and {sha256_of(path) for path in maps} & taken == wanted
    assert sha256_of(data / "prepared/train/images.npy") not in taken
    assert list(cache.glob("views/*")) == []


@pytest.mark.skipif(not LONG, reason="five processes with Keras, one after the other: `make torture`")
def test_workers_finish_what_a_killed_tune_began_and_it_takes_over_what_they_did(
    project: Path, services: Cluster
) -> None:
    params = load_params()
    place = StudyServer(params.tracking.experiment, digest_of(params), 60.0)

    place.prepare()  # whoever comes first makes the tables
    tune = start(TUNE)
    wait(tune, lambda: place.exists() and len(numbers(place)) > 1 and is_training(place))
    tune.kill()
    tune.communicate()

    worker, before = start(WORKER), len(numbers(place))
    wait(worker, lambda: len(numbers(place)) > before and is_training(place))
    worker.terminate()
    said = worker.communicate()[1]
    assert worker.returncode == 143 and "worker was ended by SIGTERM" in said.splitlines()[-1], said
    assert not is_training(place)

    data = (project / "data").rename(project / "elsewhere")  # the last one takes what `tune` put into the store
    worker = start(WORKER)
    said = worker.communicate()
    assert worker.returncode == 0 and "MB taken from s3://frostline/features" in said[0], said
    assert numbers(place) == list(range(TRIALS))
    data.rename(project / "data")

    tune = start(TUNE)
    said = tune.communicate()
    assert tune.returncode == 0, said
    trials = load_json(project / "reports/tune/trials.json")["trials"]
    assert [trial["number"] for trial in trials] == list(range(TRIALS))
    store = open_store(params.tracking, project)
    runs = store.client.search_runs([store.experiment_id], "tags.`frostline.kind` = 'trial'")
    assert sorted(run.info.run_id for run in runs) == sorted(trial["run_id"] for trial in trials)
    assert len(place.read(list_killed)) == 2
    # The database's password is nowhere, and neither is a study beside it.
    password = services.environment["FROSTLINE_STUDY_URL"].split(":")[2].split("@")[0].encode()
    assert len(password) > 20
    assert [path for path in project.rglob("*") if path.is_file() and password in path.read_bytes()] == []
    assert list((project / "studies").glob("*.db")) == []
