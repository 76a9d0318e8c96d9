"""Files and records on disk: whole or absent, never half."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frostline.errors import Refused
from frostline.process import lives

COMPLETE = "complete.json"


TEMPORARY = re.compile(r"(?:\.(\d+)\.)+(.+)")  # the name that `replacing` gives: a process, then the name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, of the same suffix, that takes its place when the block ends without an error.

    What a killed process left of the same file goes first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Removes what killed processes left half written in `folder`: of the file `name` alone, or of any."""
    for left in _find_temporaries(folder.iterdir()):
        process, of = TEMPORARY.fullmatch(left.name).groups()  # type: ignore[union-attr]
        if name in ("", of) and not lives(int(process)):
            left.unlink(missing_ok=True)


def _find_temporaries(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if TEMPORARY.fullmatch(file.name)]


def put_in_place(temporary: Path, path: Path) -> None:
    """Flushes a finished file to disk and gives it its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def save_json(path: Path, record: Any) -> None:
    """Writes `record` as readable JSON, whole or not at all; NaN and infinity are refused."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """The record in `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


def part_of(path: Path) -> Path:
    """Where an unfinished file waits to be gone on with."""
    return path.with_name(f".{path.name}.part")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """The sha256 over the names and bytes of all files below a folder; what MLflow and Python add later is left out."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if "__pycache__" not in path.parts and path.name != "registered_model_meta":
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def digest_facts(facts: Mapping[str, Any]) -> str:
    """A short name for a set of facts: 16 hex digits of the sha256 of their JSON.

    >>> digest_facts({"cut": "block_3", "views": 8}) == digest_facts({"views": 8, "cut": "block_3"})
    True
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def mark_complete(folder: Path, **facts: Any) -> None:
    """Writes the marker that readers of `folder` ask for; the last thing a writer does."""
    save_json(folder / COMPLETE, facts)


def require_complete(folder: Path) -> Mapping[str, Any]:
    """The facts of a complete folder.

    Raises Refused where the marker is absent or damaged: the stage that writes the folder did not finish.
    """
    marker = folder / COMPLETE
    if not marker.is_file():
        raise Refused(f"{folder} is incomplete: it has no {COMPLETE}. Run `dvc repro` to make it again.")
    try:
        facts: Mapping[str, Any] = load_json(marker)
    except ValueError as error:
        raise Refused(f"{marker} is damaged: {error}. Remove {folder}, and run `dvc repro` to make it again.") from None
    return facts


def publish(work: Path, folder: Path, marker: str = COMPLETE) -> None:
    """Puts the finished folder `work` in the place of `folder`, without what killed processes left half written in it.

    Refused where `folder` holds files, and no marker of a writer's.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise Refused(f"{folder} holds files without a {marker}: they are not Frostline's. Move them out of it.")
    for left in _find_temporaries(work.rglob(".*")):
        left.unlink()
    # Out of the way first: a removal that is broken off must not leave half a folder under the name.
    old = work.with_name(f"{work.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.replace(old)
    work.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def path_of(given: str, root: Path = Path()) -> Path:
    """The path that a text of `params.yaml` means, `~` expanded; Refused where there is no such home, or no such name."""
    try:
        path = root / Path(given).expanduser()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (RuntimeError, ValueError, OSError) as error:
        raise Refused(f"{given[:200]!r} is no path of this machine: {_reason(error)}") from None
    return path


def size_of(path: Path) -> int:
    """The bytes of a file or of all files below a folder; 0 where there is none."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.stat().st_size for file in files)


def _reason(error: Exception) -> str:
    return (error.strerror or "unknown") if isinstance(error, OSError) else str(error)
