"""Peak memory and time per image of the stages, for few images and for ten times as many.

    python benchmarks/memory.py [--sizes 2000 20000] [--side 64] [--views 8] [--stages fetch prepare ..] [--json FILE] [--write]

Runs the stages' own scripts on generated images, one process each, in a temporary folder. One JSON line per stage and
size: `peak_mb` is the largest resident set of any one process, as the kernel counts it (mapped files included), `tree_mb`
the largest sum over a stage's processes, sampled (memory that they share counts once for each). Then one line per stage
with the growth from the first size to the last.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from results import Lines, add_options, draw_table, keep
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
# `source`, which comes first, only looks.
STAGES = [name for name in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"] if name != "source"]
SETTINGS = {
    "prepare": {"val_share": 0.1, "test_share": 0.1},
    "tune": {"num_trials": 3, "epochs": 4, "pruning": "none"},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", nargs="+", type=int, default=[2000, 20_000])
    arguments.add_argument("--side", type=int, default=64)
    arguments.add_argument("--views", type=int, default=8)
    arguments.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    add_options(arguments)
    given = arguments.parse_args()
    lines: Lines = []
    for line in measure(given.sizes, given.side, given.views, given.stages):
        print(json.dumps(line), flush=True)
        lines.append(line)
    for stage in given.stages:
        of_stage = [line for line in lines if line["stage"] == stage]
        first, last = of_stage[0], of_stage[-1]
        growth = {name: round(last[name] / first[name] - 1, 3) for name in ("peak_mb", "tree_mb", "ms_per_image")}
        line = {"stage": stage, "images": [first["images"], last["images"]], "growth": growth}
        print(json.dumps(line), flush=True)
        lines.append(line)
    keep("memory", lines, given, make_table)


def make_table(lines: Lines) -> str:
    """The largest process of a stage, in MB: a row for each size, a column for each stage."""
    peaks = {(line["images"], line["stage"]): line["peak_mb"] for line in lines if "peak_mb" in line}
    stages = list(dict.fromkeys(stage for _, stage in peaks))
    sizes = list(dict.fromkeys(size for size, _ in peaks))
    rows = [[f"{size:,}", *(f"{peaks[size, stage]:,.0f}" for stage in stages)] for size in sizes]
    return draw_table(["images", *stages], rows)


def measure(sizes: list[int], side: int, views: int, stages: list[str]) -> Iterator[dict[str, Any]]:
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="memory-") as folder:
            project = make_project(Path(folder), size, side, views)
            for stage in STAGES[: max(map(STAGES.index, stages)) + 1]:
                seconds, peak, tree = run(project, stage)
                if stage in stages:
                    yield {
                        "stage": stage,
                        "images": size,
                        "peak_mb": round(peak / 1e6, 1),
                        "tree_mb": round(tree / 1e6, 1),
                        "seconds": round(seconds, 2),
                        "ms_per_image": round(1000 * seconds / size, 3),
                    }


def make_project(folder: Path, size: int, side: int, views: int) -> Path:
    """A project on this code with generated images and the bundled base."""
    for name in ("src", "pipelines", "presets", "dvc.yaml"):
        (folder / name).symlink_to(ROOT / name)
    yaml = YAML()
    params = yaml.load(ROOT / "presets" / "default.yaml")
    params["fetch"]["images_per_class"] = size // 8  # of its eight classes
    params["base"]["image_size"] = side
    params["augment"]["views"] = views
    for section, values in SETTINGS.items():
        params[section].update(values)
    params["tune"]["space"]["unfrozen_blocks"] = [0, 2]
    yaml.dump(params, folder / "params.yaml")
    return folder


def run(project: Path, stage: str) -> tuple[float, int, int]:
    """Seconds, and the largest resident set in bytes: of one process, and summed over all of the stage's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    log = project / f"{stage}.log"
    started, tree = time.monotonic(), 0
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, f"pipelines/{stage}.py"], cwd=project, env=environment, stdout=output, stderr=output
        )
        watched = psutil.Process(process.pid)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            tree = max(tree, sum(map(resident, [watched, *watched.children(recursive=True)])))
            time.sleep(0.05)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{stage} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return seconds, usage.ru_maxrss * 1024, tree


def resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    main()
