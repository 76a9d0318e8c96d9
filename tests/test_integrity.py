"""A bit that a disk forgot is found, though name, size and time are as they were."""

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from frostline.cli.doctor import examine_bytes
from frostline.planning.integrity import find_broken_databases, find_changed

STAGES = """
stages:
  extract:
    cmd: mkdir -p data/features/depth-00 && echo maps > data/features/depth-00/view-000.npy && echo mark > data/features/complete.json
    outs: [data/features]
  register:
    cmd: mkdir -p reports && echo version > reports/registration.json
    outs: [reports/registration.json]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose two stages DVC has run."""
    folder = tmp_path_factory.mktemp("integrity")
    (folder / "dvc.yaml").write_text(STAGES)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def flip_a_byte(path: Path) -> None:
    """Its size and times stay as they were."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[1] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("links", ["copy", "hardlink"])
@pytest.mark.parametrize(
    ("name", "stage"), [("data/features/depth-00/view-000.npy", "extract"), ("reports/registration.json", "register")]
)
def test_an_output_whose_bytes_changed_is_named_and_comes_back_by_the_advice(made, tmp_path, links, name, stage):
    """Where DVC links, its own copy is damaged with it."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    for command in (["dvc", "config", "cache.type", links], ["dvc", "checkout", "-q", "--relink"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    assert find_changed(folder) == ([], 3)
    assert [finding.level for finding in examine_bytes(folder)] == ["ok"]
    before = (folder / name).read_bytes()
    flip_a_byte(folder / name)
    (finding,) = examine_bytes(folder)
    assert finding.level == "fail" and finding.what.startswith(f"{name} is not what stage {stage} wrote")
    assert ("dvc repro" in finding.advice) == (links == "hardlink")
    subprocess.run(finding.advice, shell=True, cwd=folder, check=True, capture_output=True)
    assert (folder / name).read_bytes() == before and find_changed(folder) == ([], 3)


def test_without_a_lock_there_is_nothing_to_compare(tmp_path):
    assert find_changed(tmp_path) == ([], 0)
    assert list(examine_bytes(tmp_path)) == []


@pytest.mark.parametrize("name", ["mlflow.db", "studies/d.db"])
def test_a_damaged_database_is_named(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with sqlite3.connect(path) as database:
        database.execute("create table runs (number integer primary key, name text)")
        database.executemany("insert into runs (name) values (?)", [(f"run {number}" * 20,) for number in range(500)])
        database.execute("create index by_name on runs (name)")
    database.close()
    assert list(find_broken_databases(tmp_path)) == []
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 3 + 200] = bytes(200)
    path.write_bytes(data)
    ((found, reason),) = find_broken_databases(tmp_path)
    assert found == name and reason
