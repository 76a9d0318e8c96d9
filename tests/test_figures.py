"""Images: each is written, whole, at MLflow's size, whatever the records hold."""

import struct

import numpy as np
import pytest
from samples import make_search, make_trial
from scipy.special import softmax
from sklearn import metrics as sk

from frostline.evidence.evaluation import make_evaluation
from frostline.evidence.figures.canvas import shorten
from frostline.evidence.figures.evaluation import draw_evaluation
from frostline.evidence.figures.predictions import rank_curves
from frostline.evidence.figures.search import draw_study, frost_line, learning_curves
from frostline.evidence.figures.sheets import flips, overlay, preview_sheet
from frostline.evidence.predictions import Predictions


def size_of(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


MANY = [
    make_trial(0),
    make_trial(1, score=0.95, unfrozen_blocks=2, dropout=0.1, suffix_learning_rate=1e-4),
    make_trial(2, score=0.94, unfrozen_blocks=2, dropout=0.2, suffix_learning_rate=1e-3),
    make_trial(3, "PRUNED", 0.5, unfrozen_blocks=1, suffix_learning_rate=1e-3),
    make_trial(4, "FAIL", None, unfrozen_blocks=4, suffix_learning_rate=1e-3),
    make_trial(5, score=0.3, unfrozen_blocks=3, dropout=0.5, suffix_learning_rate=1e-2),
    make_trial(6, score=0.93, unfrozen_blocks=3, dropout=0.6, suffix_learning_rate=3e-5, optimizer="sgd"),
]


@pytest.mark.parametrize("trials", [MANY, MANY[:1], MANY[:2]], ids=["many", "one", "two"])
def test_a_study_is_drawn_with_many_trials_and_with_one(trials, tmp_path):
    report = {
        "cuts": [{"depth": 0, "name": "out"}, {"depth": 2, "name": "a_block_with_a_very_long_name_indeed"}],
        "importances": {"dropout": 0.7, "unfrozen_blocks": 0.3} if len(trials) > 2 else {},
    }
    files = draw_study(make_search(*trials, best=min(1, len(trials) - 1)), report, tmp_path)
    assert len(files) == 5 == len(set(files))
    assert {size_of(file)[0] for file in files} == {900}


def test_the_same_study_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        frost_line(make_search(*MANY, best=1), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "names",
    [
        ("a", "b"),
        ("$x", "a_b^{", "猫", "", "a very long class name that fills a line"),
        tuple("abcdefghijklmnopqrstuvwxyz"),
    ],
)
def test_an_evaluation_is_drawn_for_any_number_and_kind_of_classes(names, tmp_path):
    rng = np.random.default_rng(0)
    num_images, num_classes = 130, len(names)
    labels = np.arange(num_images) % num_classes
    probabilities = softmax(rng.normal(size=(num_images, num_classes)) + 3 * np.eye(num_classes)[labels], axis=1)
    files = tuple(f"folder/{index}.jpg" for index in range(num_images))
    answers = Predictions(files, labels, probabilities.astype(np.float32), names, "test")
    options = {"resamples": 100, "confidence": 0.95, "seed": 0}
    evaluation = make_evaluation(answers, answers, search_score=0.9, temperature=1.3, **options)
    images = rng.integers(0, 256, (num_images, 32, 32, 3)).astype(np.uint8)
    examples = np.arange(7)
    heatmaps = rng.random((7, 32, 32), np.float32)
    drawn = draw_evaluation(answers, evaluation, images, examples, heatmaps, tmp_path, worst=24)
    assert len(drawn) == 6
    assert {size_of(file)[0] for file in drawn} == {900}


def test_a_model_without_mistakes_is_drawn_too(tmp_path):
    labels = np.tile([0, 1], 30)
    answers = Predictions(tuple(map(str, range(60))), labels, np.eye(2, dtype=np.float32)[labels], ("a", "b"), "test")
    options = {"resamples": 100, "confidence": 0.95, "seed": 0}
    evaluation = make_evaluation(answers, answers, search_score=1.0, temperature=1.0, **options)
    images = np.zeros((60, 32, 32, 3), np.uint8)
    none = np.zeros((0, 32, 32), np.float32)
    for file in draw_evaluation(answers, evaluation, images, np.arange(0), none, tmp_path, worst=24):
        assert size_of(file)[0] == 900


def test_sheets_show_views_and_flips(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3)).astype(np.uint8)
    preview_sheet(images, ["a", "b", "c"], tmp_path / "preview.png")
    labels, old, new = np.array([0, 1, 0]), np.array([1, 1, 1]), np.array([0, 0, 1])
    run_a, run_b = ("run a", old), ("run b", new)
    flips(images[:, 0], labels, run_a, run_b, ["1.jpg", "2.jpg", "3.jpg"], ["x", "y"], tmp_path / "flips.png")
    assert size_of(tmp_path / "preview.png")[0] == size_of(tmp_path / "flips.png")[0] == 900


def test_a_image_that_cannot_be_drawn_leaves_no_file(tmp_path):
    with pytest.raises(KeyError):
        learning_curves({"broken": {"loss": [1.0]}}, tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_the_overlay_is_stronger_where_the_heat_is():
    image = np.full((2, 2, 3), 100, np.uint8)
    shown = overlay(image, np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)).astype(int)
    assert np.ptp(shown[0, 0]) < 10  # grey
    assert np.ptp(shown[0, 1]) > 50  # coloured
    assert np.array_equal(image, np.full((2, 2, 3), 100))


@pytest.mark.parametrize(("text", "shown"), [("short", "short"), ("abcdefghij", "abc…hij"), ("", "")])
def test_long_names_lose_their_middle(text, shown):
    assert shorten(text, 7) == shown


@pytest.mark.parametrize("num_scores", [3, 1000])
def test_the_curves_are_those_of_scikit_learn(num_scores):
    """With ties, too: a score that several images share is one point."""
    rng = np.random.default_rng(0)
    truth, scores = rng.random(200) < 0.3, rng.integers(0, num_scores, 200) / num_scores
    false, true, precision = rank_curves(truth, scores)
    for wanted, found in zip(sk.roc_curve(truth, scores, drop_intermediate=False)[:2], (false, true), strict=True):
        np.testing.assert_allclose(found, wanted)
    for wanted, found in zip(sk.precision_recall_curve(truth, scores)[:2], (precision, true), strict=True):
        np.testing.assert_allclose(found[::-1], wanted)
    assert np.diff(true) @ precision[1:] == pytest.approx(sk.average_precision_score(truth, scores))
