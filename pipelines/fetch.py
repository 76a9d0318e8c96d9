"""Stage `fetch`: the source's pictures as class folders, and the base with its weights."""

import shutil
from pathlib import Path

from frostline.files import publish
from frostline.images.sources import fetch_source
from frostline.params import load_params
from frostline.planning.checks import refuse_problems
from frostline.process import UNFINISHED, run_stage

WORK = UNFINISHED / "fetch"


def main() -> None:
    # What could not work in any later stage is refused here, before any work.
    refuse_problems()
    params = load_params()
    shutil.rmtree(WORK, ignore_errors=True)
    fetch_source(params.fetch, WORK / "raw", seed=params.seed, image_size=params.base.image_size)
    # Imported late: only `weights: imagenet` needs Keras.
    from frostline.bases.files import fetch_weights

    fetch_weights(params.base, WORK / "base", params.seed)
    publish(WORK / "raw", Path(params.paths.raw))
    publish(WORK / "base", Path(params.paths.base))
    shutil.rmtree(WORK)


if __name__ == "__main__":
    run_stage("fetch", main)
