"""Optimizers as pure functions of their state.

Keras's own are objects with variables, and their stateless form refuses to run on TensorFlow; a trial that only
exchanges state needs no new trace (docs/decisions/0002-functional-training.md). Defaults are Keras's.
"""

from collections.abc import Callable, Sequence
from typing import Any

from frostline.devices import ops

Tensor = Any
Slots = list[Tensor]
# (gradient, slots, learning rate, step from 1) -> (what to subtract from the parameter, new slots)
Update = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor], tuple[Tensor, Slots]]

NUM_SLOTS = {"adam": 2, "rmsprop": 1, "sgd": 1}


def adam(gradient: Tensor, slots: Sequence[Tensor], rate: Tensor, step: Tensor) -> tuple[Tensor, Slots]:
    """Adam; Kingma and Ba, ICLR 2015, algorithm 1 in its "epsilon hat" form."""
    mean = slots[0] + (gradient - slots[0]) * 0.1
    square = slots[1] + (gradient * gradient - slots[1]) * 0.001
    corrected = rate * ops.sqrt(1.0 - ops.power(0.999, step)) / (1.0 - ops.power(0.9, step))
    return corrected * mean / (ops.sqrt(square) + 1e-7), [mean, square]


def rmsprop(gradient: Tensor, slots: Sequence[Tensor], rate: Tensor, step: Tensor) -> tuple[Tensor, Slots]:
    """RMSprop; Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6.5 (2012)."""
    square = 0.9 * slots[0] + 0.1 * gradient * gradient
    return rate * gradient / ops.sqrt(square + 1e-7), [square]


def sgd(gradient: Tensor, slots: Sequence[Tensor], rate: Tensor, step: Tensor) -> tuple[Tensor, Slots]:
    """SGD with Nesterov momentum 0.9; Sutskever et al., ICML 2013."""
    velocity = 0.9 * slots[0] + rate * gradient
    return 0.9 * velocity + rate * gradient, [velocity]


UPDATES: dict[str, Update] = {"adam": adam, "rmsprop": rmsprop, "sgd": sgd}


def apply_gradients(
    name: str,
    params: Sequence[Tensor],
    gradients: Sequence[Tensor],
    slots: Sequence[Sequence[Tensor]],
    rates: Sequence[Tensor],
    step: Tensor,
    weight_decay: Tensor,
) -> tuple[list[Tensor], list[Slots]]:
    """New parameters and slots after one step.

    rates: the learning rate of each parameter; step: float, from 1. Weight decay is decoupled from the gradient
    (Loshchilov and Hutter, ICLR 2019) and spares biases and BatchNormalization (vectors).
    """
    new_params, new_slots = [], []
    for param, gradient, kept, rate in zip(params, gradients, slots, rates, strict=True):
        change, fresh = UPDATES[name](gradient, kept, rate, step)
        if len(param.shape) > 1:
            change = change + rate * weight_decay * param
        new_params.append(param - change)
        new_slots.append(fresh)
    return new_params, new_slots
