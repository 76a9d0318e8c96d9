"""Class folders: how a tree of pictures is understood, and copied without following anything out of it."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frostline.errors import Refused

# How people name a split's folder -> our name below `data/raw`.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini", "complete.json", "$RECYCLE.BIN", "System Volume Information"}
_DRAWING = """Expected one folder per class,
    pictures/cats/1.jpg        or    pictures/train/cats/1.jpg
    pictures/dogs/2.jpg              pictures/validation/cats/2.jpg
                                     pictures/test/cats/3.jpg (validation and test may be missing)"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a class: where it is, and where it belongs. `name` is its path below the class folder."""

    path: str
    split: str | None
    class_name: str
    name: str

    @property
    def image_id(self) -> str:
        """The file's path below `data/raw`, with forward slashes."""
        return "/".join(part for part in (self.split, self.class_name, self.name) if part)


@dataclass(frozen=True)
class Layout:
    """What a folder of pictures holds.

    splits: () where the folder is not split; classes: sorted as a person would ("9" before "10"); skipped: (path below
    the root, reason) of what cannot be read safely; notes: what a user should be told.
    """

    root: Path
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def find_layout(root: Path, *, follow_links: bool = False) -> Layout:
    """The class folders below `root`, with or without splits; wrapping folders are unwrapped, junk is ignored.

    Links are followed only to files within `root`, unless `follow_links` (for folders that DVC filled). Raises Refused,
    with the expected layout drawn, where there are no class folders, or an empty or misplaced one.
    """
    if not root.is_dir():
        raise Refused(f"{root} is not a folder.")
    boundary = None if follow_links else root.resolve()
    notes: list[str] = []
    skipped: list[tuple[str, str]] = []
    folders, files = _children(root)
    while len(folders) == 1 and not _files_are_pictures(files) and _children(folders[0])[0]:
        notes.append(f"the single folder {folders[0].name!r} was unwrapped")
        folders, files = _children(folders[0])
    if not folders:
        found = f"{len(files)} files and no folder" if files else "nothing"
        raise Refused(f"{root} holds {found}. {_DRAWING}")
    if files:
        notes.append(f"{len(files)} files beside the class folders were left out: {_some(file.name for file in files)}")
    split_folders = _find_splits(root, folders)
    if split_folders:
        classes, entries = _read_splits(root, split_folders, boundary, skipped)
    else:
        classes = {folder.name for folder in folders}
        entries = [entry for folder in folders for entry in _read_class(root, folder, None, boundary, skipped)]
        _refuse_empty(root, classes, {entry.class_name for entry in entries}, "")
    notes += _collisions(classes)
    entries.sort(key=lambda entry: entry.image_id)
    ordered = tuple(sorted(classes, key=natural_key))
    splits = tuple(name for name in ("train", "validation", "test") if name in split_folders)
    return Layout(root, splits, ordered, tuple(entries), tuple(sorted(skipped)), tuple(notes))


def copy_layout(layout: Layout, destination: Path, *, move: bool = False) -> None:
    """Copies the entries to `destination/[split/]class/name`; `move` renames them, for files that we unpacked ourselves.

    Never links: a later stage or a user could then change the source through our folder. Checks the disk first.
    """
    destination.mkdir(parents=True, exist_ok=True)
    if not move:
        require_space(destination, sum(os.stat(entry.path).st_size for entry in layout.entries))  # noqa: PTH116
    for entry in layout.entries:
        target = destination / entry.image_id
        target.parent.mkdir(parents=True, exist_ok=True)
        if move:
            Path(entry.path).replace(target)
        else:
            shutil.copyfile(entry.path, target)


def require_space(folder: Path, needed: int) -> None:
    """Raises Refused unless the disk of `folder` has `needed` bytes and a margin of 1 % of them and 64 MB free."""
    free = shutil.disk_usage(folder).free
    if needed * 1.01 + 64e6 > free:
        raise Refused(
            f"{folder.absolute()} has {free / 1e9:.2f} GB free; {needed / 1e9:.2f} GB are needed. Free some space and run again."
        )


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts "class 9" before "class 10"."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for character in [*text, ""]:
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((0, int(digits[:300]), digits))
            digits = ""
        if character:
            parts.append((1, ord(character), ""))
    return tuple(parts)


def _files_are_pictures(files: list[Path]) -> bool:
    """True if some file has the name of a picture: then its folder is a class, not a wrapper."""
    return any(
        file.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
        for file in files
    )


def _children(folder: Path) -> tuple[list[Path], list[Path]]:
    folders: list[Path] = []
    files: list[Path] = []
    for child in sorted(folder.iterdir()):
        if child.name in _JUNK or child.name.startswith("."):
            continue
        (folders if child.is_dir() else files).append(child)
    return folders, files


def _find_splits(root: Path, folders: list[Path]) -> dict[str, list[Path]]:
    """Split -> its folders, or {} where the folders are classes."""
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES and _children(folder)[0]]
    if not named:
        return {}
    if len(named) < len(folders):
        others = [folder.name for folder in folders if folder not in named]
        raise Refused(
            f"{root} has split folders ({_some(folder.name for folder in named)}) beside others ({_some(others)}). {_DRAWING}"
        )
    splits: dict[str, list[Path]] = {}
    for folder in named:
        splits.setdefault(SPLIT_NAMES[folder.name.lower()], []).append(folder)
    doubled = [folder.name for group in splits.values() if len(group) > 1 for folder in group]
    if doubled:
        raise Refused(f"{root} has several folders for one split: {_some(doubled)}. Keep one of them.")
    if "train" not in splits:
        raise Refused(f"{root} has {_some(folder.name for folder in named)} but no `train`. {_DRAWING}")
    return splits


def _read_splits(
    root: Path, splits: dict[str, list[Path]], boundary: Path | None, skipped: list[tuple[str, str]]
) -> tuple[set[str], list[Entry]]:
    entries: list[Entry] = []
    classes = {folder.name for folder in _children(splits["train"][0])[0]}
    for split, (split_folder,) in splits.items():
        folders, _ = _children(split_folder)
        names = {folder.name for folder in folders}
        if names != classes:
            odd = sorted(names ^ classes)
            raise Refused(
                f"{split_folder} and {splits['train'][0]} differ in their classes: {_some(odd)} is in one of them only."
            )
        found = [entry for folder in folders for entry in _read_class(root, folder, split, boundary, skipped)]
        _refuse_empty(root, classes, {entry.class_name for entry in found}, f"{split_folder.name}/")
        entries += found
    return classes, entries


def _refuse_empty(root: Path, classes: set[str], filled: set[str], prefix: str) -> None:
    empty = sorted(classes - filled)
    if empty:
        names = _some(prefix + name for name in empty)
        raise Refused(f"{root} has class folders without a file: {names}. Fill them or remove them.")


def _read_class(
    root: Path, folder: Path, split: str | None, boundary: Path | None, skipped: list[tuple[str, str]]
) -> Iterator[Entry]:
    """The readable files below one class folder, at any depth; what is no plain file goes to `skipped`, unopened."""
    pending = [(folder, "")]
    while pending:
        current, prefix = pending.pop()
        if current.is_symlink() and boundary is not None:
            skipped.append((str(current.relative_to(root)), "a link to a folder; links to folders are not followed"))
            continue
        with os.scandir(current) as listing:
            for item in listing:
                if item.name in _JUNK or item.name.startswith("."):
                    continue
                if item.is_dir(follow_symlinks=boundary is None):
                    pending.append((Path(item.path), f"{prefix}{item.name}/"))
                    continue
                reason = _reason_to_skip(item, boundary)
                if reason:
                    skipped.append((str(Path(item.path).relative_to(root)).encode(errors="replace").decode(), reason))
                else:
                    yield Entry(item.path, split, folder.name, prefix + item.name)


def _reason_to_skip(item: "os.DirEntry[str]", boundary: Path | None) -> str | None:
    try:
        item.path.encode()
    except UnicodeEncodeError:
        return "the file name is not valid UTF-8"
    path = Path(item.path)
    if item.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            return "a broken link"
        if boundary is not None and not target.is_relative_to(boundary):
            return "a link out of the folder, not followed"
        if target.is_dir():
            return "a link to a folder; links to folders are not followed"
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        return f"{kinds.get(stat.S_IFMT(mode), 'a special file')}, not a plain file"
    return None


def _collisions(classes: set[str]) -> list[str]:
    import unicodedata

    seen: dict[str, str] = {}
    notes = []
    for name in sorted(classes):
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            notes.append(
                f"the classes {seen[key]!r} and {name!r} differ only in case or Unicode form; they stay two classes"
            )
        seen[key] = name
    return notes


def _some(names: object, limit: int = 8) -> str:
    listed = [str(name) for name in names]  # type: ignore[attr-defined]
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
