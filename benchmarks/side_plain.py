"""The systems that Frostline is compared with: every one trains each trial from pixels."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import optuna
import tensorflow as tf
from keras import layers
from workloads import Sources, Trial, clocks

from frostline.bases.base import Base
from frostline.bases.cuts import build_suffix

WARM_UP = 3  # steps that are not counted: the first traces, the next fill caches


def read_images(sources: Sources, split: str) -> tf.data.Dataset:
    """(float pixels, label), decoded anew in every epoch, as `image_dataset_from_directory` does."""
    files = sources.train if split == "train" else sources.val
    paths, labels = [path for path, _ in files], [label for _, label in files]
    data = tf.data.Dataset.from_tensor_slices((paths, labels))
    if split == "train":
        data = data.shuffle(len(paths))
    size = sources.work.image_size

    def decode(path: Any, label: Any) -> Any:
        return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), (size, size)), label

    return data.map(decode, num_parallel_calls=tf.data.AUTOTUNE)


def make_augmentation() -> keras.Sequential:
    """The kinds and ranges of Frostline's transforms, as Keras layers on pixels 0 to 255."""
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomRotation(20 / 360),
            layers.RandomZoom(0.2),
            layers.RandomTranslation(0.1, 0.1),
            layers.RandomContrast(0.2),
        ]
    )


def build_plain(sources: Sources, trial: Trial) -> keras.Model:
    """One model from pixels to logits, as the transfer-learning tutorials build it; new layers in every trial."""
    size = sources.work.image_size
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(make_augmentation()(inputs))
    # A layer that is built frozen never trains: its weights are not among the trainable ones, whatever is set later.
    copy = keras.models.clone_model(
        sources.base.model,
        clone_function=lambda layer: type(layer).from_config(layer.get_config() | {"trainable": True}),
    )
    copy.set_weights(sources.base.model.get_weights())
    for layer in copy.operations[: sources.base.cuts[trial.depth].index + 1]:
        layer.trainable = False
    assert bool(copy.trainable_variables) == bool(trial.depth), "blocks above the cut must train, and nothing else"
    x = layers.GlobalAveragePooling2D()(copy(x, training=False))
    return keras.Model(inputs, layers.Dense(2)(layers.Dropout(trial.dropout)(x)))


def build_strong(base: Base, trial: Trial) -> keras.Model:
    """Suffix and head alone: the frozen prefix runs in the input pipeline."""
    inputs = keras.Input(base.cuts[trial.depth].shape)
    suffix = build_suffix(base, trial.depth)
    # The suffix gives the maps of all cuts; the head of the tutorials sees the last.
    x = layers.GlobalAveragePooling2D()(suffix(inputs, training=False)[-1] if suffix else inputs)
    return keras.Model(inputs, layers.Dense(2, dtype="float32")(layers.Dropout(trial.dropout)(x)))


def with_dtype(base: Base, policy: str) -> Base:
    """The base with its layers computing as Keras's dtype policy says."""

    def clone(layer: Any) -> Any:
        return type(layer).from_config(layer.get_config() | {"dtype": policy})

    model = keras.models.clone_model(base.model, clone_function=clone)
    model.set_weights(base.model.get_weights())
    return replace(base, model=model)


def compile_model(model: keras.Model, trial: Trial, **options: Any) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(trial.learning_rate), loss, metrics=["accuracy"], **options)
    return model


class StrongData:
    """Decoded images in memory; views and prefix in parallel in the pipeline; validation features made once."""

    def __init__(self, sources: Sources, base: Base) -> None:
        self.base, size = base, sources.work.batch_size
        self.train = read_images(sources, "train").map(_to_uint8).cache().shuffle(len(sources.train)).batch(size)
        self.val = read_images(sources, "val").map(_to_uint8).batch(size).cache()
        self.augment = make_augmentation()
        self._val_features: dict[int, tf.data.Dataset] = {}

    def at(self, depth: int, num_batches: int) -> tuple[tf.data.Dataset, tf.data.Dataset]:
        base = self.base
        prefix = keras.Model(base.model.inputs, base.model.operations[base.cuts[depth].index].output)

        def features(x: Any) -> Any:
            return prefix(tf.cast(x, "float32") / 127.5 - 1.0, training=False)

        views = self.train.map(lambda x, y: (self.augment(tf.cast(x, "float32"), training=True), y), tf.data.AUTOTUNE)
        train = views.map(lambda x, y: (features(x), y), tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
        if depth not in self._val_features:
            self._val_features[depth] = self.val.take(num_batches).map(lambda x, y: (features(x), y)).cache()
        return train.take(num_batches), self._val_features[depth]


def _to_uint8(x: Any, y: Any) -> Any:
    return tf.cast(tf.round(x), tf.uint8), y


class Stopwatch(keras.callbacks.Callback):
    """(wall, CPU) seconds of each batch of `fit`, waiting for its data included."""

    def __init__(self) -> None:
        super().__init__()
        self.train: list[np.ndarray] = []
        self.val: list[np.ndarray] = []

    def __deepcopy__(self, memo: Any) -> "Stopwatch":
        return self  # KerasTuner copies callbacks

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._last = clocks()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._lap(self.train)

    def on_test_begin(self, logs: Any = None) -> None:
        self._last = clocks()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._lap(self.val)

    def _lap(self, laps: list[np.ndarray]) -> None:
        now = clocks()
        laps.append(now - self._last)
        self._last = now


def run_system(
    system: str, sources: Sources, trials: Sequence[Trial], steps: int | None, seed: int = 0
) -> dict[str, Any]:
    """The line of a system: whole runs where `steps` is None, else a sample and what follows from it.

    The sample is one trial of each depth for one epoch of `WARM_UP` + steps batches, then as many of validation. Seconds
    of a trial = the sample's, without its counted batches, + epochs x (batches of an epoch x mean of the counted).
    """
    keras.utils.set_random_seed(seed)
    work = sources.work
    if system == "tuner":
        try:
            import keras_tuner  # noqa: F401
            import tensorboard  # noqa: F401 - KerasTuner wants it in the middle of a trial
        except ImportError as error:
            return {"system": system, "left_out": f"KerasTuner cannot be imported: {error}"}
    chosen = trials if steps is None else [next(t for t in trials if t.depth == depth) for depth in work.depths]
    watches = [Stopwatch() for _ in chosen]
    seconds: list[np.ndarray] = []
    policy = {"strong": "float32", "strong-bfloat16": "mixed_bfloat16"}.get(system)
    strong = StrongData(sources, with_dtype(sources.base, policy)) if policy else None

    def train(index: int, fit: Callable[..., Any] | None = None) -> float:
        started = clocks()
        trial = chosen[index]
        if strong:
            data, val = strong.at(trial.depth, -1 if steps is None else WARM_UP + steps)  # -1: all
            model = compile_model(build_strong(strong.base, trial), trial, jit_compile=False)
        else:
            data = read_images(sources, "train").batch(work.batch_size).prefetch(tf.data.AUTOTUNE)
            val = read_images(sources, "val").batch(work.batch_size).prefetch(tf.data.AUTOTUNE)
            model = compile_model(build_plain(sources, trial), trial)
            if steps is not None:
                data, val = data.take(WARM_UP + steps), val.take(WARM_UP + steps)
        epochs = 1 if steps is not None else work.epochs
        history = model.fit(data, validation_data=val, epochs=epochs, callbacks=[watches[index]], verbose=0)
        if strong and steps is not None:  # once more: only the first epoch makes the validation features
            watches[index].val = []
            model.evaluate(val, callbacks=[watches[index]], verbose=0)
        seconds.append(clocks() - started)
        return float(max(history.history["val_accuracy"]))

    if system == "tuner":
        scores: list[float] = []
        _search_with_tuner(sources, chosen, steps, watches, seconds)
    else:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize")
        study.optimize(lambda trial: train(trial.number), n_trials=len(chosen))
        scores = [trial.value for trial in study.trials if trial.value is not None]
    line: dict[str, Any] = {"system": system}
    if steps is None:
        return line | {
            "seconds": np.sum(seconds, axis=0)[0],
            "cpu_seconds": np.sum(seconds, axis=0)[1],
            "mean_val_accuracy": float(np.mean(scores)),
            "best_val_accuracy": max(scores),
        }
    return line | _extrapolate(sources, trials, chosen, watches, seconds, steps)


def _extrapolate(
    sources: Sources,
    trials: Sequence[Trial],
    chosen: Sequence[Trial],
    watches: Sequence[Stopwatch],
    seconds: Sequence[np.ndarray],
    steps: int,
) -> dict[str, Any]:
    work = sources.work
    batches = {"train": -(-len(sources.train) // work.batch_size), "validate": -(-len(sources.val) // work.batch_size)}
    phases = {"trace": np.zeros(2), "train": np.zeros(2), "validate": np.zeros(2)}
    sample = {}
    for trial, watch, taken in zip(chosen, watches, seconds, strict=True):
        step = {
            "train": np.median(watch.train[WARM_UP:], axis=0),
            "validate": np.median(watch.val[min(WARM_UP, len(watch.val) - 1) :], axis=0),
        }
        rest = taken - np.sum(watch.train[WARM_UP:], axis=0) - np.sum(watch.val, axis=0)
        alike = sum(t.depth == trial.depth for t in trials)
        phases["trace"] += alike * rest
        for name, per_step in step.items():
            phases[name] += alike * work.epochs * batches[name] * per_step
        shown = {name: per_step.round(4).tolist() for name, per_step in step.items()}
        sample[f"depth {trial.depth}"] = {**shown, "build_and_trace": rest.round(2).tolist(), "trials": alike}
    total = np.sum(list(phases.values()), axis=0)
    return {
        "seconds": total[0],
        "cpu_seconds": total[1],
        "share": {name: value[0] / total[0] for name, value in phases.items()},
        "sample": {"steps": steps, "after": WARM_UP, "batches_per_epoch": batches, "epochs": work.epochs}
        | {"(wall, CPU) seconds per step": sample},
    }


def _search_with_tuner(
    sources: Sources,
    chosen: Sequence[Trial],
    steps: int | None,
    watches: Sequence[Stopwatch],
    seconds: list[np.ndarray],
) -> None:
    """KerasTuner's grid over the same list; what it does around a trial counts as the trial's."""
    import keras_tuner

    class Model(keras_tuner.HyperModel):  # type: ignore[misc]
        def build(self, hp: Any) -> keras.Model:
            self.index = hp.Choice("trial", list(range(len(chosen))))
            trial = chosen[self.index]
            return compile_model(build_plain(sources, trial), trial)

        def fit(self, hp: Any, model: keras.Model, *args: Any, callbacks: Any, **kwargs: Any) -> Any:
            return model.fit(*args, callbacks=[*callbacks, watches[hp.get("trial")]], **kwargs)

    data = read_images(sources, "train").batch(sources.work.batch_size).prefetch(tf.data.AUTOTUNE)
    val = read_images(sources, "val").batch(sources.work.batch_size).prefetch(tf.data.AUTOTUNE)
    if steps is not None:
        data, val = data.take(WARM_UP + steps), val.take(WARM_UP + steps)
    epochs = 1 if steps is not None else sources.work.epochs
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.GridSearch(
            Model(), objective="val_accuracy", max_trials=len(chosen), directory=folder, overwrite=True
        )
        started = clocks()
        tuner.search(data, validation_data=val, epochs=epochs, verbose=0)
        taken = clocks() - started
    inside = [sum(watch.train) + sum(watch.val) for watch in watches]
    seconds += [one + (taken - sum(inside)) / len(chosen) for one in inside]
