"""What people decided about labels: a table that only grows, is kept in git, and is honoured by `prepare`."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from frostline.errors import Refused, nearest, some
from frostline.files import replacing

if TYPE_CHECKING:  # whoever only reads the table loads no decoder
    from frostline.images.duplicates import LeftOut
    from frostline.images.shards import Record

FILE = Path("decisions.csv")  # at the project's root
LOCK = Path(".frostline/decisions.lock")
KEEP, RELABEL, DROP = "keep", "relabel", "drop"
KINDS = (KEEP, RELABEL, DROP)


@dataclass(frozen=True)
class Decision:
    """A row of the table. image_id: the image's path below `data/raw`; decision: one of KINDS; label: the class it belongs to,
    "" unless it is relabelled.

    was: its class when that was decided; sha256: of its file then; who, when (UTC, ISO 8601). "" where not known.
    """

    image_id: str
    decision: str
    label: str = ""
    was: str = ""
    sha256: str = ""
    who: str = ""
    when: str = ""

    def describe(self) -> str:
        """By whom and when it was made."""
        return f"by {self.who or 'somebody'}" + (f", {self.when}" if self.when else "")


COLUMNS = tuple(field.name for field in fields(Decision))


@dataclass(frozen=True)
class Decided:
    """Images after the decisions: those that stay, with the labels that were decided, and what became of the others.

    dropped: rows of `rejected.csv`; relabelled: ids; notes: what a user should be told.
    """

    records: "list[Record]"
    dropped: "list[LeftOut]"
    relabelled: frozenset[str]
    notes: tuple[str, ...]


def load_history(path: Path = FILE) -> list[Decision]:
    """Every row of the table, the oldest first; none where there is no file.

    Refused, with the row's number, where one is not a decision.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_bytes().decode("utf-8-sig")  # as spreadsheets save it
    except UnicodeDecodeError:
        raise Refused(f"{path} is not UTF-8. Save it as UTF-8.") from None
    first = text.split("\n", 1)[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    if missing := {"image_id", "decision"} - set(rows.fieldnames or ()):
        raise Refused(f"{path} has no column {some(sorted(missing))}; expected are {', '.join(COLUMNS)}.")
    return [_read(path, number, row) for number, row in enumerate(rows, start=2) if any(row.values())]


def load_decisions(path: Path = FILE) -> dict[str, Decision]:
    """The decision that counts of each image, by its id: the last one."""
    return {decision.image_id: decision for decision in load_history(path)}


def add_decisions(new: Iterable[Decision], path: Path = FILE) -> None:
    """Writes the decisions below those that are there, whole or not at all; two writers wait for each other."""
    lock = path.parent / LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=10):
        rows = [*load_history(path), *new]
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(astuple(row) for row in rows)


def decide(records: "Sequence[Record]", decisions: Mapping[str, Decision], classes: Sequence[str]) -> Decided:
    """The usable images as people decided; a decision holds for copies of the image in its class, too.

    Not followed, and told, is one about an image that is not there, has another label now, or is another file. Refused
    where a label is no class.
    """
    for image_id, decision in decisions.items():
        if decision.decision == RELABEL and decision.label not in classes:
            raise Refused(
                f"{FILE}: {image_id} shall be {decision.label!r}, which is no class{nearest(decision.label, classes)}. "
                f"The classes are {some(classes, 20)}."
            )
    known = {record.image_id: record for record in records}
    missing = sorted(decisions.keys() - known.keys())
    stale = sorted(image_id for image_id, record in known.items() if _is_stale(decisions.get(image_id), record))
    valid = {image_id: each for image_id, each in decisions.items() if image_id in known and image_id not in stale}
    copies = {(known[name].pixel_sha256, known[name].class_name): each for name, each in valid.items()}
    kept: list[Record] = []
    dropped: list[LeftOut] = []
    relabelled: list[str] = []
    for record in records:
        made = valid.get(record.image_id) or copies.get((record.pixel_sha256, record.class_name))
        if made is None or made.decision == KEEP or made.label == record.class_name:
            kept.append(record)
        elif made.decision == DROP:
            dropped.append((record.image_id, record.class_name, "dropped", f"dropped {made.describe()}"))
        else:
            note = f"relabelled from {record.class_name} {made.describe()}"
            kept.append(replace(record, class_name=made.label, note="; ".join(filter(None, (record.note, note)))))
            relabelled.append(record.image_id)
    return Decided(kept, dropped, frozenset(relabelled), tuple(_tell(relabelled, dropped, missing, stale)))


def _read(path: Path, number: int, row: Mapping[str, Any]) -> Decision:
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    values["decision"] = values["decision"].lower()
    if None in row or values["decision"] not in KINDS or not values["image_id"]:
        raise Refused(
            f"{path}, row {number}: a decision names an image and is one of {', '.join(KINDS)}; "
            f"given was {values['image_id']!r}, {values['decision']!r}{nearest(values['decision'], KINDS)}."
        )
    if (values["decision"] == RELABEL) != bool(values["label"]):
        raise Refused(f"{path}, row {number}: a label belongs to `relabel`, and to nothing else.")
    return Decision(**values)


def _is_stale(decision: Decision | None, record: "Record") -> bool:
    if decision is None:
        return False
    return decision.was not in ("", record.class_name) or decision.sha256 not in ("", record.sha256)


def _tell(
    relabelled: Sequence[str], dropped: "Sequence[LeftOut]", missing: Sequence[str], stale: Sequence[str]
) -> Iterable[str]:
    counts = Counter({"relabelled": len(relabelled), "dropped": len(dropped)})
    if listed := ", ".join(f"{number} {word}" for word, number in counts.items() if number):
        yield f"{FILE}: {listed}"
    if missing:
        yield f"{FILE}: {len(missing)} decisions are about images that are not among the usable ones: {some(missing)}"
    if stale:
        yield f"{FILE}: {len(stale)} decisions were made about another file or label, and are not followed: {some(stale)}"
