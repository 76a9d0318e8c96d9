"""Stage `extract`: prepared images and views -> features of the frozen prefix, for every depth of the search."""

import time
from pathlib import Path

from frostline.arrays import JoinedRows, load_array, load_split
from frostline.bases.base import check_depth, load_base
from frostline.bases.cost import flops_of
from frostline.bases.cuts import choose_pooled
from frostline.bases.features import MIRROR, POOLED, Extractor, choose_precision, depth_folder
from frostline.bases.statistics import check_input
from frostline.files import digest_facts, load_json, mark_complete, publish, require_complete, save_json
from frostline.params import load_params
from frostline.planning.checks import refuse_problems
from frostline.planning.notes import describe_storage
from frostline.planning.storage import list_depths, plan_storage
from frostline.process import UNFINISHED, run_stage
from frostline.tracking.messages import describe_precision, describe_source, say


def main() -> None:
    refuse_problems()
    params = load_params()
    paths, extract = params.paths, params.extract
    views_folder, prepared = Path(paths.views), Path(paths.prepared)
    views = require_complete(views_folder)
    base = load_base(params.base, Path(paths.base))
    depths = list_depths(params.tune)
    check_depth(base, max(depths, default=0))
    train, val = load_split(prepared / "train"), load_split(prepared / "val")
    if extract.check_input and params.base.weights != "random":
        say("extract", check_input(base, train.images))
    batch_size = min(extract.batch_size, len(train.labels))  # the rest of a batch would be computed for nothing
    probe = train.images[:batch_size]
    precision, reason = choose_precision(extract.precision, base, depths, probe, batch_size)
    say("extract", describe_precision(precision, reason))
    extractor = Extractor(base, depths, batch_size, precision)
    row_bytes = extractor.row_bytes(probe)
    storage = plan_storage(
        {depth: row_bytes[depth_folder(depth)] for depth in depths},
        row_bytes[POOLED],
        flops_of(base)["prefix"],
        num_images=views["num_images"],
        num_plain=len(train.labels) + len(val.labels) - views["num_images"],
        views=views["num_views"],
        image_size=base.image_size,
        budget_gb=params.storage.budget_gb,
        mirrored=views["mirrored"],
    )
    say("extract", describe_storage(storage, views["num_views"], params.storage.budget_gb))

    sources = {"view-000": JoinedRows(train.images, val.images)}
    for view in range(1, storage.views):
        sources[f"view-{view:03d}"] = JoinedRows(load_array(views_folder / f"view-{view:03d}.npy"))
    if views["mirrored"]:
        sources[MIRROR] = JoinedRows(train.images, val.images, mirrored=True)
    record = {
        "base": base.name,
        "cuts": [{"depth": cut.depth, "name": cut.name, "shape": cut.shape} for cut in base.cuts],
        "pooled": [cut.depth for cut in choose_pooled(base)],
        "views": storage.views,
        "stored": storage.stored,
        "precision": precision,
    }
    inputs = {"prepared": require_complete(prepared), "views": views, "base": load_json(Path(paths.base) / "card.json")}
    work = UNFINISHED / f"extract-{digest_facts({**inputs, **record})}"
    started = time.monotonic()
    folders = [*(depth_folder(depth) for depth in storage.stored), POOLED]
    for done, name in enumerate(extractor.save(sources, work, folders), 1):
        say("extract", describe_source(name, done, len(sources), time.monotonic() - started))
    save_json(work / "features.json", record)
    mark_complete(work, depths=depths, stored=storage.stored, num_images=views["num_images"], views=storage.views)
    publish(work, Path(paths.features))


if __name__ == "__main__":
    run_stage("extract", main)
