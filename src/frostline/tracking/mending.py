"""The project's own MLflow database: of which version it is, where it thinks its files are, and both set right, with a backup."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from frostline.errors import Refused
from frostline.files import load_json, save_json

MEND = "`frostline mend` sets it right, and keeps a copy of the database as it was."
REVISION = Path(".frostline/mlflow-revision.json")
# Where MLflow keeps absolute places: table -> columns.
PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, opened so that nothing can be written."""
    undo_broken_write(path)
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        yield database


def undo_broken_write(path: Path) -> None:
    """Lets SQLite undo what a killed process was writing: who may only read cannot, and takes the file for damaged."""
    if path.with_name(f"{path.name}-journal").is_file():
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path, timeout=60)) as database:
            database.execute("select count(*) from sqlite_master").fetchone()


def is_outdated(path: Path, root: Path) -> bool:
    """Was the database made by an older MLflow? Refused where it was made by a newer one, which this one cannot read.

    root: of the project, which remembers what the installed MLflow's revision is.
    """
    with _reading(path) as database:
        try:
            rows = database.execute("select version_num from alembic_version").fetchall()
        except sqlite3.DatabaseError as error:
            raise Refused(
                f"{path} is no database of MLflow's: {error}. Move it away, or restore it from a copy."
            ) from None
    if not rows or rows[0][0] == _latest_revision(root / REVISION):
        return False
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    known = {
        script.revision
        for script in ScriptDirectory.from_config(_get_alembic_config(f"sqlite:///{path}")).walk_revisions()
    }
    if rows[0][0] not in known:
        raise Refused(f"{path} was made by a newer MLflow than the one installed. `make env` installs the locked one.")
    return True


def _latest_revision(memory: Path) -> str:
    """The revision of a database of the installed MLflow. Asked once: MLflow loads all of its migrations to tell, for seconds."""
    version = metadata.version("mlflow")
    known = load_json(memory) if memory.is_file() else {}
    if known.get("mlflow") == version:
        return str(known["revision"])
    from mlflow.store.db.utils import _get_latest_schema_revision

    revision = str(_get_latest_schema_revision())
    if memory.parent.is_dir():  # where nothing has run yet, a command that reads makes no folder
        with suppress(OSError):
            save_json(memory, {"mlflow": version, "revision": revision})
    return revision


def artifact_root(path: Path, root: Path) -> Path:
    """The folder whose `mlruns` takes the files of new runs: the project's, or that of a database which projects share."""
    own = path.resolve().is_relative_to(root.resolve())
    return root.resolve() if own else path.resolve().parent


def former_root(path: Path, root: Path, experiment: str) -> Path | None:
    """Where this project stood when its experiment was made, where that is another place than `root`; else None."""
    if not path.resolve().is_relative_to(root.resolve()):
        return None  # several projects may share it: the place is of one of them
    with _reading(path) as database:
        try:
            found = database.execute(
                "select artifact_location from experiments where name = ?", (experiment,)
            ).fetchone()
        except sqlite3.DatabaseError:
            return None
    parts = urlsplit(found[0] or "") if found else None
    if parts is None or parts.scheme not in ("", "file"):
        return None
    place = Path(unquote(parts.path))
    # Only where `open_store` put it; a place of a user's own choice is not ours to judge.
    if place.is_relative_to(root.resolve()) or place.parent.name != "mlruns":
        return None
    return place.parent.parent


def refuse_unfit(path: Path, root: Path, experiment: str) -> None:
    """Raises Refused where the database is of an older MLflow, or of a project that stood elsewhere."""
    if is_outdated(path, root):
        raise Refused(f"{path} was made by an older MLflow, which cannot read it any more once it was changed. {MEND}")
    if old := former_root(path, root, experiment):
        raise Refused(f"This project was moved or copied: its runs keep their files below {old}. {MEND}")


def mend(path: Path, root: Path, experiment: str) -> list[str]:
    """Sets the database right; a line for each thing done, none where nothing was wrong."""
    outdated, old = is_outdated(path, root), former_root(path, root, experiment)
    if not outdated and old is None:
        return []
    copy = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    with _reading(path) as database, closing(sqlite3.connect(copy)) as backup:
        database.backup(backup)
    said = [f"{copy.name} is the database as it was"]
    if outdated:
        from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

        engine = create_sqlalchemy_engine(f"sqlite:///{path}")
        try:
            _upgrade_db(engine)
        finally:
            engine.dispose()
        said.append(f"{path.name} was brought to the version of the installed MLflow")
    if old is not None:
        number = _move_places(path, old, root.resolve())
        said.append(f"{number} places in {path.name} were moved from {old} to {root.resolve()}")
    return said


def _move_places(path: Path, old: Path, new: Path) -> int:
    number = 0
    with closing(sqlite3.connect(path)) as database, database:
        for table, columns in PLACES.items():
            existing = {row[1] for row in database.execute(f"pragma table_info({table})")}
            for column in existing.intersection(columns):
                for before, after in ((old.as_uri(), new.as_uri()), (str(old), str(new))):
                    # Not LIKE: a path may hold its wildcards.
                    changed = database.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                        (after + "/", len(before) + 2, len(before) + 1, before + "/"),
                    )
                    number += changed.rowcount
    return number
