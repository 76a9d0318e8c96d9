"""What a plain `dvc repro` does to images of a user's: nothing is lost, and a change of theirs is seen."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_line import Project, start_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh clone of the working tree, with 24 images in two class folders beside it."""
    made = start_project(tmp_path / "project")
    draw(tmp_path / "images", 12)
    return made


def draw(folder: Path, number: int, start: int = 0) -> None:
    rng = np.random.default_rng(start)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(start, start + number):
            cv2.imwrite(str(folder / name / f"{index}.png"), rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))


def test_images_copied_into_an_output_are_never_deleted(project: Project, tmp_path: Path) -> None:
    raw = project.folder / "data" / "raw"
    shutil.copytree(tmp_path / "images", raw)
    for settings in ({}, {"fetch.source": "data/raw"}, {"fetch.source": "data"}):
        project.set(settings)
        assert "paths.raw" in project.frostline("check", code=2)
        said = project.run("dvc", "repro", code=255)
        assert "paths.raw" in said
        assert "Traceback" not in said
    # Around the guard: the stage itself refuses, and DVC does not empty what persists.
    (project.folder / "data" / "source.json").write_text("{}")
    said = project.run("dvc", "repro", "--single-item", "fetch", code=255)
    assert "paths.raw" in said
    assert len(list(raw.rglob("*.png"))) == 24


def test_a_changed_source_is_seen_and_nothing_runs_where_it_did_not_change(project: Project, tmp_path: Path) -> None:
    images = tmp_path / "images"
    project.set({"fetch.source": str(images)})

    assert "Running stage 'prepare'" in project.run("dvc", "repro", "prepare")
    for file in images.rglob("*.png"):
        file.touch()
    said = project.run("dvc", "repro", "prepare")
    assert "'fetch' didn't change" in said
    assert project.frostline("check").endswith("params.yaml: no problem\n")

    draw(images, 1, start=12)
    assert "made from 24 files, the folder holds 26" in project.frostline("check")
    said = project.run("dvc", "repro", "prepare")
    assert "Running stage 'fetch'" in said
    assert "Running stage 'prepare'" in said
    assert project.load("data/raw/complete.json")["num_files"] == 26

    # An image put among the results is refused, and stays where it is.
    mine = project.folder / "data" / "raw" / "cats" / "mine.png"
    shutil.copy(images / "cats" / "1.png", mine)
    mine.write_bytes(mine.read_bytes() + b"mine")
    assert "mine.png" in project.run("dvc", "repro", "prepare", code=255)
    assert mine.is_file()
    mine.unlink()

    # Who has the results and not the images goes on as before.
    images.rename(tmp_path / "elsewhere")
    assert "'fetch' didn't change" in project.run("dvc", "repro", "prepare")
