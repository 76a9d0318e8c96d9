import copy

import pytest
from pydantic import ValidationError

from frostline.errors import Refused
from frostline.hparams import HPARAMS
from frostline.params import Deepest, Range, defaults, load_lock, load_params, load_writers, parse_params


def refusal(document) -> str:
    with pytest.raises(Refused) as caught:
        parse_params(document)
    return str(caught.value)


def with_value(document, path: str, value):
    changed = copy.deepcopy(document)
    section = changed
    *parents, last = path.split(".")
    for name in parents:
        section = section[name]
    section[last] = value
    return changed


def test_the_default_params_are_valid_and_frozen(root):
    params = load_params(root / "presets" / "default.yaml")
    assert params.tune.space.head_learning_rate == Range(low=1e-5, high=1e-3, log=True)
    with pytest.raises(ValidationError, match="frozen"):
        params.tune.num_trials = 3


def test_every_default_is_among_what_stages_compare():
    """DVC sees a changed default only there; those of hyperparameters and ranges stand a floor below the others."""
    tune = defaults()["tune"]
    assert tune["pooling"] == "avg"
    assert tune["space"]["head_input"] == HPARAMS["head_input"].default == ["all"]
    assert tune["space"]["dropout"] == {"log": False}
    assert "num_trials" not in tune and "seed" not in defaults()


def test_every_problem_is_reported_at_once(params_document):
    document = with_value(params_document, "tune.num_trails", 3)
    document = with_value(document, "tune.epochs", "eight")
    document = with_value(document, "prepare.resize", "squish")
    document = with_value(document, "tune.space.dropout", [0.0, 1.4])
    del document["register"]
    message = refusal(document)
    assert "5 problems" in message
    for part in ("tune.num_trails", "tune.epochs", "prepare.resize", "dropout", "register: missing"):
        assert part in message


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("tune.num_trails", 3, ["tune.num_trails: unknown key", "did you mean num_trials?"]),
        ("prepare.resize", "squish", ["'squish'", "did you mean squash?", "crop", "pad"]),
        ("tune.pruning", "medain", ["did you mean median?", "halving"]),
        ("augement", {}, ["augement: unknown key", "did you mean augment?"]),
        ("tune.num_trials", 0, ["tune.num_trials", "greater than or equal to 1", "0"]),
        ("tune.num_trials", "16", ["tune.num_trials", "integer", "'16'"]),
        ("tune.num_trials", 1.5, ["tune.num_trials", "integer", "1.5"]),
        ("tune.num_trials", True, ["tune.num_trials", "integer", "True"]),
        ("tune.space.dropout", [0.6, 0.0], ["low must not be above high", "0.6"]),
        ("tune.space.dropout", [0.0, 0.99], ["dropout", "0 to 0.95", "0.99"]),
        ("tune.space.dropout", float("nan"), ["finite", "nan"]),
        ("tune.space.head_learning_rate", {"low": 0, "high": 1, "log": True}, ["logarithmic", "above 0"]),
        ("tune.space.unfrozen_blocks", [4, 0], ["first depth is above the second", "[4, 0]"]),
        ("tune.space.unfrozen_blocks", [0, "al"], ["tune.space.unfrozen_blocks.1: ", "did you mean all?", "auto"]),
        (
            "tune.space.unfrozen_blocks",
            {"minute": 1},
            ["unfrozen_blocks.1.minute: unknown key", "did you mean minutes?"],
        ),
        ("tune.space.unfrozen_blocks", ["all", 3], ["unfrozen_blocks.0", "'all'"]),
        ("tune.space.unfrozen_blocks", -1, ["unfrozen_blocks", "greater than or equal to 0"]),
        ("tune.space.optimizer", "adamw", ["optimizer", "adamw", "adam"]),
        ("seed", -1, ["seed", "greater than or equal to 0"]),
        ("fetch.sha256", "abc", ["fetch.sha256", "abc"]),
        ("register.name", "a/b", ["register.name", "a/b"]),
        ("augment.transforms", [{"HorizontalFlip": 3}], ["augment.transforms", "3"]),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_given_and_what_is_allowed(params_document, path, value, words):
    message = refusal(with_value(params_document, path, value))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.2, Range(low=0.2, high=0.2)),
        (0, Range(low=0.0, high=0.0)),
        ([0, 0.5], Range(low=0.0, high=0.5)),
        ({"low": 0.1, "high": 0.5}, Range(low=0.1, high=0.5)),
    ],
)
def test_a_range_may_be_a_number_a_pair_or_spelt_out(params_document, given, expected):
    assert parse_params(with_value(params_document, "tune.space.dropout", given)).tune.space.dropout == expected


def test_one_depth_and_one_optimiser_stand_for_themselves(params_document):
    document = with_value(params_document, "tune.space.unfrozen_blocks", 2)
    space = parse_params(with_value(document, "tune.space.optimizer", "sgd")).tune.space
    assert space.unfrozen_blocks == (2, 2)
    assert space.optimizer == ["sgd"]


@pytest.mark.parametrize(
    ("given", "first", "last"),
    [
        ([0, "all"], 0, "all"),
        ("all", 0, "all"),
        ("auto", 0, "auto"),
        ([2, "auto"], 2, "auto"),
        ([0, {"minutes": 2}], 0, Deepest(minutes=2.0)),
        ({"minutes": 3, "gflops": 100}, 0, Deepest(minutes=3.0, gflops=100.0)),
    ],
)
def test_the_last_depth_may_be_a_word_or_limits(params_document, given, first, last):
    params = parse_params(with_value(params_document, "tune.space.unfrozen_blocks", given))
    assert params.tune.space.unfrozen_blocks == (first, last)
    assert params.with_depths(first, 7).tune.space.depths == (first, 7)
    with pytest.raises(AssertionError, match="not resolved"):
        _ = params.tune.space.depths


def test_numbers_and_words_mean_what_dvc_takes_them_for(tmp_path, root):
    text = (root / "presets" / "default.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("margin: 0.01", "margin: 1e-3"))
    assert load_params(tmp_path / "params.yaml").promote.margin == 0.001


def test_a_key_given_twice_is_refused_with_its_line(tmp_path, root):
    text = (root / "presets" / "default.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text + "\nseed: 8\n")
    with pytest.raises(Refused, match=r"duplicate key|line"):
        load_params(tmp_path / "params.yaml")


def test_a_tag_that_would_run_code_is_refused_and_nothing_runs(tmp_path, root):
    text = (root / "presets" / "default.yaml").read_text()
    victim = tmp_path / "touched"
    evil = f"!!python/object/apply:os.mkdir ['{victim}']"
    (tmp_path / "params.yaml").write_text(text.replace("source: generated", f"source: {evil}"))
    with pytest.raises(Refused):
        load_params(tmp_path / "params.yaml")
    assert not victim.exists()


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "a: [1\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(Refused, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_is_refused_with_advice(tmp_path):
    with pytest.raises(Refused, match=r"missing.*root of a Frostline project"):
        load_params(tmp_path / "params.yaml")


def test_dvc_lock_is_read_as_text_and_one_with_a_conflict_is_refused(tmp_path):
    lock = tmp_path / "dvc.lock"
    assert load_lock(lock) == {}
    digits = "12345678901234567890123456789012"
    text = f"schema: '2.0'\nstages:\n  prepare:\n    outs:\n    - path: no\n      md5: {digits}\n    - path: mine\n"
    lock.write_text(text)
    assert load_lock(lock) == {"no": digits}
    assert load_writers(lock) == {"no": "prepare", "mine": "prepare"}
    lock.write_text(f"<<<<<<< HEAD\n{text}")
    with pytest.raises(Refused, match=r"dvc\.lock is not YAML: .*After a merge") as refused:
        load_lock(lock)
    assert "\n" not in str(refused.value)
