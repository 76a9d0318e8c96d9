"""The suffix with fewer passes: the same function with the same gradients."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from frostline.devices import compile_function, value_and_grad
from frostline.training.fusion import make_forward


def separable() -> keras.Model:
    """MobileNet's kinds: expansion, depthwise with stride, projection, a sum, an activation at the end."""
    x = given = keras.Input((6, 6, 4))
    for stride in (1, 2):
        skip = x
        x = layers.ReLU(6.0)(layers.BatchNormalization(epsilon=1e-3)(layers.Conv2D(12, 1, use_bias=False)(x)))
        x = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(x))
        x = layers.Add()([skip, x]) if stride == 1 else x
    return keras.Model(given, layers.Dropout(0.5)(x))


def mixed() -> keras.Model:
    """Branches with a bias, without gamma, with a multiplier, a norm before the convolution, and a separable one."""
    given = keras.Input((6, 6, 4))
    x = layers.ReLU()(layers.BatchNormalization()(given))
    first = layers.BatchNormalization(scale=False)(layers.Conv2D(5, (1, 3), padding="same", use_bias=True)(x))
    second = layers.BatchNormalization(center=False)(layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x))
    third = layers.BatchNormalization()(layers.SeparableConv2D(5, 3, padding="same", dilation_rate=2)(x))
    fourth = layers.Conv2D(6, 1, activation="gelu")(x)
    x = layers.Concatenate()([first, second, third, fourth])
    return keras.Model(given, layers.Conv2D(4, 1, groups=2)(layers.AveragePooling2D(2)(x)))


@pytest.mark.parametrize("build", [separable, mixed])
def test_the_fused_suffix_has_the_values_and_the_gradients_of_its_layers(build) -> None:
    keras.utils.set_random_seed(1)
    suffix = build()
    suffix.trainable = True
    rng = np.random.default_rng(0)
    for variable in suffix.variables:  # statistics and weights that a folding could get wrong
        if "seed" not in variable.path:
            signs = 1 if "variance" in variable.path else rng.choice([1, -1], variable.shape)
            variable.assign(rng.uniform(0.2, 0.6, variable.shape) * signs)
    trained = [ops.convert_to_tensor(v) for v in suffix.trainable_variables]
    fixed = [ops.convert_to_tensor(v) for v in suffix.non_trainable_variables]
    x = rng.normal(size=(3, 6, 6, 4)).astype("float32")
    weights = rng.normal(size=(3, *suffix.output.shape[1:])).astype("float32")
    fused = make_forward(suffix)

    def layered(values, x):
        return suffix.stateless_call(values, fixed, x, training=False)[0]

    results = []
    for forward in (layered, lambda values, x: fused(values, fixed, x)[0]):
        loss = lambda values, x, run=forward: (ops.sum(run(values, x) * weights), run(values, x))  # noqa: E731
        (_, y), gradients = compile_function(value_and_grad(loss))(trained, ops.convert_to_tensor(x))
        results.append([np.asarray(y), *map(np.asarray, gradients)])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4 * np.abs(theirs).max())
    assert sum(np.abs(gradient).max() > 0 for gradient in results[0][1:]) > len(trained) / 2
