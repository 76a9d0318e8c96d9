"""What lies below a folder: its images, and what is skipped unopened, with the reason."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from frostline.errors import Refused
from frostline.images.names import is_image, is_junk, is_sidecar

FOLLOW = "set fetch.follow_links: true to follow it"


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


@dataclass
class Walk:
    """A reader of the folders below `root`, and what it met: `skipped` (path, reason), and the suffixes of `sidecars`.

    follow_links: also out of `root`; else only to files within it. encoding: of names that are not UTF-8, where known.
    """

    root: Path
    follow_links: bool = False
    encoding: str | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    sidecars: list[str] = field(default_factory=list)

    def children(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the files in `folder`, sorted, without junk."""
        folders: list[Path] = []
        files: list[Path] = []
        for child in sorted(folder.iterdir()):
            if not is_junk(child.name):
                (folders if child.is_dir() else files).append(child)
        return folders, files

    def has_images(self, folder: Path) -> bool:
        """Is there a file with the name of an image, at any depth?"""
        return any(is_image(name) for _, _, names in os.walk(folder) for name in names)

    def readable(self, name: str) -> str:
        """A name as text; Refused where its bytes are neither UTF-8 nor of the given encoding."""
        try:
            name.encode()
        except UnicodeEncodeError:
            raw = os.fsencode(name)
            if self.encoding is None:
                guess = raw.decode("cp1252", errors="replace")
                raise Refused(
                    f"{self.root} holds the name {raw!r}, which is not UTF-8 ({guess!r} if it is Western European). "
                    "Rename it, or set fetch.encoding to the encoding of these names, for instance cp1252, cp437 or gb18030."
                ) from None
            return decode_name(raw, self.encoding)
        return name

    def outer_links(self) -> list[Path]:
        """Where the links to folders below the root lead, first and second hand."""
        found = []
        for folder, names, _ in os.walk(self.root):
            found += [path.resolve() for name in names if (path := Path(folder) / name).is_symlink()]
        return found

    def read_class(self, folder: Path, split: str | None, class_name: str | None = None) -> Iterator[Entry]:
        """The readable files below one class folder, at any depth; what is no plain file is skipped, unopened."""
        label = self.readable(folder.name) if class_name is None else class_name
        pending = [(folder, "", frozenset[tuple[int, int]]())]
        while pending:
            current, prefix, above = pending.pop()
            if current.is_symlink() and not self.follow_links:
                self._skip(current, f"a link to the folder {os.readlink(current)}; {FOLLOW}")  # noqa: PTH115 (the text alone)
                continue
            facts = current.stat()
            if (facts.st_dev, facts.st_ino) in above:
                self._skip(current, "a link to a folder that it stands in")
                continue
            above = above | {(facts.st_dev, facts.st_ino)}
            with os.scandir(current) as listing:
                for item in listing:
                    if is_junk(item.name):
                        continue
                    if os.path.isdir(item.path):  # noqa: PTH112 (a link that leads to itself is no error)
                        pending.append((Path(item.path), f"{prefix}{item.name}/", above))
                    elif (entry := self.read_file(item.path, split, label, prefix + item.name)) is not None:
                        yield entry

    def read_file(self, path: str, split: str | None, class_name: str, name: str) -> Entry | None:
        """One file as an entry; None where it is no image by its name, or skipped."""
        if is_sidecar(path):
            self.sidecars.append(Path(path).suffix.lower())
            return None
        try:
            name.encode()
        except UnicodeEncodeError:
            if self.encoding is None:
                self._skip(Path(path), "the file name is not UTF-8; rename it, or set fetch.encoding")
                return None
            name = "/".join(self.readable(part) for part in name.split("/"))
        if reason := self._reason_to_skip(path):
            self._skip(Path(path), reason)
            return None
        return Entry(path, split, class_name, name)

    def _skip(self, path: Path, reason: str) -> None:
        name = str(path.relative_to(self.root)).encode(errors="replace").decode()
        self.skipped.append((name, reason.encode(errors="replace").decode()))

    def _reason_to_skip(self, path: str) -> str | None:
        if os.path.islink(path):  # noqa: PTH114 (ten thousand files in a second)
            try:
                target = Path(path).resolve(strict=True)
            except (OSError, RuntimeError):
                return "a broken link"
            if not self.follow_links and not target.is_relative_to(self.root.resolve()):
                return f"a link out of the folder; {FOLLOW}"
        mode = os.stat(path).st_mode  # noqa: PTH116
        if not stat.S_ISREG(mode):
            kinds = {
                stat.S_IFIFO: "a pipe",
                stat.S_IFSOCK: "a socket",
                stat.S_IFCHR: "a device",
                stat.S_IFBLK: "a device",
            }
            return f"{kinds.get(stat.S_IFMT(mode), 'a special file')}, not a plain file"
        return None


def decode_name(raw: bytes, encoding: str) -> str:
    """The bytes of a name as text; Refused where they are not of that encoding."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        raise Refused(f"The name {raw!r} is not {encoding}. Set fetch.encoding to what it is, or rename it.") from None
