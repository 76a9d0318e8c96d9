"""The whole model that is exported: the frozen prefix once, tails and linear heads on it, their mean, in one file."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from frostline.bases.base import Base
from frostline.bases.cuts import copy_prefix, copy_suffix, pool_maps
from frostline.devices import keras, layers, ops
from frostline.evidence.predictions import FAMILIARITY, PROBABILITIES
from frostline.files import replacing
from frostline.training.familiarity import Familiarity, build_familiarity
from frostline.training.linear import Head
from frostline.training.tail import HeadStart, Tail
from frostline.training.trainer import Trainer

Array = NDArray[Any]


@dataclass(frozen=True)
class Members:
    """The networks whose probabilities a model averages.

    trainer: of the tails, None where there are only linear heads; tails: trained parameters of each (as State.params);
    head: the standardisation that their heads have; linear: heads on raw columns of the pooled cuts, as `sees` says;
    share: of the tails in the answer, the rest is the linear heads'.
    """

    trainer: Trainer | None
    tails: Sequence[Sequence[Any]] = field(repr=False)
    head: HeadStart | None = field(repr=False)
    linear: Sequence[Head] = field(repr=False)
    sees: str
    share: float

    @property
    def depth(self) -> int:
        """Of the tails that have a share; 0 where there are only linear heads."""
        return self.trainer.tail.depth if self.trainer is not None and self.share > 0 else 0

    @property
    def reach(self) -> int:
        """The depth of the last cut of the base as it was that the model computes: linear heads see all of it."""
        return self.depth if self.share == 1 else 0


def build_model(
    base: Base,
    members: Members,
    *,
    pooling: str,
    temperature: float,
    mirrored: bool,
    familiarity: Familiarity | None = None,
) -> keras.Model:
    """The whole model: uint8 (batch, size, size, 3) -> float32 probabilities (batch, num_classes).

    With a familiarity, of the columns of `members.reach`, a dict of `probabilities` and `familiarity` (batch, 1), that of the
    image itself.

    The mean of the tails' probabilities and that of the linear heads' are mixed by `members.share`; the logarithm is divided
    by `temperature` (Guo et al., ICML 2017). mirrored: the answer is the mean of those for the image and its mirror image.
    Stock layers alone, frozen; holds no optimizer state.
    """
    pixels, depth = _take_pixels(base), members.depth
    maps = copy_prefix(base, depth, pixels)
    upper = _copy_upper(base, members, maps[-1]) if members.reach < depth else []
    mixed = _mix(base, members, maps, upper, pooling, "")
    # The last of the pooled cuts; behind it stands the one that tails start from, which may be none of them.
    known = {} if familiarity is None else {FAMILIARITY: build_familiarity(familiarity, [*maps[:-1], *upper][-1])}
    return _finish(base, pixels, {PROBABILITIES: (mixed, temperature)}, known, mirrored=mirrored)


def build_baselines(
    base: Base, baselines: Mapping[str, tuple[Members, float]], *, pooling: str, mirrored: bool
) -> keras.Model:
    """Several models that train nothing of the base, as one: uint8 (batch, size, size, 3) -> name: float32 (batch, num_classes).

    baselines: of each name the members and the temperature. The base is computed once for all of them.
    """
    pixels = _take_pixels(base)
    maps = copy_prefix(base, 0, pixels)
    answers = {
        name: (_mix(base, members, maps, [], pooling, f"{name}_"), temperature)
        for name, (members, temperature) in baselines.items()
    }
    return _finish(base, pixels, answers, {}, mirrored=mirrored)


def _take_pixels(base: Base) -> Any:
    return keras.Input((base.image_size, base.image_size, 3), dtype="uint8", name="pixels")


def _mix(base: Base, members: Members, maps: Sequence[Any], upper: Sequence[Any], pooling: str, prefix: str) -> Any:
    """The mean of the tails' probabilities and that of the linear heads', mixed by `members.share`.

    maps: of the pooled cuts below the tails, and what tails start from; prefix: of the layers' names.
    """
    frozen = pool_maps(maps[:-1], f"{prefix}cuts") if pooling != "flatten" else None
    parts = []
    if members.trainer is not None and members.share > 0:
        assert members.head is not None
        answers = [
            _answer_of_tail(base, members.trainer, params, members.head, maps[-1], frozen, f"{prefix}tail_{number}")
            for number, params in enumerate(members.tails)
        ]
        parts.append((members.share, _mean(answers, f"{prefix}tails")))
    if members.share < 1:
        columns = _columns_for_heads(maps[-1], upper, frozen, members.sees, pooling, f"{prefix}heads")
        names = [f"{prefix}head_{number}" for number in range(len(members.linear))]
        answers = [
            _softmax(_dense(columns, *head, name), name) for name, head in zip(names, members.linear, strict=True)
        ]
        parts.append((1 - members.share, _mean(answers, f"{prefix}heads")))
    if len(parts) == 1:
        return parts[0][1]
    shares = [
        layers.Rescaling(share, name=f"{prefix}share_{n}", dtype="float32")(x) for n, (share, x) in enumerate(parts)
    ]
    return layers.Add(name=f"{prefix}mixture", dtype="float32")(shares)


def _finish(
    base: Base, pixels: Any, answers: Mapping[str, tuple[Any, float]], known: Mapping[str, Any], *, mirrored: bool
) -> keras.Model:
    """The model of these answers, name: (probabilities, temperature), each the mean with the mirror image's where asked.

    known: outputs that are of the image alone. What `build_model` answers alone is no dict.
    """
    mixed = {name: probabilities for name, (probabilities, _) in answers.items()}
    if mirrored:
        network = keras.Model(pixels, {**mixed, **known}, name="network")
        network.trainable = False
        pixels = _take_pixels(base)
        plain, mirror = network(pixels), network(ops.flip(pixels, axis=2))
        known = {name: plain[name] for name in known}
        mixed = {name: _mean([plain[name], mirror[name]], f"{_prefix(name)}mirrored") for name in mixed}
    outputs = dict(known)
    for name, (_, temperature) in answers.items():
        scaled = layers.Rescaling(1.0 / temperature, name=f"{_prefix(name)}temperature", dtype="float32")
        logits = scaled(ops.log(ops.maximum(mixed[name], 1e-12)))
        outputs[name] = layers.Softmax(name=name, dtype="float32")(logits)
    model = keras.Model(pixels, outputs[PROBABILITIES] if [*outputs] == [PROBABILITIES] else outputs, name="frostline")
    model.trainable = False
    _name_operations(model)
    return model


def _prefix(answer: str) -> str:
    return "" if answer == PROBABILITIES else f"{answer}_"


def _name_operations(model: keras.Model) -> None:
    """Names the operations that are no layers after their place: Keras counts them through the whole process, so that
    the same model would get another file."""
    for place, operation in enumerate(model.operations):
        if isinstance(operation, keras.Model):
            _name_operations(operation)
        elif not isinstance(operation, layers.Layer):
            operation.name = f"{type(operation).__name__.lower()}_{place}"


def _answer_of_tail(
    base: Base, trainer: Trainer, params: Sequence[Any], head: HeadStart, start: Any, frozen: Any, name: str
) -> Any:
    tail = trainer.tail
    trainer.store(params)
    outputs = [start] if tail.suffix is None else copy_suffix(base, tail.depth, tail.suffix, start, name)
    x = _columns_of(tail, outputs, frozen, name)
    weights = [np.asarray(ops.convert_to_numpy(value)) for value in params[len(params) - len(head.weights) :]]
    # The standardisation goes into the first layer.
    first = weights[0] / head.scale[:, None]
    folded = [first.astype(np.float32), (weights[1] - head.mean @ first).astype(np.float32), *weights[2:]]
    if len(folded) == 4:
        x = layers.ReLU(name=f"{name}_relu")(_dense(x, folded[0], folded[1], f"{name}_hidden"))
    return _softmax(_dense(x, folded[-2], folded[-1], f"{name}_logits"), name)


def _columns_of(tail: Tail, outputs: Sequence[Any], frozen: Any, name: str) -> Any:
    """What the tail's head sees, in the order of the pooled cuts."""
    if tail.sees == "all":
        if tail.suffix is None:
            return frozen
        return layers.Concatenate(name=f"{name}_columns")([frozen, pool_maps(outputs, f"{name}_pool")])
    return _pool_last(outputs[-1], tail.pooling, name)


def _copy_upper(base: Base, members: Members, start: Any) -> list[Any]:
    """The maps of the pooled cuts that tails train, computed anew by the base as it was."""
    trainer = members.trainer
    assert trainer is not None and trainer.tail.suffix is not None
    trainer.restore()
    return copy_suffix(base, members.depth, trainer.tail.suffix, start, "base")


def _columns_for_heads(start: Any, upper: Sequence[Any], frozen: Any, sees: str, pooling: str, name: str) -> Any:
    """What linear heads see: the cuts of the base as it was."""
    if sees != "all":
        return _pool_last(upper[-1] if upper else start, pooling, name)
    return layers.Concatenate(name=f"{name}_columns")([frozen, pool_maps(upper, f"{name}_pool")]) if upper else frozen


def _pool_last(x: Any, pooling: str, name: str) -> Any:
    pools = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D, "flatten": layers.Flatten}
    return pools[pooling](name=f"{name}_last")(x)


def _dense(x: Any, kernel: Array, bias: Array, name: str) -> Any:
    layer = layers.Dense(kernel.shape[1], name=name, dtype="float32")
    y = layer(x)
    layer.set_weights([kernel, bias])
    return y


def _softmax(logits: Any, name: str) -> Any:
    return layers.Softmax(name=f"{name}_probabilities", dtype="float32")(logits)


def _mean(answers: Sequence[Any], name: str) -> Any:
    return answers[0] if len(answers) == 1 else layers.Average(name=name, dtype="float32")(list(answers))


def save_model(model: keras.Model, path: Path) -> None:
    """Writes `model` to `path` (`.keras`), whole or not at all, in bytes that depend on the model alone.

    Keras's own file holds dates, addresses in memory as names of shared objects, and a seed drawn anew for each dropout
    layer, so that the same model would get another sha256 each time it is trained. The model's seed states are set to zero.
    """
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            variable.assign(ops.zeros_like(variable))
    with replacing(path) as dated:
        model.save(dated)
        with replacing(dated) as temporary, ZipFile(dated) as source, ZipFile(temporary, "w") as target:
            for entry in source.infolist():
                undated = ZipInfo(entry.filename)
                if entry.filename.endswith(".json"):
                    target.writestr(undated, _without_accidents(source.read(entry).decode()))
                    continue
                undated.file_size = entry.file_size  # beyond 2 GB the archive takes another form
                with source.open(entry) as given, target.open(undated, "w") as written:
                    shutil.copyfileobj(given, written)


def _without_accidents(text: str) -> str:
    places: dict[str, int] = {}
    text = re.sub(
        r'(?<="shared_object_id": )\d+', lambda found: str(places.setdefault(found.group(), len(places) + 1)), text
    )
    return re.sub(r', "date_saved": "[^"]*"', "", text)
