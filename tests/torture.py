"""What the tests of kills and crowds share: programs, started together and killed, and what they leave behind."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The long form, by `make torture`: more rounds of what the suite does once.
LONG = os.environ.get("FROSTLINE_TORTURE") == "1"

# Opens the store of the project in argv[1] at the address argv[2], and writes argv[3] runs with ten metrics.
WRITER = """
import sys
from pathlib import Path
from frostline.params import Tracking
from frostline.tracking import runs, store

root = Path(sys.argv[1])
opened = store.open_store(Tracking(uri=sys.argv[2]), root)
for number in range(int(sys.argv[3])):
    run = runs.open_final_run(opened, name=f"{root.name} {number}", params={"a": 1}, tags={})
    runs.close_run(opened, run, metrics={f"m{i}": float(i) for i in range(10)})
"""


def run_together(program: str, arguments: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Exit code and words of the program, started with each of the arguments at the same time."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *each], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for each in arguments
    ]
    return [(process.wait(), process.communicate()[0]) for process in started]


def write_together(folder: Path, projects: int, each: int, runs: int) -> list[tuple[int, str]]:
    """`projects` projects with `each` processes, all on one database that is not there yet."""
    uri = f"sqlite:///{folder / 'team' / 'shared.db'}"
    roots = [folder / f"project-{number}" for number in range(projects)]
    for root in roots:
        root.mkdir()
    return run_together(WRITER, [[str(root), uri, str(runs)] for root in roots for _ in range(each)])
