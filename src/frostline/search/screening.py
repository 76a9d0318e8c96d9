"""Which base, at which size: a cross-validated head on every cut of some images, for each candidate.

Base and size matter more than depth, and cost a pass over a sample instead of a search.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from frostline.arrays import load_array
from frostline.bases.base import Base, load_base
from frostline.bases.cost import flops_of
from frostline.bases.extraction import Extractor
from frostline.bases.files import fetch_weights
from frostline.bases.statistics import check_input
from frostline.errors import Refused
from frostline.evidence.comparison import Interval, wilson_interval
from frostline.files import sha256_of
from frostline.images.duplicates import group_near_duplicates
from frostline.images.folders import Layout
from frostline.images.shards import decode_shards, load_thumbs
from frostline.images.splits import draw_point
from frostline.images.survey import WEIGHTS
from frostline.images.walk import Entry
from frostline.params import Base as BaseParams
from frostline.params import Prepare
from frostline.process import count_cores
from frostline.seeding import derive_seed
from frostline.training.data import draw_folds
from frostline.training.linear import CrossValidation, cross_validate
from frostline.training.tail import group_columns

FIRST = 300  # images that all candidates are judged on
FAR = 3.0  # standard errors behind the best of the first images from which on a candidate is left behind
FOLDS = 5
MIN_CLASS = 10  # images of a class, where it has so many
BATCH = 64
CHANCE = 1.96  # standard errors from which on a difference is called one


@dataclass(frozen=True)
class Sample:
    """The images of a screening at one size.

    images: uint8 (num_images, size, size, 3); labels: int32, folds: int64, both (num_images,).
    """

    images: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int32] = field(repr=False)
    folds: NDArray[np.int64] = field(repr=False)
    classes: tuple[str, ...]

    def spread(self, number: int) -> NDArray[np.intp]:
        """The places of about so many of its images, evenly spread."""
        return np.unique(np.linspace(0, len(self.labels) - 1, min(number, len(self.labels))).astype(np.intp))


@dataclass(frozen=True, eq=False)
class Screened:
    """What a candidate is worth, out of fold, and what it costs.

    rows: of the sample, on which it was judged; losses: float64 (num_images,), cross-entropy in nats; right: bool (num_images,);
    head: the linear head on every cut; images_per_second: of the prefix; column_bytes: what the pooled cuts of one view take.
    """

    candidate: "Candidate" = field(repr=False)
    rows: NDArray[np.intp] = field(repr=False)
    losses: NDArray[np.float64] = field(repr=False)
    right: NDArray[np.bool_] = field(repr=False)
    head: CrossValidation = field(repr=False)
    images_per_second: float
    column_bytes: int
    seconds: float

    @property
    def base(self) -> BaseParams:
        return self.candidate.base

    @property
    def network(self) -> Base:
        return self.candidate.network

    @property
    def log_loss(self) -> float:
        return float(self.losses.mean())

    @property
    def error(self) -> float:
        """The standard error of the log loss."""
        return float(self.losses.std(ddof=1) / math.sqrt(len(self.losses)))

    @property
    def accuracy(self) -> Interval:
        return wilson_interval(int(self.right.sum()), len(self.right))

    def behind(self, other: "Screened") -> tuple[float, float]:
        """How much more log loss than `other` on the same images, and the standard error of that difference."""
        difference = self.losses - other.losses
        return float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))

    def accuracy_by_class(self) -> dict[str, float]:
        """The share of right predictions of each class, the hardest class first."""
        labels, classes = self.candidate.sample.labels[self.rows], self.candidate.sample.classes
        present = np.unique(labels).tolist()  # the first images of many classes need not be of all
        shares = {classes[label]: float(self.right[labels == label].mean()) for label in present}
        return dict(sorted(shares.items(), key=lambda item: item[1]))

    def to_record(self) -> dict[str, Any]:
        """All but what belongs to single images."""
        accuracy = self.accuracy
        return {
            "base": self.base.model_dump(mode="json"),
            "accuracy": {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high},
            "log_loss": {"value": self.log_loss, "error": self.error},
            "strength": self.head.choice.strength,
            "images_per_second": self.images_per_second,
            "flops": flops_of(self.network)["total"],
            "column_bytes": self.column_bytes,
            "seconds": self.seconds,
        }


def draw_sample(layout: Layout, prepare: Prepare, seed: int, number: int) -> list[Entry]:
    """About `number` files, of each class by its share and at least MIN_CLASS; none that will be tested on.

    Where the folder has splits, of its `train`; else not those that `prepare` will draw into `test`, as far as a file alone
    tells: a near duplicate of a test image may be among them.
    """
    members: dict[str, list[Entry]] = defaultdict(list)
    for entry in layout.entries:
        if entry.split in (None, "train"):
            members[entry.class_name].append(entry)
    drawn = not {"validation", "test"} & set(layout.splits)
    share = min(1.0, number / max(1, sum(map(len, members.values()))))
    sample: list[Entry] = []
    for own in members.values():
        wanted, taken = max(MIN_CLASS, math.ceil(share * len(own))), 0
        for entry in sorted(own, key=lambda entry: derive_seed(seed, "screen", entry.image_id)):
            if taken == wanted:
                break
            if drawn and draw_point(sha256_of(Path(entry.path)), seed) < prepare.test_share:
                continue
            sample.append(entry)
            taken += 1
    return sorted(sample, key=lambda entry: entry.image_id)


def load_sample(entries: Sequence[Entry], prepare: Prepare, size: int, seed: int, work: Path) -> Sample:
    """The files decoded to a size, with folds by class in which near duplicates are never apart. Refused for one class."""
    shards = decode_shards(entries, prepare, size, work / f"{size}", count_cores())
    records = [record for shard in shards for record in shard.records if not record.reason]
    classes = sorted({record.class_name for record in records})
    if len(classes) < 2:
        raise Refused(f"{len(records)} usable images of {len(classes)} classes; at least 2 classes are needed.")
    images = np.concatenate([load_array(shard.folder / "images.npy") for shard in shards])
    labels = np.array([classes.index(record.class_name) for record in records], np.int32)
    groups = group_near_duplicates(records, load_thumbs(shards), prepare.near_duplicate_bits)
    return Sample(images, labels, draw_folds(labels, groups, FOLDS, derive_seed(seed, "screen")), tuple(classes))


class Candidate:
    """A base at one size, built, checked and compiled once, and judged on more and more images of a sample.

    work: where its weights are put; known: are its weights known to know such images? Refused where the base cannot be had, or a
    file's weights do not know the images.
    """

    def __init__(self, base: BaseParams, sample: Sample, *, known: bool, seed: int, work: Path) -> None:
        started = time.monotonic()
        self.base, self.sample = base, sample
        fetch_weights(base, work, seed)
        self.network = load_base(base, work)
        # What has a name was compared with a hash already.
        named = base.weights in WEIGHTS
        self.warnings = () if named or known else tuple(check_input(self.network, sample.images))
        self._extractor = Extractor(self.network, [], min(BATCH, len(sample.images)))
        # Features of the plain and of the mirrored images, and which of them are there.
        self._images = (sample.images, sample.images[:, :, ::-1])
        self._views = np.zeros((2, len(sample.labels), *self._extractor.shapes[0]), np.float32)
        self._done = np.zeros((2, len(sample.labels)), bool)
        self._laps: list[tuple[int, float]] = []  # images and seconds; the first are slow, it is compiled
        self.seconds = time.monotonic() - started

    def judge(self, rows: NDArray[np.intp], *, mirrored: bool = False) -> Screened:
        """What it is worth on these images: its prefix over those that it has not seen yet, then a cross-validated head.

        mirrored: with the mirrored images beside the plain ones.
        """
        started, num_views = time.monotonic(), 1 + mirrored
        for view in range(num_views):
            missing = rows[~self._done[view, rows]]
            for part in (missing[:BATCH], missing[BATCH:]):
                self._compute(view, part)
        if len(self._laps) == 1:
            self._compute(0, rows)
        labels, groups = self.sample.labels[rows], group_columns(self.network, "all")
        views = self._views[:num_views, rows]
        views = views.astype(self._extractor.choose_pooled_type(views[0]))  # as `extract` stores them
        with threadpool_limits(1, "blas"):
            head = cross_validate(views, labels, len(self.sample.classes), self.sample.folds[rows], groups=groups)
        number, spent = np.sum(self._laps[1:], axis=0)
        logits = log_softmax(head.logits.astype(np.float64), axis=1)
        self.seconds += time.monotonic() - started
        return Screened(
            candidate=self,
            rows=rows,
            losses=-logits[np.arange(len(rows)), labels],
            right=logits.argmax(axis=1) == labels,
            head=head,
            images_per_second=float(number / spent),
            column_bytes=views[0, 0].nbytes,
            seconds=self.seconds,
        )

    def _compute(self, view: int, rows: NDArray[np.intp]) -> None:
        if len(rows):
            started = time.monotonic()
            batches = self._extractor.run(self._images[view], rows)
            self._views[view, rows] = np.concatenate([batch[0] for batch in batches])
            self._done[view, rows] = True
            self._laps.append((len(rows), time.monotonic() - started))


def race(
    bases: Sequence[BaseParams],
    samples: Callable[[int], Sample],
    *,
    seed: int,
    work: Path,
    report: Callable[[Screened], None] = lambda _: None,
) -> tuple[list[Screened], list[Screened]]:
    """All candidates on FIRST images, and those that are not far behind there on all: (the ranking, who was left behind).

    samples: gives the sample at a size; report: is shown each candidate once it is judged. Those left behind were judged on
    fewer images. Successive elimination as in Hoeffding races (Maron and Moore, NIPS 1993), with a normal interval.
    """
    candidates: dict[str, Candidate] = {}
    seen: set[str] = set()

    def judge(base: BaseParams, number: int | None = None) -> Screened:
        sample, key = samples(base.image_size), base.model_dump_json()
        if key not in candidates:
            weights = base.model_dump_json(exclude={"image_size"})
            place = work / f"base-{len(candidates):02d}"
            candidates[key] = Candidate(base, sample, known=weights in seen, seed=seed, work=place)
            seen.add(weights)
        found = candidates[key].judge(sample.spread(number or len(sample.labels)))
        report(found)
        return found

    first = rank([judge(base, FIRST) for base in bases])
    near = [each for each in first if each is first[0] or each.behind(first[0])[0] <= FAR * each.behind(first[0])[1]]
    if len(samples(bases[0].image_size).labels) <= FIRST:
        return first, []
    left = [each for each in first if each not in near]
    return rank([judge(each.base) for each in near]), left


def rank(screened: Sequence[Screened]) -> list[Screened]:
    """The lowest out-of-fold log loss first; of equal ones the faster."""
    return sorted(screened, key=lambda each: (each.log_loss, -each.images_per_second))


def find_equals(ranked: Sequence[Screened]) -> list[Screened]:
    """The first of a ranking, and those that the sample cannot tell from it."""
    equals = [ranked[0]]
    for each in ranked[1:]:
        difference, error = each.behind(ranked[0])
        if difference <= CHANCE * error:
            equals.append(each)
    return equals
