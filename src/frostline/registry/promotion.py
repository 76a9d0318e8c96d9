"""The gate run on real versions: both models loaded afresh, scored on the same untouched test split, and judged."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import load_split
from frostline.errors import Refused
from frostline.evidence.budget import Budget
from frostline.evidence.gate import Verdict, decide_promotion
from frostline.files import load_json, require_complete
from frostline.images.copies import load_pairs
from frostline.images.duplicates import group_near_duplicates
from frostline.images.manifest import MANIFEST, read_manifest
from frostline.images.shards import Record, make_fingerprints
from frostline.params import Params
from frostline.registry.data import load_images, load_trained
from frostline.registry.moves import count_test_use
from frostline.registry.versions import (
    CHALLENGER,
    CHAMPION,
    Version,
    count_test_uses,
    download_version,
    load_version,
    number_at,
)
from frostline.registry.wear import count_budget, load_budget, make_sketch, record_comparison
from frostline.serving.model import DATA, MODEL
from frostline.serving.scoring import Score, score_in_fresh_process
from frostline.tracking.store import Store, exclusive


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it was about; `champion` is None for the first promotion.

    test_uses: how often this challenger was scored on a test split; split_uses: how often any version was on this one;
    budget: what that has left for the next challenger.
    """

    challenger: Version
    champion: Version | None
    verdict: Verdict
    scores: tuple[Score, ...]
    test_uses: int
    split_uses: int
    budget: Budget

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON and tags."""
        ours = self.scores[0]
        return {
            "model": self.challenger.name,
            "challenger": self.challenger.number,
            "champion": self.champion.number if self.champion else None,
            "sha256": self.challenger.sha256,
            "test_uses": self.test_uses,
            "split_uses": self.split_uses,
            "budget": {"comparisons": self.budget.uses, "passed": self.budget.passed, "left": self.budget.left},
            "latency_p50_ms": ours.latency_p50_ms,
            **self.verdict.to_record(),
        }


def find_challenger(store: Store, params: Params, number: int | None) -> Version:
    """The version to judge: the one given, or the workspace's own, to which `challenger` is pointed.

    DVC may have restored another state than the registry's, so the workspace's registration counts, not the alias.
    """
    name = params.register_.name
    if number is not None:
        return load_version(store, name, number)
    path = Path(params.paths.registration)
    if not path.is_file():
        raise Refused(f"{path} is missing: nothing was registered from here yet. Run `dvc repro`, or give --version N.")
    registration = load_json(path)
    if registration["version"] is None:
        raise Refused(f"This workspace's model is not registered: {registration['reason']}")
    version = load_version(store, registration["name"], registration["version"])
    if version.sha256 != registration["sha256"]:
        raise Refused(
            f"Version {version.number} of {version.name} in {store.shown_uri} is another model than this workspace's: "
            f"sha256 {version.sha256 or 'none'}, here {registration['sha256']}. "
            "`dvc repro --force --single-item register` registers this one."
        )
    if number_at(store, version.name, CHAMPION) != version.number:
        store.client.set_registered_model_alias(version.name, CHALLENGER, str(version.number))
    return version


def judge(store: Store, params: Params, challenger: Version, folder: Path) -> Judgement:
    """Scores challenger and champion in a fresh process and decides; this use of the test split is written on both, and their
    comparison on the registered model.

    Args:
        folder: where files of versions on a server are copied to.
    """
    prepared, features = Path(params.paths.prepared), Path(params.paths.features)
    facts = require_complete(prepared)
    test, classes = load_split(prepared / "test"), load_json(prepared / "classes.json")
    number = number_at(store, challenger.name, CHAMPION)
    champion = load_version(store, challenger.name, number) if number is not None else None
    versions = [challenger] if champion is None else [challenger, champion]
    folders = [download_version(store, challenger, folder / str(challenger.number)) / DATA]
    theirs: Score | str | None = None
    try:
        if champion is not None:
            folders.append(download_version(store, champion, folder / str(champion.number)) / DATA)
    except Refused as refusal:  # its files are lost or changed: said by the gate, so that --force may replace it
        theirs = str(refusal)
    scored = score_in_fresh_process(folders, prepared / "test", Path(params.paths.raw), classes)
    ours = scored[0]
    assert isinstance(ours, Score)
    theirs = scored[1] if len(scored) > 1 else theirs
    scores = [ours, theirs] if isinstance(theirs, Score) else [ours]
    images = read_manifest((prepared / MANIFEST).read_text("utf-8"))
    split = make_sketch(image.sha256 for image in images if image.split == "test")
    # Two at once would both be judged as the next one.
    with exclusive(store, "budget"):
        budget = Budget() if champion is None else load_budget(store, split, challenger, champion)
        verdict = decide_promotion(
            np.asarray(test.labels),
            ours.probabilities,
            theirs.probabilities if isinstance(theirs, Score) else None,
            classes,
            params.promote,
            champion_classes=theirs.classes if isinstance(theirs, Score) else None,
            champion_problem=theirs if isinstance(theirs, str) else None,
            model_mb=(folders[0] / MODEL).stat().st_size / 1e6,
            latency_p95_ms=scores[0].latency_p95_ms,
            golden_difference=scores[0].golden_difference,
            leaked=find_leaks(store, prepared, features, challenger, facts, params.prepare.near_duplicate_bits),
            seen=find_seen(store, prepared, features, champion, facts, test.ids) if champion is not None else None,
            budget=budget if params.promote.budget == "split" else None,
            resamples=params.evaluate.resamples,
            seed=params.seed,
        )
        if champion is not None and (compared := [check for check in verdict.checks if check.name == "comparison"]):
            record_comparison(store, split, challenger, champion, budget, compared[0].passed)
    uses = [count_test_use(store, version) for version in versions]
    split_uses = count_test_uses(store, challenger.name, facts["content_sha256"])
    budget = count_budget(store, challenger.name, split)
    return Judgement(challenger, champion, verdict, tuple(scores), uses[0], split_uses, budget)


def find_seen(
    store: Store, prepared: Path, features: Path, version: Version, facts: Mapping[str, Any], ids: Sequence[str]
) -> NDArray[np.bool_] | None:
    """Which of the test images, bool (num_images,), a version was trained on, or on a near duplicate that features told; None
    where its run does not list its images.

    By the files' bytes: an image that was renamed or relabelled since is the same. features: those of the workspace.
    """
    if version.data_sha256 == facts["content_sha256"]:
        return np.zeros(len(ids), bool)
    images = load_images(store, version)
    if images is None:
        return None
    trained = load_trained(store, version, images)
    here = read_manifest((prepared / MANIFEST).read_text("utf-8"))
    known = {image.image_id for image in here if image.sha256 in trained}
    known |= {one for one, other in load_pairs(features) if other in known}
    return np.array([image_id in known for image_id in ids])


def find_leaks(
    store: Store, prepared: Path, features: Path, version: Version, facts: Mapping[str, Any], bits: int | None
) -> list[str] | None:
    """Test images that the version was trained on, or near duplicates of such; None where it cannot be known.

    Of versions that were trained on the prepared data of this workspace, pixels and hashes are compared again, whatever
    `prepare` said, and what `extract` found by features is. Of others the files that they were trained on are, where their run
    lists them.
    """
    if version.data_sha256 != facts["content_sha256"]:
        ids = load_split(prepared / "test").ids
        seen = find_seen(store, prepared, features, version, facts, ids)
        return None if seen is None else sorted(np.array(ids)[seen].tolist())
    with (prepared / MANIFEST).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    thumbs = _make_thumbs(prepared, rows)
    records = [
        Record(row["image_id"], "", None, "", pixel_sha256=row["pixel_sha256"], dhash=int(row["dhash"], 16), row=index)
        for index, row in enumerate(rows)
    ]
    groups = group_near_duplicates(records, thumbs, bits)
    is_test = np.array([row["split"] == "test" for row in rows])
    torn = np.intersect1d(groups[is_test], groups[~is_test])
    tests = {row["image_id"]: group for row, group in zip(rows, groups, strict=True) if row["split"] == "test"}
    trained = load_trained(store, version, read_manifest((prepared / MANIFEST).read_text("utf-8")))
    known = {row["image_id"] for row in rows if row["sha256"] in trained}
    by_features = {one for one, other in load_pairs(features) if other in known}
    return sorted(image_id for image_id, group in tests.items() if group in torn or image_id in by_features)


def _make_thumbs(prepared: Path, rows: list[dict[str, str]]) -> NDArray[np.uint8]:
    place: dict[tuple[str, str], int] = {}
    images = {}
    for split in ("train", "val", "test"):
        loaded = load_split(prepared / split)
        images[split] = loaded.images
        place |= {(split, image_id): index for index, image_id in enumerate(loaded.ids)}
    return np.stack(
        [make_fingerprints(np.asarray(images[row["split"]][place[row["split"], row["image_id"]]]))[1] for row in rows]
    )
