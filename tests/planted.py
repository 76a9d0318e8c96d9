"""Secrets as a user's environment, git and DVC hold them, and the search for them in whatever a run wrote."""

import contextlib
import sqlite3
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

# In pieces, because a project of the tests holds this file, too.
MARK = "".join(("frost", "bite", "-7f3a"))
# What a stage sees.
ENVIRONMENT = {
    "DATA_TOKEN": f"{MARK}-data-token",
    "AWS_ACCESS_KEY_ID": "".join(("AKIA", "FROSTBITE", "7F3A7F3")),
    "AWS_SECRET_ACCESS_KEY": f"{MARK}/aws+secret",
    "AWS_SESSION_TOKEN": f"{MARK}-aws-session",
    "AZURE_STORAGE_KEY": f"{MARK}-azure-key==",
    "MLFLOW_TRACKING_USERNAME": "somebody",
    "MLFLOW_TRACKING_PASSWORD": f"{MARK}-mlflow-password",
    "MLFLOW_TRACKING_TOKEN": f"{MARK}-mlflow-token",
    "MLFLOW_REGISTRY_URI": f"https://me:{MARK}-registry-password@registry.example",
    "FROSTLINE_SECRET": f"{MARK}-frostline-secret",
}
# What a stage without a study sees beside them; `tune` would go there.
STUDY = {"FROSTLINE_STUDY_URL": f"postgresql://me:{MARK}/study+@127.0.0.1:9/studies"}
MARKS = (MARK.encode(), ENVIRONMENT["AWS_ACCESS_KEY_ID"].encode())
# Where we put them ourselves.
OURS = (".git/config", ".dvc/config.local")


def plant(folder: Path) -> None:
    """Secrets into the configurations of a project's git and DVC."""
    with (folder / ".git" / "config").open("a", encoding="utf-8") as file:
        file.write(f'[remote "team"]\n\turl = https://me:{MARK}-git@git.example/project.git\n')
    with (folder / ".dvc" / "config.local").open("a", encoding="utf-8") as file:
        file.write(f"['remote \"bucket\"']\n    url = https://host.example/dvc\n    password = {MARK}-dvc\n")


def find_planted(folder: Path) -> list[str]:
    """`file: the text around it` for each file below the folder that holds a secret, tables and archives looked through."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        if not path.as_posix().endswith(OURS):
            for text in _texts_of(path):
                found += [f"{path}: {text[max(0, at - 60) : at + 30]!r}" for at in map(text.find, MARKS) if at >= 0]
    return found


def _texts_of(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    yield data
    if data.startswith(b"SQLite format 3\0"):  # a long value may be cut in the file
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            yield from (line.encode() for line in database.iterdump())
    if zipfile.is_zipfile(BytesIO(data)):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
