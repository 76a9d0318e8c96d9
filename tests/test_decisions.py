"""Decisions of people about labels: the table that holds them, and what `prepare` makes of it."""

import csv
from pathlib import Path

import pytest
from zoo import encode, make_image

from frostline.arrays import load_split
from frostline.errors import Refused
from frostline.files import require_complete, sha256_of
from frostline.images.decisions import COLUMNS, Decision, add_decisions, decide, load_decisions, load_history
from frostline.images.preparation import Summary, prepare_images
from frostline.images.shards import Record
from frostline.params import Prepare

CLASSES = ("cats", "dogs")


def make_record(image_id: str, pixels: str = "", sha256: str = "a" * 64) -> Record:
    return Record(image_id, image_id.split("/")[0], None, "", sha256=sha256, pixel_sha256=pixels or image_id)


def make_raw(folder: Path) -> Path:
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for seed in range(20):
            (folder / name / f"{seed}.png").write_bytes(encode(make_image(100 * number + seed, 48, 40), "PNG"))
    return folder


def prepare(raw: Path, *decisions: Decision, name: str = "prepared") -> Summary:
    given = {decision.image_id: decision for decision in decisions}
    place = raw.parent
    return prepare_images(raw, place / name, Prepare(), size=32, seed=7, work=place / "w/x/y", decisions=given)


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row.get("image_id") or row["path"]: row for row in csv.DictReader(file)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_committed_table_has_the_columns(root: Path) -> None:
    header = (root / "decisions.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == ",".join(COLUMNS)


def test_rows_are_added_below_and_the_last_one_counts(tmp_path: Path) -> None:
    table = tmp_path / "decisions.csv"
    assert load_decisions(table) == {}
    first = Decision("cats/1.png", "drop", "", "cats", "ab", "Änne, of the lab", "2026-01-02T03:04:05Z")
    second = Decision("cats/1.png", "relabel", "dogs", "cats", "ab", "bo", "2026-01-03T03:04:05Z")
    add_decisions([first], table)
    add_decisions([second, Decision("dogs/2.png", "keep")], table)
    assert load_history(table)[:2] == [first, second]
    assert load_decisions(table) == {"cats/1.png": second, "dogs/2.png": Decision("dogs/2.png", "keep")}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".frostline", "decisions.csv"]


def test_a_table_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    table = tmp_path / "decisions.csv"
    table.write_bytes(
        "\ufeffdecision;image_id;label\r\nDrop;cats/1.png;\r\n;;\r\nRelabel ;cats/2.png;dogs\r\n".encode()
    )
    assert load_history(table) == [Decision("cats/1.png", "drop"), Decision("cats/2.png", "relabel", "dogs")]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("image_id,what\na,keep\n", "no column decision"),
        ("image_id,decision\na,keep\nb,dropp\n", r"row 3.*'dropp' \(did you mean drop\?\)"),
        ("image_id,decision\n,keep\n", "row 2"),
        ("image_id,decision,label\na,relabel,\n", "row 2.*label"),
        ("image_id,decision,label\na,drop,cats\n", "row 2.*label"),
        ("image_id,decision\na,keep,more\n", "row 2"),
    ],
)
def test_what_is_no_decision_is_refused_by_its_row(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "decisions.csv").write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=word):
        load_history(tmp_path / "decisions.csv")


def test_prepare_keeps_relabels_and_drops_as_decided(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw")
    before = prepare(raw, name="before")
    summary = prepare(
        raw,
        Decision(
            "cats/3.png", "relabel", "dogs", "cats", sha256_of(raw / "cats/3.png"), "anna", "2026-01-02T03:04:05Z"
        ),
        Decision("dogs/4.png", "drop", who="bo"),
        Decision("cats/5.png", "keep"),
    )
    folder = tmp_path / "prepared"
    manifest, rejected = rows_of(folder / "manifest.csv"), rows_of(folder / "rejected.csv")
    row = manifest["cats/3.png"]
    assert (row["class_name"], row["label"]) == ("dogs", "1")
    assert row["note"] == "relabelled from cats by anna, 2026-01-02T03:04:05Z"
    split = load_split(folder / row["split"])
    assert split.labels[split.ids.index("cats/3.png")] == 1
    assert rejected == {
        "dogs/4.png": {"path": "dogs/4.png", "class_name": "dogs", "kind": "dropped", "reason": "dropped by bo"}
    }
    assert "dogs/4.png" not in manifest and manifest["cats/5.png"]["note"] == ""
    assert summary.left_out == {"dropped": 1} and summary.content_sha256 != before.content_sha256
    assert "decisions.csv: 1 relabelled, 1 dropped" in summary.notes
    assert require_complete(folder)["relabelled"] == {row["split"]: 1}


def test_to_keep_an_image_changes_no_byte(tmp_path: Path) -> None:
    """Or a review that finds nothing would train everything again."""
    raw = make_raw(tmp_path / "raw")
    prepare(raw, name="before")
    prepare(raw, Decision("cats/3.png", "keep", "", "cats", sha256_of(raw / "cats/3.png"), "anna", "now"), name="after")
    assert contents(tmp_path / "before") == contents(tmp_path / "after")


def test_decisions_that_do_not_fit_are_told_and_not_followed(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw")
    prepare(raw, name="before")
    summary = prepare(
        raw,
        Decision("cats/99.png", "drop"),
        Decision("cats/3.png", "drop", sha256="0" * 64),
        Decision("cats/4.png", "relabel", "dogs", was="horses"),
    )
    notes = "\n".join(summary.notes)
    assert "1 decisions are about images that are not among the usable ones: cats/99.png" in notes
    assert "2 decisions were made about another file or label, and are not followed: cats/3.png, cats/4.png" in notes
    assert contents(tmp_path / "before")["manifest.csv"] == contents(tmp_path / "prepared")["manifest.csv"]


def test_a_label_that_is_no_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refused, match=r"cats/1.png shall be 'dog'.*did you mean dogs\?.*cats, dogs"):
        decide([make_record("cats/1.png")], {"cats/1.png": Decision("cats/1.png", "relabel", "dog")}, CLASSES)


def test_a_decision_holds_for_copies_in_its_class_and_ends_a_conflict() -> None:
    records = [make_record("cats/1.png", "p"), make_record("cats/2.png", "p"), make_record("dogs/3.png", "p")]
    moved = decide(records, {"cats/1.png": Decision("cats/1.png", "relabel", "dogs")}, CLASSES)
    assert {record.image_id: record.class_name for record in moved.records} == dict.fromkeys(
        ("cats/1.png", "cats/2.png", "dogs/3.png"), "dogs"
    )
    assert moved.relabelled == {"cats/1.png", "cats/2.png"}
    dropped = decide(records, {"cats/1.png": Decision("cats/1.png", "drop")}, CLASSES)
    assert [record.image_id for record in dropped.records] == ["dogs/3.png"]
    assert [row[0] for row in dropped.dropped] == ["cats/1.png", "cats/2.png"]
    own = {"cats/1.png": Decision("cats/1.png", "drop"), "cats/2.png": Decision("cats/2.png", "keep")}
    assert [record.image_id for record in decide(records, own, CLASSES).records] == ["cats/2.png", "dogs/3.png"]
