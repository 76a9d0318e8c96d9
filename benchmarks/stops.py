"""How long a search takes to end when it is told to: SIGINT and SIGTERM, to the stage, to `dvc`, to all; one worker and two.

A small project runs `dvc repro`; when its workers train, the signal is sent, and the seconds are measured until no process
is left. Then what is said to run still, in MLflow and in the study, is counted, and tracebacks in what was printed. Linux only.
"""

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import results

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

PATIENCE_S = 15.0  # in which who does not end is taken to go on
START_S = 600.0
TARGETS = ("stage", "dvc", "all")


def main() -> None:
    from killing import make_base
    from test_line import SMALL, start_project

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    results.add_options(parser)
    given = parser.parse_args()

    lines: results.Lines = []
    with tempfile.TemporaryDirectory() as folder:
        project = start_project(Path(folder) / "project")
        make_base(Path(folder) / "tiny.keras")
        project.set({**SMALL, "base.weights": str(Path(folder) / "tiny.keras"), "tune.num_trials": 1000})
        project.run("dvc", "repro", "extract")
        for workers in given.workers:
            project.set({"tune.workers": workers})
            for name in ("SIGINT", "SIGTERM"):
                for target in TARGETS:
                    line = {"signal": name, "to": target, "workers": workers}
                    lines.append(line | _stop(project, signal.Signals[name], target, workers))
                    print(json.dumps(lines[-1]), flush=True)
    results.keep("stops", lines, given, make_table)
    print(make_table(lines))


def _stop(project: Any, number: signal.Signals, target: str, workers: int) -> dict[str, Any]:
    """One start and one signal."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            ["dvc", "repro", "tune"],
            cwd=project.folder,
            env=project.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        began: float | None = None
        try:
            _wait_until(
                lambda: len(_list_drawing(project.folder, process.pid)) == workers or process.poll() is not None,
                START_S,
            )
            if process.poll() is not None:
                raise TimeoutError
            time.sleep(1)  # into the training
            began = time.monotonic()
            if target == "all":
                os.killpg(process.pid, number)
            else:
                os.kill(process.pid if target == "dvc" else _find_stage(process.pid), number)
            _wait_until(lambda: process.poll() is not None and not _family(process.pid), PATIENCE_S)
            seconds: float | None = time.monotonic() - began
        except TimeoutError:
            seconds = None
        finally:
            for signal_ in (signal.SIGTERM, signal.SIGKILL):
                if _family(process.pid):
                    os.killpg(process.pid, signal_)
                    with contextlib.suppress(TimeoutError):
                        _wait_until(lambda: process.poll() is not None and not _family(process.pid), PATIENCE_S)
        log.seek(0)
        said = log.read()
    return {
        "started": began is not None,
        "seconds": seconds,
        "code": process.returncode if seconds is not None else None,
        "running": _count_running(project.folder),
        "tracebacks": said.count("Traceback"),
        "words": [line for line in said.splitlines() if "ended by" in line]
        if began and "Traceback" not in said
        else said[-10_000:].splitlines(),
    }


def _family(leader: int) -> list[psutil.Process]:
    """The processes of a session that live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _find_stage(leader: int) -> int:
    for process in _family(leader):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[1:2] == ["pipelines/tune.py"]:
                return process.pid
    raise AssertionError("the stage does not run")


def _list_drawing(folder: Path, leader: int) -> set[int]:
    """The processes of the session that have signed for a trial."""
    signed: set[int] = set()
    for path in (folder / "studies").glob("*.db"):
        with (
            contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)) as database,
            contextlib.suppress(sqlite3.OperationalError),  # its tables are still made
        ):
            rows = database.execute("select value_json from trial_user_attributes where key = 'signed'").fetchall()
            signed |= {json.loads(value)[1] for (value,) in rows}
    return signed & {process.pid for process in _family(leader)}


def _wait_until(is_so: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


def _count_running(folder: Path) -> int:
    """Runs in MLflow and trials in the studies that are said to run."""
    count = 0
    for path in [folder / "mlflow.db", *(folder / "studies").glob("*.db")]:
        table, column = ("runs", "status") if path.name == "mlflow.db" else ("trials", "state")
        with contextlib.closing(sqlite3.connect(path)) as database:
            where = f"select count(*) from {table} where {column} = 'RUNNING'"
            count += database.execute(where).fetchone()[0]
    return count


def make_table(lines: results.Lines) -> str:
    """A row for each signal and whom it was sent to."""
    rows = []
    for line in lines:
        seconds = f"{line['seconds']:.1f}" if line["seconds"] else "goes on" if line["started"] else "had not begun"
        row = [line["signal"], line["to"], line["workers"], seconds, line["running"], line["tracebacks"]]
        rows.append(row)
    columns = ["signal", "sent to", "workers", "seconds to the end", "runs and trials left RUNNING", "tracebacks"]
    return results.draw_table(columns, rows)


if __name__ == "__main__":
    main()
