"""What a run will need of its tracking server, asked before anything is trained."""

import importlib.util
import os
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException

from frostline.errors import Refused, first_line
from frostline.tracking.store import Store

PROJECT_TAG = "frostline.project"
# The names that params.yaml begins with: on a server, two projects would meet under them.
DEFAULT = "frostline"
CLIENTS = {
    "s3": "boto3",
    "gs": "google.cloud.storage",
    "wasbs": "azure.storage.blob",
    "abfss": "azure.storage.filedatalake",
}
LOCAL = ("localhost", "127.0.0.1", "::1")


def refuse_server(store: Store, model_name: str) -> None:
    """Raises Refused that lists what the server lacks for a whole run; a database beside the project lacks nothing.

    The first project to ask claims the experiment, where that has the default name.
    """
    if not store.uri.startswith("http"):
        return
    problems = server_problems(store, model_name)
    if problems:
        raise Refused(f"The tracking server {store.shown_uri} cannot serve this run:\n  " + "\n  ".join(problems))
    found = store.client.get_experiment(store.experiment_id)
    if PROJECT_TAG not in found.tags:
        store.client.set_experiment_tag(store.experiment_id, PROJECT_TAG, project_id(store.root))


def server_problems(store: Store, model_name: str) -> list[str]:
    """What the server lacks, a line each; nothing is written."""
    problems = []
    try:
        store.client.search_logged_models(experiment_ids=[store.experiment_id], max_results=1)
    except MlflowException as error:
        problems.append(
            f"it is MLflow {_server_version(store)}, which knows no logged models ({first_line(error, 120)}); registering needs 3.0 or "
            "newer. Upgrade the server"
        )
    experiment = store.client.get_experiment(store.experiment_id)
    problems += artifact_problems(experiment.artifact_location, store.uri)
    problems += _meeting_problems(store, experiment.name, dict(experiment.tags), model_name)
    return problems


def artifact_problems(location: str, uri: str) -> list[str]:
    """Why this machine could not write to where the server wants its artifacts."""
    parts = urlsplit(location)
    if parts.scheme in CLIENTS:
        package = CLIENTS[parts.scheme]
        if _is_missing(package):
            return [
                f"artifacts go to {location}, straight from here, which needs the package {package}. Install it, or {_PROXY}"
            ]
        return []
    if parts.scheme not in ("", "file"):
        return []  # mlflow-artifacts: the server passes them on
    place = Path(unquote(parts.path))
    above = next((folder for folder in (place, *place.parents) if folder.is_dir()), None)
    is_here = urlsplit(uri).hostname in LOCAL
    if is_here and place.is_absolute() and above is not None and os.access(above, os.W_OK):
        return []
    where = (
        "this machine, where they cannot be written"
        if is_here
        else "the server's machine, which this one cannot write to"
    )
    return [f"artifacts go to {location}, a folder of {where} (--no-serve-artifacts). {_PROXY.capitalize()}"]


_PROXY = "start the server with --serve-artifacts and give the experiment a new name, because it keeps its place"


def check_writing(store: Store, run_id: str) -> None:
    """Writes a small artifact to a run; Refused where that fails, before hours of training end in it."""
    try:
        store.client.log_text(run_id, "Frostline may write here.\n", "write-check.txt")
    except Exception as error:  # whatever the client of the artifacts' place raises
        raise Refused(
            f"Runs can be written to {store.shown_uri}, but not their files: {first_line(error)}. Look at the server's "
            "--artifacts-destination and at this machine's rights there."
        ) from error


def project_id(root: Path) -> str:
    """The name of this working copy among all, made when it is first asked for."""
    file = root / ".frostline" / "project"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex, encoding="ascii")
    return file.read_text(encoding="ascii").strip()


def claim_model(store: Store, name: str) -> None:
    """Marks the registered model as this project's, unless it is another's already."""
    if store.uri.startswith("http"):
        tags = store.client.get_registered_model(name).tags
        if PROJECT_TAG not in tags:
            store.client.set_registered_model_tag(name, PROJECT_TAG, project_id(store.root))


def _meeting_problems(store: Store, experiment: str, tags: dict[str, str], model_name: str) -> list[str]:
    ours = store.root / ".frostline" / "project"
    mine = ours.read_text(encoding="ascii").strip() if ours.is_file() else ""
    taken = []
    if experiment == DEFAULT and tags.get(PROJECT_TAG, mine) != mine:
        taken.append(f"the experiment {experiment!r} (tracking.experiment)")
    if model_name == DEFAULT:
        try:
            if store.client.get_registered_model(model_name).tags.get(PROJECT_TAG, mine) != mine:
                taken.append(f"the registered model {model_name!r} (register.name)")
        except MlflowException:
            pass  # there is none yet
    if not taken:
        return []
    return [
        f"in use by another project, or by another copy of this one: {' and '.join(taken)}, the names that all begin with. "
        "Give yours a name of its own in params.yaml; copies of one project share it then"
    ]


def _server_version(store: Store) -> str:
    try:
        with urllib.request.urlopen(f"{store.uri.rstrip('/')}/version", timeout=5) as answer:
            return str(answer.read(40).decode().strip())
    except (OSError, ValueError):
        return "of an unknown version"


def _is_missing(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ModuleNotFoundError:
        return True
