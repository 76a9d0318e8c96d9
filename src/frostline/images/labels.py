"""A table of labels (`file,label`) beside images that stand in one folder."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from frostline.errors import Refused

LABEL_COLUMNS = (
    "label",
    "class",
    "category",
    "target",
    "breed",
    "species",
    "variety",
    "name",
    "classname",
    "labels",
    "y",
)
MIN_MATCHED = 0.5  # share of a table's rows that name an image; below it, the table is about something else


@dataclass(frozen=True)
class Table:
    """Labels of images. labels: image's path below the folder -> label; unmatched: rows that name no image."""

    file: Path
    file_column: str
    label_column: str
    labels: Mapping[str, str]
    unmatched: int


def find_table(files: Iterable[Path], images: Iterable[str]) -> Table | None:
    """The one table among `files` that names most of `images` (paths below the folder, "/" between).

    Raises Refused where several do, or where it is not clear which column holds the label.
    """
    keys = _keys_of(images)
    tables = []
    for file in files:
        if file.suffix.lower() in (".csv", ".tsv") and "submission" not in file.name.lower():
            rows = _read(file)
            if rows and (table := _match(file, rows, keys)):
                tables.append(table)
    if len(tables) > 1:
        names = ", ".join(table.file.name for table in tables)
        raise Refused(
            f"{names} each name the images; which of them holds the labels is a guess. Leave one of them there."
        )
    return tables[0] if tables else None


def class_of(label: str) -> str:
    """A label as a folder's name.

    >>> class_of(" cats/dogs "), class_of("..")
    ('cats_dogs', '_')
    """
    name = re.sub(r"[/\\\x00-\x1f]", "_", label.strip())
    return re.sub(r"^\.+", "_", name)


def _keys_of(images: Iterable[str]) -> dict[str, str | None]:
    """What a table may call an image -> the image; None where that could be several."""
    keys: dict[str, str | None] = {}
    for image in images:
        path = PurePosixPath(image)
        for key in {image, path.name, path.stem, str(path.with_suffix(""))}:
            keys[key] = None if key in keys and key != image else image
    return keys


def _read(file: Path) -> list[list[str]]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused(f"{file} is not UTF-8. Save it as UTF-8, or take it away if it holds no labels.") from None
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=first.count)
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise Refused(f"{file} cannot be read as a table: {error}. Mend it, or take it away.") from None


def _match(file: Path, rows: list[list[str]], keys: Mapping[str, str | None]) -> Table | None:
    header, body = rows[0], rows[1:]
    width = len(header)

    def find(value: str) -> str | None:
        return keys.get(value.strip().replace("\\", "/").removeprefix("./"))

    if any(find(value) for value in header):  # no header: its first row names an image
        header, body = [f"column {number}" for number in range(1, width + 1)], rows
    body = [row for row in body if len(row) == width]
    matched = [sum(find(row[column]) is not None for row in body) for column in range(width)]
    if width < 2 or not body or max(matched) < MIN_MATCHED * len(body):
        return None
    file_column = matched.index(max(matched))
    label_column = _label_column(file, header, file_column)
    labels: dict[str, str] = {}
    for row in body:
        image, label = find(row[file_column]), row[label_column].strip()
        if image is None:
            continue
        if not label:
            raise Refused(f"{file}: {image} has no label in the column {header[label_column]!r}.")
        if labels.setdefault(image, label) != label:
            raise Refused(
                f"{file}: {image} has two labels, {labels[image]!r} and {label!r}; an image has one class here."
            )
    return Table(file, header[file_column], header[label_column], labels, len(body) - max(matched))


def _label_column(file: Path, header: list[str], file_column: int) -> int:
    others = [column for column in range(len(header)) if column != file_column]
    if len(others) == 1:
        return others[0]
    for word in LABEL_COLUMNS:
        for column in others:
            if header[column].strip().lower().replace("_", "") == word:
                return column
    listed = ", ".join(repr(header[column]) for column in others[:12])
    raise Refused(
        f"{file} names the images by {header[file_column]!r} and has the columns {listed}; which of them is the label is a "
        f"guess. Leave two columns, file and label, or call one of them `label`."
    )
