"""Versions, moves of the champion, the gate on real versions, and where they come from."""

import base64
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from samples import add_familiarity, make_evaluation, make_refit, make_trial
from torture import LONG, promote_in_turns

from frostline.arrays import load_split, save_split
from frostline.cli import group
from frostline.errors import Refused
from frostline.evidence.budget import Budget
from frostline.evidence.predictions import Predictions, save_predictions
from frostline.files import load_json, mark_complete, save_json, sha256_of
from frostline.images.shards import make_fingerprints
from frostline.params import Tracking, load_params
from frostline.registry import lineage, moves, promotion, versions, wear
from frostline.registry.data import compare_with_champion, load_images, trained_on
from frostline.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Version,
    count_test_uses,
    download_version,
    lineage_of,
    list_versions,
    load_version,
    number_at,
    register,
)
from frostline.serving.golden import load_golden
from frostline.serving.model import DATA, MODEL, Card
from frostline.tracking.runs import close_run, list_runs, load_artifact, log_trial, open_final_run, open_study_run
from frostline.tracking.store import Store, open_store

CLASSES = ("a", "b", "c")
FEATURES = Path("data/features")
SIZE = 32


def add(store: Store, model_file: Path, **changes: object) -> Version:
    run = open_final_run(store, name="final", params={"dropout": 0.3}, tags={"frostline.study": "d1"})
    values = {
        "model_file": model_file,
        "run_id": run,
        "card": Card(CLASSES, SIZE, "squash", 16, 50.0, sha256_of(model_file)),
        "golden": None,
        "description": "# card",
        "metrics": {"test_accuracy": 0.9},
        "params": {"dropout": 0.3},
        "tags": lineage_of(store, run),
    }
    return register(store, **{"name": "clf", **values, **changes})


@pytest.fixture
def store(mlflow_root: Path) -> Store:
    return open_store(Tracking(), mlflow_root)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three model files that differ; what is in them matters to nobody here."""
    made = [tmp_path / f"{name}.keras" for name in CLASSES]
    for path in made:
        path.write_bytes(path.name.encode())
    return made


def test_the_same_model_is_registered_once(store, files):
    first = add(store, files[0])
    assert add(store, files[0]).number == first.number == 1
    assert add(store, files[1]).number == 2
    assert number_at(store, "clf", CHALLENGER) == 2
    assert store.client.get_model_version("clf", "1").description == "# card"
    assert first.tags["frostline.study"] == "d1"


def test_a_worn_test_split_is_said_on_the_card(store, files, monkeypatch):
    monkeypatch.setattr(versions, "WORN_AFTER", 3)
    tags = {"frostline.data.sha256": "d1"}
    first = add(store, files[0], tags=tags)
    moves.count_test_use(store, first)
    assert count_test_uses(store, "clf", "d1") == 2
    assert count_test_uses(store, "clf", "d2") == 0
    for file, said in ((files[1], "scored 3 times on this test split"), (files[2], "scored 4 times")):
        version = add(store, file, tags=tags, description="# card\n" + 6000 * "x")
        card = store.client.get_model_version("clf", str(version.number)).description
        assert said in card and len(card) <= 5000 and "model_card.md" in card
    assert store.client.get_model_version("clf", "1").description == "# card"


@pytest.mark.parametrize("call", ["create_model_version", "set_logged_model_tags", "set_registered_model_alias"])
def test_a_version_killed_before_its_alias_gets_it_the_next_time(store, files, monkeypatch, call):
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = open_final_run(store, name="final", params={}, tags={})
    with monkeypatch.context() as patch:
        patch.setattr(type(store.client), call, die)
        with pytest.raises(KeyboardInterrupt):
            add(store, files[0], run_id=run)
    version = add(store, files[0], run_id=run)
    assert [model.model_id for model in store.client.search_logged_models([store.experiment_id])] == [version.model_id]
    assert [version.number for version in list_versions(store, "clf")] == [1]
    assert number_at(store, "clf", CHALLENGER) == 1
    tags = store.client.get_logged_model(version.model_id).tags  # by which MLflow's pages lead to the version
    assert json.loads(tags["mlflow.modelVersions"]) == [{"name": "clf", "version": 1}]


def test_a_model_that_was_killed_while_written_is_never_a_version(store, files, monkeypatch):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    real = type(store.client).log_model_artifacts
    monkeypatch.setattr(type(store.client), "log_model_artifacts", lambda *given: die(real(*given)))
    with pytest.raises(KeyboardInterrupt):
        add(store, files[0])
    assert list_versions(store, "clf") == []
    (left,) = store.client.search_logged_models([store.experiment_id])
    folder = Path(left.artifact_location.removeprefix("file://"))
    assert folder.is_dir()

    # The next one takes it away, once its run is closed; what another process is writing stays.
    monkeypatch.setattr(type(store.client), "log_model_artifacts", real)
    add(store, files[1])
    assert folder.is_dir()
    store.client.set_terminated(left.source_run_id, "KILLED")
    version = add(store, files[0])
    assert not folder.exists()
    models = store.client.search_logged_models([store.experiment_id])
    assert {model.status for model in models} == {"READY"} and version.model_id in {model.model_id for model in models}


def test_a_version_says_the_same_after_its_run_was_killed_and_gone_on_with(store, files):
    run = open_final_run(store, name="final", params={}, tags={"frostline.study": "d1"})
    store.client.set_tag(run, "frostline.state", "DEAD")
    version = add(store, files[0], run_id=run, tags=lineage_of(store, run), metrics={"test_log_loss": 2.14781149})
    assert "frostline.state" not in version.tags and version.tags["frostline.study"] == "d1"
    assert store.client.get_run(run).data.metrics == {"test_log_loss": 2.14781}


@pytest.mark.parametrize(
    "what",
    [
        "delete_version",
        "delete_model",
        "rename_model",
        "delete_alias",
        "delete_tags",
        "delete_run",
        "delete_logged_model",
    ],
)
def test_whatever_was_done_in_mlflows_pages_registering_goes_on(store, files, what):
    first = add(store, files[0])
    client = store.client
    match what:
        case "delete_version":
            client.delete_model_version("clf", "1")
        case "delete_model":
            client.delete_registered_model("clf")
        case "rename_model":
            client.rename_registered_model("clf", "other")
        case "delete_alias":
            client.delete_registered_model_alias("clf", CHALLENGER)
        case "delete_tags":
            for key in first.tags:
                client.delete_model_version_tag("clf", "1", key)
        case "delete_run":
            client.delete_run(first.run_id)
        case "delete_logged_model":
            client.delete_logged_model(first.model_id)
    again = add(store, files[0])
    assert again.sha256 == first.sha256
    assert number_at(store, "clf", CHALLENGER) == again.number


def test_registering_the_champion_again_makes_it_no_challenger(store, files):
    version = add(store, files[0])
    moves.move_champion(store, version, None, "accepted", "")
    add(store, files[0])
    assert number_at(store, "clf", CHALLENGER) is None


@pytest.mark.parametrize("name", [MODEL, "../../MLmodel", "../../code/frostline/serving/__init__.py"])
def test_changed_files_are_not_loaded(store, files, tmp_path, name):
    version = add(store, files[0])
    folder = download_version(store, version, tmp_path / "copies")
    (folder / DATA / name).write_bytes(b"something else")
    with pytest.raises(Refused, match="checksum mismatch"):
        download_version(store, version, tmp_path / "copies")


def test_lost_files_are_named(store, files, tmp_path):
    version = add(store, files[0])
    folder = download_version(store, version, tmp_path / "copies")
    (folder / DATA / MODEL).unlink()
    with pytest.raises(Refused, match="it is lost"):
        download_version(store, version, tmp_path / "copies")


def test_of_two_who_promote_at_once_one_wins_and_the_other_is_told(store, files):
    versions = [add(store, file) for file in files]

    def promote(version: Version) -> str:
        try:
            return moves.move_champion(store, version, None, "accepted", "").verdict
        except Refused as refusal:
            return str(refusal)

    with ThreadPoolExecutor(3) as pool:
        said = sorted(pool.map(promote, versions))
    assert [word for word in said if word == "accepted"] == ["accepted"]
    assert sum("changed while this was decided" in word for word in said) == 2
    assert len(moves.list_moves(store, "clf")) == 1


def test_rollback_walks_back_through_the_promotions(store, files, tmp_path):
    one, two, three = (add(store, file) for file in files)
    before = None
    for version in (one, two, three):
        moves.move_champion(store, version, before, "accepted", "better")
        before = version.number
    assert number_at(store, "clf", PREVIOUS) == 2
    assert moves.rollback(store, "clf", None, "broke the shop", tmp_path).to_version == 2
    assert moves.rollback(store, "clf", None, "", tmp_path).to_version == 1
    with pytest.raises(Refused, match="first champion"):
        moves.rollback(store, "clf", None, "", tmp_path)
    assert moves.rollback(store, "clf", 3, "", tmp_path).to_version == 3
    history = moves.list_moves(store, "clf")
    assert [move.verdict for move in history] == ["accepted"] * 3 + ["rollback"] * 3
    assert (history[3].from_version, history[3].to_version, history[3].reason) == (3, 2, "broke the shop")


@pytest.mark.skipif(not LONG, reason="two processes and a hundred moves: `make torture`")
def test_two_processes_that_promote_at_once_leave_one_chain_of_champions(store, files):
    versions = [add(store, file) for file in files[:2]]
    promote_in_turns(store, [store.root, store.root], versions, 50)


WRITES = ("set_registered_model_alias", "delete_registered_model_alias", "set_registered_model_tag")
WRITES += ("delete_registered_model_tag", "set_model_version_tag")


@contextlib.contextmanager
def dying_at(store: Store, number: int):
    """The process is killed before its write of this number to the registry; yields those that it made."""
    made: list[str] = []

    def wrap(name: str, real):
        def write(*given: object) -> object:
            if len(made) == number:
                raise KeyboardInterrupt
            made.append(name)
            return real(*given)

        return write

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(type(store.client), name, wrap(name, getattr(type(store.client), name)))
        yield made


def test_a_promotion_and_a_rollback_killed_anywhere_are_finished_by_the_next(store, files, tmp_path):
    verdict = {"outcome": "forced", "checks": [{"name": "floor", "passed": True, "message": "enough"}]}
    one, two = (add(store, file) for file in files[:2])
    moves.move_champion(store, one, None, "accepted", "")

    def promote() -> None:
        moves.finish_move(store, "clf")  # as the command does
        if number_at(store, "clf", CHAMPION) == 1:
            moves.move_champion(store, two, 1, "forced", "a test", verdict)

    def history() -> list[tuple[int | None, int, str]]:
        return [(move.from_version, move.to_version, move.verdict) for move in moves.list_moves(store, "clf")]

    for number in range(20):
        before = history()
        store.client.set_registered_model_alias("clf", CHALLENGER, "2")
        for tag in load_version(store, "clf", 2).tags:
            if "verdict" in tag or "gate" in tag:
                store.client.delete_model_version_tag("clf", "2", tag)
        with dying_at(store, number) as made, contextlib.suppress(KeyboardInterrupt):
            promote()
        judged = moves.load_verdict(load_version(store, "clf", 2)) is not None
        assert judged or number_at(store, "clf", CHAMPION) == 1  # no champion without its verdict
        promote()
        assert [number_at(store, "clf", alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)] == [2, None, 1], made
        assert moves.load_verdict(load_version(store, "clf", 2))["outcome"] == "forced"
        assert history() == [*before, (1, 2, "forced")], made

        with dying_at(store, number) as rolled, contextlib.suppress(KeyboardInterrupt):
            moves.rollback(store, "clf", None, "", tmp_path)
        if len(rolled) == number:
            with contextlib.suppress(Refused):  # it may have been finished but for its last word
                assert moves.rollback(store, "clf", None, "", tmp_path).to_version == 1
        assert history() == [*before, (1, 2, "forced"), (2, 1, "rollback")], rolled
        if len(made) < number:  # nothing was killed
            break
    assert number > 6


def test_rollback_to_a_version_with_changed_files_is_refused(store, files, tmp_path):
    one, two = (add(store, file) for file in files[:2])
    moves.move_champion(store, one, None, "accepted", "")
    moves.move_champion(store, two, 1, "accepted", "")
    (download_version(store, one, tmp_path) / DATA / MODEL).write_bytes(b"x")
    with pytest.raises(Refused, match="checksum mismatch"):
        moves.rollback(store, "clf", None, "", tmp_path)
    assert number_at(store, "clf", CHAMPION) == 2


def test_trace_leads_down_to_the_data_and_up_to_the_version(store, files):
    parent = open_study_run(store, "d1", params={}, tags={})
    trial = log_trial(store, parent, make_trial(3), tags={}, ended=2.0)
    final = open_final_run(
        store,
        name="final",
        params={"dropout": 0.3},
        tags={
            "frostline.trial_run": trial,
            "frostline.study": "d1",
            "frostline.md5.prepared": "abc.dir",
            "frostline.git.commit": "f00",
        },
    )
    version = add(store, files[0], run_id=final, tags=lineage_of(store, final))
    down = dict(lineage.trace_version(store, version))
    assert down["final run"] == f"final, {final}"
    assert (down["trial run"], down["study"], down["data/prepared md5"], down["commit"]) == (
        trial,
        "d1",
        "abc.dir",
        "f00",
    )
    assert "dropout 0.3" in down["hparams"]
    for run in (trial, parent, final):
        assert ("registered as", "clf 1") in lineage.trace_run(store, run)
    # The version's own copy of its lineage outlives the run.
    store.client.delete_run(final)
    assert dict(lineage.trace_version(store, version))["commit"] == "f00"
    with pytest.raises(Refused, match="no run 'nonsense'"):
        lineage.trace_run(store, "nonsense")


# --- the commands, on a small workspace -------------------------------------------------------------------------------


@pytest.fixture
def workspace(root: Path, mlflow_root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose line has run up to `evaluate`: 120 test images that the tiny model gets right."""
    import keras

    (mlflow_root / "params.yaml").write_text(
        (root / "presets" / "default.yaml").read_text().replace("image_size: 96", "image_size: 32")
    )
    (mlflow_root / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(mlflow_root)
    # JAX starts in a fifth of the time; the gate's process is a new one each time.
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    images = make_new(180, seed=1)
    # A model that is sure of itself, as the gate asks for calibration; it is right about everything by definition.
    model = keras.saving.load_model(tiny_model)
    model.layers[-1].set_weights([100 * weights for weights in model.layers[-1].get_weights()])
    Path("models").mkdir()
    final = Path("models/final.keras")
    model.save(final)
    probabilities = np.asarray(model.predict(images, verbose=0))
    labels = probabilities.argmax(axis=1).astype(np.int32)
    ids = [f"{CLASSES[label]}/{index}.png" for index, label in enumerate(labels)]
    rows = []
    for split, part in {"train": slice(0, 40), "val": slice(40, 60), "test": slice(60, 180)}.items():
        save_split(
            Path("data/prepared") / split, [images[part]], SIZE, labels[part], ids[part], np.arange(len(ids))[part]
        )
        rows += [
            {
                "image_id": ids[i],
                "class_name": CLASSES[labels[i]],
                "split": split,
                "sha256": f"{i:064x}",
                "pixel_sha256": str(i),
                "dhash": f"{make_fingerprints(images[i])[0]:016x}",
            }
            for i in range(*part.indices(180))
        ]
    write_rows(Path("data/prepared/manifest.csv"), rows)
    save_json(Path("data/prepared/classes.json"), list(CLASSES))
    mark_complete(Path("data/prepared"), content_sha256="d" * 64, image_size=SIZE, resize="squash")
    refit = make_refit(3, sha256_of(final), dropout=0.3, unfrozen_blocks=2)
    save_json(Path("models/refit.json"), refit.to_record())
    Path("models/out_of_fold.csv").touch()
    Path("reports/evaluation").mkdir(parents=True)
    save_json(Path("reports/evaluation/evaluation.json"), make_evaluation(120, 0.95).to_record())
    save_json(Path("reports/evaluation/sets.json"), [{"promised": 0.95, "threshold": 0.25}])
    for name in ("suspicious.csv", "report.html", "strangers.json"):
        (Path("reports/evaluation") / name).touch()
    Path("reports/evaluation/model_card.md").write_text("# frostline\n\nTells three classes apart.\n")
    write_rows(
        Path("reports/evaluation/predictions.csv"),
        [
            {"file": ids[i], "label": CLASSES[labels[i]], "split": "test"}
            | {f"p({name})": str(p) for name, p in zip(CLASSES, probabilities[i], strict=True)}
            for i in range(60, 180)
        ],
    )
    return mlflow_root


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run_register() -> dict[str, object]:
    import runpy

    runpy.run_path(str(Path(__file__).parents[1] / "pipelines" / "register.py"))["main"]()
    return load_json(Path("reports/registration.json"))


def train_again(factor: float) -> None:
    """Another final model: the last layer's weights times `factor`."""
    import keras

    final = Path("models/final.keras")
    model = keras.saving.load_model(final)
    model.layers[-1].set_weights([factor * weights for weights in model.layers[-1].get_weights()])
    model.save(final)
    save_json(Path("models/refit.json"), make_refit(3, sha256_of(final)).to_record())


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(group, arguments)
    if isinstance(result.exception, Refused):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_final_run_of_a_killed_register_does_not_run_for_ever(workspace, monkeypatch):
    """Neither where it is gone on with nor where another model came in between."""
    real, process = (
        type(open_store(Tracking(), workspace).client).log_artifact,
        subprocess.Popen([sys.executable, "-c", ""]),
    )
    process.wait()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for factor in (1.0, 2.0):
        train_again(factor)
        monkeypatch.setattr(type(open_store(Tracking(), workspace).client), "log_artifact", die)
        with pytest.raises(KeyboardInterrupt):
            run_register()
        store = open_store(Tracking(), workspace)
        left = store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'")
        assert len(left) == 1
        store.client.set_tag(left[0].info.run_id, "frostline.pid", str(process.pid))
        monkeypatch.setattr(type(store.client), "log_artifact", real)
    run_register()
    runs = store.client.search_runs([store.experiment_id], "tags.`frostline.kind` = 'final'")
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]


def test_the_whole_life_of_a_version(workspace):
    registration = run_register()
    assert (registration["name"], registration["version"]) == ("frostline", 1)
    assert run_register() == registration

    code, said = call("promote", "--dry-run")
    assert code == 0, said
    assert call("history") == (0, "frostline has no champion.\n")

    code, said = call("promote")
    assert code == 0, said
    assert "version 1 is the champion now" in said
    record = load_json(Path("reports/promotion.json"))
    assert (record["outcome"], record["challenger"], record["champion"]) == ("accepted", 1, None)
    assert {check["name"] for check in record["checks"]} >= {"floor", "golden", "leaks", "latency_p95", "model_size"}
    store = open_store(load_params().tracking, workspace)
    tags = store.client.get_model_version("frostline", "1").tags
    assert tags["frostline.verdict"].startswith("accepted")
    assert json.loads(tags["frostline.verdict.record"])["numbers"] == record["numbers"]
    assert tags["frostline.test_uses"] == "3"  # its evaluation, the dry run, the promotion
    assert store.client.get_model_version("frostline", "1").description == "Tells three classes apart.\n"
    assert tags["frostline.test_accuracy"] == "0.950 [0.900, 1.000] on 120 images"
    assert tags["frostline.test_accuracy"] == "0.950 [0.900, 1.000] on 120 images"
    assert "is the champion already" in call("promote")[1]
    assert "accepted" in call("history")[1]
    assert "final · trial 03" in call("trace", "champion")[1]
    assert call("rollback")[0] == 2
    assert call("trace", "7")[0] == 2
    predict_everything(workspace)
    serve_the_champion(workspace)
    export_the_champion()
    compared = call("compare")[1]
    assert "final · trial 03" in compared
    assert "dropout" in compared


def test_the_champion_is_monitored_from_run_to_run(workspace):
    """Real images, MLflow's store, the command as a user calls it."""
    import keras

    final, table = Path("models/final.keras"), Path("reports/evaluation/predictions.csv")
    seen = np.asarray(load_split(Path("data/prepared/train")).images)
    knowing = add_familiarity(keras.saving.load_model(final), seen)
    knowing.save(final)
    save_json(Path("models/refit.json"), make_refit(3, sha256_of(final)).to_record())
    test = load_split(Path("data/prepared/test"))
    answer = knowing.predict(np.asarray(test.images), verbose=0)
    labels, familiarity = np.asarray(test.labels), answer["familiarity"][:, 0]
    save_predictions(table, Predictions(test.ids, labels, answer["probabilities"], CLASSES, "test", familiarity))
    run_register()
    assert call("monitor", "new")[0] == 2  # there is no such folder
    folder = workspace / "new"
    write_images(folder, make_new(90, seed=5), "")
    (folder / "bad.png").write_bytes(b"no image")
    code, said = call("monitor", "new")
    assert code == 2 and "has no champion yet" in said
    store = open_store(load_params().tracking, workspace)
    moves.move_champion(store, load_version(store, "frostline", 1), None, "forced", "a test")

    code, said = call("monitor", "new")
    assert code == 1 and "bad.png: " in said and "90 new images or labels of 91, 90 in all" in said
    assert "ALARM" not in said and "calm   familiarity" in said and "calm   shares" in said and "accuracy" not in said
    (folder / "bad.png").unlink()
    # As if it had been killed between its run and the verdict on the version.
    store.client.delete_model_version_tag("frostline", "1", "frostline.monitor")
    code, said = call("monitor", "new")
    assert code == 0 and "0 new images or labels of 90, 90 in all" in said
    assert load_version(store, "frostline", 1).tags["frostline.monitor"] == "calm, after 90 images and labels"
    # Images that the version was made from, or measured on, are none of the new ones.
    write_images(workspace / "again", make_new(3, seed=6), "")
    manifest = Path("data/prepared/manifest.csv")
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[-1]["sha256"] = sha256_of(workspace / "again/0.png")
    write_rows(manifest, rows)
    store.client.log_artifact(load_version(store, "frostline", 1).run_id, str(manifest))
    code, said = call("monitor", "again")
    assert code == 0 and "2 new images or labels of 3, 92 in all" in said

    # Labels that come later, in a table: all are other than what was answered.
    predicted = knowing.predict(make_new(90, seed=5), verbose=0)["probabilities"].argmax(axis=1)
    lines = [f"new/{n}.png,{CLASSES[(label + 1) % 3]}" for n, label in enumerate(predicted)]
    Path("labels.csv").write_text("\n".join(["file,label", *lines, "nowhere.png,"]) + "\n")
    code, said = call("monitor", "labels.csv")
    assert code == 1 and "nowhere.png: No such file" in said
    assert "ALARM  accuracy    0.0% right" in said and "90 new images or labels of 91, 182 in all" in said
    assert "The accuracy has fallen below what the test split speaks for." in said

    where = "tags.`frostline.kind` = 'monitor'"
    found = store.client.search_runs([store.experiment_id], where, order_by=["attributes.start_time ASC"])
    assert [run.data.metrics["monitor/images"] for run in found] == [90, 92, 182]
    assert [run.data.tags["frostline.verdict"] for run in found] == ["calm", "calm", "alarm: accuracy"]
    version = load_version(store, "frostline", 1)
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {version.run_id}
    assert version.tags["frostline.monitor"] == "alarm: accuracy, after 182 images and labels"
    assert all(row["kind"] != "monitor" for row in list_runs(store))
    # Strangers are seen without labels; a folder's name is a label only where it is a class.
    black = np.random.default_rng(1).integers(0, 8, (90, SIZE, SIZE, 3), np.uint8)
    write_images(workspace / "strange/holiday", black, "s")
    code, said = call("monitor", "strange")
    assert code == 1 and "ALARM  familiarity" in said and "90 new images or labels of 90, 272 in all" in said
    Path("empty").mkdir()
    assert "holds no images" in call("monitor", "empty")[1]
    Path("empty.csv").write_text("image\nx.png\n")
    assert "needs a column `file`" in call("monitor", "empty.csv")[1]


def test_comparisons_on_the_same_test_images_spend_one_budget(workspace):
    run_register()
    assert call("promote")[0] == 0  # nobody to be compared with: nothing is spent
    store, split = open_store(load_params().tracking, workspace), wear.make_sketch(["a", "b"])
    train_again(0.98)
    run_register()
    said = call("promote", "--dry-run")[1]
    assert "40% of this test split's budget is left after 1 comparison" in said
    again = call("promote", "--dry-run")[1]
    # Whoever asks again about the same two learns nothing and spends nothing, and is judged as before.
    assert "is left after 1 comparison" in again
    numbers = [next(line for line in text.splitlines() if " comparison " in line) for text in (said, again)]
    assert numbers[0] == numbers[1] and "at p < 0.03" in numbers[0]
    train_again(0.97)
    run_register()
    judged = call("promote", "--dry-run")[1]
    assert "is left after 2 comparisons" in judged
    assert load_json(Path("reports/registration.json"))["version"] == 3
    before, other = load_version(store, "frostline", 2), load_version(store, "frostline", 3)
    assert wear.count_budget(store, "frostline", split) == Budget()  # other images: nothing is spent
    budget = wear.load_budget(store, split, before, other)
    wear.record_comparison(store, split, before, other, budget, True)
    assert wear.count_budget(store, "frostline", split) == Budget(1, 1)
    assert wear.load_budget(store, split, before, other) == Budget()


def make_new(count: int, seed: int) -> np.ndarray:
    """Noise; of each third one colour is strong, so that the classes differ for the untrained model too."""
    images = np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    for colour in range(3):
        images[colour::3, ..., colour] = 255 - images[colour::3, ..., colour] // 8
        images[colour::3, ..., (colour + 1) % 3] //= 8
    return images


def write_images(folder: Path, images: np.ndarray, prefix: str) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / f"{prefix}{number}.png").write_bytes(encode(image))


def predict_everything(workspace: Path) -> None:
    """Files, a folder, a pattern and standard input, with one that is no image among them."""
    images = np.load("data/prepared/test/images.npy")[:4]
    wanted = list(csv.DictReader(Path("reports/evaluation/predictions.csv").read_text().splitlines()))[:4]
    folder = workspace / "images"
    folder.mkdir()
    for index, image in enumerate(images):
        (folder / f"{index}.png").write_bytes(encode(image))
    (folder / "bad.jpg").write_bytes(b"no image")
    code, said = call("predict", "images", "--json")
    assert code == 1
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png", "3.png", "bad.jpg"]
    for row, want in zip(rows, wanted, strict=False):
        assert row["probabilities"] == pytest.approx({name: float(want[f"p({name})"]) for name in CLASSES}, abs=1e-5)
    code, said = call("predict", "images/[01].png", "images/2.png", "--csv")
    assert code == 0, said
    table = list(csv.DictReader(said.splitlines()))
    assert [row["label"] for row in table] == [row["label"] for row in rows[:3]]
    assert set(table[0]) == {"file", "label", "probability", "error", *(f"p({name})" for name in CLASSES)}
    code, said = call("predict", "images", "--coverage", "0.95", "--json")
    for row in [json.loads(line) for line in said.splitlines() if line.startswith("{")][:4]:
        assert set(row["set"]) == {name for name, p in row["probabilities"].items() if p >= 0.25} | {row["label"]}
        assert row["set"][0] == row["label"]
    code, said = call("predict", "images/0.png", "--coverage", "0.95", "--csv")
    assert json.loads(next(csv.DictReader(said.splitlines()))["set"]) == [rows[0]["label"]]
    code, said = call("predict", "images/0.png", "--coverage", "0.95")
    assert said == f"images/0.png\t{rows[0]['label']}\t{rows[0]['probability']:.4f}\t{{{rows[0]['label']}}}\n"
    code, said = call("predict", "images/0.png", "--coverage", "0.7")
    assert code == 2 and "promises no coverage of 0.7. It has 0.95." in said
    assert call("predict", "images/0.png", "--coverage", "0.95", "--tta")[0] == 2
    piped = CliRunner().invoke(group, ["predict", "-"], input=encode(images[0]))
    assert piped.output.startswith(f"(stdin)\t{rows[0]['label']}\t")
    listed = CliRunner().invoke(group, ["predict", "-", "--tta", "--explain", "maps"], input="images/1.png\n")
    assert listed.output.startswith(f"images/1.png\t{rows[1]['label']}\t"), listed.output
    assert [path.name for path in Path("maps").iterdir()] == ["00000-1.png"]
    code, said = call("predict", "nowhere.png")
    assert code == 1
    assert "no such file" in said
    assert call("predict")[0] == 2


def encode(image: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def serve_the_champion(workspace: Path) -> None:
    """The real server, asked as anyone would ask it."""
    image = np.load("data/prepared/test/images.npy")[0]
    wanted = json.loads(call("predict", "images/0.png", "--json")[1])
    with running("serve", "/ping") as url:
        answer = ask(f"{url}/invocations", {"dataframe_records": [{"image": base64.b64encode(encode(image)).decode()}]})
        assert answer["predictions"][0]["label"] == wanted["label"]
        assert answer["predictions"][0]["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)
        assert "set" not in answer["predictions"][0]
        rows = {"dataframe_records": [{"image": base64.b64encode(encode(image)).decode()}]}
        promised = ask(f"{url}/invocations", {**rows, "params": {"coverage": 0.95}})
        assert promised["predictions"][0]["set"] == [wanted["label"]]
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(f"{url}/invocations", {**rows, "params": {"coverage": 0.5}})
        assert refusal.value.code == 400
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(f"{url}/invocations", {"dataframe_records": [{"image": "bm8gcGljdHVyZQ=="}]})
        assert refusal.value.code == 400
        refusal.value.close()


def export_the_champion() -> None:
    code, said = call("export", "saved_model", "--to", "phone")
    assert code == 0, said
    assert "phone/saved_model/model\t" in said
    record = load_json(Path("phone/saved_model/export.json"))
    assert record["source"] == {"model": "frostline", "version": "1", "sha256": sha256_of(Path("models/final.keras"))}
    assert (record["classes"], record["image_size"], record["resize"]) == (list(CLASSES), SIZE, "squash")
    assert call("export", "saved_model", "--model", "models/final.keras")[0] == 0
    assert load_json(Path("exports/final/saved_model/export.json"))["num_images"] == 16
    assert call("export", "saved_model", "--model", "x.keras", "--version", "1")[0] == 2


def test_a_server_does_what_the_database_does_and_answers_this_machine_alone(
    workspace: Path, mlflow_tables: Path, tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    team = tmp_path / "team"
    team.mkdir()
    for path in (workspace / "params.yaml", workspace / "dvc.yaml", mlflow_tables):
        shutil.copy(path, team)
    with running("ui", "/health", team) as url:
        with urllib.request.urlopen(f"{url}/version", timeout=60) as answer:
            assert answer.status == 200
        rebound = urllib.request.Request(f"{url}/", headers={"Host": "10.evil.com"})
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(rebound, timeout=60)
        assert refusal.value.code == 403
        refusal.value.close()

        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        store = open_store(load_params().tracking, workspace)
        parent = open_study_run(store, "d1", params={"epochs": 2}, tags={})
        log_trial(store, parent, make_trial(3), tags={}, ended=2.0)
        close_run(store, parent, artifacts=[Path("reports/evaluation/evaluation.json")])
        assert load_artifact(store, parent, "evaluation.json", tmp_path).is_file()
        assert open_study_run(store, "d1", params={"epochs": 2}, tags={}) == parent

        # The run that the workspace names is of another store, as after a pull from a teammate.
        assert run_register()["version"] == 1
        code, said = call("promote")
        assert code == 0, said
        moves.move_champion(store, add(store, files[0], name="frostline"), 1, "forced", "a test")
        assert "version 1 is the champion again" in call("rollback")[1]
        assert [json.loads(line)["to_version"] for line in call("history", "--json")[1].splitlines()] == [1, 2, 1]
        assert "trial 03" in call("compare")[1]
        assert "final · trial 03" in call("trace", "champion")[1]
        # The version keeps its study, old as its trial says it is.
        assert call("clean")[1].startswith("0 leftovers")
    # All of it lies with the server.
    assert (team / "mlruns").is_dir() and not (workspace / "mlruns").exists()


@contextlib.contextmanager
def running(name: str, healthy: str, folder: Path | None = None):
    """The address of `frostline NAME`, running in the folder and answering; ended with the block."""
    program = "from frostline.cli import main; main()"
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-c", program, name, "--port", "0"]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            # Half a minute on an idle machine; a loaded one imports these libraries ten times as slowly.
            while time.monotonic() < started + 400:
                log.seek(0)
                said = log.read()
                assert process.poll() is None, said
                found = re.search(r"http://127\.0\.0\.1:\d+", said)
                with contextlib.suppress(OSError):
                    if found and urllib.request.urlopen(found.group() + healthy, timeout=5).status == 200:
                        break
                time.sleep(0.5)
            else:
                raise AssertionError(said)
            yield found.group()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def ask(url: str, body: object) -> dict[str, list[dict[str, object]]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_a_worse_model_is_refused_and_force_is_recorded(workspace):
    run_register()
    assert call("promote")[0] == 0
    train_again(-1.0)
    assert run_register()["version"] == 2
    code, said = call("promote")
    assert code == 1, said
    assert "FAIL  comparison" in said
    # Its golden predictions are those of the old model.
    assert "FAIL  golden" in said
    store = open_store(load_params().tracking, workspace)
    assert number_at(store, "frostline", CHAMPION) == 1
    assert call("promote", "--force")[0] == 2
    code, said = call("promote", "--force", "--reason", "the shop asked for it")
    assert code == 0, said
    assert call("rollback", "--reason", "the shop was wrong") == (
        0,
        "frostline version 1 is the champion again; it was version 2.\n",
    )
    verdicts = [json.loads(line) for line in call("history", "--json")[1].splitlines()]
    assert [move["verdict"] for move in verdicts] == ["accepted", "refused", "forced", "rollback"]
    assert verdicts[2]["reason"] == "the shop asked for it"


def test_after_a_class_was_added_the_gate_says_so_and_force_promotes(workspace):
    run_register()
    assert call("promote")[0] == 0
    # The same images; the third class is called otherwise now, so that one is new and one is gone.
    classes = [*CLASSES[:2], "newcomers"]
    save_json(Path("data/prepared/classes.json"), classes)
    path = Path("reports/evaluation/predictions.csv")
    path.write_text(path.read_text().replace(f"p({CLASSES[2]})", "p(newcomers)"))
    train_again(1.01)
    assert run_register()["version"] == 2
    code, said = call("promote")
    assert code == 1, said
    assert "FAIL  same_classes" in said
    assert "new: newcomers" in said
    code, said = call("promote", "--force", "--reason", "a class more")
    assert code == 0, said
    store = open_store(load_params().tracking, workspace)
    assert number_at(store, "frostline", CHAMPION) == 2


def test_a_model_that_is_not_refits_is_not_registered(workspace):
    Path("models/final.keras").write_bytes(b"another")
    with pytest.raises(Refused, match="not the model that `refit` wrote"):
        run_register()


def test_an_experiment_moves_no_alias(workspace, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "lucky-cat")
    registration = run_register()
    assert registration["version"] is None
    assert "lucky-cat" in registration["reason"]
    code, said = call("promote")
    assert code == 2
    assert "dvc exp apply lucky-cat" in said
    store = open_store(load_params().tracking, workspace)
    assert store.client.get_run(registration["run_id"]).info.status == "FINISHED"


def test_test_images_in_the_training_data_are_found(workspace):
    run_register()
    params = load_params()
    store = open_store(params.tracking, workspace)
    version = load_version(store, "frostline", 1)
    facts = {"content_sha256": "d" * 64}
    prepared = Path("data/prepared")
    assert promotion.find_leaks(store, prepared, FEATURES, version, facts, 4) == []
    with (prepared / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows[70] = {**rows[70], "pixel_sha256": rows[3]["pixel_sha256"]}
    write_rows(prepared / "manifest.csv", rows)
    assert promotion.find_leaks(store, prepared, FEATURES, version, facts, None) == [rows[70]["image_id"]]


def test_a_version_made_from_other_data_says_itself_what_it_has_seen(workspace):
    """Ten of its training images are in the test split now, two of them under other names; the gate leaves them out."""
    run_register()
    params = load_params()
    store = open_store(params.tracking, workspace)
    version = load_version(store, "frostline", 1)
    prepared = Path("data/prepared")
    images = load_images(store, version)
    assert len(images) == 180 and len(trained_on(images)) == 60
    now = {"content_sha256": "e" * 64}
    with (prepared / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    for index in range(10):  # the file of a training image, where a test image stood
        rows[60 + index]["sha256"] = rows[index]["sha256"]
    write_rows(prepared / "manifest.csv", rows)
    ids = tuple(load_json(prepared / "test/ids.json"))
    seen = promotion.find_seen(store, prepared, FEATURES, version, now, ids)
    assert np.flatnonzero(seen).tolist() == list(range(10))
    assert promotion.find_leaks(store, prepared, FEATURES, version, now, 4) == sorted(ids[:10])
    assert not promotion.find_seen(store, prepared, FEATURES, version, {"content_sha256": "d" * 64}, ids).any()
    store.client.delete_run(version.run_id)
    shutil.rmtree(next(Path("mlruns").rglob("manifest.csv")).parent)
    assert promotion.find_seen(store, prepared, FEATURES, version, now, ids) is None


def test_a_challenger_stands_beside_the_champion_with_its_images_and_its_accuracy(workspace):
    run_register()
    assert call("promote", "--force", "--reason", "first")[0] == 0
    prepared = Path("data/prepared")
    with (prepared / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows[170]["split"] = "train"  # so that it does not count
    write_rows(prepared / "manifest.csv", [*rows[1:], {**rows[0], "image_id": "a/new.png", "sha256": "f" * 64}])
    # Another model: it answers as before but for three images.
    with Path("reports/evaluation/predictions.csv").open() as file:
        answers = list(csv.DictReader(file))
    for row in answers[:3]:
        own, other = f"p({row['label']})", f"p({next(name for name in CLASSES if name != row['label'])})"
        row |= {own: row[other], other: row[own]}
    write_rows(Path("reports/evaluation/predictions.csv"), answers)
    found = compare_with_champion(
        open_store(load_params().tracking, workspace), "frostline", prepared, Path("reports/evaluation/predictions.csv")
    )
    assert found.champion == 1 and found.num_shared == 119
    assert len(found.changes.added) == len(found.changes.removed) == len(found.changes.moved) == 1
    assert (
        found.difference.value == pytest.approx(-3 / 119)
        and "Against champion version 1: 180 images" in found.describe()
    )


def test_near_duplicates_of_training_images_are_found(workspace):
    run_register()
    store = open_store(load_params().tracking, workspace)
    version = load_version(store, "frostline", 1)
    prepared = Path("data/prepared")
    images = np.load(prepared / "test" / "images.npy")
    images[5] = np.clip(np.load(prepared / "train" / "images.npy")[2].astype(int) + 3, 0, 255)
    np.save(prepared / "test" / "images.npy", images)
    with (prepared / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows[65]["dhash"] = f"{make_fingerprints(images[5])[0]:016x}"
    write_rows(prepared / "manifest.csv", rows)
    assert promotion.find_leaks(store, prepared, FEATURES, version, {"content_sha256": "d" * 64}, 4) == [
        rows[65]["image_id"]
    ]


def test_near_duplicates_that_features_told_are_leaks_unless_they_were_left_out(workspace):
    with Path("data/prepared/manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    train, test = rows[3]["image_id"], rows[70]["image_id"]
    assert (rows[3]["split"], rows[70]["split"]) == ("train", "test")
    FEATURES.mkdir(parents=True)
    pair = {
        "image": train,
        "split": "train",
        "other": test,
        "other_split": "test",
        "correlation": 0.9,
        "mirrored": "no",
    }
    write_rows(FEATURES / "near_duplicates.csv", [pair])
    run_register()
    store, prepared = open_store(load_params().tracking, workspace), Path("data/prepared")
    version = load_version(store, "frostline", 1)
    ids = load_split(prepared / "test").ids
    here, elsewhere = {"content_sha256": "d" * 64}, {"content_sha256": "e" * 64}
    assert promotion.find_leaks(store, prepared, FEATURES, version, here, 4) == [test]
    # Another workspace has trained on the file whose copy is tested here.
    for row in rows[60:]:
        row["sha256"] = row["sha256"][::-1]
    write_rows(prepared / "manifest.csv", rows)
    assert np.array(ids)[promotion.find_seen(store, prepared, FEATURES, version, elsewhere, ids)].tolist() == [test]
    # Its refit had left that one out.
    used = [row["image_id"] for row in rows[:60] if row["image_id"] != train]
    own = np.full((len(used), 3), 1 / 3)
    unseen = Predictions(tuple(used), np.zeros(len(used), int), own, CLASSES, "out of fold")
    save_predictions(Path("models/out_of_fold.csv"), unseen)
    store.client.log_artifact(version.run_id, "models/out_of_fold.csv")
    assert promotion.find_leaks(store, prepared, FEATURES, version, here, 4) == []
    assert not promotion.find_seen(store, prepared, FEATURES, version, elsewhere, ids).any()


def test_another_registrys_version_is_not_promoted(workspace, tmp_path):
    run_register()
    registration = load_json(Path("reports/registration.json"))
    save_json(Path("reports/registration.json"), {**registration, "sha256": "0" * 64})
    code, said = call("promote")
    assert code == 2
    assert "another model than this workspace's" in said
    save_json(Path("reports/registration.json"), {**registration, "version": 9})
    assert "has no version 9" in call("promote")[1]


def test_golden_images_are_those_of_the_split_with_their_answers(workspace):
    images, probabilities = load_golden(Path("reports/evaluation/predictions.csv"), Path("data/prepared/test"), CLASSES)
    assert images.shape == (16, SIZE, SIZE, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(images[0], np.load("data/prepared/test/images.npy")[0])
