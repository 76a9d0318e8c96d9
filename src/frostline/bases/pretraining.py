"""A base trained from scratch on a large source set: weights and a card that `base.weights: PATH` takes."""

import concurrent.futures
import math
import multiprocessing
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from frostline import __version__
from frostline.arrays import load_array, load_split, save_array
from frostline.bases import networks
from frostline.bases.cuts import scale_pixels
from frostline.bases.families import FAMILIES, check_base
from frostline.devices import describe_device, keras
from frostline.files import COMPLETE, load_json, replacing, save_json, sha256_of
from frostline.images.generated.sets import draw_source, source_digest, target_digest
from frostline.images.preparation import prepare_images
from frostline.images.sources import fetch_source
from frostline.params import Fetch, Prepare
from frostline.process import die_with_parent
from frostline.seeding import derive_seed

Images = NDArray[np.uint8]  # (num_images, size, size, 3)

# MobileNetV2's own momentum of 0.999 needs tens of thousands of steps before its statistics mean anything.
MOMENTUM = 0.99
WEIGHTS = "base.weights.h5"


@dataclass(frozen=True)
class Recipe:
    """How a base is trained; the whole of it goes into the card."""

    architecture: str = "MobileNetV2"
    options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 96
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.1
    warmup_share: float = 0.05
    # 0 = images as they are; 1 = crops down to half the area, flips, turns, changes of colour.
    augmentation: float = 0.5
    # The first part of the epochs runs at this smaller size: most is learnt there, at a fraction of the cost.
    small_size: int | None = None
    small_share: float = 0.6
    mixed_precision: bool = False
    seed: int = 7


@dataclass(frozen=True)
class SourceSet:
    """Images to pre-train on; `shards` stay on disk and are read by index.

    Every shard has the same number of rows, except the last.
    """

    shards: tuple[Images, ...]
    labels: NDArray[np.int32]
    val_images: Images
    val_labels: NDArray[np.int32]
    classes: tuple[str, ...]
    description: str

    def take(self, rows: NDArray[np.intp]) -> Images:
        """The images of these rows, copied: (len(rows), size, size, 3)."""
        size = len(self.shards[0])
        return np.stack([self.shards[row // size][row % size] for row in rows])


def make_generated_source(
    folder: Path, num_classes: int, images_per_class: int, size: int, seed: int, workers: int = 1
) -> SourceSet:
    """The generated source family, drawn into `folder`: shards that are whole or absent, so a killed run goes on.

    A shard holds the same few images of every class. One more small shard is kept for validation.
    """
    per_shard = max(1, 8192 // num_classes)
    starts = list(range(0, images_per_class, per_shard))
    shards = [
        (folder / f"shard-{start:05d}.npy", range(start, min(start + per_shard, images_per_class))) for start in starts
    ]
    num_val = max(1, min(8, images_per_class // 10))
    # Validation images have numbers that no training image can have.
    shards.append((folder / "val.npy", range(10_000_000, 10_000_000 + num_val)))
    missing = [(path, num_classes, numbers, size, seed) for path, numbers in shards if not path.is_file()]
    if workers > 1 and len(missing) > 1:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, spawn, initializer=die_with_parent) as pool:
            list(pool.map(_draw_shard, missing))
    else:
        for job in missing:
            _draw_shard(job)
    labels = [np.tile(np.arange(num_classes, dtype=np.int32), len(numbers)) for _, numbers in shards]
    return SourceSet(
        tuple(load_array(path) for path, _ in shards[:-1]),
        np.concatenate(labels[:-1]),
        load_array(shards[-1][0]),
        labels[-1],
        tuple(f"formula {label}" for label in range(num_classes)),
        f"generated source family: {num_classes} classes x {images_per_class} images, seed {seed}",
    )


def _draw_shard(job: tuple[Path, int, range, int, int]) -> None:
    path, num_classes, numbers, size, seed = job
    cv2.setNumThreads(1)

    def draw(number: int) -> Images:
        return np.stack([draw_source(label, derive_seed(seed, number), size) for label in range(num_classes)])

    save_array(path, (draw(number) for number in numbers), (len(numbers) * num_classes, size, size, 3), np.uint8)


def augment_batch(images: Images, rng: np.random.Generator, strength: float, size: int) -> Images:
    """New images of side `size`: cropped, mirrored, turned and recoloured; `images` unchanged."""
    count, side = images.shape[:2]
    result = np.empty((count, size, size, 3), np.uint8)
    # Share of the area kept, as in Inception-style crops; mirrored at the rim where a turn leaves the image.
    zoom: NDArray[np.float64] = np.asarray(np.sqrt(rng.uniform(1 - 0.6 * strength, 1.0, count)) * (side / size))
    aspect: NDArray[np.float64] = np.exp(rng.uniform(-0.25, 0.25, count) * strength)
    turn = np.asarray(rng.normal(0, 0.2 * strength, count))
    flip = np.where(rng.random(count) < 0.5, -1.0, 1.0) if strength > 0 else np.ones(count)
    room = np.maximum(side - zoom * size, 0) / 2 + 0.06 * side * strength
    centre: NDArray[np.float64] = side / 2 - 0.5 + rng.uniform(-1, 1, (count, 2)) * room[:, None]
    gain: NDArray[np.float64] = np.exp(
        rng.normal(0, 0.15 * strength, (count, 3)) + rng.normal(0, 0.15 * strength, (count, 1))
    )
    offset: NDArray[np.float64] = rng.normal(0, 20 * strength, (count, 1)) + np.zeros((1, 3))
    grey: NDArray[np.bool_] = np.asarray(rng.random(count) < 0.15 * strength)
    for k in range(count):
        cosine, sine = math.cos(turn[k]) * zoom[k], math.sin(turn[k]) * zoom[k]
        across, down = flip[k] * aspect[k], 1 / aspect[k]
        linear = np.array([[cosine * across, -sine * down], [sine * across, cosine * down]])
        move = centre[k] - linear @ np.full(2, (size - 1) / 2)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(
            images[k], np.hstack([linear, move[:, None]]), (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101
        )
        if grey[k]:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if strength > 0:
            colour = np.hstack([np.diag(gain[k]), offset[k][:, None]])
            image = cv2.transform(image, colour)
        result[k] = image
    return result


class EpochBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """One epoch's batches, in an order and with an augmentation that depend on (seed, epoch) alone."""

    def __init__(self, source: SourceSet, recipe: Recipe, epoch: int, size: int) -> None:
        super().__init__(workers=1, use_multiprocessing=False, max_queue_size=8)
        self.source, self.recipe, self.epoch, self.size = source, recipe, epoch, size
        self.order = np.random.default_rng(derive_seed(recipe.seed, "order", epoch)).permutation(len(source.labels))

    def __len__(self) -> int:
        return max(1, len(self.order) // self.recipe.batch_size)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows = np.sort(self.order[index * self.recipe.batch_size : (index + 1) * self.recipe.batch_size])
        rng = np.random.default_rng(derive_seed(self.recipe.seed, "augment", self.epoch, index))
        images = augment_batch(self.source.take(rows), rng, self.recipe.augmentation, self.size)
        targets = np.eye(len(self.source.classes), dtype=np.float32)[self.source.labels[rows]]
        return images.astype(np.float32), targets


def steps_of(source: SourceSet, recipe: Recipe) -> int:
    """Gradient steps of one epoch."""
    return max(1, len(source.labels) // recipe.batch_size)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    epoch: int
    size: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """Where training stands, for whoever shows it."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float


def build_stock(recipe: Recipe, size: int | None) -> keras.Model:
    """The architecture as its family has it, without top and weights; `size` None leaves the sides open."""
    check_base(recipe.architecture, size or recipe.image_size, recipe.options)
    return networks.build_network(recipe.architecture, size, recipe.options)


def build_network(recipe: Recipe, num_classes: int) -> tuple[keras.Model, keras.Model]:
    """(network, base): the network takes raw pixels 0..255 and gives logits; the base is its middle."""
    keras.utils.set_random_seed(derive_seed(recipe.seed, "weights"))
    base = build_stock(recipe, recipe.image_size if recipe.small_size is None else None)
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = min(layer.momentum, MOMENTUM)
    silence_branches(base)
    inputs = keras.Input(base.input_shape[1:])
    x = base(scale_pixels(inputs, FAMILIES[recipe.architecture].scaling))
    x = keras.layers.GlobalAveragePooling2D()(x)
    # Pooled activations are all positive: uncentred, one Adam step moves a class's logit by half a unit whatever the
    # image shows. At unit variance one step moves it by learning rate times their number. Both keep the loss above
    # that of guessing for thousands of steps: after 375 steps on 192 formulas it was 4.6 with a scale of 0.05, else 5.3.
    x = keras.layers.BatchNormalization(center=False, scale=False, momentum=MOMENTUM, dtype="float32")(x)
    x = keras.layers.Rescaling(x.shape[-1] ** -0.5, dtype="float32")(x)
    logits = keras.layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32")(x)
    return keras.Model(inputs, logits), base


def silence_branches(base: keras.Model) -> int:
    """Sets the last scale of every residual branch to zero, so that training begins with a shallow network.

    Goyal et al., "Accurate, large minibatch SGD" (2017), section 5.1. Returns the number of silenced branches. After
    the same time on 24 formulas, MobileNetV2 0.35 was right on 40 % of the training images instead of 16 %.
    """
    silenced = 0
    for layer in base.layers:
        if isinstance(layer, keras.layers.Add):
            sources = [tensor._keras_history.operation for tensor in layer._inbound_nodes[0].input_tensors]
            ends = [
                source
                for source in sources
                if isinstance(source, keras.layers.BatchNormalization) and len(source._outbound_nodes) == 1
            ]
            if ends and ends[-1].scale:
                ends[-1].gamma.assign(keras.ops.zeros_like(ends[-1].gamma))
                silenced += 1
    return silenced


def pretrain(
    source: SourceSet, recipe: Recipe, work: Path, report: Callable[[Progress], None] | None = None
) -> tuple[keras.Model, list[Epoch]]:
    """The trained base (stock constructor, fixed size) and its epochs; begins after the last whole epoch in `work`."""
    if recipe.mixed_precision:
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network, base = build_network(recipe, len(source.classes))
    finally:
        keras.config.set_dtype_policy("float32")
    _compile(network, recipe, len(source.labels) // recipe.batch_size)
    history = _resume(network, work)
    for epoch in range(len(history), recipe.epochs):
        started = time.monotonic()
        size = _size_at(recipe, epoch)
        batches = EpochBatches(source, recipe, epoch, size)
        reporter = _Reporter(report, epoch, recipe.epochs, len(batches))
        # Keras would shuffle the batches once more, by a global state that a killed run has lost.
        fitted = network.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=[reporter])
        val_loss, val_accuracy = _evaluate(network, source, size)
        loss, accuracy = fitted.history["loss"][-1], fitted.history["accuracy"][-1]
        history.append(Epoch(epoch, size, loss, accuracy, val_loss, val_accuracy, time.monotonic() - started))
        _save_checkpoint(network, history, work)
    settle_statistics(network, base, source, recipe)
    stock = build_stock(recipe, recipe.image_size)
    stock.set_weights(base.get_weights())
    return stock, history


def settle_statistics(network: keras.Model, base: keras.Model, source: SourceSet, recipe: Recipe) -> None:
    """Replaces BatchNorm's running averages by the mean over up to 32 batches of images at full size.

    Running averages trail behind the weights (Wu and Johnson, "Rethinking Batch in BatchNorm", 2021, section 3).
    """
    norms = [layer for layer in base.layers if isinstance(layer, keras.layers.BatchNormalization)]
    batches = EpochBatches(source, recipe, recipe.epochs, recipe.image_size)
    for step in range(min(32, len(batches))):
        for layer in norms:
            layer.momentum = step / (step + 1)
        network(batches[step][0], training=True)


def _compile(network: keras.Model, recipe: Recipe, steps: int) -> None:
    total = max(1, recipe.epochs * max(1, steps))
    warmup = round(recipe.warmup_share * total)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else recipe.learning_rate,
        max(1, total - warmup),
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=recipe.weight_decay, beta_2=0.99)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
    network.compile(optimizer, loss, metrics=["accuracy"])
    optimizer.build(network.trainable_variables)


def _size_at(recipe: Recipe, epoch: int) -> int:
    if recipe.small_size is not None and epoch < round(recipe.small_share * recipe.epochs):
        return recipe.small_size
    return recipe.image_size


def _evaluate(network: keras.Model, source: SourceSet, size: int) -> tuple[float, float]:
    images = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in source.val_images])
    targets = np.eye(len(source.classes), dtype=np.float32)[source.val_labels]
    loss, accuracy = network.evaluate(images.astype(np.float32), targets, batch_size=256, verbose=0)
    return float(loss), float(accuracy)


def _save_checkpoint(network: keras.Model, history: Sequence[Epoch], work: Path) -> None:
    # The history comes first and may be one epoch ahead after a kill; the weights' name says how much of it counts.
    save_json(work / "history.json", [asdict(epoch) for epoch in history])
    save_weights(network, work / f"epoch-{len(history):04d}.weights.h5")
    for old in sorted(work.glob("epoch-*.weights.h5"))[:-1]:
        old.unlink()


def _resume(network: keras.Model, work: Path) -> list[Epoch]:
    checkpoints = sorted(work.glob("epoch-*.weights.h5"))
    if not checkpoints:
        return []
    network.load_weights(checkpoints[-1])
    done = int(checkpoints[-1].name.removeprefix("epoch-").removesuffix(".weights.h5"))
    return [Epoch(**record) for record in load_json(work / "history.json")[:done]]


def save_weights(model: keras.Model, path: Path) -> None:
    """Writes the model's weights (and its optimizer's, where it has one), whole or not at all."""
    with replacing(path) as temporary:
        model.save_weights(temporary)


class _Reporter(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, report: Callable[[Progress], None] | None, epoch: int, epochs: int, steps: int) -> None:
        super().__init__()
        self.place, self.steps, self.report = (epoch, epochs), steps, report

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        if self.report is None:
            return
        logs = logs or {}
        self.report(
            Progress(*self.place, batch + 1, self.steps, float(logs.get("loss", 0)), float(logs.get("accuracy", 0)))
        )


def make_folder_source(location: str, work: Path, *, size: int, seed: int, sha256: str | None = None) -> SourceSet:
    """The images of a folder, archive, URL or `tfds:<name>`, prepared like any other data under `work`.

    Raises Refused as the stages `fetch` and `prepare` do.
    """
    prepared = work / "prepared"
    if not (prepared / COMPLETE).is_file():
        raw = work / "raw"
        if not (raw / COMPLETE).is_file():
            shutil.rmtree(raw, ignore_errors=True)
            fetch_source(Fetch(source=location, sha256=sha256), raw, seed=seed, image_size=size)
        # Nothing is tested here, and prepare insists on a test split: a small one joins validation.
        prepare = Prepare(val_share=0.08, test_share=0.02)
        shutil.rmtree(prepared, ignore_errors=True)
        prepare_images(raw, prepared, prepare, size=size, seed=seed, work=work / "shards")
    train, val, test = (load_split(prepared / split) for split in ("train", "val", "test"))
    classes = tuple(load_json(prepared / "classes.json"))
    return SourceSet(
        (train.images,),
        np.asarray(train.labels),
        np.concatenate([val.images, test.images]),
        np.concatenate([val.labels, test.labels]),
        classes,
        f"{location}: {len(train.labels)} images of {len(classes)} classes",
    )


def make_card(recipe: Recipe, source: SourceSet, history: Sequence[Epoch], **facts: Any) -> dict[str, Any]:
    """What must be known about a base: architecture, size, scaling, source, accuracy, recipe, versions."""
    shown = 40  # a thousand class names help nobody
    return {
        "name": recipe.architecture,
        "weights": "file",
        "options": dict(recipe.options),
        "image_size": recipe.image_size,
        "scaling": FAMILIES[recipe.architecture].scaling,
        "source": source.description,
        "num_classes": len(source.classes),
        "classes": list(source.classes[:shown]) + (["…"] if len(source.classes) > shown else []),
        "num_images": len(source.labels),
        "val_images": len(source.val_labels),
        "val_accuracy": round(history[-1].val_accuracy, 4),
        "epochs_run": len(history),
        "seconds": round(sum(epoch.seconds for epoch in history)),
        "history": [{key: round(value, 4) for key, value in asdict(epoch).items()} for epoch in history],
        "recipe": {**asdict(recipe), "options": dict(recipe.options)},
        "seed": recipe.seed,
        "generator": {"source": source_digest(), "target": target_digest()},
        "versions": {
            "keras": keras.__version__,
            "opencv": cv2.__version__,
            "numpy": np.__version__,
            "frostline": __version__,
        },
        "backend": keras.backend.backend(),
        "device": describe_device(),
        **facts,
    }


def save_base(folder: Path, base: keras.Model, card: Mapping[str, Any]) -> Path:
    """Writes `base.weights.h5` and then `card.json` with its sha256; the path of the weights."""
    path = folder / WEIGHTS
    save_weights(base, path)
    save_json(folder / "card.json", {**card, "file": WEIGHTS, "sha256": sha256_of(path)})
    return path
