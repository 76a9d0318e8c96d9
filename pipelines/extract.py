"""Stage `extract`: prepared images and views -> features of the frozen prefix, for every depth of the search."""

import time
from pathlib import Path

from frostline.arrays import load_split
from frostline.bases.base import load_base
from frostline.bases.cost import flops_of
from frostline.bases.extraction import choose_extractor, describe_features, feature_facts, list_sources
from frostline.bases.features import POOLED, depth_folder
from frostline.bases.statistics import check_input
from frostline.files import digest_facts, load_json, mark_complete, publish, require_complete, save_json
from frostline.images.copies import LISTED, compare_splits, mark_copies
from frostline.images.rows import made_alike, mark_rows
from frostline.params import load_params
from frostline.planning.checks import refuse_problems
from frostline.planning.closure import code_of
from frostline.planning.depths import Images, describe_network, find_reach
from frostline.planning.earlier import list_earlier
from frostline.planning.notes import describe_reach, describe_storage
from frostline.planning.storage import list_depths, plan_storage
from frostline.process import UNFINISHED, project_root, run_stage
from frostline.scale.engines import open_engine
from frostline.tracking.messages import describe_copies, describe_precision, describe_source, say


def main() -> None:
    refuse_problems()
    params = load_params()
    paths, extract = params.paths, params.extract
    views_folder, prepared = Path(paths.views), Path(paths.prepared)
    views = require_complete(views_folder)
    base = load_base(params.base, Path(paths.base))
    splits = {split: load_split(prepared / split) for split in ("train", "val", "test")}
    train, val, test = splits.values()
    flops = flops_of(base)
    sizes = [len(split.labels) for split in splits.values()]
    images = Images(*sizes, views["num_images"], views["num_views"], views["mirrored"])
    reach = find_reach(params, describe_network(base, flops), images)
    say("extract", describe_reach(reach))
    depths = list_depths(params.with_depths(reach.first, reach.last).tune)
    if extract.check_input and params.base.weights != "random":
        say("extract", check_input(base, train.images))
    probe = train.images[: extract.batch_size]
    num_rows = sum(sizes[:2]) * views["num_views"]
    extractor, reason = choose_extractor(extract.precision, base, depths, probe, extract.batch_size, num_rows)
    say("extract", describe_precision(extractor.precision, reason))
    row_bytes = extractor.row_bytes(probe)
    maps, pooled = {depth: row_bytes[depth_folder(depth)] for depth in depths}, row_bytes[POOLED]
    room = {"budget_gb": params.storage.budget_gb - len(test.labels) * pooled / 1e9, "image_size": base.image_size}
    storage = plan_storage(maps, pooled, flops["prefix"], *images.stored, **room, mirrored=images.mirrored)
    say("extract", describe_storage(storage, views["num_views"], params.storage.budget_gb))

    sources = list_sources(train, val, views_folder, storage.views, mirrored=views["mirrored"])
    record = describe_features(base, extractor, storage.views, storage.stored)
    card = load_json(Path(paths.base) / "card.json")
    inputs = {"prepared": require_complete(prepared), "views": views, "base": card, "extract": extract.model_dump()}
    work = UNFINISHED / f"extract-{digest_facts({**inputs, **record})}"
    facts = feature_facts(card, base, extractor, code_of("bases/extraction.py"))
    known = made_alike(before := list_earlier(paths.features, project_root()), facts)
    folders, started = [*(depth_folder(depth) for depth in storage.stored), POOLED], time.monotonic()
    with open_engine(params) as engine:
        where = {"engine": engine, "base": (params.base, Path(paths.base))}
        for done, (name, computed) in enumerate(extractor.save(sources, work, folders, known, **where), 1):
            taken = time.monotonic() - started
            say("extract", describe_source(name, done, len(sources), computed, len(sources[name].digests), taken))
        if extract.near_duplicates:
            last = extractor.describe_plain(test, work, known, **where)
            marked = mark_copies(work, splits, compare_splits(last, splits, work, before, code_of("images/copies.py")))
            say("extract", describe_copies(marked, Path(paths.features) / LISTED))
            record |= marked.to_record()
    mark_rows(work, facts)
    save_json(work / "features.json", record)
    counts = {"stored": storage.stored, "num_images": views["num_images"], "views": storage.views}
    mark_complete(work, depths=depths, searched=[reach.first, reach.last], **counts)
    publish(work, Path(paths.features))


if __name__ == "__main__":
    run_stage("extract", main)
