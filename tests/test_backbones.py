"""Bases: built, filled, cut, joined, for every family of `keras.applications`."""

import os

import h5py
import keras
import numpy as np
import pytest

from frostline import params
from frostline.bases.base import build_base, load_base
from frostline.bases.cost import flops_of
from frostline.bases.custom import choose_cuts
from frostline.bases.cuts import build_prefix, build_suffix, choose_pooled, copy_prefix, copy_suffix, scale_pixels
from frostline.bases.families import FAMILIES, cuts_of
from frostline.bases.files import fetch_weights
from frostline.bases.folding import find_pairs, fold_graph
from frostline.bases.graph import find_crossings, name_operations
from frostline.bases.whole import build_whole
from frostline.errors import Refused
from frostline.files import load_json, require_complete, save_json, sha256_of

SMALL = {"alpha": 0.35}
# The smallest of each line; FROSTLINE_ALL_FAMILIES=1 compares all forty, in half an hour and 8 GB.
NAMES = [
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "InceptionV3",
    "Xception",
    "VGG16",
    "ResNet50",
    "ResNet50V2",
    "DenseNet121",
    "EfficientNetB0",
    "EfficientNetLite0",
    "EfficientNetV2B0",
    "ConvNeXtTiny",
]
if os.environ.get("FROSTLINE_ALL_FAMILIES"):
    NAMES = [name for name, family in FAMILIES.items() if not family.head_only_reason]


def draw_images(size, count=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor)


def scale(images, scaling):
    inputs = keras.Input(images.shape[1:], dtype="uint8")
    return keras.Model(inputs, scale_pixels(inputs, scaling))(images)


def stir_statistics(model):
    """Moves each BatchNormalization away from its start values, with which it does next to nothing."""
    rng = np.random.default_rng(2)
    for weight in (weight for layer in model.layers for weight in layer.weights):
        if weight.name in ("moving_mean", "beta"):
            weight.assign(rng.uniform(-0.3, 0.3, weight.shape))
        elif weight.name in ("moving_variance", "gamma"):
            weight.assign(rng.uniform(0.7, 1.4, weight.shape))


def means_and_maxima(maps):
    return np.concatenate([maps.mean((1, 2)), maps.max((1, 2))], axis=1)


def last_of(suffix, features):
    """The suffix's last output, the base's own."""
    return keras.tree.flatten(suffix(features, training=False))[-1]


def join(base, depth, suffix):
    """uint8 images -> the base's output by copies of the prefix and of the suffix as it is, frozen, as models do it."""
    pixels = keras.Input((base.image_size, base.image_size, 3), dtype="uint8")
    start = copy_prefix(base, depth, pixels)[-1]
    end = start if suffix is None else copy_suffix(base, depth, suffix, start, "tail_0")[-1]
    return keras.Model(pixels, end)


def assert_close(given, wanted, tolerance=1e-4):
    """Equal up to the rounding of a whole network: measured on the array, since single values may cancel."""
    assert np.linalg.norm(given - wanted) <= tolerance * np.linalg.norm(wanted)


@pytest.fixture(scope="module")
def base():
    return build_base("MobileNetV2", 32, options=SMALL, seed=1)


@pytest.fixture(scope="module")
def network():
    """The network that weights files are saved from; its BatchNorm is not at its start values."""
    model = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35)
    rng = np.random.default_rng(3)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def section(tmp_path, **values):
    return params.Base(**({"name": "MobileNetV2", "weights": "random", "image_size": 32, "options": SMALL} | values))


# ---------------------------------------------------------------- every family


@pytest.mark.parametrize("name", NAMES)
def test_suffix_of_prefix_is_the_base(name):
    keras.backend.clear_session()
    family = FAMILIES[name]
    size = family.min_size
    options = SMALL if "alpha" in family.options else {}
    base = build_base(name, size, options=options)
    stir_statistics(base.model)
    deepest = len(base.cuts) - 1
    assert tuple(cut.name for cut in reversed(base.cuts)) == cuts_of(name, options)
    images = draw_images(size)
    prefix = build_prefix(base, [0, 1, deepest])
    whole, *features, pooled = map(numbers, prefix(images))
    np.testing.assert_allclose(pooled[:, -2 * whole.shape[-1] :], means_and_maxima(whole), rtol=1e-4, atol=1e-5)
    assert np.ptp(whole) > 0
    assert_close(whole, numbers(base.model(scale(images, base.scaling), training=False)))
    for depth, given in zip([1, deepest], features, strict=True):
        assert given.shape[1:] == base.cuts[depth].shape
        assert_close(numbers(last_of(build_suffix(base, depth), given)), whole)


@pytest.mark.parametrize(("name", "size"), [("InceptionResNetV2", 75), ("NASNetMobile", 32)])
def test_cuts_of_deeper_families_are_crossings_of_their_graph(name, size):
    keras.backend.clear_session()
    base = build_base(name, size)
    assert tuple(cut.name for cut in reversed(base.cuts)) == cuts_of(name, {})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MobileNetV2", {"alpha": 0.1}),
        ("MobileNetV3Small", {"minimalistic": True, "alpha": 0.75}),
        ("MobileNetV3Large", {"minimalistic": True}),
        ("MobileNetV3Large", {"alpha": 0.35}),
    ],
)
def test_cuts_follow_the_options(name, options):
    # Where a narrow network rounds two widths alike, a block gains a residual sum.
    base = build_base(name, 32, options=options)
    assert tuple(cut.name for cut in reversed(base.cuts)) == cuts_of(name, options)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("MobileNetV2", "mobilenet_v2"),
        ("ResNet50", "resnet"),
        ("DenseNet121", "densenet"),
        ("ConvNeXtTiny", "convnext"),
    ],
)
def test_scaling_is_that_of_keras(name, module):
    pixels = draw_images(4)
    wanted = getattr(keras.applications, module).preprocess_input(pixels.astype("float32"))
    inputs = keras.Input((4, 4, 3), dtype="uint8")
    scaled = keras.Model(inputs, scale_pixels(inputs, FAMILIES[name].scaling))(pixels)
    np.testing.assert_allclose(numbers(scaled), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "options", "giga"),
    # Multiply-adds x 2. Sandler et al. 2018 (300 M) without the top's 1.3 M; Szegedy et al. 2016 as counted by
    # torchvision (5.71 G); He et al. 2016 as counted by Bianco et al. 2018 (3.87 G).
    [
        ("MobileNetV2", 224, {}, 0.598),
        ("InceptionV3", 299, {}, 11.42),
        ("ResNet50", 224, {}, 7.73),
    ],
)
def test_flops_are_the_published_ones(name, size, options, giga):
    cost = flops_of(build_base(name, size, options=options))
    assert cost["total"] == pytest.approx(giga * 1e9, rel=0.03)
    assert cost["prefix"] == sorted(cost["prefix"], reverse=True)
    assert all(below + above == cost["total"] for below, above in zip(cost["prefix"], cost["suffix"], strict=True))
    assert cost["parameters_above"][0] == 0 < cost["parameters_above"][1]


# ---------------------------------------------------------------- folding


@pytest.mark.parametrize(
    "convolution",
    [
        keras.layers.Conv2D(4, 3, strides=2, use_bias=False),
        keras.layers.Conv2D(6, 3, groups=3, bias_initializer="normal"),
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, bias_initializer="normal"),
        keras.layers.SeparableConv2D(4, 3, padding="same", use_bias=False),
    ],
    ids=["plain", "grouped", "depthwise", "separable"],
)
@pytest.mark.parametrize("affine", [True, False])
def test_a_convolution_takes_the_normalization_behind_it(convolution, affine):
    inputs = keras.Input((8, 8, 3))
    first = type(convolution).from_config(convolution.get_config())
    norm = keras.layers.BatchNormalization(scale=affine, center=affine)
    model = keras.Model(inputs, keras.layers.ReLU()(norm(first(inputs))))
    stir_statistics(model)
    start = keras.Input((8, 8, 3))
    folded = keras.Model(start, fold_graph(model.inputs[0], model.outputs, start))
    assert [type(layer) for layer in folded.layers[1:]] == [type(first), keras.layers.ReLU]
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    given = folded(images)
    assert_close(numbers(given[0] if isinstance(given, list) else given), numbers(model(images)), 1e-6)


def test_a_convolution_that_something_else_reads_keeps_its_normalization():
    x = inputs = keras.Input((8, 8, 3))
    convolve = [keras.layers.Conv2D(3, 1, name=f"conv{index}") for index in range(5)]
    normalize = [keras.layers.BatchNormalization(name=f"norm{index}") for index in range(5)]
    x = cut = convolve[0](x)
    x = normalize[0](x)  # behind a cut
    y = convolve[1](x)
    x = normalize[1](y) + y  # read twice
    x = normalize[2](convolve[2](convolve[2](x)))  # called twice
    x = normalize[3](keras.layers.ReLU()(convolve[3](x)))  # not right behind it
    x = normalize[4](convolve[4](x))
    pairs = find_pairs(inputs, [cut, x])
    assert pairs == {id(convolve[4]): normalize[4]}
    model, start = keras.Model(inputs, [cut, x]), keras.Input((8, 8, 3))
    folded = keras.Model(start, fold_graph(inputs, [cut, x], start))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    for given, wanted in zip(folded(images), model(images), strict=True):
        assert_close(numbers(given), numbers(wanted), 1e-5)


# ---------------------------------------------------------------- one base


def test_same_seed_same_weights_and_another_seed_others():
    first, again, other = (
        build_base("MobileNetV2", 32, options=SMALL, seed=seed).model.get_weights() for seed in (5, 5, 6)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_cut_names_do_not_depend_on_what_the_process_built_before():
    first, second = (build_base("MobileNetV3Small", 32, options=SMALL) for _ in range(2))
    assert [cut.name for cut in first.cuts] == [cut.name for cut in second.cuts]
    assert [cut.index for cut in first.cuts] == [cut.index for cut in second.cuts]
    assert second.cuts[-1].name == "activation" != second.model.operations[second.cuts[-1].index].name


def test_every_cut_is_pooled_from_the_input_to_the_output(base):
    pixels = draw_images(32)
    depths = range(len(base.cuts))
    *maps, pooled = map(numbers, build_prefix(base, depths)(pixels))
    wanted = np.concatenate([means_and_maxima(each) for each in maps[::-1]], axis=1)
    np.testing.assert_allclose(pooled, wanted, rtol=1e-4, atol=1e-5)


def test_of_a_deep_network_an_even_part_of_the_cuts_is_pooled(base, monkeypatch):
    monkeypatch.setattr("frostline.bases.cuts.MAX_POOLED", 3)
    deepest = len(base.cuts) - 1
    assert [cut.depth for cut in choose_pooled(base)] == [deepest, round(deepest / 2), 0]


def test_a_suffix_gives_the_pooled_cuts_above_it(base):
    features, last, above, _ = build_prefix(base, [3, 0, 1])(draw_images(32))
    outputs = build_suffix(base, 3)(features, training=False)
    assert len(outputs) == 3
    assert_close(numbers(outputs[1]), numbers(above))
    assert_close(numbers(outputs[2]), numbers(last))


def test_training_a_suffix_changes_neither_the_base_nor_another_suffix(base):
    before = [value.copy() for value in base.model.get_weights()]
    one, other = build_suffix(base, 2), build_suffix(base, 2)
    assert len(one.trainable_variables) > 0
    for variable in one.weights:
        variable.assign(variable + 1)
    assert all(np.array_equal(a, b) for a, b in zip(before, base.model.get_weights(), strict=True))
    features = build_prefix(base, [2, 0])(draw_images(32))
    assert_close(numbers(last_of(other, features[0])), numbers(features[1]))


def test_there_is_no_suffix_at_depth_0(base):
    assert build_suffix(base, 0) is None


def test_joined_model_is_prefix_and_trained_suffix_before_and_after_saving(base, tmp_path):
    suffix = build_suffix(base, 3)
    rng = np.random.default_rng(4)
    for variable in suffix.trainable_variables:
        variable.assign_add(rng.normal(0, 0.1, variable.shape))
    pixels = draw_images(32)
    wanted = numbers(last_of(suffix, build_prefix(base, [3])(pixels)[0]))
    joined = join(base, 3, suffix)
    assert_close(numbers(joined(pixels)), wanted)
    joined.save(tmp_path / "joined.keras")
    loaded = keras.models.load_model(tmp_path / "joined.keras", safe_mode=True)
    np.testing.assert_array_equal(numbers(loaded(pixels)), numbers(joined(pixels)))


def test_joined_model_keeps_batchnorm_in_inference_mode_however_it_is_called(base):
    joined = join(base, 0, None)
    pixels = draw_images(32)
    np.testing.assert_array_equal(numbers(joined(pixels, training=True)), numbers(joined(pixels, training=False)))


def test_joined_model_shares_nothing_with_the_suffix(base):
    suffix = build_suffix(base, 1)
    joined = join(base, 1, suffix)
    before = numbers(joined(draw_images(32)))
    for variable in suffix.weights:
        variable.assign(variable + 1)
    np.testing.assert_array_equal(numbers(joined(draw_images(32))), before)


def test_flipped_channels_survive_saving_in_safe_mode(tmp_path):
    base = build_base("VGG16", 32, output_layer="block1_pool")
    joined, pixels = join(base, 0, None), draw_images(32)
    joined.save(tmp_path / "vgg.keras")
    loaded = keras.models.load_model(tmp_path / "vgg.keras", safe_mode=True)
    np.testing.assert_array_equal(numbers(loaded(pixels)), numbers(joined(pixels)))


def test_output_layer_cuts_the_base_short():
    base = build_base("MobileNetV2", 32, options=SMALL, output_layer="block_12_add")
    assert base.cuts[0].name == "block_12_add"
    assert tuple(cut.name for cut in reversed(base.cuts)) == cuts_of("MobileNetV2", SMALL)[:-5]


@pytest.mark.parametrize(("layer", "near"), [("block_12_ad", "block_12_add"), ("block_12_expand", "block_1_expand")])
def test_an_output_layer_that_all_paths_do_not_pass_is_refused(layer, near):
    with pytest.raises(Refused, match=f"that all paths pass through. Near: .*{near}"):
        build_base("MobileNetV2", 32, options=SMALL, output_layer=layer)


# ---------------------------------------------------------------- weights


def assert_filled_from(base, network):
    """Every weight of the base is the network's, compared layer by layer."""
    source = {layer.name: layer.get_weights() for layer in network.layers}
    weighted = [layer for layer in base.model.layers if layer.weights]
    assert weighted
    for layer in weighted:
        for value, wanted in zip(layer.get_weights(), source[layer.name], strict=True):
            np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5", "a.keras"])
def test_each_kind_of_file_fills_every_layer(network, tmp_path, name):
    path = tmp_path / name
    network.save_weights(path) if name.endswith(".weights.h5") else network.save(path)
    assert_filled_from(build_base("MobileNetV2", 32, options=SMALL, weights=path), network)


@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5"])
def test_a_file_with_its_top_serves_a_base_without(tmp_path, name):
    whole = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=7)
    whole.save_weights(tmp_path / name) if name.endswith(".weights.h5") else whole.save(tmp_path / name)
    assert_filled_from(build_base("MobileNetV2", 32, options=SMALL, weights=tmp_path / name), whole)


def test_a_truncated_file_serves_what_it_reaches_and_no_more(network, tmp_path):
    path = tmp_path / "short.weights.h5"
    keras.Model(network.input, network.get_layer("block_12_add").output).save_weights(path)
    for layer in ("block_12_add", "block_5_add"):
        assert_filled_from(build_base("MobileNetV2", 32, options=SMALL, output_layer=layer, weights=path), network)
    with pytest.raises(Refused, match=r"does not fill 26 of the 104 layers .*block_13_expand \(absent\)"):
        build_base("MobileNetV2", 32, options=SMALL, weights=path)


def test_a_base_inside_a_saved_classifier_is_found(network, tmp_path):
    outer = keras.Sequential(
        [keras.Input((32, 32, 3)), network, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    )
    outer.save_weights(tmp_path / "outer.weights.h5")
    assert_filled_from(build_base("MobileNetV2", 32, options=SMALL, weights=tmp_path / "outer.weights.h5"), network)


def test_nested_layers_are_filled_too(tmp_path):
    network = keras.applications.ConvNeXtTiny(include_top=False, weights=None, input_shape=(32, 32, 3))
    network.save_weights(tmp_path / "a.weights.h5")
    base = build_base("ConvNeXtTiny", 32, weights=tmp_path / "a.weights.h5", seed=9)
    assert all(np.array_equal(a, b) for a, b in zip(base.model.get_weights(), network.get_weights(), strict=True))


def test_weights_of_another_width_are_refused_with_both_shapes(network, tmp_path):
    network.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(Refused, match=r"Conv1 \(3x3x3x16 instead of 3x3x3x32\)"):
        build_base("MobileNetV2", 32, weights=tmp_path / "a.weights.h5")


def test_weights_that_are_not_finite_are_refused(network, tmp_path):
    path = tmp_path / "a.weights.h5"
    network.save_weights(path)
    with h5py.File(path, "r+") as file:
        file["layers/conv2d/vars/0"][0, 0, 0, 0] = np.nan
    with pytest.raises(Refused, match="not finite, in layer Conv1"):
        build_base("MobileNetV2", 32, options=SMALL, weights=path)


def test_a_file_that_is_no_weights_file_is_refused(tmp_path):
    path = tmp_path / "a.weights.h5"
    path.write_bytes(b"not a weights file")
    with pytest.raises(Refused, match="cannot be read as a weights file"):
        build_base("MobileNetV2", 32, options=SMALL, weights=path)


def test_a_link_out_of_the_file_is_refused(network, tmp_path):
    path = tmp_path / "a.weights.h5"
    network.save_weights(path)
    with h5py.File(path, "r+") as file:
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(Refused, match="link to elsewhere"):
        build_base("MobileNetV2", 32, options=SMALL, weights=path)


def test_efficientnets_released_variance_is_squared(tmp_path):
    network = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    layer = next(layer for layer in network.layers if isinstance(layer, keras.layers.Normalization))
    layer.adapt_mean.assign([0.485, 0.456, 0.406])
    layer.adapt_variance.assign([0.229, 0.224, 0.225])
    network.save_weights(tmp_path / "a.weights.h5")
    base = build_base("EfficientNetB0", 32, weights=tmp_path / "a.weights.h5")
    pixels = draw_images(32)
    index = next(i for i, layer in enumerate(base.model.layers) if isinstance(layer, keras.layers.Normalization))
    normalized = keras.Model(base.model.input, base.model.layers[index].output)(pixels.astype("float32"))
    wanted = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(numbers(normalized), wanted, rtol=1e-4, atol=1e-4)


def test_real_inception_weights_up_to_mixed8_serve_mixed7(shared):
    path = shared / "weights" / "inception_v3" / "inception_v3_mixed8.weights.h5"
    base = build_base("InceptionV3", 75, output_layer="mixed7", weights=path)
    assert [cut.name for cut in base.cuts][:8] == [f"mixed{block}" for block in range(7, -1, -1)]
    keras.backend.clear_session()
    network = keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(75, 75, 3))
    short = keras.Model(network.input, network.get_layer("mixed8").output)
    short.load_weights(path)
    pixels = draw_images(75)
    wanted = keras.Model(network.input, network.get_layer("mixed7").output)(pixels / np.float32(127.5) - 1)
    np.testing.assert_allclose(numbers(build_prefix(base, [0, 1])(pixels)[0]), numbers(wanted), rtol=1e-4, atol=1e-4)
    with pytest.raises(Refused, match="does not fill 36 of the 188 layers"):
        build_base("InceptionV3", 75, weights=path)


# ---------------------------------------------------------------- a model of one's own


@pytest.fixture
def own(network, tmp_path):
    layers = [keras.Input((32, 32, 3)), network, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    keras.Sequential(layers).save(tmp_path / "own.keras")
    return tmp_path / "own.keras"


def test_a_model_of_ones_own_is_cut_where_its_branches_meet(own, network):
    base = build_base("custom", 32, options={"scaling": "tf"}, weights=own)
    assert [cut.name for cut in base.cuts][:3] == ["out_relu", "block_15_add", "block_14_add"]
    pixels = draw_images(32)
    whole, features, _ = map(numbers, build_prefix(base, [0, 2])(pixels))
    np.testing.assert_allclose(whole, numbers(network(pixels / np.float32(127.5) - 1)), rtol=1e-4)
    assert_close(numbers(last_of(build_suffix(base, 2), features)), whole)


@pytest.mark.parametrize("name", ["VGG16", "ResNet50"])
def test_the_graph_alone_finds_the_blocks_of_known_families(name):
    keras.backend.clear_session()
    size = FAMILIES[name].min_size
    network = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(size, size, 3))
    assert choose_cuts(network) == cuts_of(name, {})


def test_a_plain_chain_is_cut_before_it_shrinks():
    x = inputs = keras.Input((32, 32, 3))
    for name, stride in (("a", 1), ("b", 2), ("c", 1), ("d", 2)):
        x = keras.layers.Conv2D(4, 3, padding="same", strides=stride, name=name)(x)
    network = keras.Model(inputs, x)
    assert choose_cuts(network) == ("a", "c", "d")


def test_a_tensor_that_a_shortcut_passes_by_is_no_crossing():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(3, 1, name="inner")(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1, name="last")(x + inputs))
    names = name_operations(model)
    assert [names[id(operation)] for operation in find_crossings(model)] == ["add", "last"]


def test_a_layer_called_twice_is_no_crossing():
    inputs = keras.Input((8, 8, 3))
    twice = keras.layers.Conv2D(3, 1, name="twice")
    model = keras.Model(inputs, keras.layers.ReLU(name="end")(twice(twice(inputs))))
    assert [operation.name for operation in find_crossings(model)] == ["end"]


@pytest.mark.parametrize(
    ("size", "output_layer", "words"),
    [
        (64, None, "given was 64"),
        (32, "dense", "no layer of custom that all paths pass"),
        (32, "block_2_expand", "Near"),
    ],
)
def test_what_a_model_of_ones_own_cannot_do_is_refused(own, size, output_layer, words):
    with pytest.raises(Refused, match=words):
        build_base("custom", size, weights=own, output_layer=output_layer)


def test_a_model_with_code_in_it_is_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs)).save(tmp_path / "code.keras")
    with pytest.raises(Refused, match="safe mode"):
        build_base("custom", 8, weights=tmp_path / "code.keras")


def test_a_torn_model_is_refused(own):
    own.write_bytes(own.read_bytes()[:1000])
    with pytest.raises(Refused, match="cannot be loaded"):
        build_base("custom", 32, weights=own)


# ---------------------------------------------------------------- data/base


def test_a_random_base_is_fetched_as_a_seed_alone(tmp_path):
    folder = tmp_path / "base"
    fetch_weights(section(tmp_path), folder, seed=11)
    require_complete(folder)
    card = load_json(folder / "card.json")
    assert (card["weights"], card["file"], card["seed"]) == ("random", None, 11)
    one, other = (load_base(section(tmp_path), folder).model.get_weights() for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_file_is_copied_with_its_card_and_checked_before_it_is_loaded(network, tmp_path):
    network.save_weights(tmp_path / "mine.weights.h5")
    base, folder = section(tmp_path, weights=str(tmp_path / "mine.weights.h5")), tmp_path / "base"
    fetch_weights(base, folder, seed=0)
    card = load_json(folder / "card.json")
    assert card["sha256"] == sha256_of(tmp_path / "mine.weights.h5")
    assert (card["weights"], card["source"]) == ("file", "mine.weights.h5")
    assert_filled_from(load_base(base, folder), network)
    with (folder / card["file"]).open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    with pytest.raises(Refused, match="sha256 differs"):
        load_base(base, folder)


def test_a_model_of_ones_own_goes_through_fetch(own, tmp_path):
    base = section(tmp_path, name="custom", weights=str(own), options={"scaling": "tf"})
    fetch_weights(base, tmp_path / "base", seed=0)
    assert load_json(tmp_path / "base" / "card.json")["weights"] == "keras"
    assert load_base(base, tmp_path / "base").cuts[0].name == "out_relu"


@pytest.mark.parametrize("weights", ["absent.weights.h5", "notes.txt"])
def test_a_weights_path_that_cannot_be_is_refused(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(Refused, match=r"base\.weights"):
        fetch_weights(section(tmp_path, weights=weights), tmp_path / "base", seed=0)


def test_the_card_beside_a_file_goes_with_it(network, tmp_path):
    path = tmp_path / "mine.weights.h5"
    network.save_weights(path)
    facts = {"name": "MobileNetV2", "options": SMALL, "source": "my roads", "licence": "CC0", "sha256": sha256_of(path)}
    save_json(tmp_path / "card.json", facts)
    fetch_weights(section(tmp_path, weights=str(path)), tmp_path / "base", seed=0)
    card = load_json(tmp_path / "base" / "card.json")
    assert (card["source"], card["licence"]) == ("my roads", "CC0")
    with pytest.raises(Refused, match="Set both alike"):
        fetch_weights(section(tmp_path, weights=str(path), options={"alpha": 0.5}), tmp_path / "other", seed=0)


def test_the_bundled_base_is_fetched_and_loads(tmp_path):
    base = section(tmp_path, weights="bundled")
    fetch_weights(base, tmp_path / "base", seed=0)
    assert load_json(tmp_path / "base" / "card.json")["weights"] == "bundled"
    assert np.ptp(numbers(build_prefix(load_base(base, tmp_path / "base"), [0, 1])(draw_images(32))[0])) > 0
    with pytest.raises(Refused, match="The bundled base is MobileNetV2 with options"):
        fetch_weights(section(tmp_path, weights="bundled", options={}), tmp_path / "other", seed=0)


def test_what_keras_downloads_is_kept_as_a_file(network, tmp_path, monkeypatch):
    given = {}

    def download(**arguments):
        given.update(arguments)
        return network

    monkeypatch.setattr(keras.applications, "MobileNetV2", download)
    base = section(tmp_path, weights="imagenet")
    fetch_weights(base, tmp_path / "base", seed=0)
    monkeypatch.undo()
    assert (given["weights"], given["include_top"], given["alpha"]) == ("imagenet", False, 0.35)
    assert_filled_from(load_base(base, tmp_path / "base"), network)


def test_a_download_that_fails_is_refused(tmp_path, monkeypatch):
    def download(**_):
        raise Exception("URL fetch failure")  # as Keras does

    monkeypatch.setattr(keras.applications, "MobileNetV2", download)
    with pytest.raises(Refused, match="URL fetch failure"):
        fetch_weights(section(tmp_path, weights="imagenet"), tmp_path / "base", seed=0)
    assert not (tmp_path / "base" / "complete.json").exists()


@pytest.mark.parametrize("weights", ["random", "bundled", "imagenet"])
def test_a_custom_base_is_a_file(tmp_path, weights):
    with pytest.raises(Refused, match=r"\.keras file"):
        fetch_weights(section(tmp_path, name="custom", weights=weights, options={}), tmp_path / "base", seed=0)


def test_the_whole_network_labels_and_needs_its_top(network, tmp_path):
    whole = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35)
    whole.save_weights(tmp_path / "whole.weights.h5")
    network.save_weights(tmp_path / "part.weights.h5")
    pixels = draw_images(32)
    built = build_whole("MobileNetV2", 32, options=SMALL, weights=tmp_path / "whole.weights.h5")
    np.testing.assert_allclose(numbers(built(pixels)), numbers(whole(pixels / np.float32(127.5) - 1)), rtol=1e-4)
    with pytest.raises(Refused, match=r"predictions \(absent\)"):
        build_whole("MobileNetV2", 32, options=SMALL, weights=tmp_path / "part.weights.h5")
