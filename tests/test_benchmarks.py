"""The tables of the docs are those of the numbers that benchmarks stored."""

import importlib
import json
from types import ModuleType

import pytest


@pytest.fixture
def load(root, monkeypatch):
    """A benchmark's module, or the one that they share."""
    monkeypatch.syspath_prepend(root / "benchmarks")

    def load_module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load_module


def test_each_table_of_the_docs_is_what_its_benchmark_stored(load):
    results = load("results")
    shown = {name: text for page in results.find_pages() for name, text in results.find_tables(page).items()}
    stored = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in results.RESULTS.glob("*.json")}
    assert "gate_power" in stored
    for name, record in stored.items():
        benchmark = load(name.partition("-")[0])
        assert shown[name] == results.render(record, benchmark.make_table), f"{name}: run {record['command']} --write"


def test_whatever_a_table_is_named_after_is_a_benchmark(load, root):
    results = load("results")
    names = [name for page in results.find_pages() for name in results.find_tables(page)]
    assert len(names) == len(set(names))
    assert {name.partition("-")[0] for name in names} <= {path.stem for path in (root / "benchmarks").glob("*.py")}


def test_the_stored_power_is_what_the_benchmark_computes(load):
    lines = json.loads((load("results").RESULTS / "gate_power.json").read_text(encoding="utf-8"))["lines"]
    line = next(line for line in lines if (line["table"], line["gain"], line.get("images")) == ("better", 0.03, 1000))
    assert line["by_discordance"]["0.1"] == load("gate_power").share_better(0.03, 0.1, 1000) >= 0.8


def test_lines_that_are_kept_come_back_in_the_page(load, monkeypatch, tmp_path):
    results = load("results")
    page = tmp_path / "page.md"
    page.write_text("a\n\n<!-- benchmarks/results/tiny.json -->\n\nold\n\n<!-- end -->\n\nb\n", encoding="utf-8")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "find_pages", lambda: [page])
    monkeypatch.setattr("sys.argv", ["benchmarks/tiny.py", "--write"])

    def make_table(lines):
        return results.draw_table(["n"], [[line["n"]] for line in lines])

    given = type("Given", (), {"json": tmp_path / "lines.json", "write": True})
    results.keep("tiny", [{"n": 1}, {"n": 2}], given, make_table)
    assert (tmp_path / "lines.json").read_text(encoding="utf-8") == '{"n": 1}\n{"n": 2}\n'
    record = json.loads((tmp_path / "results" / "tiny.json").read_text(encoding="utf-8"))
    assert record["command"] == "python benchmarks/tiny.py" and record["lines"] == [{"n": 1}, {"n": 2}]
    text = page.read_text(encoding="utf-8")
    assert text.startswith("a\n\n<!--") and text.endswith("<!-- end -->\n\nb\n") and "old" not in text
    assert results.find_tables(page)["tiny"].startswith("| n |\n|---|\n| 1 |\n| 2 |\n\n`python benchmarks/tiny.py`, 2")
