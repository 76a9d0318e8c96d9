"""The account of what changed among the images."""

from pathlib import Path

from frostline.images.manifest import Changes, Listed, compare_manifests, read_manifest

BEFORE = [
    Listed("cats/1.jpg", "cats", "train", "aa"),
    Listed("cats/2.jpg", "cats", "val", "bb"),
    Listed("dogs/3.jpg", "dogs", "test", "cc"),
    Listed("dogs/4.jpg", "dogs", "train", "dd"),
]


def test_every_kind_of_change_is_told_apart(tmp_path: Path) -> None:
    after = [
        Listed("cats/1.jpg", "cats", "train", "aa"),
        Listed("dogs/2.jpg", "dogs", "val", "bb"),  # relabelled: its folder changed, its name did not
        Listed("dogs/three.jpg", "dogs", "train", "cc"),  # renamed and moved
        Listed("cats/5.jpg", "cats", "train", "ee"),
    ]
    changes = compare_manifests(BEFORE, after)
    assert [image.image_id for image in changes.added] == ["cats/5.jpg"]
    assert [image.image_id for image in changes.removed] == ["dogs/4.jpg"]
    assert [(old.class_name, new.class_name) for old, new in changes.relabelled] == [("cats", "dogs")]
    assert [(old.split, new.split) for old, new in changes.moved] == [("test", "train")]
    assert [new.image_id for _, new in changes.renamed] == ["dogs/three.jpg"]
    assert changes.describe() == (
        "4 images, 4 before; 1 added (cats 1); 1 removed (dogs 1); 1 relabelled (cats to dogs 1); "
        "1 in another split (test to train 1); 1 renamed"
    )
    changes.save(tmp_path / "changes.csv")
    lines = (tmp_path / "changes.csv").read_text().splitlines()
    assert lines[0] == "change,image_id,before,after" and len(lines) == 6
    assert "moved,dogs/three.jpg,test,train" in lines


def test_nothing_changed_is_said_and_the_order_does_not_matter() -> None:
    changes = compare_manifests(BEFORE, BEFORE[::-1])
    assert not changes and changes.describe() == "the same 4 images"


def test_copies_of_one_file_in_several_splits_are_paired_where_they_stand() -> None:
    copies = [Listed("train/a.jpg", "cats", "train", "aa"), Listed("test/a.jpg", "cats", "test", "aa")]
    assert not compare_manifests(copies, copies[::-1])
    changes = compare_manifests(copies, copies[1:])
    assert [image.split for image in changes.removed] == ["train"] and isinstance(changes, Changes)


def test_a_manifest_is_read_by_its_columns() -> None:
    text = "image_id,path,class_name,label,split,sha256\ncats/1.jpg,raw/cats/1.jpg,cats,0,train,aa\n"
    assert read_manifest(text) == BEFORE[:1]
