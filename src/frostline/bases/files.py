"""`data/base`: the base's weights and the card that says where they come from. Needs Keras for `imagenet` alone."""

import json
import os
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from frostline import params
from frostline.bases.families import BUNDLED_BASE, CUSTOM, check_base
from frostline.bases.packages import PACKAGES, save_package
from frostline.errors import Refused, first_line, some
from frostline.files import load_json, mark_complete, replacing, save_json, sha256_of
from frostline.process import project_root

STALLED_SECONDS = 60.0
SUFFIXES = (".weights.h5", ".h5", ".keras")


def fetch_weights(base: params.Base, folder: Path, seed: int) -> None:
    """Writes `folder`: the weights file, `card.json` with its sha256, and the marker.

    `base.weights` is `package`, `bundled`, `imagenet`, `random` or a file. Raises Refused where it is none of these, or where the
    bundled base is another architecture than `base.name` and `base.options` say.
    """
    check_base(base.name, base.image_size, base.options)
    card: dict[str, Any] = {
        "name": base.name,
        "weights": base.weights,
        "file": None,
        "sha256": None,
        "source": None,
        "licence": None,
        "options": dict(base.options),
        "image_size": base.image_size,
        "seed": seed,
    }
    folder.mkdir(parents=True, exist_ok=True)
    match base.weights:
        case "random" | "package" | "bundled" | "imagenet" if base.name == CUSTOM:
            raise Refused(f"base.weights: a custom base is the path of a .keras file; given was {base.weights!r}.")
        case "random":
            card |= {"source": "drawn from the seed; not pre-trained", "licence": "none"}
        case "package":
            card |= _convert_package(base, folder)
        case "bundled":
            card |= _copy_bundled(base, folder)
        case "imagenet":
            card |= _download(base, folder)
        case _:
            card |= _copy_file(base, folder)
    if card["file"]:
        card["sha256"] = sha256_of(folder / card["file"])
    save_json(folder / "card.json", card)
    mark_complete(folder, name=base.name, weights=card["weights"], sha256=card["sha256"])


def check_custom_file(path: Path) -> None:
    """Raises Refused for a `.keras` file that could not be a base, from its description alone: no Keras, no network built."""
    try:
        with zipfile.ZipFile(path) as archive:
            metadata, config = (json.loads(archive.read(name)) for name in ("metadata.json", "config.json"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Refused(f"base.weights: {path} is no .keras file: {first_line(error)}") from None
    version = str(metadata.get("keras_version", "3"))
    if version.startswith(("1.", "2.")):
        raise Refused(
            f"base.weights: {path} was saved by Keras {version}, which Keras 3 does not read. Load it where it was made and save its "
            "weights (.h5) for a family of keras.applications, or build it with Keras 3 and save that."
        )
    if config.get("class_name") not in ("Functional", "Sequential", "Model"):
        raise Refused(
            f"base.weights: {path} holds a {config.get('class_name')}; only functional and Sequential models can be cut."
        )
    odd = sorted({kind for module, kind in _classes_in(config) if kind == "Lambda" or not module.startswith("keras")})
    if odd:
        raise Refused(
            f"base.weights: {path} holds {some(odd)}, code that a file cannot bring along and Keras's safe mode refuses. "
            "Replace it by layers of Keras."
        )


def _classes_in(config: Any) -> Iterator[tuple[str, str]]:
    """(module, class) of everything that a model's description would build."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str) and "config" in config:
            yield str(config.get("module") or "keras"), config["class_name"]
        for value in config.values():
            yield from _classes_in(value)
    elif isinstance(config, list):
        for value in config:
            yield from _classes_in(value)


def _convert_package(base: params.Base, folder: Path) -> dict[str, Any]:
    save_package(base.name, folder / "base.weights.h5")
    package = PACKAGES[base.name]
    return {
        "file": "base.weights.h5",
        "source": package.source,
        "licence": package.licence,
        "package": {"name": package.name, "version": package.version, "file": package.file, "sha256": package.sha256},
    }


def _copy_bundled(base: params.Base, folder: Path) -> dict[str, Any]:
    card = load_json(BUNDLED_BASE / "card.json")
    if (card["name"], card["options"]) != (base.name, dict(base.options)):
        raise Refused(
            f"The bundled base is {card['name']} with options {card['options']}; base.name is {base.name} with "
            f"{dict(base.options)}. Set both alike, or give base.weights as package, imagenet, random or a file."
        )
    _copy(BUNDLED_BASE / card["file"], folder / card["file"])
    if sha256_of(folder / card["file"]) != card["sha256"]:
        raise Refused(f"The bundled {card['file']} differs from its card: install Frostline again.")
    return {**card, "weights": "bundled", "image_size": base.image_size}


def _copy_file(base: params.Base, folder: Path) -> dict[str, Any]:
    given = Path(base.weights).expanduser()
    path = given if given.is_absolute() or given.is_file() else project_root() / given
    if not path.is_file():
        raise Refused(
            f"base.weights: there is no file {base.weights!r}. "
            f"Allowed are package, bundled, imagenet, random, or a file ending in {', '.join(SUFFIXES)}."
        )
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise Refused(f"base.weights: {path.name} does not end in one of {', '.join(SUFFIXES)}.")
    if base.name == CUSTOM and suffix != ".keras":
        raise Refused(f"base.weights: a custom base is a .keras file; given was {path.name}.")
    if base.name == CUSTOM:
        check_custom_file(path)
    _copy(path, folder / f"base{suffix}")
    facts = {"weights": "keras" if suffix == ".keras" else "file", "file": f"base{suffix}", "source": path.name}
    return facts | _known_facts(path, base)


def _known_facts(path: Path, base: params.Base) -> dict[str, Any]:
    """What the card beside the file says of it, where `frostline pretrain` wrote one for these very bytes."""
    beside = path.with_name("card.json")
    card = load_json(beside) if beside.is_file() else {}
    if not isinstance(card, dict) or card.get("sha256") != sha256_of(path):
        return {}
    if base.name != CUSTOM and (card.get("name"), card.get("options", {})) != (base.name, dict(base.options)):
        raise Refused(
            f"base.weights: {beside} says that {path.name} is {card.get('name')} with options {card.get('options', {})}; "
            f"base.name is {base.name} with {dict(base.options)}. Set both alike."
        )
    return {key: card[key] for key in ("source", "licence") if card.get(key)}


def _download(base: params.Base, folder: Path) -> dict[str, Any]:
    if base.name in PACKAGES:
        raise Refused(f"base.weights: Keras has no weights of {base.name}. Set base.weights to package.")
    from frostline.bases.networks import build_network

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_SECONDS)  # Keras would wait for a server that went silent for ever
    try:
        model = build_network(base.name, base.image_size, base.options, weights="imagenet")
    except Exception as error:  # Keras raises bare Exception where a download fails
        torn = find_torn(Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models")
        advice = f" Half a file is in Keras's cache, remove it and run again: {some(torn)}." if torn else ""
        raise Refused(
            f"base.weights: the ImageNet weights of {base.name} could not be had: {first_line(error)}{advice}"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)
    with replacing(folder / "base.weights.h5") as temporary:
        model.save_weights(temporary)
    return {
        "file": "base.weights.h5",
        "source": "keras.applications, ImageNet",
        "licence": "see https://keras.io/api/applications/",
    }


def find_torn(folder: Path) -> list[Path]:
    """The weights files of a folder that cannot be opened: what a download leaves that was killed."""
    torn = []
    for path in sorted(folder.glob("*.h5")):
        try:
            h5py.File(path, "r").close()
        except OSError:
            torn.append(path)
    return torn


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
