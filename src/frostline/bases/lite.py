"""EfficientNet-Lite as it was published: its blocks, and the layers with weights in their order. Without Keras.

EfficientNet (Tan and Le, ICML 2019, table 1) without squeeze-and-excitation and with ReLU6. Its stem, its head and how often
its first and last stages repeat are not scaled.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

# Name -> how much wider and deeper than the first one.
SCALES = {"EfficientNetLite0": (1.0, 1.0), "EfficientNetLite1": (1.0, 1.1), "EfficientNetLite2": (1.1, 1.2)}
STEM, HEAD, CLASSES = 32, 1280, 1000
EPSILON = 1e-3
# (repeats, kernel, stride, expansion, channels) of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class Block:
    """An inverted residual block, from `given` channels to `channels`; it has a sum where it keeps the size of its map."""

    name: str
    kernel: int
    stride: int
    expansion: int
    given: int
    channels: int

    @property
    def has_sum(self) -> bool:
        """Is what comes in added to what goes out?"""
        return self.stride == 1 and self.given == self.channels

    @property
    def end(self) -> str:
        """The name of its last layer."""
        return f"{self.name}_{'add' if self.has_sum else 'project_bn'}"


def blocks_of(name: str) -> tuple[Block, ...]:
    """The blocks of a network, from the input side up."""
    width, depth = SCALES[name]
    blocks: list[Block] = []
    given = STEM
    for stage, (repeats, kernel, stride, expansion, base) in enumerate(_STAGES, 1):
        channels = round_to_8(base * width)
        is_scaled = 1 < stage < len(_STAGES)
        for number in range(math.ceil(repeats * depth) if is_scaled else repeats):
            letter = chr(ord("a") + number)
            blocks.append(Block(f"block{stage}{letter}", kernel, 1 if number else stride, expansion, given, channels))
            given = channels
    return tuple(blocks)


def round_to_8(channels: float) -> int:
    """The nearest multiple of 8, not more than 10 % below, as MobileNets and EfficientNets round their channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def layers_of(name: str) -> Iterator[tuple[str, str, str]]:
    """(Keras's class, name, name in the PyTorch port) of each layer with weights, in Keras's order, without the top."""
    convolution, depthwise, norm = "conv2d", "depthwise_conv2d", "batch_normalization"
    yield from ((convolution, "stem_conv", "_conv_stem"), (norm, "stem_bn", "_bn0"))
    for number, block in enumerate(blocks_of(name)):
        place = f"_blocks.{number}"
        if block.expansion > 1:
            yield convolution, f"{block.name}_expand_conv", f"{place}._expand_conv"
            yield norm, f"{block.name}_expand_bn", f"{place}._bn0"
        yield depthwise, f"{block.name}_dwconv", f"{place}._depthwise_conv"
        yield norm, f"{block.name}_bn", f"{place}._bn1"
        yield convolution, f"{block.name}_project_conv", f"{place}._project_conv"
        yield norm, f"{block.name}_project_bn", f"{place}._bn2"
    yield from ((convolution, "top_conv", "_conv_head"), (norm, "top_bn", "_bn1"))
