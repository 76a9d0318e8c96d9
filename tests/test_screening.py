"""Which base, at which size: the sample holds no test image, the better base wins, and the command says and applies it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML
from scipy.special import expit

from frostline.bases.base import build_base
from frostline.bases.families import BUNDLED_BASE
from frostline.cli import group
from frostline.cli.screen import list_bases, parse_candidate
from frostline.errors import Refused
from frostline.images.folders import read_layout
from frostline.images.generated.sets import write_target
from frostline.images.preparation import prepare_images
from frostline.images.walk import Entry
from frostline.params import Base, Prepare, load_params
from frostline.search import screening


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Thirty drawn images of each of eight classes."""
    folder = tmp_path_factory.mktemp("raw") / "raw"
    write_target(folder, 30, 48, 7)
    return folder


def test_no_image_of_the_sample_is_tested_on(raw, tmp_path):
    prepare = Prepare(val_share=0.2, test_share=0.4, near_duplicate_bits=None)
    prepare_images(raw, tmp_path / "prepared", prepare, size=48, seed=7, work=tmp_path / "work" / "a" / "b")
    rows = [line.split(",") for line in (tmp_path / "prepared" / "manifest.csv").read_text().splitlines()[1:]]
    tested = {row[0] for row in rows if row[4] == "test"}
    sample = screening.draw_sample(read_layout(raw, ()), prepare, 7, 10_000)
    assert {entry.image_id for entry in sample} == {row[0] for row in rows} - tested

    few = screening.draw_sample(read_layout(raw, ()), prepare, 7, 16)
    counts = np.unique([entry.class_name for entry in few], return_counts=True)[1]
    assert counts.tolist() == [screening.MIN_CLASS] * 8


def test_of_a_split_folder_only_train_is_looked_at(raw, tmp_path):
    from dataclasses import replace

    layout = read_layout(raw, ())
    splits = ("train", "validation")
    entries = tuple(replace(entry, split=splits[place % 2]) for place, entry in enumerate(layout.entries))
    sample = screening.draw_sample(replace(layout, splits=splits, entries=entries), Prepare(), 7, 10_000)
    assert {entry.split for entry in sample} == {"train"} and len(sample) == len(entries) // 2
    assert all(isinstance(entry, Entry) for entry in sample)


def make_screened(losses, speed):
    losses = np.asarray(losses, float)
    base = Base(name="MobileNetV2", weights="random", image_size=32)
    candidate = SimpleNamespace(base=base)
    rows = np.arange(len(losses))
    return screening.Screened(candidate, rows, losses, losses < 0.7, None, speed, 1, 1.0)  # type: ignore[arg-type]


def test_what_the_sample_cannot_tell_apart_is_called_equal():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)
    best, near, far = (
        make_screened(-np.log(expit(gain + 0.1 * rng.normal(size=200) + hard)), 1) for gain in (2.0, 1.99, 1.0)
    )
    ranked = screening.rank([far, near, best])
    assert ranked == [best, near, far]
    assert screening.find_equals(ranked) == [best, near]
    difference, error = far.behind(best)
    assert difference == pytest.approx((far.losses - best.losses).mean()) and error < difference / 5


def test_a_base_that_knows_something_leaves_a_drawn_one_behind(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(screening, "FIRST", 96)
    prepare = Prepare(test_share=0.2)
    entries = screening.draw_sample(read_layout(raw, ()), prepare, 7, 240)
    sample = screening.load_sample(entries, prepare, 48, 7, tmp_path)
    known = Base(name="MobileNetV2", weights="bundled", image_size=48, options={"alpha": 0.35})
    drawn = known.model_copy(update={"weights": "random"})
    seen = []
    ranked, left = screening.race(
        [drawn, known],
        lambda _: sample,
        seed=7,
        work=tmp_path,
        report=lambda found: seen.append((found.base.weights, len(found.rows))),
    )
    assert [each.base for each in ranked] == [known] and [each.base for each in left] == [drawn]
    assert seen == [("random", 96), ("bundled", 96), ("bundled", len(sample.labels))]
    # Out of fold: the head that answers has not seen the image.
    assert 0.3 < ranked[0].accuracy.value < 1 and ranked[0].log_loss < left[0].log_loss
    assert ranked[0].log_loss == pytest.approx(ranked[0].head.loss, rel=1e-4)
    by_class = ranked[0].accuracy_by_class()
    assert list(by_class.values()) == sorted(by_class.values()) and set(by_class) == set(sample.classes)
    assert sum(number for number, _ in ranked[0].candidate._laps) == len(sample.labels)  # each went through once
    # Going on from some images to all gives what all at once give, and so it is where mirrored ones come to it.
    rows = np.arange(len(sample.labels))
    again = screening.Candidate(known, sample, known=True, seed=7, work=tmp_path / "again")
    at_once = again.judge(rows, mirrored=True)
    np.testing.assert_allclose(again.judge(rows).losses, ranked[0].losses, atol=1e-3)
    np.testing.assert_allclose(ranked[0].candidate.judge(rows, mirrored=True).losses, at_once.losses, atol=1e-3)
    assert not np.allclose(at_once.losses, ranked[0].losses, atol=1e-2)


def test_a_file_of_weights_in_disorder_is_refused_before_anything_is_judged(raw, tmp_path):
    options = {"alpha": 0.35}
    network = build_base("MobileNetV2", 48, options=options, weights=BUNDLED_BASE / "base.weights.h5").model
    for layer in network.layers:
        if layer.weights and "conv" in type(layer).__name__.lower():
            kernel, *rest = layer.get_weights()
            layer.set_weights([np.ascontiguousarray(kernel.T).reshape(kernel.shape), *rest])
    network.save_weights(tmp_path / "mine.weights.h5")
    entries = screening.draw_sample(read_layout(raw, ()), Prepare(), 7, 60)
    sample = screening.load_sample(entries, Prepare(), 48, 7, tmp_path)
    base = Base(name="MobileNetV2", weights=str(tmp_path / "mine.weights.h5"), image_size=48, options=options)
    with pytest.raises(Refused, match=r"base\.weights: the statistics"):
        screening.Candidate(base, sample, known=False, seed=7, work=tmp_path / "base")


@pytest.fixture
def project(raw, params_document, tmp_path, root, monkeypatch):
    """A project whose source is the folder of drawn images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").touch()
    text = (root / "presets" / "default.yaml").read_text().replace("source: generated", f"source: {raw}")
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def test_the_command_tells_and_writes_what_it_found(project, run_cli):
    arguments = (
        *("screen", "--candidate", "MobileNetV2,weights=random,alpha=0.35", "--sample", "100", "--size", "32"),
        *("--candidate", "MobileNetV2,weights=bundled,alpha=0.35", "--apply"),
    )
    answer = run_cli(*arguments)
    assert answer.code == 0, answer.err
    first = answer.out.splitlines()[1]
    assert first.split(",")[0].strip() == "MobileNetV2" and "bundled at 32 px" in first
    assert "Hardest classes" in answer.out and "Next: dvc repro" in answer.out
    base = load_params().base
    assert (base.name, base.weights, base.image_size, base.options) == ("MobileNetV2", "bundled", 32, {"alpha": 0.35})
    assert "# " in (project / "params.yaml").read_text()

    record = json.loads((project / "reports/screen/screen.json").read_text())
    assert [row["base"]["weights"] for row in record["candidates"]] == ["bundled", "random"]
    assert all(row["line_seconds"] > 0 and row["images_per_second"] > 0 for row in record["candidates"])
    assert (project / "reports/screen/screen.png").stat().st_size > 10_000
    from frostline.tracking.runs import list_runs
    from frostline.tracking.store import open_store

    store = open_store(load_params().tracking, project)
    assert list_runs(store) == []  # no model came of it
    (run,) = list_runs(store, "screen")
    assert run["accuracy"] == pytest.approx(record["candidates"][0]["accuracy"]["value"], abs=1e-4)
    assert not list((project / ".frostline/unfinished").glob("screen-*"))

    # As if it had been killed when params.yaml was written: it is the same look.
    assert run_cli(*arguments).code == 0
    assert [again["id"] for again in list_runs(store, "screen")] == [run["id"]]


def test_candidates_are_read_as_they_are_written():
    base = parse_candidate("MobileNetV2,weights=mine.h5,alpha=0.5")
    assert (base.name, base.weights, base.options) == ("MobileNetV2", "mine.h5", {"alpha": 0.5})
    assert parse_candidate("EfficientNetLite0").weights == "package"
    own = load_default()
    sizes = [base.image_size for base in list_bases(own, ["MobileNetV2,weights=random"], [])]
    assert sizes == [96]
    assert [base.image_size for base in list_bases(own, ["EfficientNetLite0"], [])] == [128, 160, 224]
    with pytest.raises(Refused, match="did you mean MobileNetV2"):
        list_bases(own, ["MobilNetV2,weights=random"], [])


def load_default():
    from pathlib import Path

    document = YAML(typ="safe", pure=True).load(Path(__file__).parents[1] / "presets" / "default.yaml")
    return Base(**document["base"])


def test_one_class_is_refused_in_words(project, tmp_path):
    write_target(tmp_path / "one", 3, 32, 7)
    for folder in sorted((tmp_path / "one").iterdir())[1:]:
        for file in folder.iterdir():
            file.unlink()
    answer = CliRunner().invoke(group, ["screen", "--data", str(tmp_path / "one"), "--candidate", "EfficientNetLite0"])
    assert isinstance(answer.exception, Refused) and "class" in str(answer.exception)
