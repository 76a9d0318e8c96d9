"""The receipt: proof that a tail on stored features computes what the whole network computes."""

from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from frostline.bases.base import Base
from frostline.bases.cuts import join_base
from frostline.devices import compile_function, value_and_grad
from frostline.errors import Refused
from frostline.training.tail import Tail
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
    pooling: str,
) -> Receipt:
    """Compares loss and gradients of the trained part: from stored features, and from pixels through one whole network.

    images: uint8 (n, size, size, 3); features: their stored form at the trainer's depth. The gradient difference is
    ‖g_cached − g_whole‖ / ‖g_whole‖ over all trained weights together.
    Refused where a difference is above the tolerance: a study on such features would compare something else.
    """
    params = [np.asarray(ops.convert_to_numpy(value)) for value in state.params]
    loss_cached, cached = trainer.loss_and_gradients(params, features, labels)
    loss_whole, whole = _whole_loss_and_gradients(base, trainer, params, images, labels, pooling)
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
    base: Base,
    trainer: Trainer,
    params: list[NDArray[Any]],
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    pooling: str,
) -> tuple[float, list[NDArray[Any]]]:
    tail = trainer.tail
    features = join_base(base, tail.depth, tail.suffix)
    x = features.output
    if len(tail.head.input.shape) == 2:
        pool = keras.layers.GlobalAveragePooling2D if pooling == "avg" else keras.layers.GlobalMaxPooling2D
        x = pool()(x)
    network = keras.Model(features.input, tail.head(x))
    features.trainable = True
    places = _places_of_trained_weights(tail, features, network)
    assert len(params) == sum(place is not None for place in places), "the whole network must hold every trained weight"
    fixed = [ops.convert_to_numpy(variable) for variable in network.trainable_variables]
    others = [ops.convert_to_numpy(variable) for variable in network.non_trainable_variables]

    def loss_of(values: list[Any], x: Any, y: Any) -> Any:
        weights = [fixed[i] if place is None else values[place] for i, place in enumerate(places)]
        logits, _ = network.stateless_call([ops.convert_to_tensor(w) for w in weights], others, x, training=False)
        loss = ops.mean(ops.sparse_categorical_crossentropy(y, logits, from_logits=True))
        return loss, loss

    (loss, _), gradients = compile_function(value_and_grad(loss_of))(
        [ops.convert_to_tensor(value) for value in params], ops.convert_to_tensor(images), ops.convert_to_tensor(labels)
    )
    return float(loss), [ops.convert_to_numpy(gradient) for gradient in gradients]


def _places_of_trained_weights(tail: Tail, features: keras.Model, network: keras.Model) -> list[int | None]:
    """For each trainable weight of the network its place among the tail's, None where it lies below the cut."""
    place_of: dict[int, int] = {}
    suffix_layers = [layer for layer in tail.suffix.layers if layer.trainable_variables] if tail.suffix else []
    copies = {layer.name: layer for layer in features.layers}
    trained = {
        id(variable): place for place, variable in enumerate(tail.suffix.trainable_variables if tail.suffix else [])
    }
    for layer in suffix_layers:
        for variable, copy in zip(layer.trainable_variables, copies[layer.name].trainable_variables, strict=True):
            place_of[id(copy)] = trained[id(variable)]
    for place, variable in enumerate(tail.head.trainable_variables, start=len(trained)):
        place_of[id(variable)] = place
    return [place_of.get(id(variable)) for variable in network.trainable_variables]
