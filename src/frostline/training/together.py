"""Several trainings of one tail shape in one step: what a GPU does with one batch it does with five in about the time."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.devices import ops, tree
from frostline.hparams import Hparams
from frostline.training.data import TrainingData
from frostline.training.fit import CURVES
from frostline.training.trainer import State, Trainer, pad, score_logits, score_sums


def fit_together(
    trainer: Trainer,
    states: Sequence[State],
    data: Sequence[TrainingData],
    hparams: Hparams,
    *,
    num_epochs: int,
    schedule: str,
    seeds: Sequence[int],
) -> list[tuple[list[NDArray[Any]], dict[str, list[float]]]]:
    """What `fit` gives for each state with its data and seed, up to rounding: the parameters after the last epoch, the curves.

    data: of the same features, other rows of them. FloatingPointError where a loss is not finite.
    """
    steps = [trainer.steps_of(each) for each in data]
    hyper = _stack(
        [trainer.hyper(state, hparams, num_epochs * n, schedule) for state, n in zip(states, steps, strict=True)]
    )
    carry = _stack([trainer.carry(state, hparams) for state in states])
    curves: list[dict[str, list[float]]] = [{name: [] for name in CURVES} for _ in states]
    views, longest = data[0].views, max(steps) * trainer.batch_size
    for number in range(num_epochs):
        view = views[number % len(views)]
        orders = [trainer.order(each, seed, number) for each, seed in zip(data, seeds, strict=True)]
        rows = trainer.rows_per_chunk(view, longest, len(states))
        sums = np.zeros((len(states), 3))
        started = time.monotonic()
        for start in range(0, longest, rows):
            chunks = [
                trainer.chunk_of(view, each, order[start : start + rows], rows)
                for each, order in zip(data, orders, strict=True)
            ]
            features, labels, weights, count = _stack(chunks)
            carry, part = trainer.run_together(carry, features, labels, weights, hyper, count)
            sums += ops.convert_to_numpy(part)
        trainer.seconds["train"] += time.monotonic() - started
        started = time.monotonic()
        judged = _predict(trainer, carry, views[0], [each.held_out for each in data])
        trainer.seconds["validate"] += time.monotonic() - started
        for curve, sum_, logits, each in zip(curves, sums, judged, data, strict=True):
            scores = (*score_sums(sum_, len(each.train)), *score_logits(logits, each.labels[each.held_out]))
            if not (math.isfinite(scores[0]) and math.isfinite(scores[2])):
                raise FloatingPointError(f"the loss is not finite in epoch {number + 1}")
            for name, value in zip(CURVES, scores, strict=True):
                curve[name].append(value)
    params = [np.asarray(ops.convert_to_numpy(value)) for value in carry[0]]
    return [([value[place] for value in params], curve) for place, curve in enumerate(curves)]


def _predict(trainer: Trainer, carry: Any, view: Any, rows: Sequence[NDArray[np.intp]]) -> list[NDArray[np.float32]]:
    """Logits of the rows of each."""
    longest = max(map(len, rows))
    length = trainer.rows_per_chunk(view, longest, len(rows))
    parts = []
    for start in range(0, longest, length):
        chunk = np.stack([pad(np.asarray(view[own[start : start + length]]), length) for own in rows])
        parts.append(ops.convert_to_numpy(trainer.predict_together(carry[0], carry[2], chunk)))
    logits = np.concatenate(parts, axis=1)
    return [each[: len(own)] for each, own in zip(logits, rows, strict=True)]


def _stack(parts: Sequence[Any]) -> Any:
    """The leaves of trees of one structure, with a first axis more."""
    return tree.map_structure(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *parts)
