"""Features on disk: what the frozen prefix makes of every view, computed once."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import ArrayWriter, Rows, take_rows
from frostline.bases.base import Base
from frostline.bases.cuts import build_prefix, choose_pooled
from frostline.devices import Tensor, choose_streams, compile_frozen, measure_speed_up, ops
from frostline.files import load_json, part_of, save_json
from frostline.seeding import in_order

SHARD = 2048  # images after which what is written is made safe
# What a lower precision must bring: how many times the speed; and what it may cost: relative change of the features. The
# final model computes in float32: 1 % of the bundled base's features moved one of its probabilities by 0.04.
LOW_PRECISIONS = ("bfloat16", "float16")
MIN_SPEED_UP, MAX_CHANGE = 1.2, 0.002
Array = NDArray[Any]
Forward = Callable[[Tensor], list[Tensor]]


POOLED = "pooled"  # of every cut, of every view: what heads see
MIRROR = "mirror"  # the view of the plain image with left and right changed


def depth_folder(depth: int) -> str:
    """The folder, among the features, of the maps that `depth` unfrozen blocks start from."""
    return f"depth-{depth:02d}"


class Extractor:
    """The frozen prefix of a base, compiled: images -> maps at each depth and all cuts pooled, in one pass.

    folders: where each output lies among the features, in their order; shapes: of one image's row of each.
    """

    def __init__(self, base: Base, depths: Sequence[int], batch_size: int, precision: str = "float32") -> None:
        prefix = build_prefix(base, depths, precision)
        self.batch_size, self.precision = batch_size, precision
        self.folders = (*(depth_folder(depth) for depth in depths), POOLED)
        self.shapes = [tuple(tensor.shape[1:]) for tensor in prefix.outputs]
        self._forward = compile_frozen(prefix)
        # Where the columns of each pooled cut end.
        self._ends = np.cumsum([2 * cut.shape[-1] for cut in choose_pooled(base)])
        self._types: list[type[np.floating[Any]]] = []

    def run(self, images: Rows, first: int = 0) -> Iterator[list[NDArray[np.float32]]]:
        """Features batch by batch, in the images' order, from the row `first`: an array (num_images, *shape) per output.

        The number of batches that are computed at a time changes no feature, their size none by more than rounding.
        """
        streams, size = choose_streams(self.batch_size)

        def compute(start: int) -> list[NDArray[np.float32]]:
            return compute_features(self._forward, take_rows(images, slice(start, start + size)))

        with ThreadPoolExecutor(streams) as pool:
            starts = [(start,) for start in range(first, len(images), size)]
            yield from in_order(pool, compute, starts, ahead=2 * streams)

    def types(self, images: Rows) -> list[type[np.floating[Any]]]:
        """The type in which each output is stored, by the features of the first images; asked once."""
        if not self._types:
            *maps, pooled = next(self.run(take_rows(images, slice(0, self.batch_size))))
            self._types = [choose_dtype(values) for values in maps]
            cuts = [choose_dtype(values) for values in np.split(pooled, self._ends[:-1], axis=1)]
            self._types.append(np.float32 if np.float32 in cuts else np.float16)
        return self._types

    def row_bytes(self, images: Rows) -> dict[str, int]:
        """Bytes that one image's features take in each folder."""
        sizes = [
            int(np.prod(shape)) * np.dtype(kind).itemsize
            for shape, kind in zip(self.shapes, self.types(images), strict=True)
        ]
        return dict(zip(self.folders, sizes, strict=True))

    def save(self, sources: Mapping[str, Rows], folder: Path, stored: Collection[str] | None = None) -> Iterator[str]:
        """Writes the features of every source into the folders `stored` (all where it is None); yields each name when done.

        sources: name -> uint8 (num_images, size, size, 3), e.g. "view-003". Writes `depth-DD/<name>.npy` and
        `pooled/<name>.npy`, float16 or float32 (num_images, *feature shape). What is there already is kept: a killed
        extraction goes on after the last SHARD images that it had written.
        """
        kinds = self.types(next(iter(sources.values())))
        for name, images in sources.items():
            paths = {
                place: folder / where / f"{name}.npy"
                for place, where in enumerate(self.folders)
                if stored is None or where in stored
            }
            if not all(path.is_file() for path in paths.values()):
                self._save(images, paths, kinds, folder / f".{name}.rows")
            (folder / f".{name}.rows").unlink(missing_ok=True)
            yield name

    def _save(
        self,
        images: Rows,
        paths: Mapping[int, Path],
        kinds: Sequence[type[np.floating[Any]]],
        progress: Path,
    ) -> None:
        """Writes one source; `progress` holds how many rows of each unfinished file can be trusted."""
        whole = all(part_of(path).is_file() for path in paths.values())
        done = load_json(progress) if whole and progress.is_file() else 0
        with ExitStack() as stack:
            writers = {
                place: stack.enter_context(
                    ArrayWriter(path, (len(images), *self.shapes[place]), kinds[place], resume_at=done)
                )
                for place, path in paths.items()
            }
            for batch in self.run(images, done):
                for place, writer in writers.items():
                    limit = np.finfo(writer.dtype).max  # kept as the largest number, not as infinity
                    writer.append(np.clip(batch[place], -limit, limit))
                before, done = done, done + len(batch[0])
                if done // SHARD > before // SHARD:
                    for writer in writers.values():
                        writer.sync()
                    save_json(progress, done)


def choose_precision(
    asked: str, base: Base, depths: Sequence[int], images: NDArray[np.uint8], batch_size: int
) -> tuple[str, str]:
    """The type that the prefix computes in, and why: as asked, or for "auto" what pays on this device.

    bfloat16 or float16 where a convolution and then the prefix itself are faster in it by MIN_SPEED_UP, and on the probe
    batch `images` no output changes by more than MAX_CHANGE of their norm.
    """
    if asked == "float32":
        return asked, "extract.precision says so"
    gains = {asked: MIN_SPEED_UP} if asked != "auto" else {kind: measure_speed_up(kind) for kind in LOW_PRECISIONS}
    fast = [kind for kind, gain in gains.items() if gain >= MIN_SPEED_UP]
    if not fast:
        slow = " and ".join(f"in {kind} {gain:.2g}" for kind, gain in gains.items())
        return "float32", f"a convolution has {slow} times its speed here"

    def run(precision: str) -> tuple[float, list[NDArray[Any]]]:
        extractor = Extractor(base, depths, batch_size, precision)
        list(extractor.run(images))
        started = time.perf_counter()
        features = [output for outputs in extractor.run(images) for output in outputs]
        return time.perf_counter() - started, features

    seconds, full = run("float32")
    chosen, best, reasons = "float32", MIN_SPEED_UP, []
    for kind in fast:
        taken, low = run(kind)
        # What overflows in float16 changes by infinity or nan, which is too much.
        with np.errstate(over="ignore", invalid="ignore"):
            change = np.max([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(low, full, strict=True)])
        reasons.append(
            f"{kind} has {seconds / taken:.2g} times the speed on {len(images)} images and changes features by {change:.2g}"
        )
        if seconds / taken >= best and change <= MAX_CHANGE:
            chosen, best = kind, seconds / taken
    if asked != "auto":
        return asked, f"extract.precision says so; {reasons[0]}"
    return chosen, "; ".join(reasons)


def choose_dtype(features: NDArray[np.float32]) -> type[np.floating[Any]]:
    """float16, or float32 where float16 would lose more than a thousandth (an untrained base's features underflow)."""
    rounded = np.clip(features, -65504, 65504).astype(np.float16).astype(np.float32)
    return np.float16 if np.linalg.norm(features - rounded) <= 1e-3 * np.linalg.norm(features) else np.float32


def compute_features(forward: Forward, inputs: Array) -> list[NDArray[np.float32]]:
    """The outputs of a compiled graph for one batch, float32."""
    outputs = forward(ops.convert_to_tensor(inputs))
    return [np.asarray(ops.convert_to_numpy(output), np.float32) for output in outputs]
