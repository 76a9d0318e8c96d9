"""What workers read: put into `scale.store` as a whole, found by its study, and taken as far as a trial needs it."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frostline.arrays import GROUPS, USE, save_array, save_split
from frostline.errors import Refused
from frostline.files import load_json, mark_complete, save_json, sha256_of
from frostline.params import Params, parse_params
from frostline.search import supply as supplies
from frostline.search.depot import Depot, open_depot
from frostline.search.places import digest_of
from frostline.search.study import JOB
from frostline.search.supply import PLACES, find_data, find_supply, put_supply

MAPS = 2 * 6 * 8 * 8 * 4 * 2  # bytes of those of a depth: two views of six images, float16


@pytest.fixture
def params(tmp_path: Path, params_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Params:
    """A project with data, on a machine with a database, a store and a cache."""
    monkeypatch.setenv("FROSTLINE_STUDY_URL", "postgresql://user:some-password@localhost/frostline")
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "project").mkdir()
    (tmp_path / "shared").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    params_document["scale"]["store"] = str(tmp_path / "shared")
    params_document["tune"]["space"]["unfrozen_blocks"] = "auto"  # what it is, the features say
    params = parse_params(params_document)
    make_data(params)
    return params


def make_data(params: Params, seed: int = 0) -> None:
    places = {name: Path(getattr(params.paths, name)) for name in PLACES}
    features, generator = places["features"], np.random.default_rng(seed)
    for view in ("view-000", "view-001"):
        for folder in ("pooled", "depth-01", "depth-02", "digests/depth-01"):
            shape = (6, 8, 8, 4) if "depth" in folder else (6, 10)
            save_array(features / folder / f"{view}.npy", [generator.normal(size=shape)], shape, np.float16)
    for name in (GROUPS, USE):
        save_array(features / name, [np.zeros(6)], (6,), np.int64)
    save_json(features / "features.json", {"cuts": [], "seed": seed})
    mark_complete(features, searched=[0, 2], stored=[1, 2])
    for split, number in {"train": 4, "val": 2, "test": 2}.items():
        images = np.zeros((number, 32, 32, 3), np.uint8)
        save_split(places["prepared"] / split, [images], 32, np.zeros(number, np.int32), [*map(str, range(number))])
    save_json(places["prepared"] / "classes.json", ["a", "b"])
    places["base"].mkdir(parents=True)
    (places["base"] / "base.weights.h5").write_bytes(b"weights")
    save_json(places["base"] / "card.json", {"file": "base.weights.h5"})
    for name in ("prepared", "views", "base"):
        mark_complete(places[name])


def put(params: Params) -> tuple[str, Mapping[str, Any]]:
    """The digest and the attributes of a study whose supply lies in the store."""
    searched = params.with_depths(0, 2)
    return digest_of(searched), {JOB: {"manifest": put_supply(params, open_depot(params))}}


@pytest.fixture
def list_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which studies the database has, the last made first."""
    return lambda *studies: monkeypatch.setattr(supplies, "list_studies", lambda _: list(studies))


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_machine_without_data_gets_what_a_trial_needs_and_no_more(
    params: Params, list_as: Callable[..., None], tmp_path: Path
) -> None:
    list_as(put(params))
    with find_data(params) as (found, take):
        assert found is params and take is None
    data = Path("data").rename(tmp_path / "data")
    with find_supply(params) as supply:
        shared = {
            *("features/complete.json", "features/features.json", f"features/{GROUPS}", f"features/{USE}"),
            *("features/pooled/view-000.npy", "features/pooled/view-001.npy"),
            *("prepared/complete.json", "prepared/classes.json", "views/complete.json"),
            *(f"prepared/{split}/{name}.npy" for split in ("train", "val") for name in ("labels", "groups")),
            *("base/complete.json", "base/card.json", "base/base.weights.h5"),
        }
        beside = {"lock", "manifest.json"}
        assert files_in(supply.folder) == shared | beside
        for depth in ("depth-01", "depth-02"):
            supply.take_maps(depth)
            maps = {f"features/{depth}/view-000.npy", f"features/{depth}/view-001.npy"}
            assert files_in(supply.folder) == shared | maps | beside
            for name in shared | maps:
                assert (supply.folder / name).read_bytes() == (data / name).read_bytes()
        with find_data(params) as (own, take):
            assert take is not None and not (Path(own.paths.features) / "depth-01").exists()
            take("depth-01")
            assert (Path(own.paths.features) / "depth-01" / "view-001.npy").is_file()
        own = supply.params(params)
        assert digest_of(own.with_depths(0, 2)) and load_json(Path(own.paths.prepared) / "classes.json") == ["a", "b"]
    assert list((tmp_path / "cache" / "views").iterdir()) == []
    assert not Path("data").exists()


def test_the_maps_of_one_depth_make_room_for_those_of_the_next(
    params: Params, list_as: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    list_as(put(params))
    data = Path("data").rename(tmp_path / "data")
    small = params.model_copy(update={"scale": params.scale.model_copy(update={"cache_gb": 1.9 * MAPS / 1e9})})
    with find_supply(small) as supply:
        for depth in ("depth-01", "depth-02", "depth-01"):
            supply.take_maps(depth)
            for view in ("view-000", "view-001"):
                name = f"features/{depth}/{view}.npy"
                assert sha256_of(supply.folder / name) == sha256_of(data / name)
    assert capsys.readouterr().out.count("MB taken from") == 5  # records, what is shared, and maps three times


def test_the_study_is_found_that_these_params_mean(
    params: Params, list_as: Callable[..., None], tmp_path: Path
) -> None:
    mine = put(params)
    Path("data").rename(tmp_path / "data")
    make_data(params, seed=1)  # other images, in the same project's name
    others = put(params)
    Path("data").rename(tmp_path / "other data")
    assert mine[0] != others[0]
    for last, before in ((mine, others), (others, mine)):  # both are of these params
        others_still = (
            {},
            {JOB: {"manifest": None}},
            {JOB: {"manifest": ["0" * 64, 9]}},
        )  # of the last, nothing is left
        list_as(*(("0123456789abcdef", facts) for facts in others_still), last, before)
        with find_supply(params) as supply:
            assert digest_of(supply.params(params).with_depths(0, 2)) == last[0]
    changed = params.model_copy(update={"seed": 8})
    with pytest.raises(Refused, match="No study of frostline has its features in"), find_supply(changed):
        pass


def test_a_manifest_is_put_when_all_is_there_and_nothing_is_put_twice(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: list[str] = []
    put_one = Depot.put

    def fail_late(depot: Depot, path: Path, digest: str) -> bool:
        if len(names) == 12:
            raise Refused("the store was away for too long")
        names.append(path.name)
        return put_one(depot, path, digest)

    monkeypatch.setattr(Depot, "put", fail_late)
    with pytest.raises(Refused, match="away"):
        put(params)
    assert len(names) == 12 and "manifest.json" not in names
    names.clear()
    monkeypatch.setattr(Depot, "put", put_one)
    put(params)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*")}
    put(params)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*")} == before
    assert capsys.readouterr().out.endswith("put there now: 0\n")


def test_nothing_is_put_where_nobody_could_join(
    params: Params, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert put_supply(params, None) is None
    monkeypatch.delenv("FROSTLINE_STUDY_URL")
    assert put_supply(params, open_depot(params)) is None
    assert files_in(tmp_path / "shared") == set()
    local = params.model_copy(update={"scale": params.scale.model_copy(update={"store": None})})
    assert open_depot(local) is None


def test_without_a_store_nothing_of_it_is_loaded() -> None:
    probe = "import sys, frostline.search.worker as worker; assert worker and 'fsspec' not in sys.modules"
    environment = {**os.environ, "KERAS_BACKEND": "jax"}  # which is up in a fifth of the time
    subprocess.run([sys.executable, "-c", probe], env=environment, check=True, timeout=120)
