"""What workers of this machine took from `scale.store`: each file once, checked, within `scale.cache_gb`."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from frostline.errors import Refused
from frostline.files import sha256_of
from frostline.process import held, is_held, locked
from frostline.search.depot import Depot

VARIABLE = "FROSTLINE_CACHE"


def cache_folder() -> Path:
    """`$FROSTLINE_CACHE`, else a folder in the user's cache."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frostline"


@dataclass(frozen=True)
class Cache:
    """Files of a depot on this machine, under their sha256, for any number of processes.

    Each process has a view, a folder of its own into which it links what it uses: what has a second link is in use, and is not
    removed. folder: where all of this lies; limit: bytes that it may hold; checked: what this process has hashed.
    """

    folder: Path
    limit: int
    depot: Depot
    checked: set[str] = field(default_factory=set)

    @contextmanager
    def open_view(self) -> Iterator[Path]:
        """A folder for `link`; it goes with the block, and where this process is killed, with the next one that looks."""
        view = self.folder / "views" / uuid4().hex
        with ExitStack() as stack:
            with self._locked():
                view.mkdir(parents=True)
                stack.enter_context(held(view / "lock", "this view"))
            stack.callback(self._remove, view)
            yield view

    def link(self, digest: str, size: int, target: Path) -> int:
        """Puts the file with this sha256 at `target`, in a view. Returns the bytes that were taken from the depot for it.

        Refused where the depot does not have that file, or files in use leave no room for it.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = self.folder / "files" / digest[:2] / digest
        with locked(kept.parent / "lock"):  # whoever wants the same file waits for whoever takes it
            with self._locked():
                if kept.is_file():
                    os.link(kept, target)
                    os.utime(kept)
            if target.is_file():
                if digest in self.checked or sha256_of(target) == digest:
                    self.checked.add(digest)
                    return 0
                print(f"cache: {kept} is damaged and is taken again", flush=True)
                with self._locked():
                    target.unlink()
                    kept.unlink()
            self._take(digest, size, target)
            with self._locked():
                os.link(target, kept)
            self.checked.add(digest)
            return size

    def _take(self, digest: str, size: int, target: Path) -> None:
        part = target.with_name(f".{target.name}.part")
        found = hashlib.sha256()
        with self._locked():
            self._make_room(size)
            with part.open("wb") as file:
                file.truncate(size)  # others count it from now on
        with part.open("r+b") as file:
            for block in self.depot.read(digest, size):
                found.update(block)
                file.write(block)
        with self._locked():
            if found.hexdigest() == digest:
                part.replace(target)
                return
            part.unlink()
        raise Refused(
            f"{self.depot.place(digest)} is damaged: its sha256 is {found.hexdigest()}. Remove it; `dvc repro tune` puts there what "
            "is missing when it starts."
        )

    def _make_room(self, size: int) -> None:
        """Removes what was used longest ago, and is not in use, until so many bytes more are within the limit."""
        for view in (self.folder / "views").iterdir():
            if not is_held(view / "lock"):
                shutil.rmtree(view)
        kept = [path for path in (self.folder / "files").glob("*/*") if path.name != "lock"]
        facts = {path: path.stat() for path in kept}
        parts = sum(path.stat().st_size for path in (self.folder / "views").rglob(".*.part"))
        room = self.limit - parts - sum(each.st_size for each in facts.values()) - size
        for path in sorted(kept, key=lambda path: facts[path].st_mtime_ns):
            if room < 0 and facts[path].st_nlink == 1:
                path.unlink()
                room += facts[path].st_size
        if room < 0:
            raise Refused(
                f"scale.cache_gb: {self.limit / 1e9:g} GB in {self.folder} are {-room / 1e9:.3g} GB less than what the workers of this "
                f"machine use at once. Raise it; {VARIABLE} may name another disk."
            )

    def _remove(self, view: Path) -> None:
        with self._locked():
            shutil.rmtree(view)

    def _locked(self) -> AbstractContextManager[None]:
        """All that moves, links or removes files is done one after the other."""
        return locked(self.folder / "lock")
