"""Two lists of prepared images compared: what was added, removed, relabelled, moved to another split or renamed."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from frostline.files import replacing

MANIFEST = "manifest.csv"  # that `prepare` writes
COLUMNS = ("change", "image_id", "before", "after")


@dataclass(frozen=True)
class Listed:
    """One image of a manifest; sha256: of its file."""

    image_id: str
    class_name: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Changes:
    """What became of the images of a manifest in a later one. An image is its file's bytes, whatever it is called.

    before, after: how many there are; added and removed; relabelled, moved (to another split) and renamed: as before and
    as after. One image may be in several of these three.
    """

    before: int
    after: int
    added: tuple[Listed, ...]
    removed: tuple[Listed, ...]
    relabelled: tuple[tuple[Listed, Listed], ...]
    moved: tuple[tuple[Listed, Listed], ...]
    renamed: tuple[tuple[Listed, Listed], ...]

    def __bool__(self) -> bool:
        return any((self.added, self.removed, self.relabelled, self.moved, self.renamed))

    def describe(self) -> str:
        """One sentence, by class."""
        if not self:
            return f"the same {self.after} images"
        parts = [f"{self.after} images, {self.before} before"]
        for word, images in (("added", self.added), ("removed", self.removed)):
            if images:
                parts.append(f"{len(images)} {word} ({_count(images, lambda image: image.class_name)})")
        for word, pairs, of in (
            ("relabelled", self.relabelled, lambda image: image.class_name),
            ("in another split", self.moved, lambda image: image.split),
        ):
            if pairs:
                ways = Counter(f"{of(before)} to {of(after)}" for before, after in pairs)
                parts.append(f"{len(pairs)} {word} ({', '.join(f'{way} {number}' for way, number in ways.items())})")
        if self.renamed:
            parts.append(f"{len(self.renamed)} renamed")
        return "; ".join(parts)

    def save(self, path: Path) -> None:
        """Writes all names as CSV: change, image_id, before, after."""
        rows = [("added", image.image_id, "", f"{image.split} {image.class_name}") for image in self.added]
        rows += [("removed", image.image_id, f"{image.split} {image.class_name}", "") for image in self.removed]
        rows += [("relabelled", new.image_id, old.class_name, new.class_name) for old, new in self.relabelled]
        rows += [("moved", new.image_id, old.split, new.split) for old, new in self.moved]
        rows += [("renamed", new.image_id, old.image_id, new.image_id) for old, new in self.renamed]
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)


def read_manifest(text: str) -> list[Listed]:
    """The images of a manifest, in its order."""
    names = Listed.__dataclass_fields__
    return [Listed(**{name: row[name] for name in names}) for row in csv.DictReader(io.StringIO(text))]


def compare_manifests(before: Sequence[Listed], after: Sequence[Listed]) -> Changes:
    """What changed from one to the other; of files with the same bytes the same number is paired, in their order."""
    left: dict[str, list[Listed]] = {}
    for image in before:
        left.setdefault(image.sha256, []).append(image)
    pairs, added = [], []
    for image in after:
        same = left.get(image.sha256)
        if not same:
            added.append(image)
            continue
        # Of copies in several splits, the one that stands where it stood.
        pairs.append((same.pop(next((i for i, old in enumerate(same) if old.split == image.split), 0)), image))
    removed = [image for images in left.values() for image in images]

    def changed(of: Callable[[Listed], str]) -> tuple[tuple[Listed, Listed], ...]:
        return tuple(pair for pair in pairs if of(pair[0]) != of(pair[1]))

    return Changes(
        before=len(before),
        after=len(after),
        added=tuple(added),
        removed=tuple(removed),
        relabelled=changed(lambda image: image.class_name),
        moved=changed(lambda image: image.split),
        renamed=changed(lambda image: Path(image.image_id).name),
    )


def _count(images: Iterable[Listed], of: Callable[[Listed], str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in Counter(map(of, images)).items())
