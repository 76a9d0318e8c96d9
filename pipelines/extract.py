"""Stage `extract`: prepared pictures and views -> features of the frozen prefix, for every depth of the search."""

import time
from pathlib import Path

from frostline.arrays import load_array, load_split
from frostline.bases.base import load_base
from frostline.bases.cost import flops_of
from frostline.bases.features import Extractor, choose_precision
from frostline.errors import Refused
from frostline.files import digest_facts, load_json, mark_complete, publish, require_complete, save_json
from frostline.params import load_params
from frostline.planning.checks import refuse_problems
from frostline.planning.notes import describe_storage
from frostline.planning.storage import plan_storage
from frostline.process import UNFINISHED, run_stage
from frostline.tracking.messages import describe_precision, describe_source, say


def main() -> None:
    refuse_problems()
    params = load_params()
    paths, extract, pooling = params.paths, params.extract, params.tune.pooling
    views_folder, prepared = Path(paths.views), Path(paths.prepared)
    views = require_complete(views_folder)
    base = load_base(params.base, Path(paths.base))
    depths = sorted({0, *range(params.tune.space.unfrozen_blocks[0], params.tune.space.unfrozen_blocks[1] + 1)})
    if depths[-1] >= len(base.cuts):
        raise Refused(
            f"tune.space.unfrozen_blocks: {base.name} has {len(base.cuts) - 1} blocks between its first cut and "
            f"{base.cuts[0].name}; given was {depths[-1]}."
        )

    train, val = load_split(prepared / "train"), load_split(prepared / "val")
    probe = train.images[: extract.batch_size]
    precision, reason = choose_precision(extract.precision, base, depths, pooling, probe, extract.batch_size)
    say("extract", describe_precision(precision, reason))
    extractor = Extractor(base, depths, pooling, extract.batch_size, precision)
    counts = {"num_train": len(train.labels), "num_val": len(val.labels), "views": views["num_views"]}
    storage = plan_storage(
        extractor.row_bytes(probe),
        flops_of(base)["prefix"],
        **counts,
        image_size=base.image_size,
        budget_gb=params.storage.budget_gb,
    )
    say("extract", describe_storage(storage, views["num_views"], params.storage.budget_gb))

    sources = {"view-000": train.images}
    for view in range(1, storage.views):
        sources[f"view-{view:03d}"] = load_array(views_folder / f"view-{view:03d}.npy")
    sources["val"] = val.images
    record = {
        "base": base.name,
        "cuts": [{"depth": depth, "name": base.cuts[depth].name, "shape": base.cuts[depth].shape} for depth in depths],
        "pooling": pooling,
        "views": storage.views,
        "stored": storage.stored,
        "precision": precision,
    }
    inputs = {"prepared": require_complete(prepared), "views": views, "base": load_json(Path(paths.base) / "card.json")}
    work = UNFINISHED / f"extract-{digest_facts({**inputs, **record})}"
    started = time.monotonic()
    for done, name in enumerate(extractor.save(sources, work, storage.stored), 1):
        say("extract", describe_source(name, done, len(sources), time.monotonic() - started))
    save_json(work / "features.json", record)
    mark_complete(work, depths=depths, stored=storage.stored, **{**counts, "views": storage.views})
    publish(work, Path(paths.features))


if __name__ == "__main__":
    run_stage("extract", main)
