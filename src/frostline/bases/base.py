"""A base built: the network up to its output, its weights, and its cuts verified on the graph."""

import difflib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline import params
from frostline.bases.custom import choose_cuts, load_custom
from frostline.bases.families import CUSTOM, FAMILIES, Scaling, check_base, cuts_of
from frostline.bases.graph import find_crossings, is_feature_map, name_operations, safe_name
from frostline.bases.networks import build_network
from frostline.bases.weights import load_weights
from frostline.devices import keras, without_drawing
from frostline.errors import Refused
from frostline.files import load_json, require_complete, sha256_of


@dataclass(frozen=True)
class Cut:
    """A place where a base is divided.

    depth: blocks above it, 0 = the output; name: the family's own, the same in every process; index: of the layer in
    `base.model.operations`; shape: (height, width, channels) of the one tensor that crosses.
    """

    depth: int
    name: str
    index: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Base:
    """A network from scaled images, float32 (n, image_size, image_size, 3), to a feature map; frozen.

    `cuts[d].depth == d`.
    """

    name: str
    model: keras.Model
    scaling: Scaling
    image_size: int
    cuts: tuple[Cut, ...]


def build_base(
    name: str,
    image_size: int,
    *,
    options: Mapping[str, Any] | None = None,
    output_layer: str | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> Base:
    """The base with the weights of a file, or with random ones drawn from `seed`.

    Raises Refused for an unknown name, option or layer, an image that is too small, and weights that leave a layer
    up to the output unfilled.
    """
    options = dict(options or {})
    check_base(name, image_size, options)
    if name == CUSTOM:
        if weights is None:
            raise Refused("base.weights: a custom base needs the path of its .keras file.")
        model = truncate(load_custom(weights, image_size), output_layer)
        scaling, wanted = options.get("scaling", "none"), choose_cuts(model)
    else:
        with drawn_from(seed) if weights is None else without_drawing():
            whole = build_network(name, image_size, options)
        model = truncate(whole, output_layer)
        if weights is not None:
            reached = {id(layer) for layer in model.layers}
            load_weights(weights, whole.layers, [layer for layer in whole.layers if id(layer) in reached], name)
        scaling, wanted = FAMILIES[name].scaling, cuts_of(name, options)
    model.trainable = False
    return Base(name, model, scaling, image_size, _cuts(model, wanted))


def load_base(base: params.Base, folder: Path) -> Base:
    """The base as `fetch` left it in `folder`, its file's sha256 checked first."""
    require_complete(folder)
    card = load_json(folder / "card.json")
    path = folder / card["file"] if card["file"] else None
    if path is not None and sha256_of(path) != card["sha256"]:
        raise Refused(
            f"{path} is not the file that was fetched: its sha256 differs from card.json. Run `dvc repro -f fetch`."
        )
    return build_base(
        base.name,
        base.image_size,
        options=base.options,
        output_layer=base.output_layer,
        weights=path,
        seed=card["seed"],
    )


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Initial weights of layers made in this block depend on `seed` alone; Python's generator is left as it was."""
    state = random.getstate()
    random.seed(seed)  # an initializer without a seed takes one from here
    try:
        yield
    finally:
        random.setstate(state)


def truncate(model: keras.Model, output_layer: str | None) -> keras.Model:
    """The model up to `output_layer`, or to the last feature map that everything passes through."""
    crossings = [operation for operation in find_crossings(model) if is_feature_map(operation.output)]
    if output_layer is None:
        if not crossings:
            raise Refused(f"{model.name} has no feature map (height, width, channels) that all paths pass through.")
        return model if crossings[-1].output is model.outputs[0] else keras.Model(model.inputs, crossings[-1].output)
    names = name_operations(model)
    wanted = (output_layer, safe_name(output_layer))
    match = next(
        (operation for operation in crossings if operation.name == output_layer or names[id(operation)] in wanted), None
    )
    if match is None:
        allowed = [names[id(operation)] for operation in crossings]
        near = difflib.get_close_matches(output_layer, allowed, n=3, cutoff=0.3) or allowed[-3:]
        raise Refused(
            f"base.output_layer: {output_layer!r} is no layer of {model.name} that all paths pass through. "
            f"Near: {', '.join(near)}; `frostline blocks` lists the cuts."
        )
    return keras.Model(model.inputs, match.output, name=model.name)


def _cuts(model: keras.Model, wanted: Sequence[str]) -> tuple[Cut, ...]:
    """The wanted cuts that lie in the model, and its output; every one a single-tensor crossing of the graph."""
    names = name_operations(model)
    crossings = {names[id(operation)]: operation for operation in find_crossings(model)}
    output = names[id(model.outputs[0]._keras_history.operation)]
    inside = [name for name in wanted if name in names.values() and name != output] + [output]
    index = {id(operation): position for position, operation in enumerate(model.operations)}
    cuts = []
    for depth, name in enumerate(reversed(inside)):
        if name not in crossings:
            raise AssertionError(f"{name} of {model.name} is not crossed by a single tensor")
        height, width, channels = crossings[name].output.shape[1:]
        cuts.append(Cut(depth, name, index[id(crossings[name])], (height, width, channels)))
    return tuple(cuts)
