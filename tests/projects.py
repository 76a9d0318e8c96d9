"""A tiny project on a random base, as the stages up to `extract` leave it."""

from pathlib import Path
from typing import Any

import numpy as np

from frostline.arrays import JoinedRows, digest_rows, load_split, save_split
from frostline.bases.base import load_base
from frostline.bases.extraction import Extractor, Source
from frostline.bases.files import fetch_weights
from frostline.files import mark_complete, save_json
from frostline.params import Params, load_document, parse_params

SIZE, VIEWS = 32, 2
NUM = {"train": 48, "val": 24}


def make_project(folder: Path) -> Path:
    """The folder, with prepared images of two classes (bright or dark), their view, a random base and its features."""
    params = make_params(folder)
    rng = np.random.default_rng(0)
    for split, num in NUM.items():
        labels = (np.arange(num) % 2).astype(np.int32)
        images = (
            rng.integers(0, 120, (num, SIZE, SIZE, 3)).astype(np.uint8)
            + (labels * 130).astype(np.uint8)[:, None, None, None]
        )
        save_split(
            Path(params.paths.prepared) / split,
            [images],
            SIZE,
            labels,
            [f"{split}/{i}.png" for i in range(num)],
            np.arange(num) + 1000 * (split == "val"),
        )
    save_json(Path(params.paths.prepared) / "classes.json", ["dark", "bright"])
    fetch_weights(params.base, Path(params.paths.base), params.seed)
    base = load_base(params.base, Path(params.paths.base))
    sources = make_sources(folder)
    saved = list(Extractor(base, [0, 1, 2], 20).save(sources, Path(params.paths.features)))
    assert saved == [(name, len(source.digests)) for name, source in sources.items()]
    mark_complete(Path(params.paths.prepared), num_images=NUM, val_is_drawn=True)
    mark_complete(Path(params.paths.features), stored=[0, 1, 2], views=VIEWS)
    return folder


def make_sources(folder: Path) -> dict[str, Source]:
    """Plain images, one view and mirror images, of train and val."""
    images = [np.asarray(load_split(folder / "data/prepared" / split).images) for split in NUM]
    bright = [255 - (255 - each) // 2 for each in images]
    plain = digest_rows(np.concatenate(images))
    return {
        "view-000": Source(JoinedRows(*images), plain),
        "view-001": Source(JoinedRows(*bright), digest_rows(np.concatenate(bright))),
        "mirror": Source(JoinedRows(*images, mirrored=True), plain),
    }


def make_params(folder: Path, **tune: Any) -> Params:
    document = load_document(Path(__file__).parents[1] / "presets" / "default.yaml")
    document["paths"] = {name: str(folder / path) for name, path in document["paths"].items()}
    document["base"] |= {"name": "MobileNetV2", "options": {"alpha": 0.35}, "weights": "random", "image_size": SIZE}
    document["augment"]["views"] = VIEWS
    document["tune"] |= {"epochs": 2, "batch_size": 16, "num_trials": 3} | tune
    document["tune"]["space"]["unfrozen_blocks"] = [0, 2]
    document["refit"] |= {"folds": 3, "candidates": 1}
    return parse_params(document)
