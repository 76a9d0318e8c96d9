"""The model that MLflow serves: a pyfunc around the `.keras` file, with the decoder of `prepare` in front.

A model folder holds `model.keras`, `frostline.json` (classes, size, how to decode, sha256) and `golden.npz` (a few test
images with the answers they got when the model was registered).
"""

import math
import os
import re
import shutil
import tempfile
import threading
import warnings
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from frostline.errors import Refused
from frostline.evidence.conformal import make_sets
from frostline.evidence.predictions import FAMILIARITY, PROBABILITIES
from frostline.files import load_json, save_json, sha256_of
from frostline.images.decoding import UnreadableImage, decode_image, read_header

if TYPE_CHECKING:
    import pandas as pd


MODEL, CARD, GOLDEN = "model.keras", "frostline.json", "golden.npz"
DATA = Path("data/data")  # where these lie in MLflow's folder of the model
# Of one request, where a server is to have limits.
MAX_IMAGES, MAX_MEGAPIXELS = "FROSTLINE_SERVE_MAX_IMAGES", "FROSTLINE_SERVE_MAX_MEGAPIXELS"
BATCH_SIZES = (1, 8, 32)
BATCH_SIZE = BATCH_SIZES[-1]
# What a server needs besides the code that travels with the model.
REQUIREMENTS = ("mlflow", "keras", "numpy", "pandas", "opencv-python-headless")
# A server answers in threads, but not every kernel may run in two at once (`devices.choose_streams`); one fills the cores.
ONE_BATCH = threading.Lock()
# Plain, of a data URL, or in TensorFlow Serving's {"b64": ...}; images begin with bytes that are none of these.
BASE64 = re.compile(rb"""(?:\{['"]b64['"]: ['"])?(?:data:[\w/+.-]+;base64,)?([A-Za-z0-9+/_\s-]{8,}=*\s*)(?:['"]\})?""")
BACKENDS = {"tensorflow": "tensorflow", "jax": "jax"}


@dataclass(frozen=True)
class Card:
    """What a model's user must know: the classes in the order of its outputs, and how an image becomes its input.

    sets: for each share that may be promised, as text, the probability from which a class is in a set; empty where nothing is.
    """

    classes: tuple[str, ...]
    image_size: int
    resize: str
    min_side: int
    max_megapixels: float
    sha256: str
    bits: int = 16
    sets: Mapping[str, float] = field(default_factory=dict)

    def threshold(self, coverage: float) -> float:
        """The probability from which a class is in a set; Refused for a share that was not promised."""
        for promised, threshold in self.sets.items():
            if float(promised) == coverage:
                return threshold
        known = ", ".join(self.sets) or "none: it was made without sets"
        raise Refused(f"This model promises no coverage of {coverage:g}. It has {known}.")


@dataclass(frozen=True)
class Limits:
    """What one call of `predict` may hold: so many images, and so many megapixels of encoded ones together."""

    images: float = math.inf
    megapixels: float = math.inf

    @classmethod
    def from_environment(cls) -> Self:
        """Those that a server was started with; none where a program loads the model."""
        return cls(*(float(os.environ.get(name, "inf")) for name in (MAX_IMAGES, MAX_MEGAPIXELS)))


class FrostlineModel:
    """Labels images: encoded ones in the column `image`, or decoded ones in the column `pixels`."""

    limits = Limits()

    def __init__(self, folder: Path) -> None:
        self.card = load_card(folder)
        self.network = load_network(folder / MODEL, self.card.sha256, self.card.image_size)

    @classmethod
    def from_file(cls, path: Path, card: Card) -> Self:
        """The model in a lone `.keras` file, with what else there is to know given."""
        made = cls.__new__(cls)
        made.card, made.network = card, load_network(path, card.sha256, card.image_size)
        return made

    @property
    def knows_strangers(self) -> bool:
        """Does it tell how familiar an image is? Models of an earlier Frostline do not."""
        return isinstance(self.network.output, dict)

    def answer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Probabilities, float32 (num_images, num_classes), and familiarity (num_images,) of uint8 (num_images, size, size, 3)."""
        return predict(self.network, images)

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probabilities alone."""
        return self.answer(images)[0]

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """The image as the model was trained on it; raises UnreadableImage."""
        card = self.card
        return decode_image(
            data,
            card.image_size,
            card.resize,
            min_side=card.min_side,
            max_megapixels=card.max_megapixels,
            bits=card.bits,
        )

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":
        """One row of label, probability, all probabilities and familiarity for each row of `image` or `pixels`.

        With {"coverage": 0.95} in params also a `set` of labels, which holds the right one as often as that. Raises
        MlflowException with INVALID_PARAMETER_VALUE, which a server answers with 400, for rows that are no image; all of
        them are named.
        """
        import pandas as pd

        rows = _records(model_input)
        if not rows:
            raise _bad_request("there are no rows; send at least one image in `image` or `pixels`")
        if len(rows) > self.limits.images:
            raise _bad_request(
                f"{len(rows)} images in one request, at most {self.limits.images:g} are taken; send several"
            )
        images, problems, pixels = [], [], 0
        for number, row in enumerate(rows):
            try:
                given = _given_in(row)
                if isinstance(given, bytes):
                    header = read_header(given)
                    pixels += header.width * header.height
                    if pixels > self.limits.megapixels * 1e6:
                        raise _bad_request(
                            f"the first {number + 1} images have {pixels / 1e6:.1f} megapixels together, at most "
                            f"{self.limits.megapixels:g} are taken in one request; send several, or smaller images"
                        )
                    images.append(self.decode(given))
                else:
                    images.append(_checked_pixels(given, self.card.image_size))
            except (UnreadableImage, ValueError) as error:
                problems.append(f"row {number}: {error}")
        if problems:
            raise _bad_request("; ".join(problems))
        coverage = (params or {}).get("coverage")
        try:
            threshold = None if coverage is None else self.card.threshold(coverage)
        except Refused as refusal:
            raise _bad_request(str(refusal)) from None
        probabilities, familiarity = self.answer(np.stack(images))
        return pd.DataFrame(make_answers(probabilities, self.card.classes, threshold, familiarity))


def load_card(folder: Path) -> Card:
    """What `frostline.json` in a model folder says."""
    record = load_json(folder / CARD)
    return Card(**{**record, "classes": tuple(record["classes"])})


def load_network(path: Path, sha256: str | None, image_size: int | None = None) -> Any:
    """The Keras model in `path`, loaded in safe mode after its bytes were compared with `sha256`.

    Raises Refused where the bytes are others, or the model is not one of ours: uint8 images in, probabilities out.
    """
    if not path.is_file():
        raise Refused(f"{path} does not exist.")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise Refused(
            f"{path.name} is not the model that was registered: checksum mismatch, its sha256 is {found}, "
            f"expected was {sha256}. Do not use it; register the model again with `dvc repro`."
        )
    import keras

    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as error:
        # Keras says "File not found" of a torn file too.
        raise Refused(
            f"{path} cannot be loaded by Keras {keras.__version__}: {str(error).strip().splitlines()[0]}"
        ) from error
    given = network.inputs[0]
    size = given.shape[1] if len(given.shape) == 4 else None
    if given.dtype != "uint8" or not size or (image_size and size != image_size):
        raise Refused(
            f"{path} takes {given.dtype} {tuple(given.shape)}, expected was uint8 "
            f"(None, {image_size or 'size'}, {image_size or 'size'}, 3): a model that `refit` wrote."
        )
    return network


def predict_probabilities(network: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The probabilities, float32 (num_images, num_classes), in batches of at most 32."""
    return predict(network, images)[0]


def predict(network: Any, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Probabilities, float32 (num_images, num_classes), and familiarity (num_images,), None of a model without it.

    In batches of at most 32.
    """
    found = predict_outputs(network, images)
    return found[PROBABILITIES], found[FAMILIARITY][:, 0] if FAMILIARITY in found else None


def predict_outputs(network: Any, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Every output by its name, float32 (num_images, length), in batches of at most 32."""
    outputs = network.output if isinstance(network.output, dict) else {PROBABILITIES: network.output}
    parts = {name: [np.zeros((0, output.shape[-1]), np.float32)] for name, output in outputs.items()}
    # Every size is compiled anew: of many images even the last batch is filled up.
    size = next((size for size in BATCH_SIZES if size >= len(images)), BATCH_SIZE)
    for start in range(0, len(images), BATCH_SIZE):
        batch = np.asarray(images[start : start + BATCH_SIZE])
        padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        with ONE_BATCH:
            answers = network.predict_on_batch(padded)
        for name, answer in (answers if isinstance(answers, dict) else {PROBABILITIES: answers}).items():
            parts[name].append(np.asarray(answer, np.float32)[: len(batch)])
    return {name: np.concatenate(each) for name, each in parts.items()}


def make_answers(
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    threshold: float | None = None,
    familiarity: NDArray[np.float32] | None = None,
) -> list[dict[str, Any]]:
    """Label, its probability and the probability of every class, one record per row, and its familiarity where that is known.

    threshold: from which a class is in the `set`, the likeliest first; no set where None.
    """
    answers: list[dict[str, Any]] = [
        {
            "label": classes[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": {name: float(value) for name, value in zip(classes, row, strict=True)},
        }
        for row in probabilities
    ]
    if threshold is not None:
        for answer, row, members in zip(answers, probabilities, make_sets(probabilities, threshold), strict=True):
            answer["set"] = [classes[place] for place in np.argsort(-row, kind="stable") if members[place]]
    if familiarity is not None:
        for answer, value in zip(answers, familiarity, strict=True):
            answer[FAMILIARITY] = float(value)
    return answers


def save_model_folder(
    folder: Path,
    model_file: Path,
    card: Card,
    golden: tuple[NDArray[np.uint8], NDArray[np.float32]] | None,
    **mlflow_model: Any,
) -> None:
    """Writes an MLflow model that needs neither this project nor its environment: file, card, code, requirements.

    Keras is not imported. Args: golden: a few test images and the probabilities they got; mlflow_model: fields of
    MLflow's Model (run_id, model_id).
    """
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        # MLflow warns of its own type hints, and asks for an example, which it would run through the model with Keras.
        warnings.filterwarnings(
            "ignore", message=".*(An input example was not provided|type hint is inferred as AnyType)"
        )
        import mlflow.pyfunc
        from mlflow.models import Model

        data, code = Path(temporary) / "data", Path(temporary) / "frostline"
        data.mkdir()
        shutil.copyfile(model_file, data / MODEL)
        save_json(data / CARD, {**asdict(card), "classes": list(card.classes)})
        if golden is not None:
            np.savez_compressed(data / GOLDEN, images=golden[0], probabilities=golden[1])
        # The code as it is now: an old version goes on decoding images as it did. Bundled weights stay at home.
        shutil.copytree(
            Path(__file__).parents[1], code, ignore=shutil.ignore_patterns("bundled", "__pycache__", "*.h5", "*.npz")
        )
        mlflow.pyfunc.save_model(
            folder,
            loader_module=__name__,
            data_path=str(data),
            code_paths=[str(code)],
            signature=make_signature(),
            pip_requirements=make_requirements(),
            mlflow_model=Model(**mlflow_model),
        )


def make_signature() -> Any:
    """Two optional columns in, three to five out; by hand, because MLflow's own guess imports the model."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, ParamSchema, ParamSpec, Schema

    # `pixels` is checked by us: MLflow's own check of nested lists takes a second per image.
    given = [ColSpec(DataType.binary, "image", required=False), ColSpec(AnyType(), "pixels", required=False)]
    answer = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
        ColSpec(Array(DataType.string), "set", required=False),
        ColSpec(DataType.double, FAMILIARITY, required=False),
    ]
    params = ParamSchema([ParamSpec("coverage", DataType.double, None)])
    return ModelSignature(inputs=Schema(given), outputs=Schema(answer), params=params)


def make_requirements() -> list[str]:
    """The exact versions a server needs, those installed here; among backends the one in use."""
    backend = BACKENDS.get(os.environ.get("KERAS_BACKEND", "tensorflow"), "tensorflow")
    return [f"{name}=={metadata.version(name)}" for name in (*REQUIREMENTS, backend)]


def _load_pyfunc(path: str) -> FrostlineModel:
    # What MLflow calls to load the model.
    model = FrostlineModel(Path(path))
    model.limits = Limits.from_environment()
    return model


def _records(model_input: Any) -> list[dict[str, Any]]:
    """The rows of a data frame, of a dict of columns (`inputs`), or of a list of rows (`instances`)."""
    if isinstance(model_input, (list, tuple)) and model_input and all(isinstance(row, dict) for row in model_input):
        model_input = {
            name: [row.get(name) for row in model_input] for name in {key for row in model_input for key in row}
        }
    columns = {}
    if hasattr(model_input, "keys"):
        columns = {name: _column(model_input[name]) for name in ("image", "pixels") if name in model_input}
    if not columns:
        raise _bad_request(
            "needs a column `image` (an encoded image, base64 in JSON) or `pixels` (nested lists of 0 to 255)"
        )
    if len({len(column) for column in columns.values()}) > 1:
        raise _bad_request("`image` and `pixels` have different numbers of rows")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _given_in(row: dict[str, Any]) -> Any:
    """The bytes of an encoded image, or decoded pixels as they were sent; raises ValueError for neither and for both."""
    given = {name: row.get(name) for name in ("image", "pixels") if not _is_missing(row.get(name))}
    if len(given) != 1:
        raise ValueError(f"needs either `image` or `pixels`, got {' and '.join(given) or 'neither'}")
    return _bytes_of(given["image"]) if "image" in given else given["pixels"]


def _column(values: Any) -> list[Any]:
    return [values] if isinstance(values, (str, bytes)) else list(values)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _bytes_of(value: Any) -> bytes:
    """An image's bytes, of themselves, of base64 as text, or of base64 in bytes.

    MLflow decodes base64 in data frames alone; under `inputs` and `instances` it hands on the text, as bytes.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        if (text := BASE64.fullmatch(data)) is None:
            return data
        value = text[1].decode("ascii")
    elif isinstance(value, str):
        text_of = BASE64.fullmatch(value.encode(errors="replace"))
        if text_of is None:
            raise ValueError("`image` is a text that is no base64")
        value = text_of[1].decode("ascii")
    else:
        raise ValueError(f"`image` must be the bytes of an image, base64 in JSON; got {type(value).__name__}")
    plain = re.sub(r"\s", "", value).translate(str.maketrans("-_", "+/")).rstrip("=")
    return b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def _checked_pixels(value: Any, size: int) -> NDArray[np.uint8]:
    try:
        pixels = np.asarray(value.tolist() if isinstance(value, np.ndarray) and value.dtype == object else value)
    except ValueError:
        raise ValueError("`pixels` has rows of different lengths") from None
    if pixels.shape != (size, size, 3):
        raise ValueError(f"`pixels` has shape {list(pixels.shape)}, expected [{size}, {size}, 3]")
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError("`pixels` must be whole numbers from 0 to 255")
    return pixels.astype(np.uint8)


def _bad_request(message: str) -> Exception:
    from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

    class BadRequest(MlflowException):
        """A refusal that says what it says: the server would put all that was sent, images too, before it."""

        @property
        def message(self) -> str:
            return message

        @message.setter
        def message(self, _: str) -> None:
            pass

    return BadRequest(message, error_code=INVALID_PARAMETER_VALUE)
