"""A suffix as one function of its weights, with fewer passes over the activations than its layers make.

Training holds the base's BatchNormalization in inference mode, where it is an affine map per channel: it goes into the
kernel and the bias of the convolution before it, as a function of the weights of both, so that every weight keeps its
own exact gradient. A convolution of 1 x 1 is a matrix product, which TensorFlow's CPU kernels differentiate faster.
Source of the folding: Jacob et al., CVPR 2018, section 3.2.
"""

from collections.abc import Callable, Sequence
from typing import Any

from frostline.bases.folding import find_pairs
from frostline.bases.graph import Operation, replay
from frostline.devices import Tensor, keras, layers, ops


def make_forward(suffix: keras.Model) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], list[Tensor]]:
    """`(trainable values, other values, x) -> outputs`: what `suffix.stateless_call(..., training=False)` gives, up to rounding.

    The values stand for the variables in the order of `suffix.trainable_variables` and `suffix.non_trainable_variables`.
    """
    inputs, outputs = suffix.inputs[0], suffix.outputs
    pairs = find_pairs(inputs, outputs)
    absorbed = {id(norm) for norm in pairs.values()}

    def operation_of(operation: Operation) -> Callable[..., Tensor]:
        if id(operation) in absorbed:
            return lambda x, **_: x
        norm = pairs.get(id(operation))
        if norm is not None or _is_product(operation):
            return lambda x, **_: _convolve(operation, norm, x)
        if isinstance(operation, keras.Layer):
            return lambda *args, **kwargs: operation(*args, **{**kwargs, "training": False})
        return operation  # type: ignore[no-any-return]

    def forward(trained: Sequence[Tensor], fixed: Sequence[Tensor], x: Tensor) -> list[Tensor]:
        held = [*zip(suffix.trainable_variables, trained, strict=True)]
        held += [*zip(suffix.non_trainable_variables, fixed, strict=True)]
        with keras.StatelessScope(state_mapping=held):
            return replay(inputs, outputs, x, operation_of)

    return forward


def _is_product(operation: Operation) -> bool:
    """Is this a convolution that looks at one pixel at a time?"""
    return (
        type(operation) is layers.Conv2D
        and operation.kernel_size == operation.strides == (1, 1)
        and operation.groups == 1
        and operation.data_format == "channels_last"
        and operation.compute_dtype == "float32"
    )


def _convolve(convolution: keras.Layer, norm: layers.BatchNormalization | None, x: Tensor) -> Tensor:
    """The convolution and the BatchNormalization behind it, if any, of the weights that are in scope."""
    bias = convolution.bias if convolution.use_bias else None
    scale = None
    if norm is not None:
        scale = ops.rsqrt(norm.moving_variance + norm.epsilon)
        scale = scale * norm.gamma if norm.scale else scale
        shift = (0.0 if bias is None else bias) - norm.moving_mean
        bias = shift * scale + norm.beta if norm.center else shift * scale
    places: dict[str, Any] = {
        "strides": convolution.strides,
        "padding": convolution.padding,
        "dilation_rate": convolution.dilation_rate,
        "data_format": "channels_last",
    }
    match convolution:
        case layers.SeparableConv2D():
            pointwise = _scaled(convolution.pointwise_kernel, scale)
            y = ops.separable_conv(x, convolution.depthwise_kernel, pointwise, **places)
        case layers.DepthwiseConv2D():
            # (height, width, channels, multiplier); its outputs count the multiplier first.
            kernel = ops.convert_to_tensor(convolution.kernel)
            kernel = kernel if scale is None else kernel * ops.reshape(scale, kernel.shape[2:])
            y = ops.depthwise_conv(x, kernel, **places)
        case _ if _is_product(convolution):
            kernel = _scaled(convolution.kernel, scale)
            height, width = x.shape[1:3]
            y = ops.matmul(ops.reshape(x, (-1, kernel.shape[2])), ops.reshape(kernel, kernel.shape[2:]))
            y = ops.reshape(y, (-1, height, width, kernel.shape[3]))
        case _:
            y = ops.conv(x, _scaled(convolution.kernel, scale), **places)
    y = y if bias is None else y + bias
    return convolution.activation(y)


def _scaled(kernel: Any, scale: Tensor | None) -> Tensor:
    kernel = ops.convert_to_tensor(kernel)
    return kernel if scale is None else kernel * scale
