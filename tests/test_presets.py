import subprocess

import pytest
from ruamel.yaml import YAML

from frostline.cli import presets
from frostline.cli.presets import apply_settings, list_presets, load_preset, preset_of, refuse_edits, write_params
from frostline.errors import Refused
from frostline.params import parse_document, parse_params


@pytest.fixture
def project(tmp_path, root):
    """A small project: a git repository with the presets and a committed params.yaml."""
    (tmp_path / "presets").symlink_to(root / "presets")
    (tmp_path / "params.yaml").write_text(default(root))
    for command in (
        ["init", "-q"],
        ["add", "params.yaml"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def default(root) -> str:
    return (root / "presets" / "default.yaml").read_text()


def test_every_preset_gives_valid_params(root):
    presets = list_presets(root)
    assert presets[0].name == "default"
    assert {preset.name for preset in presets} >= {"labs/cats_vs_dogs", "labs/horses_or_humans"}
    for preset in presets:
        params = parse_params(parse_document(apply_settings(default(root), preset.settings)), preset.name)
        assert params.tune.num_trials >= 1
        assert preset.about


def test_a_preset_names_only_settings_that_exist(root):
    known = YAML(typ="safe", pure=True).load(root / "presets" / "default.yaml")
    defaults = {"tune": {"probe"}}  # settings that the default leaves at the schema's value
    for preset in list_presets(root):
        for name in preset.settings:
            section = known
            for part in name.split(".")[:-1]:
                section = section[part]
            last = name.split(".")[-1]
            assert last in section or last in defaults.get(name.split(".")[0], ()), f"{preset.name}: {name}"


def test_comments_and_order_are_kept(root):
    assert apply_settings(default(root), {}) == default(root)
    before = default(root).splitlines()
    after = apply_settings(default(root), {"tune.num_trials": 3, "base.output_layer": "mixed7"}).splitlines()
    assert [line for line in after if line not in before] == ["  output_layer: mixed7", "  num_trials: 3"]
    assert sum("#" in line for line in after) == sum("#" in line for line in before) > 3


def test_a_setting_of_an_unknown_section_is_refused(root):
    with pytest.raises(Refused, match="no section 'tuen'"):
        apply_settings(default(root), {"tuen.num_trials": 3})


def test_the_labs_are_the_reference_experiments(root):
    for name, rate in (("cats_vs_dogs", 1e-4), ("horses_or_humans", 1e-5)):
        params = parse_params(
            parse_document(apply_settings(default(root), load_preset(root, f"labs/{name}_published").settings))
        )
        assert (params.base.name, params.base.image_size, params.base.output_layer) == ("InceptionV3", 150, "mixed7")
        assert (params.tune.pooling, params.tune.space.head_units, params.tune.space.dropout.low) == (
            "flatten",
            [1024],
            0.2,
        )
        assert params.tune.space.head_learning_rate.low == params.tune.space.head_learning_rate.high == rate
        assert params.tune.space.unfrozen_blocks == (0, 0)


def test_whoever_was_killed_while_it_wrote_params_has_left_no_edits(project, monkeypatch):
    write_params(project, "seed: 1\n", "a")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("save_json", "replacing"):
        with monkeypatch.context() as patch:
            patch.setattr(presets, place, die)
            with pytest.raises(KeyboardInterrupt):
                write_params(project, "seed: 2\n", "b")
        refuse_edits(project)
        assert preset_of(project) in ("a", None)
    write_params(project, "seed: 2\n", "b")
    assert preset_of(project) == "b"


def test_a_committed_params_file_may_be_replaced(project, root):
    write_params(project, "seed: 1\n", "a")
    assert (project / "params.yaml").read_text() == "seed: 1\n"


def test_what_a_preset_wrote_may_be_replaced(project):
    write_params(project, "seed: 1\n", "a")
    write_params(project, "seed: 2\n", "b")
    assert (project / "params.yaml").read_text() == "seed: 2\n"


def test_edits_are_not_overwritten_unless_forced(project):
    write_params(project, "seed: 1\n", "a")
    (project / "params.yaml").write_text("seed: 1  # mine\n")
    with pytest.raises(Refused, match=r"edits of yours.*--force"):
        write_params(project, "seed: 2\n", "b")
    assert (project / "params.yaml").read_text() == "seed: 1  # mine\n"
    write_params(project, "seed: 2\n", "b", force=True)
    assert (project / "params.yaml").read_text() == "seed: 2\n"


def test_an_unknown_preset_is_refused_with_the_known_ones(root):
    with pytest.raises(Refused, match="labs/cats_vs_dogs"):
        load_preset(root, "labs/cats")
    with pytest.raises(Refused, match="no preset"):
        load_preset(root, "../params")
