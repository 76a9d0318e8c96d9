import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frostline.errors import Refused
from frostline.files import load_json, path_of, save_json
from frostline.images.survey import SOURCE_FILE
from frostline.params import Paths
from frostline.planning.workspace import OWN, find_overlaps, find_strangers, set_aside, stranger_problems
from frostline.process import RUNS

PATHS = {
    "raw": "data/raw",
    "base": "data/base",
    "prepared": "data/prepared",
    "views": "data/views",
    "features": "data/features",
    "study": "reports/tune",
    "refit": "models",
    "evaluation": "reports/evaluation",
    "registration": "reports/registration.json",
}
PLACES = [*PATHS.values(), SOURCE_FILE]


def overlaps(root: Path, inputs: dict[str, str] | None = None, **paths: str) -> list[str]:
    return find_overlaps(Paths(**{**PATHS, **paths}), inputs or {}, root)


def write(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def record_run(root: Path, stage: str, **times: float) -> None:
    (root / RUNS).mkdir(parents=True, exist_ok=True)
    record = root / RUNS / f"{stage}.json"
    save_json(record, times)
    if "ended" not in times:  # so long ago it was killed
        os.utime(record, (times["begun"],) * 2)


def test_the_default_places_do_not_overlap(tmp_path):
    assert overlaps(tmp_path, {"fetch.source": "images", "base.weights": "weights/mine.h5"}) == []


@pytest.mark.parametrize("key", ["fetch.source", "base.weights"])
@pytest.mark.parametrize("output", PLACES)
def test_an_input_that_meets_an_output_is_refused(tmp_path, key, output):
    place = Path(output)
    parent = str(place.parent) if place.parent != Path() else ".."
    for form in ("{}", "{}/below/mine.h5", "./{}", "{}/../{name}", "{root}/{}", "{parent}"):
        given = form.format(output, name=place.name, root=tmp_path, parent=parent)
        assert any(problem.startswith(key) and "lost" in problem for problem in overlaps(tmp_path, {key: given})), given


@pytest.mark.parametrize("output", PLACES)
@pytest.mark.parametrize("key", ["fetch.source", "base.weights"])
def test_an_input_that_meets_an_output_through_a_link_is_refused(tmp_path, key, output):
    (tmp_path / output).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path / output) if "." in Path(output).name else (tmp_path / output).mkdir()
    (tmp_path / "mine").symlink_to(tmp_path / output)
    assert overlaps(tmp_path, {key: "mine"})
    # The other way round: the output is the link.
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert overlaps(tmp_path, {key: "images"}, views="link")


@pytest.mark.parametrize("name", sorted(PATHS))
def test_an_output_among_the_projects_own_files_is_refused(tmp_path, name):
    others = [".git", ".dvc/cache", ".venv", ".frostline", "SRC", "src/frostline", "mlflow.db", ".", ".."]
    for place in [*sorted(OWN), *others]:
        assert any(problem.startswith(f"paths.{name}:") for problem in overlaps(tmp_path, **{name: place})), place


@pytest.mark.parametrize("name", sorted(PATHS))
def test_an_output_that_meets_another_is_refused(tmp_path, name):
    for other in PATHS.keys() - {name}:
        assert overlaps(tmp_path, **{name: PATHS[other]}), other
        assert overlaps(tmp_path, **{name: f"{PATHS[other]}/within"}), other


@pytest.mark.parametrize("name", sorted(PATHS))
def test_an_output_that_leads_out_of_its_name_is_refused(tmp_path, name):
    root = tmp_path / "root"
    (root / "src").mkdir(parents=True)
    (root / "link").symlink_to(root / "src")
    (root / "up").symlink_to(tmp_path)
    for place in ("link", "link/x", "up", "/tmp", "~/x", "a\nb"):
        assert overlaps(root, **{name: place}), place


def test_everything_that_git_tracks_is_the_projects_own(root):
    listed = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {name.split("/")[0] for name in listed}
    assert top
    assert {name for name in top if not name.startswith(".") and name.casefold() not in OWN} == set()


@pytest.mark.parametrize("name", sorted(PATHS))
def test_a_users_file_in_an_output_is_named_and_stays(tmp_path, name):
    is_file = name == "registration"
    mine = write(tmp_path / PATHS[name] / ("" if is_file else "cats/mine.jpg"))
    assert find_strangers(Paths(**PATHS), tmp_path) == {name: [mine]}
    (problem,) = stranger_problems(Paths(**PATHS), tmp_path)
    assert str(mine.relative_to(tmp_path)) in problem
    assert "Move them out" in problem
    assert mine.read_text() == "mine"


def test_what_a_stage_wrote_while_it_ran_is_its_own_and_a_file_added_later_is_not(tmp_path):
    begun = time.time() - 1
    write(tmp_path / "data/raw/cats/1.png", "ours")
    record_run(tmp_path, "fetch", begun=begun, ended=time.time())
    assert find_strangers(Paths(**PATHS), tmp_path) == {}
    mine = write(tmp_path / "data/raw/cats/mine.jpg")
    os.utime(mine, (begun - 1e6, begun - 1e6))  # copied with its time
    assert find_strangers(Paths(**PATHS), tmp_path) == {"raw": [mine]}


def test_what_lies_in_dvcs_cache_may_go(tmp_path):
    import hashlib

    def keep(data: bytes, ending: str = "") -> str:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        path = tmp_path / ".dvc/cache/files/md5" / md5[:2] / (md5[2:] + ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return md5 + ending

    listing = [{"md5": keep(b"ours"), "relpath": "cats/1.png"}]
    md5 = keep(json.dumps(listing).encode(), ".dir")
    (tmp_path / "dvc.lock").write_text(f"stages: {{fetch: {{outs: [{{path: data/raw, md5: {md5}}}]}}}}")
    write(tmp_path / "data/raw/cats/1.png", "ours")
    # Of another commit's listing, but in the cache all the same.
    keep(b"older")
    write(tmp_path / "data/raw/cats/2.png", "older")
    assert find_strangers(Paths(**PATHS), tmp_path) == {}
    changed = write(tmp_path / "data/raw/cats/1.png", "retouched")
    assert find_strangers(Paths(**PATHS), tmp_path) == {"raw": [changed]}


def test_what_a_killed_stage_left_is_moved_aside_and_not_deleted(tmp_path):
    record_run(tmp_path, "tune", begun=time.time() - 1)
    write(tmp_path / "reports/tune/trials.json", "half")
    assert stranger_problems(Paths(**PATHS), tmp_path) == []
    (said,) = set_aside(Paths(**PATHS), tmp_path)
    assert "broken off" in said
    (moved,) = (tmp_path / ".frostline/aside").rglob("trials.json")
    assert moved.read_text() == "half"
    assert find_strangers(Paths(**PATHS), tmp_path) == {}


def test_what_a_killed_stage_wrote_while_it_lived_is_its_own(tmp_path):
    (tmp_path / "tune.py").write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from frostline.process import run_stage\n"
        "def main():\n"
        "    time.sleep(1.2)\n"
        "    Path('reports/tune').mkdir(parents=True, exist_ok=True)\n"
        "    Path('reports/tune/trials.json').write_text('half')\n"
        "    os._exit(9)\n"
        "if __name__ == '__main__':\n"
        "    run_stage('tune', main)\n"
    )
    for _ in range(2):  # what the first wrote is known after the second, too
        assert subprocess.run([sys.executable, "tune.py"], cwd=tmp_path, capture_output=True).returncode == 9
        assert find_strangers(Paths(**PATHS), tmp_path) == {}
    time.sleep(0.7)
    mine = write(tmp_path / "reports/tune/mine.json")
    assert find_strangers(Paths(**PATHS), tmp_path) == {"study": [mine]}


def test_a_folder_that_appears_whole_is_never_taken_for_a_killed_stages(tmp_path):
    record_run(tmp_path, "fetch", begun=time.time() - 1)
    write(tmp_path / "data/raw/cats/mine.jpg")
    assert len(stranger_problems(Paths(**PATHS), tmp_path)) == 1


@pytest.mark.parametrize("given", ["~nobody-of-this-name/x", "a\0b", "x" * 5000])
def test_a_text_that_is_no_path_is_refused(tmp_path, given):
    with pytest.raises(Refused, match="no path of this machine"):
        path_of(given, tmp_path)


def test_what_a_stage_wrote_before_it_was_killed_again_and_again_is_its_own(tmp_path):
    """It starts, and asks, before it has written anything anew; DVC did not live to take over what it wrote first."""
    (tmp_path / "fetch.py").write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from frostline.params import Paths\n"
        "from frostline.planning.workspace import stranger_problems\n"
        "from frostline.process import run_stage\n"
        "def main():\n"
        "    paths = Paths(**{name: f'data/{name}' for name in Paths.model_fields})\n"
        "    assert not stranger_problems(paths, Path()), stranger_problems(paths, Path())\n"
        "    if 'die early' in sys.argv: os._exit(9)\n"
        "    Path('data/raw').mkdir(parents=True, exist_ok=True)\n"
        "    Path('data/raw/1.png').write_text('1')\n"
        "    Path('data/raw/complete.json').write_text('{}')\n"
        "    if 'die late' in sys.argv: os._exit(9)\n"
        "if __name__ == '__main__':\n"
        "    run_stage('fetch', main)\n"
    )
    for how, code in (("die late", 9), ("die early", 9), ("live", 0), ("die early", 9), ("die late", 9), ("live", 0)):
        done = subprocess.run([sys.executable, "fetch.py", how], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert set(load_json(tmp_path / RUNS / "fetch.json")) == {"begun", "ended"}
