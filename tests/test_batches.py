"""A batch is no larger than what there is to put into it."""

import pytest

from frostline.files import mark_complete
from frostline.params import load_params
from frostline.training.bench import Bench


@pytest.mark.parametrize(("asked", "used"), [(100_000, 23), (24, 23), (16, 16)])
def test_a_batch_is_no_larger_than_the_images(root, tmp_path, monkeypatch, asked, used):
    monkeypatch.chdir(tmp_path)
    params = load_params(root / "presets" / "default.yaml")
    params = params.model_copy(update={"tune": params.tune.model_copy(update={"batch_size": asked})})
    mark_complete(tmp_path / params.paths.prepared, num_images={"train": 18, "val": 5, "test": 4})
    assert Bench(params, 3, {}).batch_size == used
