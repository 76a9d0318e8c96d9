"""Engine `local`: threads and processes of this machine."""

import multiprocessing
import multiprocessing.connection
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.context import SpawnProcess
from typing import Any

import psutil

from frostline.errors import Refused
from frostline.process import describe_refusal, die_with_parent, if_stopped, set_variables, shielded, start_pool
from frostline.scale.work import Work
from frostline.seeding import in_order


@dataclass(frozen=True)
class Local:
    """This machine. workers: of a study; a single one is this process itself."""

    workers: int = 1

    def divide(self, number: int, most: int) -> Iterator[slice]:
        """One part: what is computed here is read as it is needed."""
        yield slice(0, number)

    def map(
        self, work: Work, tasks: Iterable[tuple[Any, ...]], *, threads: int = 0, processes: int = 0, ahead: int = 1
    ) -> Generator[Any, None, None]:
        """See `Engine.map`."""
        if not threads and not processes:
            kept = _begin(work)
            for task in tasks:
                yield from _do(work, kept, *task)
            return
        with ExitStack() as stack:
            if processes:
                pool: Executor = start_pool(processes, _start_worker, replace(work, here=None))
                do: Callable[..., list[Any]] = _do_there
            else:
                pool, do = ThreadPoolExecutor(threads), partial(_do_all, work, _begin(work))
            stack.callback(pool.shutdown, cancel_futures=True)  # after an error the rest is not done first
            for pieces in in_order(pool, do, tasks, ahead):
                yield from pieces

    def run_workers(
        self,
        run: Callable[..., Iterator[str]],
        facts: tuple[Any, ...],
        number: int,
        *,
        here: Callable[[], Iterator[str]],
        lost: Callable[[str], None],
        gpus: Sequence[str] = (),
        one_machine: bool = False,
    ) -> list[str]:
        """See `Engine.run_workers`. Of several GPUs each worker has one; Refused where some would have to share."""
        if self.workers == 1:
            for line in here():
                print(line, flush=True)
            return []
        if 0 < len(gpus) < number:
            raise Refused(
                f"tune.workers: {number} workers would share the memory of {len(gpus)} GPU{'s' * (len(gpus) > 1)} without a limit. Allow "
                "one for each, or compute on the processor: CUDA_VISIBLE_DEVICES=-1."
            )
        # Spawned: a fork after TensorFlow has run hangs.
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_work, args=(run, facts)) for _ in range(number)]
        with if_stopped(_end_workers):
            try:
                with shielded():
                    for place, worker in enumerate(workers):
                        # Seen before our code in it runs: its libraries look first.
                        with set_variables({"CUDA_VISIBLE_DEVICES": gpus[place]} if len(gpus) > 1 else {}):
                            worker.start()
                ended: list[str] = []
                running: dict[Any, SpawnProcess] = {worker.sentinel: worker for worker in workers}
                while running:
                    for sentinel in multiprocessing.connection.wait(list(running)):
                        worker = running.pop(sentinel)
                        worker.join()
                        if worker.exitcode:
                            ended.append(f"exit code {worker.exitcode}")
                            lost(ended[-1])
                return ended
            except BaseException:
                _end_workers()  # or the interpreter, at its end, would wait for them without a word
                raise


HERE = Local()


def _begin(work: Work) -> Any:
    return work.here() if work.here else work.begin(*work.facts)


def _do(work: Work, kept: Any, *task: Any) -> Iterator[Any]:
    for piece in work.make(kept, *task):
        yield work.keep(piece, *task)


def _do_all(work: Work, kept: Any, *task: Any) -> list[Any]:
    return list(_do(work, kept, *task))


_worker: dict[str, Any] = {}  # what a process of a pool keeps between its tasks


def _start_worker(work: Work) -> None:
    _worker.update(work=work, kept=_begin(work))


def _do_there(*task: Any) -> list[Any]:
    return _do_all(_worker["work"], _worker["kept"], *task)


def _work(run: Callable[..., Iterator[str]], facts: tuple[Any, ...]) -> None:
    die_with_parent()
    try:
        for line in run(*facts):
            print(line, flush=True)
    except Exception as error:
        said = describe_refusal(error)
        if said is None:
            raise
        print(f"frostline: {said}", file=sys.stderr, flush=True)
        sys.exit(2)


def _end_workers() -> None:
    """Kills the processes that were spawned here, and returns when they are gone.

    Asked of the system: a worker whose start was broken off is none of `multiprocessing`'s.
    """
    spawned = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if "--multiprocessing-fork" in process.cmdline():
                process.kill()
                spawned.append(process)
    for worker in multiprocessing.active_children():
        worker.join()
    psutil.wait_procs(spawned)
