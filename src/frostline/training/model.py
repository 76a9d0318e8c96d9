"""The whole model that is exported: base, tail and temperature in one file."""

import re
import shutil
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import keras
from keras import layers, ops

from frostline.bases.base import Base
from frostline.bases.cuts import join_base
from frostline.files import replacing
from frostline.training.tail import Tail, build_head


def join_model(base: Base, tail: Tail, *, pooling: str, dropout: float, temperature: float) -> keras.Model:
    """The whole model: uint8 (batch, size, size, 3) -> float32 probabilities (batch, num_classes).

    Takes the tail's present weights. The mask layer is swapped for `keras.layers.Dropout`; logits are divided by
    `temperature` (Guo et al., ICML 2017) before the softmax. Holds no optimizer state.
    """
    features = join_base(base, tail.depth, tail.suffix)
    units = next((layer.units for layer in tail.head.layers if layer.name == "hidden"), 0)
    head = build_head(
        tuple(features.output.shape[1:]),
        tail.head.output.shape[-1],
        units=units,
        pooling=pooling,
        dropout=layers.Dropout(dropout, name="dropout"),
    )
    for variable, source in zip(head.trainable_variables, tail.head.trainable_variables, strict=True):
        variable.assign(source)
    logits = head(features.output)
    scaled = layers.Rescaling(1.0 / temperature, name="temperature", dtype="float32")(logits)
    return keras.Model(features.input, layers.Softmax(name="probabilities", dtype="float32")(scaled), name="frostline")


def save_model(model: keras.Model, path: Path) -> None:
    """Writes `model` to `path` (`.keras`), whole or not at all, in bytes that depend on the model alone.

    Keras's own file holds dates, addresses in memory as names of shared objects, and a seed drawn anew for each dropout
    layer, so that the same model would get another sha256 each time it is trained. The model's seed states are set to zero.
    """
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            variable.assign(ops.zeros_like(variable))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        dated = temporary.with_suffix(".keras")  # Keras asks for the suffix
        try:
            model.save(dated)
            with ZipFile(dated) as source, ZipFile(temporary, "w") as target:
                for entry in source.infolist():
                    undated = ZipInfo(entry.filename)
                    if entry.filename.endswith(".json"):
                        target.writestr(undated, _without_accidents(source.read(entry).decode()))
                        continue
                    undated.file_size = entry.file_size  # beyond 2 GB the archive takes another form
                    with source.open(entry) as given, target.open(undated, "w") as written:
                        shutil.copyfileobj(given, written)
        finally:
            dated.unlink(missing_ok=True)


def _without_accidents(text: str) -> str:
    places: dict[str, int] = {}
    text = re.sub(
        r'(?<="shared_object_id": )\d+', lambda found: str(places.setdefault(found.group(), len(places) + 1)), text
    )
    return re.sub(r', "date_saved": "[^"]*"', "", text)
