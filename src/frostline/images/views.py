"""Views of the training images; each depends on (its image's pixels, transforms, seed, view number) alone."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.arrays import (
    DIGEST,
    DIGESTS,
    Digests,
    JoinedRows,
    digest_rows,
    load_array,
    reserve_array,
    save_array,
    take_rows,
    write_rows,
)
from frostline.errors import Refused
from frostline.files import part_of, put_in_place, save_json
from frostline.images.rows import EarlierRows
from frostline.images.transforms import Pipeline, Transforms, build_transform, build_transforms, run_transforms
from frostline.process import count_cores, keep_freed_memory
from frostline.scale.local import HERE
from frostline.scale.work import Engine, Work
from frostline.seeding import derive_seed

CHUNK = 128  # images per task
# From so many bytes of views on (7 800 at 160 px), starting processes (each imports Albumentations, a second) is worth its time.
POOL_FROM = 600_000_000
# A change of how views are drawn raises this, so that unfinished work of before is not mixed in.
RECIPE = 2


# --- views ----------------------------------------------------------------------------------------------------------


def view_seed(seed: int, digest: bytes, view: int) -> int:
    """The seed of one view of the image whose pixels have this digest: its name, class and split may change."""
    return derive_seed(seed, "augment", digest.hex(), view)


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
    images: NDArray[np.uint8], digests: Digests, pipeline: Pipeline, *, view: int, seed: int
) -> NDArray[np.uint8]:
    """View number `view` of each image: uint8 (num_images, size, size, 3). View 0 is the plain image.

    digests: `digest_rows` of the images.
    """
    if view == 0:
        return np.array(images)
    views = np.empty_like(images)
    for index, digest in enumerate(digests):
        views[index] = make_view(images[index], pipeline, view_seed(seed, digest.tobytes(), view))
    return views


def view_facts(transforms: Transforms, size: int, seed: int, code: str) -> dict[str, Any]:
    """What a view is made from besides its image and its number; code: a digest of what draws it."""
    versions = {"albumentations": A.__version__, "opencv": cv2.__version__, "numpy": np.__version__}
    return {"recipe": RECIPE, "transforms": list(transforms), "size": size, "seed": seed, "code": code, **versions}


@dataclass(frozen=True)
class Drawing:
    """All that a process needs to draw views; it can be sent to one.

    images_files: of the images, joined; digests: of their rows, uint8 (num_images, DIGEST); earlier: folders of views that
    were drawn in the same way.
    """

    images_files: tuple[Path, ...]
    digests: Digests
    transforms: Transforms
    seed: int
    earlier: tuple[Path, ...] = ()

    @cached_property
    def images(self) -> JoinedRows:
        """The images, uint8 (num_images, size, size, 3)."""
        return JoinedRows(*(load_array(file) for file in self.images_files))

    @cached_property
    def pipeline(self) -> Pipeline:
        """The transforms, built."""
        return build_transforms(self.transforms, self.images.shape[1])

    def known(self, view: int) -> EarlierRows:
        """The rows of this view that are there already, by the digests of their images; read once for each view."""
        name = view_name(view)
        if name not in self._known:
            rows = EarlierRows(self.images.shape[1:], np.uint8)
            for folder in self.earlier:
                rows.add(folder / name, folder / DIGESTS / view_name(0), folder / DIGESTS / name)
            self._known.clear()  # views are drawn one after the other
            self._known[name] = rows
        return self._known[name]

    @cached_property
    def _known(self) -> dict[str, EarlierRows]:
        return {}

    def draw(self, start: int, view: int) -> tuple[NDArray[np.uint8], int]:
        """Up to CHUNK views, those of the images from row `start` on, and how many of them had to be drawn."""
        images, digests = (take_rows(rows, slice(start, start + CHUNK)) for rows in (self.images, self.digests))
        known = self.known(view)
        places = known.find(digests)
        there = np.flatnonzero(places >= 0)
        rows, sound = known.take_sound(places[there])
        missing = np.setdiff1d(np.arange(len(images)), there[sound])
        views = np.empty_like(images)
        views[there[sound]] = rows[sound]
        views[missing] = make_views(images[missing], digests[missing], self.pipeline, view=view, seed=self.seed)
        return views, len(missing)


def view_name(view: int) -> str:
    """The file of a view."""
    return f"view-{view:03d}.npy"


def save_views(
    drawing: Drawing, folder: Path, *, num_views: int, workers: int | None = None, engine: Engine = HERE
) -> Iterator[tuple[int, int]]:
    """Writes `view-001.npy` .. and the digests of their rows; yields the number of each view and how many rows were drawn.

    Whole files that are there are kept. workers: processes, by default one per core where there are many views; neither
    their number nor the engine changes anything in the views.
    """
    shape = drawing.images.shape
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {view: folder / view_name(view) for view in range(1, num_views)}
    names = {view_name(0), *(file.name for file in wanted.values())}
    for file in [*folder.glob("*view-*.npy*"), *(folder / DIGESTS).glob("*view-*.npy*")]:
        if file.name not in names:  # of a run that was killed, and wanted more views
            file.unlink()
    save_array(folder / DIGESTS / view_name(0), [drawing.digests], drawing.digests.shape, np.uint8)
    missing = {view: file for view, file in wanted.items() if not file.is_file()}
    if workers is None:
        workers = count_cores() if len(missing) * math.prod(shape) >= POOL_FROM else 1
    starts = range(0, shape[0], CHUNK)

    def list_tasks() -> Iterator[tuple[int, int, Path]]:
        for view, file in missing.items():
            reserve_array(part_of(file), shape, np.uint8)
            yield from ((start, view, part_of(file)) for start in starts)

    # Each process builds its transforms once, and opens the files itself: it gets a copy without what this one has opened.
    work = Work(_draw_rows, _start_worker, (replace(drawing),), keep=_keep_rows, here=lambda: drawing)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # OpenCV's own threads would fight for the same cores
    try:
        # So far ahead that processes draw the next view while one is flushed to disk.
        ahead, processes = len(starts) + 2 * workers, 0 if workers == 1 or not missing else workers
        with closing(engine.map(work, list_tasks(), processes=processes, ahead=ahead)) as drawn:
            for view, file in missing.items():
                digests, numbers = zip(*(next(drawn) for _ in starts), strict=True)
                save_array(folder / DIGESTS / view_name(view), digests, (shape[0], DIGEST), np.uint8)
                put_in_place(part_of(file), file)
                yield view, sum(numbers)
    finally:
        cv2.setNumThreads(threads)


Drawn = tuple[NDArray[np.uint8], Digests, int]


def _start_worker(drawing: Drawing) -> Drawing:
    keep_freed_memory()
    cv2.setNumThreads(1)
    return drawing


def _draw_rows(drawing: Drawing, start: int, view: int, file: Path) -> Iterator[Drawn]:
    """Up to CHUNK views from row `start` on, their digests, and how many were drawn."""
    views, number = drawing.draw(start, view)
    yield views, digest_rows(views), number


def _keep_rows(drawn: Drawn, start: int, view: int, file: Path) -> tuple[Digests, int]:
    """Writes the views to the same rows of `file`; their digests, and how many were drawn."""
    views, digests, number = drawn
    write_rows(file, views, start)
    return digests, number


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
        "seed_of_view": 'derive_seed(seed, "augment", digest, view)',
        "digest": "the first 32 hex digits of the sha256 of the image's pixels",
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
    digests: Digests,
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
                make_views(images[index : index + 1], digests[index : index + 1], pipeline, view=view, seed=seed)[0]
                for view in range(min(columns, num_views))
            ]
        )
        for index in chosen
    ]
    return np.stack(views), chosen
