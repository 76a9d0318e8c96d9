"""Seconds and bytes of each stage of the images, for one image, by the engine that computes them.

    python benchmarks/engines.py [--images 20000] [--views 2] [--engines local ray] [--workers 2] [--json FILE] [--write]

A project for each engine runs `dvc repro extract` from nothing on the same JPEG files: random shapes with noise, 500 x 375 px, as
large as photographs of that size. A stage's seconds are those between DVC's lines, so that its start and DVC's own work,
which hashes and links every file, are in them. Near duplicates are not looked for: that is paid for pairs, not for images.
"""

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import results
from changes import make_project, repro, size_of, write_params

WIDTH, HEIGHT = 500, 375
CLASSES = ("bright", "dark")
# Stage -> what it writes.
PLACES = {"fetch": "data/raw", "prepare": "data/prepared", "augment": "data/views", "extract": "data/features"}


def make_files(folder: Path, number: int) -> None:
    """JPEG files of two classes, which differ in brightness."""

    def make(index: int) -> None:
        rng = np.random.default_rng(index)
        small = rng.integers(0, 256, (24, 32, 3), np.uint8)
        pixels = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        pixels += rng.integers(-12, 13, pixels.shape, np.int16) + (30 if index % 2 == 0 else -30)
        path = folder / CLASSES[index % 2] / f"{index:06d}.jpg"
        path.write_bytes(cv2.imencode(".jpg", pixels.clip(0, 255).astype(np.uint8))[1].tobytes())

    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(make, range(number)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="of Ray; engine local uses all cores")
    parser.add_argument("--engines", nargs="+", choices=["local", "ray"], default=["local", "ray"])
    results.add_options(parser)
    given = parser.parse_args()
    given.trials = 2  # none of them is run
    lines: results.Lines = []
    with tempfile.TemporaryDirectory(prefix="engines-") as place:
        folder = Path(place)
        make_files(folder / "images", given.images)
        for engine in given.engines:
            project = make_project(folder / engine, folder / "images", given)
            scale = {"engine": engine, **({"workers": given.workers} if engine == "ray" else {})}
            views = {"augment": {"views": given.views}, "extract": {"near_duplicates": False}}
            write_params(project, {**views, "scale": scale})
            seconds, _ = repro(project, "extract")
            for stage, written in PLACES.items():
                line = {"stage": stage, "engine": engine, "images": given.images, "views": given.views}
                lines.append({**line, "seconds": seconds[stage], "bytes": size_of(project / written)})
                print(json.dumps(lines[-1]), flush=True)
    results.keep("engines", lines, given, make_table)
    print(make_table(lines))


def make_table(lines: results.Lines) -> str:
    """Milliseconds and bytes of an image in each stage, by engine."""
    columns = ["stage", "engine", "images", "views", "s", "ms an image", "images/s", "kB an image on disk"]
    rows = [
        [
            line["stage"],
            line["engine"],
            line["images"],
            line["views"],
            f"{line['seconds']:.0f}",
            f"{1000 * line['seconds'] / line['images']:.1f}",
            f"{line['images'] / line['seconds']:.0f}",
            f"{line['bytes'] / line['images'] / 1000:.1f}",
        ]
        for line in lines
    ]
    return results.draw_table(columns, rows)


if __name__ == "__main__":
    main()
