"""The whole line: `dvc repro` in a temporary clone, small settings, and what a user does around it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from network import list_calls, watched
from planted import ENVIRONMENT, find_planted, plant
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
# `source` looks at the source each time; the others run when something has changed.
STAGES = [name for name in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"] if name != "source"]
# As small as the line can be walked with: a base of three convolutions, 8 classes of 24 images at 32 px.
SMALL = {
    "fetch.source": "generated",
    "fetch.images_per_class": 24,
    "base.name": "custom",
    "base.image_size": 32,
    "base.output_layer": None,
    "base.options": {},
    "augment.views": 2,
    "tune.num_trials": 3,
    "tune.epochs": 2,
    "tune.space.unfrozen_blocks": "auto",  # both blocks of the base
    "refit.folds": 2,
    "refit.candidates": 1,
    "evaluate.resamples": 100,
    "evaluate.worst_mistakes": 4,
    "evaluate.explained": 2,
    "promote.min_test_images": 10,
    "tracking.uri": None,
}


class Project:
    """A clone of the working tree that runs on its own code, with this environment's programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        person = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in PERSON.items()}
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("MLFLOW_TRACKING", "DVC_ROOT"))
            },
            **person,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(folder / "src"),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }

    def run(self, *command: str, code: int = 0) -> str:
        """What the command printed, and where it was to fail with `code` also its errors; fails on another exit code."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, text=True, capture_output=True, check=False
        )
        assert done.returncode == code, (
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout if code == 0 else done.stdout + done.stderr

    def frostline(self, *arguments: str, code: int = 0) -> str:
        return self.run(sys.executable, "-c", "from frostline.cli import main; main()", *arguments, code=code)

    def repro(self) -> list[str]:
        """The stages that `dvc repro` ran, in order, but for `source`, which runs each time."""
        return ran_in(self.run("dvc", "repro"))

    def set(self, values: Mapping[str, Any]) -> None:
        yaml = YAML()
        path = self.folder / "params.yaml"
        document = yaml.load(path)
        for name, value in values.items():
            *parents, last = name.split(".")
            section = document
            for parent in parents:
                section = section[parent]
            section[last] = value
        yaml.dump(document, path)

    def load(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def trial_runs(self) -> dict[str, str]:
        """Run id -> status of every trial that MLflow knows of, whoever ran it."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, "tags.`frostline.kind` = 'trial'")
        assert all(Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(self.folder) for run in runs)
        return {run.info.run_id: run.info.status for run in runs}


PERSON = {"NAME": "tester", "EMAIL": "tester@localhost"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A `.keras` file with three convolutions, each after the first a block of its own."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((32, 32, 3))
    for block, filters in enumerate((8, 16, 32)):
        x = layers.Conv2D(
            filters, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=f"conv{block}"
        )(x)
        x = layers.MaxPooling2D(name=f"pool{block}")(x)
    path = tmp_path / "tiny.keras"
    keras.Model(inputs, x).save(path)
    return path


def start_project(folder: Path) -> Project:
    """The files that git knows or would add, with the default params, as a fresh repository without a commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        # `dvc.lock` is of somebody's own data.
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(folder / "presets" / "default.yaml", folder / "params.yaml")
    made = Project(folder)
    made.run("git", "init", "--quiet", "--initial-branch", "main")
    return made


@pytest.fixture
def project(tmp_path: Path, base: Path) -> Project:
    """A committed project with small params, and secrets around it."""
    made = start_project(tmp_path / "project")
    made.set({**SMALL, "base.weights": str(base)})
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "-m", "start")
    plant(made.folder)
    made.environment |= ENVIRONMENT
    return made


def test_the_whole_line_from_clone_to_teammate(project: Project, tmp_path: Path) -> None:
    assert project.frostline("check").endswith("params.yaml: no problem\n")

    # A fresh clone runs all stages, then none. Nobody is called.
    calls = tmp_path / "calls.log"
    assert ran_in(project.run(*watched(("dvc", "repro"), calls))) == STAGES
    assert list_calls(calls) == []
    assert project.load("data/features/complete.json")["searched"] == [0, 2]
    trials = project.load("reports/tune/trials.json")
    assert [trial["number"] for trial in trials["trials"]] == [0, 1, 2]
    assert [trial["hparams"]["head_input"] for trial in trials["trials"][:2]] == ["last", "all"]
    assert [trial["hparams"]["unfrozen_blocks"] for trial in trials["trials"][:2]] == [0, 0]
    refit = project.load("models/refit.json")
    assert [each["name"] for each in refit["candidates"]][:2] == ["bare head", "head on every cut"]
    table = (project.folder / "models" / "out_of_fold.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 1 + refit["num_images"]
    runs = project.trial_runs()
    assert set(runs) == {trial["run_id"] for trial in trials["trials"]}
    assert "RUNNING" not in runs.values()
    evaluation = project.load("reports/evaluation/evaluation.json")
    assert 0 <= evaluation["accuracy"]["low"] <= evaluation["accuracy"]["value"] <= evaluation["accuracy"]["high"] <= 1
    assert project.load("reports/registration.json")["version"] == 1
    assert "version 1" in project.frostline("summary")
    assert project.repro() == []
    assert project.trial_runs() == runs
    # Data is stored once: DVC's cache and the outputs are the same files.
    arrays = [path for folder in ("views", "features") for path in (project.folder / "data" / folder).rglob("*.npy")]
    assert arrays and all(path.stat().st_nlink > 1 for path in arrays)
    # Nothing that a run writes is in git's way, and the store is no output.
    changed = {line[3:] for line in project.run("git", "status", "--porcelain").splitlines()}
    assert changed <= {"dvc.lock"}, changed
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "-m", "three trials")

    # An experiment in a temporary folder: one more trial. The study goes on, only tune and what follows runs, no run is
    # lost, and no alias moves.
    registered = project.load("reports/registration.json")
    first_model = project.load("models/refit.json")["sha256"]["final"]
    said = project.run("dvc", "exp", "run", "--temp", "--name", "fourth", "-S", "tune.num_trials=4")
    assert ran_in(said) == STAGES[STAGES.index("tune") :]
    assert re.search(r"^fourth,", project.run("dvc", "exp", "show", "--csv"), re.MULTILINE)
    assert project.load("reports/registration.json") == registered
    project.run("dvc", "exp", "apply", "fourth")
    longer = project.load("reports/tune/trials.json")
    assert longer["study"] == trials["study"]
    assert longer["trials"][:3] == trials["trials"]
    assert set(project.trial_runs()) == {trial["run_id"] for trial in longer["trials"]} > set(runs)
    assert len(list((project.folder / "studies").glob("*.db"))) == 1

    # What it found is compared with what was before, and registered when the user says so.
    assert "tune.num_trials" in project.run("dvc", "params", "diff")
    assert "accuracy" in project.run("dvc", "metrics", "diff", "--all")
    assert project.repro() == []
    assert "dvc repro --force --single-item register" in project.frostline("promote", code=2)
    project.run("dvc", "repro", "--force", "--single-item", "register")
    # The same training gives the same file, and the same file is the same version.
    same = project.load("models/refit.json")["sha256"]["final"] == first_model
    assert project.load("reports/registration.json")["version"] == (1 if same else 2)
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "-m", "four trials")

    # A comment in a module touches the stages whose code holds it, and no other.
    module = project.folder / "src" / "frostline" / "images" / "views.py"
    text = module.read_text(encoding="utf-8")
    module.write_text(text + "# a comment\n", encoding="utf-8")
    status = json.loads(project.run("dvc", "status", "--json"))
    assert [stage for stage, changes in status.items() if "images/views.py" in str(changes)] == ["augment"]
    module.write_text(text, encoding="utf-8")

    # What looks wrong is listed; an image that somebody keeps is prepared as before, so that nothing else runs again.
    said = project.frostline("review", "--list", "--limit", "1").splitlines()
    image = said[1].split("\t")[0]
    with (project.folder / "decisions.csv").open("a", encoding="utf-8") as table:
        table.write(f"{image},keep,,,,tester,\n")
    assert project.repro() == ["prepare"]
    assert image not in project.frostline("review", "--list", "--limit", "1")
    assert project.frostline("report", "--no-open") == "reports/evaluation/report.html\n"
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "-m", "looked at")

    # A teammate with the same remote gets all results and computes nothing.
    project.run("dvc", "remote", "add", "--default", "team", str(tmp_path / "remote"))
    project.run("git", "commit", "--quiet", "-m", "a remote", ".dvc/config")
    project.run("dvc", "push")
    project.run("git", "clone", "--quiet", str(project.folder), str(tmp_path / "teammate"))
    teammate = Project(tmp_path / "teammate")
    teammate.run("dvc", "pull")
    assert teammate.repro() == []
    assert teammate.load("reports/tune/trials.json") == longer
    assert not (teammate.folder / "mlflow.db").exists()
    # Some images more: what was pulled is used, and only their rows are made.
    teammate.set({"fetch.images_per_class": 25})
    said = teammate.run("dvc", "repro", "extract")
    assert re.search(r"since the last run: \d+ images, \d+ before; \d+ added", said)
    made = re.findall(r"(?:augment|extract): .*: (\d+) of (\d+) rows are new", said)
    assert len(made) == 4 and all(0 < int(new) < int(all_) / 5 for new, all_ in made), said

    # Longer training with other weights is another study and another model. It becomes champion; undone, the first one is again.
    project.set({"tune.epochs": 3, "tune.class_weights": "balanced"})
    said = project.run("dvc", "repro")
    assert ran_in(said) == STAGES[STAGES.index("tune") :]
    assert f"of study {longer['study']} tried" in said
    started = [trial["started_from"] for trial in project.load("reports/tune/trials.json")["trials"]]
    assert started[:2] == [None, None] and started[2].startswith(longer["study"])
    assert project.load("models/refit.json")["sha256"]["final"] != first_model
    assert project.load("reports/registration.json")["version"] == (2 if same else 3)
    make_champion(project, 1)
    refused = project.frostline("promote", "--force", code=2)
    assert "--reason" in refused and "Traceback" not in refused
    assert "champion now" in project.frostline("promote", "--force", "--reason", "a test")
    assert project.load("reports/promotion.json")["outcome"] in ("forced", "accepted")
    images = sorted((project.folder / "data" / "raw").rglob("*.png"))[:2]
    rows = [json.loads(line) for line in project.frostline("predict", "--json", *map(str, images)).splitlines()]
    classes = project.load("data/prepared/classes.json")
    assert len(rows) == 2 and all(row["label"] in classes and 0 <= row["familiarity"] <= 1 for row in rows)
    assert project.load("models/refit.json")["familiarity_difference"] < 0.1
    assert set(project.load("reports/evaluation/strangers.json")["auroc"]) == {"generated patterns"}
    assert "version 1 is the champion again" in project.frostline("rollback")
    assert "rollback" in project.frostline("history")
    # All of it ran with secrets around it.
    assert find_planted(tmp_path) == []


def ran_in(said: str) -> list[str]:
    """The stages that DVC says it ran, in order, but for `source`, which runs each time."""
    return [name for name in re.findall(r"Running stage '(\w+)'", said) if name != "source"]


def make_champion(project: Project, number: int) -> None:
    """Points `champion` at a version without scoring it again, which would start TensorFlow once more."""
    script = (
        "from frostline.params import load_params\n"
        "from frostline.process import project_root\n"
        "from frostline.registry.versions import load_version\n"
        "from frostline.registry.moves import move_champion\n"
        "from frostline.tracking.store import open_store\n"
        "params = load_params()\n"
        "store = open_store(params.tracking, project_root())\n"
        f"version = load_version(store, params.register_.name, {number})\n"
        "move_champion(store, version, None, 'forced', 'a test')\n"
    )
    project.run(sys.executable, "-c", script)
