"""Does a base know its input? Told without labels, by what its BatchNormalizations remember of the images it was trained on.

Related: population statistics against those of a batch, as in Li et al., "Revisiting batch normalization for practical domain
adaptation" (2016). Limits and measurements: docs/decisions/0016-base-knows-its-input.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from frostline.arrays import Rows, take_rows
from frostline.bases.base import Base
from frostline.bases.cuts import scale_pixels
from frostline.bases.families import Scaling
from frostline.bases.graph import nodes_of
from frostline.devices import compile_function, keras, layers, ops
from frostline.errors import Refused

NUM_IMAGES = 48
BATCH_PIXELS = 8 * 224 * 224  # all maps of a batch are held at once
ANYWAY = "To go on anyway: extract.check_input: false."
UNIT = "0..1"  # no family takes it, many networks of people's own do
# The divergence of the whole above which the weights are in disorder, and something is odd: working networks
# had up to 0.25 on photographs near their size, 0.66 on digits at 75 px; networks in disorder 1.25 or more.
HOPELESS, ODD = 0.9, 0.7
MIN_LAYERS = 8  # for a median over layers: the first ones follow the images more than the network
# Another scaling fits: the misfit, and how many times smaller it must be with that. Right ones had up to 1.2, and 1.5 times.
WARN, REFUSE = (0.3, 3.0), (30.0, 30.0)
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How far a base's stored statistics and those of some images diverge; 0 where they are the same.

    whole: median over the layers; None where they are few. misfits: in the first layer, with the pixels scaled in each way.
    """

    whole: float | None
    misfits: Mapping[str, float]

    @property
    def best(self) -> str:
        """The scaling that fits best."""
        return min(self.misfits, key=self.misfits.__getitem__)


def check_input(base: Base, images: Rows) -> list[str]:
    """What is odd, a line each, about a base on these images, uint8 (n, size, size, 3); some of them are looked at.

    Raises Refused where the weights are in disorder, or where the pixels are scaled as they never were in training.
    """
    agreement = measure_agreement(base, images)
    if agreement is None:
        return [f"{base.name} has no BatchNormalization with statistics: whether it knows these images is not checked"]
    whole, misfits, best = agreement.whole, agreement.misfits, agreement.best
    given, times = misfits[base.scaling], misfits[base.scaling] / max(misfits[best], 1e-6)
    scaled = (
        f"pixels scaled as {base.scaling!r} are not what {base.name} was trained on: in its first BatchNormalization they "
        f"diverge by {given:.2g}, as {best!r} by {misfits[best]:.2g}. {_how_to_scale(base.name, best)}."
    )
    odd = (
        f"the statistics of {base.name} on these images diverge from those stored in it by {whole or 0:.2f}; in working "
        f"networks it is {ODD} at most."
    )
    if given > REFUSE[0] and times > REFUSE[1]:
        raise Refused(f"base: {scaled} {ANYWAY}")
    if whole is not None and whole > HOPELESS:
        raise Refused(
            f"base.weights: {odd} Weights read in a wrong order do that, and layers that were never filled. {ANYWAY}"
        )
    lines = [f"WARNING: {scaled}"] if given > WARN[0] and times > WARN[1] else []
    if whole is not None and whole > ODD:
        lines.append(f"WARNING: {odd} Do these images resemble those that it was trained on?")
    return lines


def measure_agreement(base: Base, images: Rows) -> Agreement | None:
    """The agreement on up to NUM_IMAGES images, evenly spread; None where the base stores no trained statistics."""
    found = [
        (node.operation, node.input_tensors[0])
        for node in nodes_of(base.model.inputs, base.model.outputs)
        if type(node.operation) is layers.BatchNormalization and not _is_untrained(node.operation)
    ]
    if not found:
        return None
    norms, tensors = [norm for norm, _ in found], [tensor for _, tensor in found]
    some = take_rows(images, np.unique(np.linspace(0, len(images) - 1, NUM_IMAGES).round().astype(int)))
    whole = None
    if len(norms) >= MIN_LAYERS:
        measured = _measurer(base.model.inputs, tensors)(_scale(some, base.scaling))
        whole = float(np.median([_diverge(norm, *each) for norm, each in zip(norms, measured, strict=True)]))
    measure_first = _measurer(base.model.inputs, tensors[:1])
    misfits = {
        scaling: _diverge(norms[0], *measure_first(_scale(some, scaling))[0]) for scaling in (*get_args(Scaling), UNIT)
    }
    return Agreement(whole, misfits)


def _measurer(inputs: Any, tensors: list[Any]) -> Callable[[Any], list[tuple[Numbers, Numbers]]]:
    """What gives, for images, mean and variance of each channel of each tensor, over images and places."""
    probe = keras.Model(inputs, tensors)

    def measure(batch: Any) -> Any:
        outputs = probe(batch, training=False)
        flat = [
            ops.reshape(x, (-1, x.shape[-1])) for x in (outputs if isinstance(outputs, list | tuple) else [outputs])
        ]
        return [(ops.mean(x, axis=0), ops.mean(ops.square(x), axis=0)) for x in flat]

    compiled = compile_function(measure)

    def measure_all(images: Any) -> list[tuple[Numbers, Numbers]]:
        sums = [(np.zeros(1), np.zeros(1))] * len(tensors)
        size = max(1, BATCH_PIXELS // (images.shape[1] * images.shape[2]))
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            share = len(batch) / len(images)
            sums = [
                (mean + share * _numbers(own), square + share * _numbers(squared))
                for (mean, square), (own, squared) in zip(sums, compiled(batch), strict=True)
            ]
        return [(mean, np.maximum(square - mean**2, 0)) for mean, square in sums]

    return measure_all


def _scale(images: NDArray[np.uint8], scaling: str) -> Any:
    if scaling == UNIT:
        return ops.convert_to_tensor(images.astype(np.float32) / 255)
    return scale_pixels(ops.convert_to_tensor(images), scaling)  # type: ignore[arg-type]  # one of Scaling


def _is_untrained(norm: layers.BatchNormalization) -> bool:
    # Variances that are all alike are those of a network whose scales were moved into its convolutions; its means tell.
    return bool(np.ptp(_numbers(norm.moving_variance)) == 0 and np.ptp(_numbers(norm.moving_mean)) == 0)


def _diverge(norm: layers.BatchNormalization, mean: Numbers, variance: Numbers) -> float:
    """Kullback-Leibler divergence of normal distributions with these and with the stored moments, median over channels."""
    stored = _numbers(norm.moving_variance) + norm.epsilon
    ratio = (variance + norm.epsilon) / stored
    shift = (mean - _numbers(norm.moving_mean)) ** 2 / stored
    return float(np.median(0.5 * (ratio + shift - 1 - np.log(ratio))))


def _numbers(values: Any) -> Numbers:
    return np.asarray(ops.convert_to_numpy(values), np.float64)


def _how_to_scale(name: str, best: str) -> str:
    if name == "custom" and best != UNIT:
        return f"Set base.options: {{scaling: {best}}}"
    if name == "custom":
        return "Save the model with a Rescaling(1 / 255) as its first layer, and set base.options: {scaling: none}"
    return "The weights come from another training than the family's: use them in a .keras model with base.name: custom"
