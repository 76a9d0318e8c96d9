"""Weights files read into a network, layer by layer, with proof that none was left out.

A `.weights.h5` of Keras 3 names layers by class and rank (`layers/conv2d_7/vars/0`), so the file of a deeper network,
with or without its top, serves a network cut short. A legacy `.h5` lists layers by name. A `.keras` holds a `.weights.h5`.
"""

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from frostline.bases.graph import snake_case
from frostline.devices import keras
from frostline.errors import Refused, first_line

DEVIATION = (0.229, 0.224, 0.225)  # standard, of ImageNet's channels, RGB, on 0..1
SHOWN = 8  # layers named in a refusal
Group = tuple[str, list[h5py.Dataset]]  # a layer's name in a legacy file, and its numbers


def load_weights(path: Path, layers: Sequence[keras.Layer], wanted: Sequence[keras.Layer], name: str) -> None:
    """Fills every layer of `wanted` from the file.

    layers: the whole network's, in Keras's order; wanted: the layers up to the base's output, in that network's order.
    Raises Refused naming each layer that the file does not fill.
    """
    try:
        with _open_h5(path) as file:
            groups = _legacy_groups(file) if _is_legacy(file) else None
            if groups is not None:
                attempts = [_match_legacy(groups, order, by) for order in (layers, wanted) for by in ("rank", "name")]
            else:
                attempts = [_match_paths(file, root, order) for order in (layers, wanted) for root in _roots(file)]
            problems = [_misfits(found, wanted) for found in attempts]
            best = min(range(len(attempts)), key=lambda index: len(problems[index]), default=None)
            if best is None or problems[best]:
                missing = (
                    problems[best] if best is not None else {layer.name: "absent" for layer in wanted if layer.weights}
                )
                raise Refused(
                    _describe(path, name, missing, len([layer for layer in _leaves(wanted) if layer.weights]))
                )
            for layer in _leaves(wanted):
                if layer.weights:
                    _fill(layer, attempts[best][id(layer)], path)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise Refused(
            f"{path} cannot be read as a weights file ({first_line(error)}). Give a .weights.h5, a legacy .h5 or a .keras."
        ) from None


def _open_h5(path: Path) -> h5py.File:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r")
    return h5py.File(path, "r")


def _is_legacy(file: h5py.File) -> bool:
    return "layer_names" in file.attrs or "layer_names0" in file.attrs or "model_weights" in file


def _legacy_groups(file: h5py.File) -> list[Group]:
    """(name, numbers) of the layers that have weights, in the file's order; models inside the saved one are taken apart.

    Keras 2 wrote a model inside a model as one layer with the weights of all its layers: first those that were trained,
    then the others, each called `layer/weight:0`.
    """
    root = _inside(file, "model_weights") if "model_weights" in file else file
    groups: list[Group] = []
    for layer in _names_in(root, "layer_names"):
        group = _inside(root, layer)
        inner: dict[str, list[h5py.Dataset]] = {}
        for name in _names_in(group, "weight_names"):
            inner.setdefault(name.rpartition("/")[0], []).append(_dataset(group, name))
        is_model = len(inner) > 1
        groups += [
            (name.rpartition("/")[2] if is_model else layer.rpartition("/")[2], found) for name, found in inner.items()
        ]
    return groups


def _names_in(group: h5py.Group, key: str) -> list[str]:
    # Keras splits a list that is too long for one HDF5 attribute into key0, key1, ...
    parts = (
        [key]
        if key in group.attrs
        else [f"{key}{index}" for index in range(len(group.attrs)) if f"{key}{index}" in group.attrs]
    )
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in group.attrs[part]]


def _match_legacy(groups: Sequence[Group], layers: Sequence[keras.Layer], by: str) -> dict[int, list[h5py.Dataset]]:
    weighted = [layer for layer in _leaves(layers) if layer.weights]
    if by == "name":
        named = dict(groups)
        return {id(layer): named[layer.name] for layer in weighted if layer.name in named}
    return {id(layer): found for layer, (_, found) in zip(weighted, groups, strict=False)}


def _roots(file: h5py.File) -> list[str]:
    """Where a network's layers may stand: at the top, or in a model inside the saved one."""
    roots = ["layers"] if "layers" in file else []
    for name in file.get("layers", {}):
        if isinstance(_inside(file, f"layers/{name}"), h5py.Group) and "layers" in file[f"layers/{name}"]:
            roots.append(f"layers/{name}/layers")
    return roots


def _match_paths(file: h5py.File, root: str, layers: Sequence[keras.Layer]) -> dict[int, list[h5py.Dataset]]:
    found = {}
    for path, layer in _paths_of(layers, root):
        if f"{path}/vars" in file:
            group = _inside(file, f"{path}/vars")
            found[id(layer)] = [_dataset(group, str(index)) for index in range(len(group))]
    return found


def _paths_of(layers: Sequence[keras.Layer], root: str) -> Iterator[tuple[str, keras.Layer]]:
    counts: dict[str, int] = {}
    for layer in layers:
        key = snake_case(type(layer).__name__)
        rank = counts.get(key, 0)
        counts[key] = rank + 1
        path = f"{root}/{key}_{rank}" if rank else f"{root}/{key}"
        if isinstance(layer, keras.Model):
            yield from _paths_of(layer.layers, f"{path}/layers")
        else:
            yield path, layer


def _leaves(layers: Sequence[keras.Layer]) -> list[keras.Layer]:
    return [layer for _, layer in _paths_of(layers, "")]


def _inside(group: h5py.Group, path: str) -> Any:
    """A member of the file itself: links to other files are refused."""
    for part in path.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise Refused(
                f"{group.file.filename}: {group.name}/{part} is a link to elsewhere; such files are not read."
            )
        group = group[part]
    return group


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    dataset = _inside(group, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.external:
        raise Refused(f"{group.file.filename}: {group.name}/{name} holds no numbers of its own.")
    return dataset


def _misfits(found: dict[int, list[h5py.Dataset]], wanted: Sequence[keras.Layer]) -> dict[str, str]:
    """Layers that would stay unfilled, with the reason. Shapes are compared before any number is read."""
    problems = {}
    for layer in _leaves(wanted):
        shapes = [tuple(variable.shape) for variable in layer.weights]
        if not shapes:
            continue
        if id(layer) not in found:
            problems[layer.name] = "absent"
        else:
            given = [tuple(dataset.shape) for dataset in found[id(layer)]]
            if sorted(given) != sorted(shapes) or (given != shapes and len(set(shapes)) == len(shapes)):
                problems[layer.name] = f"{_list(given)} instead of {_list(shapes)}"
    return problems


def _list(shapes: Sequence[tuple[int, ...]]) -> str:
    return " ".join("x".join(map(str, shape)) or "scalar" for shape in shapes) or "nothing"


def _fill(layer: keras.Layer, datasets: Sequence[h5py.Dataset], path: Path) -> None:
    values: dict[str, NDArray[Any]] = {}
    for index, (dataset, variable) in enumerate(zip(datasets, layer.weights, strict=True)):
        value = np.asarray(dataset[()], dtype=str(variable.dtype))
        if not np.isfinite(value).all():
            raise Refused(f"{path} holds values that are not finite, in layer {layer.name}.")
        values[str(index)] = value
    layer.load_own_variables(values)
    if isinstance(layer, keras.layers.Normalization):
        _correct_variance(layer)


def _correct_variance(layer: keras.layers.Normalization) -> None:
    """Squares a variance that holds ImageNet's standard deviation.

    That is how EfficientNet's released weights store it; Keras makes up for it with one more Rescaling layer, but only
    where it downloads them itself. Source: keras.applications.efficientnet, the comment below `layers.Normalization`.
    """
    variance = keras.ops.convert_to_numpy(layer.adapt_variance)
    if np.allclose(variance, DEVIATION, rtol=0.01):
        layer.adapt_variance.assign(variance * variance)
        layer.finalize_state()


def _describe(path: Path, name: str, missing: dict[str, str], total: int) -> str:
    shown = [f"{layer} ({reason})" for layer, reason in list(missing.items())[:SHOWN]]
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return (
        f"{path} does not fill {len(missing)} of the {total} layers with weights of {name}: {', '.join(shown)}{more}. "
        "Check base.name and base.options, or set base.output_layer to a layer that the file reaches."
    )
