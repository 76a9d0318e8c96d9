"""Stage `extract`: prepared images and views -> features of the frozen prefix, for every depth of the search."""

import time
from pathlib import Path

from frostline.arrays import load_split
from frostline.bases.base import check_depth, load_base
from frostline.bases.cost import flops_of
from frostline.bases.extraction import choose_extractor, describe_features, feature_facts, list_sources
from frostline.bases.features import POOLED, depth_folder
from frostline.bases.statistics import check_input
from frostline.files import digest_facts, load_json, mark_complete, publish, require_complete, save_json
from frostline.images.rows import made_alike, mark_rows
from frostline.params import load_params
from frostline.planning.checks import refuse_problems
from frostline.planning.closure import code_of
from frostline.planning.earlier import list_earlier
from frostline.planning.notes import describe_storage
from frostline.planning.storage import list_depths, plan_storage
from frostline.process import UNFINISHED, project_root, run_stage
from frostline.scale.engines import open_engine
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
    probe = train.images[: extract.batch_size]
    num_rows = (len(train.labels) + len(val.labels)) * views["num_views"]
    extractor, reason = choose_extractor(extract.precision, base, depths, probe, extract.batch_size, num_rows)
    say("extract", describe_precision(extractor.precision, reason))
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

    sources = list_sources(train, val, views_folder, storage.views, mirrored=views["mirrored"])
    record = describe_features(base, extractor, storage.views, storage.stored)
    card = load_json(Path(paths.base) / "card.json")
    inputs = {"prepared": require_complete(prepared), "views": views, "base": card}
    work = UNFINISHED / f"extract-{digest_facts({**inputs, **record})}"
    facts = feature_facts(card, base, extractor, code_of("bases/extraction.py"))
    known = made_alike(list_earlier(paths.features, project_root()), facts)
    started = time.monotonic()
    folders = [*(depth_folder(depth) for depth in storage.stored), POOLED]
    from_where = (params.base, Path(paths.base))
    with open_engine(params) as engine:
        saved = extractor.save(sources, work, folders, known, engine=engine, base=from_where)
        for done, (name, computed) in enumerate(saved, 1):
            taken = time.monotonic() - started
            say("extract", describe_source(name, done, len(sources), computed, len(sources[name].digests), taken))
    mark_rows(work, facts)
    save_json(work / "features.json", record)
    mark_complete(work, depths=depths, stored=storage.stored, num_images=views["num_images"], views=storage.views)
    publish(work, Path(paths.features))


if __name__ == "__main__":
    run_stage("extract", main)
