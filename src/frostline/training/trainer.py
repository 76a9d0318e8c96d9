"""The compiled epoch of a tail on stored features: one trace per (depth, head shape, optimiser), for every trial that has them."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.devices import Tensor, compile_function, ops, value_and_grad
from frostline.hparams import Hparams
from frostline.seeding import derive_seed
from frostline.training.data import Features, TrainingData
from frostline.training.fusion import make_forward
from frostline.training.optimizers import NUM_SLOTS, apply_gradients
from frostline.training.tail import HeadStart, Tail, pool_outputs

CHUNK_BYTES = 64e6  # features handed to the device at a time
PHASES = ("trace", "train", "validate")
Array = NDArray[Any]


@dataclass(frozen=True)
class State:
    """All that a trial trains and draws from; tensors of the backend, never changed in place.

    params: the suffix's trainable variables and then the head's; slots: the optimizer's, for each of them; draws: the head's
    other variables (standardisation, dropout rate, the mask's seed and counter); step: float, from 0; strength: of the L2
    penalty on the head's last kernel.
    """

    params: list[Tensor]
    slots: list[list[Tensor]]
    draws: list[Tensor]
    step: Tensor
    strength: Tensor


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave. Losses are mean cross-entropies in nats; `val_loss` is without label smoothing."""

    number: int
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    state: State = field(repr=False)


class Trainer:
    """The compiled epoch of one tail shape; a trial is a `State` that goes through it.

    A new dropout rate, learning rate, weight decay, label smoothing or seed is data, not a new trace. Counts as it goes:
    `num_traces`; `seconds` spent to trace, train and validate; `pace`, the seconds per image of its fastest chunk.
    """

    def __init__(self, tail: Tail, optimizer: str, batch_size: int, num_classes: int) -> None:
        self.tail = tail
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.num_traces = 0
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.pace = {"train": math.inf, "validate": math.inf}
        suffix = tail.suffix
        self._suffix = make_forward(suffix) if suffix else None
        self._suffix_start = [ops.convert_to_numpy(v) for v in suffix.trainable_variables] if suffix else []
        self._suffix_fixed = [ops.convert_to_numpy(v) for v in suffix.non_trainable_variables] if suffix else []
        self._draws_start = [ops.convert_to_numpy(v) for v in tail.head.non_trainable_variables]
        # Where each of the head's other variables stands: "mean", "scale", "rate", "seed_generator_state".
        self._places = {v.path.rsplit("/", 1)[-1]: place for place, v in enumerate(tail.head.non_trainable_variables)}
        self._run_chunk = compile_function(self._chunk)
        self._predict_chunk = compile_function(self._logits)

    def start(self, head: HeadStart, seed: int) -> State:
        """The state before the first step: the base's own suffix, the given head, a fresh optimiser."""
        params = [*self._suffix_start, *head.weights]
        slots = [[np.zeros_like(value)] * NUM_SLOTS[self.optimizer] for value in params]
        draws = list(self._draws_start)
        for name, value in (("mean", head.mean), ("scale", head.scale), ("seed_generator_state", [seed, 0])):
            draws[self._places[name]] = np.asarray(value, draws[self._places[name]].dtype)
        return State(params, slots, draws, np.float32(0.0), np.float32(head.strength))

    def epochs(
        self,
        state: State,
        data: TrainingData,
        hparams: Hparams,
        *,
        num_epochs: int,
        schedule: str,
        seed: int,
    ) -> Iterator[Epoch]:
        """Trains and yields after every epoch; the caller stops by not asking for the next one.

        Order and views depend on (seed, epoch) alone.
        """
        num_images = len(data.train)
        steps_per_epoch = math.ceil(num_images / self.batch_size)
        hyper = {
            "head_rate": np.float32(hparams.head_learning_rate),
            "suffix_rate": np.float32(hparams.suffix_learning_rate or 0.0),
            "weight_decay": np.float32(hparams.weight_decay),
            "label_smoothing": np.float32(hparams.label_smoothing),
            "cosine": np.float32(schedule == "cosine"),
            "total_steps": np.float32(num_epochs * steps_per_epoch),
            "strength": state.strength,
        }
        draws = list(state.draws)
        draws[self._places["rate"]] = np.float32(hparams.dropout)
        state = replace(state, draws=draws)
        if not self.num_traces:
            self._trace(state, data, hyper)
        for number in range(num_epochs):
            started = time.monotonic()
            order = data.train[np.random.default_rng(derive_seed(seed, "order", number)).permutation(num_images)]
            state, loss, accuracy = self._train_epoch(state, data.views[number % len(data.views)], data, order, hyper)
            trained = time.monotonic()
            logits = self.predict(state, data.views[0], data.held_out)
            val_loss, val_accuracy = score_logits(logits, data.labels[data.held_out])
            self.seconds["train"] += trained - started
            self.seconds["validate"] += time.monotonic() - trained
            yield Epoch(number + 1, loss, accuracy, val_loss, val_accuracy, state)

    def _trace(self, state: State, data: TrainingData, hyper: dict[str, Any]) -> None:
        """Compiles the steps by running none of them, so that its seconds are told from training's."""
        started = time.monotonic()
        view = data.views[0]
        rows = self._rows_per_chunk(view, len(data.train))
        features, labels = np.zeros((rows, *view.shape[1:]), view.dtype), np.zeros(rows, np.int32)
        carry = (state.params, state.slots, state.draws, state.step)
        self._run_chunk(carry, features, labels, np.zeros(rows, np.float32), hyper, np.int32(0))
        self.seconds["trace"] += time.monotonic() - started

    def predict(self, state: State, features: Features, rows: NDArray[np.intp] | None = None) -> NDArray[np.float32]:
        """Logits float32 (num_rows, num_classes), dropout off, of all features or of the given rows."""
        chosen = np.arange(len(features)) if rows is None else rows
        length = self._rows_per_chunk(features, len(chosen))
        parts = []
        for start in range(0, len(chosen), length):
            chunk = np.asarray(features[chosen[start : start + length]])
            started = time.monotonic()
            logits = self._predict_chunk(state.params, state.draws, _pad(chunk, length))
            parts.append(ops.convert_to_numpy(logits)[: len(chunk)])
            self._note("validate", started, len(chunk))
        return np.concatenate(parts)

    def store(self, params: Sequence[Tensor]) -> None:
        """Puts a state's weights into the tail's own variables, for export."""
        suffix = self.tail.suffix.trainable_variables if self.tail.suffix else []
        for variable, value in zip([*suffix, *self.tail.head.trainable_variables], params, strict=True):
            variable.assign(value)

    def restore(self) -> None:
        """Puts the base's own weights back into the suffix."""
        for variable, value in zip(
            self.tail.suffix.trainable_variables if self.tail.suffix else [], self._suffix_start, strict=True
        ):
            variable.assign(value)

    def with_params(self, state: State, params: Sequence[Tensor]) -> State:
        """The state with other parameters, for `predict`."""
        return replace(state, params=list(params))

    def loss_and_gradients(self, state: State, features: Array, labels: NDArray[np.int32]) -> tuple[float, list[Array]]:
        """Plain cross-entropy and its gradients on one batch with dropout off: what the equivalence receipt compares."""

        def loss_of(values: list[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits = self._forward(values, state.draws, x, training=False)[0]
            loss = ops.mean(ops.sparse_categorical_crossentropy(y, logits, from_logits=True))
            return loss, loss

        tensors = [ops.convert_to_tensor(value) for value in state.params]
        x, y = ops.convert_to_tensor(np.asarray(features, np.float32)), ops.convert_to_tensor(labels)
        (loss, _), gradients = compile_function(value_and_grad(loss_of))(tensors, x, y)
        return float(loss), [ops.convert_to_numpy(gradient) for gradient in gradients]

    def _rows_per_chunk(self, features: Features, num_rows: int) -> int:
        """A multiple of the batch size: all rows, or an even part of them that CHUNK_BYTES hold."""
        row_bytes = features.dtype.itemsize * math.prod(features.shape[1:])
        most = max(1, int(CHUNK_BYTES // (row_bytes * self.batch_size)))
        batches = math.ceil(num_rows / self.batch_size)
        return math.ceil(batches / math.ceil(batches / most)) * self.batch_size

    def _note(self, phase: str, started: float, num_images: int) -> None:
        self.pace[phase] = min(self.pace[phase], (time.monotonic() - started) / num_images)

    def _train_epoch(
        self, state: State, view: Features, data: TrainingData, order: Array, hyper: dict[str, Any]
    ) -> tuple[State, float, float]:
        """One pass over a view in the given order; memory stays at one chunk of features."""
        rows = self._rows_per_chunk(view, len(order))
        sums = np.zeros(3)
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            labels = data.labels[chosen]
            features = _pad(np.asarray(view[chosen]), rows)
            started = time.monotonic()
            carry = (state.params, state.slots, state.draws, state.step)
            carry, part = self._run_chunk(
                carry,
                features,
                _pad(labels, rows),
                _pad(data.class_weights[labels], rows),
                hyper,
                np.int32(math.ceil(len(chosen) / self.batch_size)),
            )
            state = State(carry[0], carry[1], carry[2], carry[3], state.strength)
            sums += ops.convert_to_numpy(part)
            self._note("train", started, len(chosen))
        if not np.isfinite(sums[0]):
            return state, math.inf, 0.0
        return state, float(sums[0] / sums[1]), float(sums[2] / len(order))

    def _chunk(
        self, carry: Any, features: Tensor, labels: Tensor, weights: Tensor, hyper: dict[str, Tensor], num_steps: Tensor
    ) -> Any:
        """Runs `num_steps` batches of a chunk; returns the new carry and (sum of weighted losses, of weights, of hits)."""
        self.num_traces += 1  # runs at trace time only
        size = self.batch_size
        num_suffix = len(self._suffix_start)
        differentiate = value_and_grad(self._loss)

        def body(index: Tensor, loop: Any) -> Any:
            (params, slots, draws, step), sums = loop
            x = ops.slice(features, [index * size] + [0] * (len(features.shape) - 1), [size, *features.shape[1:]])
            y = ops.slice(labels, [index * size], [size])
            w = ops.slice(weights, [index * size], [size])
            (_, (draws, part)), gradients = differentiate(
                params, draws, x, y, w, hyper["label_smoothing"], hyper["strength"]
            )
            wave = 0.5 * (1.0 + ops.cos(math.pi * step / hyper["total_steps"]))
            factor = 1.0 - hyper["cosine"] * (1.0 - wave)
            rates = [hyper["suffix_rate" if i < num_suffix else "head_rate"] * factor for i in range(len(params))]
            step = step + 1.0
            params, slots = apply_gradients(
                self.optimizer, params, gradients, slots, rates, step, hyper["weight_decay"]
            )
            return (params, slots, draws, step), sums + part

        return ops.fori_loop(0, num_steps, body, (carry, ops.zeros((3,), "float32")))

    def _loss(
        self,
        params: list[Tensor],
        draws: list[Tensor],
        x: Tensor,
        y: Tensor,
        w: Tensor,
        smoothing: Tensor,
        strength: Tensor,
    ) -> Any:
        logits, draws = self._forward(params, draws, x, training=True)
        targets = ops.one_hot(y, self.num_classes) * (1.0 - smoothing) + smoothing / self.num_classes
        losses = ops.categorical_crossentropy(targets, logits, from_logits=True)
        hits = ops.cast(ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), y), "float32") * ops.cast(
            w > 0, "float32"
        )
        total, weight = ops.sum(losses * w), ops.sum(w)
        # The penalty under which the linear head, where training begins, is an optimum.
        penalty = 0.5 * strength * ops.sum(ops.square(params[-2]))
        return total / weight + penalty, (draws, ops.stack([total, weight, ops.sum(hits)]))

    def _forward(
        self, params: list[Tensor], draws: list[Tensor], x: Tensor, *, training: bool
    ) -> tuple[Tensor, list[Tensor]]:
        x = ops.cast(x, "float32")
        tail, num_suffix = self.tail, len(self._suffix_start)
        if self._suffix is not None:
            # The base's BatchNorm keeps its pre-trained statistics, unfrozen or not.
            maps = ops.reshape(x[:, : tail.map_size], (-1, *tail.map_shape))
            outputs = self._suffix(params[:num_suffix], self._suffix_fixed, maps)
            x = ops.concatenate([x[:, tail.map_size :], *pool_outputs(outputs, tail.sees, tail.pooling)], axis=1)
        logits, draws = tail.head.stateless_call(params[num_suffix:], draws, x, training=training)
        return logits, list(draws)

    def _logits(self, params: list[Tensor], draws: list[Tensor], features: Tensor) -> Tensor:
        """Logits of a chunk, batch by batch, so that activations stay small."""
        batches = ops.reshape(features, (-1, self.batch_size, *features.shape[1:]))
        logits = ops.map(lambda x: self._forward(params, draws, x, training=False)[0], batches)
        return ops.reshape(logits, (-1, self.num_classes))


def score_logits(logits: NDArray[np.float32], labels: NDArray[np.int32]) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy of logits (num_images, num_classes)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return float(losses.mean()), float((logits.argmax(axis=1) == labels).mean())


def _pad(rows: Array, length: int) -> Array:
    """`rows` filled up to `length` with zeros, so that every chunk has one shape and one trace."""
    if len(rows) == length:
        return rows
    return np.concatenate([rows, np.zeros((length - len(rows), *rows.shape[1:]), rows.dtype)])
