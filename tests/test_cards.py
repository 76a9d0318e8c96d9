"""The model card says what a user must know, and nothing that the records do not."""

from dataclasses import replace

import numpy as np
import pytest
from samples import make_refit, make_search, make_trial

from frostline.evidence.card import Records, make_model_card
from frostline.evidence.conformal import keep_promises
from frostline.evidence.evaluation import make_evaluation
from frostline.evidence.predictions import Predictions
from frostline.evidence.speed import Speed
from frostline.evidence.strangers import measure_strangers
from frostline.evidence.suspicion import Suspicion
from frostline.params import parse_params


def make_records(class_names=("cat", "dog", "a|b"), num_images=240):
    rng = np.random.default_rng(0)
    labels = np.arange(num_images) % len(class_names)
    right = rng.random(num_images) < np.where(labels == 1, 0.6, 0.95)
    chosen = np.where(right, labels, (labels + 1) % len(class_names))
    probabilities = np.full((num_images, len(class_names)), 0.1 / (len(class_names) - 1), np.float32)
    probabilities[np.arange(num_images), chosen] = 0.9
    answers = Predictions(tuple(map(str, range(num_images))), labels, probabilities, class_names, "test")
    options = {"resamples": 100, "confidence": 0.95, "seed": 0}
    return Records(
        class_names=class_names,
        prepared={
            "num_images": {"train": 500, "val": 100, "test": num_images},
            "left_out": {"unreadable": 2, "duplicate": 0},
            "image_size": 96,
            "resize": "squash",
            "content_sha256": "d" * 64,
        },
        base={
            "name": "MobileNetV2",
            "weights": "bundled",
            "source": "trained on generated images",
            "licence": "Apache-2.0",
            "options": {"alpha": 0.35},
            "sha256": "b" * 64,
        },
        search=make_search(make_trial(), make_trial(1, "PRUNED", unfrozen_blocks=4)),
        study={"cuts": [{"depth": 2, "name": "block_15_add"}]},
        refit=make_refit(1, unfrozen_blocks=2, dropout=0.25),
        evaluation=make_evaluation(answers, answers, None, search_score=0.9, temperature=1.2, **options),
        suspicion=Suspicion(840, 21, 6, 0.525),
        promises=keep_promises({0.9: 0.3, 0.95: 0.0}, answers, 0.95),
        strangers=measure_strangers(
            replace(answers, familiarity=np.linspace(0.004, 1, num_images)), {"patterns": np.linspace(0, 0.1, 20)}
        ),
        speed=Speed(p50_ms=9.04, p95_ms=12.06, images_per_s=251.3, bytes=12_345_678, cores=2),
    )


@pytest.fixture
def params(params_document):
    return parse_params(params_document)


def test_the_card_says_how_well_strangers_are_told(params):
    records = make_records()
    assert records.strangers is not None and records.strangers.auroc["patterns"] > 0.9
    card = make_model_card(records, params)
    assert "On the test split 5.0% [2.9%, 8.5%] are below 0.05" in card
    assert f"(AUROC): patterns {records.strangers.auroc['patterns']:.3f}" in card
    plain = make_model_card(replace(records, strangers=None), params)
    assert "does not tell how familiar an image is" in plain and "and `familiarity`" not in plain


def test_the_card_names_data_base_search_results_and_use(params):
    card = make_model_card(make_records(), params)
    for part in (
        "# frostline",
        "500 train, 100 val, 240 test",
        "2 unreadable",
        "d" * 64,
        "b" * 64,
        "f" * 64,
        "Licence of the weights: Apache-2.0",
        "MobileNetV2 (alpha=0.35)",
        "2 trials over depths 0 to 4: 1 finished, 1 pruned, 0 failed",
        "everything up to `block_15_add` frozen",
        "95 % interval",
        "21 of 840 labels look wrong (2.5%), 6 of them in the test split",
        "| 0.95 | 1.000 [0.984, 1.000] | 3.00 | 0.0% | cat: 1.000",
        "quantiles of 600 images",
        'load_model("models:/frostline@champion")',
        "frostline predict",
    ):
        assert part in card, part


def test_the_headline_is_the_test_accuracy_never_the_validation_score(params):
    records = make_records()
    first = make_model_card(records, params).split("## Results")[0]
    assert f"{records.evaluation.score('accuracy').value:.1%}" in first
    assert "90.0%" not in first


def test_the_weakest_class_comes_first_and_its_name_keeps_the_table_whole(params):
    weak = make_model_card(make_records(), params).split("## Known weaknesses")[1]
    rows = [line for line in weak.splitlines() if line.startswith("| ")][1:]
    assert rows[0].startswith("| dog |")
    assert any("a\\|b" in row for row in rows)
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


def test_classes_with_few_or_no_test_images_are_named(params):
    records = make_records(num_images=60)
    assert "Hardly tested, with fewer than 30 images: cat, dog, a|b" in make_model_card(records, params)
    classes = records.evaluation.per_class
    classes = {**classes, "unicorn": {**classes["cat"], "support": 0}}
    untested = replace(records, evaluation=replace(records.evaluation, per_class=classes))
    assert "**Not tested at all**: unicorn" in make_model_card(untested, params)


def test_what_people_changed_is_told_and_that_it_favours_the_model(params):
    records = make_records()
    assert "decisions.csv" not in make_model_card(records, params)
    changed = replace(records, prepared={**records.prepared, "relabelled": {"train": 3, "test": 1}})
    card = make_model_card(changed, params)
    assert "Labels changed by people (decisions.csv): 3 of train, 1 of test. Which test labels" in card
    untested = replace(records, prepared={**records.prepared, "relabelled": {"train": 3}})
    assert "3 of train.\n" in make_model_card(untested, params)


def test_what_an_address_carries_besides_its_place_stays_out(params_document):
    params_document["fetch"] = {"source": "https://example.org/pets.zip?token=secret", "sha256": "0" * 64}
    card = make_model_card(make_records(), parse_params(params_document))
    assert "https://example.org/pets.zip" in card and "secret" not in card
