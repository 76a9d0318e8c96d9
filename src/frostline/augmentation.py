"""Views of the training pictures, made by Albumentations; each depends on (seed, image id, view number) alone."""

import hashlib
import inspect
import json
import math
import multiprocessing
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from difflib import get_close_matches
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.arrays import load_array, part_of, put_in_place, reserve_array, save_json, take_rows, write_rows
from frostline.process import Refused, count_cores, die_with_parent, in_order, keep_freed_memory
from frostline.seeding import derive_seed

Transforms = Sequence[Mapping[str, Mapping[str, Any]]]
Pipeline = tuple[A.BasicTransform | A.BaseCompose, ...]

CHUNK = 128  # pictures per task
# From so many bytes of views on (7 800 at 160 px), starting processes (each imports Albumentations, a second) is worth its time.
POOL_FROM = 600_000_000
# A change of how views are drawn raises this, so that unfinished work of before is not mixed in.
RECIPE = 1


# --- what params.yaml says ------------------------------------------------------------------------------------------


def build_transforms(transforms: Transforms, image_size: int | None = None) -> Pipeline:
    """The transforms, ready to run; raises Refused with every problem in them (see `check_transforms`)."""
    check_transforms(transforms, image_size)
    return tuple(_build(name, arguments) for entry in transforms for name, arguments in entry.items())


def check_transforms(transforms: Transforms, image_size: int | None = None) -> None:
    """Raises Refused that lists every unknown transform, misspelt argument and impossible value.

    Albumentations only warns of most of these and goes on without them. With `image_size`, each transform is tried, and
    refused if it does not give uint8 (image_size, image_size, 3) back.
    """
    problems = [
        problem
        for place, entry in enumerate(transforms)
        for problem in _problems_of(f"transforms[{place}]", entry, image_size)
    ]
    if problems:
        raise Refused(f"augment has {len(problems)} problem{'s' * (len(problems) > 1)}:\n  " + "\n  ".join(problems))


def _build(name: str, arguments: Mapping[str, Any]) -> A.BasicTransform | A.BaseCompose:
    kind = getattr(A, name)
    if issubclass(kind, A.BaseCompose):
        inner = [_build(*item) for entry in arguments["transforms"] for item in entry.items()]
        return kind(**{**arguments, "transforms": inner})
    return kind(**arguments)


def _problems_of(place: str, entry: Any, image_size: int | None) -> list[str]:
    if not isinstance(entry, Mapping) or len(entry) != 1:
        return [f"{place}: expected one transform, {{Name: {{argument: value}}}}; given was {entry!r}"]
    ((name, arguments),) = entry.items()
    if name not in _names():
        return [f"{place}: unknown transform {name!r}{_nearest(name, _names())}"]
    place, kind = f"{place}.{name}", getattr(A, name)
    if not isinstance(arguments, Mapping):
        return [f"{place}: expected {{argument: value}}; given was {arguments!r}"]
    allowed = [word for word in inspect.signature(kind).parameters if word != "self"]
    wrong = [argument for argument in arguments if argument not in allowed]
    if wrong:
        return [
            f"{place}: unknown argument {word!r}{_nearest(word, allowed)}; allowed: {', '.join(allowed)}"
            for word in wrong
        ]
    if issubclass(kind, A.BaseCompose):
        inner = arguments.get("transforms")
        if not isinstance(inner, list) or not inner:
            return [f"{place}.transforms: expected a list of transforms; given was {inner!r}"]
        found = [
            text
            for at, each in enumerate(inner)
            for text in _problems_of(f"{place}.transforms[{at}]", each, image_size)
        ]
        if found:
            return found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            transform = _build(name, arguments)
    except (ValueError, TypeError, AttributeError, UserWarning) as error:
        return [f"{place}: {_shorten(error)}"]
    return _problems_of_output(place, transform, image_size) if image_size else []


def _problems_of_output(place: str, transform: Any, image_size: int) -> list[str]:
    probe = np.random.default_rng(0).integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
    try:
        view = _run((transform,), probe, seed=0, force=True)
    except Exception as error:  # whatever a transform raises is the user's to know
        return [f"{place}: fails on a picture of {image_size}x{image_size}: {_shorten(error)}"]
    if view.shape != probe.shape or view.dtype != np.uint8:
        shape = "x".join(map(str, view.shape))
        return [
            f"{place}: makes {shape} {view.dtype} of {image_size}x{image_size}x3 uint8; a view must keep its shape and type"
        ]
    return []


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split("For further information")[0].split()) or type(error).__name__


def _names() -> list[str]:
    composed = {"OneOf", "SomeOf", "Sequential", "RandomOrder"}
    return [
        name
        for name, kind in vars(A).items()
        if inspect.isclass(kind) and (name in composed or (issubclass(kind, A.BasicTransform) and name[0] != "_"))
    ]


def _nearest(word: str, allowed: Sequence[str]) -> str:
    close = get_close_matches(word, allowed, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


# --- views ----------------------------------------------------------------------------------------------------------


def view_seed(seed: int, image_id: str, view: int) -> int:
    """The seed of one view of one picture."""
    return derive_seed(seed, "augment", image_id, view)


def make_view(image: NDArray[np.uint8], pipeline: Pipeline, seed: int) -> NDArray[np.uint8]:
    """One view of `image`, uint8 of the same shape; equal for equal seeds. `image` is not changed.

    Raises Refused if the transforms change shape or type.
    """
    view = _run(pipeline, image, seed)
    if view.shape != image.shape or view.dtype != np.uint8:
        raise Refused(
            f"The transforms make {view.shape} {view.dtype} of {image.shape} uint8; a view must keep its shape and type."
        )
    return view


def _run(pipeline: Pipeline, image: NDArray[np.uint8], seed: int, *, force: bool = False) -> NDArray[np.uint8]:
    # One stream for all transforms. `Compose.set_random_seed` gives each transform the same seed, so that a picture
    # would be brightened exactly when it is flipped; it is slower, too.
    drawn = np.random.Generator(np.random.PCG64(seed))
    drawn_by_python = random.Random(seed)
    image = np.array(image)  # some transforms write into what they get
    for transform in pipeline:
        transform.set_random_state(drawn, drawn_by_python)
        image = transform(image=image, force_apply=force)["image"]
    return image


def make_views(
    images: NDArray[np.uint8], ids: Sequence[str], pipeline: Pipeline, *, view: int, seed: int
) -> NDArray[np.uint8]:
    """View number `view` of each picture: uint8 (num_images, size, size, 3). View 0 is the plain picture."""
    if view == 0:
        return np.array(images)
    views = np.empty_like(images)
    for index, image_id in enumerate(ids):
        views[index] = make_view(images[index], pipeline, view_seed(seed, image_id, view))
    return views


def save_views(
    images_file: Path,
    ids: Sequence[str],
    transforms: Transforms,
    folder: Path,
    *,
    num_views: int,
    seed: int,
    workers: int | None = None,
) -> None:
    """Writes `view-001.npy` .. of the pictures in `images_file`; whole files that are there already are kept.

    workers: processes, by default one per core where there are many views; their number changes nothing in the views.
    """
    shape = load_array(images_file).shape
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
                drawn: Iterator[None] = starmap(partial(_draw_rows, images_file, ids, pipeline, seed), list_tasks())
            else:
                # Spawned, never forked: the caller may have threads. Each process builds its transforms once.
                context = multiprocessing.get_context("spawn")
                facts = (images_file, tuple(ids), transforms, seed)
                pool = ProcessPoolExecutor(workers, context, _start_worker, facts)
                stack.callback(pool.shutdown, cancel_futures=True)  # after an error the rest is not drawn first
                # So far ahead that the processes draw the next view while one is flushed to disk.
                drawn = in_order(pool, _work, list_tasks(), ahead=len(starts) + 2 * workers)
            for view, file in missing.items():
                for _ in starts:
                    next(drawn)
                put_in_place(part_of(file), file)
                print(f"augment: view {view} of {num_views - 1}", flush=True)
    finally:
        cv2.setNumThreads(threads)


def _draw_rows(
    images_file: Path, ids: Sequence[str], pipeline: Pipeline, seed: int, start: int, view: int, file: Path
) -> None:
    """Writes up to CHUNK views, those of the pictures from row `start` on, to the same rows of `file`."""
    rows = slice(start, start + CHUNK)
    images = take_rows(load_array(images_file), rows)
    write_rows(file, make_views(images, ids[rows], pipeline, view=view, seed=seed), start)


_worker: dict[str, Callable[[int, int, Path], None]] = {}  # what a worker process keeps between its tasks


def _start_worker(images_file: Path, ids: Sequence[str], transforms: Transforms, seed: int) -> None:
    die_with_parent()
    keep_freed_memory()
    cv2.setNumThreads(1)
    _worker["draw"] = partial(_draw_rows, images_file, ids, build_transforms(transforms), seed)


def _work(start: int, view: int, file: Path) -> None:
    _worker["draw"](start, view, file)


# --- the record of it -----------------------------------------------------------------------------------------------


def save_recipe(folder: Path, transforms: Transforms, *, num_views: int, seed: int, content_sha256: str) -> None:
    """Writes `recipe.json`: all that is needed to draw the same views again, arguments with their defaults filled in."""
    resolved = [
        A.to_dict(_build(name, arguments))["transform"] for entry in transforms for name, arguments in entry.items()
    ]
    recipe = {
        "recipe": RECIPE,
        "num_views": num_views,
        "seed": seed,
        "seed_of_view": 'derive_seed(seed, "augment", image_id, view)',
        "pictures_sha256": content_sha256,
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
    """A few pictures spread over all, with their first views, uint8 (rows, columns, size, size, 3), and their places.

    View 0 is the plain picture.
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
