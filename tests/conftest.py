"""What all tests share: switched-off callers, few threads, and a clean process."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

# The machine is shared and the arrays are tiny: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# A store of the user's own must never receive a test's runs.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "DVC_ROOT", "FROSTLINE_STUDY_URL"):
    os.environ.pop(_name, None)

import pytest

from frostline import cli

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The walk through the whole line comes first: of two processes, one would wait for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_line.py")


@pytest.fixture
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture
def shared() -> Path:
    """The folder of real images and weights beside the repository; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real images of {folder}, which are not part of the repository")
    return folder


@pytest.fixture
def params_document(root: Path):
    """A fresh copy of what the default params say, to change at will, with the bundled base, the smallest that knows something.

    A user may have changed `params.yaml` itself.
    """
    from ruamel.yaml import YAML

    document = YAML(typ="safe", pure=True).load(root / "presets" / "default.yaml")
    document["base"] |= {"name": "MobileNetV2", "weights": "bundled", "options": {"alpha": 0.35}}
    return document


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them: made once, because that takes seconds."""
    from frostline.tracking.store import create_database

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_database(path, path.parent)
    return path


@pytest.fixture
def mlflow_root(mlflow_tables: Path, tmp_path: Path) -> Path:
    """A project root of its own with an empty MLflow database."""
    import shutil

    folder = tmp_path / "root"
    folder.mkdir()
    shutil.copy(mlflow_tables, folder / "mlflow.db")
    return folder


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(capsys, monkeypatch):
    """Runs `frostline ARGUMENTS` in this process and folder, as a user would meet it, and gives its answer."""

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["frostline", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `refit` writes them, tiny and untrained: uint8 (n, 32, 32, 3) -> three probabilities."""
    import keras

    keras.utils.set_random_seed(0)
    given = keras.Input((32, 32, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(given)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(x))
    path = tmp_path_factory.mktemp("tiny") / "final.keras"
    keras.Model(given, keras.layers.Dense(3, activation="softmax")(x)).save(path)
    return path
