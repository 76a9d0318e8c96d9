"""The linear probe."""

import numpy as np
import pytest

from frostline.training.probe import fit_probe


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_folded_probe_classifies_raw_features(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(200) % num_classes).astype(np.int32)
    features = (rng.normal(size=(200, 10)) * 3 + 5).astype(np.float16)
    features[np.arange(200), labels] += 9
    probe = fit_probe(features[:150], labels[:150], features[150:], labels[150:], num_classes)
    logits = features[150:].astype(np.float32) @ probe.kernel + probe.bias
    accuracy = (logits.argmax(axis=1) == labels[150:]).mean()
    assert probe.kernel.shape == (10, num_classes)
    assert accuracy == pytest.approx(probe.val_accuracy)
    assert accuracy > 0.9
