"""What a run costs after the images or the params changed, beside a run from nothing of the same state.

    python benchmarks/changes.py [--shared ../shared | --generated 20000] [--images 2000] [--until register] [--json FILE] [--write]

Two projects on this code, on copies of the same images (cats_vs_dogs, or generated ones). One goes through the changes, one
after the other, by `dvc repro`; the other begins from nothing each time. A stage's seconds are those between DVC's lines,
so that its start and DVC's own work are in them. `share`: of the rows of features that had to be made. One JSON line a
change. Where `--beside` leaves a change out, nothing is run beside it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from results import Lines, add_options, draw_table, keep
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES = ("prepare", "augment", "extract", "tune", "refit", "evaluate", "register")
ROWS = STAGES[:3]  # the stages whose outputs are rows
NEW = re.compile(r"extract: \S+ \(\d+/\d+\)(?:: (\d+) of (\d+) rows are new)?, ")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shared", type=Path, default=Path("../shared"))
    arguments.add_argument("--generated", type=int, default=0, help="so many generated images instead of cats_vs_dogs")
    arguments.add_argument("--images", type=int, default=2000, help="of cats_vs_dogs, in the first run")
    arguments.add_argument("--image-size", type=int, default=96)
    arguments.add_argument("--trials", type=int, default=10)
    arguments.add_argument("--until", default="extract", help="the last stage that both projects run")
    arguments.add_argument("--changes", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    arguments.add_argument("--beside", nargs="*", default=list(CHANGES), choices=list(CHANGES))
    add_options(arguments)
    given = arguments.parse_args()
    lines: Lines = []
    with tempfile.TemporaryDirectory(prefix="changes-") as folder:
        for line in measure(Path(folder), given):
            print(json.dumps(line), flush=True)
            lines.append(line)
    name = "changes" + ("-generated" if given.generated else "") + ("-whole" if given.until == STAGES[-1] else "")
    keep(name, lines, given, make_table)


def make_table(lines: Lines) -> str:
    """A row for each change: seconds of both projects, stage by stage, and what the changed one weighs."""
    stages = [stage for stage in STAGES if any(stage in line["seconds"] for line in lines)]
    rows = []
    for line in lines:
        pairs = [_pair(line, [stage]) for stage in stages]
        weighs = [f"{line['gigabytes'][place]:.2f}" for place in ("features", "project")]
        together = f"**{_pair(line, ROWS)}**"
        rows.append([line["change"], f"{line['share']:.1%}", *pairs, together, _pair(line, None), *weighs])
    return draw_table(["change", "rows made", *stages, "rows together", "all", "features, GB", "project, GB"], rows)


def _pair(line: dict[str, Any], stages: Sequence[str] | None) -> str:
    """Seconds of these stages (None: of everything) after the change and from nothing."""

    def add_up(seconds: dict[str, float]) -> str:
        if not seconds:
            return "–"
        return f"{sum(took for stage, took in seconds.items() if stages is None or stage in stages):.1f}"

    return f"{add_up(line['seconds'])} / {add_up(line['from_nothing'])}"


# --- the changes ------------------------------------------------------------------------------------------------------


def add(number: float) -> Callable[["Images"], None]:
    def change(images: "Images") -> None:
        images.add(int(number) if number >= 1 else round(number * images.first))

    return change


# Each is made after those before it.
CHANGES: dict[str, Callable[["Images"], None] | dict[str, Any]] = {
    "first run": {},
    "nothing": {},
    "1 image added": add(1),
    "1 % added": add(0.01),
    "10 % added": add(0.1),
    "1 % relabelled": lambda images: images.relabel(round(0.01 * images.first)),
    "views 8 to 12": {"augment": {"views": 12}},
    "a depth added": {"tune": {"space": {"unfrozen_blocks": [0, 5]}}},
}


class Images:
    """The folder that both projects fetch from, and what is left to be added to it."""

    def __init__(self, folder: Path, files: list[tuple[str, Path]], first: int) -> None:
        self.folder, self.rest = folder, files[first:]
        self.first: int = first
        for label, path in files[:first]:
            self._put(label, path)

    def add(self, number: int) -> None:
        """So many images more."""
        for label, path in self.rest[:number]:
            self._put(label, path)
        self.rest = self.rest[number:]

    def relabel(self, number: int) -> None:
        """So many of one class into the folder of another."""
        first, second = sorted(self.folder.iterdir())[:2]
        for path in sorted(first.iterdir())[:number]:
            path.rename(second / f"was-{path.name}")

    def _put(self, label: str, path: Path) -> None:
        place = self.folder / label / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def list_images(given: argparse.Namespace, work: Path) -> tuple[list[tuple[str, Path]], int]:
    """(class, file) of all images in an order drawn once, and how many of them the first run has."""
    if given.generated:
        from frostline.images.generated.sets import write_target

        write_target(work / "pool", given.generated * 9 // 8 // 8 + 8, size=given.image_size, seed=7)
        files = [(path.parent.name, path) for path in sorted((work / "pool").rglob("*.png"))]
    else:
        source = given.shared / "data" / "cats_vs_dogs"
        files = [(path.parent.name, path) for path in sorted(source.rglob("*.jpg"))]
    order = np.random.default_rng(7).permutation(len(files))
    return [files[place] for place in order], given.generated or given.images


# --- the runs ---------------------------------------------------------------------------------------------------------


def measure(folder: Path, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    files, first = list_images(given, folder)
    images = Images(folder / "images", files, first)
    project = make_project(folder / "project", images.folder, given)
    settings: list[dict[str, Any]] = []
    for name, change in CHANGES.items():
        if name not in given.changes:
            continue
        if callable(change):
            change(images)
        elif change:
            settings.append(change)
            write_params(project, change)
        seconds, share = repro(project, given.until)
        from_nothing: dict[str, float] = {}
        if name in given.beside and name != "nothing":
            fresh = make_project(folder / "fresh", images.folder, given)
            for setting in settings:
                write_params(fresh, setting)
            from_nothing, _ = repro(fresh, given.until)
            shutil.rmtree(fresh)
        yield {
            "change": name,
            "images": sum(1 for path in images.folder.rglob("*") if path.is_file()),
            "share": share,
            "seconds": seconds,
            "from_nothing": from_nothing,
            "gigabytes": {name: size_of(project / place) / 1e9 for name, place in PLACES.items()},
        }


PLACES = {"features": "data/features", "views": "data/views", "project": "."}


def make_project(place: Path, images: Path, given: argparse.Namespace) -> Path:
    """A project on this code, without git."""
    place.mkdir()
    for name in ("src", "pipelines", "presets", "locks"):
        (place / name).symlink_to(ROOT / name)
    for name in ("dvc.yaml", "decisions.csv"):
        shutil.copyfile(ROOT / name, place / name)
    yaml = YAML()
    params = yaml.load(ROOT / "presets" / "default.yaml")
    params["fetch"] = {"source": str(images)}
    params["base"]["image_size"] = given.image_size
    params["augment"]["views"] = 8
    params["prepare"] = {"val_share": 0.2, "test_share": 0.2}
    params["tune"]["num_trials"] = given.trials
    yaml.dump(params, place / "params.yaml")
    run_dvc(place, "init", "--no-scm", "--quiet")
    run_dvc(place, "config", "cache.type", "hardlink,copy")
    run_dvc(place, "config", "core.analytics", "false")
    return place


def write_params(project: Path, change: dict[str, Any]) -> None:
    yaml = YAML()
    params = yaml.load(project / "params.yaml")

    def merge(into: Any, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(params, change)
    yaml.dump(params, project / "params.yaml")


def repro(project: Path, until: str) -> tuple[dict[str, float], float]:
    """Seconds by stage of `dvc repro`, and the share of the rows of features that were made."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_NO_ANALYTICS": "1"}
    command = [shutil.which("dvc") or "dvc", "repro", until]
    said: list[str] = []
    seconds: dict[str, float] = {}
    stage, made, total = "", 0.0, 0
    before = time.monotonic()
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if started := re.search(r"(?:Running stage|Stage) '(\w+)'", line):
                now = time.monotonic()
                seconds[stage or "dvc"] = seconds.get(stage or "dvc", 0.0) + now - before
                stage, before = started[1], now
            if found := NEW.search(line):
                made, total = made + (int(found[1]) / int(found[2]) if found[1] else 1.0), total + 1
    seconds[stage or "dvc"] = seconds.get(stage or "dvc", 0.0) + time.monotonic() - before
    if process.returncode:
        sys.exit("".join(said[-40:]))
    return seconds, made / total if total else 0.0


def run_dvc(place: Path, *arguments: str) -> None:
    subprocess.run([shutil.which("dvc") or "dvc", *arguments], cwd=place, check=True)


def size_of(path: Path) -> int:
    """Bytes on disk, a file with several names once."""
    files = {(stat.st_dev, stat.st_ino): stat.st_blocks * 512 for stat in _stats(path)}
    return sum(files.values())


def _stats(path: Path) -> Iterator[os.stat_result]:
    for file in path.rglob("*"):
        if file.is_file() and not file.is_symlink() and ROOT not in file.resolve().parents:
            yield file.stat()


if __name__ == "__main__":
    main()
