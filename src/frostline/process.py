"""How a stage's process lives and ends: one at a time, with its parent, and with a clear last word."""

import ctypes
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
from filelock import FileLock, Timeout

from frostline.errors import Refused, redact

# Work that is not whole yet, below the project's root: outside the stages' outputs, which DVC removes before a stage runs.
UNFINISHED = Path(".frostline/unfinished")
# When each stage began and ended here last: what it wrote meanwhile is its own.
RUNS = Path(".frostline/runs")

MOST_TIMES = 20  # of runs that did not end
BEAT_S = 0.5

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# A process that is told to end has so long to come out of a library's call; and so long in all.
YIELD_SECONDS, STOP_SECONDS = 2.0, 4.5
# What the user mends, not we: a full, read-only or closed disk, or too little memory.
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_SAID = re.compile(r"database or disk is full|No space left on device")
NO_MEMORY_SAID = re.compile(r"OOM when allocating|RESOURCE_EXHAUSTED")  # TensorFlow and JAX
DISK_ERRORS = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)


def count_cores() -> int:
    """The cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def set_variables(values: Mapping[str, str]) -> Iterator[None]:
    """These variables of the environment, in the block and in the processes that are started in it; as before it, afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
    """Runs a stage: alone (a lock per stage and folder), ended with its parent, refusals and stops without a traceback.

    Exits with 2 where input was refused, and with 130 or 143 where it was told to end, by SIGINT (Ctrl-C) or SIGTERM.
    """
    die_with_parent()
    started = time.monotonic()
    with (
        ending_in_words(name),
        held(Path(".frostline") / f"{name}.lock", f"stage {name}"),
        _timed(RUNS / f"{name}.json"),
    ):
        main()
    print(f"{name}: done in {time.monotonic() - started:.1f} s", flush=True)


@contextmanager
def ending_in_words(name: str) -> Iterator[None]:
    """Refusals, stops and mistakes in the block end the process as `run_stage` says."""
    _listen(name)
    try:
        yield
    except BaseException as error:
        if _stop.signal:  # whatever a library made of it
            _leave(name)
        if said := describe_refusal(error):
            print(f"frostline: {redact(said)}", file=sys.stderr)
        elif isinstance(error, Exception):  # whatever it quotes, a log is kept and shown to others
            print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="")
            sys.exit(1)
        else:
            raise
        sys.exit(2)


def describe_refusal(error: BaseException) -> str | None:
    """What was refused, by us, by the disk, or for want of memory, in words for the user; None of a mistake of ours.

    That the disk is full, libraries say in exceptions of their own, with the system's somewhere behind.
    """
    if isinstance(error, Refused):
        return str(error)
    told: BaseException | None = error
    while told is not None:
        allowed = DISK_ERRORS if told is error else FULL
        if isinstance(told, OSError) and told.errno in allowed:
            return f"{told.filename or Path.cwd()}: {told.strerror}. Free space, or change the rights, and run again."
        if FULL_SAID.search(str(told)):
            return f"{Path.cwd()}: {os.strerror(errno.ENOSPC)}. Free space, and run again."
        if isinstance(told, MemoryError) or NO_MEMORY_SAID.search(str(told)):
            return (
                "There is not enough memory. What is finished is kept; smaller batches or images, or fewer workers, need less, "
                "and the same again goes on from there."
            )
        told = told.__cause__ or told.__context__
    return None


# --- being told to end ------------------------------------------------------------------------------------------------


class Stopped(SystemExit):
    """The process was told to end, by SIGINT or SIGTERM."""


@dataclass
class _Stop:
    """What a process that is told to end still has to do. signal: that told it to, 0 before; endings: newest last."""

    signal: int = 0
    endings: list[Callable[[], None]] = field(default_factory=list)
    leaving: threading.Lock = field(default_factory=threading.Lock)


_stop = _Stop()


@contextmanager
def if_stopped(ending: Callable[[], None]) -> Iterator[None]:
    """Calls `ending` where the process is told to end inside the block; perhaps in another thread, for a library may not let go."""
    _stop.endings.append(ending)
    try:
        yield
    finally:
        if not _stop.signal:
            _stop.endings.remove(ending)


def _listen(name: str) -> None:
    """From now on SIGINT and SIGTERM end this process in words, within STOP_SECONDS, whatever it is doing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The system's own handler writes there at once; ours has to wait until a library's call returns.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _raise_stopped)
    threading.Thread(target=_watch, args=(name, reader), daemon=True).start()
    sys.unraisablehook = _tell_unraisable
    # Python's tracker removes the semaphores of a pool that we leave behind; it takes its options from here.
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")


def _tell_unraisable(dropped: "sys.UnraisableHookArgs") -> None:
    """Says nothing of a Stopped that came where nothing can be raised, as in a callback of the garbage collector: `_watch` ends us."""
    if dropped.exc_type is not Stopped:
        sys.__unraisablehook__(dropped)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    if not _stop.signal:
        _stop.signal = number
        raise Stopped(128 + number)


def _watch(name: str, reader: int) -> None:
    while (number := os.read(reader, 1)[0]) not in (signal.SIGINT, signal.SIGTERM):
        pass
    time.sleep(YIELD_SECONDS)
    _stop.signal = _stop.signal or number
    threading.Thread(target=_leave, args=(name,), daemon=True).start()
    time.sleep(STOP_SECONDS - YIELD_SECONDS)
    os._exit(128 + _stop.signal)


def _leave(name: str) -> None:
    """Ends the process that was told to end; libraries' own endings would print and wait."""
    if not _stop.leaving.acquire(blocking=False):
        time.sleep(STOP_SECONDS)  # another thread is at it, or _watch ends us
    how = signal.Signals(_stop.signal).name
    _end(
        f"{name} was ended by {how}; what is finished is kept, and `dvc repro` goes on from there.", 128 + _stop.signal
    )


def end_process(sentence: str) -> None:
    """Ends this process with this one word, from any thread: for what a library neither raises nor survives."""
    if _stop.leaving.acquire(blocking=False):
        _end(sentence, 2)


def _end(sentence: str, code: int) -> NoReturn:
    """The last word, and what is to be done at the end."""
    with suppress(OSError, ValueError):  # nobody may be listening any more
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"frostline: {sentence}\n".encode())
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries have more to say while their processes end
    while _stop.endings:
        with suppress(Exception):  # the next start mends what could not be done
            _stop.endings.pop()()
    os._exit(code)


@contextmanager
def shielded() -> Iterator[None]:
    """Processes started in the block do not get Ctrl-C, which goes to all of a terminal's: their parent does, and ends them."""
    # Python starts it with the first of them where it is not up yet, and lets SIGINT through then.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_pool(workers: int, initializer: Callable[..., None], *facts: Any) -> ProcessPoolExecutor:
    """Processes that end with this one; `initializer(*facts)` is called in each of them first."""
    # Spawned, never forked: the caller may have threads.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_process, (initializer, *facts))
    with shielded():
        pool.submit(int)  # starts all of them
    return pool


def _start_process(initializer: Callable[..., None], *facts: Any) -> None:
    die_with_parent()
    initializer(*facts)


@contextmanager
def work_folder(name: str) -> Iterator[Path]:
    """A folder of this process below UNFINISHED, gone at the end; those of the same name that killed ones left go first."""
    UNFINISHED.mkdir(parents=True, exist_ok=True)
    for left in UNFINISHED.glob(f"{name}-*"):
        process = left.name.removeprefix(f"{name}-")
        if not process.isdigit() or not lives(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    folder = UNFINISHED / f"{name}-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lives(process: int) -> bool:
    """Is there a process of this number on this machine? One that is dead and that its parent has not asked for is none."""
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True


@contextmanager
def _timed(record: Path) -> Iterator[None]:
    """Writes down when the block began, and when it ended without an error; a file's time may be a tick coarser.

    While it runs the record is touched every BEAT_S seconds, so that one that was killed is known to have lived until then.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    begun = time.time() - 0.1
    # What it wrote before is its own, too, until it has written it anew: DVC may not have taken it over.
    earlier = load_times(record)
    _write_times(record, {"begun": begun, "earlier": earlier[-MOST_TIMES:]})
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            with suppress(OSError):
                os.utime(record)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
    _write_times(record, {"begun": begun, "ended": time.time()})


def load_times(record: Path) -> list[dict[str, float]]:
    """When a stage ran since it last ended well, that time included, by its file in RUNS; oldest first.

    begun, and ended or, of a run that did not end well, seen: until when it may have written; seconds since 1970.
    """
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        seen = {} if "ended" in known else {"seen": record.stat().st_mtime + BEAT_S}
        return [*known.pop("earlier", []), known | seen]
    except (FileNotFoundError, ValueError):
        return []


def _write_times(record: Path, times: dict[str, Any]) -> None:
    temporary = record.with_name(f".{record.name}.new")  # one process at a time: the stage's lock is held
    temporary.write_text(json.dumps(times), encoding="utf-8")
    temporary.replace(record)


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
        if (parent := multiprocessing.parent_process()) and not parent.is_alive():  # it died before we asked
            os._exit(128 + signal.SIGTERM)


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
