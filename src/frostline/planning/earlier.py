"""Outputs of earlier runs, kept as hard links beside the work of stages, which find in them the rows that they need not make."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from frostline.arrays import DIGESTS
from frostline.files import COMPLETE, size_of
from frostline.images.manifest import MANIFEST, Changes, compare_manifests, read_manifest
from frostline.images.rows import RECIPE
from frostline.process import locked

# Below the project's root. A link takes no bytes as long as the output or DVC's cache holds the same file.
EARLIER = Path(".frostline/earlier")


def list_earlier(output: str, root: Path) -> list[Path]:
    """The folders that are kept of this output, the one that was there last first. They are read, never written."""
    place = _place(output, root)
    folders = [folder for folder in place.iterdir() if not folder.name.startswith(".")] if place.is_dir() else []
    return sorted(folders, key=lambda folder: (-folder.stat().st_mtime_ns, folder.name))


def keep_outputs(outputs: Iterable[str], root: Path, limit_gb: float) -> list[str]:
    """Links what now lies in these outputs, before DVC removes it, and drops the oldest until `limit_gb` hold the rest.

    outputs: from here; root: the project's, below which they are kept. Returns a line where something could not be kept, or
    was dropped. Killed in between, nothing is half there.
    """
    said = []
    with locked(root / EARLIER / ".lock"):
        for left in (root / EARLIER).glob("*/.*"):  # of a process that was killed
            shutil.rmtree(left)
        for output in outputs:
            if (Path(output) / COMPLETE).is_file() and (Path(output) / RECIPE).is_file():
                try:
                    _keep(Path(output), _place(output, root))
                except OSError as error:
                    said.append(f"{output} is not kept, so the next run makes all of its rows again: {error.strerror}")
        return said + _drop_oldest(root, limit_gb * 1e9)


def _keep(folder: Path, place: Path) -> None:
    kept = place / _digest_output(folder)
    if kept.is_dir():
        os.utime(kept)
        return
    unfinished = place / f".{kept.name}"
    shutil.copytree(folder, unfinished, copy_function=_link)
    os.utime(unfinished)
    unfinished.replace(kept)


def changes_since(prepared: Path, root: Path) -> Changes | None:
    """What changed among the images from the last run that is kept to this output of `prepare`; None where none is kept."""
    before = list_earlier(prepared.as_posix(), root)
    if not before or not (prepared / MANIFEST).is_file():
        return None
    return compare_manifests(*(read_manifest((place / MANIFEST).read_text("utf-8")) for place in (before[0], prepared)))


def kept_folders(root: Path) -> list[tuple[Path, int]]:
    """Every kept output and its bytes, the one that was used last first."""
    folders = [folder for folder in (root / EARLIER).glob("*/*") if not folder.name.startswith(".")]
    newest = sorted(folders, key=lambda folder: (-folder.stat().st_mtime_ns, folder.name))
    return [(folder, size_of(folder)) for folder in newest]


def remove_kept(folder: Path) -> None:
    """Removes a kept output; broken off, what is left of it is no output any more."""
    going = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(going, ignore_errors=True)
    folder.replace(going)
    shutil.rmtree(going)


def _drop_oldest(root: Path, limit: float) -> list[str]:
    total, said = 0, []
    for folder, size in kept_folders(root):
        total += size
        if total > limit:
            remove_kept(folder)
            total -= size
            said.append(
                f"dropped an earlier {folder.parent.name} of {size / 1e9:.2f} GB, to stay within storage.kept_gb"
            )
    return said


def _place(output: str, root: Path) -> Path:
    return root / EARLIER / output.replace("/", "-")


def _link(source: str, target: str) -> None:
    os.link(Path(source).resolve(), target)  # of a link, DVC's for one, the file that it leads to


def _digest_output(folder: Path) -> str:
    """Names what an output holds, by its records and the digests of its rows."""
    small = [path for path in folder.rglob("*") if path.suffix == ".json" or DIGESTS in path.relative_to(folder).parts]
    digest = hashlib.sha256()
    for path in sorted(path for path in small if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
