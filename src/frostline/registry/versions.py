"""Registered versions: each model once, with its lineage, its sha256 and its card."""

import contextlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from frostline.errors import Refused
from frostline.evidence.evaluation import Evaluation
from frostline.files import hash_folder, sha256_of
from frostline.process import set_variables
from frostline.serving.model import DATA, MODEL, Card, save_model_folder
from frostline.tracking.leftovers import remove_unfinished_models
from frostline.tracking.store import Store, exclusive, pages

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
AGAINST = (
    "frostline.against_champion"  # tag of a version: how its images and its accuracy differ from the champion's then
)
WORN_AFTER = 20  # scorings on one test split from which its answers are no longer those of an unseen one
MAX_DESCRIPTION = 5000  # characters; what MLflow's tables hold in databases that keep to it
ABOUT = (
    "Made by Frostline. `challenger` is the newest candidate, `champion` the one in use, `previous` the one before it. "
    "`frostline promote` moves `champion` when the gate holds, `frostline rollback` moves it back, `frostline history` "
    "lists every move, `frostline trace VERSION` says where a version comes from."
)


@dataclass(frozen=True)
class Version:
    """A registered version: its number, where it comes from, and its tags."""

    name: str
    number: int
    run_id: str
    model_id: str
    tags: Mapping[str, str]

    @property
    def sha256(self) -> str:
        return self.tags.get("frostline.sha256", "")

    @property
    def test_uses(self) -> int:
        """How often a test split was used to measure it."""
        return int(self.tags.get("frostline.test_uses", "0"))

    @property
    def data_sha256(self) -> str:
        """The hash of the prepared data, test split included, that it was made from."""
        return self.tags.get("frostline.data.sha256", "")

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


def register(
    store: Store,
    name: str,
    *,
    model_file: Path,
    run_id: str,
    card: Card,
    golden: tuple[NDArray[np.uint8], NDArray[np.float32]] | None,
    description: str,
    metrics: Mapping[str, float],
    params: Mapping[str, object],
    tags: Mapping[str, str],
) -> Version:
    """The version of this model, made if there is none with its sha256; `challenger` points at it unless it is champion.

    A kill at any point leaves either no version or a whole one; the next call goes on from there.
    """
    client = store.client
    with exclusive(store, "registry"):
        _create_model(client, name)
        found = find_by_sha256(store, name, card.sha256)
        if found is None:
            remove_unfinished_models(store, name, run_id)
            model_id, digest = _log_model(store, name, model_file, run_id, card, golden, metrics, params)
            given = {
                **tags,
                "frostline.sha256": card.sha256,
                "frostline.folder.sha256": digest,
                "frostline.test_uses": "1",
            }
            wear = describe_wear(count_test_uses(store, name, tags.get("frostline.data.sha256", "")) + 1)
            # The database's registry looks a model up through MLflow's own idea of the current store, not through its client.
            with set_variables({"MLFLOW_TRACKING_URI": store.uri}):
                made = client.create_model_version(
                    name,
                    f"models:/{model_id}",
                    run_id,
                    given,
                    description=_fit(_with_champion(description, tags.get(AGAINST, "")), wear),
                    model_id=model_id,
                    await_creation_for=0,  # it is ready at once; waiting is announced as news
                )
            found = _version(made)
        with contextlib.suppress(MlflowException):  # its model may have been deleted in MLflow's pages
            client.set_logged_model_tags(
                found.model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": found.number}])}
            )
        if number_at(store, name, CHAMPION) != found.number:
            client.set_registered_model_alias(name, CHALLENGER, str(found.number))
    return found


def lineage_of(store: Store, run_id: str) -> dict[str, str]:
    """The run's lineage tags, for the version: they outlive the run."""
    tags = store.client.get_run(run_id).data.tags
    process = ("host", "boot", "pid", "started", "kind", "state")
    return {
        key: value
        for key, value in tags.items()
        if key.startswith("frostline.") and key.removeprefix("frostline.") not in process
    }


def flat_metrics(evaluation: Evaluation) -> dict[str, float]:
    """What was measured on the test split, with both ends of each interval, under flat names."""
    found: dict[str, float] = {}
    for key, measured in [*evaluation.scores.items(), ("gain", evaluation.gain)]:
        if measured is not None:
            found |= {f"test_{key}": measured.value}
            found |= {f"test_{key}_low": measured.low, f"test_{key}_high": measured.high}
    return found


def without_title(card: str) -> str:
    """The model card from its first sentence on: a version's page has a title, and lists show the first line alone."""
    first, _, rest = card.partition("\n")
    return rest.lstrip() if first.startswith("# ") else card


def describe_accuracy(evaluation: Evaluation) -> str:
    """The test accuracy with its interval and the number of images behind it, for people."""
    accuracy = evaluation.score("accuracy")
    return f"{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] on {evaluation.num_images} images"


def find_by_sha256(store: Store, name: str, sha256: str) -> Version | None:
    """The version that holds this model, if there is one."""
    for found in list_versions(store, name):
        if found.sha256 == sha256:
            return found
    return None


def count_test_uses(store: Store, name: str, data_sha256: str) -> int:
    """How often any version of the model was scored on the test split of this prepared data, as far as was recorded."""
    return sum(found.test_uses for found in list_versions(store, name) if found.data_sha256 == data_sha256)


def describe_wear(uses: int) -> str:
    """A warning, once a test split was used so often that the best of its winners owes part of its score to it; else ""."""
    if uses < WORN_AFTER:
        return ""
    return (
        f"Models were scored {uses} times on this test split, so it no longer counts as unseen: part of a good score on it "
        "is choice. Test the next one on new images."
    )


def list_versions(store: Store, name: str) -> list[Version]:
    """Every version of a model, newest first."""
    found = pages(store.client.search_model_versions, f"name = '{name}'", max_results=500)
    return sorted((_version(version) for version in found), key=lambda version: -version.number)


def load_version(store: Store, name: str, number: int) -> Version:
    """One version; raises Refused, naming those that exist."""
    try:
        return _version(store.client.get_model_version(name, str(number)))
    except MlflowException:
        there = ", ".join(str(version.number) for version in list_versions(store, name)) or "none"
        raise Refused(
            f"{name} has no version {number} in {store.shown_uri}. There are: {there}. "
            "After a pull from others, `dvc repro --force --single-item register` registers the model here."
        ) from None


def find_version(store: Store, name: str, target: str) -> Version | None:
    """The version that a number or an alias means, None for other texts; Refused where there is no such version."""
    if target in (CHAMPION, CHALLENGER, PREVIOUS):
        number = number_at(store, name, target)
        if number is None:
            raise Refused(f"{name} has no {target}.")
        return load_version(store, name, number)
    # The id of a run may consist of digits, but it is longer.
    return load_version(store, name, int(target)) if target.isdigit() and len(target) < 8 else None


def number_at(store: Store, name: str, alias: str) -> int | None:
    """The version an alias points at, or None."""
    try:
        # The version may have been deleted; the alias of the registered model is the truth.
        number = store.client.get_registered_model(name).aliases.get(alias)
    except MlflowException:
        return None
    return None if number is None else int(number)


def require_champion(store: Store, name: str) -> Version:
    """The champion; raises Refused where nothing was promoted yet."""
    number = number_at(store, name, CHAMPION)
    if number is None:
        raise Refused(
            f"{name} has no champion yet. `frostline promote` makes the challenger champion, if the gate passes; "
            "--version N uses another version."
        )
    return load_version(store, name, number)


def open_version(store: Store, name: str, number: int | None, copies: Path) -> tuple[Version, Path]:
    """The champion, or the version given, and its checked files; copies of those on a server go below `copies`."""
    version = require_champion(store, name) if number is None else load_version(store, name, number)
    return version, download_version(store, version, copies / str(version.number))


def download_version(store: Store, version: Version, folder: Path) -> Path:
    """The version's whole MLflow model on this machine, once its bytes were compared with what was registered.

    Args:
        folder: where a copy goes if the artifacts lie on a server; files on this machine are used where they are.
    Raises Refused where files are lost or changed.
    """
    title = f"{version.name} version {version.number}"
    source = store.client.get_model_version_download_uri(version.name, str(version.number))
    is_here = source.startswith(("/", "file:"))
    if not is_here:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        place = Path(download_artifacts(source, tracking_uri=store.uri, dst_path=None if is_here else str(folder)))
    except (MlflowException, OSError) as error:
        raise Refused(f"{title} has lost its files: {error}") from error
    for path, wanted, found in (
        (place / DATA / MODEL, version.sha256, _sha256_or_lost(place / DATA / MODEL)),
        (place, version.tags.get("frostline.folder.sha256", ""), hash_folder(place)),
    ):
        if found != wanted:
            raise Refused(
                f"{title}: checksum mismatch. {path} has sha256 {found or 'none, it is lost'}; registered was "
                f"{wanted or 'none'}. It was changed since, so it is not loaded."
            )
    return place


def _sha256_or_lost(path: Path) -> str:
    return sha256_of(path) if path.is_file() else ""


def _create_model(client: MlflowClient, name: str) -> None:
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description=ABOUT)


def _log_model(
    store: Store,
    name: str,
    model_file: Path,
    run_id: str,
    card: Card,
    golden: tuple[NDArray[np.uint8], NDArray[np.float32]] | None,
    metrics: Mapping[str, float],
    params: Mapping[str, object],
) -> tuple[str, str]:
    client = store.client
    texts = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in params.items()}
    model = client.create_logged_model(store.experiment_id, name, run_id, None, texts, "image classifier")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model_folder(folder, model_file, card, golden, run_id=run_id, model_id=model.model_id)
        assert sha256_of(folder / DATA / MODEL) == card.sha256, f"{model_file} changed while it was being registered"
        digest = hash_folder(folder)
        client.log_model_artifacts(model.model_id, str(folder))
    now = model.creation_timestamp
    # As `tracking.runs` rounds them: the run has the same metrics, whichever is written last.
    rounded = {key: float(f"{value:.6g}") for key, value in metrics.items()}
    points = [Metric(key, value, now, 0, model_id=model.model_id, run_id=run_id) for key, value in rounded.items()]
    client.log_batch(run_id, metrics=points)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    # Only now can it be registered: a model that was being written when its process was killed stays PENDING.
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id, digest


def _fit(card: str, wear: str) -> str:
    note = f"\n**{wear}**\n" if wear else ""
    room = MAX_DESCRIPTION - len(note)
    return (
        card if len(card) <= room else card[: room - 60] + "\n\n(the rest stands in the run's model_card.md)\n"
    ) + note


def _with_champion(card: str, beside: str) -> str:
    """The card with a sentence on how data and accuracy differ from the champion's behind its first paragraph."""
    first, _, rest = card.partition("\n\n")
    return f"{first}\n\n{beside}\n\n{rest}" if beside else card


def _version(found: Any) -> Version:
    # The number is a string from a server and an integer from a database; the model stands in the source alone.
    model_id = str(found.source).rpartition("/")[2] if str(found.source).startswith("models:/") else ""
    return Version(found.name, int(found.version), found.run_id or "", model_id, dict(found.tags))
