"""Runs in MLflow: one parent per study, one child per trial, one `final` per refit.

MLflow is a sink here. No stage asks it for its input, and no run is a fluent, global one: every call names its run.
"""

import functools
import logging
import math
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from frostline.errors import Refused, redact
from frostline.evidence.trials import TrialRecord
from frostline.files import digest_facts
from frostline.tracking.owners import owner_tags
from frostline.tracking.store import Store, pages

# MLflow's own patience is four minutes a call, without a word; ours is `PatientClient`'s.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# A bar for each file of a model that lies on this very disk.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# The creation of the database is not news, and errors are raised, too.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").addFilter(lambda record: record.levelno < logging.ERROR)

DRAW = "frostline.draw"  # tag of a trial's run: which draw of the study it is of
LOOK = "frostline.look"  # tag of a look's run: the digest of what it found
# Tags that a look changes itself where it writes its choice into params.yaml.
CHOSEN = ("frostline.params.sha256", "frostline.git.changes")
STATES = {"FINISHED": "COMPLETE", "KILLED": "PRUNED", "FAILED": "FAIL"}
# Prefixes of the tags that say where a run comes from.
LINEAGE = (
    *("frostline.study", "frostline.git.", "frostline.params.", "frostline.seed", "frostline.md5."),
    *("frostline.versions", "frostline.device", "frostline.dvc_", "mlflow.source.git."),
)
# MLflow takes at most so many metrics, and so many params or tags, in one call.
MAX_METRICS, MAX_ENTRIES = 1000, 100


def open_study_run(store: Store, digest: str, *, params: Mapping[str, object], tags: Mapping[str, str]) -> str:
    """The id of the study's parent run: reopened where the study has one, else new."""
    found = store.client.search_runs(
        [store.experiment_id], f"tags.`frostline.study` = '{digest}' and tags.`frostline.kind` = 'study'", max_results=1
    )
    tags = {**tags, **owner_tags(), "frostline.study": digest, "frostline.kind": "study"}
    if found:
        run_id: str = found[0].info.run_id
        reopen_run(store, run_id)
        # Params cannot change; what may grow (the number of trials) is logged as a tag by the caller.
        known = found[0].data.params
        params = {key: value for key, value in flatten(params).items() if _allowed(key) not in known}
    else:
        run_id = _create(store, f"study {digest[:8]}", tags, {})
    _log(store, run_id, params=params, tags=tags)
    _log_dataset(store, run_id, tags, "training")
    return run_id


def reopen_run(store: Store, run_id: str) -> None:
    """Makes the run RUNNING again, as this process's."""
    # The owner first: of one that runs and whose owner is dead, another process's sweep would make a killed one.
    _log(store, run_id, tags=owner_tags())
    store.client.update_run(run_id, status="RUNNING")


def has_run(store: Store, run_id: str) -> bool:
    """Is there such a run?"""
    try:
        store.client.get_run(run_id)
    except MlflowException:
        return False
    return True


def log_trial(store: Store, parent_run_id: str, trial: TrialRecord, *, tags: Mapping[str, str], ended: float) -> str:
    """The id of a whole child run: hparams, metrics and every curve, written in one batch.

    Curves are shown as `epoch/<name>` with the epoch, from 1, as step. A pruned trial is KILLED, a failed one FAILED.
    ended: seconds since 1970.
    """
    metrics = {"seconds": trial.seconds, "epochs": float(trial.epochs)}
    if trial.score is not None and trial.val_loss is not None and trial.best_epoch is not None:
        # The first is what MLflow's comparison opens with.
        scores = {"best_val_accuracy": trial.score, "best_val_loss": trial.val_loss}
        metrics = {**scores, "best_epoch": float(trial.best_epoch), **metrics}
    tags = {
        "frostline.trial": str(trial.number),
        "frostline.state": trial.state,
        **_lineage_of(store, parent_run_id),
        **tags,
        # No pid: it is closed at once, and one that a kill left open is swept for not naming a process.
        "frostline.host": socket.gethostname(),
        "frostline.kind": "trial",
        "mlflow.parentRunId": parent_run_id,
    }
    run_id = _create(store, f"trial {trial.number:02d} · depth {trial.depth}", tags, {}, trial.started)
    _log(store, run_id, params=trial.hparams.to_record(), metrics=metrics, curves=trial.curves, at=ended)
    status = next(status for status, state in STATES.items() if state == trial.state)
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
    """The id of a new `final` run, or of what kind the tags say; RUNNING until `close_run`."""
    tags = {"frostline.kind": "final", **tags, **owner_tags()}
    run_id = _create(store, name, tags, {})
    _log(store, run_id, params=params)
    _log_dataset(store, run_id, tags, "training")
    return run_id


def reopen_final_run(
    store: Store, sha256: str, tags: Mapping[str, str], params: Mapping[str, object] | None = None
) -> str | None:
    """The id of the `final` run of this very model, RUNNING again and whole, or None where this store has none.

    Results that came from a teammate through DVC have their runs in the teammate's store, and a person may have deleted one.
    """
    found = store.client.search_runs(
        [store.experiment_id],
        f"tags.`frostline.sha256` = '{sha256}' and tags.`frostline.kind` = 'final'",
        max_results=1,
    )
    if not found:
        return None
    run_id: str = found[0].info.run_id
    reopen_run(store, run_id)
    # A process may have been killed when it had only just made it.
    known = found[0].data.params
    missing = {key: value for key, value in flatten(params or {}).items() if _allowed(key) not in known}
    _log(store, run_id, params=missing, tags=tags)
    _log_dataset(store, run_id, tags, "training")
    return run_id


def log_look(
    store: Store,
    kind: str,
    name: str,
    *,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    artifacts: Sequence[Path],
) -> str:
    """The id of a whole run that tells what was found: by a screening of bases (`screen`), or of a version in use (`monitor`).

    A look that found the very same in the same project is taken up, whole or not: its process was killed, or asked again.
    What it chose may stand in params.yaml by then.
    """
    known = {key: value for key, value in tags.items() if key not in CHOSEN}
    facts = {"kind": kind, "name": name, "params": params, "metrics": metrics, "tags": known}
    tags = {**tags, **owner_tags(), "frostline.kind": kind, LOOK: digest_facts(facts)}
    found = store.client.search_runs([store.experiment_id], f"tags.`{LOOK}` = '{tags[LOOK]}'", max_results=1)
    if found:
        run_id: str = found[0].info.run_id
        reopen_run(store, run_id)
    else:
        run_id = _create(store, name, tags, {})
    _log(store, run_id, params=params)
    close_run(store, run_id, metrics=metrics, artifacts=artifacts)
    return run_id


def find_last_look(store: Store, kind: str, tag: str, value: str) -> str | None:
    """The id of the last whole run of that kind with this tag, None where there is none."""
    where = f"tags.`frostline.kind` = '{kind}' and tags.`frostline.state` = 'COMPLETE' and tags.`{tag}` = '{value}'"
    found = store.client.search_runs(
        [store.experiment_id], where, max_results=1, order_by=["attributes.start_time DESC"]
    )
    return found[0].info.run_id if found else None


def log_to_run(
    store: Store,
    run_id: str,
    *,
    params: Mapping[str, object] | None = None,
    metrics: Mapping[str, float] | None = None,
    curves: Mapping[str, Sequence[float]] | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Mapping[Path, str] | Sequence[Path] = (),
    at: float | None = None,
) -> None:
    """Adds to a run, open or closed.

    Args:
        at: seconds since 1970; what is measured at the same moment, and is the same, MLflow keeps once.
        artifacts: files, or file -> folder in the run ("" is its top). Images go to `figures` unless told otherwise.
    """
    _log(store, run_id, params=params or {}, metrics=metrics or {}, curves=curves or {}, tags=tags or {}, at=at)
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
    others = " and ".join(f"tags.`frostline.kind` != '{other}'" for other in ("study", "screen", "monitor"))
    runs = _search(store, f"tags.`frostline.kind` = '{kind}'" if kind else others)
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
    return list(pages(store.client.search_runs, [store.experiment_id], where, max_results=1000))


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
    return f"{value:.6g}" if isinstance(value, float) else redact(str(value))


def _number(text: str) -> float | str | None:
    if text == "None":
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _texts(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: redact(str(value))[:8000] for name, value in tags.items()}
