"""Stage `prepare`: raw class folders -> decoded, checked, de-duplicated and split arrays."""

import shutil
from pathlib import Path

from frostline.arrays import publish
from frostline.params import load_params
from frostline.preparation import prepare_images
from frostline.process import UNFINISHED, run_stage

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
    )
    publish(unfinished, destination)
    shutil.rmtree(WORK)
    for split, counts in summary.counts.items():
        print(
            f"{split}: {sum(counts.values())} pictures ({', '.join(f'{name} {number}' for name, number in counts.items())})"
        )
    for kind, number in summary.left_out.items():
        print(f"left out as {kind}: {number}; see {destination / 'rejected.csv'}")
    for note in summary.notes:
        print(f"note: {note}")


if __name__ == "__main__":
    run_stage("prepare", main)
