"""Which process a run belongs to, and whether that process still lives."""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
from mlflow.entities import Run, ViewType

from frostline.tracking.store import Store

UPLOADING = ".artifact.uploading.*"  # mlflow/store/artifact/local_artifact_repo.py


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
    return _close(store, find_dead_runs(store))


def close_own_runs(store: Store) -> None:
    """Closes what this process, which was told to end, has open, and what its workers had."""
    own = owner_tags().items()
    _close(store, [run.info.run_id for run in _find_running(store) if own <= run.data.tags.items()])
    sweep_dead_runs(store)


def _close(store: Store, run_ids: Sequence[str]) -> int:
    for run_id in run_ids:
        _remove_uploads(store.client.get_run(run_id).info.artifact_uri)
        store.client.set_tag(run_id, "frostline.state", "DEAD")
        store.client.set_terminated(run_id, "KILLED")
    return len(run_ids)


def _remove_uploads(uri: str) -> None:
    """Removes what MLflow had begun to write in a run's folder: a file has a name of its own there until it is whole."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):  # a server's own files are the server's
        for left in Path(unquote(parts.path)).rglob(UPLOADING):
            left.unlink(missing_ok=True)


def find_dead_runs(store: Store) -> list[str]:
    """The ids of RUNNING runs whose process on this host is gone."""
    return [run.info.run_id for run in _find_running(store) if _is_dead(run.data.tags)]


def _find_running(store: Store) -> list[Run]:
    where = f"attributes.status = 'RUNNING' and tags.`frostline.host` = '{socket.gethostname()}'"
    found: list[Run] = store.client.search_runs([store.experiment_id], where, ViewType.ALL, max_results=1000)
    return found


def is_own(tags: Mapping[str, str]) -> bool:
    """Are these the tags of this very process?"""
    return dict(tags) == owner_tags()


def is_gone(tags: Mapping[str, str]) -> bool:
    """Is a process gone that could be seen from here? False of one on another machine, whatever became of it."""
    return tags.get("frostline.boot") == _boot_id() and not _lives(tags)


def _is_dead(tags: Mapping[str, str]) -> bool:
    boot, _, namespace = tags.get("frostline.boot", "").partition(":")
    here_boot, _, here_namespace = _boot_id().partition(":")
    if boot != here_boot:
        return True
    if namespace != here_namespace:
        return False  # another container of this machine: its processes cannot be seen from here
    return not _lives(tags)


def _lives(tags: Mapping[str, str]) -> bool:
    try:
        process = psutil.Process(int(tags["frostline.pid"]))
        if process.status() == psutil.STATUS_ZOMBIE:  # dead, though its parent has not asked for it
            return False
        started = process.create_time()
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False
    # The clock may have been set since; a process that took over the number started far later.
    return bool(abs(started - float(tags.get("frostline.started", "0"))) <= 2.0)


def _boot_id() -> str:
    if sys.platform != "linux":
        return f"{psutil.boot_time():.0f}:"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{Path('/proc/self/ns/pid').readlink().name.strip('pid:[]')}"
