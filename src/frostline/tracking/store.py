"""Where runs go: MLflow's store and experiment, each made once and whole."""

import functools
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from frostline.errors import Refused, first_line, redact
from frostline.hparams import HPARAMS
from frostline.params import Tracking
from frostline.process import locked
from frostline.tracking.mending import artifact_root, refuse_unfit
from frostline.tracking.patience import PatientClient, refuse_silent
from frostline.tracking.postgres import advisory_lock, database_url, refuse_unusable

EXPERIMENT_NOTE = (
    "A **study** is a parent run with one child run per trial; a **final** run is the winner, trained again and tested.\n\n"
    "`best_val_accuracy` is what the search maximises; `epoch/…` are the curves. A red cross beside PRUNED is a trial that "
    "the pruner stopped early to save time, not a failure. `frostline compare` prints the same table in a terminal."
)
# A view of the run table that `frostline ui` opens: without it MLflow folds the trials away and shows no number at all.
VIEW = "frostline"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
# Few enough that all stand in a common window; the others are a click away under Columns.
VIEW_METRICS = ("best_val_accuracy", "test_accuracy")
VIEW_PARAMS = tuple(name for name, hparam in HPARAMS.items() if hparam.shown)


@dataclass(frozen=True)
class Store:
    """Where runs go: the tracking URI, the experiment, the project's root, and how long a server that is away is waited for."""

    uri: str
    experiment_id: str
    root: Path
    patience_s: float = Tracking().patience_s

    @property
    def client(self) -> MlflowClient:
        return client_of(self.uri, self.patience_s)

    @property
    def shown_uri(self) -> str:
        """The URI without the name and password that it may hold."""
        return redact(self.uri)


@functools.cache
def client_of(uri: str, patience_s: float) -> MlflowClient:
    """The client of a tracking URI, for runs and registry alike."""
    return PatientClient(uri, patience_s) if uri.startswith("http") else MlflowClient(uri, uri)


def tracking_uri(tracking: Tracking, root: Path) -> str:
    """`$MLFLOW_TRACKING_URI`, else `tracking.uri`, else the database at the root.

    Raises Refused for a folder: MLflow gave up its file store.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri or f"sqlite:///{root / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise Refused(
            f"tracking.uri is {uri!r}, a folder. Allowed: null, sqlite:///FILE, a database URL, or http(s)://SERVER."
        )
    if scheme == "sqlite":
        return f"sqlite:///{root / uri.removeprefix('sqlite:///')}"
    return uri


def open_store(tracking: Tracking, root: Path, *, create: bool = True) -> Store:
    """The store and its experiment, both created where they are missing; with `create` False nothing is written.

    Safe for any number of processes at once. Raises Refused where a server does not answer, the experiment was deleted,
    the database is of another MLflow or another place, or where there is nothing and nothing is to be created.
    """
    root = root.resolve()
    uri = tracking_uri(tracking, root)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        if path.is_file() and path.stat().st_size:
            refuse_unfit(path, root, tracking.experiment)
        elif not create:
            raise Refused(f"There is no run yet: {path} is missing. `dvc repro` makes the first ones.")
    if uri.startswith("http"):
        refuse_silent(uri)
    if not create:
        experiment = _look(client_of(uri, tracking.patience_s), uri, tracking.experiment)
        return Store(uri, experiment, root, tracking.patience_s)
    with locked(_lock_of(uri, root)):
        if uri.startswith("sqlite:///"):
            create_database(Path(uri.removeprefix("sqlite:///")), root)
        try:
            # A client makes the tables, too, so it is made under the lock.
            experiment = _experiment(client_of(uri, tracking.patience_s), tracking.experiment, uri, root)
            return Store(uri, experiment, root, tracking.patience_s)
        except MlflowException as error:
            raise _unusable(uri, error) from error


def _lock_of(uri: str, root: Path) -> Path:
    """Beside the database, because several projects may share it; a server has locks of its own."""
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///") + ".lock")
    return root / ".frostline" / "store.lock"


@contextmanager
def exclusive(store: Store, name: str) -> Iterator[None]:
    """Only one process at a time is inside a block of this name; the others wait.

    Of all processes of the project's folder; of all machines' where the store is a server and the environment names a database
    that they share.
    """
    with locked(store.root / ".frostline" / f"{name}.lock"):
        if not store.uri.startswith("http") or database_url() is None:
            yield
            return
        refuse_unusable()
        with advisory_lock(name):
            yield


def _look(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment as it is."""
    try:
        found = client.get_experiment_by_name(name)
    except MlflowException as error:
        raise _unusable(uri, error) from error
    if found is None:
        raise Refused(
            f"There is no run yet: {redact(uri)} has no experiment {name!r}. `dvc repro` makes the first ones."
        )
    _refuse_deleted(found)
    return str(found.experiment_id)


def _unusable(uri: str, error: MlflowException) -> Refused:
    reason = f"The tracking store {uri} cannot be used: {first_line(error)}"
    return Refused(f"{redact(reason)} Start the server, or change tracking.uri or MLFLOW_TRACKING_URI.")


def create_database(path: Path, root: Path) -> None:
    """Makes MLflow's tables in `path`, unless they are there; the caller holds the lock.

    What a creation that was killed left beside it goes.
    """
    prefix = f"{path.name}.new-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        shutil.rmtree(left, ignore_errors=True)
    # Two processes that create the tables at once, or one killed in between, leave a file that never works again;
    # so they are made under another name and the file moves into place whole.
    if path.is_file() and path.stat().st_size:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        database = SqlAlchemyStore(f"sqlite:///{fresh}", str(root / "mlruns"))
        database.engine.dispose()
        fresh.replace(path)


def _make_view() -> str:
    columns = ["attributes.`Duration`", "tags.`frostline.state`"]
    columns += [f"metrics.`{name}`" for name in VIEW_METRICS] + [f"params.`{name}`" for name in VIEW_PARAMS]
    view = {
        # Sorted by a metric, trials stand beside finals instead of below their folded study.
        "searchFilter": "tags.`frostline.kind` != 'study'",
        "orderByKey": "metrics.`best_val_accuracy`",
        "orderByAsc": False,
        "selectedColumns": columns,
    }
    return json.dumps(view)


def _experiment(client: MlflowClient, name: str, uri: str, root: Path) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server keeps artifacts where it was told to; beside a database of ours the place must be absolute, because
        # MLflow would take the working directory, which in `dvc exp run --temp` vanishes.
        above = artifact_root(Path(uri.removeprefix("sqlite:///")), root) if uri.startswith("sqlite:///") else root
        place = None if uri.startswith("http") else (above / "mlruns" / re.sub(r"[^\w.-]", "_", name)).as_uri()
        tags = {
            "mlflow.note.content": EXPERIMENT_NOTE,
            "mlflow.experimentKind": "custom_model_development",
            VIEW_TAG: _make_view(),
        }
        identifier: str = client.create_experiment(name, place, tags)
        return identifier
    _refuse_deleted(found)
    if found.tags.get(VIEW_TAG) != _make_view():
        client.set_experiment_tag(found.experiment_id, VIEW_TAG, _make_view())
    return str(found.experiment_id)


def _refuse_deleted(found: Experiment) -> None:
    if found.lifecycle_stage != "active":
        raise Refused(
            f"The experiment {found.name!r} was deleted. `mlflow experiments restore --experiment-id {found.experiment_id}` "
            "brings it back; or choose another name as tracking.experiment."
        )


def pages(search: Callable[..., Any], *arguments: object, **options: object) -> Iterator[Any]:
    """Everything that one of MLflow's searches finds, page after page."""
    token = None
    while True:
        page = search(*arguments, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return
