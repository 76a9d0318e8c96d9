"""The functional optimizers against Keras's own."""

import keras
import numpy as np
import pytest

from frostline.training.optimizers import NUM_SLOTS, apply_gradients

KERAS = {
    "adam": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", KERAS)
def test_steps_equal_those_of_keras(name: str) -> None:
    rng = np.random.default_rng(0)
    theirs, ours = keras.Variable(value := rng.normal(size=(3, 2)).astype(np.float32)), [value]
    optimizer = KERAS[name]()
    slots = [[np.zeros_like(value)] * NUM_SLOTS[name]]
    for step in range(1, 6):
        gradient = rng.normal(size=(3, 2)).astype(np.float32)
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [theirs])
        ours, slots = apply_gradients(name, ours, [gradient], slots, [np.float32(0.01)], np.float32(step), 0.1)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours[0]), keras.ops.convert_to_numpy(theirs), rtol=1e-4)


def test_weight_decay_spares_vectors() -> None:
    vector, zero = np.ones(3, np.float32), np.zeros(3, np.float32)
    params, _ = apply_gradients("sgd", [vector], [zero], [[zero]], [np.float32(0.1)], np.float32(1), 0.5)
    assert keras.ops.convert_to_numpy(params[0]).tolist() == [1.0, 1.0, 1.0]
