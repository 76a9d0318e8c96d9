import os

from frostline.cli.changes import show_changes
from frostline.files import load_json, save_json
from frostline.images.survey import SOURCE_FILE, survey_inputs
from frostline.params import load_params


def test_a_folder_that_grew_is_said_with_both_numbers_and_nothing_is_written(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("cats/1.jpg", "dogs/1.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode())
    text = (root / "presets" / "default.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("source: generated", "source: images"), encoding="utf-8")
    params = load_params()
    show_changes()
    assert capsys.readouterr().out == ""  # nothing was made yet

    save_json(tmp_path / SOURCE_FILE, survey_inputs(params.fetch, params.base, tmp_path, {}, {}).record)
    save_json(tmp_path / params.paths.raw / "complete.json", {"source": "images", "num_files": 2})
    os.utime(tmp_path / "images" / "cats" / "1.jpg", (0, 0))
    show_changes()
    assert capsys.readouterr().out == ""

    before = sorted(tmp_path.rglob("*")), load_json(tmp_path / SOURCE_FILE)
    (tmp_path / "images" / "cats" / "1.jpg").write_bytes(b"another")
    show_changes()
    assert "changed since" in capsys.readouterr().out
    assert (sorted(tmp_path.rglob("*")), load_json(tmp_path / SOURCE_FILE)) == before
    (tmp_path / "images" / "cats" / "2.jpg").write_bytes(b"one more")
    show_changes()
    assert "made from 2 files, the folder holds 3" in capsys.readouterr().out

    (tmp_path / "images" / "dogs" / "1.jpg").unlink()
    show_changes()
    assert "cannot be read any more" in capsys.readouterr().out
