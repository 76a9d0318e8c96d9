"""Stage `prepare`: raw class folders -> decoded, checked, de-duplicated and split arrays."""

import shutil
from pathlib import Path

from frostline.files import publish
from frostline.images.decisions import load_decisions
from frostline.images.preparation import prepare_images
from frostline.params import load_params
from frostline.process import UNFINISHED, run_stage
from frostline.tracking.messages import describe_preparation, say

WORK = UNFINISHED / "prepare"


def main() -> None:
    params = load_params()
    destination = Path(params.paths.prepared)
    unfinished = WORK / "prepared"
    shutil.rmtree(unfinished, ignore_errors=True)
    summary = prepare_images(
        Path(params.paths.raw),
        unfinished,
        params.prepare,
        size=params.base.image_size,
        seed=params.seed,
        work=WORK / "shards",
        decisions=load_decisions(),
    )
    publish(unfinished, destination)
    shutil.rmtree(WORK)
    lines = describe_preparation(summary.counts, summary.left_out, summary.notes, destination / "rejected.csv")
    say("prepare", lines)


if __name__ == "__main__":
    run_stage("prepare", main)
