"""Stage `prepare`: raw class folders -> decoded, checked, de-duplicated and split arrays."""

import shutil
from pathlib import Path

from frostline.files import publish
from frostline.images.decisions import load_decisions
from frostline.images.preparation import prepare_images
from frostline.params import load_params
from frostline.planning.closure import code_of
from frostline.planning.earlier import changes_since, list_earlier
from frostline.process import UNFINISHED, project_root, run_stage
from frostline.scale.engines import open_engine
from frostline.tracking.messages import describe_preparation, say

WORK = UNFINISHED / "prepare"


# What changed since the last run; not in the output, which is the same whatever was there before.
CHANGES = Path(".frostline/changes.csv")


def main() -> None:
    params = load_params()
    destination = Path(params.paths.prepared)
    unfinished = WORK / "prepared"
    shutil.rmtree(unfinished, ignore_errors=True)
    with open_engine(params) as engine:
        summary = prepare_images(
            Path(params.paths.raw),
            unfinished,
            params.prepare,
            size=params.base.image_size,
            seed=params.seed,
            work=WORK / "shards",
            earlier=list_earlier(params.paths.prepared, project_root()),
            code=code_of("images/decoding.py"),
            decisions=load_decisions(),
            engine=engine,
        )
    publish(unfinished, destination)
    shutil.rmtree(WORK)
    tell_changes(destination)
    lines = describe_preparation(summary.counts, summary.left_out, summary.notes, destination / "rejected.csv")
    say("prepare", lines)


def tell_changes(prepared: Path) -> None:
    """Says what changed among the images since the last run that is kept; all names are in CHANGES."""
    changes = changes_since(prepared, project_root())
    if changes:
        changes.save(project_root() / CHANGES)
        say("prepare", f"since the last run: {changes.describe()}; see {CHANGES}")


if __name__ == "__main__":
    run_stage("prepare", main)
