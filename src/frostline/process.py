"""How a stage's process lives and ends: one at a time, with its parent, and with a clear last word."""

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from frostline.errors import Refused

# Work that is not whole yet, below the project's root: outside the stages' outputs, which DVC removes before a stage runs.
UNFINISHED = Path(".frostline/unfinished")
# When each stage began and ended here last: what it wrote meanwhile is its own.
RUNS = Path(".frostline/runs")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# What the user mends, not we: a full, read-only or closed disk.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def count_cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def project_root() -> Path:
    """The repository's root: `$DVC_ROOT` where DVC runs us (also from its temporary folders), else the folder with `dvc.yaml`."""
    if "DVC_ROOT" in os.environ:
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    raise Refused(f"No dvc.yaml in {here} or above it. Run this inside a Frostline project.")


def ask_git(folder: Path, *arguments: str) -> tuple[str | None, str]:
    """What git prints in `folder`, and ""; None where it fails, and why, in one line."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, type(error).__name__
    if done.returncode == 0:
        return done.stdout, ""
    return None, (done.stderr.strip().splitlines() or ["git does not say why"])[0]


def run_stage(name: str, main: Callable[[], None]) -> None:
    """Runs a stage: alone (a lock per stage and folder), ended with its parent, refusals without a traceback.

    Exits with 2 where input was refused and with 143 on SIGTERM.
    """
    die_with_parent()
    signal.signal(signal.SIGTERM, _terminate)
    started = time.monotonic()
    try:
        with held(Path(".frostline") / f"{name}.lock", f"stage {name}"), _timed(RUNS / f"{name}.json"):
            main()
    except Refused as refusal:
        print(f"frostline: {refusal}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        place = error.filename or Path.cwd()
        print(
            f"frostline: {place}: {error.strerror}. Free space, or change the rights, and run again.",
            file=sys.stderr,
        )
        sys.exit(2)
    print(f"{name}: done in {time.monotonic() - started:.1f} s", flush=True)


@contextmanager
def _timed(record: Path) -> Iterator[None]:
    """Writes down when the block began, and when it ended without an error; a file's time may be a tick coarser."""
    record.parent.mkdir(parents=True, exist_ok=True)
    begun = time.time() - 0.1
    record.write_text(json.dumps({"begun": begun}), encoding="utf-8")
    yield
    record.write_text(json.dumps({"begun": begun, "ended": time.time()}), encoding="utf-8")


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Only one process of this machine at a time is inside the block; the others wait.

    The kernel gives the lock back when the process ends, however it ends.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, poll_interval=0.01):
        yield


@contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Holds a lock file for this process alone; Refused, naming the holder, where another process has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            lock.write_text(str(os.getpid()), encoding="ascii")
            yield
    except Timeout:
        holder = lock.read_text(encoding="ascii").strip() or "?"
        raise Refused(f"{what} is already running, as process {holder}. Wait for it, or end it.") from None


def is_held(lock: Path) -> bool:
    """Does a process hold this lock now?"""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def die_with_parent() -> None:
    """Ends this process when its parent dies: `dvc` may be killed alone, and its stage would run on beside the next one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_freed_memory() -> None:
    """Lets glibc keep what was freed for the next allocation; call it before TensorFlow is imported.

    A training step on the CPU allocates and frees hundreds of megabytes, and by default each goes back to the kernel
    and comes again page by page: pre-training spent more than half of its processor time on page faults. Numbers of
    the parameters: glibc's malloc.h. Nothing happens on other systems.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
        for parameter, value in ((trim_threshold, 2**31 - 1), (top_pad, 64 << 20), (mmap_max, 0), (arena_max, 1)):
            libc.mallopt(parameter, value)


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)
