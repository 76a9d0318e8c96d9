"""What the tests of kills and crowds share: programs, started together and killed, and what they leave behind."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from frostline.params import Params
from frostline.registry.moves import list_moves
from frostline.registry.versions import CHAMPION, Version, number_at
from frostline.tracking.store import Store

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


# Makes version argv[2] the champion of the store of the project in argv[1], argv[3] times, as fast as it can.
PROMOTER = """
import sys
from pathlib import Path
from frostline.errors import Refused
from frostline.params import Tracking
from frostline.registry.moves import move_champion
from frostline.registry.versions import CHAMPION, load_version, number_at
from frostline.tracking.store import open_store

root, number, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = open_store(Tracking(), root)
version = load_version(store, "clf", number)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(rounds):
    try:
        move_champion(store, version, number_at(store, "clf", CHAMPION), "accepted", "")
        print("moved")
    except Refused as refusal:
        assert "changed while this was decided" in str(refusal), refusal
        print("refused")
"""


def promote_in_turns(store: Store, roots: Sequence[Path], versions: Sequence[Version], rounds: int) -> None:
    """A process for each version makes it champion again and again; what they leave is one chain of moves, with none lost."""
    promoters = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTER, str(root), str(version.number), str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for root, version in zip(roots, versions, strict=True)
    ]
    for promoter in promoters:
        assert promoter.stdout is not None and promoter.stdout.readline() == "ready\n"
    for promoter in promoters:
        assert promoter.stdin is not None
        promoter.stdin.write("\n")
        promoter.stdin.flush()
    said = [promoter.communicate()[0].split() for promoter in promoters]
    assert [promoter.returncode for promoter in promoters] == [0] * len(promoters)
    moves = list_moves(store, "clf")
    assert len(moves) == sum(words.count("moved") for words in said)
    assert sum(map(len, said)) == len(promoters) * rounds
    chain = [None, *(move.to_version for move in moves)]
    assert [move.from_version for move in moves] == chain[:-1]
    assert number_at(store, "clf", CHAMPION) == chain[-1]
    assert {move.to_version for move in moves} == {version.number for version in versions}


# A search by the params in argv[1], as a stage, below argv[2].
SEARCH = """
import sys
from functools import partial
from pathlib import Path

from frostline.params import load_params
from frostline.process import if_stopped, run_stage
from frostline.search.outcome import run_study
from frostline.search.places import StudyFile
from frostline.search.study import open_study
from frostline.tracking.owners import close_own_runs, sweep_dead_runs
from frostline.tracking.runs import close_run, open_study_run
from frostline.tracking.store import open_store


def main():
    params, root = load_params(Path(sys.argv[1])), Path(sys.argv[2])
    store = open_store(params.tracking, root)
    sweep_dead_runs(store)
    with if_stopped(partial(close_own_runs, store)):
        parent = open_study_run(store, "d", params={}, tags={})
        study = open_study(StudyFile(root / "studies" / "d.db", "d"), "c", "ask")
        run_study(params, study, store, parent, ("dark", "bright"))
        close_run(store, parent)


if __name__ == "__main__":
    run_stage("tune", main)
"""


class Search:
    """A search in a process group of its own, to be watched and killed."""

    def __init__(self, params: Params, root: Path) -> None:
        self.root = root
        script, file = root / "tune.py", root / "params.json"  # which is YAML, too
        script.write_text(SEARCH, encoding="utf-8")
        file.write_text(params.model_dump_json(by_alias=True), encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(file), str(root)],
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def family(self) -> list[psutil.Process]:
        """All its processes that live."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def trials_with(self, key: str) -> dict[int, str]:
        """Trial -> what it holds under a key, of all trials that hold it; read beside the search."""
        path = self.root / "studies" / "d.db"
        if not path.is_file():
            return {}
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)) as database:
            where = "select trial_id, value_json from trial_user_attributes where key = ?"
            return dict(database.execute(where, (key,)).fetchall())

    def wait_for_records(self, more: int) -> None:
        """Returns when so many more trials have ended."""
        before = len(self.trials_with("record"))
        self._wait(lambda: len(self.trials_with("record")) >= before + more)

    def wait_for_workers(self, number: int) -> set[int]:
        """The ids of the processes that draw trials, when there are so many."""

        def drawing() -> set[int]:
            living = {process.pid for process in self.family()}
            return living & {json.loads(value)[1] for value in self.trials_with("signed").values()}

        self._wait(lambda: len(drawing()) == number)
        return drawing()

    def _wait(self, is_so: Callable[[], bool], seconds: float = 900) -> None:
        end = time.monotonic() + seconds
        while not is_so():
            if self.process.poll() is not None or time.monotonic() > end:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise AssertionError(self.process.communicate()[1])
            time.sleep(0.1)

    def end_by(self, number: signal.Signals, everyone: bool) -> tuple[float, int, str]:
        """Seconds until no process was left, exit code and last words, after a signal to the first process or to all."""
        began = time.monotonic()
        (os.killpg if everyone else os.kill)(self.process.pid, number)
        said = self.process.communicate(timeout=60)[1]
        while self.family() and time.monotonic() < began + 60:
            time.sleep(0.05)
        return time.monotonic() - began, self.process.returncode, said
