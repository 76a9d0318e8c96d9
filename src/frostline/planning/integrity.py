"""Bytes that changed under a name that did not: outputs that are not what their stage wrote, databases that are damaged.

DVC looks at sizes and times, which a disk that forgets a bit leaves as they were; here everything is read.
"""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frostline.params import load_writers
from frostline.planning.workspace import Cache
from frostline.tracking.mending import undo_broken_write


@dataclass(frozen=True)
class Changed:
    """A file of the output of `stage` that is not what the stage wrote; remedy: the commands that bring it back."""

    path: str
    stage: str
    remedy: str


def find_changed(root: Path) -> tuple[list[Changed], int]:
    """The files of outputs whose md5 is not the one in `dvc.lock`, and how many were compared."""
    cache, writers = Cache(root), load_writers(root / "dvc.lock")
    changed, number = [], 0
    for output in cache.locked:
        for name, md5 in cache.list_files(output).items():
            path = root / output / name if name else root / output
            if path.is_file():  # what is not there is made again, or pulled
                number += 1
                if _md5_of(path) != md5:
                    remedy = _remedy(path, cache.place(md5), md5, output, writers[output], root)
                    changed.append(Changed(path.relative_to(root).as_posix(), writers[output], remedy))
    return changed, number


def _remedy(path: Path, cached: Path, md5: str, output: str, stage: str, root: Path) -> str:
    shown = path.relative_to(root).as_posix()
    if cached.is_file() and _md5_of(cached) == md5:
        return f"rm {shown} && dvc checkout {output}"
    # One file under both names, where DVC links; it would take the damaged one for what the stage writes again.
    there = (
        f" {cached.relative_to(root).as_posix() if cached.is_relative_to(root) else cached}" if cached.is_file() else ""
    )
    return f"rm -f {shown}{there} && dvc repro --force --single-item {stage}"


def _md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def find_broken_databases(root: Path) -> Iterator[tuple[str, str]]:
    """(file, what SQLite says of it) of each damaged database of runs or of a study."""
    for path in [*root.glob("mlflow.db"), *sorted((root / "studies").glob("*.db"))]:
        undo_broken_write(path)
        try:
            with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)) as database:
                said = str(database.execute("pragma integrity_check(1)").fetchone()[0])
        except sqlite3.DatabaseError as error:
            said = str(error)
        if said != "ok":
            yield path.relative_to(root).as_posix(), said.splitlines()[0]
