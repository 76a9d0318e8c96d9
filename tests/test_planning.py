"""The budget: what is stored, what is computed again, and the plan made of it."""

import pytest

from frostline.errors import Refused
from frostline.params import parse_params
from frostline.planning.estimate import make_plan
from frostline.planning.notes import describe_budget, describe_storage
from frostline.planning.pace import Counts, Facts, Pace, Tail
from frostline.planning.reuse import Fresh
from frostline.planning.storage import find_sources, fit_views, flips, plan_storage

ROWS = {1: 300, 2: 200, 3: 1000}  # bytes of an image's map, by depth
POOLED = 10  # of its pooled cuts
FLOPS = [1000, 900, 600, 500]  # below each cut
N, V, SIDE = 100, 50, 10  # a view of all images takes 30 kB


def storage(kilobytes: float, views: int = 4, mirrored: bool = False):
    return plan_storage(ROWS, POOLED, FLOPS, N, V, views, SIDE, kilobytes / 1e6, mirrored=mirrored)


def test_all_depths_are_stored_where_they_fit():
    plan = storage(10_000)
    assert plan.views == 4 and plan.stored == [1, 2, 3]
    assert plan.sources == {1: 1, 2: 2, 3: 3}
    assert plan.bytes == {depth: size * 450 for depth, size in ROWS.items()} and plan.pooled == 4500
    assert describe_storage(plan, 4, 0.01) == []


def test_the_mirror_image_of_every_plain_image_is_stored_too():
    assert storage(10_000, mirrored=True).total == 1510 * (450 + 150)


def test_what_is_cheap_to_compute_again_for_its_bytes_goes_first():
    # Three views of the images take 90 kB, features 679.5 kB. Depth 2 saves 100 FLOPs for 200 bytes.
    plan = storage(90 + 679)
    assert plan.stored == [1, 3] and plan.sources == {1: 1, 2: 3, 3: 3}
    assert plan.total <= 679e3
    lines = describe_storage(plan, 4, 0.00077)
    assert len(lines) == 1 and "BUDGET: depth 2" in lines[0] and "from depth 3" in lines[0]


def test_views_give_way_last_and_loudly():
    # The shallowest and the deepest alone take 589.5 kB with four views, 327.5 kB with two.
    plan = storage(90 + 330)
    assert plan.stored == [1, 3] and plan.views == 2
    assert plan.total == 1310 * 250
    assert "2 views of each image instead of 4" in describe_storage(plan, 4, 0.00042)[0]


def test_a_budget_below_one_view_is_refused():
    with pytest.raises(Refused, match=r"storage\.budget_gb.*depths \[1, 3\]"):
        storage(90 + 150)


def test_a_search_of_heads_alone_stores_no_map():
    plan = plan_storage({}, POOLED, FLOPS, N, V, 4, SIDE, 1.0)
    assert plan.stored == [] and plan.total == 4500


@pytest.mark.parametrize(
    ("transforms", "views", "mirrored"),
    [
        ([{"HorizontalFlip": {"p": 0.5}}], 4, True),
        ([{"RandomBrightnessContrast": {}}], 4, False),
        ([{"HorizontalFlip": {"p": 0.5}}], 1, False),
    ],
)
def test_a_mirror_image_is_the_same_thing_where_views_flip(params_document, transforms, views, mirrored):
    params_document["augment"] |= {"transforms": transforms, "views": views}
    assert flips(parse_params(params_document).augment) == mirrored


def test_views_of_the_images_take_half_of_the_budget_at_most():
    assert [fit_views(1000, 100, 8, gigabytes) for gigabytes in (1.0, 0.42, 0.2, 0.001)] == [8, 8, 4, 1]
    assert describe_budget(8, 8, 1.0) == [] != describe_budget(7, 8, 1.0)


def test_a_depth_is_computed_from_the_nearest_stored_one_below_it():
    assert find_sources([0, 1, 2, 3, 4], [0, 2, 4]) == {0: 0, 1: 2, 2: 2, 3: 4, 4: 4}


def test_the_plan_adds_up_what_was_measured(params_document):
    params_document["augment"]["views"] = 4
    params_document["tune"]["space"]["unfrozen_blocks"] = [0, 1]
    params_document["tune"] |= {"num_trials": 10, "epochs": 5}
    params_document["base"]["image_size"] = 32
    params_document["refit"] |= {"folds": 5, "candidates": 2, "train_on_val": "drawn"}
    params = parse_params(params_document)
    counts = Counts(files=200, train=100, val=50, test=50, num_classes=2, prepared=True, val_is_drawn=True)
    facts = Facts({1: 300}, 10, [1000, 900], "float32", "a test")
    start = dict.fromkeys(("prepare", "augment", "extract", "tune", "refit"), 2.0)
    tails = {0: Tail(1.0, 0.001, 0.0005), 1: Tail(3.0, 0.01, 0.005)}
    pace = Pace(decode=0.01, augment=0.02, disk=0.0, start=start, build=5.0, prefix=0.01, tails=tails)
    plan = make_plan(params, counts, facts, pace, cores=2, pool_from=10_000_000)
    steps = {step.stage: step for step in plan.steps}
    assert steps["prepare"].bytes == 200 * 3072 and steps["prepare"].seconds == pytest.approx(2 + 200 * 0.01 / 2)
    # Views are drawn of train and val: the final model is trained on both. Their mirror images come with the features.
    assert steps["augment"].bytes == 450 * 3072 and steps["augment"].seconds == pytest.approx(2 + 450 * 0.02)
    assert steps["extract"].bytes == 310 * 750 and steps["extract"].seconds == pytest.approx(2 + 5 + 750 * 0.01)
    epochs = (100 * 0.001 + 50 * 0.0005, 100 * 0.01 + 50 * 0.005)
    # By the median pruner four trials train whole; of six, three stop after one epoch, half of the others after two.
    assert steps["tune"].seconds == pytest.approx(2 + 2 * 3 + 4 + (4 * 5 + 6 * 2.25) * sum(epochs) / 2)
    # Two candidates, five folds each of four fifths of 150 images, and their traces.
    assert steps["refit"].seconds == pytest.approx(2 + 2 * (5 * 0.8 * 1.5 * 5 * sum(epochs) / 2 + 2))
    assert any("half of the trials" in note for note in plan.notes)
    # What is there already is copied, not made.
    fresh = Fresh(images=0.1, views=0.5, features=0.2)
    again = {step.stage: step for step in make_plan(params, counts, facts, pace, 2, 10_000_000, fresh).steps}
    assert (
        again["prepare"].seconds == pytest.approx(2 + 20 * 0.01 / 2) and "20 new of 200 files" in again["prepare"].what
    )
    assert again["augment"].seconds == pytest.approx(2 + 225 * 0.02) and "225 new of 450" in again["augment"].what
    assert again["extract"].seconds == pytest.approx(2 + 5 + 150 * 0.01) and "150 new of 750" in again["extract"].what
    assert [again[stage].bytes for stage in steps] == [step.bytes for step in steps.values()]
