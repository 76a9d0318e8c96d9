"""The layouts that people have: recognised with a note, or refused with what was seen."""

import os
from collections import Counter
from pathlib import Path

import pytest

from frostline.errors import Refused
from frostline.images.folders import copy_layout, find_layout, read_layout


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def images(*folders: str, number: int = 2) -> list[str]:
    return [f"{folder}/{index}.jpg" for folder in folders for index in range(number)]


def counts(layout) -> dict[tuple[str | None, str], int]:
    return dict(Counter((entry.split, entry.class_name) for entry in layout.entries))


CLASSES = {(None, "cats"): 2, (None, "dogs"): 2}
SPLIT = {(split, name): 2 for split in ("train", "test") for name in ("cats", "dogs")}


@pytest.mark.parametrize(
    ("names", "wanted", "word"),
    [
        # The folder of an archive within each split, and images to predict beside them.
        (
            [
                *images("seg_train/seg_train/cats", "seg_train/seg_train/dogs", "seg_test/seg_test/cats"),
                *images("seg_test/seg_test/dogs", "seg_pred/seg_pred"),
            ],
            SPLIT,
            "seg_pred",
        ),
        (images("train/cats", "train/dogs", "test/cats", "test/dogs"), SPLIT, None),
        (
            images("x/Train2017/cats", "x/Train2017/dogs", "x/Test2017/cats", "x/Test2017/dogs"),
            SPLIT,
            "Train2017 (train)",
        ),
        # A competition's test images have no labels.
        (
            images("train/cats", "train/dogs", "test"),
            {("train", "cats"): 2, ("train", "dogs"): 2},
            "left out, because they have no labels: test",
        ),
        (
            images("train/cats", "train/dogs", "test/test"),
            {("train", "cats"): 2, ("train", "dogs"): 2},
            "left out, because they have no labels: test",
        ),
        (
            [f"train/train/{name}.{n}.jpg" for name in ("cats", "dogs") for n in (1, 2)] + images("test1/test1"),
            CLASSES,
            "test1",
        ),
        # The split within the class.
        (images("cats/train", "cats/test", "dogs/train", "dogs/test"), SPLIT, "each class folder holds the splits"),
        (images("images/cats", "images/dogs") + ["annotations/1.xml", "README.md"], CLASSES, "annotations"),
        (images("cats", "dogs") + ["cats/0.xml", "dogs/notes.txt"], CLASSES, "1 .xml, 1 .txt"),
        (images("cats/2020", "dogs/2021"), CLASSES, "cats/2020"),
        # A class may be called after a means of transport.
        (images("train", "bus", "car"), {(None, name): 2 for name in ("train", "bus", "car")}, "taken for a class"),
        ([f"train/{name}.{n}.jpg" for name in ("cats", "dogs") for n in (1, 2)] + images("test1"), CLASSES, "test1"),
    ],
)
def test_a_layout_that_people_have_is_recognised_and_said(tmp_path, names, wanted, word):
    layout = find_layout(make(tmp_path / "s", *names))
    assert counts(layout) == wanted
    assert word is None or word in "; ".join(layout.notes)
    copy_layout(layout, tmp_path / "raw")
    again = read_layout(tmp_path / "raw", layout.splits)
    assert [entry.image_id for entry in again.entries] == [entry.image_id for entry in layout.entries]


def test_images_that_were_read_are_not_said_to_be_left_out(tmp_path):
    layout = find_layout(make(tmp_path, *[f"{name}.{n}.jpg" for name in ("cats", "dogs") for n in (1, 2)]))
    assert counts(layout) == CLASSES
    assert "left out" not in "; ".join(layout.notes)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (images("train", "test"), ["train/ (2 images, no folder)", "test/ (2 images", "labels.csv"]),
        (images("train", "val", "test"), ["train/ (2", "val/ (2"]),
        (images("train", "test", "cats"), ["train", "test", "named like splits"]),
        (images("train/cats", "train/dogs", "extra/cats"), ["extra", "beside others"]),
        (images("fold1/cats", "fold1/dogs", "fold2/cats", "fold2/dogs"), ["fold1", "cats", "two levels"]),
        (["images/1.png", "masks/1.png"], ["images, masks"]),
        (images("images/train", "images/val") + ["labels/train/1.txt"], ["train/ (2"]),
        (["train/cat_1.jpg", "train/dog_1.jpg"], ["train", "one class"]),
        (["1.jpg", "2.jpg"], ["2 images in itself"]),
        (images("cats") + ["dogs/readme.txt"], ["dogs", "without an image"]),
    ],
)
def test_a_layout_that_is_a_guess_is_refused_with_what_was_seen(tmp_path, names, words):
    with pytest.raises(Refused) as refusal:
        find_layout(make(tmp_path, *names))
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "id,breed\n0,cats\n1,cats\n2,dogs\n3,dogs\n",
        "file;label\n0.jpg;cats\n1.jpg;cats\n2.jpg;dogs\n3.jpg;dogs\n",
        "\ufefffilename,width,class,height\ntrain/0.jpg,1,cats,1\ntrain/1.jpg,1,cats,1\ntrain/2.jpg,1,dogs,1\ntrain/3.jpg,1,dogs,1\n",
        "0.jpg,cats\n1.jpg,cats\n2.jpg,dogs\n3.jpg,dogs\n",
    ],
)
def test_a_table_of_labels_beside_a_flat_folder_is_read(tmp_path, text):
    make(tmp_path, *images("train", number=4), *images("test", number=3), "sample_submission.csv")
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    layout = find_layout(tmp_path)
    assert counts(layout) == CLASSES
    assert "labels.csv" in "; ".join(layout.notes)
    assert [table.name for table in layout.tables] == ["labels.csv"]


def test_a_table_may_label_both_splits_or_the_folder_itself(tmp_path):
    make(tmp_path / "a", *images("train", "test"))
    (tmp_path / "a" / "labels.csv").write_text(
        "file,label\n"
        + "".join(
            f"{split}/{n}.jpg,{label}\n" for split in ("train", "test") for n, label in enumerate(("cats", "dogs"))
        )
    )
    assert counts(find_layout(tmp_path / "a")) == dict.fromkeys(SPLIT, 1)
    make(tmp_path / "b", "0.jpg", "1.jpg", "2.jpg")
    (tmp_path / "b" / "l.csv").write_text("file,label\n0.jpg,cats\n1.jpg,a/b\n")
    layout = find_layout(tmp_path / "b")
    assert counts(layout) == {(None, "cats"): 1, (None, "a_b"): 1}
    assert "1 images without a row" in "; ".join(layout.notes)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("file,a,b\n0.jpg,1,0\n1.jpg,0,1\n", "'a', 'b'"),
        ("file,label\n0.jpg,cats\n0.jpg,dogs\n1.jpg,dogs\n", "two labels"),
        ("file,label\n0.jpg,\n1.jpg,dogs\n", "no label"),
        ("file,label\nx.jpg,cats\ny.jpg,dogs\n", "not known"),
    ],
)
def test_a_table_that_is_a_guess_is_refused(tmp_path, text, word):
    make(tmp_path, *images("train"))
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(Refused, match=word):
        find_layout(tmp_path)


def test_two_tables_are_one_too_many(tmp_path):
    make(tmp_path, *images("train"))
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("file,label\n0.jpg,cats\n1.jpg,dogs\n")
    with pytest.raises(Refused, match=r"a\.csv, b\.csv"):
        find_layout(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "thumbs.db",
        "THUMBS.DB",
        "Desktop.ini",
        "desktop.ini",
        "Icon\r",
        ".DS_Store",
        "ehthumbs.db",
        "~$a.docx",
        "x.tmp",
        "@eaDir/x.jpg",
    ],
)
def test_what_systems_leave_is_no_image_in_any_spelling(tmp_path, name):
    layout = find_layout(make(tmp_path, *images("cats", "dogs"), f"cats/{name}"))
    assert counts(layout) == CLASSES
    assert layout.skipped == ()


def test_class_folders_that_are_links_are_refused_with_the_reason_or_followed(tmp_path):
    make(tmp_path / "elsewhere", *images("cats", "dogs"))
    (tmp_path / "s").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "s" / name).symlink_to(tmp_path / "elsewhere" / name)
    with pytest.raises(Refused, match=r"cats: a link to the folder .*follow_links"):
        find_layout(tmp_path / "s")
    assert counts(find_layout(tmp_path / "s", follow_links=True)) == CLASSES
    (tmp_path / "elsewhere" / "cats" / "loop").symlink_to(tmp_path / "elsewhere" / "cats")
    assert counts(find_layout(tmp_path / "s", follow_links=True)) == CLASSES


def test_a_folder_name_that_is_not_utf_8_is_named_and_read_with_its_encoding(tmp_path):
    make(tmp_path, *images("dogs"))
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/\xe9.jpg")).write_bytes(b"1")
    with pytest.raises(Refused, match=r"(?s)not UTF-8.*café.*fetch.encoding"):
        find_layout(tmp_path)
    layout = find_layout(tmp_path, encoding="cp1252")
    assert {entry.image_id for entry in layout.entries} == {"café/é.jpg", "dogs/0.jpg", "dogs/1.jpg"}
    copy_layout(layout, tmp_path / "raw")
    assert (tmp_path / "raw" / "café" / "é.jpg").read_bytes() == b"1"
