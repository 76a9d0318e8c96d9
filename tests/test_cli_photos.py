"""A folder of one's own: what it holds is said, what suits is written with its reasons, and `train` goes on from there."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_cli_use import project  # noqa: F401 (a fixture)

from frostline.cli import screen
from frostline.cli.photos import choose_base, choose_search
from frostline.images.generated.sets import write_target
from frostline.params import load_params
from frostline.planning.defaults import choose_settings

CANDIDATE = ("--candidate", "MobileNetV2,weights=bundled,alpha=0.35")


@pytest.fixture
def photos(project, monkeypatch):  # noqa: F811
    """The project, with drawn images of three classes in `mine`, one of them small; bases are judged at 48 px alone."""
    write_target(project / "all", 24, 48, 7)
    for number, name in enumerate(sorted(folder.name for folder in (project / "all").iterdir())[:3]):
        shutil.copytree(project / "all" / name, project / "mine" / name)
        for file in sorted((project / "mine" / name).iterdir())[(12 if number == 0 else 24) :]:
            file.unlink()
    shutil.rmtree(project / "all")
    monkeypatch.setattr(screen, "list_bases", lambda _, candidates, __: bases(candidates))
    return project


def bases(candidates):
    return [screen.parse_candidate(text).model_copy(update={"image_size": 48}) for text in candidates]


def test_what_suits_is_written_with_its_reasons(photos, run_cli):
    answer = run_cli("use", "photos", "--data", "mine", *CANDIDATE, "--minutes", "30")
    assert answer.code == 0, answer.err
    assert "60 images in 3 classes" in answer.out and "Next: dvc repro" in answer.out
    assert "A first answer" in answer.out and "plan: tune" in answer.out
    params = load_params()
    assert params.fetch.source == "mine"
    assert (params.base.name, params.base.weights, params.base.image_size) == ("MobileNetV2", "bundled", 48)
    assert params.prepare.test_share == 0.3 and params.augment.views == params.tune.epochs == 12
    text = (photos / "params.yaml").read_text()
    assert "# about 18 images: an accuracy of 0.9 is known to ±0.14" in text
    assert "by `frostline screen`" in text and "minutes for the whole line" in text

    # The first model answers already, with the classes of this folder.
    file = next((photos / "mine").rglob("*.png"))
    said = run_cli("predict", "--model", "reports/screen/first.keras", str(file), "--json")
    assert said.code == 0, said.err
    classes = json.loads((photos / "reports/screen/classes.json").read_text())
    assert json.loads(said.out)["label"] in classes and len(classes) == 3

    # It is no edit of a person's: another preset may take its place, and an edit is kept.
    assert run_cli("use", "default").code == 0
    (photos / "params.yaml").write_text(text + "# mine\n")
    refused = run_cli("use", "photos", "--data", "mine", *CANDIDATE)
    assert refused.code == 2 and "has edits of yours" in refused.err
    assert (photos / "params.yaml").read_text() == text + "# mine\n"


def test_what_takes_too_long_gives_way_depth_first_then_views(root):
    """A line of five seconds a view and ten a block, of a base with six blocks."""

    def plan(_, params):
        seconds = 5 * params.augment.views + 10 * params.tune.space.unfrozen_blocks[1]
        return SimpleNamespace(seconds=seconds)

    best = SimpleNamespace(network=SimpleNamespace(cuts=range(7)))
    screening = SimpleNamespace(plan=plan)
    text = (root / "presets" / "default.yaml").read_text()
    found = {}
    for seconds in (200, 120, 75, 45, 15, 12, 1):
        search, _ = choose_search(screening, best, text, 12, seconds / 60)
        found[seconds] = (
            search["augment.views"],
            search["tune.space.unfrozen_blocks"][1],
            search.get("tune.num_trials"),
        )
    assert found == {
        200: (12, 6, None),
        120: (12, 6, None),
        75: (12, 1, None),
        45: (6, 1, None),
        15: (1, 1, None),
        12: (1, 0, 2),  # the linear heads alone
        1: (1, 0, 2),
    }


def test_a_base_that_there_is_no_time_for_gives_way_and_that_is_said(photos, run_cli, monkeypatch):
    """The better of two sizes is said to take an hour."""
    plan = screen.Screening.plan

    def plan_slowly(self, found, params=None):
        planned = plan(self, found, params)
        if found is self.best:
            planned.steps[0] = replace(planned.steps[0], seconds=3600.0)
        return planned

    monkeypatch.setattr(screen.Screening, "plan", plan_slowly)
    sizes = (48, 64)
    monkeypatch.setattr(
        screen,
        "list_bases",
        lambda _, candidates, __: [
            each.model_copy(update={"image_size": size}) for size in sizes for each in bases(candidates)
        ],
    )
    answer = run_cli("use", "photos", "--data", "mine", *CANDIDATE, "--minutes", "30")
    assert answer.code == 0, answer.err
    (said,) = [line for line in answer.out.splitlines() if line.startswith("Taken is ")]
    taken = load_params().base.image_size
    (other,) = set(sizes) - {taken}
    assert f"at {taken} px: " in said and f"at {other} px would take more than 30 minutes" in said
    assert f"{other} px would take more than 30 minutes" in (photos / "params.yaml").read_text()


def test_of_the_best_bases_the_first_is_taken_that_there_is_time_for(root):
    """Bases of 100, 50 and 200 seconds for the linear heads alone, twice that for a search."""
    text = (root / "presets" / "default.yaml").read_text()

    def plan(each, params):
        return SimpleNamespace(seconds=each.seconds * (2 if params.tune.space.unfrozen_blocks[1] else 1))

    slow, fast, slowest = (
        SimpleNamespace(seconds=seconds, network=SimpleNamespace(cuts=range(7))) for seconds in (100, 50, 200)
    )
    screening = SimpleNamespace(ranked=[slow, fast], left=[slowest], plan=plan)
    found = {}
    for minutes in (4, 2, 1.2, 0.5):
        best, search, its_plan = choose_base(screening, text, 12, minutes)
        found[minutes] = (best, search["tune.space.unfrozen_blocks"], its_plan.seconds)
    assert found == {
        4: (slow, [0, 6], 200),
        2: (slow, [0, 0], 100),
        1.2: (fast, [0, 0], 50),
        0.5: (fast, [0, 0], 50),
    }


def test_a_folder_that_cannot_be_understood_changes_nothing(photos, run_cli):
    before = (photos / "params.yaml").read_text()
    for data in ("nowhere", "presets"):
        answer = run_cli("use", "photos", "--data", data)
        assert answer.code == 2 and "fetch.source" in answer.err
    assert run_cli("use", "photos").code == 2
    assert (photos / "params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("num_files", "splits", "test_share", "epochs"),
    [
        (20, {}, 0.3, 12),
        (800, {}, 0.3, 12),
        (2_000, {}, 0.2, 8),
        (20_000, {}, 0.1, 3),
        (200_000, {}, 0.1, 3),
        (3_000, {"train": 2_000, "validation": 1_000}, None, 8),
    ],
)
def test_the_number_of_images_decides(num_files, splits, test_share, epochs):
    chosen = choose_settings(num_files, splits)
    assert chosen["tune.epochs"].value == chosen["augment.views"].value == epochs
    assert (chosen["prepare.test_share"].value if test_share else "prepare.test_share" not in chosen) == (
        test_share or True
    )
