"""Stage `augment`: prepared training arrays -> augmented views."""

import shutil
from pathlib import Path

import numpy as np

from frostline.arrays import load_split
from frostline.evidence.figures.sheets import preview_sheet
from frostline.files import load_json, mark_complete, publish, require_complete
from frostline.images.rows import made_alike, mark_rows
from frostline.images.views import Drawing, digest_recipe, make_preview, save_recipe, save_views, view_facts
from frostline.params import load_params
from frostline.planning.checks import refuse_problems
from frostline.planning.closure import code_of
from frostline.planning.earlier import list_earlier
from frostline.planning.notes import describe_budget
from frostline.planning.storage import fit_views, flips, trains_on_val
from frostline.process import UNFINISHED, project_root, run_stage
from frostline.scale.engines import open_engine
from frostline.tracking.messages import describe_view, describe_views, say

WORK = UNFINISHED / "augment"


def main() -> None:
    refuse_problems()
    params = load_params()
    prepared, augment, seed = Path(params.paths.prepared), params.augment, params.seed
    prepared_facts = require_complete(prepared)
    content, names = prepared_facts["content_sha256"], load_json(prepared / "classes.json")
    # All images that the final model is trained on have views; see refit.train_on_val.
    trained = (
        ["train", "val"] if trains_on_val(params.refit.train_on_val, prepared_facts["val_is_drawn"]) else ["train"]
    )
    splits = [load_split(prepared / split) for split in trained]
    train, digests = splits[0], np.concatenate([split.digests for split in splits])
    size = train.images.shape[1]

    views = fit_views(len(digests), size, augment.views, params.storage.budget_gb)
    say("augment", describe_budget(views, augment.views, params.storage.budget_gb))
    digest = digest_recipe(augment.transforms, seed=seed, content_sha256=f"{content}/{'+'.join(trained)}")
    work = WORK / digest
    code = code_of("images/views.py")
    facts = view_facts(augment.transforms, size, seed, code)
    known = tuple(made_alike(list_earlier(params.paths.views, project_root()), facts))
    files = tuple(prepared / split / "images.npy" for split in trained)
    drawing = Drawing(files, digests, augment.transforms, seed, known)
    with open_engine(params) as engine:
        for view, drawn in save_views(drawing, work, num_views=views, engine=engine):
            say("augment", describe_view(view, views, drawn, len(digests)))
    mark_rows(work, facts)
    save_recipe(work, augment.transforms, num_views=views, seed=seed, content_sha256=content)
    shown, rows = make_preview(train.images, train.digests, augment.transforms, num_views=views, seed=seed)
    preview_sheet(shown, [names[train.labels[row]] for row in rows], work / "preview.png")
    mark_complete(
        work,
        num_views=views,
        num_images=len(digests),
        splits=trained,
        mirrored=flips(augment),
        recipe=digest,
        images_sha256=content,
    )

    publish(work, Path(params.paths.views))
    shutil.rmtree(WORK)
    say("augment", describe_views(views, len(digests)))


if __name__ == "__main__":
    run_stage("augment", main)
