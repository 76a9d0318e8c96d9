"""Engine `ray`: Ray's tasks and actors, on this machine or on the nodes of a Ray that runs. The one home of Ray."""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import frostline
from frostline.errors import Refused
from frostline.files import hash_folder
from frostline.params import Scale
from frostline.process import Stopped, count_cores, end_process, if_stopped, lives
from frostline.scale.work import Work

RETRIES = 3  # of a task, or of a study's worker, whose process is gone
AHEAD = 2  # tasks for each worker that may be begun before the first of them is taken
ROWS_MEMORY = 1_000_000_000  # bytes of results that wait in a Ray of our own; more go to disk
LONGEST = 40  # bytes of the folder's path: Ray's sockets below it have names of 60 more, and 107 are allowed
PREFIX = "frostline-ray"
# Of this process's settings those that the workers compute with; secrets are not among them (docs/scale.md).
CARRIED = ("KERAS_", "TF_", "XLA_", "JAX_", "OMP_", "OPENBLAS_", "DVC_ROOT")
LOOK_SECONDS, LOOKS = 1.0, 3  # how often Ray's head is looked for, and how many times in vain before it is given up
GONE = "Ray is gone ({}). What is finished is kept, and `dvc repro` goes on from there."


class Cluster:
    """Ray, started or joined when there is work, and left with the block. workers: so many tasks, or actors, at a time."""

    def __init__(self, scale: Scale) -> None:
        self.scale, self.workers = scale, scale.workers
        self._stack = ExitStack()
        self._crew: list[Any] = []
        self._given: dict[Work, Any] = {}
        # By max_calls a process is not ended after each task that had a GPU.
        self._do: Any = ray.remote(max_retries=RETRIES, max_calls=0)(_do)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Else what is to be done at the process' end ends Ray; its own way is slower, and it has much to say on it.
        if not isinstance(error, Stopped):
            self._stack.close()

    def divide(self, number: int, most: int) -> Iterator[slice]:
        """See `Engine.divide`."""
        return (slice(start, min(start + most, number)) for start in range(0, number, most))

    def map(self, work: Work, tasks: Iterable[tuple[Any, ...]], **_: int) -> Generator[Any, None, None]:
        """See `Engine.map`; pieces come back here, and this process alone writes them.

        Ray does a task again, RETRIES times, whose process or node is gone.
        """
        waiting = iter(tasks)
        pending: deque[tuple[Any, tuple[Any, ...]]] = deque()
        running: list[Any] = []
        while True:
            while len(running) < self.workers and len(pending) < AHEAD * self.workers:
                if (task := next(waiting, None)) is None:
                    break
                self._start()
                running.append(self._submit(work, task))
                pending.append((running[-1], task))
            if not pending:
                return
            first, task = pending[0]
            if first in running:
                _, running = self._call(partial(ray.wait, running))
                continue
            pending.popleft()
            for piece in self._call(partial(ray.get, first)):
                yield work.keep(piece, *task)

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
        """See `Engine.run_workers`. Another worker takes the place of a lost one, RETRIES times."""
        self._start()
        needs: dict[str, Any] = {**self._needs(True)}
        if one_machine:
            node = ray.get_runtime_context().get_node_id()
            self._check_places(node)
            needs["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        given = ray.put((run, facts))
        home = Home(str(Path.cwd()), _digest_code(), needed=self.scale.store is None)
        crew: dict[Any, tuple[Any, Any]] = {}  # what a worker says -> the worker, and whether it has a place

        def hire() -> None:
            worker = ray.remote(_Worker).options(**needs).remote()
            placed = worker.__ray_ready__.remote()
            said = worker.run.options(num_returns="streaming").remote(home, [given])
            crew[said] = worker, placed
            self._crew.append(worker)

        for _ in range(number):
            hire()
        losses: list[str] = []
        while crew:
            ((said, *_), _) = self._call(partial(ray.wait, list(crew)))
            try:
                print(self._call(partial(ray.get, next(said))), flush=True)
            except StopIteration:  # there is nothing left to do for those who still wait for a place
                crew.pop(said)
                for other in [said for said, (_, placed) in crew.items() if not ray.wait([placed], timeout=0)[0]]:
                    self._dismiss([crew.pop(other)[0]])
            except RayActorError as error:
                self._dismiss([crew.pop(said)[0]])  # it may only be out of reach, and have come back
                out_of_reach = isinstance(error, ActorUnavailableError)
                losses.append("its node is out of reach" if out_of_reach else "its process, or its node, is gone")
                lost(losses[-1])
                if len(losses) <= RETRIES:
                    hire()
        self._dismiss(self._crew)
        return losses[RETRIES:]

    # --- Ray's beginning and end ------------------------------------------------------------------------------------

    def _start(self) -> None:
        if ray.is_initialized():
            return
        # Ray puts its own in the place of our handler of SIGTERM.
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        options = {
            "log_to_driver": False,
            "logging_level": logging.CRITICAL,
            "runtime_env": {"env_vars": self._environment()},
        }
        try:
            if self.scale.address is None:
                self._start_here(options)
            else:
                self._join(self.scale.address, options)
        except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise Refused(f"Ray does not start, or cannot be joined: {_first_line(error)}") from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self._check_places()
        watch = _Watch(ray.get_runtime_context().gcs_address)
        self._stack.callback(watch.ended.set)
        watch.start()

    def _start_here(self, options: dict[str, Any]) -> None:
        """A Ray of this stage's own, for this machine alone."""
        folder = _make_folder()
        before = set(psutil.Process().children())
        ending = partial(_end_family, before, folder)
        self._stack.callback(ending)
        self._stack.enter_context(if_stopped(ending))
        ray.init(
            address="local",
            num_cpus=self.workers * (self.scale.cpus or 1),
            include_dashboard=False,
            object_store_memory=ROWS_MEMORY,
            _temp_dir=str(folder),
            **options,
        )
        self._stack.callback(ray.shutdown)

    def _join(self, address: str, options: dict[str, Any]) -> None:
        if address != "auto" and not _answers(address):
            raise ConnectionError(f"nothing answers at {address}, which scale.address names")
        ray.init(address=address, **options)
        self._stack.callback(ray.shutdown)
        self._stack.enter_context(if_stopped(partial(self._dismiss, self._crew)))

    def _environment(self) -> dict[str, str]:
        """What the workers' libraries are told, besides what their node's environment says."""
        carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        source = str(Path(frostline.__file__).parents[1])
        carried["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        if not self.scale.gpus:
            carried["CUDA_VISIBLE_DEVICES"] = "-1"  # or all would share one
        if self.scale.cpus:
            return carried | dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), str(self.scale.cpus))
        # Ray's own default is one thread, with which sums are rounded otherwise than here.
        return {"OMP_NUM_THREADS": str(count_cores())} | carried

    def _needs(self, on_gpu: bool) -> dict[str, float]:
        return {"num_cpus": self.scale.cpus or 1, "num_gpus": self.scale.gpus if on_gpu else 0}

    def _check_places(self, only: str | None = None) -> None:
        """Refused where no node, or not the only one that may, could ever hold a worker: Ray would wait for one."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and only in (None, node["NodeID"])]
        needs = {"CPU": self.scale.cpus or 1, "GPU": self.scale.gpus}
        if not any(all(node.get(kind, 0) >= number for kind, number in needs.items()) for node in nodes):
            most = {kind: int(max(node.get(kind, 0) for node in nodes)) for kind in needs}
            raise Refused(
                f"scale: a worker needs {needs['CPU']} CPUs and {needs['GPU']} GPUs (scale.cpus, scale.gpus), and no node of "
                f"{len(nodes)} has them: at most {most['CPU']} CPUs, at most {most['GPU']} GPUs."
            )

    def _submit(self, work: Work, task: tuple[Any, ...]) -> Any:
        if work not in self._given:
            self._given[work] = ray.put((work.make, work.begin, work.facts))
        return self._do.options(**self._needs(work.on_gpu)).remote(
            Home(str(Path.cwd()), _digest_code()), [self._given[work]], task
        )

    def _call(self, question: Callable[[], Any]) -> Any:
        """What Ray answers; a task's error is raised as it is, and one of Ray's own is a refusal."""
        try:
            return question()
        except RayTaskError as error:
            cause = error.cause
            raise cause from (None if isinstance(cause, Refused) else error)
        except RayActorError:
            raise
        except RayError as error:
            raise Refused(GONE.format(_first_line(error))) from None

    def _dismiss(self, workers: Iterable[Any]) -> None:
        for worker in list(workers):
            with suppress(RayError):
                ray.kill(worker)
            self._crew.remove(worker)


class _Watch(threading.Thread):
    """Ends this process in words where Ray's head does not answer any more: Ray itself waits for it, and then aborts."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.ended = address, threading.Event()

    def run(self) -> None:
        looks = 0
        while looks < LOOKS:
            if self.ended.wait(LOOK_SECONDS):
                return
            looks = 0 if _answers(self.address) else looks + 1
        end_process(GONE.format(f"its head at {self.address} does not answer"))


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return True
    except OSError:
        return False


def _make_folder() -> Path:
    """A new folder for the files of a Ray of this process; those that killed ones left go first."""
    place = Path(tempfile.gettempdir())
    if len(os.fsencode(place / f"{PREFIX}-4194304-12345678")) > LONGEST:
        place = Path("/tmp")
    for left in place.glob(f"{PREFIX}-*-*"):
        process = left.name.split("-")[2]
        if process.isdigit() and not lives(int(process)):  # another user's cannot be removed
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-", dir=place))


def _end_family(before: set[psutil.Process], folder: Path) -> None:
    """Ends the processes that Ray started here, and takes its folder away."""
    family: list[psutil.Process] = []
    for child in set(psutil.Process().children()) - before:
        with suppress(psutil.NoSuchProcess):
            family += [*child.children(recursive=True), child]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=1)
    shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# --- in the workers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Home:
    """Where the stage runs: its folder, from which the paths of params.yaml begin, and the digest of its code.

    needed: must a node see the folder?
    """

    folder: str
    code: str
    needed: bool = True

    def enter(self) -> None:
        """Goes there. Refused where this node has other code, or does not see a folder that is needed."""
        try:
            os.chdir(self.folder)
        except OSError as error:
            if self.needed:
                raise Refused(
                    f"The node {socket.gethostname()} of Ray does not see {self.folder}: {error.strerror}. Every node needs the "
                    "project's folder under the same path, for instance on a shared file system."
                ) from None
        if self.code != _digest_code():
            raise Refused(
                f"The node {socket.gethostname()} of Ray has another version of Frostline than the stage that asks it. Every node "
                "needs the same."
            )


@cache
def _digest_code() -> str:
    """Of this process's Frostline."""
    return hash_folder(Path(frostline.__file__).parent)


_kept: dict[str, tuple[Callable[..., Iterator[Any]], Any]] = {}  # what a process keeps between its tasks
_began_on: dict[str, str | None] = {}  # the GPU that its libraries keep


def _do(home: Home, given: list[Any], task: tuple[Any, ...]) -> list[Any]:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    if _began_on.setdefault("gpu", gpu) != gpu:
        os._exit(1)  # Ray gave this process another one, and does the task again in another process
    (reference,) = given
    key = reference.hex()
    if key not in _kept:
        _kept.clear()
        home.enter()
        make, begin, facts = ray.get(reference)
        _kept[key] = make, begin(*facts)
    make, kept = _kept[key]
    return list(make(kept, *task))


class _Worker:
    """A worker of a study."""

    def run(self, home: Home, given: list[Any]) -> Iterator[str]:
        home.enter()
        run, facts = ray.get(given[0])
        yield from run(*facts)
