"""Views of the training images; each depends on (seed, image id, view number) alone."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import starmap
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.arrays import JoinedRows, load_array, reserve_array, take_rows, write_rows
from frostline.errors import Refused
from frostline.files import part_of, put_in_place, save_json
from frostline.images.transforms import Pipeline, Transforms, build_transform, build_transforms, run_transforms
from frostline.process import count_cores, keep_freed_memory, start_pool
from frostline.seeding import derive_seed, in_order

CHUNK = 128  # images per task
# From so many bytes of views on (7 800 at 160 px), starting processes (each imports Albumentations, a second) is worth its time.
POOL_FROM = 600_000_000
# A change of how views are drawn raises this, so that unfinished work of before is not mixed in.
RECIPE = 1


# --- views ----------------------------------------------------------------------------------------------------------


def view_seed(seed: int, image_id: str, view: int) -> int:
    """The seed of one view of one image."""
    return derive_seed(seed, "augment", image_id, view)


def make_view(image: NDArray[np.uint8], pipeline: Pipeline, seed: int) -> NDArray[np.uint8]:
    """One view of `image`, uint8 of the same shape; equal for equal seeds. `image` is not changed.

    Raises Refused if the transforms change shape or type.
    """
    view = run_transforms(pipeline, image, seed)
    if view.shape != image.shape or view.dtype != np.uint8:
        raise Refused(
            f"The transforms make {view.shape} {view.dtype} of {image.shape} uint8; a view must keep its shape and type."
        )
    return view


def make_views(
    images: NDArray[np.uint8], ids: Sequence[str], pipeline: Pipeline, *, view: int, seed: int
) -> NDArray[np.uint8]:
    """View number `view` of each image: uint8 (num_images, size, size, 3). View 0 is the plain image."""
    if view == 0:
        return np.array(images)
    views = np.empty_like(images)
    for index, image_id in enumerate(ids):
        views[index] = make_view(images[index], pipeline, view_seed(seed, image_id, view))
    return views


def save_views(
    images_files: Sequence[Path],
    ids: Sequence[str],
    transforms: Transforms,
    folder: Path,
    *,
    num_views: int,
    seed: int,
    workers: int | None = None,
) -> Iterator[int]:
    """Writes `view-001.npy` .. of the images in `images_files`, joined, and yields the number of each; whole files are kept.

    workers: processes, by default one per core where there are many views; their number changes nothing in the views.
    """
    shape = _join(images_files).shape
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {view: folder / f"view-{view:03d}.npy" for view in range(1, num_views)}
    for file in folder.glob("*view-*.npy*"):  # of a run that was killed, and wanted more views
        if file not in wanted.values():
            file.unlink()
    missing = {view: file for view, file in wanted.items() if not file.is_file()}
    pipeline = build_transforms(transforms, shape[1])
    if workers is None:
        workers = count_cores() if len(missing) * math.prod(shape) >= POOL_FROM else 1
    starts = range(0, shape[0], CHUNK)

    def list_tasks() -> Iterator[tuple[int, int, Path]]:
        for view, file in missing.items():
            reserve_array(part_of(file), shape, np.uint8)
            yield from ((start, view, part_of(file)) for start in starts)

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # OpenCV's own threads would fight for the same cores
    try:
        with ExitStack() as stack:
            if workers == 1 or not missing:
                drawn: Iterator[None] = starmap(partial(_draw_rows, images_files, ids, pipeline, seed), list_tasks())
            else:
                # Each process builds its transforms once.
                pool = start_pool(workers, _start_worker, tuple(images_files), tuple(ids), transforms, seed)
                stack.callback(pool.shutdown, cancel_futures=True)  # after an error the rest is not drawn first
                # So far ahead that the processes draw the next view while one is flushed to disk.
                drawn = in_order(pool, _work, list_tasks(), ahead=len(starts) + 2 * workers)
            for view, file in missing.items():
                for _ in starts:
                    next(drawn)
                put_in_place(part_of(file), file)
                yield view
    finally:
        cv2.setNumThreads(threads)


def _draw_rows(
    images_files: Sequence[Path], ids: Sequence[str], pipeline: Pipeline, seed: int, start: int, view: int, file: Path
) -> None:
    """Writes up to CHUNK views, those of the images from row `start` on, to the same rows of `file`."""
    rows = slice(start, start + CHUNK)
    images = take_rows(_join(images_files), rows)
    write_rows(file, make_views(images, ids[rows], pipeline, view=view, seed=seed), start)


def _join(images_files: Sequence[Path]) -> JoinedRows:
    return JoinedRows(*(load_array(file) for file in images_files))


_worker: dict[str, Callable[[int, int, Path], None]] = {}  # what a worker process keeps between its tasks


def _start_worker(images_files: Sequence[Path], ids: Sequence[str], transforms: Transforms, seed: int) -> None:
    keep_freed_memory()
    cv2.setNumThreads(1)
    _worker["draw"] = partial(_draw_rows, images_files, ids, build_transforms(transforms), seed)


def _work(start: int, view: int, file: Path) -> None:
    _worker["draw"](start, view, file)


# --- the record of it -----------------------------------------------------------------------------------------------


def save_recipe(folder: Path, transforms: Transforms, *, num_views: int, seed: int, content_sha256: str) -> None:
    """Writes `recipe.json`: all that is needed to draw the same views again, arguments with their defaults filled in."""
    resolved = [
        A.to_dict(build_transform(name, arguments))["transform"]
        for entry in transforms
        for name, arguments in entry.items()
    ]
    recipe = {
        "recipe": RECIPE,
        "num_views": num_views,
        "seed": seed,
        "seed_of_view": 'derive_seed(seed, "augment", image_id, view)',
        "images_sha256": content_sha256,
        "transforms": resolved,
        "versions": {"albumentations": A.__version__, "opencv": cv2.__version__, "numpy": np.__version__},
    }
    save_json(folder / "recipe.json", recipe)


def digest_recipe(transforms: Transforms, *, seed: int, content_sha256: str) -> str:
    """16 hex digits that name the views: equal digests, equal views."""
    text = json.dumps(
        [RECIPE, A.__version__, cv2.__version__, seed, content_sha256, list(transforms)], sort_keys=True, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_preview(
    images: NDArray[np.uint8],
    ids: Sequence[str],
    transforms: Transforms,
    *,
    num_views: int,
    seed: int,
    rows: int = 6,
    columns: int = 8,
) -> tuple[NDArray[np.uint8], list[int]]:
    """A few images spread over all, with their first views, uint8 (rows, columns, size, size, 3), and their places.

    View 0 is the plain image.
    """
    pipeline = build_transforms(transforms)
    chosen = np.linspace(0, len(images) - 1, min(rows, len(images))).astype(int).tolist()
    views = [
        np.stack(
            [
                make_views(images[index : index + 1], [ids[index]], pipeline, view=view, seed=seed)[0]
                for view in range(min(columns, num_views))
            ]
        )
        for index in chosen
    ]
    return np.stack(views), chosen
