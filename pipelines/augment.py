"""Stage `augment`: prepared training arrays -> augmented views."""

import shutil
from pathlib import Path

from frostline.arrays import load_split
from frostline.evidence.figures.sheets import preview_sheet
from frostline.files import load_json, mark_complete, publish, require_complete
from frostline.images.views import digest_recipe, make_preview, save_recipe, save_views
from frostline.params import load_params
from frostline.planning.checks import refuse_problems
from frostline.planning.notes import describe_budget
from frostline.planning.storage import fit_views, flips, trains_on_val
from frostline.process import UNFINISHED, run_stage
from frostline.tracking.messages import describe_view, describe_views, say

WORK = UNFINISHED / "augment"


def main() -> None:
    refuse_problems()
    params = load_params()
    prepared, augment, seed = Path(params.paths.prepared), params.augment, params.seed
    facts = require_complete(prepared)
    content, names = facts["content_sha256"], load_json(prepared / "classes.json")
    # All images that the final model is trained on have views; see refit.train_on_val.
    trained = ["train", "val"] if trains_on_val(params.refit.train_on_val, facts["val_is_drawn"]) else ["train"]
    splits = [load_split(prepared / split) for split in trained]
    ids = [image_id for split in splits for image_id in split.ids]
    train = splits[0]

    views = fit_views(len(ids), train.images.shape[1], augment.views, params.storage.budget_gb)
    say("augment", describe_budget(views, augment.views, params.storage.budget_gb))
    digest = digest_recipe(augment.transforms, seed=seed, content_sha256=f"{content}/{'+'.join(trained)}")
    work = WORK / digest
    files = [prepared / split / "images.npy" for split in trained]
    for view in save_views(files, ids, augment.transforms, work, num_views=views, seed=seed):
        say("augment", describe_view(view, views))
    save_recipe(work, augment.transforms, num_views=views, seed=seed, content_sha256=content)
    shown, rows = make_preview(train.images, train.ids, augment.transforms, num_views=views, seed=seed)
    preview_sheet(shown, [names[train.labels[row]] for row in rows], work / "preview.png")
    mark_complete(
        work,
        num_views=views,
        num_images=len(ids),
        splits=trained,
        mirrored=flips(augment),
        recipe=digest,
        images_sha256=content,
    )

    publish(work, Path(params.paths.views))
    shutil.rmtree(WORK)
    say("augment", describe_views(views, len(ids)))


if __name__ == "__main__":
    run_stage("augment", main)
