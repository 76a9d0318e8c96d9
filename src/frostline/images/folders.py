"""Class folders: how a tree of images is understood, and copied without following anything out of it."""

import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from frostline.errors import Refused, some
from frostline.files import COMPLETE, load_json
from frostline.images.labels import Table, class_of, find_table
from frostline.images.names import BESIDE, IMAGES, MASKS, SPLIT_NAMES, is_image, is_unlabelled, split_of
from frostline.images.walk import Entry, Walk

SPLITS = ("train", "validation", "test")
_DRAWING = """Expected one folder per class,
    images/cats/1.jpg        or    images/train/cats/1.jpg
    images/dogs/2.jpg              images/validation/cats/2.jpg
                                     images/test/cats/3.jpg (validation and test may be missing)
or one folder of images with a table `file,label` beside it, labels.csv."""
# `cat.1.jpg`, as a well-known set has them. With "_" it could as well be a camera's IMG_1.jpg.
_CLASS_IN_NAME = re.compile(r"([A-Za-z][A-Za-z _-]*)\.\d+\.\w+")


@dataclass(frozen=True)
class Layout:
    """What a folder of images holds.

    splits: () where the folder is not split; classes: sorted as a person would ("9" before "10"); skipped: (path below
    the root, reason) of what cannot be read safely; notes: what a user should be told; tables: files that the layout
    was read from besides the images.
    """

    root: Path
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    tables: tuple[Path, ...] = ()


def find_layout(root: Path, *, follow_links: bool = False, encoding: str | None = None) -> Layout:
    """The classes below `root`, with or without splits; wrapping folders are unwrapped, junk is ignored.

    Every guess is a note. Links are followed only to files within `root`, unless `follow_links`. Raises Refused, with
    what was seen and the expected layouts drawn, for a folder that can be read in several ways or none.
    """
    if not root.is_dir():
        raise Refused(f"{root} is not a folder.")
    walk, notes = Walk(root, follow_links, encoding), list[str]()
    top, folders, files = _unwrap(root, walk, notes)
    entries, tables = _read(top, folders, files, walk, notes)
    used = {entry.path for entry in entries}
    if files := [file for file in files if file not in tables and str(file) not in used]:
        notes.append(f"{len(files)} files beside the class folders were left out: {some(file.name for file in files)}")
    return _make(root, entries, walk, notes, tables)


def read_layout(raw: Path, splits: Sequence[str] | None = None) -> Layout:
    """The layout of a folder that `fetch` wrote, without a guess: `splits` as given, or as its marker says."""
    marker = raw / COMPLETE
    if splits is None and marker.is_file():
        splits = load_json(marker).get("splits")
    if splits is None:
        return find_layout(raw, follow_links=True)
    walk = Walk(raw, follow_links=True)  # DVC may link what it keeps
    entries = [
        entry
        for parent, split in ([(raw / name, name) for name in splits] if splits else [(raw, None)])
        for folder in walk.children(parent)[0]
        for entry in walk.read_class(folder, split)
    ]
    return _make(raw, entries, walk, [], ())


def _make(root: Path, entries: Sequence[Entry], walk: Walk, notes: list[str], tables: Sequence[Path]) -> Layout:
    if walk.sidecars:
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in Counter(walk.sidecars).most_common(6))
        notes.append(f"{len(walk.sidecars)} files that are no images by their names were left out: {kinds}")
    classes = {entry.class_name for entry in entries}
    return Layout(
        root,
        tuple(split for split in SPLITS if any(entry.split == split for entry in entries)),
        tuple(sorted(classes, key=natural_key)),
        tuple(sorted(entries, key=lambda entry: entry.image_id)),
        tuple(sorted(walk.skipped)),
        (*notes, *_collisions(classes)),
        tuple(tables),
    )


def _unwrap(root: Path, walk: Walk, notes: list[str]) -> tuple[Path, list[Path], list[Path]]:
    """The folder where the layout begins, its folders and its files; what stands beside the images is left out."""
    top, (folders, files) = root, walk.children(root)
    while True:
        beside = [folder for folder in folders if folder.name.casefold() in BESIDE and not walk.has_images(folder)]
        if beside and len(beside) < len(folders):
            notes.append(f"folders without images were left out: {some(folder.name for folder in beside)}")
            folders = [folder for folder in folders if folder not in beside]
        if len(folders) != 1 or any(is_image(file.name) for file in files):
            break
        within, _ = walk.children(folders[0])
        if not within or (folders[0].is_symlink() and not walk.follow_links):
            break
        notes.append(f"the single folder {folders[0].name!r} was unwrapped")
        top, (folders, files) = folders[0], walk.children(folders[0])
    if not folders and not any(is_image(file.name) for file in files):
        raise Refused(f"{root} holds {f'{len(files)} files and no folder' if files else 'nothing'}. {_DRAWING}")
    return top, folders, files


def _read(
    top: Path, folders: list[Path], files: list[Path], walk: Walk, notes: list[str]
) -> tuple[list[Entry], tuple[Path, ...]]:
    """The entries, and the tables that they were read from."""
    flat = {folder: images for folder in folders if (images := _flat_images(folder, walk))}
    own = [file for file in files if is_image(file.name)]
    named = {folder: split for folder in folders if (split := split_of(folder.name))}
    is_split_like = bool(named) and all(folder in named or is_unlabelled(folder.name) for folder in folders)
    if (
        own
        or len(flat) == len(folders) == 1
        or (is_split_like and set(named.values()) - {"train"} and _train_is_flat(named, flat))
    ):
        return _read_flat(top, own, flat, files, walk, notes)
    if is_split_like and any(walk.children(folder)[0] for folder in named):
        return _read_splits(top, folders, named, walk, notes), ()
    if named and any(folder.name.lower() in SPLIT_NAMES and walk.children(folder)[0] for folder in folders):
        others = [folder.name for folder in folders if folder not in named]
        raise Refused(
            f"{top} has split folders ({some(folder.name for folder in named)}) beside others ({some(others)}). {_DRAWING}"
        )
    if inner := _inner_splits(folders, walk):
        notes.append(
            f"each class folder holds the splits {some(sorted(inner))}: they were taken for the splits of all classes"
        )
        return _read_inner(top, folders, walk), ()
    return _read_classes(top, folders, walk, notes), ()


def _train_is_flat(named: dict[Path, str], flat: dict[Path, list[Path]]) -> bool:
    return any(split == "train" and folder in flat for folder, split in named.items())


def _flat_images(folder: Path, walk: Walk) -> list[Path]:
    """The images of a folder that holds no folder, but for one of its own split's name (test/test); [] where it holds some."""
    folders, files = walk.children(folder)
    while (
        len(folders) == 1
        and not any(is_image(file.name) for file in files)
        and split_of(folder.name) is not None
        and split_of(folders[0].name) == split_of(folder.name)
    ):
        folder = folders[0]
        folders, files = walk.children(folder)
    return [] if folders else [file for file in files if is_image(file.name)]


def _read_flat(
    top: Path, own: list[Path], flat: dict[Path, list[Path]], files: list[Path], walk: Walk, notes: list[str]
) -> tuple[list[Entry], tuple[Path, ...]]:
    """Images without class folders: their labels stand in a table, or in names such as `cat.1.jpg`; else refused."""
    train = [folder for folder in flat if split_of(folder.name) == "train"]
    # A name alone, 1.jpg, may stand in `train` and in `test`: the reading that leaves fewer rows over is right.
    sets = [[file for group in flat.values() for file in group], [file for folder in train for file in flat[folder]]]
    read = []
    for chosen in sets:
        named = {file.relative_to(top).as_posix(): file for file in [*own, *chosen]}
        if table := find_table(files, named):
            read.append((table, named))
    if read:
        table, named = min(read, key=lambda pair: pair[0].unmatched)
        return _read_table(top, named, table, walk, notes), (table.file,)
    candidates = own or [file for folder in (train or flat) for file in flat[folder]]
    matches = {file: match[1] for file in candidates if (match := _CLASS_IN_NAME.fullmatch(file.name))}
    counts = Counter(matches.values())
    if len(matches) == len(candidates) and len(counts) >= 2 and min(counts.values()) >= 2:
        notes.append(
            "the classes were read from file names such as "
            + ", ".join(
                f"{next(file for file in matches if matches[file] == name).name} ({name})"
                for name in sorted(counts)[:4]
            )
        )
        if others := [folder for folder in flat if folder not in train]:
            notes.append(
                f"images without labels were left out: {some(_seen(folder, flat[folder]) for folder in others)}"
            )
        found = [walk.read_file(str(file), None, name, file.name) for file, name in matches.items()]
        return [entry for entry in found if entry], ()
    seen = [f"{len(own)} images in itself"] if own else []
    seen += [_seen(folder, images) for folder, images in flat.items()]
    listed = [file.name for file in files if file not in own]
    if len(flat) == 1 and not own and not listed:
        (folder,) = flat
        raise Refused(
            f"{top} holds one folder of images, {folder.name!r}: that is one class, and at least 2 are needed. {_DRAWING}"
        )
    raise Refused(
        f"{top} holds {some(seen)}{f' and the files {some(listed)}' if listed else ''}: images without class folders, so "
        f"that their classes are not known. {_DRAWING}"
    )


def _read_table(top: Path, images: dict[str, Path], table: Table, walk: Walk, notes: list[str]) -> list[Entry]:
    splits = {name: split_of(file.parent.name) if file.parent != top else None for name, file in images.items()}
    is_split = len({splits[name] for name in table.labels}) > 1 and all(splits[name] for name in table.labels)
    names = Counter(PurePosixPath(name).name for name in table.labels)
    entries = []
    for name, label in table.labels.items():
        short = PurePosixPath(name).name
        entry = walk.read_file(
            str(images[name]),
            splits[name] if is_split else None,
            class_of(label),
            short if names[short] == 1 else name.replace("/", "_"),
        )
        entries += [entry] if entry else []
    without = len(images) - len(table.labels)
    notes.append(
        f"the classes were read from {table.file.name}, column {table.label_column!r}, for the files in its column "
        f"{table.file_column!r}: {len(table.labels)} images"
        + (f"; {without} images without a row were left out" if without else "")
        + (f"; {table.unmatched} rows name no image" if table.unmatched else "")
    )
    return entries


def _seen(folder: Path, images: Sequence[Path]) -> str:
    return f"{folder.name}/ ({len(images)} images, no folder)"


def _read_splits(top: Path, folders: list[Path], named: dict[Path, str], walk: Walk, notes: list[str]) -> list[Entry]:
    splits: dict[str, Path] = {}
    odd = [folder for folder in named if folder.name.lower() not in SPLIT_NAMES]
    for folder, split in named.items():
        if split in splits:
            raise Refused(
                f"{top} has several folders for one split: {some([splits[split].name, folder.name])}. Keep one of them."
            )
        splits[split] = folder
    if "train" not in splits:
        raise Refused(f"{top} has {some(folder.name for folder in named)} but no `train`. {_DRAWING}")
    if odd:
        notes.append(f"taken for splits by their names: {some(f'{folder.name} ({named[folder]})' for folder in odd)}")
    aside = [folder for folder in folders if folder not in named]
    for split, folder in list(splits.items()):
        if split != "train" and (not walk.children(folder)[0] or _flat_images(folder, walk)):
            aside.append(splits.pop(split))
    if aside:
        notes.append(
            f"images without class folders were left out, because they have no labels: {some(folder.name for folder in aside)}"
        )
    for split, folder in splits.items():
        within, _ = walk.children(folder)
        while len(within) == 1 and walk.children(within[0])[0]:
            notes.append(f"the single folder {within[0].name!r} in {folder.name!r} was unwrapped")
            folder = within[0]
            within, _ = walk.children(folder)
        splits[split] = folder
    classes = {folder.name for folder in walk.children(splits["train"])[0]}
    entries: list[Entry] = []
    for split, place in splits.items():
        within, _ = walk.children(place)
        if differing := sorted({folder.name for folder in within} ^ classes):
            raise Refused(
                f"{place} and {splits['train']} differ in their classes: {some(differing)} is in one of them only."
            )
        entries += _read_all(top, within, split, walk, f"{place.name}/")
    return entries


def _inner_splits(folders: list[Path], walk: Walk) -> set[str]:
    """The splits that each class folder holds; empty where they do not all hold `train` and another one."""
    kinds = []
    for folder in folders:
        within, files = walk.children(folder)
        names = {SPLIT_NAMES.get(child.name.lower(), "") for child in within}
        if "" in names or "train" not in names or len(names) < 2 or any(is_image(file.name) for file in files):
            return set()
        kinds.append(names)
    return set.intersection(*kinds) if len(kinds) > 1 else set()


def _read_inner(top: Path, folders: list[Path], walk: Walk) -> list[Entry]:
    entries = []
    for folder in folders:
        for inner in walk.children(folder)[0]:
            found = list(walk.read_class(inner, SPLIT_NAMES[inner.name.lower()], walk.readable(folder.name)))
            if not found:
                _refuse_empty(top, [f"{folder.name}/{inner.name}"], walk)
            entries += found
    return entries


def _read_classes(top: Path, folders: list[Path], walk: Walk, notes: list[str]) -> list[Entry]:
    names = {folder.name.casefold() for folder in folders}
    if len(folders) == 2 and names & IMAGES and names & MASKS - IMAGES:
        raise Refused(
            f"{top} holds {some(folder.name for folder in folders)}: images and what belongs to them, no classes. {_DRAWING}"
        )
    within = {
        folder: [child.name for child in walk.children(folder)[0]]
        for folder in folders
        if not _flat_images(folder, walk)
    }
    nested = [folder for folder, children in within.items() if children and not _direct_images(folder, walk)]
    sets = {tuple(within[folder]) for folder in nested}
    if len(folders) == len(nested) > 1 and len(sets) == 1 and len(next(iter(sets))) > 1:
        raise Refused(
            f"{top} holds {some(folder.name for folder in folders)}, and each of them the folders {some(next(iter(sets)))}: which of "
            f"the two levels are the classes is a guess. {_DRAWING}"
        )
    if nested:
        shown = some((f"{folder.name}/{within[folder][0]}" for folder in nested), 4)
        notes.append(f"folders within class folders were read as part of their class: {shown}")
    if words := [folder.name for folder in folders if split_of(folder.name)]:
        if len(words) > 1:
            raise Refused(
                f"{top} holds {some(folder.name for folder in folders)}; {some(words)} are named like splits and hold images "
                f"without class folders. {_DRAWING}"
            )
        notes.append(
            f"the folder {words[0]!r} was taken for a class, because it stands beside {len(folders) - 1} others"
        )
    return _read_all(top, folders, None, walk, "")


def _direct_images(folder: Path, walk: Walk) -> bool:
    return any(is_image(file.name) for file in walk.children(folder)[1])


def _read_all(top: Path, folders: list[Path], split: str | None, walk: Walk, prefix: str) -> list[Entry]:
    """The entries of class folders; Refused where one holds no image."""
    entries: list[Entry] = []
    empty = []
    for folder in folders:
        found = list(walk.read_class(folder, split))
        entries += found
        if not found:
            empty.append(prefix + folder.name)
    if empty:
        _refuse_empty(top, empty, walk)
    return entries


def _refuse_empty(root: Path, names: list[str], walk: Walk) -> None:
    ends = [name.split("/")[-1] for name in names]
    reasons = [f"{path}: {reason}" for path, reason in walk.skipped if any(end in path.split("/") for end in ends)]
    why = f" ({some(reasons, 3)})" if reasons else ""
    raise Refused(f"{root} has class folders without an image: {some(names)}{why}. Fill them or remove them.")


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


def _collisions(classes: set[str]) -> list[str]:
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
