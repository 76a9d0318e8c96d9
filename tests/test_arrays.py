import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frostline.arrays import ArrayWriter, load_array, load_split, save_array, save_split, take_rows
from frostline.errors import Refused
from frostline.files import load_json, mark_complete, publish, replacing, require_complete, save_json, sha256_of


def test_an_array_saved_in_chunks_is_a_plain_npy_file(tmp_path):
    whole = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    save_array(tmp_path / "a.npy", (whole[i : i + 4] for i in (0, 4, 8)), (10, 2, 3), np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), whole)


def test_a_chunk_is_converted_to_the_files_type(tmp_path):
    save_array(tmp_path / "a.npy", [np.full((2, 3), 0.5)], (2, 3), np.float16)
    assert np.load(tmp_path / "a.npy").dtype == np.float16


@pytest.mark.parametrize("chunks", [[np.zeros((9, 2))], [np.zeros((11, 2))], [np.zeros((10, 3))], []])
def test_an_array_that_is_not_filled_exactly_never_appears(tmp_path, chunks):
    with pytest.raises(ValueError, match=r"a\.npy"):
        save_array(tmp_path / "a.npy", chunks, (10, 2), np.uint8)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_the_old_array(tmp_path):
    save_array(tmp_path / "a.npy", [np.ones(3)], (3,), np.uint8)
    with pytest.raises(RuntimeError), ArrayWriter(tmp_path / "a.npy", (2, 2), np.uint8) as writer:
        writer.append(np.zeros((1, 2), np.uint8))
        raise RuntimeError
    assert load_array(tmp_path / "a.npy").tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_writer_goes_on_where_another_was_stopped(tmp_path):
    path, rows = tmp_path / "a.npy", np.arange(12, dtype=np.float32).reshape(6, 2)
    with pytest.raises(RuntimeError), ArrayWriter(path, (6, 2), np.float32, resume_at=0) as writer:
        writer.append(rows[:3])
        writer.sync()
        writer.append(rows[3:4] * 9)
        raise RuntimeError
    assert not path.exists()
    with ArrayWriter(path, (6, 2), np.float32, resume_at=3) as writer:
        writer.append(rows[3:])
    np.testing.assert_array_equal(np.load(path), rows)
    assert [found.name for found in tmp_path.iterdir()] == ["a.npy"]


def test_a_loaded_array_is_mapped_and_cannot_be_changed(tmp_path):
    save_array(tmp_path / "a.npy", [np.ones(3)], (3,), np.uint8)
    array = load_array(tmp_path / "a.npy")
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


def test_an_array_of_objects_is_refused(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="object"):
        load_array(tmp_path / "evil.npy")


def test_a_failed_replacement_keeps_the_old_file_and_leaves_no_temporary(tmp_path):
    save_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.json") as temporary:
        assert temporary.suffix == ".json"  # by which libraries choose the format
        temporary.write_text("half")
        raise RuntimeError
    assert load_json(tmp_path / "a.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_with_nan_or_infinity_is_refused_and_nothing_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        save_json(tmp_path / "a.json", {"score": value})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_its_marker_is_refused_with_advice(tmp_path):
    with pytest.raises(Refused, match="dvc repro"):
        require_complete(tmp_path)
    mark_complete(tmp_path, num_images=3)
    assert require_complete(tmp_path)["num_images"] == 3


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_half_written_is_not_published(tmp_path):
    work, folder = tmp_path / "work", tmp_path / "out"
    (work / "train").mkdir(parents=True)
    for name in (".4711.preview.png", "train/.4711.images.npy", ".1.complete.json"):
        (work / name).write_text("half")
    (work / "train" / ".rows").write_text("ours, and whole")
    mark_complete(work)
    (tmp_path / "work.old").mkdir()  # of a kill between the two moves
    (tmp_path / "work.old" / "file").touch()
    publish(work, folder)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "complete.json",
        "train/.rows",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_written_again_takes_what_a_killed_process_left_of_it_away(tmp_path):
    dead = dead_process()
    living = [f".{os.getppid()}.a.json", f".{dead}.b.json"]  # another process at the same file; another file
    for name in (f".{dead}.a.json", *living):
        (tmp_path / name).write_text("half")
    save_json(tmp_path / "a.json", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*living, "a.json"])


def test_publishing_replaces_the_old_folder_as_a_whole(tmp_path):
    old, work = tmp_path / "data" / "views", tmp_path / "work"
    for folder, name in ((old, "old.npy"), (work, "new.npy")):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    with pytest.raises(Refused, match="not Frostline's"):
        publish(work, old)
    assert (old / "old.npy").is_file()
    (old / "complete.json").touch()
    publish(work, old)
    assert [path.name for path in old.iterdir()] == ["new.npy"]
    assert not work.exists()


def test_a_split_comes_back_as_it_was_saved(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    labels, ids = np.array([0, 1, 0, 1, 2], np.int32), ["a/1.jpg", "b/2.jpg", "a/ü 3.jpg", "b/4.jpg", "c/5.jpg"]
    save_split(tmp_path / "train", [images[:3], images[3:]], 4, labels, ids, np.arange(len(ids)))
    split = load_split(tmp_path / "train")
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    assert split.labels.dtype == np.int32
    assert split.ids == tuple(ids)
    assert split.groups.tolist() == list(range(len(ids)))


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"frost")
    # printf frost | sha256sum
    assert sha256_of(tmp_path / "a") == "d7bf0c9ea6ea590ff1a44ef444aa38d0db5491e29fab83efbbbe882ac9314e84"


def test_json_is_readable_by_a_person(tmp_path):
    save_json(tmp_path / "a.json", {"b": 1, "a": [1, 2]})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n") and text.count("\n") > 4
    assert json.loads(text) == {"b": 1, "a": [1, 2]}


@pytest.mark.parametrize("rows", [slice(2, 9), slice(None), np.array([7, 0, 7]), np.arange(1000) % 10])
def test_taken_rows_are_copies_of_the_arrays_own(tmp_path, rows):
    whole = np.random.default_rng(0).integers(0, 256, (10, 50_000), dtype=np.uint8)
    save_array(tmp_path / "a.npy", [whole], whole.shape, np.uint8)
    mapped = load_array(tmp_path / "a.npy")
    for array in (whole, mapped, pickle.loads(pickle.dumps(mapped))):  # as a process of its own gets it
        taken = take_rows(array, rows)
        np.testing.assert_array_equal(taken, whole[rows])
        assert not np.shares_memory(taken, array) and type(taken) is np.ndarray


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_what_was_read_of_a_file_is_no_longer_held(tmp_path):
    size, block = 64_000_000, np.ones((1, 1_000_000), np.uint8)
    save_array(tmp_path / "a.npy", (block for _ in range(64)), (64, 1_000_000), np.uint8)
    array, before = load_array(tmp_path / "a.npy"), held_bytes()
    for row in range(64):
        take_rows(array, np.array([row]))
    assert held_bytes() - before < size / 4
    assert int(array.sum()) == size
    assert held_bytes() - before > size / 2  # so it is with a plain read


def held_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
