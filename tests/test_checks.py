import copy
import math
import random
import tarfile
import time
import zipfile

import pytest

from frostline.errors import Refused
from frostline.files import mark_complete, save_json
from frostline.params import parse_params
from frostline.planning import checks
from frostline.planning.checks import find_problems
from frostline.process import RUNS


@pytest.fixture(autouse=True)
def bundled(tmp_path, monkeypatch):
    """The checks read the bundled card; this one is the tests' own, so that a new base changes no test."""
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "card.json").write_text('{"name": "MobileNetV2", "options": {"alpha": 0.35}}')
    monkeypatch.setattr(checks, "BUNDLED_BASE", tmp_path / "bundled")


def changed(document, **values):
    """The document with values by dotted name, dots written as two underscores."""
    document = copy.deepcopy(document)
    for name, value in values.items():
        *parents, last = name.split("__")
        section = document
        for parent in parents:
            section = section[parent]
        section[last] = value
    return document


def test_the_default_has_no_problem(params_document, root):
    assert find_problems(params_document, root) == []


def test_a_lock_that_cannot_be_read_is_no_leave_to_empty_outputs(params_document, tmp_path):
    assert find_problems(params_document, tmp_path) == []
    (tmp_path / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {}\n")
    with pytest.raises(Refused, match=r"dvc\.lock is not YAML"):
        find_problems(params_document, tmp_path)


def test_a_package_must_be_here_until_its_weights_are_fetched(params_document, tmp_path, monkeypatch):
    def find_package(name):
        raise Refused("base.weights: the package is not installed: make env")

    monkeypatch.setattr(checks, "find_package", find_package)
    base = {"base__name": "EfficientNetLite0", "base__options": {}, "base__weights": "package"}
    document = changed(params_document, **base)
    assert find_problems(document, tmp_path) == ["base.weights: the package is not installed: make env"]
    save_json(tmp_path / "data/base/card.json", {"name": "EfficientNetLite0", "weights": "package"})
    mark_complete(tmp_path / "data/base", name="EfficientNetLite0")
    assert not [problem for problem in find_problems(document, tmp_path) if "package" in problem]


def test_problems_of_schema_and_beyond_are_found_at_once(params_document, root):
    document = changed(
        params_document,
        tune__num_trails=3,
        base__name="MobileNetV3",
        fetch__source="nowhere",
        augment__transforms=[{"HorizontalFlop": {"p": 0.5}}, {"GaussNoise": {"var_limit": [10, 50]}}],
        tracking__uri="file:///tmp/mlruns",
    )
    problems = "\n".join(find_problems(document, root))
    for part in ("num_trails", "base.name", "fetch.source", "HorizontalFlop", "var_limit", "tracking.uri"):
        assert part in problems


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base__name": "mobilenetv2"}, ["base.name", "'mobilenetv2'", "did you mean MobileNetV2?"]),
        ({"base__weights": "imagnet"}, ["base.weights", "'imagnet'", "did you mean imagenet?"]),
        ({"base__weights": "absent.weights.h5"}, ["base.weights", "no file", "bundled, imagenet, random"]),
        ({"base__weights": "params.yaml"}, ["base.weights", ".keras"]),
        (
            {"base__options": {"alpah": 0.35}},
            ["base.options.alpah: unknown option", "did you mean alpha?", "alpha (float)"],
        ),
        ({"base__options": {"alpha": "big"}}, ["base.options.alpha: MobileNetV2 takes a number", "'big'"]),
        ({"base__options": {"alpha": 0.5}}, ["bundled weights need {'alpha': 0.35}", "0.5"]),
        ({"base__name": "InceptionV3", "base__options": {}}, ["bundled weights are those of MobileNetV2"]),
        ({"base__weights": "package"}, ["no package is known", "weights of MobileNetV2", "EfficientNetLite0"]),
        (
            {"base__name": "EfficientNetLite0", "base__options": {}, "base__weights": "imagenet"},
            ["Keras has no weights of EfficientNetLite0", "set base.weights to package"],
        ),
        ({"base__output_layer": "block_13"}, ["base.output_layer", "no cut of MobileNetV2", "did you mean block_1"]),
        ({"tune__space__unfrozen_blocks": [0, 99]}, ["tune.space.unfrozen_blocks", "given was 99", "frostline blocks"]),
        ({"fetch__source": "genrated"}, ["fetch.source", "did you mean generated?"]),
        ({"fetch__source": "params.yaml"}, ["fetch.source", "no archive", ".zip"]),
        ({"fetch__source": "ftp://host/a.zip"}, ["fetch.source", "ftp", "https"]),
        ({"fetch__source": "https://me:secret@host/a.zip"}, ["fetch.source", "password"]),
        ({"tracking__uri": "./mlruns"}, ["tracking.uri", "./mlruns", "sqlite"]),
        ({"paths__views": "/tmp/views"}, ["paths.views", "below the project's root"]),
        ({"paths__views": "data/prepared/views"}, ["paths.views", "paths.prepared", "overlap"]),
        ({"paths__views": "data/features"}, ["data/features", "overlap"]),
        ({"prepare__val_share": 0.6}, ["val_share 0.6", "test_share 0.4", "below 0.95"]),
        ({"fetch__images_per_class": 3}, ["images_per_class", "min_per_class"]),
        ({"augment__transforms": []}, ["augment.transforms", "views would be equal"]),
        ({"augment__transforms": [{"HorizontalFlip": {"p": 2.0}}]}, ["HorizontalFlip", "p"]),
    ],
)
def test_a_mistake_is_named_with_what_was_given_and_what_is_allowed(params_document, root, values, words):
    problems = find_problems(changed(params_document, **values), root)
    assert len(problems) == 1, problems
    for word in words:
        assert word in problems[0]


def test_a_row_that_is_no_decision_is_found_before_anything_runs(params_document, tmp_path):
    (tmp_path / "decisions.csv").write_text("image_id,decision\ncats/1.png,burn\n")
    problems = find_problems(params_document, tmp_path, transforms=False)
    assert any("decisions.csv, row 2" in problem and "'burn'" in problem for problem in problems), problems


def test_a_password_is_not_repeated(params_document, root):
    document = changed(params_document, fetch__source="https://me:secret@host/a.zip")
    assert "secret" not in "\n".join(find_problems(document, root))


def test_a_base_is_too_small_or_cut_wrong_by_its_own_table(params_document, root):
    document = changed(
        params_document, base__name="InceptionV3", base__options={}, base__weights="random", base__image_size=64
    )
    document["base"]["output_layer"] = "mixed7"
    assert find_problems(document, root) == [
        "base.image_size: InceptionV3 takes images of at least 75 px; given was 64"
    ]
    document["base"] |= {"image_size": 150, "output_layer": "mixed77"}
    (problem,) = find_problems(document, root)
    assert "did you mean mixed7?" in problem and "mixed10" in problem


def test_the_depth_is_counted_below_the_output_layer(params_document, root):
    document = changed(
        params_document, base__name="InceptionV3", base__options={}, base__weights="random", base__image_size=150
    )
    document["base"]["output_layer"] = "mixed0"
    document["tune"]["space"]["unfrozen_blocks"] = [0, 2]
    assert find_problems(document, root) == []
    document["tune"]["space"]["unfrozen_blocks"] = [0, 3]
    (problem,) = find_problems(document, root)
    assert "2 blocks" in problem and "mixed0" in problem


def test_files_that_exist_are_accepted(params_document, tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.jpg").touch()
    (tmp_path / "mine.weights.h5").touch()
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz"):
        pass
    document = changed(params_document, fetch__source="images", base__weights="mine.weights.h5", base__options={})
    assert find_problems(document, tmp_path) == []
    assert find_problems(changed(document, fetch__source="images.tar.gz"), tmp_path) == []


def test_a_custom_base_is_a_keras_file(params_document, tmp_path):
    with zipfile.ZipFile(tmp_path / "mine.keras", "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        archive.writestr("config.json", '{"class_name": "Functional", "config": {}}')
    document = changed(params_document, base__name="custom", base__options={}, base__weights="mine.keras")
    assert find_problems(document, tmp_path) == []
    (problem,) = find_problems(changed(document, base__weights="imagenet"), tmp_path)
    assert "custom base is a .keras file" in problem
    (problem,) = find_problems(changed(document, base__options={"scaling": "half"}), tmp_path)
    assert "scaling" in problem and "'half'" in problem


def test_what_has_no_problem_can_be_parsed(params_document, root):
    assert find_problems(params_document, root) == []
    assert parse_params(params_document).seed == params_document["seed"]


def test_what_was_fetched_need_not_be_there_any_more(params_document, tmp_path):
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "mine.weights.h5").touch()
    document = changed(params_document, fetch__source="images", base__weights="mine.weights.h5", base__options={})
    raw, base = tmp_path / "data" / "raw", tmp_path / "data" / "base"
    for folder, record in ((raw, {"source": "images"}), (base, {"name": "MobileNetV2"})):
        folder.mkdir(parents=True)
        save_json(folder / "complete.json", record)
    save_json(base / "card.json", {"name": "MobileNetV2", "weights": "file", "source": "mine.weights.h5"})
    (tmp_path / RUNS).mkdir(parents=True)
    save_json(tmp_path / RUNS / "fetch.json", {"begun": 0.0, "ended": time.time()})
    # A teammate has pulled the results, and neither the images nor the weights.
    (tmp_path / "images" / "cats").rmdir()
    (tmp_path / "images").rmdir()
    (tmp_path / "mine.weights.h5").unlink()
    assert find_problems(document, tmp_path) == []
    problems = find_problems(changed(document, fetch__source="other", base__weights="other.h5"), tmp_path)
    assert len(problems) == 2


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"augment__transforms": [{"Normalize": {}}]}, "float32"),
        ({"augment__transforms": [{"Resize": {"height": 224, "width": 224}}]}, "makes 224x224"),
        ({"augment__transforms": [{"RandomCrop": {"height": 128, "width": 128}}]}, "fails on an image of 96x96"),
        ({"augment__transforms": [{"Lambda": {}}]}, "functions"),
        ({"base__options": {"alpha": math.nan}}, "given was nan"),
        ({"fetch__source": "~nobody-of-this-name/x"}, "no path of this machine"),
        ({"fetch__source": "http://[::1"}, "is not an address"),
        ({"fetch__source": "http://host:99999999/x.zip"}, "is not an address"),
        ({"fetch__source": "https://user:secret@host/x.zip"}, "user or password"),
        ({"fetch__source": " "}, "empty"),
        ({"tracking__uri": "http://[::1"}, "is no address"),
        ({"tracking__uri": "http://"}, "names no host"),
    ],
)
def test_check_refuses_what_a_stage_would(params_document, root, values, word):
    assert word in "\n".join(find_problems(changed(params_document, **values), root))


JUNK = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        10**30,
        0.0,
        0.5,
        -0.5,
        1e308,
        math.nan,
        math.inf,
        -math.inf,
        "",
        " ",
        "x",
        "generated",
    ),
    *(
        "~nobody-of-this-name/x",
        "http://[::1",
        "https://h:99999999",
        "tfds:",
        "tfds:x",
        "a\0b",
        "\ud800",
        "x" * 5000,
        "..",
        "/",
        ".",
    ),
    *(
        [],
        [None],
        [1, 2, 3],
        [math.nan, 1],
        ["a"],
        [[]],
        {},
        {"a": 1},
        {1: 2},
        {None: None},
        {"low": "x"},
        {"low": 2, "high": 1},
    ),
    *(
        "imagenet",
        "custom",
        "MobileNetV2",
        "InceptionV3",
        "NASNetMobile",
        "data/raw",
        "src",
        "sqlite:///x",
        "file:///x",
        "\n",
    ),
]


def spoil(document, draw):
    """The document with some of its values, at any depth, replaced by junk, dropped, or joined by a new key."""
    for _ in range(draw.randint(1, 4)):
        place = document
        while isinstance(place, dict) and place:
            key = draw.choice(sorted(place, key=str))
            if isinstance(place[key], dict) and draw.random() < 0.8:
                place = place[key]
                continue
            action = draw.random()
            if action < 0.1:
                del place[key]
            elif action < 0.2:
                place[draw.choice(["new", 1, None, key])] = copy.deepcopy(draw.choice(JUNK))
            else:
                place[key] = copy.deepcopy(draw.choice(JUNK))
            break
    return document


def test_no_document_makes_the_check_stumble(params_document, tmp_path):
    """A thousand random documents: problems or none, each a text that can be printed, never another exception."""
    draw = random.Random(5)
    found = 0
    for number in range(1000):
        document = spoil(copy.deepcopy(params_document), draw)
        try:
            problems = find_problems(document, tmp_path, transforms=number % 20 == 0)
        except Exception as error:
            raise AssertionError(f"{document!r}") from error
        found += bool(problems)
        "\n".join(problems).encode(errors="backslashreplace")
        if not problems:
            parse_params(document)
    assert found > 700
    for document in (None, [], "text", 3, {}, {"fetch": None}, [1]):
        assert find_problems(document, tmp_path)
