import os

import pytest

from frostline.images import survey
from frostline.images.survey import survey_inputs
from frostline.params import Base, Fetch


@pytest.fixture
def images(tmp_path):
    for name in ("cats/1.jpg", "cats/2.jpg", "dogs/1.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "mine.h5").write_bytes(b"weights")
    return tmp_path / "images"


def look(root, memory=None, before=None, source="images", weights="mine.h5"):
    base = Base(name="MobileNetV2", weights=weights, image_size=96)
    return survey_inputs(Fetch(source=source), base, root, memory or {}, before or {})


def test_the_digest_follows_names_and_contents_alone(images, tmp_path):
    first = look(tmp_path).record
    assert first["fetch.source"]["num_files"] == 3
    os.utime(images / "cats" / "1.jpg", (0, 0))
    images.rename(tmp_path / "moved")
    assert look(tmp_path, source="moved").record == first
    (tmp_path / "moved" / "cats").rename(tmp_path / "moved" / "lions")
    assert look(tmp_path, source="moved").record != first


@pytest.mark.parametrize("change", ["add", "remove", "replace", "weights"])
def test_every_change_of_an_input_changes_its_digest(images, tmp_path, change):
    first = look(tmp_path)
    if change == "add":
        (images / "dogs" / "2.jpg").write_bytes(b"new")
    elif change == "remove":
        (images / "cats" / "2.jpg").unlink()
    elif change == "replace":
        (images / "cats" / "2.jpg").write_bytes(b"CATS/2.JPG")  # of the same size
    else:
        (tmp_path / "mine.h5").write_bytes(b"WEIGHTS")
    changed = "base.weights" if change == "weights" else "fetch.source"
    again = look(tmp_path, first.memory).record
    assert {key for key in again if again[key] != first.record[key]} == {changed}


def test_only_what_changed_is_hashed_again(images, tmp_path, monkeypatch):
    first = look(tmp_path)
    hashed = []
    real = survey.sha256_of
    monkeypatch.setattr(survey, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    assert look(tmp_path, first.memory).record == first.record
    assert hashed == []
    (images / "cats" / "2.jpg").write_bytes(b"other")
    look(tmp_path, first.memory)
    assert hashed == ["2.jpg"]


def test_an_input_that_is_not_here_keeps_its_last_record(images, tmp_path):
    first = look(tmp_path).record
    assert look(tmp_path, before=first, source="gone", weights="gone.h5").record == first


def test_a_source_without_a_path_is_known_by_its_params(tmp_path):
    one, other = (look(tmp_path, source=source, weights="random").record for source in ("generated", "tf_flowers"))
    assert one["fetch.source"] != other["fetch.source"]
    assert one["base.weights"] == other["base.weights"]
