import shutil
import subprocess

import pytest
from zoo import encode, make_image

from frostline.params import load_params


@pytest.fixture
def project(tmp_path, root, monkeypatch):
    """A project with a committed default params.yaml, two folders of images, and a weights file."""
    folder = tmp_path / "project"
    shutil.copytree(root / "presets", folder / "presets")
    shutil.copy(root / "presets" / "default.yaml", folder / "params.yaml")
    (folder / "dvc.yaml").write_text("stages: {}\n")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    for number, name in enumerate(("horses", "humans")):
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "1.png").write_bytes(encode(make_image(number), "PNG"))
    (tmp_path / "mine.weights.h5").touch()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


def test_without_a_name_the_presets_are_listed(project, run_cli):
    answer = run_cli("use")
    assert answer.code == 0
    assert "labs/cats_vs_dogs_mobilenet" in answer.out and "MobileNetV2 1.0 at 160 px" in answer.out


def test_a_preset_with_data_and_weights_of_ones_own(project, run_cli):
    answer = run_cli("use", "labs/horses_or_humans", "--data", "images", "--weights", "../mine.weights.h5")
    assert answer.code == 0, answer.err
    assert "Next: dvc repro" in answer.out
    params = load_params(project / "params.yaml")
    assert (params.base.name, params.base.output_layer) == ("InceptionV3", "mixed7")
    # Below the root a path is relative, so that the file can be shared; elsewhere it is absolute.
    assert params.fetch.source == "images"
    assert params.base.weights == str(project.parent / "mine.weights.h5")


def test_another_base_takes_the_place_of_the_presets(project, run_cli):
    answer = run_cli("use", "labs/horses_or_humans", "--data", "images", "--base", "MobileNetV2", "--weights", "random")
    assert answer.code == 0, answer.err
    base = load_params(project / "params.yaml").base
    assert (base.name, base.output_layer, base.weights, base.options) == ("MobileNetV2", None, "random", {})


def test_what_could_not_run_is_refused_and_params_stay(project, run_cli):
    before = (project / "params.yaml").read_text()
    answer = run_cli("use", "labs/horses_or_humans", "--data", "nowhere", "--base", "MobilNetV2")
    assert answer.code == 2
    assert "'nowhere'" in answer.err and "did you mean MobileNetV2?" in answer.err
    assert "Traceback" not in answer.err
    assert (project / "params.yaml").read_text() == before


def test_edits_are_kept_until_forced(project, run_cli):
    arguments = ("use", "labs/horses_or_humans", "--data", "images", "--weights", "random")
    text = (project / "params.yaml").read_text().replace("seed: 7", "seed: 8")
    (project / "params.yaml").write_text(text)
    answer = run_cli(*arguments)
    assert answer.code == 2 and "edits of yours" in answer.err
    assert (project / "params.yaml").read_text() == text
    assert run_cli(*arguments, "--force").code == 0
    assert load_params(project / "params.yaml").base.name == "InceptionV3"
    # From one preset to the next no force is needed, and nothing of the first is left.
    assert run_cli("use", "default", "--base", "MobileNetV2", "--weights", "random").code == 0
    assert load_params(project / "params.yaml").tune.num_trials == 10


def test_another_base_takes_the_weights_that_are_to_be_had_for_it(project, run_cli):
    for base, weights in (("EfficientNetLite0", "package"), ("ResNet50", "imagenet")):
        answer = run_cli("use", "default", "--base", base)
        assert answer.code == 0, answer.err
        params = load_params(project / "params.yaml")
        assert (params.base.name, params.base.weights, params.base.options) == (base, weights, {})
