"""The families of `keras.applications`, and EfficientNet-Lite: scaling, sizes, constructor options, and where each can be cut."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from frostline.bases.lite import blocks_of, round_to_8
from frostline.errors import Refused, nearest

Scaling = Literal["tf", "caffe", "torch", "lite", "none"]

# The base that comes with the package: `card.json` and the weights file that it names.
BUNDLED_BASE = Path(__file__).parent / "bundled"

CUSTOM = "custom"  # a `.keras` model of one's own

_V3_OPTIONS = {"alpha": float, "minimalistic": bool}
_NASNET = "each NASNet cell reads the two cells before it, so that no single tensor crosses between them"


@dataclass(frozen=True)
class Family:
    """What is known about a base without building it.

    scaling: how it wants its pixels ("tf" -1..1, "caffe" BGR minus mean, "torch" standardised,
    "lite" (x - 127) / 128, "none" scales inside);
    min_size, default_size: image side in pixels; options: constructor options that may be set, with their types;
    tried: was it used with real weights; head_only_reason: why it cannot be cut, or None.
    """

    name: str
    scaling: Scaling
    min_size: int
    default_size: int
    cuts: Callable[[Mapping[str, Any]], tuple[str, ...]]
    options: Mapping[str, type] = field(default_factory=dict)
    tried: bool = False
    head_only_reason: str | None = None


def cuts_of(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a family's cuts from the input side up to the output.

    A layer without a name of its own is called after its class and its rank among such layers, as in a fresh
    process: Xception's `add_3` is its fourth unnamed `Add`. A custom base has none: its cuts are read from its graph.
    """
    if name == CUSTOM:
        return ()
    return FAMILIES[name].cuts(options)


def _fixed(*names: str) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    return lambda _: names


def _inception_v3() -> tuple[str, ...]:
    return ("max_pooling2d", "max_pooling2d_1", *(f"mixed{block}" for block in range(11)))


def _inception_resnet_v2() -> tuple[str, ...]:
    return (
        "max_pooling2d",
        "max_pooling2d_1",
        "mixed_5b",
        *(f"block35_{block}_ac" for block in range(1, 11)),
        "mixed_6a",
        *(f"block17_{block}_ac" for block in range(1, 21)),
        "mixed_7a",
        *(f"block8_{block}_ac" for block in range(1, 10)),
        "custom_scale_layer_39",  # the tenth block8 has no activation
        "conv_7b_ac",
    )


# Inverted residual blocks as (channels, stride), in the order of the networks.
_V2_BLOCKS = (
    *((16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)),
    *((64, 1), (96, 1), (96, 1), (96, 1), (160, 2), (160, 1), (160, 1), (320, 1)),
)
_V3_SMALL_BLOCKS = (
    *((16, 2), (24, 2), (24, 1), (40, 2), (40, 1), (40, 1), (48, 1), (48, 1), (96, 2)),
    *((96, 1), (96, 1)),
)
_V3_LARGE_BLOCKS = (
    *((16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (40, 1), (80, 2), (80, 1), (80, 1)),
    *((80, 1), (112, 1), (112, 1), (160, 2), (160, 1), (160, 1)),
)


def _mobilenet_v2(options: Mapping[str, Any]) -> tuple[str, ...]:
    alpha = options.get("alpha", 1.0)
    widths = [(round_to_8(int(channels * alpha)), stride) for channels, stride in _V2_BLOCKS]
    sums = _residual_sums(round_to_8(32 * alpha), widths)
    names = ["expanded_conv", *(f"block_{block}" for block in range(1, len(sums)))]
    ends = (f"{name}_{'add' if has_sum else 'project_BN'}" for name, has_sum in zip(names, sums, strict=True))
    return ("Conv1_relu", *ends, "out_relu")


def _mobilenet_v3(
    blocks: Sequence[tuple[int, int]], activations: int, relus: int
) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    def cuts(options: Mapping[str, Any]) -> tuple[str, ...]:
        alpha = options.get("alpha", 1.0)
        sums = _residual_sums(16, [(round_to_8(channels * alpha), stride) for channels, stride in blocks])
        names = ["expanded_conv", *(f"expanded_conv_{block}" for block in range(1, len(sums)))]
        ends = (f"{name}_{'add' if has_sum else 'project_bn'}" for name, has_sum in zip(names, sums, strict=True))
        if options.get("minimalistic", False):
            return ("re_lu", *ends, f"re_lu_{relus - 1}")
        return ("activation", *ends, f"activation_{activations - 1}")

    return cuts


def _residual_sums(channels: int, blocks: Sequence[tuple[int, int]]) -> list[bool]:
    """Has each block a residual sum: only where it keeps the size of the map and the number of channels."""
    before = [channels, *(width for width, _ in blocks[:-1])]
    return [stride == 1 and width == given for (width, stride), given in zip(blocks, before, strict=True)]


def _resnet(*blocks: int) -> tuple[str, ...]:
    return (
        "pool1_pool",
        *(f"conv{stage}_block{block}_out" for stage, count in enumerate(blocks, 2) for block in range(1, count + 1)),
    )


def _resnet_v2(*blocks: int) -> tuple[str, ...]:
    # The last block ends in the network's own BatchNorm and activation.
    return (*_resnet(*blocks)[:-1], "post_relu")


def _densenet(*blocks: int) -> tuple[str, ...]:
    names = ["pool1"]
    for stage, count in enumerate(blocks, 2):
        names += [f"conv{stage}_block{block}_concat" for block in range(1, count)]
        names.append(f"pool{stage}_pool" if stage < 5 else "relu")
    return tuple(names)


def _efficientnet(depth: float) -> tuple[str, ...]:
    names = ["stem_activation"]
    for stage, repeats in enumerate((1, 2, 2, 3, 3, 4, 1), 1):
        letters = _letters(math.ceil(depth * repeats))
        names += [f"block{stage}{letter}_{'project_bn' if letter == 'a' else 'add'}" for letter in letters]
    return (*names, "top_activation")


def _efficientnet_lite(name: str) -> tuple[str, ...]:
    return ("stem_activation", *(block.end for block in blocks_of(name)), "top_activation")


def _efficientnet_v2(first: str, *repeats: int) -> tuple[str, ...]:
    names = ["stem_activation", first]
    for stage, count in enumerate(repeats, 1):
        ends = [f"block{stage}{letter}_{'project_bn' if letter == 'a' else 'add'}" for letter in _letters(count)]
        names += ends[1:] if stage == 1 else ends
    return (*names, "top_activation")


def _letters(count: int) -> list[str]:
    # Keras counts on after z with the next characters of ASCII.
    return [chr(ord("a") + number) for number in range(count)]


def _convnext(size: str, num_blocks: int) -> tuple[str, ...]:
    # The last sum is followed by the network's own LayerNormalization.
    sums = ("add", *(f"add_{block}" for block in range(1, num_blocks - 1)))
    return (f"convnext_{size}_stem", *sums, "layer_normalization")


def _family(
    name: str,
    scaling: Scaling,
    cuts: tuple[str, ...] | Callable[..., tuple[str, ...]],
    default_size: int = 224,
    min_size: int = 32,
    **facts: Any,
) -> Family:
    return Family(name, scaling, min_size, default_size, cuts if callable(cuts) else _fixed(*cuts), **facts)


_TABLE = (
    _family(
        "MobileNet",
        "tf",
        ("conv1_relu", *(f"conv_pw_{block}_relu" for block in range(1, 14))),
        options={"alpha": float, "depth_multiplier": int},
    ),
    _family("MobileNetV2", "tf", _mobilenet_v2, options={"alpha": float}, tried=True),
    _family("MobileNetV3Small", "none", _mobilenet_v3(_V3_SMALL_BLOCKS, 18, 23), options=_V3_OPTIONS),
    _family("MobileNetV3Large", "none", _mobilenet_v3(_V3_LARGE_BLOCKS, 20, 31), options=_V3_OPTIONS),
    _family("InceptionV3", "tf", _inception_v3(), 299, 75, tried=True),
    _family("InceptionResNetV2", "tf", _inception_resnet_v2(), 299, 75),
    _family(
        "Xception",
        "tf",
        ("block1_conv2_act", "add", *(f"add_{block}" for block in range(1, 12)), "block14_sepconv2_act"),
        299,
        71,
    ),
    _family("VGG16", "caffe", tuple(f"block{block}_pool" for block in range(1, 6))),
    _family("VGG19", "caffe", tuple(f"block{block}_pool" for block in range(1, 6))),
    _family("ResNet50", "caffe", _resnet(3, 4, 6, 3)),
    _family("ResNet101", "caffe", _resnet(3, 4, 23, 3)),
    _family("ResNet152", "caffe", _resnet(3, 8, 36, 3)),
    _family("ResNet50V2", "tf", _resnet_v2(3, 4, 6, 3)),
    _family("ResNet101V2", "tf", _resnet_v2(3, 4, 23, 3)),
    _family("ResNet152V2", "tf", _resnet_v2(3, 8, 36, 3)),
    _family("DenseNet121", "torch", _densenet(6, 12, 24, 16)),
    _family("DenseNet169", "torch", _densenet(6, 12, 32, 32)),
    _family("DenseNet201", "torch", _densenet(6, 12, 48, 32)),
    _family("EfficientNetB0", "none", _efficientnet(1.0)),
    _family("EfficientNetB1", "none", _efficientnet(1.1), 240),
    _family("EfficientNetB2", "none", _efficientnet(1.2), 260),
    _family("EfficientNetB3", "none", _efficientnet(1.4), 300),
    _family("EfficientNetB4", "none", _efficientnet(1.8), 380),
    _family("EfficientNetB5", "none", _efficientnet(2.2), 456),
    _family("EfficientNetB6", "none", _efficientnet(2.6), 528),
    _family("EfficientNetB7", "none", _efficientnet(3.1), 600),
    _family("EfficientNetLite0", "lite", _efficientnet_lite("EfficientNetLite0"), tried=True),
    _family("EfficientNetLite1", "lite", _efficientnet_lite("EfficientNetLite1"), 240, tried=True),
    _family("EfficientNetLite2", "lite", _efficientnet_lite("EfficientNetLite2"), 260, tried=True),
    _family("EfficientNetV2B0", "none", _efficientnet_v2("block1a_project_activation", 1, 2, 2, 3, 5, 8)),
    _family("EfficientNetV2B1", "none", _efficientnet_v2("block1a_project_activation", 2, 3, 3, 4, 6, 9), 240),
    _family("EfficientNetV2B2", "none", _efficientnet_v2("block1a_project_activation", 2, 3, 3, 4, 6, 10), 260),
    _family("EfficientNetV2B3", "none", _efficientnet_v2("block1a_project_activation", 2, 3, 3, 5, 7, 12), 300),
    _family("EfficientNetV2S", "none", _efficientnet_v2("block1a_add", 2, 4, 4, 6, 9, 15), 384),
    _family("EfficientNetV2M", "none", _efficientnet_v2("block1a_add", 3, 5, 5, 7, 14, 18, 5), 480),
    _family("EfficientNetV2L", "none", _efficientnet_v2("block1a_add", 4, 7, 7, 10, 19, 25, 7), 480),
    _family("ConvNeXtTiny", "none", _convnext("tiny", 18)),
    _family("ConvNeXtSmall", "none", _convnext("small", 36)),
    _family("ConvNeXtBase", "none", _convnext("base", 36)),
    _family("ConvNeXtLarge", "none", _convnext("large", 36)),
    _family("ConvNeXtXLarge", "none", _convnext("xlarge", 36)),
    _family("NASNetMobile", "tf", ("activation_187",), head_only_reason=_NASNET),
    _family("NASNetLarge", "tf", ("activation_259",), 331, head_only_reason=_NASNET),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _TABLE})


def check_base(name: str, image_size: int, options: Mapping[str, Any]) -> None:
    """Raises Refused for an unknown family or option, and for images smaller than the family takes."""
    if problems := base_problems(name, image_size, options):
        raise Refused("; ".join(problems))


def base_problems(name: str, image_size: int, options: Mapping[str, Any]) -> list[str]:
    """What a family does not take: each wrong option, and an image that is too small; one line each."""
    if name == CUSTOM:
        return [
            f"base.options: a custom base takes scaling: {', '.join(get_args(Scaling))}; given was {option}: {value!r}"
            for option, value in options.items()
            if option != "scaling" or value not in get_args(Scaling)
        ]
    if name not in FAMILIES:
        return [
            f"base.name: there is no family {name!r}{nearest(name, [*FAMILIES, CUSTOM])}; allowed: {', '.join([*FAMILIES, CUSTOM])}"
        ]
    family = FAMILIES[name]
    problems = [problem for option, value in options.items() if (problem := _option_problem(family, option, value))]
    if image_size < family.min_size:
        problems.append(
            f"base.image_size: {name} takes images of at least {family.min_size} px; given was {image_size}"
        )
    return problems


def _option_problem(family: Family, option: str, value: Any) -> str | None:
    place = f"base.options.{option}"
    if option not in family.options:
        allowed = ", ".join(f"{name} ({kind.__name__})" for name, kind in family.options.items()) or "none"
        return (
            f"{place}: unknown option of {family.name}{nearest(str(option), list(family.options))}; allowed: {allowed}"
        )
    kind = family.options[option]
    if kind is bool:
        return None if isinstance(value, bool) else f"{place}: {family.name} takes true or false; given was {value!r}"
    allowed_kinds = (int,) if kind is int else (int, float)
    # Above 8 no family was ever built; a slip of the comma would ask for all memory.
    if isinstance(value, bool) or not isinstance(value, allowed_kinds) or not 0 < value <= 8:
        return f"{place}: {family.name} takes {'a whole' if kind is int else 'a'} number above 0, at most 8; given was {value!r}"
    return None


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """`["alpha=0.35"]` -> {"alpha": 0.35}: constructor options as a command line has them; Refused for other texts."""
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise Refused(f"--options: expected KEY=VALUE, for instance alpha=0.35; given was {text!r}.")
        try:
            options[name] = json.loads(value)  # numbers, true and false
        except ValueError:
            options[name] = value
    return options
