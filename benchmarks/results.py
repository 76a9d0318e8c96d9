"""What a benchmark measured, kept in benchmarks/results/, and the tables of the docs that are made of it.

A table stands in the docs between `<!-- benchmarks/results/NAME.json -->` and `<!-- end -->`. With `--write` a benchmark stores
its lines under that name and puts its `make_table(lines)` there; tests/test_benchmarks.py holds the docs to what is stored.
A table whose file is missing is older than this: the text beside it has its date.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frostline.process import count_cores

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(?<=<!-- benchmarks/results/)([\w-]+)(\.json -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)

Lines = list[dict[str, Any]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--write`, as all benchmarks have them."""
    parser.add_argument("--json", type=Path, help="also write the lines, one JSON record each, into this file")
    parser.add_argument(
        "--write", action="store_true", help="keep them in benchmarks/results and put the table into the docs"
    )


def load_lines(path: Path) -> Lines:
    """The lines of a file with a JSON record in each."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def keep(name: str, lines: Lines, given: argparse.Namespace, make_table: Callable[[Lines], str]) -> None:
    """Writes the lines where `given` says."""
    if given.json:
        given.json.write_text("".join(json.dumps(line, default=float) + "\n" for line in lines), encoding="utf-8")
    if not given.write:
        return
    arguments = [argument for argument in sys.argv[1:] if argument != "--write"]
    record = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip(),
        "machine": describe_machine(),
        "lines": lines,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(record, indent=1, default=float) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    pages = [page for page in find_pages() if name in find_tables(page)]
    if not pages:
        sys.exit(f"benchmarks/results/{name}.json is kept, but no page in docs has a table of that name.")
    for page in pages:
        found = page.read_text(encoding="utf-8")
        page.write_text(
            MARKED.sub(lambda one: _replace(one, name, render(json.loads(text), make_table)), found), "utf-8"
        )


def _replace(found: re.Match[str], name: str, table: str) -> str:
    return f"{found[1]}{found[2]}{table}{found[4]}" if found[1] == name else found[0]


def find_pages() -> list[Path]:
    """The pages that may hold tables."""
    return [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]


def find_tables(page: Path) -> dict[str, str]:
    """Name -> text of the marked tables of a page."""
    return {found[1]: found[3] for found in MARKED.finditer(page.read_text(encoding="utf-8"))}


def render(record: dict[str, Any], make_table: Callable[[Lines], str]) -> str:
    """The table of a stored record, with what it was measured by, when and where."""
    facts = f"`{record['command']}`, {record['date']}, commit {record['commit']}, {record['machine']}"
    return f"{make_table(record['lines'])}\n\n{facts}."


def draw_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def describe_machine() -> str:
    """Cores and processor."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="ascii"))
    except OSError:
        found = None
    return f"{count_cores()} cores" + (f", {found[1]}" if found else "")
