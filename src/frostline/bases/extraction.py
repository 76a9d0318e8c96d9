"""The one pass over the frozen prefix: images -> features on disk, computed where no earlier run made them."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import (
    DIGEST,
    DIGESTS,
    ArrayWriter,
    Digests,
    ImageSplit,
    JoinedRows,
    Rows,
    digest_rows,
    load_array,
    save_array,
    take_rows,
)
from frostline.bases.base import Base, load_base
from frostline.bases.cuts import build_prefix, choose_pooled, find_means
from frostline.bases.features import MIRROR, PLAIN, POOLED, TEST, choose_dtype, compute_features, depth_folder
from frostline.devices import BACKEND, choose_streams, compile_frozen, measure_speed_up, on_cpu, tree
from frostline.files import part_of
from frostline.images.rows import EarlierRows
from frostline.params import Base as BaseParams
from frostline.scale.local import HERE
from frostline.scale.work import Engine, Work
from frostline.seeding import in_order

BLOCK = 256  # rows that are written at once
SHARD = 2048  # images after which what is written is made safe
TASK_BYTES = 32_000_000  # of features that another process computes as one task, and sends back
PIXELS = "pixels"  # among the digests: those of the images that features are made from
# What a lower precision must bring: how many times the speed; and what it may cost: relative change of the features. The
# final model computes in float32: 1 % of the bundled base's features moved one of its probabilities by 0.04.
LOW_PRECISIONS = ("bfloat16", "float16")
MIN_SPEED_UP, MAX_CHANGE = 1.2, 0.002
MIN_SECONDS = 60  # of the whole work in float32, below which nothing else is tried: to compile it takes as long


@dataclass(frozen=True)
class Source:
    """Images of which features are made: uint8 (num_images, size, size, 3), and the digests of their pixels."""

    images: Rows
    digests: Digests


@dataclass(frozen=True)
class Output:
    """One file of a source's features: `place` among the extractor's outputs, and the rows that earlier runs made.

    places: of each row among those, -1 where none is; sound: bool (num_rows,), those that are there and are what was written.
    """

    place: int
    file: str
    rows: EarlierRows
    places: NDArray[np.int64]
    sound: NDArray[np.bool_]

    def fill(self, block: slice, new: NDArray[np.bool_], made: NDArray[np.float32] | None) -> NDArray[Any]:
        """The rows of a block: earlier ones, and of those that were `made`, one for each row that is `new`, the others."""
        there = self.sound[block]
        values = np.empty((len(there), *self.rows.shape), self.rows.dtype)
        values[there] = self.rows.take(self.places[block][there])
        if made is not None:
            limit = np.finfo(self.rows.dtype).max  # kept as the largest number, not as infinity
            values[~there] = np.clip(made[~there[new]], -limit, limit)
        return values


def list_sources(
    train: ImageSplit, val: ImageSplit, views: Path, num_views: int, *, mirrored: bool
) -> dict[str, Source]:
    """What features are made of: plain images of train and val, the views from 1 on, and the plain ones mirrored."""
    digests = np.concatenate([train.digests, val.digests])
    sources = {PLAIN: Source(JoinedRows(train.images, val.images), digests)}
    for view in range(1, num_views):
        name = f"view-{view:03d}"
        images = JoinedRows(load_array(views / f"{name}.npy"))
        sources[name] = Source(images, load_array(views / DIGESTS / f"{name}.npy"))
    if mirrored:
        sources[MIRROR] = Source(JoinedRows(train.images, val.images, mirrored=True), digests)
    return sources


class Extractor:
    """The frozen prefix of a base, compiled: images -> maps at each depth and all cuts pooled, in one pass.

    folders: where each output lies among the features, in their order; shapes: of one image's row of each; streams: how many
    batches are computed at a time, and their size. pooled: with all cuts pooled, as the last output.
    """

    def __init__(
        self, base: Base, depths: Sequence[int], batch_size: int, precision: str = "float32", *, pooled: bool = True
    ) -> None:
        prefix = build_prefix(base, depths, precision, pooled=pooled)
        self.base, self.depths = base, list(depths)
        self.batch_size, self.precision = batch_size, precision
        self.folders = (*(depth_folder(depth) for depth in depths), *([POOLED] if pooled else []))
        self.shapes = [tuple(tensor.shape[1:]) for tensor in prefix.outputs]
        self._forward, self._is_compiled = compile_frozen(prefix), False
        outputs = [output for operation in base.model.operations for output in tree.flatten(operation.output)]
        areas = {output.shape[1] * output.shape[2] for output in outputs if len(output.shape) == 4}
        self.streams = choose_streams(batch_size, areas)
        # Where the columns of each pooled cut end.
        self._ends = np.cumsum([2 * cut.shape[-1] for cut in choose_pooled(base)])
        self._types: list[type[np.floating[Any]]] = []
        self._shorter: dict[tuple[int, ...], Extractor] = {}

    def shorten(self, places: Sequence[int]) -> "Extractor":
        """The pass that makes these outputs, none of which is the last: it ends at the last cut that they need."""
        key = tuple(places)
        if key not in self._shorter:
            depths = [self.depths[place] for place in places]
            self._shorter[key] = Extractor(self.base, depths, self.batch_size, self.precision, pooled=False)
        return self._shorter[key]

    def run(self, images: Rows, rows: NDArray[np.intp] | None = None) -> Iterator[list[NDArray[np.float32]]]:
        """Features of these rows (of all where it is None) batch by batch, in their order: an array (batch, *shape) per output.

        Neither the number of batches that are computed at a time nor the other images of a batch change a feature; a batch
        that is not full is filled up, because its size may, by rounding.
        """
        streams, size = self.streams
        wanted = np.arange(len(images)) if rows is None else rows

        def compute(start: int) -> list[NDArray[np.float32]]:
            return compute_features(self._forward, take_rows(images, wanted[start : start + size]), size)

        starts = [(start,) for start in range(0, len(wanted), size)]
        if starts and not self._is_compiled:  # by one thread: JAX compiles what several ask for at once several times
            yield compute(*starts.pop(0))
            self._is_compiled = True
        with ThreadPoolExecutor(streams) as pool:
            # While a block is written, the next is computed.
            yield from in_order(pool, compute, starts, ahead=2 * streams + BLOCK // size)

    def types(self, images: Rows) -> list[type[np.floating[Any]]]:
        """The type in which each output is stored, by the features of the first images; asked once."""
        if not self._types:
            *maps, pooled = next(self.run(take_rows(images, slice(0, self.batch_size))))
            self._types = [choose_dtype(values) for values in maps]
            self._types.append(self.choose_pooled_type(pooled))
        return self._types

    def choose_pooled_type(self, pooled: NDArray[np.float32]) -> type[np.floating[Any]]:
        """The type in which all cuts pooled, (num_images, num_features), are stored."""
        cuts = [choose_dtype(values) for values in np.split(pooled, self._ends[:-1], axis=1)]
        return np.float32 if np.float32 in cuts else np.float16

    def row_bytes(self, images: Rows) -> dict[str, int]:
        """Bytes that one image's features take in each folder."""
        sizes = [
            int(np.prod(shape)) * np.dtype(kind).itemsize
            for shape, kind in zip(self.shapes, self.types(images), strict=True)
        ]
        return dict(zip(self.folders, sizes, strict=True))

    def save(
        self,
        sources: Mapping[str, Source],
        folder: Path,
        stored: Collection[str] | None = None,
        earlier: Sequence[Path] = (),
        *,
        engine: Engine = HERE,
        base: tuple[BaseParams, Path] | None = None,
    ) -> Iterator[tuple[str, int]]:
        """Writes the features of every source into the folders `stored` (all where it is None).

        Yields each name when done, and how many of its rows were computed. Writes `depth-DD/<name>.npy` and
        `pooled/<name>.npy`, float16 or float32 (num_images, *feature shape), and below `digests/` those of their rows and of the
        pixels that they are made from. What is there already is kept: a killed extraction goes on after the last SHARD images
        that it had written. earlier: folders of features that were made by the same network; rows of the same pixels are
        taken from there. They change nothing but the time, nor does the engine; base: what other processes load it from.
        """
        assert engine is HERE or base
        facts = (*(base or ()), self.depths, self.batch_size, self.precision)
        work = Work(_compute, _begin, facts, here=lambda: self, on_gpu=True)
        kinds = self.types(next(iter(sources.values())).images)
        for name, source in sources.items():
            places = [p for p, where in enumerate(self.folders) if stored is None or where in stored]
            files = [f"{self.folders[place]}/{name}.npy" for place in places]
            progress = folder / f".{name}.digests"
            computed = 0
            if not all((folder / file).is_file() for file in files):
                pixels = Path(DIGESTS) / PIXELS / f"{name}.npy"
                save_array(folder / pixels, [source.digests], source.digests.shape, np.uint8)
                outputs = []
                for place, file in zip(places, files, strict=True):
                    rows = EarlierRows(self.shapes[place], kinds[place])
                    for other in earlier:
                        rows.add(other / file, other / pixels, other / DIGESTS / file)
                    found = rows.find(source.digests)
                    outputs.append(Output(place, file, rows, found, rows.check(found)))
                computed = self._save(source.images, folder, outputs, progress, engine, work)
            progress.unlink(missing_ok=True)
            yield name, computed

    def describe_plain(
        self, test: ImageSplit, folder: Path, earlier: Sequence[Path] = (), **where: Any
    ) -> NDArray[Any]:
        """The mean of the last cut for each plain image of train, val and test, in this order: (num_images, num_channels).

        folder: where `save` has written features of train and val; those of test are written below it, for this alone. earlier,
        where: as in `save`.
        """
        plain = {PLAIN: Source(JoinedRows(test.images), test.digests)}
        for _ in self.save(plain, folder / TEST, [POOLED], [other / TEST for other in earlier], **where):
            pass
        files = [place / POOLED / f"{PLAIN}.npy" for place in (folder, folder / TEST)]
        return np.concatenate([load_array(file)[:, find_means(self.base)] for file in files])

    def _save(
        self, images: Rows, folder: Path, outputs: Sequence[Output], progress: Path, engine: Engine, work: Work
    ) -> int:
        """Writes the outputs of one source, and returns how many rows were computed.

        `progress` holds the digests of the rows of the unfinished files that can be trusted, uint8 (num_files, num_rows, DIGEST).
        """
        num_rows = len(images)
        digests = np.empty((len(outputs), num_rows, DIGEST), np.uint8)
        whole = all(part_of(folder / output.file).is_file() for output in outputs)
        kept = load_array(progress) if whole and progress.is_file() else digests[:, :0]
        done = kept.shape[1]
        digests[:, :done] = kept
        new = ~np.logical_and.reduce([output.sound for output in outputs])
        missing = np.flatnonzero(new)
        left = missing[missing >= done]
        lacking, made_places = self._choose_pass(outputs)
        row_bytes = sum(4 * int(np.prod(self.shapes[place])) for place in made_places)
        most = self.streams[1] * max(1, TASK_BYTES // (row_bytes * self.streams[1]))
        tasks = ((images, left[part], lacking, made_places) for part in engine.divide(len(left), most))
        with ExitStack() as stack:
            batches = Buffer(stack.enter_context(closing(engine.map(work, tasks))))
            writers = [
                stack.enter_context(
                    ArrayWriter(folder / output.file, (num_rows, *output.rows.shape), output.rows.dtype, resume_at=done)
                )
                for output in outputs
            ]
            for start in range(done, num_rows, BLOCK):
                block = slice(start, min(start + BLOCK, num_rows))
                made = dict(zip(made_places, batches.take(int(np.count_nonzero(new[block]))), strict=False))
                for index, (output, writer) in enumerate(zip(outputs, writers, strict=True)):
                    values = output.fill(block, new[block], made.get(output.place))
                    writer.append(values)
                    digests[index, block] = digest_rows(values)
                if block.stop // SHARD > start // SHARD:
                    for writer in writers:
                        writer.sync()
                    trusted = digests[:, : block.stop]
                    save_array(progress, [trusted], trusted.shape, np.uint8)
            for output, found in zip(outputs, digests, strict=True):
                save_array(folder / DIGESTS / output.file, [found], found.shape, np.uint8)
        return len(missing)

    def _choose_pass(self, outputs: Sequence[Output]) -> tuple[list[int], list[int]]:
        """Places at which a pass that makes them ends, none for the whole one; and the places of what is taken from it.

        Where all cuts are pooled already, the pass need not go to the end.
        """
        lacking = [output.place for output in outputs if not output.sound.all()]
        if not lacking or self.folders[lacking[-1]] == POOLED:
            return [], [output.place for output in outputs]
        return lacking, lacking


def _begin(base: BaseParams, folder: Path, depths: Sequence[int], batch_size: int, precision: str) -> Extractor:
    return Extractor(load_base(base, folder), depths, batch_size, precision)


def _compute(
    extractor: Extractor, images: Rows, rows: NDArray[np.intp], lacking: Sequence[int], places: Sequence[int]
) -> Iterator[list[NDArray[np.float32]]]:
    """Batches of the features of these rows at these places, by the pass that ends where they are lacking."""
    maker = extractor.shorten(lacking) if lacking else extractor
    made = list(lacking) or list(range(len(extractor.folders)))
    for batch in maker.run(images, rows):
        yield [batch[made.index(place)] for place in places]


class Buffer:
    """Batches of features, taken by any number of rows."""

    def __init__(self, batches: Iterator[list[NDArray[np.float32]]]) -> None:
        self._batches, self._left = batches, 0
        self._held: list[list[NDArray[np.float32]]] = []

    def take(self, number: int) -> list[NDArray[np.float32]]:
        """The next so many rows of each output, joined; an empty list for none."""
        if not number:
            return []
        while self._left < number:
            self._held.append(next(self._batches))
            self._left += len(self._held[-1][0])
        joined = [np.concatenate(column) for column in zip(*self._held, strict=True)]
        self._left -= number
        self._held = [[column[number:] for column in joined]]
        return [column[:number] for column in joined]


def describe_features(base: Base, extractor: Extractor, views: int, stored: Sequence[int]) -> dict[str, Any]:
    """The record of an extraction, `features.json`."""
    return {
        "base": base.name,
        "cuts": [{"depth": cut.depth, "name": cut.name, "shape": cut.shape} for cut in base.cuts],
        "pooled": [cut.depth for cut in choose_pooled(base)],
        "views": views,
        "stored": list(stored),
        "precision": extractor.precision,
    }


def feature_facts(card: Mapping[str, Any], base: Base, extractor: Extractor, code: str) -> dict[str, Any]:
    """What a row of features is made from besides its image; card: of the base's weights; code: a digest of what computes it."""
    return {
        "card": dict(card),
        "base": [base.name, base.image_size, base.scaling, [cut.name for cut in base.cuts]],
        "precision": extractor.precision,
        "batch_size": extractor.streams[1],
        "device": "cpu" if on_cpu() else "accelerator",
        "versions": [BACKEND, version("keras"), version(BACKEND), np.__version__],
        "code": code,
    }


def choose_extractor(
    asked: str, base: Base, depths: Sequence[int], images: NDArray[np.uint8], batch_size: int, num_images: int
) -> tuple[Extractor, str]:
    """The extractor in the precision that is asked for, or for "auto" in what pays on this device, and why.

    bfloat16 or float16 where a convolution and then the prefix itself are faster in it by MIN_SPEED_UP, on the probe
    batch `images` no output changes by more than MAX_CHANGE of their norm, and all `num_images` take MIN_SECONDS in float32.
    """
    exact = Extractor(base, depths, batch_size)
    if asked == "float32":
        return exact, "extract.precision says so"
    gains = {asked: MIN_SPEED_UP} if asked != "auto" else {kind: measure_speed_up(kind) for kind in LOW_PRECISIONS}
    fast = [kind for kind, gain in gains.items() if gain >= MIN_SPEED_UP]
    if not fast:
        slow = " and ".join(f"in {kind} {gain:.2g}" for kind, gain in gains.items())
        return exact, f"a convolution has {slow} times its speed here"

    def run(extractor: Extractor) -> tuple[float, list[NDArray[Any]]]:
        list(extractor.run(images))
        started = time.perf_counter()
        features = [output for outputs in extractor.run(images) for output in outputs]
        return time.perf_counter() - started, features

    seconds, full = run(exact)
    if asked == "auto" and (whole := seconds / len(images) * num_images) < MIN_SECONDS:
        return exact, f"all {num_images} images take {whole:.2g} s in it"
    chosen, best, reasons = exact, MIN_SPEED_UP, []
    for kind in fast:
        extractor = Extractor(base, depths, batch_size, kind)
        taken, low = run(extractor)
        # What overflows in float16 changes by infinity or nan, which is too much.
        with np.errstate(over="ignore", invalid="ignore"):
            change = np.max([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(low, full, strict=True)])
        reasons.append(
            f"{kind} has {seconds / taken:.2g} times the speed on {len(images)} images and changes features by {change:.2g}"
        )
        if asked != "auto":
            return extractor, f"extract.precision says so; {reasons[0]}"
        if seconds / taken >= best and change <= MAX_CHANGE:
            chosen, best = extractor, seconds / taken
    return chosen, "; ".join(reasons)
