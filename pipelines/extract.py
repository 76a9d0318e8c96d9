"""Stage `extract`: prepared pictures and views -> features of the frozen prefix, for every depth of the search."""

import time
from pathlib import Path

from frostline.arrays import (
    digest_facts,
    load_array,
    load_json,
    load_split,
    mark_complete,
    publish,
    require_complete,
    save_json,
)
from frostline.backbones import load_base
from frostline.checks import refuse_problems
from frostline.features import extract_views
from frostline.params import load_params
from frostline.process import Refused, run_stage


def main() -> None:
    refuse_problems()
    params = load_params()
    paths = params.paths
    views_folder, prepared = Path(paths.views), Path(paths.prepared)
    facts = {
        "prepared": require_complete(prepared),
        "views": require_complete(views_folder),
        "base": load_json(Path(paths.base) / "card.json"),
        "output_layer": params.base.output_layer,
        "depths": params.tune.space.unfrozen_blocks,
        "pooling": params.tune.pooling,
    }
    base = load_base(params.base, Path(paths.base))
    depths = sorted({0, *range(params.tune.space.unfrozen_blocks[0], params.tune.space.unfrozen_blocks[1] + 1)})
    if depths[-1] >= len(base.cuts):
        raise Refused(
            f"tune.space.unfrozen_blocks: {base.name} has {len(base.cuts) - 1} blocks between its first cut and "
            f"{base.cuts[0].name}; given was {depths[-1]}."
        )

    train, val = load_split(prepared / "train"), load_split(prepared / "val")
    sources = {"view-000": train.images}
    for view in range(1, params.augment.views):
        sources[f"view-{view:03d}"] = load_array(views_folder / f"view-{view:03d}.npy")
    sources["val"] = val.images

    work = Path(".frostline/work") / f"extract-{digest_facts(facts)}"
    started = time.monotonic()
    for done, name in enumerate(
        extract_views(base, depths, params.tune.pooling, sources, work, params.extract.batch_size), 1
    ):
        print(f"extract: {name} ({done}/{len(sources)}), {time.monotonic() - started:.1f} s", flush=True)
    cuts = [{"depth": depth, "name": base.cuts[depth].name, "shape": base.cuts[depth].shape} for depth in depths]
    save_json(
        work / "features.json",
        {"base": base.name, "cuts": cuts, "pooling": params.tune.pooling, "views": params.augment.views},
    )
    mark_complete(work, depths=depths, num_images=len(train.labels), num_val=len(val.labels))
    publish(work, Path(paths.features))


if __name__ == "__main__":
    run_stage("extract", main)
