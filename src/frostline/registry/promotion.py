"""The gate run on real versions: both models loaded afresh, scored on the same untouched test split, and judged."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import load_split
from frostline.errors import Refused
from frostline.evidence.gate import Verdict, decide_promotion
from frostline.files import load_json, require_complete
from frostline.images.duplicates import group_near_duplicates
from frostline.images.shards import Record, make_fingerprints
from frostline.params import Params
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
from frostline.serving.model import DATA, MODEL
from frostline.serving.scoring import Score, score_in_fresh_process
from frostline.tracking.store import Store


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it was about; `champion` is None for the first promotion.

    test_uses: how often this challenger was scored on a test split; split_uses: how often any version was on this one.
    """

    challenger: Version
    champion: Version | None
    verdict: Verdict
    scores: tuple[Score, ...]
    test_uses: int
    split_uses: int

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
    """Scores challenger and champion in a fresh process and decides; this use of the test split is written on both.

    Args:
        folder: where files of versions on a server are copied to.
    """
    prepared = Path(params.paths.prepared)
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
        leaked=find_leaks(prepared, challenger, facts, params.prepare.near_duplicate_bits),
        resamples=params.evaluate.resamples,
        seed=params.seed,
    )
    uses = [count_test_use(store, version) for version in versions]
    split_uses = count_test_uses(store, challenger.name, facts["content_sha256"])
    return Judgement(challenger, champion, verdict, tuple(scores), uses[0], split_uses)


def find_leaks(prepared: Path, version: Version, facts: Any, bits: int | None) -> list[str] | None:
    """Test images that the version was trained on, or near duplicates of such; None where it cannot be known.

    It can be known of versions that were trained on the prepared data of this workspace. Pixels and hashes are
    compared again, whatever `prepare` said.
    """
    if version.tags.get("frostline.data.sha256") != facts["content_sha256"]:
        return None
    with (prepared / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    thumbs = _make_thumbs(prepared, rows)
    records = [
        Record(row["image_id"], "", None, "", pixel_sha256=row["pixel_sha256"], dhash=int(row["dhash"], 16), row=index)
        for index, row in enumerate(rows)
    ]
    groups = group_near_duplicates(records, thumbs, bits)
    is_test = np.array([row["split"] == "test" for row in rows])
    torn = np.intersect1d(groups[is_test], groups[~is_test])
    return sorted(
        row["image_id"] for row, group in zip(rows, groups, strict=True) if row["split"] == "test" and group in torn
    )


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
