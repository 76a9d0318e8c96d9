"""The report says what the records say, holds its images, and takes every name for text; pages are tested in tests/test_pages.py."""

import re

import numpy as np
import pytest
from test_cards import make_records

from frostline.evidence.predictions import Predictions
from frostline.evidence.report import LEFT, RIGHT, Findings, compare_accuracy, make_chart, make_report
from frostline.evidence.scores import Score
from frostline.evidence.suspicion import Suspect
from frostline.params import parse_params


def make_findings(class_names, wrong=5, figures=()):
    labels = np.arange(60) % len(class_names)
    answers = labels.copy()
    answers[:wrong] = (answers[:wrong] + 1) % len(class_names)
    probabilities = np.eye(len(class_names), dtype=np.float32)[answers]
    files = tuple(f"folder/{index}.jpg" for index in range(60))
    suspects = [Suspect("folder/1.jpg", "test", "cat", "dog", 0.01, 0.98, 0.015, True)]
    return Findings(Predictions(files, labels, probabilities, class_names, "test"), suspects, figures)


@pytest.fixture
def params(params_document):
    return parse_params(params_document)


def test_all_parts_have_their_numbers(params):
    records = make_records()
    html = make_report(records, params, make_findings(records.class_names))
    accuracy = records.evaluation.score("accuracy")
    for part in (
        f"{100 * accuracy.value:.1f} %",
        "5 of 240 test images got a wrong answer",
        "2 trials over depths 0 to 4: 1 finished, 1 pruned, 0 failed",
        "600 images in 5 folds",
        "1 of 1 labels look wrong",
        "Temperature 1.200, fitted out of fold",
        "12.3 MB",
        "9.0 ms, 95 % within 12.1 ms",
        "251 images/s on 2 cores",
        "d" * 64,
        "f" * 64,
        "Apache-2.0",
        "models:/frostline@champion",
    ):
        assert part in html, part
    assert set(re.findall(r'<a href="#([a-z-]+)"', html)) == set(re.findall(r'<section id="([a-z-]+)"', html))


def test_what_a_class_or_a_file_is_called_is_no_markup(params):
    names = ("<script>alert(1)</script>", 'dog" onclick="x', "{{ 7 * 7 }}")
    records = make_records(class_names=names)
    html = make_report(records, params, make_findings(names))
    assert "<script>alert" not in html and ' onclick="x' not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "{{ 7 * 7 }}" in html


def test_it_calls_nobody_and_keeps_secrets_out(params_document):
    params_document["fetch"] = {"source": "https://example.org/pets.zip?token=secret", "sha256": "0" * 64}
    records = make_records()
    html = make_report(records, parse_params(params_document), make_findings(records.class_names))
    assert "secret" not in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert not re.findall(r'(?:src|href)="(?!#|data:)', html)


def test_figures_are_held_by_the_page_and_missing_ones_left_out(params, tmp_path):
    (tmp_path / "mistakes.png").write_bytes(b"\x89PNG")
    records = make_records()
    figures = [tmp_path / "mistakes.png", tmp_path / "roc_pr.png"]
    html = make_report(records, params, make_findings(records.class_names, figures=figures))
    assert html.count("<img") == 1 and "data:image/png;base64,iVBORw==" in html


def test_a_model_without_mistakes_has_a_report(params):
    records = make_records()
    assert "Every test image got the right answer." in make_report(
        records, params, make_findings(records.class_names, 0)
    )


@pytest.mark.parametrize("bounds", [(0.95, 0.99), (0.0, 1.0), (1.0, 1.0), (0.4999, 0.5001)])
def test_a_chart_holds_its_intervals(bounds):
    low, high = bounds
    chart = make_chart([("one", Score((low + high) / 2, low, high, {})), ("two", Score(high, low, high, {}))])
    for row in chart["rows"]:
        assert LEFT <= row["x_low"] <= row["x"] <= row["x_high"] <= RIGHT
    assert 2 <= len(chart["ticks"]) <= 12 and len({tick["text"] for tick in chart["ticks"]}) == len(chart["ticks"])


def test_the_chart_compares_what_was_measured():
    assert [name for name, _ in compare_accuracy(make_records().evaluation)] == ["final model", "bare head"]
