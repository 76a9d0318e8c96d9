"""deploy/: PostgreSQL, S3 and MLflow's server together, and what of a project goes through them."""

import base64
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from killing import change_params, make_project
from planted import plant
from ruamel.yaml import YAML
from servers import Cluster, cluster
from test_line import SMALL, Project, ran_in, start_project
from test_registry import add, ask, call, encode, files, run_register, running, train_again, workspace  # noqa: F401
from torture import LONG, promote_in_turns

from frostline.files import load_json, sha256_of
from frostline.params import Tracking, load_params
from frostline.registry.versions import download_version, load_version
from frostline.tracking.store import open_store

ROOT = Path(__file__).parents[1]
SERVICES = ("postgres", "s3", "mlflow")


@pytest.fixture(scope="module")
def services() -> Iterator[Cluster]:
    with cluster(*SERVICES) as made:
        yield made


@pytest.fixture
def server(services: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The services, as a user has exported them."""
    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    return services


def test_the_services_keep_their_secrets_and_what_they_hold(services: Cluster) -> None:
    file = services.folder / "cluster.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    hidden = load_json(file)["secrets"].values()
    seen = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [words for words in seen for secret in hidden if secret in words]
    assert not [path for path in services.folder.glob("*.log") for secret in hidden if secret in path.read_text()]
    before = dict(services.environment)
    services.up(*SERVICES)  # they run already
    assert services.environment == before
    assert set(before) == {
        *("FROSTLINE_STUDY_URL", "MLFLOW_TRACKING_URI", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        *("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"),
    }


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "deploy" / "cluster.py"), "--folder", str(tmp_path / "c"), "up", "mlflow"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2 and done.stderr == "Error: MLflow's server stands on postgres and s3: start that, too.\n"
    )


def test_the_same_for_a_real_place_takes_its_secrets_from_the_environment() -> None:
    document = YAML(typ="safe", pure=True).load(ROOT / "deploy" / "compose.yaml")
    assert set(document["services"]) == {"postgres", "s3", "bucket", "mlflow"}
    for name, service in document["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("${BIND:-127.0.0.1}:"), name
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|URI", key):
                assert re.search(r"\$\{\w+:\?is not set\}", str(value)), f"{name}: {key}"
    mlflow = document["services"]["mlflow"]["build"]["dockerfile_inline"]
    assert re.findall(r"mlflow==[\d.]+", mlflow) == re.findall(
        r"^mlflow==[\d.]+", (ROOT / "locks/dev.txt").read_text(), re.M
    )


# --- the registry -------------------------------------------------------------------------------------------------------


def test_promoters_on_two_machines_leave_one_chain_of_champions(
    server: Cluster,
    tmp_path: Path,
    files: list[Path],  # noqa: F811
) -> None:
    """Each project's folder has a lock of its own, as on two machines: what keeps them apart is PostgreSQL's."""
    rounds = 50 if LONG else 6
    store = open_store(Tracking(), tmp_path / "a")
    versions = [add(store, file) for file in files[:2]]
    promote_in_turns(store, [tmp_path / "a", tmp_path / "b"], versions, rounds)


@pytest.mark.skipif(not LONG, reason="starts Keras five times: `make torture`")
def test_a_versions_life_on_the_server(server: Cluster, workspace: Path, tmp_path: Path) -> None:  # noqa: F811
    """As on the database beside a project (test_registry.py), with the files on S3."""
    assert run_register()["version"] == 1
    code, said = call("promote")
    assert code == 0, said
    store = open_store(load_params().tracking, workspace)
    first = load_version(store, "frostline", 1)
    (model,) = download_version(store, first, tmp_path / "copy").rglob("model.keras")
    assert sha256_of(model) == sha256_of(Path("models/final.keras"))
    image = np.load("data/prepared/test/images.npy")[0]
    Path("one.png").write_bytes(encode(image))
    wanted = json.loads(call("predict", "one.png", "--json")[1])
    train_again(2.0)
    assert run_register()["version"] == 2
    code, said = call("promote", "--force", "--reason", "a test")
    assert code == 0, said
    code, said = call("diff", "1", "2")
    assert code == 0, said
    assert "version 1 is the champion again" in call("rollback")[1]
    assert [json.loads(line)["to_version"] for line in call("history", "--json")[1].splitlines()] == [1, 2, 1]
    assert json.loads(call("predict", "one.png", "--json")[1]) == wanted
    assert call("clean")[1].startswith("0 leftovers")
    assert not (workspace / "mlruns").exists()
    if LONG:
        rows = {"dataframe_records": [{"image": base64.b64encode(encode(image)).decode()}]}
        with running("serve", "/ping") as url:
            assert ask(f"{url}/invocations", rows)["predictions"][0]["label"] == wanted["label"]


@pytest.mark.skipif(not LONG, reason="all stages once more: `make torture`")
def test_the_whole_line_through_the_services(server: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    make_project(folder)
    change_params(folder, "tracking", experiment="line")  # the names that all begin with are another test's
    change_params(folder, "register", name="line")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def frostline(*arguments: str) -> str:
        return run("-c", "from frostline.cli import main; main()", *arguments)

    for stage in ("source", "fetch", "prepare", "augment", "extract", "tune", "refit", "evaluate", "register"):
        run(f"pipelines/{stage}.py")
    assert load_json(folder / "reports/registration.json")["version"] == 1
    assert "champion now" in frostline("promote", "--force", "--reason", "a test")
    # Another model for certain: the linear head, where it wins, is the same after any number of epochs.
    change_params(folder, "tune", pooling="max")
    for stage in ("tune", "refit", "evaluate", "register"):
        run(f"pipelines/{stage}.py")
    assert load_json(folder / "reports/registration.json")["version"] == 2
    assert "champion now" in frostline("promote", "--force", "--reason", "a test")
    assert "version 1 is the champion again" in frostline("rollback")
    assert len(frostline("history", "--json").splitlines()) == 3
    image = next((folder / "data" / "raw").rglob("*.png"))
    assert json.loads(frostline("predict", "--json", str(image)))["label"]
    assert frostline("diff", "1", "2")
    assert frostline("clean")
    assert not (folder / "mlruns").exists() and not (folder / "mlflow.db").exists()
    hidden = load_json(server.folder / "cluster.json")["secrets"].values()
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not [secret for secret in hidden for text in texts if secret.encode() in text]


# --- a DVC remote -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not LONG, reason="a dozen programs, one after the other: `make torture`")
def test_what_one_clone_pushed_to_s3_another_pulls_and_computes_nothing(services: Cluster, tmp_path: Path) -> None:
    keys = {name: value for name, value in services.environment.items() if name.startswith("AWS_")}
    project = start_project(tmp_path / "one")
    project.environment |= keys
    project.set({**SMALL, "base.name": "MobileNetV2", "base.weights": "random", "base.options": {"alpha": 0.35}})
    plant(project.folder)
    project.run("dvc", "remote", "add", "--default", "store", "s3://frostline/dvc")
    assert ran_in(project.run("dvc", "repro", "augment")) == ["fetch", "prepare", "augment"]
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "-m", "views")
    project.run("dvc", "push")
    project.run("git", "clone", "--quiet", str(project.folder), str(tmp_path / "two"))
    other = Project(tmp_path / "two")
    other.environment |= keys
    other.run("dvc", "pull", "augment", "prepare", "fetch", "source")
    assert ran_in(other.run("dvc", "repro", "augment")) == []
    for name in ("data/views", "data/prepared"):
        listed = [
            {path.relative_to(each.folder / name): path.read_bytes() for path in (each.folder / name).rglob("*.npy")}
            for each in (project, other)
        ]
        assert listed[0] and listed[0] == listed[1]
    tracked = other.run("git", "ls-files").splitlines()
    texts = [(other.folder / name).read_bytes() for name in tracked]
    assert not [
        key for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") for text in texts if keys[key].encode() in text
    ]
