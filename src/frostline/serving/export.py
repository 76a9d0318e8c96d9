"""A model for other runtimes: SavedModel, LiteRT (TFLite) or ONNX, each compared with the Keras model on real images."""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import load_split
from frostline.devices import BACKEND, keras, run_litert, run_saved_model
from frostline.errors import Refused
from frostline.evidence.predictions import FAMILIARITY, PROBABILITIES
from frostline.files import hash_folder, publish, save_json, sha256_of
from frostline.serving.model import GOLDEN, predict

# Of a probability: other runtimes add up in another order. Golden predictions are held to the same.
TOLERANCE = 1e-4
NUM_IMAGES = 16
RECORD = "export.json"
Images = NDArray[np.uint8]
# Of a familiarity, which is steep where many training images are as far.
FAMILIARITY_TOLERANCE = 1e-2
# What a runtime answered: by output, float32 (num_images, width), and the name, dtype and shape of input and outputs.
Answer = tuple[dict[str, NDArray[np.float32]], dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """One form of a model: the file or folder it becomes, Keras's word for it, what it needs, and how it is run."""

    artefact: str
    keras_format: str
    packages: tuple[str, ...]
    run: Callable[[Path, Images], Answer]


def export_model(network: keras.Model, form: str, folder: Path, images: Images, facts: Mapping[str, Any]) -> Any:
    """Writes the model in one of FORMS, with `export.json` beside it, into `folder`; the record in that file.

    The artefact is run by its own runtime on uint8 `images` (num_images, size, size, 3), alone and in a batch. Refused,
    with nothing left behind, where a probability differs by more than TOLERANCE, where the form needs a package that
    is not installed, where Keras cannot express the model in it, and where `folder` is something else. An earlier export
    there stays until the new one is whole.

    Args:
        facts: what else the record shall say (source, classes, how to decode).
    """
    chosen = FORMS[form]
    require_packages([form])
    if folder.exists() and not (folder / RECORD).is_file():
        raise Refused(
            f"{folder} exists and holds no {RECORD}, so it is no earlier export. Give another folder with --to."
        )
    work = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    artefact = work / chosen.artefact
    try:
        work.mkdir(parents=True)
        _convert(network, form, artefact)
        wanted, familiarity = predict(network, images)
        alone, interface = chosen.run(artefact, images[:1])
        together, _ = chosen.run(artefact, images)
        difference = _measure_difference(wanted, PROBABILITIES, alone, together)
        if not difference <= TOLERANCE:
            raise Refused(
                f"The {form} model differs from the Keras model by {difference:.3g} of a probability on {len(images)} "
                f"images; allowed is {TOLERANCE:g}. It was removed; the Keras model is as it was."
            )
        strange = (
            0.0 if familiarity is None else _measure_difference(familiarity[:, None], FAMILIARITY, alone, together)
        )
        if not strange <= FAMILIARITY_TOLERANCE:
            raise Refused(
                f"The familiarity that the {form} model tells differs from the Keras model's by {strange:.3g}; allowed is "
                f"{FAMILIARITY_TOLERANCE:g}. It was removed; the Keras model is as it was."
            )
        record = {
            **facts,
            "form": form,
            "artefact": chosen.artefact,
            "bytes": sum(path.stat().st_size for path in (artefact, *artefact.rglob("*")) if path.is_file()),
            "sha256": hash_folder(artefact) if artefact.is_dir() else sha256_of(artefact),
            "max_difference": difference,
            "tolerance": TOLERANCE,
            "num_images": len(images),
            **interface,
            "versions": {name: metadata.version(name) for name in ("keras", "tensorflow", *chosen.packages)},
        }
        save_json(work / RECORD, record)
        publish(work, folder, RECORD)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return record


def require_packages(forms: Sequence[str]) -> None:
    """Refused where one of `forms` cannot be made here, saying what to install or to set."""
    if BACKEND != "tensorflow":
        raise Refused(
            f"KERAS_BACKEND is {BACKEND}; export needs tensorflow. A .keras file is the same for both: unset it."
        )
    for form in forms:
        missing = [name for name in FORMS[form].packages if util.find_spec(name) is None]
        if missing:
            raise Refused(
                f'The form {form} needs {", ".join(missing)}. `pip install "frostline[{form}]"` or `make env` brings them.'
            )


def load_images(place: Path, image_size: int) -> Images:
    """At most 16 prepared images, uint8 (num_images, size, size, 3), spread over what there is.

    place: a version's folder, which holds some of its test images, or a split of the prepared data.
    Refused where there are none of that size.
    """
    if (place / GOLDEN).is_file():
        with np.load(place / GOLDEN, allow_pickle=False) as golden:
            images: Images = golden["images"]
    elif (place / "images.npy").is_file():
        images = load_split(place).images
    else:
        raise Refused(f"{place} holds no images, so an export could not be compared. Run `dvc repro prepare` first.")
    if images.shape[1] != image_size:
        raise Refused(f"The images of {place} have {images.shape[1]} pixels a side, the model takes {image_size}.")
    return np.asarray(images[np.linspace(0, len(images) - 1, min(NUM_IMAGES, len(images))).astype(int)])


def _measure_difference(wanted: NDArray[np.float32], name: str, *answers: Mapping[str, NDArray[np.float32]]) -> float:
    """The largest from what the Keras model answers to the same images, of an output; the only one has any name."""
    found = [answer[name] if len(answer) > 1 else next(iter(answer.values())) for answer in answers]
    return max(float(np.abs(each - wanted[: len(each)]).max()) for each in found)


def _convert(network: keras.Model, form: str, artefact: Path) -> None:
    try:
        # Not every converter calls a model that was only loaded, and Keras refuses one that was never called.
        network(np.zeros((1, *network.input_shape[1:]), np.uint8))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converters' own, about their own insides
            network.export(artefact, format=FORMS[form].keras_format, verbose=False)
    except Exception as error:  # converters raise whatever they like; the model itself was loaded and is sound
        said = next(iter(str(error).strip().splitlines()), "")
        raise Refused(f"Keras cannot turn this model into {form}: {type(error).__name__}: {said}") from error


def _run_onnx(file: Path, images: Images) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,), gives = session.get_inputs(), session.get_outputs()
    described = [
        {
            "name": value.name,
            "dtype": value.type,
            "shape": [size if isinstance(size, int) else None for size in value.shape],
        }
        for value in (given, *gives)
    ]
    found = session.run(None, {given.name: images})
    names = [value.name for value in gives]
    return dict(zip(names, found, strict=True)), {"input": described[0], "outputs": described[1:]}


FORMS = {
    "saved_model": Form("model", "tf_saved_model", (), run_saved_model),
    "litert": Form("model.tflite", "litert", (), run_litert),
    "onnx": Form("model.onnx", "onnx", ("onnx", "onnxruntime", "tf2onnx"), _run_onnx),
}
