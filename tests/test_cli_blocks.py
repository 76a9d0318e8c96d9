"""`frostline blocks` from the outside."""

import pytest
from click.testing import CliRunner

from frostline.cli import group
from frostline.errors import Refused


def test_a_base_is_shown_with_its_cuts_and_costs():
    arguments = [
        "blocks",
        "MobileNetV2",
        "--image-size",
        "32",
        "--options",
        "alpha=0.35",
        "--output-layer",
        "block_12_add",
    ]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = [line.split() for line in result.output.splitlines()]
    assert ["0", "block_12_add", "2x2x32", "100.0%", "0", "0.3"] in lines
    assert ["1", "block_11_add", "2x2x32"] in [line[:3] for line in lines]
    assert "tried with real weights" in result.output


def test_a_head_only_family_says_why_and_that_it_is_untested():
    result = CliRunner().invoke(group, ["blocks", "NASNetMobile", "--image-size", "32"], catch_exceptions=False)
    assert "untested" in result.output and "the head only" in result.output


def test_without_a_name_the_families_are_listed():
    result = CliRunner().invoke(group, ["blocks"], catch_exceptions=False)
    rows = {line.split()[0]: line for line in result.output.splitlines() if line.split()}
    assert rows["InceptionV3"].split()[-1] == "tried" and rows["Xception"].split()[-1] == "untested"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["MobilNetV2"], "did you mean MobileNetV2"),
        (["MobileNetV2", "--options", "alpha"], "KEY=VALUE"),
        (["MobileNetV2", "--options", "alpha=wide"], "alpha: MobileNetV2 takes a number above 0"),
        (["custom"], "give --weights"),
    ],
)
def test_mistakes_are_refused(arguments, words):
    with pytest.raises(Refused, match=words):
        CliRunner().invoke(group, ["blocks", *arguments], catch_exceptions=False)
