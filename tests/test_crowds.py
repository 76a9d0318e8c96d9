"""Programs beside each other in one project, and the same line on fewer cores; the long form, by `make torture`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from killing import FREE, OUTS, PROJECT, make_base, make_project, state_of
from test_line import SMALL, Project, start_project
from torture import LONG

from frostline.tracking.store import create_database

pytestmark = pytest.mark.skipif(not LONG, reason="the whole line, several times: `make torture`")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A committed project with small params, on which nothing has run."""
    make_base(tmp_path / "tiny.keras")
    made = start_project(tmp_path / PROJECT)
    made.set({**SMALL, "base.weights": str(tmp_path / "tiny.keras")})
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "-m", "start")
    return made


def test_two_queued_experiments_at_once_lose_nothing(project: Project) -> None:
    project.run("dvc", "repro", "extract")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "-m", "features")
    for name, trials, epochs in (("short", 4, 1), ("long", 5, 3)):
        changes = ("-S", f"tune.num_trials={trials}", "-S", f"tune.epochs={epochs}")
        project.run("dvc", "exp", "run", "--queue", "--name", name, *changes)
    project.run("dvc", "queue", "start", "--jobs", "2")
    project.run("dvc", "queue", "logs", "--follow", "short")
    project.run("dvc", "queue", "logs", "--follow", "long")
    for name, trials in (("short", 4), ("long", 5)):
        said = project.run("dvc", "queue", "logs", name)
        assert "locked" not in said and "Traceback" not in said, said
        project.run("dvc", "exp", "apply", name)
        found = project.load("reports/tune/trials.json")["trials"]
        assert [trial["number"] for trial in found] == list(range(trials))
        runs = project.trial_runs()
        assert {runs[trial["run_id"]] for trial in found} == {"FINISHED"}
    assert len(project.trial_runs()) == 9
    assert len(list((project.folder / "studies").glob("*.db"))) == 2


def test_a_second_repro_beside_the_first_spoils_nothing(project: Project) -> None:
    started = [
        subprocess.Popen(
            ["dvc", "repro"],
            cwd=project.folder,
            env=project.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(2)
    ]
    ended = [(process.communicate()[0], process.returncode) for process in started]
    assert any(code == 0 for _, code in ended), ended
    for said, code in ended:
        assert code == 0 or re.search(r"already running|lock", said), said
        assert "database is locked" not in said
    trials = project.load("reports/tune/trials.json")["trials"]
    runs = project.trial_runs()
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert sorted(runs) == sorted(trial["run_id"] for trial in trials) and {*runs.values()} == {"FINISHED"}
    assert project.repro() == []
    assert project.load("reports/registration.json")["version"] == 1


# What names a moment, a process, its cores or a draw, and what was measured in seconds, which one figure, report and card show; a
# version's folder names its run.
MOMENTS = re.compile(
    r"run_id|trial_run|parentRunId|model_id|\.at$|started|pid|draw$|revision|seconds|frostline\.(host|boot|device)"
    r"|frost_line\.png|report\.html|model_card\.md|folder\.sha256"
)


def test_the_same_line_on_one_core_and_on_all_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    states, folder = [], tmp_path / PROJECT  # paths are among the values
    make_project(tmp_path / "template")
    for cores in ({0}, os.sched_getaffinity(0)):
        shutil.copytree(tmp_path / "template", folder, symlinks=True)
        create_database(folder / "mlflow.db", folder)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
        for name in OUTS:
            done = subprocess.run(
                [sys.executable, f"pipelines/{name}.py"],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                preexec_fn=lambda cores=cores: os.sched_setaffinity(0, cores),
            )
            assert done.returncode == 0, done.stderr
        states.append(state_of(folder))
        folder.rename(tmp_path / f"done-{len(cores)}-{len(states)}")
    one, all_ = states
    differing = {key for key in {*one, *all_} if one.get(key) != all_.get(key)}
    unexplained = sorted(key for key in differing if not FREE.search(key) and not MOMENTS.search(key))
    print(f"{len(one)} files and values, {len(differing)} differ: {sorted(differing)}")
    assert unexplained == [] and len(one) > 1000
