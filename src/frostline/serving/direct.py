"""Images labelled with the 1000 ImageNet classes by a base as it was released, without any training."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.bases.families import FAMILIES, check_base
from frostline.errors import Refused
from frostline.images.decoding import UnreadableImage, decode_image

NUM_CLASSES = 1000
BATCH_SIZE = 32
HOW_TO_NAME = (
    "The names of the ImageNet classes are not here. Give --labels FILE with Keras's imagenet_class_index.json, "
    "or put that file into ~/.keras/models."
)


def label_images(
    base_name: str,
    weights: Path | None,
    files: Sequence[tuple[str, bytes | None]],
    top: int = 5,
    *,
    labels: Path | None = None,
    options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> list[dict[str, Any]]:
    """One record per image, in order: file, label, probability and `top`, the likeliest classes; or file and error.

    files: (name, bytes), or (path, None) for a file still to be read. weights: a file of the whole network with its
    top; None lets Keras download ImageNet's. labels: see `load_class_names`; classes without a name are called by
    their index. Raises Refused for an unknown base and for weights that leave a layer unfilled.
    """
    if base_name not in FAMILIES:
        check_base(base_name, 1024, {})
        raise Refused("--base: a custom base has no ImageNet classes. Name a family of `frostline blocks`.")
    size = image_size or FAMILIES[base_name].default_size
    names = load_class_names(labels)
    images: dict[int, NDArray[np.uint8]] = {}
    records: dict[int, dict[str, Any]] = {}
    for index, (name, data) in enumerate(files):
        try:
            images[index] = decode_image(Path(name).read_bytes() if data is None else data, size)
        except (UnreadableImage, OSError) as error:
            records[index] = {"file": name, "error": str(error)}
    if images:
        from frostline.bases.whole import build_whole

        model = build_whole(base_name, size, options=options, weights=weights)
        rows = model.predict(np.stack(list(images.values())), batch_size=BATCH_SIZE, verbose=0)
        for index, probabilities in zip(images, rows, strict=True):
            best = [
                {"label": names[label], "probability": float(probabilities[label]), "index": int(label)}
                for label in np.argsort(-probabilities, kind="stable")[:top]
            ]
            records[index] = {
                "file": files[index][0],
                "label": best[0]["label"],
                "probability": best[0]["probability"],
                "top": best,
            }
    return [records[index] for index in range(len(files))]


def load_class_names(labels: Path | None) -> tuple[str, ...]:
    """The 1000 names, index = class: from `labels`, else from Keras's cache, else "class 0" and so on, said on stderr.

    The file is JSON, {"0": ["n01440764", "tench"], ...} as Keras has it, or a plain list of names.
    """
    cache = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / "imagenet_class_index.json"
    path = labels or cache
    if labels is None and not cache.is_file():
        print(HOW_TO_NAME, file=sys.stderr)
        return tuple(f"class {index}" for index in range(NUM_CLASSES))
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = record if isinstance(record, list) else [record[str(index)] for index in range(len(record))]
        names = tuple(str(row if isinstance(row, str) else row[1]).replace("_", " ") for row in rows)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise Refused(
            f"--labels: {path} is no list of class names ({error}). Give Keras's imagenet_class_index.json."
        ) from None
    if len(names) != NUM_CLASSES:
        raise Refused(f"--labels: {path} has {len(names)} names; ImageNet has {NUM_CLASSES}.")
    return names
