import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from frostline.errors import Refused
from frostline.process import ask_git, describe_refusal, lives, project_root, work_folder
from frostline.tracking.owners import is_gone, owner_tags

STAGE = """
import ctypes, json, signal, sys, time
from pathlib import Path
from frostline.process import Refused, if_stopped, run_stage, start_pool

def main():
    what = sys.argv[1]
    if what == "refuse":
        raise Refused("source: 'nowhere' is not a folder. Give one.")
    if what == "crash":
        raise RuntimeError("a mistake of ours")
    if what == "full":
        raise OSError(28, "No space left on device", "data/raw/cats/1.jpg")
    if what == "too large":
        import numpy
        numpy.zeros(1 << 50)
    Path("started").write_text("yes")
    if what == "sleep":
        time.sleep(60)
    if what == "with an ending":
        with if_stopped(lambda: Path("ended").write_text("yes")):
            time.sleep(60)
    if what == "deep in a library":  # it does not come back to Python, as while a graph is compiled
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        with if_stopped(lambda: Path("ended").write_text("yes")):
            ctypes.CDLL(None).sleep(60)
    if what == "swallowed":
        with if_stopped(lambda: Path("ended").write_text("yes")):
            try:
                time.sleep(60)
            except BaseException as error:
                raise RuntimeError("the library's own words") from error
    if what == "dropped":
        class Slow:
            def __del__(self):
                time.sleep(60)
        with if_stopped(lambda: Path("ended").write_text("yes")):
            Slow()
            time.sleep(60)
    if what == "pool":
        with start_pool(2, int) as pool:
            Path("pids.tmp").write_text(json.dumps([process.pid for process in pool._processes.values()]))
            Path("pids.tmp").rename("pids")
            list(pool.map(time.sleep, [60, 60]))

if __name__ == "__main__":
    run_stage("fetch", main)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stage.py").write_text(STAGE)
    return tmp_path


def start(folder: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "stage.py", what], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_stage_says_its_name_and_time(folder):
    process = start(folder, "work")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.startswith("fetch: done in ")


def test_a_refusal_is_one_line_and_exit_code_2(folder):
    process = start(folder, "refuse")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err == "frostline: source: 'nowhere' is not a folder. Give one.\n"


def test_a_full_disk_is_one_line_that_names_the_file(folder):
    process = start(folder, "full")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith("frostline: data/raw/cats/1.jpg: No space left on device.") and err.count("\n") == 1


def test_too_little_memory_is_one_line(folder):
    process = start(folder, "too large")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith("frostline: There is not enough memory.") and err.count("\n") == 1


@pytest.mark.parametrize("library", ["tensorflow", "jax"])
def test_that_memory_is_short_is_heard_in_a_librarys_words(library):
    """A hundred terabytes, which no machine has."""
    module = pytest.importorskip(library)
    ones = module.ones if library == "tensorflow" else module.numpy.ones
    with pytest.raises(Exception, match=r"OOM|RESOURCE_EXHAUSTED") as error:
        ones((1 << 22, 1 << 22)).block_until_ready()
    assert "not enough memory" in describe_refusal(error.value)


def behind(told: BaseException, system: BaseException) -> BaseException:
    """As a library raises it, with the system's word behind its own."""
    try:
        raise told from system
    except type(told) as error:
        return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "models"), "models: Permission denied"),
        (
            behind(RuntimeError("cannot save"), OSError(errno.ENOSPC, "No space left on device", "a.keras")),
            "a.keras: No space",
        ),
        (behind(RuntimeError("tell"), sqlite3.OperationalError("database or disk is full")), "No space left on device"),
        (behind(RuntimeError("no such layer"), PermissionError(errno.EACCES, "Permission denied", "x")), None),
        (ValueError("a mistake of ours"), None),
        (behind(RuntimeError("tell"), MemoryError()), "not enough memory"),
    ],
)
def test_that_the_disk_is_full_is_heard_behind_a_librarys_words(error, said):
    found = describe_refusal(error)
    assert found is None if said is None else said in found and "\n" not in found


def test_a_mistake_of_ours_keeps_its_traceback(folder):
    process = start(folder, "crash")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" in err and "a mistake of ours" in err


def test_a_stage_that_runs_already_is_named_with_its_process(folder):
    first = start(folder, "sleep")
    try:
        assert wait_for((folder / "started").exists)
        second = start(folder, "work")
        _, err = second.communicate(timeout=30)
        assert second.returncode != 0
        assert "already running" in err and str(first.pid) in err
    finally:
        first.terminate()
        first.communicate(timeout=10)
    # The lock dies with its holder: nothing stale stands in the way.
    third = start(folder, "work")
    third.communicate(timeout=30)
    assert third.returncode == 0


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("what", ["with an ending", "deep in a library", "swallowed", "dropped"])
def test_a_stage_that_is_told_to_end_does_so_in_words_and_in_time(folder, what, name, code):
    process = start(folder, what)
    assert wait_for((folder / "started").exists)
    time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signal.Signals[name])
    process.send_signal(signal.Signals[name])  # impatience changes nothing
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - began < 5
    assert (
        err == f"frostline: fetch was ended by {name}; what is finished is kept, and `dvc repro` goes on from there.\n"
    )
    assert (folder / "ended").exists()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_the_processes_of_a_stage_end_with_it(folder, name, code):
    """Ctrl-C goes to all processes of a terminal, other signals to one: whichever, one line is said and nobody stays."""
    process = start(folder, "pool")
    assert wait_for((folder / "pids").exists)
    time.sleep(1)
    pids = json.loads((folder / "pids").read_text())
    if name == "SIGINT":
        for pid in pids:
            os.kill(pid, signal.SIGINT)
    process.send_signal(signal.Signals[name])
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err.count("\n") == (0 if name == "SIGKILL" else 1), err
    assert wait_for(lambda: not any(map(is_alive, pids)), 5)


def test_ctrl_c_while_libraries_load_is_no_traceback(folder):
    (folder / "slow.py").write_text("import frostline, time\nopen('started', 'w').close()\ntime.sleep(60)\n")
    process = subprocess.Popen([sys.executable, "slow.py"], cwd=folder, text=True, stderr=subprocess.PIPE)
    assert wait_for((folder / "started").exists)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == "frostline: ended by SIGINT.\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl's PR_SET_PDEATHSIG, which only Linux has")
def test_a_stage_dies_with_the_process_that_started_it(folder):
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time; p = subprocess.Popen([sys.executable, 'stage.py', 'sleep']); "
            "open('pid.tmp', 'w').write(str(p.pid)); import os; os.rename('pid.tmp', 'pid'); time.sleep(60)",
        ],
        cwd=folder,
    )
    try:
        assert wait_for((folder / "started").exists)
        assert wait_for((folder / "pid").exists)
        child = int((folder / "pid").read_text())
        assert is_alive(child)
    finally:
        parent.kill()
        parent.wait()
    assert wait_for(lambda: not is_alive(child), 10)


def test_the_root_is_found_from_below_and_from_dvcs_temporary_folders(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(below)
    assert project_root() == tmp_path
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "elsewhere"))
    assert project_root() == tmp_path / "elsewhere"


def test_outside_a_project_the_root_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert not any((folder / "dvc.yaml").exists() for folder in tmp_path.parents), (
        "the test's own folder is in a project"
    )
    with pytest.raises(Refused, match=r"No dvc\.yaml"):
        project_root()
    assert issubclass(Refused, ValueError) and os.environ.get("DVC_ROOT") is None


def test_freed_memory_is_kept_for_the_next_allocation():
    code = """
import resource, numpy as np
from frostline.process import keep_freed_memory
keep_freed_memory()
np.ones(50_000_000, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(50_000_000, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert faults < 5 * 50_000_000 / 4096 / 10, "each array's pages were faulted in again"


def test_git_answers_or_says_why_not(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found, said = ask_git(tmp_path, "status")
    assert found is None and "not a git repository" in said
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert ask_git(tmp_path, "rev-parse", "--git-dir") == (".git\n", "")
    monkeypatch.setenv("PATH", "")
    assert ask_git(tmp_path, "status") == (None, "FileNotFoundError")


def test_what_a_killed_process_left_unfinished_goes_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = (
        "import os\n"
        "from frostline.process import work_folder\n"
        "with work_folder('screen') as folder:\n"
        "    (folder / 'images.npy').write_bytes(bytes(9))\n"
        "    print(folder, flush=True)\n"
        "    input()\n"
    )
    start_one = [sys.executable, "-c", program]
    killed = subprocess.Popen(start_one, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    left = tmp_path / killed.stdout.readline().strip()
    with work_folder("other"):
        assert left.is_dir()
    with work_folder("screen") as own:
        assert left.is_dir() and own.is_dir()  # it lives
    assert not own.exists()
    killed.kill()
    killed.communicate()
    with work_folder("screen"):
        assert not left.exists()


SHIELD = """
import multiprocessing, signal, sys
from frostline.process import shielded

def say():
    sys.exit(3 if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []) else 4)

if __name__ == "__main__":
    workers = [multiprocessing.get_context("spawn").Process(target=say) for _ in range(2)]
    with shielded():
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join()
        print(worker.exitcode)
"""


def test_processes_started_shielded_do_not_get_ctrl_c(tmp_path):
    """The first ones of a process, with which Python starts its resource tracker."""
    (tmp_path / "shield.py").write_text(SHIELD)
    done = subprocess.run([sys.executable, "shield.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "3"]


def test_a_dead_process_that_its_parent_has_not_asked_for_does_not_live():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tags = owner_tags() | {
        "frostline.pid": str(child.pid),
        "frostline.started": str(psutil.Process(child.pid).create_time()),
    }
    assert lives(child.pid) and not is_gone(tags)
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not lives(child.pid) and is_gone(tags)
    child.wait()
    assert not lives(child.pid) and is_gone(tags)
