"""What a base costs: forward FLOPs and parameters below and above each cut."""

import math
from typing import Any

from frostline.bases.base import Base
from frostline.bases.graph import nodes_of
from frostline.devices import keras, layers

Shape = tuple[int | None, ...]


def flops_of(base: Base) -> dict[str, Any]:
    """Forward FLOPs per image and parameters, whole and per depth.

    Counts 2 x multiply-adds of convolutions and dense layers, as published tables do (bias, BatchNorm, activations and
    pooling are left out). Returns {"total", "parameters", "prefix": [per depth], "suffix": [per depth],
    "parameters_above": [per depth]}.
    """
    below: dict[int, tuple[int, int]] = {}
    flops = parameters = 0
    for node in nodes_of(base.model.inputs, base.model.outputs):
        flops += _flops_of_call(node.operation, node.input_tensors[0].shape, node.outputs[0].shape)
        parameters += node.operation.count_params() if isinstance(node.operation, keras.Layer) else 0
        below[id(node.operation)] = (flops, parameters)
    at_cut = [below[id(base.model.operations[cut.index])] for cut in base.cuts]
    return {
        "total": flops,
        "parameters": parameters,
        "prefix": [done for done, _ in at_cut],
        "suffix": [flops - done for done, _ in at_cut],
        "parameters_above": [parameters - held for _, held in at_cut],
    }


def _flops_of_call(operation: Any, given: Shape, made: Shape) -> int:
    if isinstance(operation, keras.Sequential):
        total = 0
        for layer in operation.layers:
            total += _flops_of_call(layer, layer.input.shape, layer.output.shape)
        return total
    positions = _product(made[1:-1])
    match operation:
        case layers.DepthwiseConv2D():
            return 2 * positions * _product(operation.kernel.shape)
        case layers.SeparableConv2D():
            return (
                2
                * positions
                * (_product(operation.depthwise_kernel.shape) + _product(operation.pointwise_kernel.shape))
            )
        case layers.Conv2DTranspose():
            return 2 * _product(given[1:-1]) * _product(operation.kernel.shape)
        case layers.Conv2D() | layers.Dense():
            return 2 * positions * _product(operation.kernel.shape)
        case _:
            return 0


def _product(shape: Shape) -> int:
    return math.prod(size or 1 for size in shape)
