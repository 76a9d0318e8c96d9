"""Stage `augment`: prepared training arrays -> augmented views."""

import shutil
from pathlib import Path

from frostline.arrays import load_json, load_split, mark_complete, publish, require_complete
from frostline.augmentation import digest_recipe, make_preview, save_recipe, save_views
from frostline.checks import refuse_problems
from frostline.figures.sheets import preview_sheet
from frostline.params import load_params
from frostline.planning import describe_views, fit_views
from frostline.process import UNFINISHED, run_stage

WORK = UNFINISHED / "augment"


def main() -> None:
    refuse_problems()
    params = load_params()
    prepared, augment, seed = Path(params.paths.prepared), params.augment, params.seed
    content = require_complete(prepared)["content_sha256"]
    train = load_split(prepared / "train")

    views = fit_views(len(train.ids), train.images.shape[1], augment.views, params.extract.budget_gb)
    for line in describe_views(views, augment.views, params.extract.budget_gb):
        print(f"augment: {line}")
    digest = digest_recipe(augment.transforms, seed=seed, content_sha256=content)
    work = WORK / digest
    images_file = prepared / "train" / "images.npy"
    save_views(images_file, train.ids, augment.transforms, work, num_views=views, seed=seed)
    save_recipe(work, augment.transforms, num_views=views, seed=seed, content_sha256=content)
    shown, rows = make_preview(train.images, train.ids, augment.transforms, num_views=views, seed=seed)
    names = load_json(prepared / "classes.json")
    preview_sheet(shown, [names[train.labels[row]] for row in rows], work / "preview.png")
    mark_complete(work, num_views=views, num_images=len(train.ids), recipe=digest, pictures_sha256=content)

    publish(work, Path(params.paths.views))
    shutil.rmtree(WORK)
    print(f"{views} views of {len(train.ids)} pictures, the plain one among them")


if __name__ == "__main__":
    run_stage("augment", main)
