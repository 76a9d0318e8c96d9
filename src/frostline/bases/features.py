"""Features on disk: what the frozen prefix makes of every view, computed once."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from frostline.arrays import ArrayWriter, take_rows
from frostline.bases.base import Base
from frostline.bases.cuts import build_prefix
from frostline.devices import Tensor, choose_streams, compile_frozen, measure_speed_up
from frostline.files import load_json, part_of, save_json
from frostline.seeding import in_order

SHARD = 2048  # pictures after which what is written is made safe
# What a lower precision must bring: how many times the speed; and what it may cost: relative change of the features. The
# final model computes in float32: 1 % of the bundled base's features moved one of its probabilities by 0.04.
LOW_PRECISIONS = ("bfloat16", "float16")
MIN_SPEED_UP, MAX_CHANGE = 1.2, 0.002
Array = NDArray[Any]
Forward = Callable[[Tensor], list[Tensor]]


def depth_folder(folder: Path, depth: int) -> Path:
    """Where the features for `depth` unfrozen blocks are."""
    return folder / f"depth-{depth:02d}"


class Extractor:
    """The frozen prefix of a base, compiled: pictures -> features at each depth, in one pass."""

    def __init__(
        self, base: Base, depths: Sequence[int], pooling: str, batch_size: int, precision: str = "float32"
    ) -> None:
        prefix = build_prefix(base, depths, None if pooling == "flatten" else pooling, precision)
        self.depths, self.batch_size, self.precision = tuple(depths), batch_size, precision
        self.shapes = [tuple(tensor.shape[1:]) for tensor in prefix.outputs]
        self._forward = compile_frozen(prefix)
        self._types: list[type[np.floating[Any]]] = []

    def run(self, images: NDArray[np.uint8], first: int = 0) -> Iterator[list[NDArray[np.float32]]]:
        """Features batch by batch, in the pictures' order, from the row `first`: one array (num_images, *shape) per depth.

        The number of batches that are computed at a time changes no feature, their size none by more than rounding.
        """
        streams, size = choose_streams(self.batch_size)

        def compute(start: int) -> list[NDArray[np.float32]]:
            return compute_features(self._forward, take_rows(images, slice(start, start + size)))

        with ThreadPoolExecutor(streams) as pool:
            starts = [(start,) for start in range(first, len(images), size)]
            yield from in_order(pool, compute, starts, ahead=2 * streams)

    def types(self, images: NDArray[np.uint8]) -> list[type[np.floating[Any]]]:
        """The type in which each depth is stored, by the features of the first pictures; asked once."""
        if not self._types:
            self._types = [choose_dtype(values) for values in next(self.run(images[: self.batch_size]))]
        return self._types

    def row_bytes(self, images: NDArray[np.uint8]) -> dict[int, int]:
        """Bytes that one picture's features take at each depth."""
        sizes = [
            int(np.prod(shape)) * np.dtype(kind).itemsize
            for shape, kind in zip(self.shapes, self.types(images), strict=True)
        ]
        return dict(zip(self.depths, sizes, strict=True))

    def save(
        self, sources: Mapping[str, NDArray[np.uint8]], folder: Path, stored: Collection[int] | None = None
    ) -> Iterator[str]:
        """Writes the features of every source at every depth of `stored` (all where it is None); yields each name when done.

        sources: name -> uint8 (num_images, size, size, 3), e.g. "view-003" or "val". Writes `depth-DD/<name>.npy`, float16
        or float32 (num_images, *feature shape). What is there already is kept: a killed extraction goes on after the last
        SHARD pictures that it had written.
        """
        kinds = self.types(next(iter(sources.values())))
        for name, images in sources.items():
            paths = {
                place: depth_folder(folder, depth) / f"{name}.npy"
                for place, depth in enumerate(self.depths)
                if stored is None or depth in stored
            }
            if not all(path.is_file() for path in paths.values()):
                self._save(images, paths, kinds, folder / f".{name}.rows")
            (folder / f".{name}.rows").unlink(missing_ok=True)
            yield name

    def _save(
        self,
        images: NDArray[np.uint8],
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
    asked: str, base: Base, depths: Sequence[int], pooling: str, images: NDArray[np.uint8], batch_size: int
) -> tuple[str, str]:
    """The type that the prefix computes in, and why: as asked, or for "auto" what pays on this device.

    bfloat16 or float16 where a convolution and then the prefix itself are faster in it by MIN_SPEED_UP, and on the probe
    batch `images` no depth's features change by more than MAX_CHANGE of their norm.
    """
    if asked == "float32":
        return asked, "extract.precision says so"
    gains = {asked: MIN_SPEED_UP} if asked != "auto" else {kind: measure_speed_up(kind) for kind in LOW_PRECISIONS}
    fast = [kind for kind, gain in gains.items() if gain >= MIN_SPEED_UP]
    if not fast:
        slow = " and ".join(f"in {kind} {gain:.2g}" for kind, gain in gains.items())
        return "float32", f"a convolution has {slow} times its speed here"

    def run(precision: str) -> tuple[float, list[NDArray[Any]]]:
        extractor = Extractor(base, depths, pooling, batch_size, precision)
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
            f"{kind} has {seconds / taken:.2g} times the speed on {len(images)} pictures and changes features by {change:.2g}"
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
    outputs = forward(ops.convert_to_tensor(inputs))
    return [np.asarray(ops.convert_to_numpy(output), np.float32) for output in outputs]
