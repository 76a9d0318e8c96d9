"""Images that show the same photograph though their files, pixels and hashes differ: cropped, mirrored, recoloured.

A network's features tell which images may be copies; their pixels, laid over each other, tell which are.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from frostline.arrays import (
    ALL,
    DIGESTS,
    FINAL_ONLY,
    GROUPS,
    LEFT_OUT,
    USE,
    Digests,
    ImageSplit,
    JoinedRows,
    Rows,
    digest_rows,
    join_pairs,
    save_array,
    take_rows,
)
from frostline.files import replacing
from frostline.images.rows import EarlierRows, made_alike, mark_rows
from frostline.process import count_cores

MAX_AXES, MIN_VARIANCE = 128, 1e-4  # of the features' axes; of one, as a part of the first's
IMAGES_PER_AXIS = 4  # as many axes as images would make all of them equally far from each other
SAMPLE = 10_000  # images that the axes are taken from
BLOCK = 16_000_000  # cosines held at once
NEIGHBOURS = 4  # of each image, that are looked at
MIN_COSINE = 0.35  # of two images' whitened features
COARSE, FINE = 24, 64  # sides of the grey images that are laid over each other
SCALES = (1.0, 0.87, 0.75, 0.65, 0.56)  # of one image's sides within the other
MAX_STRETCH = 0.23  # by which the two sides' scales may differ
MIN_COARSE, MIN_FINE = 0.75, 0.7  # correlations of the grey images, and of their edges once aligned
MIN_SQUARE = 0.5  # correlation of the grey images where both sides are scaled alike, below which no stretch is tried
# Width and height of one image within the other's COARSE pixels, those of both sides alike first.
_PAIRS = sorted(product(SCALES, SCALES), key=lambda scales: scales[0] != scales[1])
SIZES = [(round(x * COARSE), round(y * COARSE)) for x, y in _PAIRS if abs(x - y) <= MAX_STRETCH]
MIN_OVERLAP = 0.25  # of an image's area
# Where so many of all images seem to be copies, they show one set-up, and are none: parts before one camera.
MAX_SHARE = 0.2
LISTED = "near_duplicates.csv"
# Among the features: what comparing came to, float32 (num_pairs, 2), correlation and 1 where mirrored; by both images' pixels.
PAIRS, KEYS, VERDICTS = "pairs", "keys.npy", "verdicts.npy"
COLUMNS = ("image", "split", "other", "other_split", "correlation", "mirrored")
Grey = NDArray[np.float32]


@dataclass(frozen=True)
class Copy:
    """Two images, by their rows, that show the same: how well their edges correlate once one is laid over the other."""

    one: int
    other: int
    correlation: float
    mirrored: bool


def find_copies(
    descriptors: NDArray[np.floating[Any]], images: Rows, digests: Digests, folder: Path, earlier: Sequence[Path] = ()
) -> list[Copy]:
    """The pairs of images that show the same photograph, by row.

    descriptors: (num_images, num_features), what a network's last layer says of each; images: uint8 (num_images, size, size, 3);
    digests: of their pixels; folder: what each pair came to is written there; earlier: such folders, made by the same code: what
    stands there is not compared again.
    """
    pairs, greys = find_neighbours(descriptors), GreyImages(images)
    ordered = _order_pairs(pairs, digests)
    keys = digest_rows(digests[ordered].reshape(len(pairs), -1))
    known = EarlierRows((2,), np.float32)
    for other in earlier:
        known.add(other / VERDICTS, other / DIGESTS / KEYS, other / DIGESTS / VERDICTS)
    places = known.find(keys)
    there = known.check(places)
    verdicts = np.empty((len(pairs), 2), np.float32)
    verdicts[there] = known.take(places[there])
    with ThreadPoolExecutor(count_cores()) as pool:
        made = pool.map(lambda pair: lay_over(greys[pair[0]], greys[pair[1]]), ordered[~there].tolist())
        verdicts[~there] = np.reshape(list(made), (-1, 2))
    save_array(folder / VERDICTS, [verdicts], verdicts.shape, np.float32)
    for file, rows in ((KEYS, keys), (VERDICTS, digest_rows(verdicts))):
        save_array(folder / DIGESTS / file, [rows], rows.shape, np.uint8)
    return [
        Copy(one, other, float(correlation), bool(mirrored))
        for (one, other), (correlation, mirrored) in zip(pairs.tolist(), verdicts, strict=True)
        if correlation >= MIN_FINE
    ]


def compare_splits(
    descriptors: NDArray[np.floating[Any]],
    splits: Mapping[str, ImageSplit],
    folder: Path,
    earlier: Sequence[Path],
    code: str,
) -> list[Copy]:
    """The near duplicates among the images of all splits, whose rows are counted in the splits' order.

    descriptors: as in `find_copies`; folder: of the features, below which it is kept what each pair came to; earlier: such
    folders of earlier runs; code: a digest of what compares.
    """
    facts = {"code": code, "opencv": cv2.__version__}
    known = made_alike([each / PAIRS for each in earlier], facts)
    images = JoinedRows(*(split.images for split in splits.values()))
    digests = np.concatenate([split.digests for split in splits.values()])
    copies = find_copies(descriptors, images, digests, folder / PAIRS, known)
    mark_rows(folder / PAIRS, facts)
    return copies


@dataclass(frozen=True)
class Marked:
    """What copies among the images come to: pairs; images of train and val that are copies of a test image, and of train that
    are of one of val; one_scene: so many that none is taken for a copy; digest: of what is marked."""

    pairs: int
    of_test: int
    of_val: int
    one_scene: bool
    digest: str

    def to_record(self) -> dict[str, str]:
        """What a study depends on; nothing where nothing is marked."""
        return {"near_duplicates": self.digest} if self.pairs and not self.one_scene else {}


def mark_copies(folder: Path, splits: Mapping[str, ImageSplit], copies: Sequence[Copy]) -> Marked:
    """Writes into `folder` of which images of `train` and `val` there are near duplicates, and what each may be used for.

    splits: train, val and test, whose images the rows of `copies` are, in this order. Groups that `prepare` found are kept as they
    are, those too that its user lets cross the splits.
    """
    names = [name for name, split in splits.items() for _ in split.ids]
    ids = [image_id for split in splits.values() for image_id in split.ids]
    by_hash = np.concatenate([split.groups for split in splits.values()])
    own = np.repeat(np.arange(len(splits)), [len(split.ids) for split in splits.values()])
    new = [copy for copy in copies if by_hash[copy.one] != by_hash[copy.other]]
    one_scene = len({row for copy in new for row in (copy.one, copy.other)}) > MAX_SHARE * len(ids)
    pairs = [] if one_scene else [(copy.one, copy.other) for copy in new]
    within = np.unique(np.stack([own, by_hash], axis=1), axis=0, return_inverse=True)[1].ravel()
    alike = join_pairs(len(ids), [*_chain(within), *pairs])
    trained = int((own < 2).sum())
    use = np.full(trained, ALL, np.uint8)
    use[(own[:trained] == 0) & np.isin(alike[:trained], alike[own == 1])] = FINAL_ONLY
    use[np.isin(alike[:trained], alike[own == 2])] = LEFT_OUT
    groups = join_pairs(trained, [*_chain(by_hash[:trained]), *(pair for pair in pairs if max(pair) < trained)])
    save_array(folder / GROUPS, [groups], groups.shape, np.int64)
    save_array(folder / USE, [use], use.shape, np.uint8)
    with replacing(folder / LISTED) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for copy in [] if one_scene else new:
            pair = [(ids[row], names[row]) for row in (copy.one, copy.other)]
            writer.writerow([*pair[0], *pair[1], f"{copy.correlation:.2f}", "yes" if copy.mirrored else "no"])
    digest = digest_rows(np.concatenate([groups, use])[None])[0].tobytes().hex()
    return Marked(len(new), int((use == LEFT_OUT).sum()), int((use == FINAL_ONLY).sum()), one_scene, digest)


def load_pairs(folder: Path) -> list[tuple[str, str]]:
    """The ids of near duplicates that `mark_copies` wrote, each pair in both orders; none where the folder has no list."""
    if not (folder / LISTED).is_file():
        return []
    with (folder / LISTED).open(encoding="utf-8", newline="") as file:
        pairs = [(row["image"], row["other"]) for row in csv.DictReader(file)]
    return [*pairs, *((other, one) for one, other in pairs)]


def _chain(groups: NDArray[np.integer[Any]]) -> Iterator[tuple[int, int]]:
    """Pairs that join the rows of each group."""
    order = np.argsort(groups, kind="stable")
    same = np.flatnonzero(np.diff(groups[order]) == 0)
    yield from zip(order[same].tolist(), order[same + 1].tolist(), strict=True)


class GreyImages:
    """Images as grey ones of FINE pixels a side, float32, made when they are asked for."""

    def __init__(self, images: Rows) -> None:
        self.images = images

    def __getitem__(self, row: int) -> Grey:
        grey = cv2.cvtColor(take_rows(self.images, np.array([row]))[0], cv2.COLOR_RGB2GRAY)
        return np.asarray(cv2.resize(grey, (FINE, FINE), interpolation=cv2.INTER_AREA), np.float32)


def find_neighbours(descriptors: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """The pairs of images (num_pairs, 2), the smaller row first, of which one is among the other's nearest.

    Nearest by the cosine of features whose principal axes were given one variance, if it is MIN_COSINE at least.
    """
    rows = whiten(descriptors)
    found = [np.empty((0, 2), np.intp)]
    block = max(1, BLOCK // max(1, len(rows)))
    for start in range(0, len(rows), block):
        cosine = rows[start : start + block] @ rows.T
        own = np.arange(len(cosine))
        cosine[own, start + own] = -1
        left, right = np.nonzero(cosine >= MIN_COSINE)
        order = np.lexsort((-cosine[left, right], left))
        left, right = left[order], right[order]
        rank = np.arange(len(left)) - np.searchsorted(left, left)
        nearest = rank < NEIGHBOURS
        found.append(np.sort(np.stack([start + left[nearest], right[nearest]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _order_pairs(pairs: NDArray[np.intp], digests: Digests) -> NDArray[np.intp]:
    """The pairs, in each the image with the smaller digest first: what is laid over what does not depend on their rows."""
    left, right = (np.ascontiguousarray(digests[column]).view(">u8") for column in pairs.T)
    swapped = (left[:, 0] > right[:, 0]) | ((left[:, 0] == right[:, 0]) & (left[:, 1] > right[:, 1]))
    return np.where(swapped[:, None], pairs[:, ::-1], pairs)


def whiten(descriptors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Rows of length 1 along at most MAX_AXES principal axes, each divided by its deviation: (num_images, num_axes)."""
    sample = _unit(descriptors[np.linspace(0, len(descriptors) - 1, min(len(descriptors), SAMPLE)).astype(int)])
    mean = sample.mean(axis=0)
    values, axes = np.linalg.eigh(np.cov((sample - mean).T))
    number = max(1, min(MAX_AXES, len(sample) // IMAGES_PER_AXIS))
    kept = np.flatnonzero(values > MIN_VARIANCE * values[-1])[-number:]
    turn = axes[:, kept] / np.sqrt(values[kept])
    blocks = [descriptors[start : start + SAMPLE] for start in range(0, len(descriptors), SAMPLE)]
    return np.concatenate([_unit((_unit(block) - mean) @ turn) for block in blocks])


def _unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    rows = np.asarray(rows, np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def lay_over(one: Grey, other: Grey) -> tuple[float, bool]:
    """How well the edges of two grey images (FINE, FINE) correlate where one is laid over the other, and whether mirrored.

    One is looked for within the other and the other within the one, at several scales of each side, as it is and mirrored; the
    best place is refined to an affine map by Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation
    Coefficient Maximization", PAMI 2008. -1 where none is near.
    """
    best = (-1.0, False)
    for mirrored, inner in ((False, other), (True, np.ascontiguousarray(other[:, ::-1]))):
        for outer, within in ((one, inner), (inner, one)):
            found = _place(outer, within)
            if found is not None:
                best = max(best, (_refine(outer, within, found), mirrored))
    return best


def _place(outer: Grey, within: Grey) -> NDArray[np.float32] | None:
    """Where `within` lies in `outer`, as an affine map of its pixels (2, 3); None where nothing there is like it."""
    large = cv2.resize(outer, (COARSE, COARSE), interpolation=cv2.INTER_AREA)
    best, place, near = MIN_COARSE, None, False
    for width, height in SIZES:
        if width != height and not near:
            break
        small = cv2.resize(within, (width, height), interpolation=cv2.INTER_AREA)
        _, value, _, (left, top) = cv2.minMaxLoc(cv2.matchTemplate(large, small, cv2.TM_CCOEFF_NORMED))
        near |= value > MIN_SQUARE
        if value > best:
            ratio = FINE / COARSE
            best = value
            place = np.array([[width / COARSE, 0, left * ratio], [0, height / COARSE, top * ratio]], np.float32)
    return place


def _refine(outer: Grey, within: Grey, place: NDArray[np.float32]) -> float:
    """The correlation of the edges of two images where they overlap, once the map is refined; -1 where they do not."""
    try:
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
        _, place = cv2.findTransformECC(within, outer, place, cv2.MOTION_AFFINE, criteria, None, 5)
    except cv2.error:
        return -1.0  # it does not converge
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid = cv2.warpAffine(outer, place, (FINE, FINE), flags=flags)
    there = cv2.warpAffine(np.ones_like(outer), place, (FINE, FINE), flags=flags) > 0.99
    if there.mean() < MIN_OVERLAP:
        return -1.0
    left, right = _edges(laid)[there], _edges(within)[there]
    left, right = left - left.mean(), right - right.mean()
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / norms if norms > 1e-6 else -1.0


def _edges(image: Grey) -> Grey:
    """What a blur takes away."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 1) - cv2.GaussianBlur(image, (0, 0), 4), np.float32)
