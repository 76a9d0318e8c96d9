"""The examples in the docstrings: a reader meets a function there first, and they must say what it does today."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
# Found by reading, so that collecting the tests loads no library.
WITH_EXAMPLES = [path for path in sorted(SOURCE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


@pytest.mark.parametrize("name", [name_of(path) for path in WITH_EXAMPLES])
def test_the_examples_of_a_module_hold(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.REPORT_NDIFF)
    assert result.attempted and not result.failed


def test_at_least_ten_functions_have_an_example():
    texts = [path.read_text(encoding="utf-8") for path in WITH_EXAMPLES]
    examples = [example for text in texts for example in doctest.DocTestParser().get_examples(text)]
    assert len(examples) >= 10
