"""Engine ray gives, bit for bit, what engine local gives; also where its processes are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import mortals
import numpy as np
import psutil
import pytest
import servers
from mortals import Mortal
from projects import NUM, SIZE, make_params, make_project
from samples import make_trial
from torture import LONG
from zoo import make_image

from frostline.arrays import JoinedRows, digest_rows, load_split, save_array
from frostline.bases.base import load_base
from frostline.bases.extraction import Extractor, Source
from frostline.errors import Refused
from frostline.files import hash_folder
from frostline.images import shards
from frostline.images.preparation import prepare_images
from frostline.images.views import Drawing, save_views
from frostline.params import Params, Prepare, Scale
from frostline.scale.engines import has_ray, open_engine
from frostline.scale.local import HERE
from frostline.scale.work import Engine, Work
from frostline.search import worker as worker_module
from frostline.search.places import StudyFile
from frostline.search.study import list_killed, list_records, open_study
from frostline.search.worker import Job, run_trials
from frostline.tracking.runs import open_study_run
from frostline.tracking.store import open_store
from frostline.training.bench import Bench, fit_shared_heads
from frostline.training.refit import Refitter, cross_fit_trial

TESTS = Path(__file__).parent
TRANSFORMS: list[dict[str, dict[str, Any]]] = [
    {"HorizontalFlip": {"p": 0.5}},
    {"Affine": {"rotate": [-20, 20], "border_mode": 4, "p": 0.8}},
]
pytestmark = [
    pytest.mark.skipif(not has_ray(), reason="the extra ray is not installed: make env EXTRA=ray"),
    pytest.mark.skipif(
        sys.platform != "linux", reason="Ray's processes end with the stage by prctl, which only Linux has"
    ),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def cluster(project: Path) -> Iterator[Any]:
    """A Ray of this test's own, with two workers that can import what is in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
        with open_engine(scaled(make_params(project), workers=2)) as engine:
            yield engine


def scaled(params: Params, **scale: Any) -> Params:
    return params.model_copy(update={"scale": Scale(engine="ray", **scale)})


# Who was killed in the middle has done what an undisturbed one does, too.
@pytest.fixture(params=["a process killed", *(["undisturbed"] if LONG else [])])
def ray_engine(request: pytest.FixtureRequest, cluster: Any, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "undisturbed":
        yield cluster
        return
    flag = tmp_path / "killed"
    yield Mortal(cluster, flag)
    assert flag.exists()


# --- the same bits ----------------------------------------------------------------------------------------------------


def test_images_are_the_same(tmp_path: Path, ray_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", SIZE * SIZE * 3 * 16)
    for name in ("cats", "dogs"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for number in range(40):
            pixels = make_image(number + 1000 * (name == "dogs"), 40, 48)
            (tmp_path / "raw" / name / f"{number}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    (tmp_path / "raw/cats/broken.jpg").write_bytes(b"no image")
    for engine in (HERE, ray_engine):
        place = tmp_path / type(engine).__name__
        prepare_images(
            tmp_path / "raw", place, Prepare(), size=SIZE, seed=7, work=tmp_path / "w" / place.name / "s", engine=engine
        )
    assert hash_folder(tmp_path / "Local") == hash_folder(place) and place.name != "Local"


def test_views_are_the_same(tmp_path: Path, ray_engine: Engine) -> None:
    images = np.stack([make_image(seed, SIZE, SIZE) for seed in range(300)])
    save_array(tmp_path / "images.npy", [images], images.shape, np.uint8)
    drawing = Drawing((tmp_path / "images.npy",), digest_rows(images), TRANSFORMS, 7)
    for engine in (HERE, ray_engine):
        drawn = list(save_views(drawing, tmp_path / type(engine).__name__, num_views=3, workers=1, engine=engine))
        assert drawn == [(1, 300), (2, 300)]
    assert hash_folder(tmp_path / "Local") == hash_folder(tmp_path / type(ray_engine).__name__)


def test_features_are_the_same(
    project: Path, tmp_path: Path, ray_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(project)
    where = (params.base, Path(params.paths.base))
    extractor = Extractor(load_base(*where), [0, 1, 2], 20)
    monkeypatch.setattr("frostline.bases.extraction.TASK_BYTES", 1)  # a batch for each task
    images = [load_split(project / "data/prepared" / split).images for split in NUM]
    digests = digest_rows(np.concatenate(images))
    sources = {
        "view-000": Source(JoinedRows(*images), digests),
        "mirror": Source(JoinedRows(*images, mirrored=True), digests),
    }
    for engine in (HERE, ray_engine):
        place = tmp_path / type(engine).__name__
        # Depth 2 alone is missing beside what an earlier run made: a pass that ends at its cut.
        list(extractor.save(sources, place / "first", ["depth-00", "pooled"], engine=engine, base=where))
        list(extractor.save(sources, place / "whole", earlier=[place / "first"], engine=engine, base=where))
    assert hash_folder(tmp_path / "Local") == hash_folder(place) and place.name != "Local"


def test_folds_are_the_same(project: Path, tmp_path: Path, ray_engine: Engine) -> None:
    params = make_params(project)
    splits = [load_split(project / "data/prepared" / split) for split in NUM]
    trial = make_trial(3, unfrozen_blocks=1, head_input="all", suffix_learning_rate=1e-3)
    for engine in (HERE, ray_engine):
        work = tmp_path / type(engine).__name__
        refitter = Refitter(params, ("dark", "bright"), splits, work, engine)
        cross_fit_trial(refitter.bench, trial, refitter.rows, refitter.folds, work, engine)
    here, there = (
        {file.name: dict(np.load(file)) for file in sorted((tmp_path / name).glob("*.npz"))}
        for name in ("Local", type(ray_engine).__name__)
    )
    assert len(here) == params.refit.folds and here.keys() == there.keys()
    for name, arrays in here.items():
        assert arrays.keys() == there[name].keys()
        for key, values in arrays.items():
            np.testing.assert_array_equal(values, there[name][key])


def test_one_worker_runs_the_same_trials(
    project: Path,
    mlflow_root: Path,
    ray_engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    params = make_params(project, num_trials=6)
    store = open_store(params.tracking, mlflow_root)
    bench = Bench(params, 2, {})
    bench.heads = fit_shared_heads(bench)
    monkeypatch.setattr(ray_engine, "workers", 1)

    @contextmanager
    def open_given(asked: Params) -> Iterator[Engine]:
        yield ray_engine if asked.scale.engine == "ray" else HERE

    monkeypatch.setattr(worker_module, "open_engine", open_given)
    records = {}
    for asked in (params, scaled(params)):
        name = asked.scale.engine
        study = open_study(StudyFile(mlflow_root / "studies" / f"{name}.db", name), "c", "ask")
        parent = open_study_run(store, asked.scale.engine, params={}, tags={})
        run_trials(Job(asked, study, store, parent, ("dark", "bright"), bench.heads), bench)
        records[asked.scale.engine] = [
            replace(record, run_id="", started=0.0, seconds=0.0, phases={}) for record in list_records(study.load(), 6)
        ]
    assert records["local"] == records["ray"] and len(records["ray"]) == 6
    killed = [trial.number for trial in list_killed(study.load())]
    assert len(killed) == isinstance(ray_engine, Mortal)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tune:")]
    assert len(said) == len(killed) and all(line.startswith("tune: a worker ended early (its ") for line in said)
    assert len(study.load().get_trials()) == 6 + len(killed)  # it came back once


def test_what_an_own_ray_is_told_is_not_told_to_what_this_process_starts_later(project: Path) -> None:
    before = dict(os.environ)
    with open_engine(scaled(make_params(project))):
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0" and len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert dict(os.environ) == before


# --- what is raised ---------------------------------------------------------------------------------------------------


def test_a_process_can_start_one_ray_after_another(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(TWICE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    done = subprocess.run(
        [sys.executable, "twice.py"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.split() == ["0", "1"], done.stderr


TWICE = """
from types import SimpleNamespace
import mortals
from frostline.params import Scale
from frostline.scale.engines import open_engine
from frostline.scale.work import Work

for number in range(2):
    with open_engine(SimpleNamespace(scale=Scale(engine="ray", workers=1))) as engine:
        for told, _ in engine.map(Work(mortals.tell_process, mortals.begin_nothing), [(number, 0.0)]):
            print(told)
"""


def test_an_error_of_a_task_is_raised_as_it_is(cluster: Any) -> None:
    for kind in (Refused, FloatingPointError):
        with pytest.raises(kind, match=r"^so and so$"):
            list(cluster.map(Work(mortals.fail, mortals.begin_nothing), [(kind, "so and so")]))


def test_results_come_in_the_order_of_their_tasks_and_no_more_processes_work_than_asked(cluster: Any) -> None:
    seconds = [0.4, 0.0, 0.2, 0.0, 0.0, 0.1, 0.0, 0.0]
    told = list(cluster.map(Work(mortals.tell_process, mortals.begin_nothing), list(enumerate(seconds))))
    assert [number for number, _ in told] == list(range(8))
    assert 1 <= len({process for _, process in told}) <= 2


def test_nobody_else_can_reach_it_and_nobody_is_called(cluster: Any) -> None:
    list(cluster.map(Work(mortals.tell_process, mortals.begin_nothing), [(0, 0.0)]))
    family = psutil.Process().children(recursive=True)
    connections = [each for process in family for each in process.net_connections("inet")]
    addresses = [place.ip for each in connections for place in (each.laddr, each.raddr) if place]
    assert connections and all(address.removeprefix("::ffff:") in ("127.0.0.1", "::1") for address in addresses)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_node_without_the_folder_or_with_other_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frostline.scale.cluster import Home, _digest_code

    monkeypatch.chdir(tmp_path)
    Home(str(tmp_path / "gone"), _digest_code(), needed=False).enter()
    assert Path.cwd() == tmp_path
    for home, said in (
        (Home(str(tmp_path / "gone"), _digest_code()), "does not see .*gone: No such file or directory"),
        (Home(str(tmp_path), "0123"), "another version of Frostline"),
    ):
        with pytest.raises(Refused, match=said):
            home.enter()


# --- the stage's process ----------------------------------------------------------------------------------------------

STAGE = """
import json, os, sys
from types import SimpleNamespace
from pathlib import Path
import mortals, psutil
from frostline.params import Scale
from frostline.process import run_stage
from frostline.scale.engines import open_engine
from frostline.scale.work import Work

def main():
    scale, kind, tasks = json.loads(sys.argv[1])
    work = Work(getattr(mortals, kind), mortals.begin_nothing, on_gpu=True)
    with open_engine(SimpleNamespace(scale=Scale(engine="ray", **scale))) as engine:
        for number, piece in enumerate(engine.map(work, tasks)):
            print(piece, flush=True)
            if not number:
                family = psutil.Process().children(recursive=True)
                Path("family.tmp").write_text(json.dumps({process.pid: process.name() for process in family}))
                Path("family.tmp").rename("family")
        if kind == "tell_gpu":
            Path("crew").mkdir()
            assert engine.run_workers(mortals.say_gpu, (Path("crew"), 2), 2, here=None, lost=print) == []

if __name__ == "__main__":
    run_stage("augment", main)
"""


def start_stage(
    folder: Path, scale: dict[str, Any], kind: str, tasks: list[Any], door: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    (folder / "stage.py").write_text(STAGE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    return subprocess.Popen(
        [sys.executable, "stage.py", json.dumps([scale, kind, tasks])],
        cwd=folder,
        env=environment | {"PYTHONPATH": path} | (door or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(condition: Any, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_with_family(folder: Path) -> tuple[subprocess.Popen[str], dict[int, str]]:
    process = start_stage(folder, {"workers": 2}, "tell_process", [[0, 0.0], [1, 60.0], [2, 60.0]])
    assert wait_for((folder / "family").exists), process.kill() or process.communicate()
    time.sleep(0.5)
    return process, {int(pid): name for pid, name in json.loads((folder / "family").read_text()).items()}


def folders_of(process: subprocess.Popen[str]) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"frostline-ray-{process.pid}-*"))


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stage_that_is_told_to_end_takes_its_ray_with_it(tmp_path: Path, name: str, code: int) -> None:
    process, family = start_with_family(tmp_path)
    assert {"gcs_server", "raylet"} <= set(family.values()) and folders_of(process)
    began = time.monotonic()
    process.send_signal(signal.Signals[name])
    _, err = process.communicate(timeout=20)
    assert process.returncode == code and time.monotonic() - began < 5
    assert err.startswith(f"frostline: augment was ended by {name};") and err.count("\n") == 1
    assert wait_for(lambda: not any(map(is_alive, family)), 5)
    assert not folders_of(process)


def test_a_stage_that_is_killed_leaves_no_process_and_the_next_one_takes_its_folder_away(tmp_path: Path) -> None:
    process, family = start_with_family(tmp_path)
    process.kill()
    process.communicate()
    # Ray's agents, which hold nothing, end by themselves when they have looked for the dead head for a minute.
    assert wait_for(lambda: not any(is_alive(pid) for pid, name in family.items() if "Agent" not in name), 15)
    assert folders_of(process)
    after = start_stage(tmp_path, {"workers": 1}, "tell_process", [[0, 0.0]])
    out, err = after.communicate(timeout=120)
    assert after.returncode == 0 and not err and "augment: done" in out
    assert not folders_of(process) and not folders_of(after)


def test_a_stage_whose_ray_is_killed_ends_in_one_line(tmp_path: Path) -> None:
    process, family = start_with_family(tmp_path)
    os.kill(next(pid for pid, name in family.items() if name == "gcs_server"), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("frostline: Ray is gone (") and err.count("\n") == 1 and "`dvc repro` goes on" in err
    assert wait_for(lambda: not any(map(is_alive, family)), 10) and not folders_of(process)


def _answers(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray that runs already, on a machine that seems to have four CPUs and two GPUs: its address, and how it is entered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    door = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}"]
        resources = ["--num-cpus=4", "--num-gpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
        process = subprocess.Popen([*command, *resources], env=os.environ | door, stdout=subprocess.DEVNULL)
        try:
            address = f"127.0.0.1:{port}"
            assert wait_for(lambda: _answers(port) and len(psutil.Process(process.pid).children()) >= 4)
            yield address, door
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


def test_each_worker_has_a_gpu_of_its_own(tmp_path: Path, head: tuple[str, dict[str, str]]) -> None:
    scale = {"address": head[0], "workers": 2, "gpus": 1}
    stage = start_stage(tmp_path, scale, "tell_gpu", [[number, 1.0] for number in range(4)], head[1])
    out, err = stage.communicate(timeout=180)
    assert stage.returncode == 0, err
    lines = out.splitlines()
    assert set(lines[:4]) == {"0", "1"}, out  # tasks
    assert set(lines[4:6]) == {"GPU 0", "GPU 1"}, out  # workers of a study


def test_cluster_up_starts_two_nodes_that_a_stage_finds(tmp_path: Path) -> None:
    with servers.cluster("ray", "ray-node") as made:
        scale = {"address": "auto", "workers": 2, "cpus": 2}  # all that a node has
        stage = start_stage(tmp_path, scale, "tell_node", [[number, 2.0] for number in range(4)], made.environment)
        out, err = stage.communicate(timeout=180)
    assert stage.returncode == 0 and len(set(out.splitlines()[:4])) == 2, out + err


def test_a_worker_that_fits_no_node_is_refused_and_so_is_an_address_where_nothing_is(
    tmp_path: Path, head: tuple[str, dict[str, str]]
) -> None:
    for scale, said in (
        ({"address": head[0], "cpus": 9, "gpus": 1}, "no node of 1 has them: at most 4 CPUs, at most 2 GPUs"),
        ({"address": "127.0.0.1:9"}, "nothing answers at 127.0.0.1:9, which scale.address names"),
    ):
        stage = start_stage(tmp_path, scale, "tell_process", [[0, 0.0]], head[1])
        _, err = stage.communicate(timeout=120)
        assert stage.returncode == 2 and said in err and err.count("\n") == 1, err
