"""The speed of a model: what is timed, and what is told of it."""

import time

import numpy as np
import pytest

from frostline.evidence.speed import ALONE, BATCH, BATCHES, LEAST, WARM_UP, describe_speed, measure_speed, time_answers


def test_single_images_and_batches_are_timed_and_the_file_is_weighed(tmp_path):
    (tmp_path / "model.keras").write_bytes(bytes(2_500_000))
    sizes: list[int] = []

    def answer(images):
        assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 3)
        # The first, which compiles, is not timed; a batch takes twice as long as an image.
        time.sleep(0.2 if len(sizes) in (0, WARM_UP + ALONE) else 0.002 * (1 + (len(images) > 1)))
        sizes.append(len(images))

    speed = measure_speed(answer, np.zeros((7, 8, 8, 3), np.uint8), tmp_path / "model.keras")
    assert sizes == [1] * (WARM_UP + ALONE) + [BATCH] * (WARM_UP + BATCHES)
    assert 2 <= speed.p50_ms < 100 and speed.p50_ms <= speed.p95_ms < 200
    assert BATCH / 0.2 < speed.images_per_s <= BATCH / 0.004 * 1.01
    assert speed.bytes == 2_500_000 and speed.cores >= 1
    text = describe_speed(speed)
    assert f"{speed.p50_ms:.1f} ms" in text and "2.5 MB" in text
    assert speed.images_per_s == pytest.approx(float(text.split(" images/s")[0].split()[-1]), abs=0.5)


def test_of_a_slow_model_no_more_is_asked_than_is_enough():
    asked: list[int] = []

    def answer(images):
        asked.append(len(images))
        time.sleep(0.01)

    images = np.zeros((7, 8, 8, 3), np.uint8)
    assert len(time_answers(answer, images, 2, 100, enough_s=0.1)) < 11
    assert len(time_answers(answer, images, 2, 100, enough_s=0.0)) == LEAST
    assert len(time_answers(answer, images, 2, 12)) == 12
