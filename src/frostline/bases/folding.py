"""A frozen graph with each convolution and the BatchNormalization behind it made one convolution with a bias.

In inference BatchNormalization is y = (x - mean) * gamma / sqrt(variance + epsilon) + beta, an affine map per channel,
which a linear convolution before it can hold in its own kernel and bias. Source: Jacob et al., CVPR 2018, section 3.2.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frostline.bases.graph import Operation, Tensor, copy_operation, copy_weights, nodes_of, replay
from frostline.devices import keras, layers, without_drawing

CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)


def fold_graph(inputs: Tensor, outputs: Sequence[Tensor], start: Tensor, dtype: str = "float32") -> list[Tensor]:
    """The graph between two tensors built anew above `start`, for inference: layers of its own, pairs folded.

    dtype: that the layers compute in; their weights stay float32. Equal to the graph up to rounding.
    """
    pairs = find_pairs(inputs, outputs)
    absorbed = {id(norm) for norm in pairs.values()}
    copies: dict[int, tuple[Operation, Operation]] = {}

    def operation_of(operation: Operation) -> Operation:
        if id(operation) in absorbed:
            return _pass_on
        if id(operation) not in copies:
            changes: dict[str, Any] = {"use_bias": True} if id(operation) in pairs else {}
            if isinstance(operation, keras.Layer) and dtype != "float32":
                changes["dtype"] = f"mixed_{dtype}"
            # The number keeps names apart where two models were taken apart into one.
            copies[id(operation)] = (operation, copy_operation(operation, f"{operation.name}_{len(copies)}", **changes))
        return copies[id(operation)][1]

    with without_drawing():
        results = replay(inputs, outputs, start, operation_of)
    for original, copy in copies.values():
        if id(original) in pairs:
            copy.set_weights(fold_weights(original, pairs[id(original)]))
        elif isinstance(original, keras.Layer):
            copy_weights(original, copy)
    return results


def find_pairs(inputs: Tensor, outputs: Sequence[Tensor]) -> dict[int, layers.BatchNormalization]:
    """The BatchNormalization behind each convolution that can hold it, by the convolution's id.

    The convolution must be linear, called once, and its output read by nothing else: neither by a second layer nor as
    one of `outputs`, which is the case of a cut between the two.
    """
    nodes = nodes_of([inputs], outputs)
    calls = Counter(id(node.operation) for node in nodes)
    uses = Counter(id(tensor) for tensor in outputs)
    for node in nodes:
        uses.update(id(tensor) for tensor in node.input_tensors)
    makers = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
    pairs = {}
    for node in nodes:
        norm, tensor = node.operation, node.input_tensors[0]
        convolution: Any = makers.get(id(tensor))
        if (
            type(norm) is layers.BatchNormalization
            and norm.axis in (-1, 3)
            and type(convolution) in CONVOLUTIONS
            and convolution.activation is keras.activations.linear
            and convolution.data_format == "channels_last"
            and calls[id(norm)] == calls[id(convolution)] == uses[id(tensor)] == 1
        ):
            pairs[id(convolution)] = norm
    return pairs


def fold_weights(convolution: keras.Layer, norm: layers.BatchNormalization) -> list[NDArray[np.float32]]:
    """The weights of the one convolution that does what the two layers do in inference: kernels, then the bias."""
    mean, variance = _numbers(norm.moving_mean), _numbers(norm.moving_variance)
    gamma = _numbers(norm.gamma) if norm.scale else 1.0
    beta = _numbers(norm.beta) if norm.center else 0.0
    scale = gamma / np.sqrt(variance + norm.epsilon)
    kernels = convolution.get_weights()
    bias = kernels.pop() if convolution.use_bias else 0.0
    # A depthwise kernel is (height, width, channels, multiplier); its outputs count the multiplier first.
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    kernels[-1] = kernels[-1] * (scale.reshape(kernels[-1].shape[2:]) if depthwise else scale)
    return [value.astype(np.float32) for value in (*kernels, (bias - mean) * scale + beta)]


def _numbers(variable: keras.Variable) -> NDArray[np.float64]:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _pass_on(tensor: Tensor, **_: Any) -> Tensor:
    return tensor
