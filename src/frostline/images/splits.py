"""The split of every image: the folders' own, or drawn so that neither order nor added images move one."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from frostline.errors import Refused
from frostline.images.shards import Record
from frostline.params import Prepare
from frostline.seeding import derive_seed


def split_images(
    records: Sequence[Record], groups: NDArray[np.int64], prepare: Prepare, seed: int
) -> tuple[list[str], str]:
    """The split of each record, and a sentence that says where the splits come from.

    Folders' own splits are kept. What is missing is drawn by a hash of each group's first file, so that added images
    move no old one; a class that a split would miss gets the group that is nearest to it.
    """
    given = {record.folder_split for record in records}
    splits = [
        {"train": "train", "validation": "val", "test": "test", None: ""}[record.folder_split] for record in records
    ]
    everyone = list(range(len(records)))
    if given == {None}:
        shares = {"test": prepare.test_share, "val": prepare.val_share}
        note = f"drawn: {prepare.val_share:g} of the groups to val, {prepare.test_share:g} to test, the rest to train"
        pool, rest = everyone, "train"
    elif "validation" in given and "test" not in given:
        shares, rest = {"test": 0.5}, "val"
        note = "train and val are the folders' own; test is half of their validation"
        pool = [index for index in everyone if splits[index] == "val"]
    elif "validation" not in given:
        shares, rest = {"val": prepare.val_share}, "train"
        pool = [index for index in everyone if splits[index] == "train"]
        note = f"val is {prepare.val_share:g} of the folders' train" + (
            "; test is the folders' own" if "test" in given else ""
        )
        if "test" not in given:
            shares = {"test": prepare.test_share, "val": prepare.val_share}
            note = f"drawn from the folders' train: {prepare.val_share:g} to val, {prepare.test_share:g} to test"
    else:
        return splits, "train, val and test are the folders' own"
    if sum(shares.values()) >= 1:
        raise Refused(
            f"prepare.val_share and prepare.test_share add up to {sum(shares.values()):g}; leave something for train."
        )
    drawn = draw_splits([records[index] for index in pool], groups[pool], shares, rest, seed)
    for index, split in zip(pool, drawn, strict=True):
        splits[index] = split
    return splits, note


def draw_splits(
    records: Sequence[Record], groups: NDArray[np.int64], shares: dict[str, float], rest: str, seed: int
) -> list[str]:
    """A split per record: each group falls where its hash, evenly spread over [0, 1), says; `rest` takes what is left."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups.tolist()):
        members[group].append(index)
    # The file's own hash: neither its name nor the size that it is resized to may move it.
    points = {
        group: min(draw_point(records[index].sha256, seed) for index in indices) for group, indices in members.items()
    }
    intervals, start = {}, 0.0
    for split, share in shares.items():
        intervals[split] = (start, start + share)
        start += share
    intervals[rest] = (start, 1.0)
    assigned = {
        group: next(split for split, (low, high) in intervals.items() if low <= point < high)
        for group, point in points.items()
    }
    for class_name in sorted({record.class_name for record in records}):
        weights = {
            group: sum(records[index].class_name == class_name for index in indices)
            for group, indices in members.items()
        }
        _balance(assigned, {group: weight for group, weight in weights.items() if weight}, points, intervals)
    return [assigned[group] for group in groups.tolist()]


def draw_point(sha256: str, seed: int) -> float:
    """Where a file falls in [0, 1), of which `test` takes the lower end."""
    return derive_seed(seed, "split", sha256) / 2**31


def _balance(
    assigned: dict[int, str],
    weights: dict[int, int],
    points: dict[int, float],
    intervals: dict[str, tuple[float, float]],
) -> None:
    """Moves a class's groups, those at the borders first, until no split is empty or, by large groups, far from its share.

    An image without near duplicates moves only to fill an empty split: added images shall not move old ones. Groups
    may move while a split is off by more than the standard deviation of a binomial draw. Changes `assigned`.
    """
    total = sum(weights.values())
    shares = {split: high - low for split, (low, high) in intervals.items()}
    counts = dict.fromkeys(intervals, 0)
    for group, weight in weights.items():
        counts[assigned[group]] += weight

    def lack(split: str, change: int = 0) -> float:
        """Images missing to the split's share, in standard deviations; infinite where there is none."""
        count, share = counts[split] + change, shares[split]
        return (share * total - count) / max(1.0, (share * (1 - share) * total) ** 0.5) if count > 0 else math.inf

    while True:
        poor, rich = max(intervals, key=lack), min(intervals, key=lack)
        if lack(poor) <= 1 and lack(rich) >= -1:
            return
        low, high = intervals[poor]
        able = [
            (max(low - points[group], points[group] - high), group)
            for group, weight in weights.items()
            if assigned[group] == rich
            and (weight > 1 or counts[poor] == 0)
            and max(abs(lack(poor, weight)), abs(lack(rich, -weight))) < max(abs(lack(poor)), abs(lack(rich)))
        ]
        if not able:
            return
        _, group = min(able)
        assigned[group] = poor
        counts[poor] += weights[group]
        counts[rich] -= weights[group]
