"""What each part of the line takes here, measured on a handful of images with the code that the stages run."""

import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from frostline.arrays import digest_rows, load_array
from frostline.errors import Refused
from frostline.files import COMPLETE, load_json, require_complete
from frostline.images.folders import Layout, read_layout
from frostline.images.sources import count_layout, shown_source, source_of
from frostline.images.survey import describe_changes
from frostline.params import Params, Prepare, Refit, Tune
from frostline.planning.closure import code_of
from frostline.planning.depths import Images, Network, Reach, describe_network, find_reach
from frostline.planning.storage import fit_views, flips, list_depths, trains_on_val
from frostline.process import work_folder

if TYPE_CHECKING:
    from frostline.bases.base import Base


SAMPLE = 96  # images decoded and augmented
WRITTEN = 64_000_000  # bytes written to time the disk
BATCHES, EPOCHS = 6, 3  # of a tail's training; the prefix gets as many batches


@dataclass(frozen=True)
class Counts:
    """Images: files to decode, and in each split as prepare made them or, before it ran, as its shares say."""

    files: int
    train: int
    val: int
    test: int
    num_classes: int
    prepared: bool
    val_is_drawn: bool


class Tail(NamedTuple):
    """Seconds of a tail: to compile it, and per image to train and to validate."""

    trace: float
    train: float
    validate: float


@dataclass(frozen=True)
class Pace:
    """Seconds.

    decode: per file, augment: per view, each on one core; disk: per byte; start: until a stage's libraries are loaded;
    build: base and compiled prefix; prefix: per image, on the whole device; tails: by depth.
    """

    decode: float
    augment: float
    disk: float
    start: dict[str, float]
    build: float
    prefix: float
    tails: dict[int, Tail]


@dataclass(frozen=True)
class Facts:
    """What the network says: bytes of an image's map by depth and of its pooled cuts, FLOPs below each cut, the precision."""

    row_bytes: dict[int, int]
    pooled_bytes: int
    prefix_flops: list[int]
    precision: str
    reason: str
    # What the rows of features are made from, which tells whether there are some already.
    rows: dict[str, Any] = field(default_factory=dict)
    reach: Reach | None = None  # how deep the search goes; None where params are of numbers


@contextmanager
def timed() -> Iterator[list[float]]:
    """A list that holds the seconds of the block once it has ended."""
    taken: list[float] = []
    started = time.perf_counter()
    yield taken
    taken.append(time.perf_counter() - started)


def count_images(params: Params) -> Counts:
    """How many images there are; Refused where only `fetch` can tell."""
    raw, prepared = Path(params.paths.raw), Path(params.paths.prepared)
    changed = describe_changes(params.fetch, params.base, raw, Path())
    if _raw(params) and (prepared / COMPLETE).is_file() and not changed:
        facts = require_complete(prepared)
        numbers, names = facts["num_images"], load_json(prepared / "classes.json")
        files = sum(numbers.values()) + sum(facts["left_out"].values())
        return Counts(files, numbers["train"], numbers["val"], numbers["test"], len(names), True, facts["val_is_drawn"])
    here = _raw(params) and not changed
    files, num_classes, splits = count_layout(read_layout(raw)) if here else source_of(params.fetch).count()
    return Counts(files, *_shares(files, splits, params.prepare), num_classes, False, "validation" not in splits)


def count_trained(refit: Refit, counts: Counts) -> tuple[int, int]:
    """(images that the final model is trained on, others of train and val)."""
    with_val = trains_on_val(refit.train_on_val, counts.val_is_drawn)
    return counts.train + (counts.val if with_val else 0), 0 if with_val else counts.val


def reach_of(params: Params, network: Network, counts: Counts) -> Reach:
    """How deep a search on so many images goes, as `extract` will find."""
    trained = count_trained(params.refit, counts)[0]
    views = fit_views(trained, params.base.image_size, params.augment.views, params.storage.budget_gb)
    images = Images(counts.train, counts.val, counts.test, trained, views, flips(params.augment))
    return find_reach(params, network, images)


def _shares(files: int, splits: dict[str, int], prepare: Prepare) -> tuple[int, int, int]:
    """train, val and test as `prepare` will draw them, by its shares."""
    if "validation" in splits:
        test = splits.get("test", splits["validation"] // 2)
        return splits["train"], splits["validation"] - (0 if "test" in splits else test), test
    if "test" in splits:
        val = round(prepare.val_share * splits["train"])
        return splits["train"] - val, val, splits["test"]
    val, test = round(prepare.val_share * files), round(prepare.test_share * files)
    return files - val - test, val, test


def _raw(params: Params) -> bool:
    """Are the images that params ask for in `paths.raw`?"""
    marker = Path(params.paths.raw) / COMPLETE
    return marker.is_file() and bool(load_json(marker).get("source") == shown_source(params.fetch.source))


def find_images(params: Params, work: Path, number: int) -> Layout:
    """The images that params ask for, where they are, or about `number` where they are drawn, below `work`."""
    if _raw(params):
        return read_layout(Path(params.paths.raw))
    return source_of(params.fetch).sample(work / "drawn", number, params.base.image_size, params.seed)


def measure_images(params: Params, work: Path) -> tuple[NDArray[np.uint8], float, float]:
    """Some decoded images, and the seconds per file and per view on one core."""
    from frostline.images.shards import decode_shards
    from frostline.images.transforms import build_transforms
    from frostline.images.views import make_views

    size, entries = params.base.image_size, find_images(params, work, SAMPLE).entries
    chosen = [entries[place] for place in np.linspace(0, len(entries) - 1, min(SAMPLE, len(entries))).astype(int)]
    decode_shards(chosen[:4], params.prepare, size, work / "first", 1)
    with timed() as decoded:
        shards = decode_shards(chosen, params.prepare, size, work / "shards", 1)
    images = np.concatenate([load_array(shard.folder / "images.npy") for shard in shards])
    if not len(images):
        raise Refused(f"None of {len(chosen)} images could be read. `dvc repro prepare` names the reasons.")
    pipeline, digests = build_transforms(params.augment.transforms, size), digest_rows(images)
    make_views(images[:4], digests[:4], pipeline, view=1, seed=0)
    with timed() as augmented:
        make_views(images, digests, pipeline, view=1, seed=0)
    return images, decoded[0] / len(chosen), augmented[0] / len(images)


def measure_disk(work: Path) -> float:
    """Seconds per byte of a file that is written and flushed."""
    block = os.urandom(1_000_000)
    with timed() as taken, (work / "written").open("wb") as file:
        for _ in range(WRITTEN // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    return taken[0] / WRITTEN


def measure(params: Params) -> tuple[Counts, Facts, Pace]:
    """Everything a plan needs; takes a minute or two, most of it to load the network's libraries and to compile."""
    start = _start_times()
    counts = count_images(params)
    with work_folder("plan") as work:
        images, decode, augment = measure_images(params, work)
        facts, build, prefix, tails = _measure_network(_capped(params, counts.train), images, counts, work)
        disk = measure_disk(work)
    return counts, facts, Pace(decode, augment, disk, start, build, prefix, tails)


def _capped(params: Params, num_images: int) -> Params:
    """The params with batches no larger than the images, as `tune` makes them."""
    tune = params.tune.model_copy(update={"batch_size": max(1, min(params.tune.batch_size, num_images))})
    return params.model_copy(update={"tune": tune})


def _start_times() -> dict[str, float]:
    """Seconds from the start of a process until what a stage needs is loaded, by this process's own start."""
    born = psutil.Process().create_time()
    start: dict[str, float] = {}
    for stages, module in (
        (("prepare", "augment"), "images.views"),
        (("extract",), "bases.extraction"),
        (("tune", "refit"), "search.worker"),
    ):
        importlib.import_module(f"frostline.{module}")
        start |= dict.fromkeys(stages, time.time() - born)
    return start


def _measure_network(
    params: Params, images: NDArray[np.uint8], counts: Counts, work: Path
) -> tuple[Facts, float, float, dict[int, Tail]]:
    from frostline.bases.cost import flops_of
    from frostline.bases.extraction import choose_extractor, feature_facts
    from frostline.bases.features import POOLED, depth_folder

    size = params.extract.batch_size
    with timed() as built:
        base = _load_base(params, work)
        flops = flops_of(base)
        reach = reach_of(params, describe_network(base, flops), counts)
        params = params.with_depths(reach.first, reach.last)
        depths = list_depths(params.tune)
        num_rows = sum(count_trained(params.refit, counts)) * params.augment.views
        extractor, reason = choose_extractor(params.extract.precision, base, depths, images[:size], size, num_rows)
        row_bytes = extractor.row_bytes(images[:size])
    rows = np.resize(np.arange(len(images)), max(len(images), size * BATCHES))
    with timed() as passed:
        for _ in extractor.run(images[rows]):
            pass
    tried = sorted({0, *depths})
    measured = sorted({tried[0], tried[len(tried) // 2], tried[-1]})
    known = [
        _measure_tail(params.tune, base, depth, counts.num_classes, extractor.types(images)[-1]) for depth in measured
    ]
    # Between measured depths seconds follow the FLOPs above the cut.
    above = [flops["suffix"][depth] for depth in measured]
    tails = {
        depth: Tail(*(float(np.interp(flops["suffix"][depth], above, column)) for column in zip(*known, strict=True)))
        for depth in tried
    }
    by_depth = {depth: row_bytes[depth_folder(depth)] for depth in depths}
    card = load_json((Path(params.paths.base) if params.base.weights == "imagenet" else work / "base") / "card.json")
    made_from = feature_facts(card, base, extractor, code_of("bases/extraction.py"))
    facts = Facts(by_depth, row_bytes[POOLED], flops["prefix"], extractor.precision, reason, made_from, reach)
    return facts, built[0], passed[0] / len(rows), tails


def _load_base(params: Params, work: Path) -> "Base":
    """The base with the weights that params ask for, also before `fetch` has run."""
    from frostline.bases.base import load_base
    from frostline.bases.files import fetch_weights

    if params.base.weights != "imagenet":
        fetch_weights(params.base, work / "base", seed=params.seed)
        return load_base(params.base, work / "base")
    folder = Path(params.paths.base)
    if not (folder / COMPLETE).is_file() or load_json(folder / "card.json")["name"] != params.base.name:
        raise Refused(
            f"base.weights: ImageNet's weights of {params.base.name} are not here yet. Run `dvc repro fetch`."
        )
    return load_base(params.base, folder)


def _measure_tail(tune: Tune, base: "Base", depth: int, num_classes: int, dtype: type) -> Tail:
    """One tail on noise: the speed does not depend on what the features say."""
    from frostline.search.space import make_baseline
    from frostline.training.data import TrainingData
    from frostline.training.tail import build_tail, start_head
    from frostline.training.trainer import Trainer

    hparams = make_baseline(tune.space, depth)
    sees = "last" if tune.pooling == "flatten" else hparams.head_input
    with timed() as built:
        tail = build_tail(base, depth, num_classes, units=hparams.head_units, pooling=tune.pooling, sees=sees)
        trainer = Trainer(tail, hparams.optimizer, tune.batch_size, num_classes)
    width = tail.map_size + tail.columns.stop - tail.columns.start
    features: NDArray[Any] = (
        np.random.default_rng(0).random((BATCHES * tune.batch_size, width), np.float32).astype(dtype)
    )
    labels, rows = np.arange(len(features), dtype=np.int32) % num_classes, np.arange(len(features))
    data = TrainingData([features], None, labels, rows, rows, np.ones(num_classes, np.float32))
    start = trainer.start(start_head(tail, 0, None), 0)
    for _ in trainer.epochs(start, data, hparams, num_epochs=EPOCHS, schedule=tune.schedule, seed=0):
        pass
    # The first validation compiles, too.
    compiled = trainer.seconds["validate"] - EPOCHS * len(features) * trainer.pace["validate"]
    return Tail(
        built[0] + trainer.seconds["trace"] + max(0.0, compiled), trainer.pace["train"], trainer.pace["validate"]
    )
