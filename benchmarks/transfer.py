"""How well a base transfers: a linear probe on its pooled features, against random and ImageNet weights.

    python benchmarks/transfer.py [--shared ../shared] [--base FILE] [--seeds 5] [--json FILE]
    python benchmarks/transfer.py --base mine/base.weights.h5 --image-size 64 --tasks horses_or_humans --per-class 30

Three small tasks: the generated target set with 20 images per class, horses_or_humans and cats_vs_dogs with 100.
A seed draws the training images and, for the lower line, the random weights. Prints a Markdown table.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from frostline.bases.base import Base, build_base
from frostline.bases.cuts import build_prefix
from frostline.bases.families import BUNDLED_BASE
from frostline.images.decoding import decode_image
from frostline.images.generated.sets import TARGET_CLASSES, draw_target
from frostline.seeding import derive_seed

ALPHA = 0.35
TEST_PER_CLASS = 75  # of the generated target set
PENALTIES = np.logspace(-5, 1, 7)  # inverse strength of L2, chosen by 5-fold cross-validation on the training images


@dataclass(frozen=True)
class Task:
    """Images to draw training sets from, and images to test on."""

    name: str
    per_class: int
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def make_target(per_class: int, seeds: int, size: int) -> Task:
    """The generated target set, enough of it for disjoint training sets."""
    classes, numbers = range(len(TARGET_CLASSES)), range(per_class * seeds)
    draw = lambda part, number, label: draw_target(label, derive_seed(1, "transfer", part, number), size)  # noqa: E731
    return Task(
        "generated target",
        per_class,
        np.stack([draw("train", number, label) for number in numbers for label in classes]),
        np.tile(np.arange(len(classes)), len(numbers)),
        np.stack([draw("test", number, label) for number in range(TEST_PER_CLASS) for label in classes]),
        np.tile(np.arange(len(classes)), TEST_PER_CLASS),
    )


def load_task(folder: Path, per_class: int, size: int) -> Task:
    """A folder with train/<class> and validation/<class>; tested on validation."""
    splits: list[NDArray[Any]] = []
    for split in ("train", "validation"):
        classes = sorted(path for path in (folder / split).iterdir() if path.is_dir())
        files = [(file, label) for label, path in enumerate(classes) for file in sorted(path.iterdir())]
        splits.append(np.stack([decode_image(file.read_bytes(), size) for file, _ in files]))
        splits.append(np.array([label for _, label in files]))
    images, labels, test_images, test_labels = splits
    return Task(folder.name, per_class, images, labels, test_images, test_labels)


def sample(task: Task, seed: int) -> NDArray[np.intp]:
    """Rows of one balanced training set."""
    rng = np.random.default_rng(derive_seed(seed, "sample", task.name))
    rows = [rng.permutation(np.flatnonzero(task.labels == label))[: task.per_class] for label in np.unique(task.labels)]
    return np.concatenate(rows)


def calibrate(base: Base, images: NDArray[np.uint8]) -> None:
    """Sets the BatchNorm statistics of a random base from the images.

    Untouched, they leave features so small that a probe sees constants, and the comparison would flatter us.
    """
    norms = [layer for layer in base.model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    base.model.trainable = True
    for step in range(8):
        for layer in norms:
            layer.momentum = step / (step + 1)  # a plain mean over the batches
        batch = images[step::8][:64].astype(np.float32) / 127.5 - 1
        base.model(batch, training=True)
    base.model.trainable = False


def extract(prefix: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Pooled features: (num_images, channels)."""
    predicted = prefix.predict(images, batch_size=128, verbose=0)
    return np.asarray(predicted[0] if isinstance(predicted, list) else predicted, np.float64)


def probe(
    train: NDArray[np.float64], labels: NDArray[np.int64], test: NDArray[np.float64], answers: NDArray[np.int64]
) -> float:
    """Test accuracy of a logistic regression on standardised features."""
    mean, deviation = train.mean(0), train.std(0)
    # Relative to the largest, not absolute: a small feature is no constant.
    scale = np.where(deviation > 1e-6 * deviation.max(), deviation, np.inf)
    train, test = (train - mean) / scale, (test - mean) / scale
    # With an L2 penalty the weights lie in the span of the training images: the same fit in far fewer dimensions.
    axes = np.linalg.svd(train, full_matrices=False)[2]
    model = GridSearchCV(LogisticRegression(max_iter=300), {"C": PENALTIES}, cv=5)
    model.fit(train @ axes.T, labels)
    return float(model.score(test @ axes.T, answers))


def measure(weights: Path | None, tasks: list[Task], seeds: int) -> dict[str, list[float]]:
    """Task name -> one accuracy per seed; weights None draws new ones for every seed."""
    results = {}
    fixed = _build(weights, tasks[0], 0, None) if weights else None
    for task in tasks:
        scores = []
        for seed in range(seeds):
            rows = sample(task, seed)
            prefix = fixed or _build(None, task, seed, task.images[rows])
            if seed == 0 or not fixed:
                test = extract(prefix, task.test_images)
            scores.append(probe(extract(prefix, task.images[rows]), task.labels[rows], test, task.test_labels))
        results[task.name] = scores
        print(f"{weights or 'random'}, {task.name}: {np.mean(scores):.3f}", file=sys.stderr, flush=True)
    return results


def _build(weights: Path | None, task: Task, seed: int, sample: NDArray[np.uint8] | None) -> keras.Model:
    keras.utils.clear_session()
    base = build_base("MobileNetV2", task.images.shape[1], options={"alpha": ALPHA}, weights=weights, seed=seed)
    if sample is not None:
        calibrate(base, sample)
    prefix = build_prefix(base, [])
    # Of every cut the mean and the maximum, the output's last: its mean alone.
    channels = base.cuts[0].shape[-1]
    return keras.Model(prefix.inputs, prefix.outputs[-1][:, -2 * channels : -channels])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--base", type=Path, default=BUNDLED_BASE / "base.weights.h5", help="the weights to judge")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--tasks", nargs="+", default=["target", "horses_or_humans", "cats_vs_dogs"])
    parser.add_argument("--per-class", type=int, default=100, help="training images per class of the photo sets")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    started = time.time()
    tasks = [make_target(20, given.seeds, given.image_size)] if "target" in given.tasks else []
    folders = [given.shared / "data" / name for name in given.tasks if name != "target"]
    tasks += [load_task(folder, given.per_class, given.image_size) for folder in folders if folder.is_dir()]
    name = "bundled" if given.base.parent == BUNDLED_BASE else str(given.base)
    bases: dict[str, Path | None] = {name: given.base, "random, calibrated": None}
    imagenet = given.shared / "weights/mobilenet_v2_035/mobilenet_v2_035_notop.weights.h5"
    if imagenet.is_file():
        bases["ImageNet"] = imagenet
    results = {name: measure(weights, tasks, given.seeds) for name, weights in bases.items()}
    print("| weights | " + " | ".join(f"{task.name}, {task.per_class} per class" for task in tasks) + " |")
    print("|---" * (len(tasks) + 1) + "|")
    for name, scores in results.items():
        cells = [f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" for values in scores.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\n{given.seeds} seeds, mean ± standard deviation; {time.time() - started:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
