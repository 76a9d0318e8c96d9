"""Work whose process is killed in the middle, once. Ray's workers import it, so it loads little."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from frostline.scale.work import Engine, Work


class Mortal:
    """An engine of which one process is killed, by SIGKILL, in the middle of its work. flag: a file that says that it was."""

    def __init__(self, engine: Engine, flag: Path) -> None:
        self.engine, self.flag, self.workers = engine, flag, engine.workers

    def divide(self, number: int, most: int) -> Iterator[slice]:
        return self.engine.divide(number, min(most, 24))

    def map(self, work: Work, tasks: Any, **how: int) -> Iterator[Any]:
        return self.engine.map(replace(work, make=partial(die_once, self.flag, work.make)), tasks, **how)

    def run_workers(
        self, run: Callable[..., Iterator[str]], facts: tuple[Any, ...], number: int, **how: Any
    ) -> list[str]:
        return self.engine.run_workers(partial(die_in_a_trial, self.flag, run), facts, number, **how)


def die_once(flag: Path, make: Callable[..., Iterator[Any]], kept: Any, *task: Any) -> Iterator[Any]:
    """What `make` yields; the first process that has made a piece dies before it hands it over."""
    for piece in make(kept, *task):
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield piece


def die_in_a_trial(flag: Path, run: Callable[..., Iterator[str]], job: Any) -> Iterator[str]:
    """What `run` yields; the first process that has run a trial dies in the middle of its next one."""
    for line in run(job):
        yield line
        if not flag.exists():
            flag.touch()
            threading.Thread(target=_die_when_it_runs, args=(job,), daemon=True).start()


def _die_when_it_runs(job: Any) -> None:
    from frostline.search.places import SIGNED
    from frostline.search.study import RECORD

    while True:
        for trial in job.study.load().get_trials(deepcopy=False):
            runs = trial.state.name == "RUNNING" and trial.params and RECORD not in trial.user_attrs
            if runs and trial.user_attrs.get(SIGNED, [0, 0])[1] == os.getpid():
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)


def begin_nothing() -> None:
    """What tasks that need nothing begin with."""


def tell_process(kept: None, number: int, seconds: float) -> Iterator[tuple[int, int]]:
    """The task's number and its process, after so many seconds."""
    time.sleep(seconds)
    yield number, os.getpid()


def tell_node(kept: None, number: int, seconds: float) -> Iterator[str]:
    """Ray's node that this process is on, after so many seconds."""
    import ray

    time.sleep(seconds)
    yield ray.get_runtime_context().get_node_id()


def tell_gpu(kept: None, number: int, seconds: float) -> Iterator[str | None]:
    """The GPU that this process sees, after so many seconds."""
    time.sleep(seconds)
    yield os.environ.get("CUDA_VISIBLE_DEVICES")


def say_gpu(folder: Path, number: int) -> Iterator[str]:
    """The GPU that this worker sees, once so many workers are there."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < number:
        time.sleep(0.05)
    yield f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}"


def fail(kept: None, kind: type[Exception], words: str) -> Iterator[None]:
    """Raises what it is given."""
    raise kind(words)
    yield
