"""`frostline train` from a folder of images to a registered version, as a user would call it, with DVC."""

from test_line import base, ran_in, start_project  # noqa: F401 (base is a fixture)

from frostline.images.generated.sets import write_target


def test_one_command_leads_from_a_folder_to_a_version(base, tmp_path):  # noqa: F811
    project = start_project(tmp_path / "project")
    default = project.folder / "presets" / "default.yaml"
    default.write_text(default.read_text().replace("image_size: 96", "image_size: 32"))
    (project.folder / "params.yaml").write_text(default.read_text())
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "-m", "start")
    write_target(tmp_path / "photos", 12, 48, 7)

    arguments = ("train", str(tmp_path / "photos"), "--candidate", f"custom,weights={base}", "--minutes", "30")
    said = project.frostline(*arguments)
    assert "96 images in 8 classes" in said and "A first answer" in said and "test accuracy" in said
    assert ran_in(said)[-1] == "register"
    assert project.load("reports/registration.json")["version"] == 1
    assert (project.folder / "reports/screen/first.keras").is_file()

    again = project.frostline(*arguments)
    assert "params.yaml was made for" in again and ran_in(again) == []
