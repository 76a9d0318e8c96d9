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
from frostline.errors import Refused
from frostline.files import load_json, save_json
from frostline.serving.model import GOLDEN, Card, FrostlineModel, load_card

WARM_UP, TIMED = 3, 40  # answers before, and during, the measurement of latency


@dataclass(frozen=True)
class Score:
    """What one model did in its own process.

    probabilities: float32 (num_images, num_classes), columns in the order asked for; latency: p50 and p95 in ms of one
    encoded picture, from bytes to answer; golden_difference: the largest change of a stored probability, None where the
    version has none stored.
    """

    probabilities: NDArray[np.float32]
    latency_p50_ms: float
    latency_p95_ms: float
    golden_difference: float | None


def score_in_fresh_process(folders: Sequence[Path], split: Path, raw: Path, classes: Sequence[str]) -> list[Score]:
    """The scores of the models in `folders` (as in a registered version) on the pictures of `split`, all in one process.

    Raises Refused with that process's last words where a model cannot be loaded or knows other classes.
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
        return [
            Score(np.load(answer / f"{index}.npy"), **load_json(answer / f"{index}.json"))
            for index in range(len(folders))
        ]


def score(folder: Path, split: Path, raw: Path, classes: Sequence[str]) -> Score:
    """One model's score, in this process; raises Refused where it knows other classes."""
    model = FrostlineModel(folder)
    if sorted(model.card.classes) != sorted(classes):
        raise Refused(
            f"{folder} knows the classes {', '.join(model.card.classes)}; the test split has {', '.join(classes)}. "
            "They cannot be compared on it."
        )
    columns = [model.card.classes.index(name) for name in classes]
    images = _images_for(model.card, split, raw)
    probabilities = model.probabilities(images)[:, columns]
    latencies = _measure_latency(model, images)
    p50, p95 = np.percentile(latencies, [50, 95])
    return Score(probabilities, float(p50), float(p95), _golden_difference(model, folder))


def _images_for(card: Card, split: Path, raw: Path) -> NDArray[np.uint8]:
    from frostline.images.decoding import decode_image

    facts = load_json(split.parent / "complete.json")
    loaded = load_split(split)
    if loaded.images.shape[1] == card.image_size and facts.get("resize", card.resize) == card.resize:
        return loaded.images
    # A champion of another size sees the same pictures as it was trained to see them.
    decoded = [
        decode_image(
            (raw / name).read_bytes(),
            card.image_size,
            card.resize,
            min_side=card.min_side,
            max_megapixels=card.max_megapixels,
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
    for index, folder in enumerate(request["folders"]):
        load_card(Path(folder))
        found = score(Path(folder), Path(request["split"]), Path(request["raw"]), request["classes"])
        np.save(answer / f"{index}.npy", found.probabilities)
        save_json(
            answer / f"{index}.json",
            {
                "latency_p50_ms": found.latency_p50_ms,
                "latency_p95_ms": found.latency_p95_ms,
                "golden_difference": found.golden_difference,
            },
        )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Refused as refusal:
        sys.exit(f"frostline: {refusal}")
