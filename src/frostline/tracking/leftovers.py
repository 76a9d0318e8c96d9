"""What earlier work left behind and nothing leads to any more: runs, models, studies, unfinished stages."""

import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.entities import LoggedModel, LoggedModelStatus, Run, ViewType

from frostline.files import load_json, size_of
from frostline.params import Paths
from frostline.process import UNFINISHED, is_held
from frostline.tracking.store import Store, pages

DAY = 86400.0
# The tag that MLflow's pages set on a model with a registered version; `registry` sets it too.
REGISTERED = "mlflow.modelVersions"


@dataclass(frozen=True)
class Leftover:
    """One thing that can go.

    kind: run, model, study or work; name: what a person knows it by; key: its id or path; size: bytes on this disk;
    age: seconds since it was last touched.
    """

    kind: str
    name: str
    key: str
    size: int
    age: float


def find_leftovers(root: Path, paths: Paths, store: Store | None, *, older_than: float) -> list[Leftover]:
    """Everything older than `older_than` seconds that neither the workspace nor a registered version leads to.

    store: None where there is none yet. What a registered version leads to is its run, its study and that study's trials.
    """
    studies = _current_studies(root, paths)
    found: list[Leftover] = []
    if store is not None:
        kept = _kept_runs(store, studies)
        studies |= {run.data.tags["frostline.study"] for run in kept.values() if "frostline.study" in run.data.tags}
        found += _old_runs(store, set(kept), root)
        found += _old_models(store, set(kept), root)
    found += _old_studies(root, studies)
    found += _unfinished_work(root)
    return [leftover for leftover in found if leftover.age >= older_than]


def remove_leftovers(leftovers: Iterable[Leftover], root: Path, store: Store | None) -> None:
    """Removes what `find_leftovers` found: files at once, runs and models by MLflow's own deletion.

    MLflow keeps the rows of deleted runs, a few kB each, until `mlflow gc`; files that lie on a server stay there.
    """
    for leftover in leftovers:
        if leftover.kind == "study":
            for path in _files_of_study(Path(leftover.key)):
                path.unlink(missing_ok=True)
        elif leftover.kind == "work":
            shutil.rmtree(leftover.key)
        # The files first: of what MLflow has deleted nobody would find them after a kill in between.
        elif store is not None and leftover.kind == "run":
            _remove_folder(_run_folder(store.client.get_run(leftover.key), root))
            store.client.delete_run(leftover.key)
        elif store is not None and leftover.kind == "model":
            _remove_model(store, store.client.get_logged_model(leftover.key), root)


def remove_unfinished_models(store: Store, name: str, run_id: str) -> None:
    """Removes the models that killed processes were writing: those of this run, and of runs that do not run any more; and
    those of this run that were written, and of which no version was made.

    Call it where nobody else writes a model of this project's.
    """
    versions = pages(store.client.search_model_versions, f"run_id = '{run_id}'")
    registered = {str(version.source).rpartition("/")[2] for version in versions}
    for model in pages(store.client.search_logged_models, experiment_ids=[store.experiment_id]):
        source = model.source_run_id
        if model.name != name or source is None or model.model_id in registered:  # of no run is not ours
            continue
        if source == run_id or (
            model.status == LoggedModelStatus.PENDING and store.client.get_run(source).info.status != "RUNNING"
        ):
            _remove_model(store, model, store.root)


def _remove_model(store: Store, model: LoggedModel, root: Path) -> None:
    _remove_folder(_model_folder(model, root))
    store.client.delete_logged_model(model.model_id)


def _current_studies(root: Path, paths: Paths) -> set[str]:
    report = root / paths.study / "study.json"
    return {str(load_json(report)["study"])} if report.is_file() else set()


def _kept_runs(store: Store, studies: set[str]) -> dict[str, Run]:
    """The runs of the workspace's study, of every registered version, and of those versions' studies."""
    runs = {run.info.run_id: run for run in _all_runs(store)}
    registered = {
        str(version.run_id)
        for model in pages(store.client.search_registered_models)
        for version in pages(store.client.search_model_versions, filter_string=f"name = '{model.name}'")
    }
    studies = studies | {runs[run_id].data.tags.get("frostline.study", "") for run_id in registered if run_id in runs}
    studies.discard("")
    parents = {run_id for run_id, run in runs.items() if run.data.tags.get("frostline.study") in studies}
    return {
        run_id: run
        for run_id, run in runs.items()
        if run_id in parents or run_id in registered or run.data.tags.get("mlflow.parentRunId") in parents
    }


def _old_runs(store: Store, kept: set[str], root: Path) -> Iterator[Leftover]:
    for run in _all_runs(store):
        if run.info.run_id not in kept and run.info.status != "RUNNING":
            touched = (run.info.end_time or run.info.start_time) / 1000
            folder = _run_folder(run, root)
            size = size_of(folder) if folder else 0
            yield Leftover("run", run.info.run_name, run.info.run_id, size, time.time() - touched)


def _old_models(store: Store, kept: set[str], root: Path) -> Iterator[Leftover]:
    for model in pages(store.client.search_logged_models, experiment_ids=[store.experiment_id]):
        if REGISTERED not in model.tags and model.source_run_id not in kept:
            folder = _model_folder(model, root)
            size = size_of(folder) if folder else 0
            age = time.time() - model.last_updated_timestamp / 1000
            yield Leftover("model", model.name, model.model_id, size, age)


def _old_studies(root: Path, kept: set[str]) -> Iterator[Leftover]:
    for path in sorted((root / "studies").glob("*.db")):
        if path.stem not in kept:
            size = sum(size_of(file) for file in _files_of_study(path))
            yield Leftover("study", path.stem, str(path), size, time.time() - path.stat().st_mtime)


def _files_of_study(path: Path) -> list[Path]:
    """The database is the last: by it the others are found again after a kill in between."""
    beside = [path.with_name(path.name + ending) for ending in ("-journal", "-wal", "-shm")]
    return [*beside, path.with_suffix(".lock"), path.with_suffix(".owner"), path]


def _unfinished_work(root: Path) -> Iterator[Leftover]:
    """The work folders of stages that are not running now; a new `dvc repro` would go on from them."""
    for path in sorted((root / UNFINISHED).glob("*")):
        if path.is_dir() and not is_held(root / ".frostline" / f"{path.name.split('-')[0]}.lock"):
            touched = max((file.stat().st_mtime for file in path.rglob("*")), default=path.stat().st_mtime)
            yield Leftover("work", f"unfinished {path.name}", str(path), size_of(path), time.time() - touched)


def _all_runs(store: Store) -> list[Run]:
    return list(
        pages(store.client.search_runs, experiment_ids=[store.experiment_id], run_view_type=ViewType.ACTIVE_ONLY)
    )


def _run_folder(run: Run, root: Path) -> Path | None:
    return _local(run.info.artifact_uri, root)


def _model_folder(model: LoggedModel, root: Path) -> Path | None:
    return _local(model.artifact_location, root)


def _local(uri: str, root: Path) -> Path | None:
    """The folder above `artifacts`, if it lies in this project's `mlruns`: nothing else is ever removed."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    folder = Path(unquote(parts.path)).parent
    return folder if folder.is_relative_to(root.resolve() / "mlruns") and folder != root.resolve() / "mlruns" else None


def _remove_folder(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
