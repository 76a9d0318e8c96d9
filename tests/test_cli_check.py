import re

import pytest


@pytest.fixture
def project(tmp_path, root, monkeypatch):
    text = (root / "presets" / "default.yaml").read_text()
    # Nothing here depends on which base is here.
    text = text.replace("weights: package ", "weights: random ").replace("EfficientNetLite0", "MobileNetV2")
    assert "weights: random" in text
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_good_params_have_no_problem(project, run_cli):
    answer = run_cli("check")
    assert (answer.code, answer.out, answer.err) == (0, "params.yaml: no problem\n", "")


def test_all_problems_are_named_without_a_traceback(project, run_cli):
    text = (project / "params.yaml").read_text()
    text = (
        text.replace("num_trials:", "num_trails:")
        .replace("HorizontalFlip", "HorizontalFlop")
        .replace("name: Mobile", "name: Mobil")
    )
    (project / "params.yaml").write_text(text)
    answer = run_cli("check")
    assert answer.code == 2
    assert answer.err.startswith("frostline: params.yaml has 4 problems:\n")
    for part in (
        "did you mean num_trials?",
        "did you mean HorizontalFlip?",
        "did you mean MobileNetV2?",
        "num_trials: missing",
    ):
        assert part in answer.err
    assert "Traceback" not in answer.err
    assert sorted(path.name for path in project.iterdir()) == ["params.yaml"]


def test_a_folder_without_params_is_refused(project, run_cli):
    (project / "params.yaml").unlink()
    answer = run_cli("check")
    assert answer.code == 2 and "params.yaml is missing" in answer.err


def test_splits_that_are_too_small_to_tell_are_said(project, run_cli):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("images_per_class: 120", "images_per_class: 20"))
    answer = run_cli("check")
    assert answer.code == 0
    assert "test: about 64 images, so that an accuracy of 0.9 is known to ±0.073" in answer.out
    assert "val: about 32 images of 8 classes" in answer.out


def test_words_for_the_depth_are_said_in_numbers(project, run_cli):
    text = (project / "params.yaml").read_text()
    for words, said in (("[0, all]", "0 to 18, all blocks of MobileNetV2"), ("auto", "0 to 18 at most")):
        (project / "params.yaml").write_text(text.replace("unfrozen_blocks: [0, 4]", f"unfrozen_blocks: {words}"))
        answer = run_cli("check")
        assert answer.code == 0 and f"tune.space.unfrozen_blocks: {said}" in answer.out


def test_a_store_is_looked_at(project, run_cli, monkeypatch):
    def check(store):
        text = (project / "params.yaml").read_text()
        (project / "params.yaml").write_text(re.sub(r"scale:\n(  store: .*\n)?", f"scale:\n  store: {store}\n", text))
        return run_cli("check")

    (project / "shared").mkdir()
    assert check(project / "shared").code == 0
    answer = check(project / "none")
    assert answer.code == 2 and answer.err.count("\n") == 1, answer.err
    assert f"scale.store: {project / 'none'} cannot be used: FileNotFoundError" in answer.err
    for wrong in ("gs://bucket/features", "s3://KEY:SECRET@bucket", "features"):
        answer = check(wrong)
        assert answer.code == 2 and "scale.store: neither null, nor a folder as /shared/folder" in answer.err
        assert "SECRET" not in answer.err
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-nobody")
    answer = check("s3://bucket/features")
    assert answer.code == 2 and "Could not connect" in answer.err
    monkeypatch.setattr("frostline.planning.checks.find_spec", lambda _: None)
    answer = check("s3://bucket/features")
    assert answer.code == 2 and "s3:// needs s3fs, which comes with the extra `cluster`" in answer.err
