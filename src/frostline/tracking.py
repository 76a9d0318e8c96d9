"""Runs in MLflow: one parent per study, one child per trial, one `final` per refit.

MLflow is a sink here. No stage asks it for its input, and no run is a fluent, global one: every call names its run.
"""

import contextlib
import fcntl
import functools
import getpass
import json
import logging
import math
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from frostline import __version__
from frostline.params import Tracking, load_lock
from frostline.process import Refused

# A server that is down is reported after seconds; MLflow's own patience is four minutes a call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# A bar for each file of a model that lies on this very disk.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# The creation of the database is not news.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)

STATES = {"FINISHED": "COMPLETE", "KILLED": "PRUNED", "FAILED": "FAIL"}
# What is written about each library, because it can change results.
LIBRARIES = ("keras", "tensorflow", "jax", "numpy", "optuna", "albumentations", "opencv-python-headless", "mlflow")
EXPERIMENT_NOTE = (
    "A **study** is a parent run with one child run per trial; a **final** run is the winner, trained again and tested.\n\n"
    "`best_val_accuracy` is what the search maximises; `epoch/…` are the curves. A red cross beside PRUNED is a trial that "
    "the pruner stopped early to save time, not a failure. `frostline compare` prints the same table in a terminal."
)
# A view of the run table that `frostline ui` opens: without it MLflow folds the trials away and shows no number at all.
VIEW = "frostline"
# Prefixes of the tags that say where a run comes from.
LINEAGE = (
    *("frostline.study", "frostline.git.", "frostline.params.", "frostline.seed", "frostline.md5."),
    *("frostline.versions", "frostline.device", "frostline.dvc_", "mlflow.source.git."),
)
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
# Few enough that all stand in a common window; the others are a click away under Columns.
VIEW_METRICS = ("best_val_accuracy", "test_accuracy")
VIEW_PARAMS = ("unfrozen_blocks", "dropout", "head_learning_rate")
# MLflow takes at most so many metrics, and so many params or tags, in one call.
MAX_METRICS, MAX_ENTRIES = 1000, 100


@dataclass(frozen=True)
class Store:
    """Where runs go: the tracking URI, the experiment, and the project's root."""

    uri: str
    experiment_id: str
    root: Path

    @property
    def client(self) -> MlflowClient:
        return client_of(self.uri)

    @property
    def shown_uri(self) -> str:
        """The URI without the name and password that it may hold."""
        return _without_credentials(self.uri)


@functools.cache
def client_of(uri: str) -> MlflowClient:
    """The client of a tracking URI, for runs and registry alike."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


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


def open_store(tracking: Tracking, root: Path) -> Store:
    """The store and its experiment, both created where they are missing.

    Safe for any number of processes at once. Raises Refused where a server does not answer or the experiment
    was deleted.
    """
    root = root.resolve()
    uri = tracking_uri(tracking, root)
    with locked(root / ".frostline" / "store.lock"):
        if uri.startswith("sqlite:///"):
            create_database(Path(uri.removeprefix("sqlite:///")), root)
        try:
            return Store(uri, _experiment(client_of(uri), tracking.experiment, uri, root), root)
        except MlflowException as error:
            reason = f"The tracking store {uri} cannot be used: {str(error).splitlines()[0]}"
            raise Refused(
                f"{_without_credentials(reason)} Start the server, or change tracking.uri or MLFLOW_TRACKING_URI."
            ) from error


def open_study_run(store: Store, digest: str, *, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
    """The id of the study's parent run: reopened where the study has one, else new."""
    found = store.client.search_runs(
        [store.experiment_id], f"tags.`frostline.study` = '{digest}' and tags.`frostline.kind` = 'study'", max_results=1
    )
    tags = {**tags, **owner_tags(), "frostline.study": digest, "frostline.kind": "study"}
    if found:
        run_id: str = found[0].info.run_id
        store.client.update_run(run_id, status="RUNNING")
        # Params cannot change; what may grow (the number of trials) is logged as a tag by the caller.
        known = found[0].data.params
        params = {key: value for key, value in flatten(params).items() if _allowed(key) not in known}
    else:
        run_id = _create(store, f"study {digest[:8]}", tags, {})
    _log(store, run_id, params=params, tags=tags)
    _log_dataset(store, run_id, tags, "training")
    return run_id


def log_trial(
    store: Store,
    parent_run_id: str,
    *,
    name: str,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    curves: Mapping[str, Sequence[float]],
    tags: Mapping[str, str],
    status: str,
    started: float,
    ended: float,
) -> str:
    """The id of a whole child run: hparams, metrics and every curve, written in one batch.

    Args:
        curves: name -> one value per epoch; shown as `epoch/<name>` with the epoch, from 1, as step.
        status: FINISHED, KILLED (a pruned trial) or FAILED.
        started, ended: seconds since 1970.
    """
    tags = {
        "frostline.state": STATES[status],
        **_lineage_of(store, parent_run_id),
        **tags,
        # No pid: it is closed at once, and one that a kill left open is swept for not naming a process.
        "frostline.host": socket.gethostname(),
        "frostline.kind": "trial",
        "mlflow.parentRunId": parent_run_id,
    }
    run_id = _create(store, name, tags, {}, started)
    _log(store, run_id, params=params, metrics=metrics, curves=curves, at=ended)
    store.client.set_terminated(run_id, status, int(ended * 1000))
    return run_id


def delete_trials(store: Store, parent_run_id: str, tag: str, values: Sequence[str]) -> int:
    """How many child runs of the study were deleted: those whose tag has one of the values."""
    found: list[Run] = []
    for value in values:
        where = f"tags.`mlflow.parentRunId` = '{parent_run_id}' and tags.`{tag}` = '{value}'"
        found += store.client.search_runs([store.experiment_id], where)
    for run in found:
        store.client.delete_run(run.info.run_id)
    return len(found)


@functools.cache
def _lineage_of(store: Store, run_id: str) -> dict[str, str]:
    # A study's trials share where they come from; read once per process.
    tags = store.client.get_run(run_id).data.tags
    return {
        key: value
        for key, value in tags.items()
        if key.startswith(LINEAGE) or key in ("mlflow.user", "mlflow.source.name", "mlflow.source.type")
    }


def open_final_run(store: Store, *, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
    """The id of a new `final` run; RUNNING until `close_run`."""
    tags = {**tags, **owner_tags(), "frostline.kind": "final"}
    run_id = _create(store, name, tags, {})
    _log(store, run_id, params=params)
    _log_dataset(store, run_id, tags, "training")
    return run_id


def reopen_run(store: Store, run_id: str, name: str, params: Mapping[str, object]) -> str:
    """The run's id, or that of a new `final` run where this store does not know it.

    Results that came from a teammate through DVC name runs of the teammate's store.
    """
    try:
        store.client.get_run(run_id)
        return run_id
    except MlflowException:
        return open_final_run(store, name=name, params=params, tags={"frostline.restored_from": run_id})


def log_to_run(
    store: Store,
    run_id: str,
    *,
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, float] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Mapping[Path, str] | Sequence[Path] = (),
) -> None:
    """Adds to a run, open or closed.

    Args:
        artifacts: files, or file -> folder in the run ("" is its top). Pictures go to `figures` unless told otherwise.
    """
    _log(store, run_id, params=params or {}, metrics=metrics or {}, curves=curves or {}, tags=tags or {})
    placed = artifacts if isinstance(artifacts, Mapping) else {path: _folder_of(path) for path in artifacts}
    for path, folder in placed.items():
        store.client.log_artifact(run_id, str(path), folder or None)


def load_artifact(store: Store, run_id: str, name: str, folder: Path) -> Path:
    """The run's file `name`, copied into `folder`. Refused where the run has no such file."""
    try:
        return Path(store.client.download_artifacts(run_id, name, str(folder)))
    except (MlflowException, OSError) as error:
        raise Refused(f"Run {run_id} has no file {name} in {store.shown_uri}.") from error


def close_run(
    store: Store,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Mapping[Path, str] | Sequence[Path] = (),
    status: str = "FINISHED",
) -> None:
    """Adds to a run and ends it; all its files are there before it counts as ended."""
    state = {"frostline.state": STATES[status]}
    log_to_run(store, run_id, metrics=metrics, tags={**state, **(tags or {})}, artifacts=artifacts)
    store.client.set_terminated(run_id, status)


def list_runs(store: Store, kind: str | None = None) -> list[dict[str, Any]]:
    """Trials and finals as flat records: id, name, kind, state, study, then hparams and metrics; numbers as numbers."""
    runs = _search(store, f"tags.`frostline.kind` = '{kind}'" if kind else "tags.`frostline.kind` != 'study'")
    studies = {
        run.info.run_id: run.data.tags["frostline.study"] for run in _search(store, "tags.`frostline.kind` = 'study'")
    }
    records = []
    for run in runs:
        tags = run.data.tags
        records.append(
            {
                "id": run.info.run_id,
                "name": run.info.run_name,
                "kind": tags.get("frostline.kind", ""),
                "state": tags.get("frostline.state", STATES.get(run.info.status, run.info.status)),
                "study": tags.get("frostline.study") or studies.get(tags.get("mlflow.parentRunId", ""), ""),
                **{name: _number(value) for name, value in run.data.params.items()},
                **{name: value for name, value in run.data.metrics.items() if not name.startswith("epoch/")},
            }
        )
    return records


def _search(store: Store, where: str) -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        page = store.client.search_runs([store.experiment_id], where, max_results=1000, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def lineage_tags(params_text: str, root: Path, *, device: str = "", workspace: Path | None = None) -> dict[str, str]:
    """Where a run comes from: commit, changes to it, params, data, device and versions.

    Args:
        params_text: the text of `params.yaml`.
        root: the project's root, for programs that run outside a workspace.
        workspace: where `dvc.lock` and the checked-out files are; the working directory unless given (inside
            `dvc exp run --temp` it is not the root).
    """
    workspace = workspace or (Path.cwd() if Path("dvc.yaml").is_file() else root)
    # Outputs are ignored by git already; dvc.lock changes while the line runs.
    status = _git(workspace, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    commit = _git(workspace, "rev-parse", "HEAD")
    changed = [line[2:].strip() for line in status.splitlines()]
    # Only the seed is needed here; the whole file was checked by whoever started the run.
    seed = re.search(r"^seed:\s*(\d+)", params_text, re.MULTILINE)
    tags = {
        "frostline.git.commit": commit or "none",
        "frostline.git.changes": ", ".join(changed) or "none",
        "frostline.params.sha256": sha256(params_text.encode()).hexdigest(),
        "frostline.seed": seed.group(1) if seed else "",
        "frostline.device": device or f"cpu, {os.cpu_count()} cores, {platform.machine()}",
        "frostline.versions": _versions(),
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user_name(),
    }
    if commit:
        tags["mlflow.source.git.commit"] = commit
    for path, digest in load_lock(workspace / "dvc.lock").items():
        if path.startswith("data/"):
            tags[f"frostline.md5.{path.removeprefix('data/')}"] = digest
    for variable in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        if os.environ.get(variable):
            tags[f"frostline.{variable.lower()}"] = os.environ[variable]
    return tags


def owner_tags() -> dict[str, str]:
    """What tells this process from every other: host, boot, pid and start time."""
    return {
        "frostline.host": socket.gethostname(),
        "frostline.boot": _boot_id(),
        "frostline.pid": str(os.getpid()),
        "frostline.started": f"{psutil.Process().create_time():.2f}",
    }


def sweep_dead_runs(store: Store) -> int:
    """How many RUNNING runs of dead processes of this host were closed as KILLED."""
    dead = find_dead_runs(store)
    for run_id in dead:
        store.client.set_tag(run_id, "frostline.state", "DEAD")
        store.client.set_terminated(run_id, "KILLED")
    return len(dead)


def find_dead_runs(store: Store) -> list[str]:
    """The ids of RUNNING runs whose process on this host is gone."""
    running = store.client.search_runs(
        [store.experiment_id],
        f"attributes.status = 'RUNNING' and tags.`frostline.host` = '{socket.gethostname()}'",
        ViewType.ALL,
        max_results=1000,
    )
    return [run.info.run_id for run in running if _is_dead(run.data.tags)]


def _is_dead(tags: Mapping[str, str]) -> bool:
    boot, _, namespace = tags.get("frostline.boot", "").partition(":")
    here_boot, _, here_namespace = _boot_id().partition(":")
    if boot != here_boot:
        return True
    if namespace != here_namespace:
        return False  # another container of this machine: its processes cannot be seen from here
    try:
        started = psutil.Process(int(tags["frostline.pid"])).create_time()
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return True
    # The clock may have been set since; a process that took over the number started far later.
    return bool(abs(started - float(tags.get("frostline.started", "0"))) > 2.0)


def _boot_id() -> str:
    if sys.platform != "linux":
        return f"{psutil.boot_time():.0f}:"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{Path('/proc/self/ns/pid').readlink().name.strip('pid:[]')}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process of this machine at a time is inside the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def create_database(path: Path, root: Path) -> None:
    """Makes MLflow's tables in `path`, unless they are there; the caller holds the lock."""
    # Two processes that create the tables at once, or one killed in between, leave a file that never works again;
    # so they are made under another name and the file moves into place whole.
    if path.is_file() and path.stat().st_size:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
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
        place = None if uri.startswith("http") else (root / "mlruns" / re.sub(r"[^\w.-]", "_", name)).as_uri()
        tags = {
            "mlflow.note.content": EXPERIMENT_NOTE,
            "mlflow.experimentKind": "custom_model_development",
            VIEW_TAG: _make_view(),
        }
        identifier: str = client.create_experiment(name, place, tags)
        return identifier
    if found.lifecycle_stage != "active":
        raise Refused(
            f"The experiment {name!r} was deleted. `mlflow experiments restore --experiment-id {found.experiment_id}` "
            "brings it back; or choose another name as tracking.experiment."
        )
    if found.tags.get(VIEW_TAG) != _make_view():
        client.set_experiment_tag(found.experiment_id, VIEW_TAG, _make_view())
    return str(found.experiment_id)


def _create(
    store: Store, name: str, tags: Mapping[str, str], more: Mapping[str, str], started: float | None = None
) -> str:
    start = int((started or time.time()) * 1000)
    run_id: str = store.client.create_run(store.experiment_id, start, _texts({**tags, **more}), name).info.run_id
    return run_id


def _log(
    store: Store,
    run_id: str,
    *,
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, float] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
    tags: Mapping[str, str] | None = None,
    at: float | None = None,
) -> None:
    now = int((at or time.time()) * 1000)
    # MLflow sorts infinity first, so what is not finite is left out; the trial's own record says why it stopped.
    points = [
        # Six digits: MLflow's table shows all there are. Exact values stand in the stages' own records.
        Metric(_allowed(name), float(f"{value:.6g}"), now, 0)
        for name, value in (metrics or {}).items()
        if math.isfinite(value)
    ]
    points += [
        Metric(_allowed(f"epoch/{name}"), float(f"{value:.6g}"), now, epoch)
        for name, values in (curves or {}).items()
        for epoch, value in enumerate(values, start=1)
        if math.isfinite(value)
    ]
    entries = [Param(_allowed(name), _param_text(value)) for name, value in flatten(params or {}).items()]
    labels = [RunTag(name, value) for name, value in _texts(tags or {}).items()]
    for start in range(0, max(-(-len(points) // MAX_METRICS) * MAX_ENTRIES, len(entries), len(labels)), MAX_ENTRIES):
        first = start // MAX_ENTRIES * MAX_METRICS
        store.client.log_batch(
            run_id,
            points[first : first + MAX_METRICS],
            entries[start : start + MAX_ENTRIES],
            labels[start : start + MAX_ENTRIES],
        )


def _log_dataset(store: Store, run_id: str, tags: Mapping[str, str], context: str) -> None:
    digest = tags.get("frostline.md5.prepared")
    if digest:
        dataset = Dataset("prepared", digest.removesuffix(".dir")[:36], "local", '{"uri": "data/prepared"}')
        entry = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        store.client.log_inputs(run_id, [entry])


def _without_credentials(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested sections as one level with dotted names, the way `dvc exp run -S` names them."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _folder_of(path: Path) -> str:
    return "figures" if path.suffix == ".png" else ""


def _allowed(name: str) -> str:
    # The characters that MLflow takes in names; class names may hold others.
    return re.sub(r"[^\w\-. :/]", "_", name)


def _param_text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(text: str) -> float | str | None:
    if text == "None":
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _texts(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: str(value)[:8000] for name, value in tags.items()}


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.rstrip() if done.returncode == 0 else ""


def _versions() -> str:
    found = [f"frostline {__version__}", f"python {platform.python_version()}"]
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{library} {metadata.version(library)}")
    return ", ".join(found)


def user_name() -> str:
    """Who runs this, for tags and the history."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
