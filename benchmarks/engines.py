"""What it costs that rows travel through Ray to the one process that writes them, beside processes that write their own.

prepare: `decode_shards` of images of 500 x 375 px; augment: `save_views` of decoded ones at 160 px. Both by so many workers, with
nothing to take from earlier runs. Engine local starts its processes in every round, Ray in the first one.
"""

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import results

from frostline.arrays import digest_rows, save_array
from frostline.images import shards
from frostline.images.shards import decode_shards
from frostline.images.views import Drawing, save_views
from frostline.images.walk import Entry
from frostline.params import Prepare, Scale, load_params
from frostline.scale.engines import open_engine
from frostline.scale.work import Engine

SIZE = 160
TRANSFORMS: list[dict[str, dict[str, Any]]] = [
    {"HorizontalFlip": {"p": 0.5}},
    {"Affine": {"scale": [0.8, 1.2], "rotate": [-20, 20], "border_mode": 4, "p": 0.8}},
    {"RandomBrightnessContrast": {"brightness_limit": 0.2, "contrast_limit": 0.2, "p": 0.5}},
]


def make_files(folder: Path, number: int) -> list[Entry]:
    """JPEG files of smooth noise, as large as photographs of that size are."""
    rng = np.random.default_rng(0)
    entries = []
    for index in range(number):
        pixels = cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
        path = folder / f"{index:05d}.jpg"
        path.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
        entries.append(Entry(str(path), None, "cats", path.name))
    return entries


def decode(engine: Engine, entries: list[Entry], place: Path, workers: int) -> None:
    decode_shards(entries, Prepare(), SIZE, place / "shards", workers, engine=engine)


def augment(engine: Engine, drawing: Drawing, place: Path, workers: int) -> None:
    for _ in save_views(drawing, place / "views", num_views=2, workers=workers, engine=engine):
        pass


def seconds_of(run: Callable[[Engine, Path], None], engine: Engine, place: Path) -> float:
    shutil.rmtree(place, ignore_errors=True)
    started = time.perf_counter()
    run(engine, place)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="of which the first and the fastest are told")
    results.add_options(parser)
    given = parser.parse_args()
    shards.PROCESSES_FROM = 0
    params = load_params(results.ROOT / "presets" / "default.yaml")
    lines: results.Lines = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "raw").mkdir()
        entries = make_files(root / "raw", given.images)
        images = np.random.default_rng(0).integers(0, 256, (given.images, SIZE, SIZE, 3), np.uint8)
        save_array(root / "images.npy", [images], images.shape, np.uint8)
        drawing = Drawing((root / "images.npy",), digest_rows(images), TRANSFORMS, 7)
        kinds: dict[str, Callable[[Engine, Path], None]] = {
            "prepare": lambda engine, place: decode(engine, entries, place, given.workers),
            "augment": lambda engine, place: augment(engine, drawing, place, given.workers),
        }
        for kind, engine in itertools.product(kinds, ("local", "ray")):
            scale = Scale.model_validate({"engine": engine, "workers": given.workers})
            scaled = params.model_copy(update={"scale": scale})
            with open_engine(scaled) as opened:
                taken = [seconds_of(kinds[kind], opened, root / "out") for _ in range(given.rounds)]
            lines.append(
                {
                    "stage": kind,
                    "engine": engine,
                    "images": given.images,
                    "workers": given.workers,
                    "first_s": taken[0],
                    "seconds": min(taken),
                    "bytes": given.images * SIZE * SIZE * 3,
                }
            )
            print(lines[-1], flush=True)
    results.keep("engines", lines, given, make_table)
    print(make_table(lines))


def make_table(lines: results.Lines) -> str:
    """Seconds and rates of each stage by engine."""
    columns = ["stage", "engine", "workers", "images", "first round, s", "fastest, s", "images/s", "MB/s written"]
    rows = [
        [
            line["stage"],
            line["engine"],
            line["workers"],
            line["images"],
            f"{line['first_s']:.1f}",
            f"{line['seconds']:.1f}",
            f"{line['images'] / line['seconds']:.0f}",
            f"{line['bytes'] / line['seconds'] / 1e6:.0f}",
        ]
        for line in lines
    ]
    return results.draw_table(columns, rows)


if __name__ == "__main__":
    main()
