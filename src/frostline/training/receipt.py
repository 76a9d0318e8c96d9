"""The receipt: proof that a tail on stored features computes what the whole network computes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.bases.base import Base
from frostline.bases.cuts import copy_prefix, pool_maps
from frostline.devices import compile_function, keras, ops, value_and_grad
from frostline.errors import Refused
from frostline.training.tail import pool_outputs
from frostline.training.trainer import State, Trainer

# Stored features are float16 (relative step 2^-11 = 4.9e-4); a network of some ten layers above them multiplies that.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Receipt:
    """Relative differences between the cached path and the whole network on one probe batch."""

    depth: int
    num_images: int
    loss_cached: float
    loss_whole: float
    loss_difference: float
    gradient_difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return max(self.loss_difference, self.gradient_difference) <= self.tolerance

    def to_record(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def check_equivalence(
    base: Base,
    trainer: Trainer,
    state: State,
    images: NDArray[np.uint8],
    features: NDArray[Any],
    labels: NDArray[np.int32],
) -> Receipt:
    """Compares loss and gradients of the trained part: from stored features, and from pixels through one whole network.

    images: uint8 (n, size, size, 3); features: their stored form at the trainer's depth. The gradient difference is
    ‖g_cached − g_whole‖ / ‖g_whole‖ over all trained weights together.
    Refused where a difference is above the tolerance: a study on such features would compare something else.
    """
    loss_cached, cached = trainer.loss_and_gradients(state, features, labels)
    loss_whole, whole = _whole_loss_and_gradients(base, trainer, state, images, labels)
    difference = np.sqrt(sum(float(np.sum((a - b) ** 2)) for a, b in zip(cached, whole, strict=True)))
    norm = np.sqrt(sum(float(np.sum(b**2)) for b in whole))
    receipt = Receipt(
        depth=trainer.tail.depth,
        num_images=len(images),
        loss_cached=loss_cached,
        loss_whole=loss_whole,
        loss_difference=abs(loss_cached - loss_whole) / max(abs(loss_whole), 1e-12),
        gradient_difference=float(difference / max(norm, 1e-12)),
        tolerance=TOLERANCE,
    )
    if not receipt.holds:
        raise Refused(
            f"The stored features at depth {receipt.depth} do not stand for the base: loss differs by {receipt.loss_difference:.2g}, "
            f"gradients by {receipt.gradient_difference:.2g} (tolerance {TOLERANCE}). Delete data/features and run `dvc repro` again; "
            "where extract.precision asks for bfloat16 or float16, set it to float32."
        )
    return receipt


def _whole_loss_and_gradients(
    base: Base, trainer: Trainer, state: State, images: NDArray[np.uint8], labels: NDArray[np.int32]
) -> tuple[float, list[NDArray[Any]]]:
    """By a network of the base's own layers below the cut, and above it the tail's, called as Keras calls them."""
    tail = trainer.tail
    pixels = keras.Input((base.image_size, base.image_size, 3), dtype="uint8")
    maps = copy_prefix(base, tail.depth, pixels)
    outputs = [maps[-1]] if tail.suffix is None else keras.tree.flatten(tail.suffix(maps[-1], training=False))
    if tail.sees == "all":
        frozen = pool_maps(maps[:-1], "cuts")
        columns = frozen if tail.suffix is None else ops.concatenate([frozen, pool_maps(outputs, "pool")], axis=1)
    else:
        (columns,) = pool_outputs(outputs, tail.sees, tail.pooling)
    network = keras.Model(pixels, tail.head(columns))
    trained = [*(tail.suffix.trainable_variables if tail.suffix else []), *tail.head.trainable_variables]
    place_of = {id(variable): place for place, variable in enumerate(trained)}
    places = [place_of[id(variable)] for variable in network.trainable_variables]
    assert sorted(places) == list(range(len(trained))), "the whole network must train what the tail does"
    drawn = {id(v): value for v, value in zip(tail.head.non_trainable_variables, state.draws, strict=True)}
    others = [drawn.get(id(v), ops.convert_to_numpy(v)) for v in network.non_trainable_variables]

    def loss_of(values: list[Any], x: Any, y: Any) -> Any:
        weights = [ops.convert_to_tensor(values[place]) for place in places]
        logits, _ = network.stateless_call(weights, others, x, training=False)
        loss = ops.mean(ops.sparse_categorical_crossentropy(y, logits, from_logits=True))
        return loss, loss

    (loss, _), gradients = compile_function(value_and_grad(loss_of))(
        [ops.convert_to_tensor(value) for value in state.params],
        ops.convert_to_tensor(images),
        ops.convert_to_tensor(labels),
    )
    return float(loss), [ops.convert_to_numpy(gradient) for gradient in gradients]
