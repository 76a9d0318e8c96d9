"""How deep a search goes where params.yaml says `all` or `auto`."""

from dataclasses import replace
from typing import Any

import pytest

from frostline.bases.families import FAMILIES, cuts_of
from frostline.errors import Refused
from frostline.files import mark_complete
from frostline.params import Params, parse_params
from frostline.planning.checks import check_depth, describe_depths
from frostline.planning.depths import Images, Network, Reach, find_reach
from frostline.planning.notes import describe_reach
from frostline.search.space import with_found_depths

# With 4 views of 100 + 50 images and 0.14 GFLOP/s, a depth of n blocks takes n minutes.
TINY = Network("tiny", [100, 200, 400, 800, 1600], [6_000_000 * depth for depth in range(5)], 50)
IMAGES = Images(train=100, val=50, test=60, trained=150, views=4, mirrored=True)


@pytest.fixture
def params(params_document) -> Params:
    return parse_params(params_document)


def ask(params: Params, blocks: Any, **changes: Any) -> Params:
    document = params.model_dump(mode="json", by_alias=True)
    document["tune"]["space"]["unfrozen_blocks"] = blocks
    for name, value in changes.items():
        section, key = name.split("__")
        document[section][key] = value
    return parse_params(document)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_is_every_block_of_every_family(params, name):
    base = params.base.model_copy(update={"name": name, "options": {}, "weights": "random", "image_size": 600})
    blocks = len(cuts_of(name, {})) - 1
    network = Network(name, [1] * (blocks + 1), [0] * (blocks + 1), 1)
    for word in ("all", "auto"):
        asked = ask(params, [0, word]).model_copy(update={"base": base})
        assert check_depth(base, asked.tune) == []
        reach = find_reach(asked, network, IMAGES)
        assert (reach.first, reach.last, reach.limit, reach.deeper) == (0, blocks, "cuts", None)
        (line,) = describe_depths(base, asked.tune)
        assert f"0 to {blocks}" in line and ("at most" in line) == (word == "auto")
    too_deep = ask(params, [blocks + 1, "all"])
    assert len(check_depth(base, too_deep.tune)) == 1
    with pytest.raises(Refused, match=f"{blocks} blocks below its output; given was {blocks + 1}"):
        find_reach(too_deep, network, IMAGES)


def test_it_ends_where_a_trial_would_take_too_long(params):
    reach = find_reach(ask(params, {"minutes": 2, "gflops": 0.14}), TINY, IMAGES)
    assert (reach.first, reach.last, reach.limit) == (0, 2, "minutes")
    assert (reach.minutes, reach.deeper) == pytest.approx((2, 3))
    (line,) = describe_reach(reach)
    assert "depths 0 to 2" in line and "one block deeper would take 3 minutes" in line
    assert (
        find_reach(ask(params, [1, {"minutes": 0.5, "gflops": 0.14}]), TINY, IMAGES).last == 1
    )  # at least where it begins
    assert find_reach(ask(params, {"minutes": 0.5, "gflops": 0.14}), TINY, IMAGES).last == 0


def test_it_ends_where_the_features_would_not_fit(params):
    # 600 rows of views and plain images and 150 mirrored ones; the shallowest map is kept beside the deepest.
    size, views = 2 * 750 * (50 + 200 + 800) + 2 * 60 * 50, 3 * 150 * params.base.image_size**2 * 3
    for spare, deepest in ((0, 3), (-2, 2)):
        reach = find_reach(ask(params, "auto", storage__budget_gb=(views + size + spare) / 1e9), TINY, IMAGES)
        assert (reach.last, reach.limit) == (deepest, "bytes")
    assert "storage.budget_gb" in describe_reach(reach)[0]


def test_how_many_trials_and_epochs_there_are_does_not_change_the_depth_and_with_it_the_study(params):
    blocks = {"minutes": 2, "gflops": 0.14}
    more = ask(params, blocks, tune__num_trials=500, tune__epochs=50, tune__pruning="none", refit__folds=10)
    assert find_reach(more, TINY, IMAGES) == find_reach(ask(params, blocks), TINY, IMAGES)
    assert find_reach(more, TINY, replace(IMAGES, views=8)).last == 1


def test_numbers_are_taken_as_they_are(params):
    reach = find_reach(ask(params, [1, 3]), TINY, IMAGES)
    assert (reach.first, reach.last, reach.limit) == (1, 3, "given") and describe_reach(reach) == []
    assert describe_depths(params.base, ask(params, [1, 3]).tune) == []
    with pytest.raises(Refused, match="given was 5"):
        find_reach(ask(params, 5), TINY, IMAGES)


def test_what_only_the_graph_of_a_model_of_ones_own_can_tell_is_said(params):
    base = params.base.model_copy(update={"name": "custom", "weights": "mine.keras", "options": {}})
    (line,) = describe_depths(base, ask(params, "all").tune)
    assert "mine.keras" in line and "frostline plan" in line


def test_a_study_of_words_is_that_of_the_numbers_that_extract_found(params, tmp_path):
    paths = params.paths.model_copy(update={"features": str(tmp_path)})
    asked = ask(params, "auto").model_copy(update={"paths": paths})
    mark_complete(tmp_path, depths=[1, 2], searched=[0, 2])
    found = with_found_depths(asked)
    assert found.tune.space.depths == (0, 2)
    assert found.tune == ask(params, [0, 2]).tune
    plain = ask(params, [0, 1])
    assert with_found_depths(plain) is plain


def test_reach_of_a_base_without_a_cut_is_the_head_alone():
    assert describe_reach(Reach(0, 0, "cuts", 0.0, None)) == [
        "depths 0 to 0 are searched, all blocks of the base; a trial at depth 0 takes nominally 0 minutes"
    ]
