"""Where the stages write, and what lies there that they did not write: DVC empties an output before its stage runs."""

import configparser
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from frostline.files import COMPLETE, load_json, path_of
from frostline.images.survey import SOURCE_FILE
from frostline.params import Paths, load_lock
from frostline.process import RUNS, load_times

# Stage -> its outputs, as keys of `paths`.
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "fetch": ("raw", "base"),
    "prepare": ("prepared",),
    "augment": ("views",),
    "extract": ("features",),
    "tune": ("study",),
    "refit": ("refit",),
    "evaluate": ("evaluation",),
    "register": ("registration",),
}
# Written file by file: a stage that was killed leaves some of them. The others appear whole, under their name.
PIECEMEAL = ("study", "refit", "evaluation", "registration")
# The project's own, at its root; besides these, whatever has a name that begins with a dot.
OWN = frozenset(
    {
        *(
            "benchmarks",
            "deploy",
            "docs",
            "exports",
            "locks",
            "mlruns",
            "pipelines",
            "presets",
            "shared",
            "src",
            "studies",
            "tests",
        ),
        *(
            "changelog.md",
            "contributing.md",
            "decisions.csv",
            "license",
            "makefile",
            "readme.md",
            "dvc.yaml",
            "dvc.lock",
            "params.yaml",
            "pyproject.toml",
        ),
        *("dvc_plots", "tmp", "build", "dist"),
    }
)
LONGEST = 200  # file systems end at 255 bytes
ASIDE = Path(".frostline/aside")


def find_overlaps(paths: Paths, inputs: Mapping[str, str], root: Path) -> list[str]:
    """Problems of the places: an output out of the project or among its own files, within another, or across an input.

    inputs: key of `params.yaml` -> the path that stands there. Links are followed, so that no other name hides a place.
    """
    places = {f"paths.{name}": PurePosixPath(value) for name, value in paths.model_dump().items()}
    if problems := [problem for name, place in places.items() if (problem := _misplaced(name, place, root))]:
        return problems
    outputs = {name: root / place for name, place in places.items()} | {"the list of the source": root / SOURCE_FILE}
    ways = {name: _ways(output) for name, output in outputs.items()}
    given_ways = {key: _ways(path_of(given, root)) for key, given in inputs.items()}
    for name, output in outputs.items():
        for other, outer in outputs.items():
            if (
                name != other
                and _holds(ways[other], ways[name])
                and not (_holds(ways[name], ways[other]) and name > other)
            ):
                problems.append(
                    f"{name}: {_shown(output, root)!r} and {other} ({_shown(outer, root)!r}) overlap; DVC needs them apart"
                )
        for key, given in inputs.items():
            if _holds(ways[name], given_ways[key]) or _holds(given_ways[key], ways[name]):
                problems.append(
                    f"{key}: {given!r} overlaps with {name} ({_shown(output, root)!r}), which a stage empties before it writes: "
                    "what is yours there would be lost. Move it to a place of its own, and name that"
                )
    return problems


def find_strangers(paths: Paths, root: Path) -> dict[str, list[Path]]:
    """Key of `paths` -> the files in that output which no stage wrote: they would be lost when its stage runs.

    Ours is what DVC's cache holds, so that it can be brought back, and what a stage wrote while it ran.
    """
    cached = Cache(root)
    found = {}
    for stage, names in OUTPUTS.items():
        for name in names:
            output = root / getattr(paths, name)
            windows = _windows(stage, name, output, root)
            strangers = [
                Path(file.path)
                for file in _files_below(output)
                if not any(begun <= file.facts.st_mtime <= ended for begun, ended in windows)
                and not cached.holds(file, getattr(paths, name))
            ]
            if strangers:
                found[name] = strangers
    return found


def stranger_problems(paths: Paths, root: Path) -> list[str]:
    """One line for each output that holds somebody else's files; none where a killed stage may have left them."""
    return [
        f"paths.{name}: {getattr(paths, name)!r} holds {_count(files)} that Frostline did not write "
        f"({', '.join(_shown(file, root) for file in files[:3])}{' ...' if len(files) > 3 else ''}); its stage would delete "
        "them. Move them out; images and weights of yours belong into a folder of their own, named by fetch.source or "
        "base.weights"
        for name, files in find_strangers(paths, root).items()
        if not _was_killed(name, root)
    ]


def set_aside(paths: Paths, root: Path) -> list[str]:
    """Moves what a killed stage may have left in its output below `.frostline/aside`, and says so, a line for each output."""
    said = []
    for name, files in find_strangers(paths, root).items():
        output = root / getattr(paths, name)
        place = root / ASIDE / f"{name}-{max(int(file.stat().st_mtime) for file in files)}"
        for file in files:
            target = place / (file.relative_to(output) if file != output else file.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
        said.append(
            f"{getattr(paths, name)} held {_count(files)} of a run that was broken off, now in {_shown(place, root)}"
        )
    return said


def _misplaced(name: str, place: PurePosixPath, root: Path) -> str | None:
    if max(map(len, place.parts), default=0) > LONGEST:
        return f"{name}: a name of more than {LONGEST} characters; given was {str(place)[:40]!r}..."
    if place.is_absolute() or ".." in place.parts or place == PurePosixPath() or not str(place).isprintable():
        return f"{name}: must be a path below the project's root; given was {str(place)!r}"
    where = (root / place).resolve()
    parts = {place.parts[0]}
    if where.is_relative_to(root.resolve()) and where != root.resolve():
        parts.add(where.relative_to(root.resolve()).parts[0])
    for first in sorted(parts):
        if first.startswith((".", "~")) or first.casefold() in OWN or first.casefold().startswith("mlflow.db"):
            return f"{name}: {str(place)!r} lies among the project's own files ({first}), which a stage would empty; choose another"
    if root.resolve().is_relative_to(where):
        return f"{name}: {str(place)!r} leads to {where}, which holds the project itself; choose another"
    return None


def _ways(path: Path) -> tuple[str, str]:
    """How a place is reached: by its name, and by where links lead. In one case, which some systems do not tell apart."""
    return os.path.abspath(path).casefold(), str(path.resolve()).casefold()  # noqa: PTH100 (keeps the links)


def _holds(outer: tuple[str, str], inner: tuple[str, str]) -> bool:
    return any(b == a or b.startswith(a.rstrip("/") + "/") for a, b in zip(outer, inner, strict=True))


def _windows(stage: str, name: str, output: Path, root: Path) -> list[tuple[float, float]]:
    """The seconds in which `stage` ran here; where it did not come to its end, to its output's marker, or its last sign of life.

    Its last run that ended, those after it that did not, and the one that is under way.
    """
    marker = output / COMPLETE
    written = marker.stat().st_mtime if marker.is_file() else -1.0
    times = load_times(root / RUNS / f"{stage}.json")
    return [
        (each["begun"], each.get("ended", each.get("seen", 0.0) if name in PIECEMEAL else written)) for each in times
    ]


def _was_killed(name: str, root: Path) -> bool:
    """True where the stage of a piecemeal output began and did not end: what lies there is probably its own."""
    stage = next(stage for stage, names in OUTPUTS.items() if name in names)
    record = root / RUNS / f"{stage}.json"
    return name in PIECEMEAL and record.is_file() and "ended" not in load_json(record)


class _File(NamedTuple):
    """One file of an output: its name below it ("" where the output is a file), its path, and what the system says of it."""

    name: str
    path: str
    facts: os.stat_result


class Cache:
    """What DVC can bring back: the files that dvc.lock lists, and any other whose content lies in the cache."""

    def __init__(self, root: Path) -> None:
        config = configparser.ConfigParser(strict=False, interpolation=None)
        # As DVC reads them: of the machine, of the user, of the project, of this copy; the later one counts.
        of_machine = Path(os.environ.get("DVC_SYSTEM_CONFIG_DIR") or "/etc/xdg/dvc")
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        of_user = Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or home / "dvc")
        files = [of_machine / "config", of_user / "config", root / ".dvc" / "config", root / ".dvc" / "config.local"]
        config.read(files, encoding="utf-8")
        given = config.get("cache", "dir", fallback="cache").strip().strip('"')
        self.folder = root / ".dvc" / Path(given).expanduser() / "files" / "md5"
        self.locked = load_lock(root / "dvc.lock")
        self.listed: dict[str, dict[str, str]] = {}

    def holds(self, file: _File, name: str) -> bool:
        """Can this file of the output called `name` be lost without loss?"""
        if name not in self.listed:
            self.listed[name] = self.list_files(name)
        known = self.listed[name].get(file.name)
        # By its size: to hash what DVC linked here would read all features at every run.
        if known is not None and self._size(known) == file.facts.st_size:
            return True
        with Path(file.path).open("rb") as opened:
            md5 = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return self._size(md5) is not None

    def _size(self, md5: str) -> int | None:
        try:
            return os.stat(f"{self.folder}/{md5[:2]}/{md5[2:]}").st_size  # noqa: PTH116 (ten thousand files in a second)
        except FileNotFoundError:
            return None

    def list_files(self, name: str) -> dict[str, str]:
        """File below the output called `name` -> its md5, "" for an output that is a file; empty where DVC does not know it."""
        md5 = self.locked.get(PurePosixPath(name).as_posix(), "")
        listing = self.place(md5) if md5 else None
        if not md5.endswith(".dir"):
            return {"": md5} if md5 else {}
        if listing is None or not listing.is_file():
            return {}
        rows: list[dict[str, Any]] = json.loads(listing.read_text(encoding="utf-8"))
        return {row["relpath"]: row["md5"] for row in rows}

    def place(self, md5: str) -> Path:
        """Where the cache keeps a file."""
        return self.folder / md5[:2] / md5[2:]


def _files_below(output: Path) -> Iterator[_File]:
    if output.is_file():
        yield _File("", str(output), output.stat())
    pending = [(str(output), "")] if output.is_dir() else []
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    yield _File(prefix + entry.name, entry.path, entry.stat())


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _count(files: list[Path]) -> str:
    return f"{len(files)} file{'s' * (len(files) > 1)}"
