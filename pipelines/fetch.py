"""Stage `fetch`: the source's images as class folders, and the base with its weights."""

import shutil
from pathlib import Path

from frostline.files import publish
from frostline.images.sources import fetch_source
from frostline.params import load_params
from frostline.planning.checks import refuse_problems
from frostline.process import UNFINISHED, run_stage

WORK = UNFINISHED / "fetch"
SHOWN = 10


def main() -> None:
    # What could not work in any later stage is refused here, before any work.
    refuse_problems()
    params = load_params()
    shutil.rmtree(WORK, ignore_errors=True)
    facts = fetch_source(params.fetch, WORK / "raw", seed=params.seed, image_size=params.base.image_size)
    # Imported late: only `weights: imagenet` needs Keras.
    from frostline.bases.files import fetch_weights

    fetch_weights(params.base, WORK / "base", params.seed)
    publish(WORK / "raw", Path(params.paths.raw))
    publish(WORK / "base", Path(params.paths.base))
    shutil.rmtree(WORK)
    print(f"fetch: {facts['num_files']} files in {len(facts['counts'])} class folders")
    for note in facts["notes"]:
        print(f"fetch: note: {note}")
    for path, reason in facts["skipped"][:SHOWN]:
        print(f"fetch: skipped {path}: {reason}")
    if len(facts["skipped"]) > SHOWN:
        print(f"fetch: skipped {len(facts['skipped']) - SHOWN} more; `prepare` lists them in rejected.csv")


if __name__ == "__main__":
    run_stage("fetch", main)
