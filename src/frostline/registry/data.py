"""What versions were made from, image by image: which test images a version has seen, and how a challenger's data differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from frostline.errors import Refused
from frostline.evidence.comparison import Interval, paired_difference
from frostline.evidence.predictions import Predictions, load_predictions
from frostline.images.manifest import MANIFEST, Changes, Listed, compare_manifests, read_manifest
from frostline.registry.versions import AGAINST, CHAMPION, Version, load_version, number_at
from frostline.tracking.runs import load_artifact
from frostline.tracking.store import Store

PREDICTIONS, OUT_OF_FOLD = "predictions.csv", "out_of_fold.csv"


@dataclass(frozen=True)
class Against:
    """A model's data and its answers beside the champion's.

    changes: from the champion's images to the model's; num_shared: images of both test splits that neither has trained on;
    difference: of accuracy on them, the model's less the champion's, by the model's labels; None where there are none.
    """

    champion: int
    changes: Changes
    num_shared: int
    difference: Interval | None

    def describe(self) -> str:
        """Two sentences."""
        text = f"Against champion version {self.champion}: {self.changes.describe()}."
        if self.difference is None:
            return f"{text} No test image is common to both."
        shown = [100 * value for value in (self.difference.value, self.difference.low, self.difference.high)]
        return text + " On the {} test images of both: {:+.2f} points of accuracy [{:+.2f}, {:+.2f}].".format(
            self.num_shared, *shown
        )


def load_images(store: Store, version: Version) -> list[Listed] | None:
    """The images that a version was made from; None where its run does not list them (one of an earlier Frostline)."""
    with TemporaryDirectory() as folder:
        try:
            return read_manifest(load_artifact(store, version.run_id, MANIFEST, Path(folder)).read_text("utf-8"))
        except (Refused, KeyError):
            return None


def load_trained(store: Store, version: Version, images: list[Listed]) -> set[str]:
    """The sha256 of the files that a version of these images has seen: without those that its refit left out, as copies of
    test images, where its run says which it trained on."""
    with TemporaryDirectory() as folder:
        try:
            used = set(load_predictions(load_artifact(store, version.run_id, OUT_OF_FOLD, Path(folder))).files)
        except Refused:
            return trained_on(images)
    return trained_on([image for image in images if image.split != "train" or image.image_id in used])


def trained_on(images: list[Listed]) -> set[str]:
    """The sha256 of the files that a model of these images has seen: those of train and val."""
    return {image.sha256 for image in images if image.split != "test"}


def beside_champion(store: Store, name: str, prepared: Path, reports: Path) -> dict[str, str]:
    """The tag that says how the workspace's images and test accuracy differ from the champion's; none where nothing does."""
    found = compare_with_champion(store, name, prepared, reports / PREDICTIONS)
    return {AGAINST: found.describe()} if found else {}


def compare_with_champion(store: Store, name: str, prepared: Path, predictions: Path) -> Against | None:
    """The workspace's images and test predictions beside the champion's; None where there is no champion, or no list of
    what it was made from."""
    number = number_at(store, name, CHAMPION)
    champion = load_version(store, name, number) if number is not None else None
    theirs = load_images(store, champion) if champion is not None else None
    if champion is None or theirs is None:
        return None
    ours = read_manifest((prepared / MANIFEST).read_text("utf-8"))
    changes = compare_manifests(theirs, ours)
    with TemporaryDirectory() as folder:
        try:
            before = load_predictions(load_artifact(store, champion.run_id, PREDICTIONS, Path(folder)))
        except Refused:
            return Against(champion.number, changes, 0, None)
    after = load_predictions(predictions)
    if set(before.class_names) != set(after.class_names):
        return Against(champion.number, changes, 0, None)
    seen = trained_on(ours) | trained_on(theirs)
    left, right = _places(before, theirs), _places(after, ours)
    shared = sorted(sha256 for sha256 in left.keys() & right.keys() if sha256 not in seen)
    if not shared:
        return Against(champion.number, changes, 0, None)
    rows = np.array([right[sha256] for sha256 in shared])
    columns = [before.class_names.index(name) for name in after.class_names]
    old = before.probabilities[[left[sha256] for sha256 in shared]][:, columns]
    difference = paired_difference(np.asarray(after.labels[rows]), after.probabilities[rows], old)
    return Against(champion.number, changes, len(shared), difference)


def _places(predictions: Predictions, images: list[Listed]) -> Mapping[str, int]:
    """sha256 of each test file -> its row in the table of predictions."""
    sha256 = {image.image_id: image.sha256 for image in images if image.split == "test"}
    return {sha256[name]: row for row, name in enumerate(predictions.files) if name in sha256}
