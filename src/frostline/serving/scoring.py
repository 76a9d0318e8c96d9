"""Scores of registered models from a process of their own: `python -m frostline.serving.scoring REQUEST ANSWER`.

A model that only works in the process that made it would pass every other check.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import load_split
from frostline.errors import Refused, first_line
from frostline.files import load_json, save_json
from frostline.images.decoding import UnreadableImage, decode_image
from frostline.serving.model import GOLDEN, Card, FrostlineModel

WARM_UP, TIMED = 3, 40  # answers before, and during, the measurement of latency


@dataclass(frozen=True)
class Score:
    """What one model did in its own process.

    probabilities: float32 (num_images, num_classes), columns in the order asked for, 0 for a class that the model does not
    know; classes: those that it knows; latency: p50 and p95 in ms of one encoded image, from bytes to answer;
    golden_difference: the largest change of a stored probability, None where the version has none stored.
    """

    probabilities: NDArray[np.float32]
    classes: tuple[str, ...]
    latency_p50_ms: float
    latency_p95_ms: float
    golden_difference: float | None


def score_in_fresh_process(
    folders: Sequence[Path], split: Path, raw: Path, classes: Sequence[str]
) -> list[Score | str]:
    """The scores of the models in `folders` (as in a registered version) on the images of `split`, all in one process.

    A later model that cannot be scored has the reason in its place. Raises Refused with that process's last words where
    the first one cannot.
    """
    with tempfile.TemporaryDirectory() as temporary:
        request, answer = Path(temporary) / "request.json", Path(temporary) / "answer"
        answer.mkdir()
        places = [str(folder.resolve()) for folder in folders]
        save_json(
            request,
            {"folders": places, "split": str(split.resolve()), "raw": str(raw.resolve()), "classes": list(classes)},
        )
        command = [sys.executable, "-m", "frostline.serving.scoring", str(request), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Refused(f"A model could not be scored in a fresh process: {said[-1].removeprefix('frostline: ')}")
        return [_read_answer(answer, index) for index in range(len(folders))]


def _read_answer(answer: Path, index: int) -> Score | str:
    facts = load_json(answer / f"{index}.json")
    if "error" in facts:
        return str(facts["error"])
    return Score(np.load(answer / f"{index}.npy"), **{**facts, "classes": tuple(facts["classes"])})


def score(folder: Path, split: Path, raw: Path, classes: Sequence[str]) -> Score:
    """One model's score, in this process; raises Refused where it cannot be loaded."""
    model = FrostlineModel(folder)
    images = _images_for(model.card, split, raw)
    known = model.probabilities(images)
    probabilities = np.zeros((len(images), len(classes)), np.float32)
    for column, name in enumerate(classes):
        if name in model.card.classes:
            probabilities[:, column] = known[:, model.card.classes.index(name)]
    p50, p95 = np.percentile(_measure_latency(model, images), [50, 95])
    return Score(probabilities, model.card.classes, float(p50), float(p95), _golden_difference(model, folder))


def _images_for(card: Card, split: Path, raw: Path) -> NDArray[np.uint8]:
    facts = load_json(split.parent / "complete.json")
    loaded = load_split(split)
    if loaded.images.shape[1] == card.image_size and facts.get("resize", card.resize) == card.resize:
        return loaded.images
    # A champion of another size sees the same images as it was trained to see them.
    decoded = [
        decode_image(
            (raw / name).read_bytes(),
            card.image_size,
            card.resize,
            min_side=card.min_side,
            max_megapixels=card.max_megapixels,
            bits=card.bits,
        )
        for name in loaded.ids
    ]
    return np.stack(decoded)


def _measure_latency(model: FrostlineModel, images: NDArray[np.uint8]) -> list[float]:
    import cv2

    encoded = [
        cv2.imencode(".png", images[index % len(images)][..., ::-1])[1].tobytes() for index in range(WARM_UP + TIMED)
    ]
    times = []
    for data in encoded:
        started = time.perf_counter()
        model.probabilities(model.decode(data)[None])
        times.append(1000 * (time.perf_counter() - started))
    return times[WARM_UP:]


def _golden_difference(model: FrostlineModel, folder: Path) -> float | None:
    if not (folder / GOLDEN).is_file():
        return None
    with np.load(folder / GOLDEN, allow_pickle=False) as golden:
        return float(np.abs(model.probabilities(golden["images"]) - golden["probabilities"]).max())


def main(request_file: Path, answer: Path) -> None:
    """Predictions a request of `score_in_fresh_process`."""
    request: dict[str, Any] = load_json(request_file)
    for index, folder in enumerate(map(Path, request["folders"])):
        facts: dict[str, Any]
        try:
            found = score(folder, Path(request["split"]), Path(request["raw"]), request["classes"])
        except (Refused, UnreadableImage, OSError, ValueError) as error:
            if index == 0:
                raise Refused(first_line(error)) from error
            facts = {"error": first_line(error)}
        else:
            np.save(answer / f"{index}.npy", found.probabilities)
            names = ("classes", "latency_p50_ms", "latency_p95_ms", "golden_difference")
            facts = {name: getattr(found, name) for name in names}
        save_json(answer / f"{index}.json", facts)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Refused as refusal:
        sys.exit(f"frostline: {refusal}")
