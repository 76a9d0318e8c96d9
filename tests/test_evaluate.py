"""The stage `evaluate` and `frostline diff`, run on a small project with networks made for the purpose."""

import importlib.util
import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from keras import layers
from ruamel.yaml import YAML
from samples import add_familiarity, make_refit, make_search, make_trial

from frostline.arrays import load_split, save_split
from frostline.cli.diff import command as diff
from frostline.cli.report import command as report
from frostline.errors import Refused
from frostline.evidence.evaluation import Evaluation
from frostline.evidence.predictions import Predictions, load_predictions, save_predictions
from frostline.evidence.refits import RefitRecord
from frostline.evidence.suspicion import load_suspects
from frostline.files import load_json, mark_complete, save_json, sha256_of
from frostline.params import load_params
from frostline.serving.model import load_network, predict
from frostline.tracking.finals import log_final
from frostline.tracking.runs import log_to_run, open_final_run
from frostline.tracking.store import open_store

SIZE, CLASSES = 32, ("blue", "red")


def make_images(num_images, seed):
    """Noise in which one colour is a little stronger; the label says which."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % 2
    images = rng.integers(0, 200, (num_images, SIZE, SIZE, 3)).astype(np.uint8)
    strength = rng.integers(0, 24, num_images)
    for image, label, more in zip(images, labels, strength, strict=True):
        image[..., 0 if label else 2] += more.astype(np.uint8)
    return images, labels.astype(np.int32)


def save_model(path, *errors):
    """Weighs red against blue; an error shifts the balance, so that more answers are wrong. With two it is that of the baselines."""
    pixels = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    maps = layers.AveragePooling2D(4)(layers.Rescaling(1 / 255, dtype="float32")(pixels))
    answers = []
    for error in errors:
        dense = layers.Dense(2)
        answers.append(layers.Softmax()(dense(layers.GlobalAveragePooling2D()(maps))))
        dense.set_weights([np.array([[-60, 60], [0, 0], [60, -60]], np.float32), np.array([error, 0], np.float32)])
    if len(answers) == 1:
        model = add_familiarity(keras.Model(pixels, answers[0]))
    else:
        model = keras.Model(pixels, dict(zip(("baseline", "every_cut"), answers, strict=True)))
    model.save(path)
    return sha256_of(path)


@pytest.fixture
def project(mlflow_root, params_document, monkeypatch):
    """A project after `refit`, with its MLflow store; the working directory."""
    monkeypatch.chdir(mlflow_root)
    monkeypatch.setenv("DVC_ROOT", str(mlflow_root))
    params_document["evaluate"]["resamples"] = 100
    YAML().dump(params_document, mlflow_root / "params.yaml")
    images, labels = make_images(120, 0)
    prepared = mlflow_root / "data/prepared"
    ids = [f"{CLASSES[k]}/{i}.png" for i, k in enumerate(labels)]
    save_split(prepared / "test", [images], SIZE, labels, ids, np.arange(120))
    (prepared / "manifest.csv").write_text("image_id,class_name,split,sha256\n")
    for seed, name in enumerate(("train", "val"), start=1):
        its, its_labels = make_images(10, seed)
        its_ids = [f"{CLASSES[k]}/{name}-{i}.png" for i, k in enumerate(its_labels)]
        save_split(prepared / name, [its], SIZE, its_labels, its_ids, np.arange(10))
    save_json(prepared / "classes.json", CLASSES)
    counts = {"train": 10, "val": 10, "test": 120}
    mark_complete(prepared, num_images=counts, image_size=SIZE, resize="squash", content_sha256="0" * 64, left_out={})
    save_json(mlflow_root / "data/base/card.json", {"name": "Tiny", "weights": "random", "options": {}})
    refit_models(mlflow_root, error=1.0)
    return mlflow_root


def refit_models(root, error):
    models, study = root / "models", root / "reports/tune"
    models.mkdir(exist_ok=True)
    curves = {name: [0.5, 0.6] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
    trial = make_trial(3, score=0.97, curves=curves, dropout=0.1, unfrozen_blocks=1)
    save_json(study / "trials.json", make_search(trial, best=3).to_record())
    save_json(study / "study.json", {"cuts": []})
    sha256 = {
        name: save_model(models / f"{name}.keras", *its)
        for name, its in (("final", [error]), ("baselines", [4.0, 2.0]))
    }
    refit = make_refit(3, dropout=0.1, unfrozen_blocks=1, temperature=2.0, curves=curves)
    save_json(models / "refit.json", replace(refit, sha256=sha256).to_record())
    train = load_split(root / "data/prepared/train")
    sure = np.where(np.arange(10)[:, None] == 4, [0.01, 0.99], 0.5 + 0.4 * np.where(np.eye(2)[train.labels] > 0, 1, -1))
    answers = Predictions(train.ids, np.asarray(train.labels), sure.astype(np.float32), CLASSES, "out of fold")
    save_predictions(models / "out_of_fold.csv", answers)


def log(root):
    """The id of the final run that `register` would log."""
    refit = RefitRecord.from_record(load_json(root / "models/refit.json"))
    evaluation = Evaluation.from_record(load_json(root / "reports/evaluation/evaluation.json"))
    store = open_store(load_params().tracking, root)
    return log_final(
        store, refit, evaluation, "", root / "models", root / "reports/evaluation", root / "data/prepared/manifest.csv"
    )


def evaluate(root):
    spec = importlib.util.spec_from_file_location("evaluate_stage", root / "pipelines/evaluate.py")
    stage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stage)
    stage.main()


def test_the_stage_writes_its_files_and_logs_them_and_two_runs_can_be_compared(project, root, capsys, monkeypatch):
    evaluate(root)
    assert "test accuracy" in capsys.readouterr().out
    out = project / "reports/evaluation"
    record, answers = json.loads((out / "evaluation.json").read_text()), load_predictions(out / "predictions.csv")
    assert record["num_images"] == len(answers.files) == 120
    assert record["accuracy"]["value"] == pytest.approx(answers.correct.mean(), abs=1e-6)
    assert 0.6 < record["accuracy"]["value"] < 1.0
    assert record["selection_optimism"] == pytest.approx(0.97 - answers.correct.mean(), abs=1e-6)
    assert record["gain"]["wins"] > 0 and record["every_cut_gain"]["wins"] > 0
    card = (out / "model_card.md").read_text()
    assert (
        "# frostline" in card and f"The file has {(project / 'models/final.keras').stat().st_size / 1e6:.1f} MB" in card
    )

    # The sets' thresholds are of predictions out of fold: ten of them can promise nothing above 0.9.
    sets = {each["promised"]: each for each in json.loads((out / "sets.json").read_text())}
    assert sets[0.95]["threshold"] == 0 and sets[0.95]["covered"]["value"] == 1 and sets[0.95]["size"] == 2
    assert set(sets[0.8]["by_class"]) == set(CLASSES) and sets[0.8]["threshold"] > 0

    # Noise is what it knows, the generated images are something else.
    strangers = json.loads((out / "strangers.json").read_text())
    assert set(strangers["auroc"]) == {"generated patterns"}  # the source is generated things
    final = load_network(project / "models/final.keras", None)
    familiarity = predict(final, load_split(project / "data/prepared/test").images)[1]
    assert strangers["below"]["value"] == (familiarity < 0.05).mean() < 1
    assert strangers["auroc"]["generated patterns"] > 0.5
    assert "## Strangers" in (out / "model_card.md").read_text()

    # Of all splits, those that `refit` did not train on answered by the final model.
    suspects = load_suspects(out / "suspicious.csv")
    assert {name: sum(each.split == name for each in suspects) for name in ("train", "val", "test")} == {
        "train": 10,
        "val": 10,
        "test": 120,
    }
    flipped = next(each for each in suspects if each.split == "train" and each.looks_wrong)
    assert (flipped.file, flipped.label, flipped.suggested) == ("blue/train-4.png", "blue", "red")
    assert f"of {len(suspects)} labels look wrong" in (out / "model_card.md").read_text()

    store = open_store(load_params().tracking, project)
    first = log(project)
    assert log(project) == first  # a register that was killed goes on in the same run
    logged = {item.path for item in store.client.list_artifacts(first)}
    assert {"model_card.md", "evaluation.json", "predictions.csv", "suspicious.csv", "report.html"} <= logged
    assert {"sets.json", "strangers.json", "refit.json", "out_of_fold.csv", "figures"} <= logged
    images = {item.path.split("/")[1] for item in store.client.list_artifacts(first, "figures")}
    assert images == {file.name for file in out.glob("*.png")} and len(images) == 8
    metrics = store.client.get_run(first).data.metrics
    assert metrics["test_accuracy"] == record["accuracy"]["value"]

    refit_models(project, error=0.0)
    evaluate(root)
    second = log(project)
    answer = CliRunner().invoke(diff, [first[:10], second], catch_exceptions=False)
    assert answer.exit_code == 0 and "mended" in answer.output and "McNemar" in answer.output
    folder = project / "reports/diff" / f"{first[:8]}-{second[:8]}"
    found = json.loads((folder / "diff.json").read_text())
    new = load_predictions(out / "predictions.csv")
    assert found["difference"]["value"] == pytest.approx(new.correct.mean() - answers.correct.mean())
    rows = (folder / "flips.csv").read_text().splitlines()[1:]
    assert len(rows) == found["mended"] + found["broken"] == (new.predicted != answers.predicted).sum()
    place = f"diff/{first[:8]}"
    logged = {item.path for item in store.client.list_artifacts(second, place)}
    assert logged == {f"{place}/{name}" for name in ("diff.json", "flips.csv", "flips.png")}

    # The report of each, and both side by side.
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert CliRunner().invoke(report, [], catch_exceptions=False).output == "reports/evaluation/report.html\n"
    assert opened == [(out / "report.html").as_uri()]
    old = (
        project / CliRunner().invoke(report, [first, "--no-open"], catch_exceptions=False).output.strip()
    ).read_text()
    new_page = (out / "report.html").read_text()
    for text in (old, new_page):
        assert text.startswith("<!doctype html>") and text.count("data:image/png;base64,") == 8
    assert f"{record['accuracy']['value']:.1%}".replace("%", " %") in old
    page = CliRunner().invoke(report, ["--compare", first, second, "--no-open"], catch_exceptions=False).output.strip()
    both = (project / page).read_text()
    assert "McNemar" in both and both.count("<tr><td>mended</td>") == found["mended"] and len(opened) == 1
    with pytest.raises(Refused, match="Name one version"):
        CliRunner().invoke(report, [first, "--compare", first, second], catch_exceptions=False)


def test_a_model_that_is_not_refits_is_refused(project, root):
    save_model(project / "models/final.keras", 3.0)
    with pytest.raises(Refused, match="sha256"):
        evaluate(root)


def test_runs_that_cannot_be_compared_are_refused_by_name(project):
    store = open_store(load_params().tracking, project)
    empty, other = (open_final_run(store, name=name, params={}, tags={}) for name in ("one", "two"))
    table = project / "predictions.csv"
    table.write_text("file,label,prediction,p(x),p(y),correct,split\na.jpg,x,x,0.9,0.1,true,test\n")
    log_to_run(store, other, artifacts={table: ""})
    for given, expected in (
        (["nothing", other], "no run, version or alias is called 'nothing'"),
        ([empty, other], "no file predictions.csv"),
        (["champion", other], "has no champion"),
    ):
        with pytest.raises(Refused, match=expected):
            CliRunner().invoke(diff, given, catch_exceptions=False)


def test_a_run_compared_with_itself_has_no_flips(project):
    store = open_store(load_params().tracking, project)
    run = open_final_run(store, name="one", params={}, tags={})
    table = project / "predictions.csv"
    table.write_text("file,label,prediction,p(x),p(y),correct,split\na.jpg,x,x,0.9,0.1,true,test\n")
    log_to_run(store, run, artifacts={table: ""})
    answer = CliRunner().invoke(diff, [run, run, "--no-log"], catch_exceptions=False)
    assert answer.exit_code == 0 and "mends 0 answers" in answer.output
    assert [item.path for item in store.client.list_artifacts(run)] == ["predictions.csv"]
