"""What share of the rows of the next run has to be made: the rest is in the outputs that are here, or in earlier ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frostline.arrays import DIGEST, DIGESTS, load_array
from frostline.files import load_json, path_of, require_complete
from frostline.images.rows import made_alike
from frostline.images.survey import MEMORY, SOURCE_FILE, inputs_of_fetch, survey_inputs
from frostline.params import Params
from frostline.planning.closure import code_of
from frostline.planning.earlier import list_earlier
from frostline.planning.storage import Storage

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Fresh:
    """Shares, 0 to 1: of the images to decode, of the views to draw, of the rows of features to compute."""

    images: float = 1.0
    views: float = 1.0
    features: float = 1.0


def measure_fresh(params: Params, rows: Mapping[str, Any], storage: Storage) -> Fresh:
    """The shares for these params, here. rows: what those of features are made from; storage: what will be stored."""
    root = Path()
    images = fresh_images(params, root)
    return Fresh(
        images,
        fresh_views(params, root, images, storage.views),
        fresh_features(params, root, images, rows, storage.stored, storage.views),
    )


def fresh_images(params: Params, root: Path) -> float:
    """The share of the source's files that no output here was decoded from; of a source that is no folder, none or all.

    Reads the files whose size or time changed since they were last looked at.
    """
    from frostline.images.shards import FILES, decoding_facts

    facts = decoding_facts(params.prepare, params.base.image_size, code_of("images/decoding.py"))
    known = {
        digest.tobytes()
        for folder in made_alike(_outputs(params.paths.prepared, root), facts)
        for split in SPLITS
        for digest in np.asarray(load_array(folder / split / DIGESTS / FILES))
    }
    if not known:
        return 1.0
    memory, record = (load_json(path) if path.is_file() else {} for path in (root / MEMORY, root / SOURCE_FILE))
    survey = survey_inputs(params.fetch, params.base, root, memory, record)
    if "fetch.source" not in inputs_of_fetch(params.fetch) or not path_of(params.fetch.source, root).is_dir():
        return 0.0 if survey.record.get("fetch.source") == record.get("fetch.source") else 1.0
    place = str(path_of(params.fetch.source, root).absolute())
    hashes = [bytes.fromhex(entry[3])[:DIGEST] for path, entry in survey.memory.items() if path.startswith(place)]
    return sum(digest not in known for digest in hashes) / max(1, len(hashes))


def fresh_views(params: Params, root: Path, images: float, views: int) -> float:
    """The share of so many views to draw, where `images` is that of the images."""
    from frostline.images.views import view_facts

    facts = view_facts(params.augment.transforms, params.base.image_size, params.seed, code_of("images/views.py"))
    numbers = [
        require_complete(folder)["num_views"] for folder in made_alike(_outputs(params.paths.views, root), facts)
    ]
    there = min(views, max(numbers, default=1)) - 1
    return 1.0 - (1.0 - images) * there / max(1, views - 1)


def fresh_features(
    params: Params, root: Path, images: float, facts: Mapping[str, Any], depths: Sequence[int], views: int
) -> float:
    """The share of the rows of features to compute. facts: what they are made from; depths, views: that are stored."""
    there = 0
    for folder in made_alike(_outputs(params.paths.features, root), facts):
        complete = require_complete(folder)
        if set(depths) <= set(complete["stored"]):
            there = max(there, min(views, complete["views"]))
    return 1.0 - (1.0 - images) * there / max(1, views)


def _outputs(output: str, root: Path) -> list[Path]:
    """What is here, and what is kept of before."""
    return [root / output, *list_earlier(output, root)]
