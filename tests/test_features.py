"""The frozen prefix's pass over images, its precision, and features as rows."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from frostline import devices
from frostline.arrays import digest_rows, load_array
from frostline.bases import extraction
from frostline.bases.base import build_base
from frostline.bases.extraction import Extractor, Source, choose_extractor
from frostline.training.data import FeatureRows


@pytest.fixture(scope="module")
def base():
    return build_base("MobileNetV2", 32, options={"alpha": 0.35}, output_layer="block_4_add", seed=1)


@pytest.fixture(scope="module")
def extractor(base):
    return Extractor(base, [0, 1], 16)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)


def source_of(images):
    return Source(images, digest_rows(images))


def test_small_batches_side_by_side_give_the_features_in_order(extractor, images, monkeypatch):
    together = [np.concatenate(column) for column in zip(*extractor.run(images), strict=True)]
    assert [column.shape[1:] for column in together] == extractor.shapes
    monkeypatch.setattr(extractor, "streams", (2, 1))
    alone = [np.concatenate(column) for column in zip(*extractor.run(images), strict=True)]
    for one, other in zip(together, alone, strict=True):
        assert len(one) == 21 and np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)


ONEDNN = """
import numpy as np
from frostline import devices
from frostline.bases.base import build_base
from frostline.bases.extraction import Extractor

assert devices.uses_onednn()
base = build_base("MobileNetV2", 32, options={"alpha": 0.35}, output_layer="block_4_add", seed=1)
for weight in base.model.weights:
    if weight.name == "beta":  # without a bias nothing is fused
        weight.assign(np.full(weight.shape, 0.1))
images = np.random.default_rng(0).integers(0, 256, (4000, 32, 32, 3), dtype=np.uint8)
extractor = Extractor(base, [0, 1, 2, 3], 8)
first, second = (np.concatenate([batch[0] for batch in extractor.run(images)]) for _ in range(2))
np.testing.assert_array_equal(first, second)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN is TensorFlow's for x86-64")
@pytest.mark.skipif(devices.BACKEND != "tensorflow", reason="oneDNN is TensorFlow's")
def test_batches_never_meet_in_a_kernel_of_onednn():
    """Two at a time crash here, or mix their images: `devices.choose_streams`."""
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", ONEDNN], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_only_the_depths_asked_for_are_stored(extractor, images, tmp_path):
    assert list(extractor.save({"val": source_of(images)}, tmp_path, ["depth-01"])) == [("val", 21)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["depth-01", "digests"]
    stored = load_array(tmp_path / "depth-01" / "val.npy")
    assert stored.dtype.itemsize * stored[0].size == extractor.row_bytes(images)["depth-01"]
    assert len(stored) == 21


def test_a_killed_pass_goes_on_after_its_last_shard(extractor, images, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "SHARD", 8)
    monkeypatch.setattr(extraction, "BLOCK", 8)
    monkeypatch.setattr(extractor, "streams", (1, 8))
    list(extractor.save({"val": source_of(images)}, tmp_path / "whole"))
    starts = []
    run = Extractor.run

    def stop_after_two(self, images, rows):
        starts.append(rows[0])
        for number, batch in enumerate(run(self, images, rows)):
            if number == 2 and len(starts) == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Extractor, "run", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        list(extractor.save({"val": source_of(images)}, tmp_path / "killed"))
    assert not list(tmp_path.glob("killed/*/val.npy"))
    part = tmp_path / "killed/depth-00/.val.npy.part"
    part.write_bytes(part.read_bytes() + b"torn")
    list(extractor.save({"val": source_of(images)}, tmp_path / "killed"))
    assert starts == [0, 16]
    for depth in ("depth-00", "depth-01", "pooled"):
        whole, killed = (np.load(tmp_path / name / depth / "val.npy") for name in ("whole", "killed"))
        np.testing.assert_array_equal(whole, killed)
    names = {path.name for path in (tmp_path / "killed").rglob("*") if path.is_file()}
    assert names == {"val.npy"}


def test_precision_is_as_asked_or_what_pays_here(base, images, monkeypatch):
    def choose(asked):
        extractor, reason = choose_extractor(asked, base, [0, 1], images, 16, 10**9)
        return extractor.precision, reason

    assert choose("float32") == ("float32", "extract.precision says so")
    chosen, reason = choose("float16")
    assert chosen == "float16" and "changes features by" in reason
    monkeypatch.setattr(extraction, "measure_speed_up", lambda _: 0.5)
    chosen, reason = choose("auto")
    assert chosen == "float32" and "0.5 times" in reason
    # Where the device is fast, the prefix itself decides: by its speed, and by what its features lose.
    monkeypatch.setattr(extraction, "measure_speed_up", lambda _: 9.0)
    monkeypatch.setattr(extraction, "MIN_SPEED_UP", 0.0)
    chosen, reason = choose("auto")
    assert chosen == "float16" and "21 images" in reason and "bfloat16" in reason  # bfloat16 loses too much
    monkeypatch.setattr(extraction, "LOW_PRECISIONS", ("bfloat16",))
    assert choose("auto")[0] == "float32"
    monkeypatch.setattr(extraction, "MAX_CHANGE", 0.1)
    assert choose("auto")[0] == "bfloat16"
    few, reason = choose_extractor("auto", base, [0, 1], images, 16, 30)
    assert few.precision == "float32" and reason.startswith("all 30 images take ")


def test_feature_rows_stand_in_for_an_array():
    rng = np.random.default_rng(0)
    pooled, maps = rng.random((10, 5)).astype(np.float16), rng.random((10, 2, 2, 3)).astype(np.float16)
    whole = np.concatenate([maps.reshape(10, 12), pooled[:, 1:4]], axis=1)
    rows = FeatureRows(pooled, slice(1, 4), maps, (2, 2, 3))
    assert (len(rows), rows.shape, rows.dtype, rows.map_size) == (10, (10, 15), np.float16, 12)
    for asked in (slice(2, 7), np.array([5, 1, 5]), [0, 9], 3, np.int64(4)):
        np.testing.assert_array_equal(rows[asked], whole[asked])
    np.testing.assert_array_equal(np.asarray(rows, np.float32), whole.astype(np.float32))
    np.testing.assert_array_equal(FeatureRows(pooled, slice(0, 2))[[3, 1]], pooled[[3, 1], :2])


def test_a_map_that_is_not_stored_is_computed_from_the_one_below():
    rng = np.random.default_rng(0)
    pooled, maps = rng.random((10, 5)).astype(np.float16), rng.random((10, 2, 3)).astype(np.float16)

    def bridge(x):
        return [np.asarray(x).reshape(len(x), 6) * 2]

    doubled = FeatureRows(pooled, slice(0, 0), maps, (6,), bridge, batch_size=4)
    np.testing.assert_array_equal(doubled[:], maps.reshape(10, 6) * 2)
